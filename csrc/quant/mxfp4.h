/* MXFP4, value = 2^(e - 128) * (rt_fp4_codes[n] - 12): FP4 is E2M1, the codes are twice its numbers and 12.
 *   file (17 for 32 weights):  e u8 | n u4[32], byte i holds n[i] low and n[i + 16] high
 *   tile (576):                2^(e - 128) bf16, which has them all [2 half][16 row] | [8 step][16 row][4 k] u8 as in Q4_0
 * An e of 255, no number to the OCP standard, is 2^127 here as in every reader of GGUF files.
 * A padding weight is n = 0 under a scale of 0. */
#ifndef RT_MXFP4_H
#define RT_MXFP4_H
#include "quant/r16.h"

static const uint8_t rt_fp4_codes[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

/* 2^(e - 128) as bf16. */
static inline uint16_t rt_e8m0_half(uint8_t e) { return (uint16_t)(e < 2 ? 0x20 << e : (e - 1) << 7); }

static inline void rt_decode_MXFP4(const uint8_t *restrict block, float *restrict out /* [32] */) {
  float scale = rt_bf16_to_f32(rt_e8m0_half(block[0]));
  for (int k = 0; k < 16; k++) {
    out[k] = scale * (float)(rt_fp4_codes[block[1 + k] & 15] - 12);
    out[k + 16] = scale * (float)(rt_fp4_codes[block[1 + k] >> 4] - 12);
  }
}

static inline void rt_pack_MXFP4(const uint8_t *restrict blocks, size_t stride, int rows, int k, uint8_t *restrict tile) {
  size_t second = k > 32 ? 17 : 0;
  memset(tile, 0, 64);
  for (int r = 0; r < rows; r++) {
    const uint8_t *first = blocks + r * stride;
    uint16_t scale[2] = {rt_e8m0_half(*first), second ? rt_e8m0_half(first[second]) : 0};
    memcpy(tile + r * 2, scale, 2);
    memcpy(tile + 32 + r * 2, scale + 1, 2);
  }
  rt_pack_nibbles(blocks + 1, stride, rows, second, tile + 64);
}

#ifdef V_INLINE
V_INLINE v64b rt_step_MXFP4(const uint8_t *restrict tile, int span, int j) {
  (void)span;
  return v_lookup(rt_fp4_codes, v_field(v_bytes(tile + 64 + j % 8 * 64), j / 8 * 4, 15));
}
V_INLINE v16f rt_scale_MXFP4(const uint8_t *restrict tile, int s) { return v_load_bf16((const uint16_t *)tile + s * 16); }
#endif
#endif
