/* Q5_K, value = (d * scale[k / 32]) * n - dmin * min[k / 32].
 *   file (176 for 256 weights):  d f16 | dmin f16 | scale, min u6[8] each in 12 bytes as in Q4_K
 *                                | fifth bits u1[256], byte i bit b is k = 32 b + i
 *                                | low bits u4[256], of each 32 bytes the low nibbles are 32 k and the high ones the next 32
 *   tile (2880):                 d, -dmin, scale, min as in Q4_K | [4 span] low bits as in Q4_K | fifth bits of the span
 *                                [2 line][16 row][4 k] u8, bit m of line l, byte i is k = 64 span + 8 m + 4 l + i
 * A padding row is n = 0 under d = dmin = 0. */
#ifndef RT_Q5_K_H
#define RT_Q5_K_H
#include "quant/q4_k.h"

static inline void rt_decode_Q5_K(const uint8_t *restrict block, float *restrict out /* [256] */) {
  uint8_t scale[8], min[8];
  rt_scales_k4(block + 4, scale, min);
  float d = rt_load_f16(block), dmin = rt_load_f16(block + 2);
  uint8_t n[256] = {0};
  rt_split_runs(block + 48, 256, 4, 32, 0, n);
  rt_split_runs(block + 16, 256, 1, 32, 4, n);
  for (int k = 0; k < 256; k++) out[k] = d * (float)scale[k / 32] * (float)n[k] - dmin * (float)min[k / 32];
}

/* The fifth bits of a row in a span. bytes: [32] of its block; lines: [2][64] */
static inline void rt_pack_fifths(const uint8_t *restrict bytes, int span, int row, uint8_t *restrict lines) {
  for (int l = 0; l < 2; l++) {
    uint32_t line = 0;
    for (int m = 0; m < 8; m++) line |= (rt_load_u32(bytes + (m % 4 * 2 + l) * 4) >> (span * 2 + m / 4) & 0x01010101) << m;
    memcpy(lines + l * RT_STEP_BYTES + row * RT_STEP_K, &line, 4);
  }
}

static inline void rt_pack_Q5_K(const uint8_t *restrict blocks, size_t stride, int rows, int k, uint8_t *restrict tile) {
  (void)k;
  if (rows < RT_TILE_ROWS) memset(tile, 0, 2880);
  for (int r = 0; r < rows; r++) rt_pack_scales_k4(blocks + r * stride, r, tile);
  for (int span = 0; span < 4; span++) {
    uint8_t *lines = tile + 320 + span * 640;
    rt_pack_words(blocks + 48 + span * 32, stride, rows, 8, 0, lines);
    for (int r = 0; r < rows; r++) rt_pack_fifths(blocks + r * stride + 16, span, r, lines + 512);
  }
}

#ifdef V_INLINE
V_INLINE v64b rt_step_Q5_K(const uint8_t *restrict tile, int span, int j) {
  const uint8_t *lines = tile + 320 + span * 640;
  return v_or(v_field(v_bytes(lines + j % 8 * 64), j / 8 * 4, 15), v_field(v_bytes(lines + 512 + j % 2 * 64), j / 2 - 4, 16));
}
V_INLINE v16f rt_scale_Q5_K(const uint8_t *restrict tile, int s) { return rt_scale_k4(tile, s); }
V_INLINE v16f rt_least_Q5_K(const uint8_t *restrict tile, int s) { return rt_least_k4(tile, s); }
#endif
#endif
