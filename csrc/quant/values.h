/* rt_values_<F>(tile, row, out): a row of a tile as f32 [tile_k], the bits rt_decode_<F> gives, for every line of
 * defs/formats.def.  scale * (u - offset) is exact in every format, so that with a least value only the sum rounds. */
#ifndef RT_VALUES_H
#define RT_VALUES_H
#include "quant/all.h"

V_INLINE float rt_lane(v16f rows, int row) {
  float lanes[16];
  v_store(lanes, rows);
  return lanes[row];
}

/* u: [16] of one row. */
V_INLINE v16f rt_integers(const uint8_t *restrict u, int offset) {
  float n[16];
  for (int i = 0; i < 16; i++) n[i] = (float)(u[i] - offset);
  return v_load(n);
}

#define RT_VALUES_FLOAT(name, tile_k, sub, offset)                                                            \
  V_INLINE void rt_values_##name(const uint8_t *restrict tile, int row, float *restrict out /* [tile_k] */) { \
    for (int k = 0; k < tile_k; k++) out[k] = rt_lane(rt_row_##name(tile, k), row);                           \
  }

#define RT_VALUES_BLOCK(name, tile_k, sub, offset, VALUE)                                                     \
  V_INLINE void rt_values_##name(const uint8_t *restrict tile, int row, float *restrict out /* [tile_k] */) { \
    uint8_t u[tile_k], step[64];                                                                              \
    for (int k = 0; k < tile_k; k += 4) {                                                                     \
      v_store_bytes(step, rt_step_##name(tile, k / 64, k % 64 / 4));                                          \
      memcpy(u + k, step + row * 4, 4);                                                                       \
    }                                                                                                         \
    for (int k = 0; k < tile_k; k += 16) {                                                                    \
      v16f n = rt_integers(u + k, offset), scale = v_set1(rt_lane(rt_scale_##name(tile, k / sub), row));      \
      v_store(out + k, VALUE(name, tile, k / sub, row));                                                      \
    }                                                                                                         \
  }
#define RT_VALUE_SCALE(name, tile, s, row) v_mul(n, scale)
#define RT_VALUE_LEAST(name, tile, s, row) v_fma(n, scale, v_set1(rt_lane(rt_least_##name(tile, s), row)))
#define RT_VALUES_SCALE(name, tile_k, sub, offset) RT_VALUES_BLOCK(name, tile_k, sub, offset, RT_VALUE_SCALE)
#define RT_VALUES_LEAST(name, tile_k, sub, offset) RT_VALUES_BLOCK(name, tile_k, sub, offset, RT_VALUE_LEAST)

#define FORMAT(name, ggml_type, block_weights, block_bytes, tile_k, packed_bytes, form, sub, bits, offset) \
  RT_VALUES_##form(name, tile_k, sub, offset)
#include "defs/formats.def"
#undef FORMAT
#endif
