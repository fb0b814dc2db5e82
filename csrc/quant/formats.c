#include "quant/formats.h"

#include "quant/bf16.h"
#include "quant/f16.h"
#include "quant/f32.h"
#include "quant/q4_0.h"
#include "quant/q4_1.h"
#include "quant/q8_0.h"

const rt_format_info rt_format_table[RT_FORMATS] = {
#define FORMAT(name, ggml_type, block_weights, block_bytes, packed_bytes) \
  {#name, ggml_type, block_weights, block_bytes, packed_bytes, rt_decode_##name, rt_pack_##name, rt_unpack_##name},
#include "defs/formats.def"
#undef FORMAT
};

rt_format rt_format_of_ggml(uint32_t ggml_type) {
  int f = 0;
  while (f < RT_FORMATS && rt_format_table[f].ggml_type != ggml_type) f++;
  return (rt_format)f;
}
