/* Q5_0, value = d * (n - 16).
 *   file (22 for 32 weights):  d f16 | h u32, bit i is the fifth bit of n[i] | u4[32], byte i holds n[i] low and n[i + 16] high */
#ifndef RT_Q5_0_H
#define RT_Q5_0_H
#include "quant/r16.h"

static inline void rt_decode_Q5_0(const uint8_t *restrict block, float *restrict out /* [32] */) {
  float d = rt_load_f16(block);
  uint32_t h = rt_load_u32(block + 2);
  for (int k = 0; k < 16; k++) {
    uint32_t both = block[6 + k];
    out[k] = d * (float)((int)((both & 15) | (h >> k & 1) << 4) - 16);
    out[k + 16] = d * (float)((int)(both >> 4 | (h >> (k + 16) & 1) << 4) - 16);
  }
}
#endif
