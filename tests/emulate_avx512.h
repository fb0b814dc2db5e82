/* The AVX-512 intrinsics of csrc/simd/avx512.h on an AVX2 machine: SIMDe, and what it has not or has only roughly. */
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <immintrin.h>
#include <math.h>
#include <simde/x86/avx512.h>

static inline __m256 upper(__m512 x) { return _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x), 1)); }
static inline __m512 halves(__m256 low, __m256 high) { return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1); }

static inline __m512 emulated_cvtph(__m256i x) {
  return halves(_mm256_cvtph_ps(_mm256_castsi256_si128(x)), _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1)));
}
#undef _mm512_cvtph_ps
#define _mm512_cvtph_ps(x) emulated_cvtph(x)

static inline __m256i emulated_cvtps(__m512 x) {
  return _mm256_set_m128i(_mm256_cvtps_ph(upper(x), 0), _mm256_cvtps_ph(_mm512_castps512_ps256(x), 0));
}
#undef _mm512_cvtps_ph
#define _mm512_cvtps_ph(x, rounding) emulated_cvtps(x)

static inline __m512i emulated_cvtepu16(__m256i x) {
  __m512i r = _mm512_castsi256_si512(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(x)));
  return _mm512_inserti64x4(r, _mm256_cvtepu16_epi32(_mm256_extracti128_si256(x, 1)), 1);
}
#undef _mm512_cvtepu16_epi32
#define _mm512_cvtepu16_epi32(x) emulated_cvtepu16(x)

#define RT_WIDEN_BYTES(name)                                                                  \
  static inline __m512i emulated_##name(__m128i x) {                                          \
    __m512i r = _mm512_castsi256_si512(_mm256_##name(x));                                     \
    return _mm512_inserti64x4(r, _mm256_##name(_mm_srli_si128(x, 8)), 1);                     \
  }
RT_WIDEN_BYTES(cvtepu8_epi32)
RT_WIDEN_BYTES(cvtepi8_epi32)
#undef _mm512_cvtepu8_epi32
#undef _mm512_cvtepi8_epi32
#define _mm512_cvtepu8_epi32(x) emulated_cvtepu8_epi32(x)
#define _mm512_cvtepi8_epi32(x) emulated_cvtepi8_epi32(x)

static inline __m512 emulated_cvtepi32(__m512i x) {
  return halves(_mm256_cvtepi32_ps(_mm512_castsi512_si256(x)), _mm256_cvtepi32_ps(_mm512_extracti64x4_epi64(x, 1)));
}
#undef _mm512_cvtepi32_ps
#define _mm512_cvtepi32_ps(x) emulated_cvtepi32(x)

static inline __m512i emulated_cvtps_epi32(__m512 x) {
  __m512i r = _mm512_castsi256_si512(_mm256_cvtps_epi32(_mm512_castps512_ps256(x)));
  return _mm512_inserti64x4(r, _mm256_cvtps_epi32(upper(x)), 1);
}
#undef _mm512_cvtps_epi32
#define _mm512_cvtps_epi32(x) emulated_cvtps_epi32(x)

/* x * 2^floor(n), rounded once. */
static inline __m512 emulated_scalef(__m512 x, __m512 n) {
  float a[16], e[16];
  _mm512_storeu_ps(a, x);
  _mm512_storeu_ps(e, n);
  for (int i = 0; i < 16; i++) a[i] = isnan(e[i]) ? e[i] : scalbnf(a[i], (int)floorf(e[i]));
  return _mm512_loadu_ps(a);
}
#undef _mm512_scalef_ps
#define _mm512_scalef_ps(x, n) emulated_scalef(x, n)
