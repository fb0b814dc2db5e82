/* The vocabulary on AVX-512 (F, BW, VL, DQ, VNNI): one register. simd/scalar.h says what each function means. */
#ifndef RT_SIMD_AVX512_H
#define RT_SIMD_AVX512_H
#ifdef RT_EMULATE_AVX512 /* a header that gives the intrinsics below on a CPU without them: how tests run this file */
#include RT_EMULATE_AVX512
#else
#include <immintrin.h>
#endif
#include <stdint.h>
#include <string.h>

#define V_INLINE static inline __attribute__((always_inline, unused))
#include "simd/planes.h"

typedef __m512 v16f;
typedef __m512i v16i;
typedef __mmask16 v16m;

#define V_ROWS 12 /* query rows that share a load in attention_tile */
#define V_SCAN_TOKENS 8 /* tokens of scan_block that share a load of the state */
#define V_SUMS 16 /* sums that attention keeps in registers for one token */
#define V_FAR     /* products outrun what the first cache can ask of memory: ops/linear.h fetches further ahead */

V_INLINE v16f v_set1(float x) { return _mm512_set1_ps(x); }
V_INLINE v16f v_zero(void) { return _mm512_setzero_ps(); }
V_INLINE v16f v_load(const float *p) { return _mm512_loadu_ps(p); }
V_INLINE void v_store(float *p, v16f x) { _mm512_storeu_ps(p, x); }
V_INLINE __m256i v_256(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
V_INLINE v16f v_load_f16(const uint16_t *p) { return _mm512_cvtph_ps(v_256(p)); }
V_INLINE v16f v_load_bf16(const uint16_t *p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v_256(p)), 16));
}
V_INLINE v16f v_set1_f16(const uint16_t *p) { return v_set1(_cvtsh_ss(*p)); }
V_INLINE v16f v_load_e5m2(const uint8_t *p) {
  return _mm512_cvtph_ps(_mm256_slli_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)p)), 8));
}
V_INLINE v16f v_load_e4m3(const uint8_t *p) { /* widened, the sign stands twice on top */
  const __m256i digits = _mm256_set1_epi16(0x3f80);
  __m256i wide = _mm256_slli_epi16(_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p)), 7);
  __m256i half = _mm256_and_si256(wide, _mm256_set1_epi16((short)0xbf80));
  __m256i none = _mm256_cmpeq_epi16(_mm256_and_si256(wide, digits), digits);
  return _mm512_mul_ps(_mm512_cvtph_ps(_mm256_or_si256(half, none)), _mm512_set1_ps(256.0f));
}
V_INLINE void v_store_f16(uint16_t *p, v16f x) {
  _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

V_INLINE v16f v_add(v16f x, v16f y) { return _mm512_add_ps(x, y); }
V_INLINE v16f v_sub(v16f x, v16f y) { return _mm512_sub_ps(x, y); }
V_INLINE v16f v_mul(v16f x, v16f y) { return _mm512_mul_ps(x, y); }
V_INLINE v16f v_div(v16f x, v16f y) { return _mm512_div_ps(x, y); }
V_INLINE v16f v_fma(v16f x, v16f y, v16f z) { return _mm512_fmadd_ps(x, y, z); }
V_INLINE v16f v_max(v16f x, v16f y) { return _mm512_max_ps(x, y); }
V_INLINE v16f v_min(v16f x, v16f y) { return _mm512_min_ps(x, y); }
V_INLINE v16f v_abs(v16f x) { return _mm512_abs_ps(x); }
V_INLINE v16f v_round(v16f x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
V_INLINE v16f v_scale2(v16f x, v16f n) { return _mm512_scalef_ps(x, n); }
V_INLINE v16f v_scale2_normal(v16f x, v16f n) { return _mm512_scalef_ps(x, n); }

V_INLINE v16m v_less(v16f x, v16f y) { return _mm512_cmp_ps_mask(x, y, _CMP_LT_OQ); }
V_INLINE v16m v_within(const int32_t *p, int32_t low, int32_t high) {
  __m512i x = _mm512_loadu_si512(p);
  return (v16m)(_mm512_cmpge_epi32_mask(x, _mm512_set1_epi32(low)) & _mm512_cmple_epi32_mask(x, _mm512_set1_epi32(high)));
}
V_INLINE uint32_t v_bits(v16m m) { return m; }
V_INLINE v16m v_mask(uint32_t bits) { return (v16m)bits; }
V_INLINE v16f v_select(v16m m, v16f x, v16f y) { return _mm512_mask_blend_ps(m, y, x); }

V_INLINE __m256 v_upper(v16f x) { return _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x), 1)); }
V_INLINE float v_sum(v16f x) {
  __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x), v_upper(x));
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
V_INLINE float v_most(v16f x) {
  __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(x), v_upper(x));
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}
V_INLINE float v_first(v16f x) { return _mm_cvtss_f32(_mm512_castps512_ps128(x)); }

