/* F16, half precision, IEEE 754.  file: two bytes a weight.  tile (2048): [64 k][16 row] u16. */
#ifndef RT_F16_H
#define RT_F16_H
#include "quant/r16.h"

static inline void rt_decode_F16(const uint8_t *restrict block, float *restrict out /* [1] */) {
  *out = rt_f16_to_f32(rt_load_u16(block));
}

static inline void rt_pack_F16(const uint8_t *restrict blocks, size_t stride, int rows, int k, uint8_t *restrict tile) {
  rt_pack_elements(blocks, stride, rows, k, 2, tile);
}

static inline void rt_unpack_F16(const uint8_t *restrict tile, int row, float *restrict out /* [64] */) {
  for (int k = 0; k < RT_TILE_K; k++) out[k] = rt_f16_to_f32(rt_load_u16(tile + (k * RT_TILE_ROWS + row) * 2));
}

/* ---- dot ---- */
/* Four chains, k mod 4, each in ascending k. chain: [4][m]. */
#ifdef V_INLINE
V_INLINE void rt_dot_F16(const uint8_t *restrict tile, const rt_rows *x, int k, int m, v16f *restrict chain) {
  for (int i = 0; i < RT_TILE_K; i++) {
    v16f w = v_load_f16((const uint16_t *)tile + i * 16);
    for (int t = 0; t < m; t++) chain[i % 4 * m + t] = v_fma(w, v_set1(x->x[t][k + i]), chain[i % 4 * m + t]);
  }
}
#endif
#endif
