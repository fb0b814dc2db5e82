/* GGUF v2 and v3, read over a read-only mapping. The file is untrusted: rt_gguf_open walks the whole header once and proves
 * every count, length and tensor against the bytes that are there, before anything is allocated from it.
 *
 *   "GGUF" | version u32 | tensors u64 | fields u64
 *   field:  key string | type u32 | value        string: length u64, bytes     array: item type u32, count u64, items
 *   tensor: name string | n_dims u32 | dims u64[n_dims], fastest first | ggml type u32 | offset u64, from the data section
 *   data section: at the next multiple of general.alignment (32) */
#ifndef RT_GGUF_H
#define RT_GGUF_H
#include "load/file.h"

typedef enum rt_gguf_type {
  RT_GGUF_UINT8, RT_GGUF_INT8, RT_GGUF_UINT16, RT_GGUF_INT16, RT_GGUF_UINT32, RT_GGUF_INT32, RT_GGUF_FLOAT32,
  RT_GGUF_BOOL, RT_GGUF_STRING, RT_GGUF_ARRAY, RT_GGUF_UINT64, RT_GGUF_INT64, RT_GGUF_FLOAT64, RT_GGUF_TYPES
} rt_gguf_type;

enum { RT_GGUF_DIMS = 4, RT_GGUF_DEPTH = 4 /* arrays in arrays */, RT_GGUF_KEY = 65535, RT_GGUF_NAME = 1024,
       RT_GGUF_MAX_FIELDS = 1 << 16, RT_GGUF_MAX_TENSORS = 1 << 20 };

typedef struct rt_gguf_value {
  uint32_t type;
  uint32_t item_type;  /* of an array */
  uint64_t count;      /* items of an array, 1 of anything else */
  uint64_t at, bytes;  /* where its bytes start in the file; how many, 0 where items differ in size */
  rt_text text;        /* of a string, of any encoding */
} rt_gguf_value;

typedef struct rt_gguf_field {
  rt_text key;
  uint32_t type;
  uint64_t at; /* where rt_gguf_read finds the value */
} rt_gguf_field;

typedef struct rt_gguf_tensor {
  rt_text name;
  uint32_t n_dims;
  uint64_t dims[RT_GGUF_DIMS]; /* fastest first: dims[0] is k; 1 behind n_dims */
  uint32_t ggml_type;
  rt_format format;            /* RT_FORMATS: a type that cannot be computed with */
  uint64_t offset, bytes;      /* in the file; bytes 0 and sized false: a type of unknown size */
  bool sized;
} rt_gguf_tensor;

typedef struct rt_gguf {
  rt_file file;
  uint32_t version, alignment;
  uint64_t n_fields, n_tensors;
  rt_gguf_field *fields;
  rt_gguf_tensor *tensors;
} rt_gguf;

rt_code rt_gguf_open(const char *path, rt_gguf **file, rt_status *st);
void rt_gguf_close(rt_gguf *file);

/* The value of `type` at *at, proven inside the file again; *at moves behind it, for an array to its first item. */
rt_code rt_gguf_read(const rt_gguf *file, uint64_t *at, uint32_t type, rt_gguf_value *value, rt_status *st);

/* The strings of an array: where each begins when they stand one behind the other. offset: [count + 1]; *at: its first item,
 * then behind the last. Then those bytes, [offset[count]]; at: the first item again. */
rt_code rt_gguf_text_offsets(const rt_gguf *file, uint64_t *at, uint64_t count, uint64_t *restrict offset, rt_status *st);
void rt_gguf_text_bytes(const rt_gguf *file, uint64_t at, uint64_t count, const uint64_t *restrict offset, uint8_t *restrict to);

/* "Q4_K", or "type 77" in `unnamed`. */
const char *rt_ggml_type_name(uint32_t ggml_type, char unnamed[24]);

/* RT_BAD_FILE naming the tensor, its type and what would work, unless its format is one of ours. */
rt_code rt_gguf_supported(const rt_gguf *file, const rt_gguf_tensor *tensor, rt_status *st);

/* Tensors as rows x k into R16, in parallel across all of them, read with pread. */
typedef struct rt_gguf_packing {
  uint64_t tensor; /* its index */
  uint8_t *dst;    /* [dst_bytes], rt_packed_bytes of its format and shape */
  size_t dst_bytes;
} rt_gguf_packing;

rt_code rt_gguf_pack(const rt_gguf *file, const rt_gguf_packing *jobs /* [n] */, uint64_t n, int threads, rt_status *st);
#endif
