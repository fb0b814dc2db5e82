/* NVFP4, value = (s[k / 16] / 2) * (rt_fp4_codes[n] - 12), s an unsigned E4M3.
 *   file (36 for 64 weights):  s u8[4] | n u4[64], of each 8 bytes the low nibbles are 8 k and the high ones the next 8
 *   tile (640):                s / 2 f16, which has them all [4 sub][16 row] | [8 step][16 row][4 k] u8 as in Q4_0
 * Of s the eighth bit is not looked at, except that 0x7f, no number, is 0 while 0xff is 480: so files are read everywhere.
 * A padding row is n = 0 under s = 0. */
#ifndef RT_NVFP4_H
#define RT_NVFP4_H
#include "quant/mxfp4.h"

/* s / 2 as f16; s as an f16 of the same digits is 2^-8 of itself. */
static inline uint16_t rt_ue4m3_half(uint8_t s) {
  return s == 0x7f ? 0 : rt_f32_to_f16(rt_f16_to_f32((uint16_t)((s & 0x7f) << 7)) * 128.0f);
}

static inline void rt_decode_NVFP4(const uint8_t *restrict block, float *restrict out /* [64] */) {
  uint8_t n[64] = {0};
  rt_split_runs(block + 4, 64, 4, 8, 0, n);
  for (int k = 0; k < 64; k++) out[k] = rt_f16_to_f32(rt_ue4m3_half(block[k / 16])) * (float)(rt_fp4_codes[n[k]] - 12);
}

static inline void rt_pack_NVFP4(const uint8_t *restrict blocks, size_t stride, int rows, int k, uint8_t *restrict tile) {
  (void)k;
  memset(tile, 0, 640);
  for (int r = 0; r < rows; r++) {
    const uint8_t *block = blocks + r * stride;
    uint8_t n[64] = {0};
    for (int s = 0; s < 4; s++) {
      uint16_t scale = rt_ue4m3_half(block[s]);
      memcpy(tile + s * 32 + r * 2, &scale, 2);
    }
    rt_split_runs(block + 4, 64, 4, 8, 0, n);
    rt_pack_plane(n, 4, 0, r, tile + 128);
  }
}

#ifdef V_INLINE
V_INLINE v64b rt_step_NVFP4(const uint8_t *restrict tile, int span, int j) {
  (void)span;
  return v_lookup(rt_fp4_codes, v_field(v_bytes(tile + 128 + j % 8 * 64), j / 8 * 4, 15));
}
V_INLINE v16f rt_scale_NVFP4(const uint8_t *restrict tile, int s) { return v_load_f16((const uint16_t *)tile + s * 16); }
#endif
#endif
