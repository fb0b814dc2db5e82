/* BF16, the upper half of an f32.  file: two bytes a weight.  tile (2048): [64 k][16 row] u16. */
#ifndef RT_BF16_H
#define RT_BF16_H
#include "quant/r16.h"

static inline void rt_decode_BF16(const uint8_t *restrict block, float *restrict out /* [1] */) {
  *out = rt_bf16_to_f32(rt_load_u16(block));
}

static inline void rt_pack_BF16(const uint8_t *restrict blocks, size_t stride, int rows, int k, uint8_t *restrict tile) {
  rt_pack_f16s(blocks, stride, rows, k, tile);
}

static inline void rt_unpack_BF16(const uint8_t *restrict tile, int row, float *restrict out /* [64] */) {
  for (int k = 0; k < RT_TILE_K; k++) out[k] = rt_bf16_to_f32(rt_load_u16(tile + (k * RT_TILE_ROWS + row) * 2));
}

/* ---- dot ---- */
/* Four chains, k mod 4, each in ascending k. One token meets k in order; more keep one chain of each in registers. */
#ifdef V_INLINE
V_INLINE v16f rt_row_BF16(const uint8_t *restrict tile, int i) { return v_load_bf16((const uint16_t *)tile + i * 16); }
V_INLINE void rt_dot_BF16(const uint8_t *restrict tile, const rt_rows *x, int k, int m, v16f (*chain)[RT_AT_ONCE]) {
  for (int i = 0; i < RT_TILE_K && m == 1; i++) {
    if (i % 4 == 0) rt_prefetch(tile + i * 32, 4 * 32);
    chain[i % 4][0] = v_fma(rt_row_BF16(tile, i), v_set1(x->x[0][k + i]), chain[i % 4][0]);
  }
  for (int c = 0; c < 4 && m > 1; c++) {
    rt_prefetch(tile + c * 512, 512);
    v16f acc[RT_AT_ONCE];
    for (int t = 0; t < m; t++) acc[t] = chain[c][t];
    for (int i = c; i < RT_TILE_K; i += 4) {
      v16f w = rt_row_BF16(tile, i);
      for (int t = 0; t < m; t++) acc[t] = v_fma(w, v_set1(x->x[t][k + i]), acc[t]);
    }
    for (int t = 0; t < m; t++) chain[c][t] = acc[t];
  }
}
#endif
#endif
