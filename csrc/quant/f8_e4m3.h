/* F8_E4M3, 4 bits of exponent (bias 7) and 3 of mantissa, no infinities: up to 448; 0x7f and 0xff are NaN.
 * a byte a weight.  tile (1024): [64 k][16 row] u8. */
#ifndef RT_F8_E4M3_H
#define RT_F8_E4M3_H
#include "quant/r16.h"

/* As an f16 of the same digits it is 2^-8 of itself. */
static inline void rt_decode_F8_E4M3(const uint8_t *restrict block, float *restrict out /* [1] */) {
  uint32_t b = *block;
  *out = (b & 0x7f) == 0x7f ? rt_f16_to_f32(0x7e00) : rt_f16_to_f32((uint16_t)((b & 0x80) << 8 | (b & 0x7f) << 7)) * 256.0f;
}

static inline void rt_pack_F8_E4M3(const uint8_t *restrict blocks, size_t stride, int rows, int k, uint8_t *restrict tile) {
  rt_pack_bytes(blocks, stride, rows, k, tile);
}
#endif
