/* Q6_K, value = (d * scale[k / 16]) * (n - 32).
 *   file (210 for 256 weights):  low bits u4[256], of each 64 bytes the low nibbles are 64 k and the high ones the next 64
 *                                | high bits u2[256], of each 32 bytes bits 2 b.. are k = 32 b + i of 128
 *                                | scale s8[16] | d f16 */
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
#endif
