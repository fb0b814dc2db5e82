/* defs/formats.def as an enum and a table. */
#ifndef RT_FORMATS_H
#define RT_FORMATS_H
#include <stddef.h>
#include <stdint.h>

typedef enum rt_format {
#define FORMAT(name, ...) RT_##name,
#include "defs/formats.def"
#undef FORMAT
  RT_FORMATS
} rt_format;

#define RT_NO_GGML_TYPE 0xffffffffu /* of a format that stands in no GGUF file */

enum rt_form { RT_FLOAT, RT_SCALE, RT_LEAST };

typedef struct rt_format_info {
  const char *name;
  uint32_t ggml_type;     /* its number in a GGUF file */
  uint32_t block_weights; /* k of one block in the file */
  uint32_t block_bytes;   /* bytes of one block in the file */
  uint32_t tile_k;        /* k of one R16 tile, 64 or 256 */
  uint32_t packed_bytes;  /* bytes of one R16 tile, 16 rows x tile_k */
  uint32_t form;          /* enum rt_form */
  uint32_t sub, bits, offset;
  void (*decode)(const uint8_t *restrict block, float *restrict out /* [block_weights] */);
  void (*pack)(const uint8_t *restrict blocks, size_t stride, int rows, int k, uint8_t *restrict tile);
  void (*unpack)(const uint8_t *restrict tile, int row, float *restrict out /* [tile_k] */);
} rt_format_info;

extern const rt_format_info rt_format_table[RT_FORMATS];

/* RT_FORMATS when the number is none of ours. */
rt_format rt_format_of_ggml(uint32_t ggml_type);
#endif
