/* Q2_K, value = (d * scale[k / 16]) * n - dmin * min[k / 16].
 *   file (84 for 256 weights):  u8[16], scale low and min high | n u2[256], of each 32 bytes bits 2 b.. are k = 32 b + i of 128
 *                               | d f16 | dmin f16
 *   tile (1344):                d f16 [16 row] | -dmin f16 [16 row] | scale and min u8 [16 sub][16 row]
 *                               | [4 span][4 line][16 row][4 k] u8, bits 2 b.. of line l are k = 64 span + 16 b + 4 l + i
 * A padding row is n = 0 under d = dmin = 0. */
#ifndef RT_Q2_K_H
#define RT_Q2_K_H
#include "quant/r16.h"

static inline void rt_decode_Q2_K(const uint8_t *restrict block, float *restrict out /* [256] */) {
  float d = rt_load_f16(block + 80), dmin = rt_load_f16(block + 82);
  uint8_t n[256] = {0};
  rt_split_runs(block + 16, 256, 2, 32, 0, n);
  for (int k = 0; k < 256; k++)
    out[k] = d * (float)(block[k / 16] & 15) * (float)n[k] - dmin * (float)(block[k / 16] >> 4);
}

static inline void rt_pack_Q2_K(const uint8_t *restrict blocks, size_t stride, int rows, int k, uint8_t *restrict tile) {
  (void)k;
  memset(tile, 0, 1344);
  for (int r = 0; r < rows; r++) {
    const uint8_t *block = blocks + r * stride;
    uint16_t negative = rt_load_u16(block + 82) ^ 0x8000;
    uint8_t n[256] = {0};
    memcpy(tile + r * 2, block + 80, 2);
    memcpy(tile + 32 + r * 2, &negative, 2);
    for (int s = 0; s < 16; s++) tile[64 + s * 16 + r] = block[s];
    rt_split_runs(block + 16, 256, 2, 32, 0, n);
    for (int span = 0; span < 4; span++) rt_pack_plane(n + span * 64, 2, 0, r, tile + 320 + span * 256);
  }
}

#ifdef V_INLINE
V_INLINE v16f rt_fours_Q2_K(const uint8_t *restrict bytes, int right) {
  rt_words fours = rt_load_words(bytes) >> right & 0x0f0f0f0f;
  return v_of_u8((const uint8_t *)&fours);
}
V_INLINE v64b rt_step_Q2_K(const uint8_t *restrict tile, int span, int j) {
  return v_field(v_bytes(tile + 320 + span * 256 + j % 4 * 64), j / 4 * 2, 3);
}
V_INLINE v16f rt_scale_Q2_K(const uint8_t *restrict tile, int s) {
  return v_mul(v_load_f16((const uint16_t *)tile), rt_fours_Q2_K(tile + 64 + s * 16, 0));
}
V_INLINE v16f rt_least_Q2_K(const uint8_t *restrict tile, int s) {
  return v_mul(v_load_f16((const uint16_t *)tile + 16), rt_fours_Q2_K(tile + 64 + s * 16, 4));
}
#endif
#endif
