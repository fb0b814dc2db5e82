/* IQ4_XS, value = (d * scale[k / 32]) * (rt_iq4_codes[n] - 128), scale of -32..31.
 *   file (136 for 256 weights):  d f16 | u16, bits 2 s.. are the high bits of scale[s] + 32 | u4[8], its low bits, two a byte
 *                                | n u4[256], of each 16 bytes the low nibbles are 16 k and the high ones the next 16
 *   tile (2208):                 d f16 [16 row] | scale s8 [8 sub][16 row]
 *                                | [4 span][8 line][16 row][4 k] u8, low: k = 64 span + 4 line + i, high: 32 further
 * A padding row is n = 0 under d = 0. */
#ifndef RT_IQ4_XS_H
#define RT_IQ4_XS_H
#include "quant/iq4_nl.h"

static inline int rt_scale_at_IQ4_XS(const uint8_t *restrict block, int s) {
  return (block[4 + s / 2] >> s % 2 * 4 & 15) + (rt_load_u16(block + 2) >> 2 * s & 3) * 16 - 32;
}

static inline void rt_decode_IQ4_XS(const uint8_t *restrict block, float *restrict out /* [256] */) {
  float d = rt_load_f16(block);
  uint8_t n[256] = {0};
  rt_split_runs(block + 8, 256, 4, 16, 0, n);
  for (int k = 0; k < 256; k++)
    out[k] = d * (float)rt_scale_at_IQ4_XS(block, k / 32) * (float)(rt_iq4_codes[n[k]] - 128);
}

static inline void rt_pack_IQ4_XS(const uint8_t *restrict blocks, size_t stride, int rows, int k, uint8_t *restrict tile) {
  (void)k;
  memset(tile, 0, 2208);
  for (int r = 0; r < rows; r++) {
    const uint8_t *block = blocks + r * stride;
    memcpy(tile + r * 2, block, 2);
    for (int s = 0; s < 8; s++) tile[32 + s * 16 + r] = (uint8_t)rt_scale_at_IQ4_XS(block, s);
  }
  for (int span = 0; span < 4; span++) rt_pack_nibbles(blocks + 8 + span * 32, stride, rows, 16, tile + 160 + span * 512);
}

#ifdef V_INLINE
V_INLINE v64b rt_step_IQ4_XS(const uint8_t *restrict tile, int span, int j) {
  return v_lookup(rt_iq4_codes, v_field(v_bytes(tile + 160 + span * 512 + j % 8 * 64), j / 8 * 4, 15));
}
V_INLINE v16f rt_scale_IQ4_XS(const uint8_t *restrict tile, int s) {
  return v_mul(v_load_f16((const uint16_t *)tile), v_of_s8(tile + 32 + s * 16));
}
#endif
#endif
