/* F8_E4M3, 4 bits of exponent (bias 7) and 3 of mantissa, no infinities: up to 448; 0x7f and 0xff are NaN.
 * a byte a weight.  tile (1024): [64 k][16 row] u8. */
#ifndef RT_F8_E4M3_H
#define RT_F8_E4M3_H
#include "quant/r16.h"

static inline void rt_decode_F8_E4M3(const uint8_t *restrict block, float *restrict out /* [1] */) {
  *out = rt_e4m3_to_f32(*block);
}

static inline void rt_pack_F8_E4M3(const uint8_t *restrict blocks, size_t stride, int rows, int k, uint8_t *restrict tile) {
  rt_pack_bytes(blocks, stride, rows, k, tile);
}

#ifdef V_INLINE
/* k = i of 16 rows. */
V_INLINE v16f rt_row_F8_E4M3(const uint8_t *restrict tile, int i) { return v_load_e4m3(tile + i * 16); }
#endif
#endif
