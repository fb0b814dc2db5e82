/* Q5_1, value = d * n + m.
 *   file (24 for 32 weights):  d f16 | m f16 | h u32, bit i is the fifth bit of n[i]
 *                              | u4[32], byte i holds n[i] low and n[i + 16] high
 *   tile (768):                d f16 [2 half][16 row] | m f16 [2 half][16 row] | low bits, fifth bits as in Q5_0
 * A padding weight is n = 0 under d = m = 0. */
#ifndef RT_Q5_1_H
#define RT_Q5_1_H
#include "quant/r16.h"

static inline void rt_decode_Q5_1(const uint8_t *restrict block, float *restrict out /* [32] */) {
  float d = rt_load_f16(block), m = rt_load_f16(block + 2);
  uint32_t h = rt_load_u32(block + 4);
  for (int k = 0; k < 16; k++) {
    uint32_t both = block[8 + k];
    out[k] = d * (float)((both & 15) | (h >> k & 1) << 4) + m;
    out[k + 16] = d * (float)(both >> 4 | (h >> (k + 16) & 1) << 4) + m;
  }
}

static inline void rt_pack_Q5_1(const uint8_t *restrict blocks, size_t stride, int rows, int k, uint8_t *restrict tile) {
  size_t second = k > 32 ? 24 : 0;
  if (rows < RT_TILE_ROWS || !second) memset(tile, 0, 768);
  for (int r = 0; r < rows; r++) {
    const uint8_t *first = blocks + r * stride;
    memcpy(tile + r * 2, first, 2);
    memcpy(tile + 64 + r * 2, first + 2, 2);
    if (second) memcpy(tile + 32 + r * 2, first + second, 2), memcpy(tile + 96 + r * 2, first + second + 2, 2);
    rt_pack_bits(rt_load_u32(first + 4), second ? rt_load_u32(first + second + 4) : 0, r, tile + 640);
  }
  rt_pack_nibbles(blocks + 8, stride, rows, second, tile + 128);
}

#ifdef V_INLINE
V_INLINE v64b rt_step_Q5_1(const uint8_t *restrict tile, int span, int j) {
  (void)span;
  return v_or(v_field(v_bytes(tile + 128 + j % 8 * 64), j / 8 * 4, 15), v_field(v_bytes(tile + 640 + j % 2 * 64), j / 2 - 4, 16));
}
V_INLINE v16f rt_scale_Q5_1(const uint8_t *restrict tile, int s) { return v_load_f16((const uint16_t *)tile + s * 16); }
V_INLINE v16f rt_least_Q5_1(const uint8_t *restrict tile, int s) { return v_load_f16((const uint16_t *)tile + 32 + s * 16); }
#endif
#endif
