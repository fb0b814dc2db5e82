/* The vocabulary on AVX2, FMA and F16C: two registers of 8 lanes. simd/scalar.h says what each function means. */
#ifndef RT_SIMD_AVX2_H
#define RT_SIMD_AVX2_H
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define V_INLINE static inline __attribute__((always_inline, unused))
#include "simd/planes.h"

typedef struct v16f { __m256 a, b; } v16f;
typedef struct v16i { __m256i a, b; } v16i;
typedef struct v16m { __m256 a, b; } v16m;

#define V_EACH(f, x, y) (v16f){f((x).a, (y).a), f((x).b, (y).b)}

#define V_ROWS 6 /* query rows that share a load in attention_tile: 12 sums, a row of the page, a query */
#define V_SCAN_TOKENS 4 /* tokens of scan_block that share a load of the state */
#define V_SUMS 4 /* sums that attention keeps in registers for one token */

V_INLINE v16f v_set1(float x) { __m256 r = _mm256_set1_ps(x); return (v16f){r, r}; }
V_INLINE v16f v_zero(void) { return (v16f){_mm256_setzero_ps(), _mm256_setzero_ps()}; }
V_INLINE v16f v_load(const float *p) { return (v16f){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
V_INLINE void v_store(float *p, v16f x) { _mm256_storeu_ps(p, x.a); _mm256_storeu_ps(p + 8, x.b); }
V_INLINE __m128i v_128(const void *p) { return _mm_loadu_si128((const __m128i *)p); }
V_INLINE __m256i v_256(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
V_INLINE v16f v_load_f16(const uint16_t *p) { return (v16f){_mm256_cvtph_ps(v_128(p)), _mm256_cvtph_ps(v_128(p + 8))}; }
V_INLINE __m256 v_widen_bf16(const uint16_t *p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v_128(p)), 16));
}
V_INLINE v16f v_load_bf16(const uint16_t *p) { return (v16f){v_widen_bf16(p), v_widen_bf16(p + 8)}; }
V_INLINE v16f v_set1_f16(const uint16_t *p) { return v_set1(_cvtsh_ss(*p)); }
V_INLINE v16f v_of_halves(__m256i x) {
  return (v16f){_mm256_cvtph_ps(_mm256_castsi256_si128(x)), _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1))};
}
V_INLINE v16f v_load_e5m2(const uint8_t *p) { return v_of_halves(_mm256_slli_epi16(_mm256_cvtepu8_epi16(v_128(p)), 8)); }
V_INLINE v16f v_load_e4m3(const uint8_t *p) {
  const __m256i digits = _mm256_set1_epi16(0x3f80);
  __m256i wide = _mm256_slli_epi16(_mm256_cvtepi8_epi16(v_128(p)), 7); /* the sign twice, on top */
  __m256i half = _mm256_and_si256(wide, _mm256_set1_epi16((short)0xbf80));
  __m256i none = _mm256_cmpeq_epi16(_mm256_and_si256(wide, digits), digits);
  v16f x = v_of_halves(_mm256_or_si256(half, none));
  return (v16f){_mm256_mul_ps(x.a, _mm256_set1_ps(256.0f)), _mm256_mul_ps(x.b, _mm256_set1_ps(256.0f))};
}
V_INLINE void v_store_f16(uint16_t *p, v16f x) {
  _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128((__m128i *)(p + 8), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}

V_INLINE v16f v_add(v16f x, v16f y) { return V_EACH(_mm256_add_ps, x, y); }
V_INLINE v16f v_sub(v16f x, v16f y) { return V_EACH(_mm256_sub_ps, x, y); }
V_INLINE v16f v_mul(v16f x, v16f y) { return V_EACH(_mm256_mul_ps, x, y); }
V_INLINE v16f v_div(v16f x, v16f y) { return V_EACH(_mm256_div_ps, x, y); }
V_INLINE v16f v_max(v16f x, v16f y) { return V_EACH(_mm256_max_ps, x, y); }
V_INLINE v16f v_min(v16f x, v16f y) { return V_EACH(_mm256_min_ps, x, y); }
V_INLINE v16f v_fma(v16f x, v16f y, v16f z) {
  return (v16f){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
V_INLINE v16f v_abs(v16f x) { return V_EACH(_mm256_andnot_ps, v_set1(-0.0f), x); }
V_INLINE v16f v_round(v16f x) {
  enum { EVEN = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC };
  return (v16f){_mm256_round_ps(x.a, EVEN), _mm256_round_ps(x.b, EVEN)};
}
V_INLINE __m256 v_scale2_half(__m256 x, __m256 n) {
  const __m256i bias = _mm256_set1_epi32(127);
  __m256i e = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(e, 1), rest = _mm256_sub_epi32(e, half);
  x = _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23)));
  return _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23)));
}
V_INLINE v16f v_scale2(v16f x, v16f n) { return V_EACH(v_scale2_half, x, n); }
V_INLINE __m256 v_scale2_normal_half(__m256 x, __m256 n) {
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23)));
}
V_INLINE v16f v_scale2_normal(v16f x, v16f n) { return V_EACH(v_scale2_normal_half, x, n); }

