/* Q5_1, value = d * n + m.
 *   file (24 for 32 weights):  d f16 | m f16 | h u32, bit i is the fifth bit of n[i]
 *                              | u4[32], byte i holds n[i] low and n[i + 16] high */
#ifndef RT_Q5_1_H
#define RT_Q5_1_H
#include "quant/r16.h"

static inline void rt_decode_Q5_1(const uint8_t *restrict block, float *restrict out /* [32] */) {
  float d = rt_load_f16(block), m = rt_load_f16(block + 2);
  uint32_t h = rt_load_u32(block + 4);
  for (int k = 0; k < 16; k++) {
    uint32_t both = block[8 + k];
    out[k] = d * (float)((both & 15) | (h >> k & 1) << 4) + m;
    out[k + 16] = d * (float)(both >> 4 | (h >> (k + 16) & 1) << 4) + m;
  }
}
#endif
