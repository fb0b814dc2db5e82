/* F16, half precision, IEEE 754.  file: two bytes a weight.  tile (2048): [64 k][16 row] u16. */
#ifndef RT_F16_H
#define RT_F16_H
#include "quant/r16.h"

static inline void rt_decode_F16(const uint8_t *restrict block, float *restrict out /* [1] */) {
  *out = rt_f16_to_f32(rt_load_u16(block));
}

static inline void rt_pack_F16(const uint8_t *restrict blocks, size_t stride, int rows, int k, uint8_t *restrict tile) {
  rt_pack_f16s(blocks, stride, rows, k, tile);
}

#ifdef V_INLINE
/* k = i of 16 rows. */
V_INLINE v16f rt_row_F16(const uint8_t *restrict tile, int i) { return v_load_f16((const uint16_t *)tile + i * 16); }
#endif
#endif
