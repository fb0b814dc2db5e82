/* IQ4_NL, value = d * (rt_iq4_codes[n] - 128): sixteen values that lie closer together around zero.
 *   file (18 for 32 weights):  d f16 | n u4[32], byte i holds n[i] low and n[i + 16] high
 *   tile (576):                as in Q4_0
 * A padding weight is n = 0 under d = 0. */
#ifndef RT_IQ4_NL_H
#define RT_IQ4_NL_H
#include "quant/q4_0.h"

/* The values and 128. */
static const uint8_t rt_iq4_codes[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};

static inline void rt_decode_IQ4_NL(const uint8_t *restrict block, float *restrict out /* [32] */) {
  float d = rt_load_f16(block);
  for (int k = 0; k < 16; k++) {
    out[k] = d * (float)(rt_iq4_codes[block[2 + k] & 15] - 128);
    out[k + 16] = d * (float)(rt_iq4_codes[block[2 + k] >> 4] - 128);
  }
}

static inline void rt_pack_IQ4_NL(const uint8_t *restrict blocks, size_t stride, int rows, int k, uint8_t *restrict tile) {
  rt_pack_Q4_0(blocks, stride, rows, k, tile);
}

#ifdef V_INLINE
V_INLINE v64b rt_step_IQ4_NL(const uint8_t *restrict tile, int span, int j) {
  return v_lookup(rt_iq4_codes, rt_step_Q4_0(tile, span, j));
}
V_INLINE v16f rt_scale_IQ4_NL(const uint8_t *restrict tile, int s) { return rt_scale_Q4_0(tile, s); }
#endif
#endif