V_INLINE v16m v_less(v16f x, v16f y) {
  return (v16m){_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ)};
}
V_INLINE __m256 v_within_half(const int32_t *p, __m256i low, __m256i high) {
  __m256i x = v_256(p), out = _mm256_or_si256(_mm256_cmpgt_epi32(low, x), _mm256_cmpgt_epi32(x, high));
  return _mm256_castsi256_ps(_mm256_andnot_si256(out, _mm256_set1_epi32(-1)));
}
V_INLINE v16m v_within(const int32_t *p, int32_t low, int32_t high) {
  __m256i l = _mm256_set1_epi32(low), h = _mm256_set1_epi32(high);
  return (v16m){v_within_half(p, l, h), v_within_half(p + 8, l, h)};
}
V_INLINE uint32_t v_bits(v16m m) { return (uint32_t)(_mm256_movemask_ps(m.a) | _mm256_movemask_ps(m.b) << 8); }
V_INLINE __m256 v_mask_half(__m256i all, __m256i lanes) {
  return _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(all, lanes), lanes));
}
V_INLINE v16m v_mask(uint32_t bits) {
  __m256i all = _mm256_set1_epi32((int32_t)bits), lanes = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return (v16m){v_mask_half(all, lanes), v_mask_half(all, _mm256_slli_epi32(lanes, 8))};
}
V_INLINE v16f v_select(v16m m, v16f x, v16f y) {
  return (v16f){_mm256_blendv_ps(y.a, x.a, m.a), _mm256_blendv_ps(y.b, x.b, m.b)};
}

