/* F32.  file: one float a weight.  tile (4096): [64 k][16 row] f32. */
#ifndef RT_F32_H
#define RT_F32_H
#include "quant/r16.h"

static inline void rt_decode_F32(const uint8_t *restrict block, float *restrict out /* [1] */) { memcpy(out, block, 4); }

static inline void rt_pack_F32(const uint8_t *restrict blocks, size_t stride, int rows, int k, uint8_t *restrict tile) {
  rt_pack_f32s(blocks, stride, rows, k, tile);
}

#ifdef V_INLINE
/* k = i of 16 rows. */
V_INLINE v16f rt_row_F32(const uint8_t *restrict tile, int i) { return v_load((const float *)tile + i * 16); }
#endif
#endif