V_INLINE void v_store_s32(int32_t *p, v16f x) { _mm512_storeu_si512(p, _mm512_cvtps_epi32(x)); }
V_INLINE int32_t v_store_planes(v16f x, int16_t *q, int8_t *high, int8_t *low) {
  __m512i whole = _mm512_cvtps_epi32(x);
  return v_split_planes(_mm512_castsi512_si256(whole), _mm512_extracti64x4_epi64(whole, 1), q, high, low);
}
V_INLINE v16f v_of_s32(v16i x) { return _mm512_cvtepi32_ps(x); }
V_INLINE v16i v_minus(v16i x, int32_t y) { return _mm512_sub_epi32(x, _mm512_set1_epi32(y)); }

/* ---- steps ---- */
typedef __m512i v64b;

V_INLINE v64b v_bytes(const uint8_t *p) { return _mm512_loadu_si512(p); }
V_INLINE void v_store_bytes(uint8_t *p, v64b x) { _mm512_storeu_si512(p, x); }
V_INLINE v64b v_field(v64b x, int right, int mask) {
  x = right > 0 ? _mm512_srli_epi16(x, (unsigned)right) : right < 0 ? _mm512_slli_epi16(x, (unsigned)-right) : x;
  return _mm512_and_si512(x, _mm512_set1_epi8((char)mask));
}
V_INLINE v64b v_or(v64b x, v64b y) { return _mm512_or_si512(x, y); }
V_INLINE __m128i v_128(const void *p) { return _mm_loadu_si128((const __m128i *)p); }
V_INLINE v64b v_lookup(const uint8_t *table, v64b x) {
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(v_128(table)), x);
}
V_INLINE v16f v_of_u8(const uint8_t *p) { return v_of_s32(_mm512_cvtepu8_epi32(v_128(p))); }
V_INLINE v16f v_of_s8(const uint8_t *p) { return v_of_s32(_mm512_cvtepi8_epi32(v_128(p))); }

/* ---- sums of a sub-block: a step is one operand of vpdpbusd, one product for each plane of the activation ---- */
#define V_DOT_TOKENS 4

V_INLINE __m512i v_four(const int8_t *p) { /* 4 bytes, repeated */
  int32_t x;
  memcpy(&x, p, 4);
  return _mm512_set1_epi32(x);
}

typedef struct v_sums { __m512i high[V_DOT_TOKENS], low[V_DOT_TOKENS]; } v_sums;

V_INLINE void v_sums_begin(v_sums *restrict s, int m) {
  for (int t = 0; t < m; t++) s->high[t] = s->low[t] = _mm512_setzero_si512();
}
V_INLINE void v_sums_step(v_sums *restrict s, v64b u, int bits, int j, const int16_t *const *q, const int8_t *const *high,
                          const int8_t *const *low, int at, int m) {
  (void)bits, (void)j, (void)q;
  for (int t = 0; t < m; t++) {
    s->high[t] = _mm512_dpbusd_epi32(s->high[t], u, v_four(high[t] + at));
    s->low[t] = _mm512_dpbusd_epi32(s->low[t], u, v_four(low[t] + at));
  }
}
V_INLINE const uint8_t *v_after(const uint8_t *p, const v_sums *s, int bits) {
  (void)s, (void)bits;
#ifndef RT_EMULATE_AVX512
  __asm__("" : "+r"(p) : "v"(s->low[0]));
#endif
  return p;
}
V_INLINE void v_sums_end(v_sums *restrict s, int bits, int steps, int m, v16i *restrict sum) {
  (void)bits, (void)steps;
  for (int t = 0; t < m; t++) sum[t] = _mm512_add_epi32(_mm512_slli_epi32(s->high[t], 8), s->low[t]);
}

/* ---- sums of one plane ---- */
#define V_BYTE_TOKENS 8
#define V_DOTS_LESS(bits) 0

typedef struct v_dots { __m512i s[V_BYTE_TOKENS]; } v_dots;

V_INLINE void v_dots_begin(v_dots *restrict d, int m) {
  for (int t = 0; t < m; t++) d->s[t] = _mm512_setzero_si512();
}
V_INLINE void v_dots_step(v_dots *restrict d, v64b u, int bits, int j, const uint8_t *x, size_t stride, int m) {
  (void)bits, (void)j;
  for (int t = 0; t < m; t++) d->s[t] = _mm512_dpbusd_epi32(d->s[t], u, v_four((const int8_t *)x + t * stride));
}
V_INLINE void v_dots_end(v_dots *restrict d, int bits, int m, v16i *restrict sum) {
  (void)bits;
  for (int t = 0; t < m; t++) sum[t] = d->s[t];
}

/* ---- the BF16 path ---- */
#define V_BF16_TOKENS 8

V_INLINE v16f v_number(v64b x, int i) {
  return _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(x, 8 * i), _mm512_set1_epi32(255)));
}
V_INLINE v16f v_round_bf16(v16f x) {
  __m512i bits = _mm512_castps_si512(x), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  __m512i all = _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), rounded, quiet);
  return _mm512_castsi512_ps(_mm512_and_si512(all, _mm512_set1_epi32((int)0xffff0000)));
}
#endif
