#include "quant/formats.h"

#include "simd/scalar.h"

#include "quant/values.h"

#define FORMAT(name, ggml_type, block_weights, block_bytes, tile_k, packed_bytes, form, sub, bits, offset)               \
  static void rt_unpack_##name(const uint8_t *restrict tile, int row, float *restrict out) {                             \
    rt_values_##name(tile, row, out);                                                                                    \
  }                                                                                                                      \
  _Static_assert(tile_k % 64 == 0 && (block_weights <= 64 || block_weights == tile_k), #name ": a tile is whole blocks");
#include "defs/formats.def"
#undef FORMAT

const rt_format_info rt_format_table[RT_FORMATS] = {
#define FORMAT(name, ggml_type, block_weights, block_bytes, tile_k, packed_bytes, form, sub, bits, offset)               \
  {#name, ggml_type, block_weights, block_bytes, tile_k, packed_bytes, RT_##form, sub, bits, offset, rt_decode_##name,   \
   rt_pack_##name, rt_unpack_##name},
#include "defs/formats.def"
#undef FORMAT
};

rt_format rt_format_of_ggml(uint32_t ggml_type) {
  int f = 0;
  if (ggml_type == RT_NO_GGML_TYPE) return RT_FORMATS;
  while (f < RT_FORMATS && rt_format_table[f].ggml_type != ggml_type) f++;
  return (rt_format)f;
}
