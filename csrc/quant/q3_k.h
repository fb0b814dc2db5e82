/* Q3_K, value = (d * scale[k / 16]) * (n - 4), scale of -32..31.
 *   file (110 for 256 weights):  third bits u1[256], byte i bit b is k = 32 b + i
 *                                | low bits u2[256], of each 32 bytes bits 2 b.. are k = 32 b + i of 128
 *                                | scale + 32 u6[16] in 12 bytes | d f16
 *   tile (1824):                 d f16 [16 row] | scale s8 [16 sub][16 row]
 *                                | [4 span] ([4 line][16 row][4 k] u8, bits 2 b.. of line l are k = 64 span + 16 b + 4 l + i
 *                                            | [2 line][16 row][4 k] u8, bit b of line l is k = 64 span + 8 b + 4 l + i)
 *   scale j: four low bits in byte j % 8 (j < 8 low, else high), two above them in byte 8 + j % 4 from bit j / 4 * 2 on.
 * A padding row is n = 0 under d = 0. */
#ifndef RT_Q3_K_H
#define RT_Q3_K_H
#include "quant/r16.h"

/* scale: [16]; n: [256] */
static inline void rt_parts_Q3_K(const uint8_t *restrict block, int8_t *restrict scale, uint8_t *restrict n) {
  const uint8_t *packed = block + 96;
  for (int j = 0; j < 16; j++)
    scale[j] = (int8_t)((packed[j % 8] >> j / 8 * 4 & 15) + (packed[8 + j % 4] >> j / 4 * 2 & 3) * 16 - 32);
  memset(n, 0, 256);
  rt_split_runs(block + 32, 256, 2, 32, 0, n);
  rt_split_runs(block, 256, 1, 32, 2, n);
}

static inline void rt_decode_Q3_K(const uint8_t *restrict block, float *restrict out /* [256] */) {
  float d = rt_load_f16(block + 108);
  int8_t scale[16];
  uint8_t n[256];
  rt_parts_Q3_K(block, scale, n);
  for (int k = 0; k < 256; k++) out[k] = d * (float)scale[k / 16] * (float)(n[k] - 4);
}

static inline void rt_pack_Q3_K(const uint8_t *restrict blocks, size_t stride, int rows, int k, uint8_t *restrict tile) {
  (void)k;
  memset(tile, 0, 1824);
  for (int r = 0; r < rows; r++) {
    const uint8_t *block = blocks + r * stride;
    int8_t scale[16];
    uint8_t n[256];
    rt_parts_Q3_K(block, scale, n);
    memcpy(tile + r * 2, block + 108, 2);
    for (int s = 0; s < 16; s++) tile[32 + s * 16 + r] = (uint8_t)scale[s];
    for (int span = 0; span < 4; span++) {
      rt_pack_plane(n + span * 64, 2, 0, r, tile + 288 + span * 384);
      rt_pack_plane(n + span * 64, 1, 2, r, tile + 288 + span * 384 + 256);
    }
  }
}

#ifdef V_INLINE
V_INLINE v64b rt_step_Q3_K(const uint8_t *restrict tile, int span, int j) {
  const uint8_t *low = tile + 288 + span * 384, *third = low + 256;
  return v_or(v_field(v_bytes(low + j % 4 * 64), j / 4 * 2, 3), v_field(v_bytes(third + j % 2 * 64), j / 2 - 2, 4));
}
V_INLINE v16f rt_scale_Q3_K(const uint8_t *restrict tile, int s) {
  return v_mul(v_load_f16((const uint16_t *)tile), v_of_s8(tile + 32 + s * 16));
}
#endif
#endif
