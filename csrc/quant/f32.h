/* F32.  file: one float a weight.  tile (4096): [64 k][16 row] f32. */
#ifndef RT_F32_H
#define RT_F32_H
#include "quant/r16.h"

static inline void rt_decode_F32(const uint8_t *restrict block, float *restrict out /* [1] */) { memcpy(out, block, 4); }

static inline void rt_pack_F32(const uint8_t *restrict blocks, size_t stride, int rows, int k, uint8_t *restrict tile) {
  rt_pack_elements(blocks, stride, rows, k, 4, tile);
}

static inline void rt_unpack_F32(const uint8_t *restrict tile, int row, float *restrict out /* [64] */) {
  for (int k = 0; k < RT_TILE_K; k++) memcpy(out + k, tile + (k * RT_TILE_ROWS + row) * 4, 4);
}

/* ---- dot ---- */

#endif
