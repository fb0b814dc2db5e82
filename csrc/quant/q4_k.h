/* Q4_K, value = (d * scale[k / 32]) * n - dmin * min[k / 32].
 *   file (144 for 256 weights):  d f16 | dmin f16 | scale, min u6[8] each in 12 bytes | n u4[256], of each 32 bytes the low
 *                                nibbles are 32 k and the high ones the next 32
 *   tile (2368):                 d f16 [16 row] | -dmin f16 [16 row] | scale u8 [8 sub][16 row] | min u8 [8 sub][16 row] |
 *                                [4 span][8 step][16 row][4 k] u8, low: k = 64 span + 4 step + i, high: 32 further
 *   scale, min j < 4: the low six bits of byte j and byte 4 + j; j >= 4: four low bits of byte 4 + j (scale low, min high),
 *   two high bits on top of byte j - 4 and byte j.
 * A padding row is n = 0 under d = dmin = 0. */
#ifndef RT_Q4_K_H
#define RT_Q4_K_H
#include "quant/r16.h"

/* The 8 scales and 8 mins of Q4_K and Q5_K. packed: [12]. */
static inline void rt_scales_k4(const uint8_t *restrict packed, uint8_t *restrict scale, uint8_t *restrict min) {
  for (int j = 0; j < 4; j++) {
    uint8_t a = packed[j], b = packed[4 + j], c = packed[8 + j];
    scale[j] = a & 63, min[j] = b & 63;
    scale[4 + j] = (uint8_t)((c & 15) | (a >> 6) << 4);
    min[4 + j] = (uint8_t)(c >> 4 | (b >> 6) << 4);
  }
}

/* The first 320 bytes of a tile of Q4_K and Q5_K, a row's part of them, from the first 16 of its block. */
static inline void rt_pack_scales_k4(const uint8_t *restrict block, int row, uint8_t *restrict tile) {
  uint8_t scale[8], min[8];
  uint16_t negative = rt_load_u16(block + 2) ^ 0x8000;
  rt_scales_k4(block + 4, scale, min);
  memcpy(tile + row * 2, block, 2);
  memcpy(tile + 32 + row * 2, &negative, 2);
  for (int s = 0; s < 8; s++) tile[64 + s * 16 + row] = scale[s], tile[192 + s * 16 + row] = min[s];
}

static inline void rt_decode_Q4_K(const uint8_t *restrict block, float *restrict out /* [256] */) {
  uint8_t scale[8], min[8];
  rt_scales_k4(block + 4, scale, min);
  float d = rt_load_f16(block), dmin = rt_load_f16(block + 2);
  for (int k = 0; k < 256; k++) {
    int s = k / 32, n = block[16 + k / 64 * 32 + k % 32] >> s % 2 * 4 & 15;
    out[k] = d * (float)scale[s] * (float)n - dmin * (float)min[s];
  }
}

static inline void rt_pack_Q4_K(const uint8_t *restrict blocks, size_t stride, int rows, int k, uint8_t *restrict tile) {
  (void)k;
  if (rows < RT_TILE_ROWS) memset(tile, 0, 2368);
  for (int r = 0; r < rows; r++) rt_pack_scales_k4(blocks + r * stride, r, tile);
  rt_pack_words(blocks + 16, stride, rows, 32, 0, tile + 320);
}

#ifdef V_INLINE
V_INLINE v16f rt_scale_k4(const uint8_t *restrict tile, int s) {
  return v_mul(v_load_f16((const uint16_t *)tile), v_of_u8(tile + 64 + s * 16));
}
V_INLINE v16f rt_least_k4(const uint8_t *restrict tile, int s) {
  return v_mul(v_load_f16((const uint16_t *)tile + 16), v_of_u8(tile + 192 + s * 16));
}

V_INLINE v64b rt_step_Q4_K(const uint8_t *restrict tile, int span, int j) {
  return v_field(v_bytes(tile + 320 + span * 512 + j % 8 * 64), j / 8 * 4, 15);
}
V_INLINE v16f rt_scale_Q4_K(const uint8_t *restrict tile, int s) { return rt_scale_k4(tile, s); }
V_INLINE v16f rt_least_Q4_K(const uint8_t *restrict tile, int s) { return rt_least_k4(tile, s); }
#endif
#endif
