/* The vocabulary of AVX-512, and products of pairs of bf16: v_dot_duo adds, a lane, the odd product to acc and then the even one,
 * each fused; numbers below 2^-126 are zero to it. */
#ifndef RT_SIMD_AVX512BF16_H
#define RT_SIMD_AVX512BF16_H
#include "simd/avx512.h"

#ifdef RT_EMULATE_AVX512BF16 /* a header that does the same in C: how tests run this file */
#include RT_EMULATE_AVX512BF16
#else
/* 16 bf16 of even, then of odd. */
V_INLINE __m512i v_narrow_bf16(v16f odd, v16f even) { return (__m512i)_mm512_cvtne2ps_pbh(odd, even); }
V_INLINE v16f v_dot_bf16(v16f acc, __m512i w, __m512i x) { return _mm512_dpbf16_ps(acc, (__m512bh)w, (__m512bh)x); }
#endif

#define V_PAIRS
#define V_PAIR_GROUPS 4
#define V_PAIR_TOKENS 6 /* 24 sums, four rows of weights, a pair of x */
typedef __m512i v_duo; /* 16 lanes of two bf16 */

/* [2][16] -> [16][2] */
V_INLINE v_duo v_interleave(__m512i x) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4,
                                         19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, x);
}
V_INLINE v_duo v_pair(v16f even, v16f odd) { return v_interleave(v_narrow_bf16(odd, even)); }
V_INLINE v_duo v_load_duo(const uint16_t *p) { return v_interleave(_mm512_loadu_si512(p)); }
V_INLINE v_duo v_set1_duo(const uint16_t *p) {
  int32_t two;
  memcpy(&two, p, sizeof two);
  return _mm512_set1_epi32(two);
}
V_INLINE v16f v_dot_duo(v16f acc, v_duo w, v_duo x) { return v_dot_bf16(acc, w, x); }
#endif
