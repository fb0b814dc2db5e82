/* defs/formats.def as an enum and a table. */
#ifndef RT_FORMATS_H
#define RT_FORMATS_H
#include <stddef.h>
#include <stdint.h>

typedef enum rt_format {
#define FORMAT(name, ggml_type, block_weights, block_bytes, packed_bytes) RT_##name,
#include "defs/formats.def"
#undef FORMAT
  RT_FORMATS
} rt_format;

typedef struct rt_format_info {
  const char *name;
  uint32_t ggml_type;     /* its number in a GGUF file */
  uint32_t block_weights; /* k of one block in the file */
  uint32_t block_bytes;   /* bytes of one block in the file */
  uint32_t packed_bytes;  /* bytes of one R16 tile, 16 rows x 64 k */
  void (*decode)(const uint8_t *restrict block, float *restrict out /* [block_weights] */);
  void (*pack)(const uint8_t *restrict blocks, size_t stride, int rows, int k, uint8_t *restrict tile);
  void (*unpack)(const uint8_t *restrict tile, int row, float *restrict out /* [64] */);
} rt_format_info;

extern const rt_format_info rt_format_table[RT_FORMATS];

/* RT_FORMATS when the number is none of ours. */
rt_format rt_format_of_ggml(uint32_t ggml_type);
#endif
