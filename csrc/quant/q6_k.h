/* Q6_K, value = (d * scale[k / 16]) * (n - 32).
 *   file (210 for 256 weights):  low bits u4[256], of each 64 bytes the low nibbles are 64 k and the high ones the next 64
 *                                | high bits u2[256], of each 32 bytes bits 2 b.. are k = 32 b + i of 128
 *                                | scale s8[16] | d f16
 *   tile (3360):                 d f16 [16 row] | scale s8 [16 sub][16 row] | [4 span] low bits as in Q4_K | high bits of the
 *                                span [4 line][16 row][4 k] u8, bits 2 m.. of line l, byte i are k = 64 span + 16 m + 4 l + i
 * A padding row is n = 0 under d = 0. */
#ifndef RT_Q6_K_H
#define RT_Q6_K_H
#include "quant/r16.h"

static inline void rt_decode_Q6_K(const uint8_t *restrict block, float *restrict out /* [256] */) {
  float d = rt_load_f16(block + 208);
  uint8_t n[256] = {0};
  rt_split_runs(block, 256, 4, 64, 0, n);
  rt_split_runs(block + 128, 256, 2, 32, 4, n);
  for (int k = 0; k < 256; k++) out[k] = d * (float)(int8_t)block[192 + k / 16] * (float)(n[k] - 32);
}

/* A row's words of the 12 lines of a span. block: a file's */
static inline void rt_lines_Q6_K(const uint8_t *restrict block, int span, uint32_t *restrict lines) {
  const uint8_t *low = block + span / 2 * 64, *high = block + 128 + span / 2 * 32;
  for (int l = 0, up = span % 2 * 4; l < 8; l++)
    lines[l] = (rt_load_u32(low + l * 4) >> up & 0x0f0f0f0f) | (rt_load_u32(low + 32 + l * 4) >> up & 0x0f0f0f0f) << 4;
  for (int l = 0, up = span % 2 * 4; l < 4; l++) {
    uint32_t a = rt_load_u32(high + l * 4) >> up, b = rt_load_u32(high + 16 + l * 4) >> up;
    lines[8 + l] = (a & 0x03030303) | (b & 0x03030303) << 2 | (a >> 2 & 0x03030303) << 4 | (b >> 2 & 0x03030303) << 6;
  }
}

static inline void rt_pack_Q6_K(const uint8_t *restrict blocks, size_t stride, int rows, int k, uint8_t *restrict tile) {
  uint32_t lines[RT_TILE_ROWS][48];
  (void)k;
  if (rows < RT_TILE_ROWS) memset(tile, 0, 3360);
  for (int r = 0; r < rows; r++) {
    const uint8_t *block = blocks + r * stride;
    memcpy(tile + r * 2, block + 208, 2);
    for (int s = 0; s < 16; s++) tile[32 + s * 16 + r] = block[192 + s];
    for (int span = 0; span < 4; span++) rt_lines_Q6_K(block, span, lines[r] + span * 12);
  }
  rt_pack_words((const uint8_t *)lines, sizeof lines[0], rows, 48, 0, tile + 288);
}

#ifdef V_INLINE
V_INLINE v64b rt_step_Q6_K(const uint8_t *restrict tile, int span, int j) {
  const uint8_t *lines = tile + 288 + span * 768;
  return v_or(v_field(v_bytes(lines + j % 8 * 64), j / 8 * 4, 15), v_field(v_bytes(lines + 512 + j % 4 * 64), j / 4 * 2 - 4, 48));
}
V_INLINE v16f rt_scale_Q6_K(const uint8_t *restrict tile, int s) {
  return v_mul(v_load_f16((const uint16_t *)tile), v_of_s8(tile + 32 + s * 16));
}
#endif
#endif