V_INLINE float v_sum(v16f x) {
  __m256 eight = _mm256_add_ps(x.a, x.b);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
V_INLINE float v_most(v16f x) {
  __m256 eight = _mm256_max_ps(x.a, x.b);
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}
V_INLINE float v_first(v16f x) { return _mm256_cvtss_f32(x.a); }

V_INLINE void v_store_s32(int32_t *p, v16f x) {
  _mm256_storeu_si256((__m256i *)p, _mm256_cvtps_epi32(x.a));
  _mm256_storeu_si256((__m256i *)(p + 8), _mm256_cvtps_epi32(x.b));
}
V_INLINE int32_t v_store_planes(v16f x, int16_t *q, int8_t *high, int8_t *low) {
  return v_split_planes(_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b), q, high, low);
}
V_INLINE v16f v_of_s32(v16i x) { return (v16f){_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
V_INLINE v16i v_minus(v16i x, int32_t y) {
  __m256i all = _mm256_set1_epi32(y);
  return (v16i){_mm256_sub_epi32(x.a, all), _mm256_sub_epi32(x.b, all)};
}

/* ---- steps ---- */
typedef struct v64b { __m256i a, b; } v64b; /* rows 0-7, 8-15 */

V_INLINE v64b v_bytes(const uint8_t *p) { return (v64b){v_256(p), v_256(p + 32)}; }
V_INLINE void v_store_bytes(uint8_t *p, v64b x) {
  _mm256_storeu_si256((__m256i *)p, x.a);
  _mm256_storeu_si256((__m256i *)(p + 32), x.b);
}
V_INLINE __m256i v_field_half(__m256i x, int right, int mask) {
  x = right > 0 ? _mm256_srli_epi16(x, right) : right < 0 ? _mm256_slli_epi16(x, -right) : x;
  return _mm256_and_si256(x, _mm256_set1_epi8((char)mask));
}
V_INLINE v64b v_field(v64b x, int right, int mask) {
  return (v64b){v_field_half(x.a, right, mask), v_field_half(x.b, right, mask)};
}
V_INLINE v64b v_or(v64b x, v64b y) { return (v64b){_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
V_INLINE v64b v_lookup(const uint8_t *table, v64b x) {
  __m256i both = _mm256_broadcastsi128_si256(v_128(table));
  return (v64b){_mm256_shuffle_epi8(both, x.a), _mm256_shuffle_epi8(both, x.b)};
}
V_INLINE __m128i v_64(const void *p) { return _mm_loadl_epi64((const __m128i *)p); }
V_INLINE v16f v_of_u8(const uint8_t *p) {
  return v_of_s32((v16i){_mm256_cvtepu8_epi32(v_64(p)), _mm256_cvtepu8_epi32(v_64(p + 8))});
}
V_INLINE v16f v_of_s8(const uint8_t *p) {
  return v_of_s32((v16i){_mm256_cvtepi8_epi32(v_64(p)), _mm256_cvtepi8_epi32(v_64(p + 8))});
}

/* ---- sums of a sub-block ---- */
#define V_DOT_TOKENS 4

/* Sums of integers stay in the order written: free to choose, gcc adds pairs first and spills every register it has. */
V_INLINE __m256i v_chain(__m256i x) {
  __asm__("" : "+x"(x));
  return x;
}

V_INLINE __m256i v_four(const int8_t *p) { /* 4 bytes, repeated */
  int32_t x;
  memcpy(&x, p, 4);
  return _mm256_set1_epi32(x);
}
V_INLINE __m256i v_eight(const int16_t *p) { /* 8 bytes, repeated */
  int64_t x;
  memcpy(&x, p, 8);
  return _mm256_set1_epi64x(x);
}

/* Up to 5 bits, and 6 for one token, meet each plane of the activation, and pairs of k stay in s16 as long as no sum of them
 * can leave it: 8 steps of 4 bits, 8 * 2 * 15 * 128 = 30720, 4 of 5, 2 of 6. Wider ones widen to 16 bits against zero, in each
 * 128-bit lane rows 0 1 | 2 3, and meet q: products of pairs of k in s32; the last horizontal add joins the pairs and restores
 * the order of rows. */
typedef struct v_sums {
  __m256i high[V_DOT_TOKENS][2], low[V_DOT_TOKENS][2], wide[V_DOT_TOKENS][4], sum[V_DOT_TOKENS][2], last;
} v_sums;

V_INLINE int v_planes_fit(int bits, int m) { return bits <= 5 || (bits == 6 && m == 1); }
V_INLINE int v_steps_in_s16(int bits) { return 32767 / (2 * 128 * ((1 << bits) - 1)); }

V_INLINE void v_sums_begin(v_sums *restrict s, int m) {
  const __m256i zero = _mm256_setzero_si256();
  for (int t = 0; t < m; t++)
    for (int c = 0; c < 4; c++) s->high[t][c & 1] = s->low[t][c & 1] = s->sum[t][c & 1] = s->wide[t][c] = zero;
}

/* sum += 256 * high + low, which begin again. */
V_INLINE void v_sums_join(v_sums *restrict s, int m) {
  const __m256i one = _mm256_set1_epi16(1), plane = _mm256_set1_epi16(256);
  for (int t = 0; t < m; t++)
    for (int c = 0; c < 2; c++) {
      __m256i both = _mm256_add_epi32(_mm256_madd_epi16(s->high[t][c], plane), _mm256_madd_epi16(s->low[t][c], one));
      s->sum[t][c] = _mm256_add_epi32(s->sum[t][c], both);
      s->high[t][c] = s->low[t][c] = _mm256_setzero_si256();
    }
}

V_INLINE void v_sums_step(v_sums *restrict s, v64b u, int bits, int j, const int16_t *const *q, const int8_t *const *high,
                          const int8_t *const *low, int at, int m) {
  if (v_planes_fit(bits, m)) {
    __m256i w[2] = {u.a, u.b};
    if (j > 0 && j % v_steps_in_s16(bits) == 0) v_sums_join(s, m);
    for (int t = 0; t < m; t++) {
      __m256i xh = v_four(high[t] + at), xl = v_four(low[t] + at);
      for (int c = 0; c < 2; c++) {
        s->high[t][c] = v_chain(_mm256_add_epi16(s->high[t][c], _mm256_maddubs_epi16(w[c], xh)));
        s->low[t][c] = v_chain(_mm256_add_epi16(s->low[t][c], _mm256_maddubs_epi16(w[c], xl)));
      }
    }
    s->last = s->low[0][0];
  } else {
    const __m256i zero = _mm256_setzero_si256();
    __m256i w[4] = {_mm256_unpacklo_epi8(u.a, zero), _mm256_unpackhi_epi8(u.a, zero), _mm256_unpacklo_epi8(u.b, zero),
                    _mm256_unpackhi_epi8(u.b, zero)};
    for (int t = 0; t < m; t++) {
      __m256i x = v_eight(q[t] + at);
      for (int c = 0; c < 4; c++) s->wide[t][c] = v_chain(_mm256_add_epi32(s->wide[t][c], _mm256_madd_epi16(w[c], x)));
    }
    s->last = s->wide[0][0];
  }
}

V_INLINE const uint8_t *v_after(const uint8_t *p, const v_sums *s, int bits) {
  (void)bits;
  __asm__("" : "+r"(p) : "x"(s->last));
  return p;
}

V_INLINE void v_sums_end(v_sums *restrict s, int bits, int steps, int m, v16i *restrict sum) {
  (void)steps;
  if (v_planes_fit(bits, m)) v_sums_join(s, m);
  for (int t = 0; t < m; t++)
    sum[t] = v_planes_fit(bits, m) ? (v16i){s->sum[t][0], s->sum[t][1]}
                                : (v16i){_mm256_hadd_epi32(s->wide[t][0], s->wide[t][1]),
                                         _mm256_hadd_epi32(s->wide[t][2], s->wide[t][3])};
}

/* ---- sums of one plane: pairs of k stay in s16 as long as no sum of them can leave it. u of 8 bits is taken as u - 128, whose
 * sign goes over to the activation, as vpmaddubsw would leave 16 bits: 2 * 128 * 127 does not ---- */
#define V_BYTE_TOKENS 4
#define V_DOTS_LESS(bits) ((bits) == 8 ? 128 : 0)

typedef struct v_dots { __m256i pairs[V_BYTE_TOKENS][2], sum[V_BYTE_TOKENS][2]; } v_dots;

V_INLINE void v_dots_begin(v_dots *restrict d, int m) {
  for (int t = 0; t < m; t++)
    for (int c = 0; c < 2; c++) d->pairs[t][c] = d->sum[t][c] = _mm256_setzero_si256();
}
V_INLINE __m256i v_add_pairs(__m256i sum, __m256i pairs) {
  return v_chain(_mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))));
}
V_INLINE void v_dots_step(v_dots *restrict d, v64b u, int bits, int j, const uint8_t *x, size_t stride, int m) {
  __m256i w[2] = {u.a, u.b}, size[2];
  for (int c = 0; c < 2 && bits == 8; c++) w[c] = _mm256_xor_si256(w[c], _mm256_set1_epi8(-128)), size[c] = _mm256_abs_epi8(w[c]);
  for (int t = 0; t < m; t++) {
    __m256i four = v_four((const int8_t *)x + t * stride);
    for (int c = 0; c < 2; c++) {
      if (bits == 8) {
        d->sum[t][c] = v_add_pairs(d->sum[t][c], _mm256_maddubs_epi16(size[c], _mm256_sign_epi8(four, w[c])));
        continue;
      }
      if (j > 0 && j % v_steps_in_s16(bits) == 0) {
        d->sum[t][c] = v_add_pairs(d->sum[t][c], d->pairs[t][c]);
        d->pairs[t][c] = _mm256_setzero_si256();
      }
      d->pairs[t][c] = v_chain(_mm256_add_epi16(d->pairs[t][c], _mm256_maddubs_epi16(w[c], four)));
    }
  }
}
V_INLINE void v_dots_end(v_dots *restrict d, int bits, int m, v16i *restrict sum) {
  for (int t = 0; t < m; t++) {
    for (int c = 0; c < 2 && bits < 8; c++) d->sum[t][c] = v_add_pairs(d->sum[t][c], d->pairs[t][c]);
    sum[t] = (v16i){d->sum[t][0], d->sum[t][1]};
  }
}

/* ---- many tokens: a step as s16 [2 pair of k][16 row][2] ---- */
#define V_WIDE_TOKENS 4

/* 32 bytes [8 row][4 k] -> s16 minus offset, [2 pair] 32 apart, [8 row][2]. */
V_INLINE void v_widen_half(__m256i bytes, __m256i offset, int16_t *restrict wide) {
  const __m256i zero = _mm256_setzero_si256();
  __m256 low = _mm256_castsi256_ps(_mm256_unpacklo_epi8(bytes, zero));
  __m256 high = _mm256_castsi256_ps(_mm256_unpackhi_epi8(bytes, zero));
  __m256i a = _mm256_castps_si256(_mm256_shuffle_ps(low, high, 0x88));
  __m256i b = _mm256_castps_si256(_mm256_shuffle_ps(low, high, 0xdd));
  _mm256_store_si256((__m256i *)wide, _mm256_sub_epi16(a, offset));
  _mm256_store_si256((__m256i *)(wide + 32), _mm256_sub_epi16(b, offset));
}
V_INLINE void v_widen(v64b u, int offset, int16_t *restrict wide) {
  __m256i o = _mm256_set1_epi16((int16_t)offset);
  v_widen_half(u.a, o, wide);
  v_widen_half(u.b, o, wide + 16);
}

V_INLINE __m256i v_two(const int16_t *p) { /* 4 bytes, repeated */
  int32_t x;
  memcpy(&x, p, 4);
  return _mm256_set1_epi32(x);
}

V_INLINE void v_dot_wide(const int16_t *restrict wide, int steps, const int16_t *const *q, int at, v16i *restrict s) {
  __m256i sum[V_WIDE_TOKENS][2];
  for (int t = 0; t < V_WIDE_TOKENS; t++) sum[t][0] = sum[t][1] = _mm256_setzero_si256();
#pragma GCC unroll 16
  for (int p = 0; p < 2 * steps; p++) {
    __m256i w0 = v_chain(v_256(wide + p * 32)), w1 = v_chain(v_256(wide + p * 32 + 16)); /* once, not for every token */
    for (int t = 0; t < V_WIDE_TOKENS; t++) {
      __m256i x = v_two(q[t] + at + p * 2);
      sum[t][0] = v_chain(_mm256_add_epi32(sum[t][0], _mm256_madd_epi16(w0, x)));
      sum[t][1] = v_chain(_mm256_add_epi32(sum[t][1], _mm256_madd_epi16(w1, x)));
    }
  }
  for (int t = 0; t < V_WIDE_TOKENS; t++) s[t] = (v16i){sum[t][0], sum[t][1]};
}

/* ---- the BF16 path ---- */
#define V_BF16_TOKENS 6

V_INLINE __m256 v_number_half(__m256i x, int i) {
  return _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(x, 8 * i), _mm256_set1_epi32(255)));
}
V_INLINE v16f v_number(v64b x, int i) { return (v16f){v_number_half(x.a, i), v_number_half(x.b, i)}; }
V_INLINE __m256 v_round_bf16_half(__m256 x) {
  __m256i bits = _mm256_castps_si256(x), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  __m256 quiet = _mm256_or_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(0x400000)));
  __m256 all = _mm256_blendv_ps(_mm256_castsi256_ps(rounded), quiet, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return _mm256_and_ps(all, _mm256_castsi256_ps(_mm256_set1_epi32((int)0xffff0000)));
}
V_INLINE v16f v_round_bf16(v16f x) { return (v16f){v_round_bf16_half(x.a), v_round_bf16_half(x.b)}; }
#endif
