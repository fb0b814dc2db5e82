/* Q8_0, value = d * q.
 *   file (34 for 32 weights):  d f16 | q s8[32]
 *   tile (1088):               d f16 [2 half][16 row] | [2 half][8 step][16 row][4 k] u8 = q ^ 0x80
 *                              half h, step j, byte i is k = 32 h + 4 j + i
 * A padding weight is 0x80 (q = 0) under d = 0. */
#ifndef RT_Q8_0_H
#define RT_Q8_0_H
#include "quant/r16.h"

static inline void rt_decode_Q8_0(const uint8_t *restrict block, float *restrict out /* [32] */) {
  float d = rt_load_f16(block);
  for (int k = 0; k < 32; k++) out[k] = d * (float)(int8_t)block[2 + k];
}

static inline void rt_pack_Q8_0(const uint8_t *restrict blocks, size_t stride, int rows, int k, uint8_t *restrict tile) {
  if (rows < RT_TILE_ROWS || k < RT_SPAN_K) memset(tile, 0, 64), memset(tile + 64, 0x80, 1024);
  for (int h = 0; 32 * h < k; h++) {
    const uint8_t *block = blocks + h * 34;
    for (int r = 0; r < rows; r++) memcpy(tile + h * 32 + r * 2, block + r * stride, 2);
    rt_pack_words(block + 2, stride, rows, 8, 0x80808080, tile + 64 + h * 512);
  }
}

#ifdef V_INLINE
V_INLINE v64b rt_step_Q8_0(const uint8_t *restrict tile, int span, int j) {
  (void)span;
  return v_bytes(tile + 64 + j * 64);
}
V_INLINE v16f rt_scale_Q8_0(const uint8_t *restrict tile, int s) { return v_load_f16((const uint16_t *)tile + s * 16); }
#endif
#endif
