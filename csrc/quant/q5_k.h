/* Q5_K, value = (d * scale[k / 32]) * n - dmin * min[k / 32].
 *   file (176 for 256 weights):  d f16 | dmin f16 | scale, min u6[8] each in 12 bytes as in Q4_K
 *                                | fifth bits u1[256], byte i bit b is k = 32 b + i
 *                                | low bits u4[256], of each 32 bytes the low nibbles are 32 k and the high ones the next 32 */
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
#endif
