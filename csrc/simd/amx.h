/* The vocabulary of AVX-512 with bf16, and tiles (AMX): eight registers of up to 16 rows of 64 bytes.
 *
 *   C tiles  f32 or s32 [token][16 row of weights]    A tiles  [token][64 bytes of k]
 *   B tiles  [16 pair of k][16 row][2] bf16 or [16][16 row][4 k] s8: a step of R16 is one line of it
 * V_TILE_BF16 adds, per token and row, an even and an odd chain of fma from zero over ascending k, joined, to C; numbers below
 * 2^-126 are zero to it. Tiles keep their shapes and contents across context switches. Every macro clobbers memory: gcc 12
 * otherwise drops the stores that fill what they read. */
#ifndef RT_SIMD_AMX_H
#define RT_SIMD_AMX_H
#include "simd/avx512bf16.h"

#define V_TILES
#ifdef RT_EMULATE_AMX /* a header that does the same in C: how tests run this file */
#include RT_EMULATE_AMX
#else
#define V_TILE_CONFIG(p) __asm__ volatile("ldtilecfg %0" ::"m"(*(const uint8_t(*)[64])(p)) : "memory")
#define V_TILE_RELEASE() __asm__ volatile("tilerelease" ::: "memory")
#define V_TILE_ZERO(c) __asm__ volatile("tilezero %%tmm" #c ::: "memory")
#define V_TILE_LOAD(t, p, stride) \
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t ::"r"(p), "r"((long)(stride)) : "memory")
#define V_TILE_LOAD_ONCE(t, p, stride) /* not to push out what stays */ \
  __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm" #t ::"r"(p), "r"((long)(stride)) : "memory")
#define V_TILE_STORE(t, p, stride) \
  __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"(p), "r"((long)(stride)) : "memory")
#define V_TILE_BF16(c, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::: "memory")
#define V_TILE_S8(c, a, b) __asm__ volatile("tdpbssd %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::: "memory")

#endif

/* p[16][2] <- pairs (even, odd) rounded to bf16. */
V_INLINE void v_store_pairs(uint16_t *p, v16f even, v16f odd) { _mm512_storeu_si512(p, v_pair(even, odd)); }

/* A step's bytes less y, modulo 256; y a constant. */
V_INLINE v64b v_less_byte(v64b x, int y) { return y ? _mm512_sub_epi8(x, _mm512_set1_epi8((char)y)) : x; }
/* 256 * high + low, as floats. */
V_INLINE v16f v_of_planes(const int32_t *high, const int32_t *low) {
  return _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(_mm512_loadu_si512(high), 8), _mm512_loadu_si512(low)));
}
/* Sums of q over 16 k each, [16], as floats; sub == 32: over 32, in the even lanes. */
V_INLINE v16f v_sums_q(const int32_t *sum, int sub) {
  __m512i one = _mm512_loadu_si512(sum);
  return _mm512_cvtepi32_ps(sub == 16 ? one : _mm512_add_epi32(one, _mm512_srli_epi64(one, 32)));
}

/* C tiles 0 1 2 3 are (0, 0) (0, 1) (1, 0) (1, 1) of A tiles 4, 5 and B tiles 6, 7. A tile 4 has rows0 tokens, 5 has rows1 (0:
 * it is not used), each of `bytes` of k; B tiles have bytes / 4 lines. */
V_INLINE void v_tiles(int rows0, int rows1, int bytes) {
  _Alignas(64) uint8_t config[64] = {1};
  uint16_t columns[16] = {0};
  const int rows[8] = {rows0, rows0, rows1, rows1, rows0, rows1, bytes / 4, bytes / 4};
  for (int t = 0; t < 8; t++) {
    columns[t] = (uint16_t)(rows[t] == 0 ? 0 : t == 4 || t == 5 ? bytes : 64);
    config[48 + t] = (uint8_t)rows[t];
  }
  memcpy(config + 16, columns, sizeof columns);
  V_TILE_CONFIG(config);
}
#endif
