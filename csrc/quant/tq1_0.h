/* TQ1_0, value = d * (n - 1), n of 0, 1, 2.
 *   file (54 for 256 weights):  u8[48], five weights a byte, u8[4], four a byte | d f16
 *                               A byte b is a fraction in base 3: weight i of it is ((b * 3^i) mod 256) * 3 >> 8. The first 32
 *                               bytes hold k = 32 i + byte, the next 16 160 + 16 i + byte, the last four 240 + 4 i + byte.
 *   tile (1088):                as in TQ2_0 */
#ifndef RT_TQ1_0_H
#define RT_TQ1_0_H
#include "quant/tq2_0.h"

/* The weights of `run` bytes, `each` a byte. n: [each][run] */
static inline void rt_trits(const uint8_t *restrict bytes, int run, int each, uint8_t *restrict n) {
  for (int i = 0, power = 1; i < each; i++, power *= 3)
    for (int b = 0; b < run; b++) n[i * run + b] = (uint8_t)((uint8_t)(bytes[b] * power) * 3 >> 8);
}

static inline void rt_trits_of_block(const uint8_t *restrict block, uint8_t *restrict n /* [256] */) {
  rt_trits(block, 32, 5, n);
  rt_trits(block + 32, 16, 5, n + 160);
  rt_trits(block + 48, 4, 4, n + 240);
}

static inline void rt_decode_TQ1_0(const uint8_t *restrict block, float *restrict out /* [256] */) {
  float d = rt_load_f16(block + 52);
  uint8_t n[256];
  rt_trits_of_block(block, n);
  for (int k = 0; k < 256; k++) out[k] = d * (float)(n[k] - 1);
}

static inline void rt_pack_TQ1_0(const uint8_t *restrict blocks, size_t stride, int rows, int k, uint8_t *restrict tile) {
  (void)k;
  memset(tile, 0, 1088);
  for (int r = 0; r < rows; r++) {
    uint8_t n[256];
    rt_trits_of_block(blocks + r * stride, n);
    rt_pack_ternary(blocks + r * stride + 52, n, r, tile);
  }
}

#ifdef V_INLINE
V_INLINE v64b rt_step_TQ1_0(const uint8_t *restrict tile, int span, int j) { return rt_step_TQ2_0(tile, span, j); }
V_INLINE v16f rt_scale_TQ1_0(const uint8_t *restrict tile, int s) { return rt_scale_TQ2_0(tile, s); }
#endif
#endif
