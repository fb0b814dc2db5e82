/* Q4_0, value = d * (n - 8).
 *   file (18 for 32 weights):  d f16 | n u4[32], byte i holds n[i] low and n[i + 16] high
 *   tile (576):                d f16 [2 half][16 row] | [8 step][16 row][4 k] u8
 *                              step j, byte i holds k = 4 j + i low (half 0) and k = 32 + 4 j + i high (half 1)
 * A padding weight is n = 0 under d = 0. */
#ifndef RT_Q4_0_H
#define RT_Q4_0_H
#include "quant/r16.h"

static inline void rt_decode_Q4_0(const uint8_t *restrict block, float *restrict out /* [32] */) {
  float d = rt_load_f16(block);
  for (int k = 0; k < 16; k++) {
    out[k] = d * (float)((block[2 + k] & 15) - 8);
    out[k + 16] = d * (float)((block[2 + k] >> 4) - 8);
  }
}

static inline void rt_pack_Q4_0(const uint8_t *restrict blocks, size_t stride, int rows, int k, uint8_t *restrict tile) {
  size_t second = k > 32 ? 18 : 0;
  if (rows < RT_TILE_ROWS || !second) memset(tile, 0, 64);
  for (int r = 0; r < rows; r++) {
    const uint8_t *first = blocks + r * stride;
    memcpy(tile + r * 2, first, 2);
    if (second) memcpy(tile + 32 + r * 2, first + second, 2);
  }
  rt_pack_nibbles(blocks + 2, stride, rows, second, tile + 64);
}

#ifdef V_INLINE
V_INLINE v64b rt_step_Q4_0(const uint8_t *restrict tile, int span, int j) {
  (void)span;
  return v_field(v_bytes(tile + 64 + j % 8 * 64), j / 8 * 4, 15);
}
V_INLINE v16f rt_scale_Q4_0(const uint8_t *restrict tile, int s) { return v_load_f16((const uint16_t *)tile + s * 16); }
#endif
#endif
