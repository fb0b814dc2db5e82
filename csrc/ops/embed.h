/* out = scale * row `row` of a packed matrix.  out: [k]; one token is one chunk of work. */
#ifndef RT_OPS_EMBED_H
#define RT_OPS_EMBED_H
#include "quant/values.h"

#define FORMAT(name, ggml_type, block_weights, block_bytes, tile_k, packed_bytes, ...)                   \
  static void rt_embed_##name(const uint8_t *packed, int k, int64_t row, float scale, float *out) {      \
    const uint8_t *tile = packed + (size_t)(row / 16) * (size_t)((k + tile_k - 1) / tile_k) * packed_bytes; \
    float w[tile_k];                                                                                     \
    for (int at = 0; at < k; at += tile_k, tile += packed_bytes) {                                       \
      rt_values_##name(tile, (int)(row % 16), w);                                                        \
      for (int i = 0; i < tile_k && at + i < k; i++) out[at + i] = w[i] * scale;                         \
    }                                                                                                    \
  }
#include "defs/formats.def"
#undef FORMAT
#endif
