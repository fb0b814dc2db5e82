/* safetensors, read over a read-only mapping. The file is untrusted: rt_safetensors_open parses the whole header once and
 * proves every number against the bytes that are there.
 *
 *   length u64 | header: JSON of `length` bytes, {"name": {"dtype": "F32", "shape": [..], "data_offsets": [first, last]}, ..,
 *   "__metadata__": {"key": "text"}}, blanks behind | data: tensors from byte 0 to the file's end
 *
 * The rules are the format's own and those of its audit: at most 100 MB of header that begins with '{'; strict JSON in UTF-8,
 * no name twice; a tensor's bytes are what its shape and dtype take; tensors lie end to end, without hole or overlap, and the
 * last ends the file. Row by row, the last dimension fastest. The JSON that can stand here has a fixed shape, so the parser
 * reads that shape and no other: there is no nesting to bound. */
#ifndef RT_SAFETENSORS_H
#define RT_SAFETENSORS_H
#include "load/file.h"

enum { RT_SAFETENSORS_HEADER = 100000000, RT_SAFETENSORS_DIMS = 8, RT_SAFETENSORS_NAME = 1024,
       RT_SAFETENSORS_MAX_TENSORS = 1 << 20 };

typedef struct rt_safetensors_tensor {
  rt_text name; /* UTF-8 */
  const char *dtype;
  rt_format format; /* RT_FORMATS: a dtype that cannot be computed with */
  uint32_t n_dims;
  uint64_t dims[RT_SAFETENSORS_DIMS]; /* slowest first */
  uint64_t offset, bytes;             /* in the file */
} rt_safetensors_tensor;

typedef struct rt_safetensors_field {
  rt_text key, text; /* UTF-8 */
} rt_safetensors_field;

typedef struct rt_safetensors {
  rt_file file;
  char *texts; /* names and metadata, escapes resolved; one behind the other */
  uint64_t n_tensors, n_fields;
  rt_safetensors_tensor *tensors; /* in the header's order */
  rt_safetensors_field *fields;
} rt_safetensors;

rt_code rt_safetensors_open(const char *path, rt_safetensors **file, rt_status *st);
void rt_safetensors_close(rt_safetensors *file);

/* RT_BAD_FILE naming the tensor, its dtype and what would work, unless its format is one of ours. */
rt_code rt_safetensors_supported(const rt_safetensors *file, const rt_safetensors_tensor *tensor, rt_status *st);
#endif
