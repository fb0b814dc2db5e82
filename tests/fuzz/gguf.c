/* The GGUF reader over a header in memory of exactly its size, then everything a loader does with what it accepts: every
 * value is walked, every tensor lies inside, and tensors of our formats are packed and read back. */
#define _GNU_SOURCE
#include "load/gguf.c"

#include <math.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(int truth) {
  if (!truth) abort();
}

static void walk(const rt_gguf *file, uint64_t *at, uint32_t type, int depth) {
  rt_status st = {0};
  rt_gguf_value value;
  static volatile uint8_t sum;
  must(rt_gguf_read(file, at, type, &value, &st) == RT_OK && depth <= RT_GGUF_DEPTH);
  for (uint64_t i = 0; i < value.bytes; i++) sum = sum + file->file.map[value.at + i];
  for (uint64_t i = 0; type == RT_GGUF_STRING && i < value.text.length; i++) sum = sum + (uint8_t)value.text.bytes[i];
  if (type != RT_GGUF_ARRAY) return;
  *at += value.bytes;
  for (uint64_t i = 0; i < value.count && !item_bytes[value.item_type]; i++) walk(file, at, value.item_type, depth + 1);
}

static int same(float a, float b) { return a == b || (isnan(a) && isnan(b)); }

/* Packed from memory and, as a loader does, from a file: the same tile; read back: the same values. */
static void pack_tensor(rt_gguf *file, uint64_t index) {
  const rt_gguf_tensor *t = &file->tensors[index];
  rt_status st = {0};
  uint64_t rows = t->bytes / rt_file_bytes(t->format, 1, t->dims[0]), k = t->dims[0];
  size_t packed = rt_packed_bytes(t->format, rows, k), stride = t->bytes / rows;
  must(packed != 0);
  if (packed > 1 << 20) return;
  uint8_t *dst = malloc(packed), *blocks = malloc(t->bytes);
  float *out = malloc(k * 2 * sizeof *out), *back = out + k;
  must(dst && blocks && out);
  memcpy(blocks, file->file.map + t->offset, t->bytes);
  must(rt_pack(t->format, rows, k, blocks, t->bytes, dst, packed, 1, &st) == RT_OK);
  for (uint64_t row = 0; row < rows; row += 1 + rows / 3) {
    rt_decode_row(t->format, k, blocks + row * stride, out);
    rt_unpack_row(t->format, k, dst, row, back);
    for (uint64_t i = 0; i < k; i++) must(same(out[i], back[i]));
  }
  free(dst), free(blocks), free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  rt_status st = {0};
  char unnamed[24], path[] = "mutated.gguf";
  rt_gguf file = {.file = {.path = path, .fd = -1, .map = data, .size = size}, .alignment = 32};
  rt_code code = read_header(&file, &st);
  must(code == RT_OK || code == RT_BAD_FILE);
  must(code == RT_OK || (strlen(st.message) > strlen(path) && !strchr(st.message, '\n')));
  for (uint64_t i = 0; !code && i < file.n_fields; i++) {
    uint64_t at = file.fields[i].at;
    walk(&file, &at, file.fields[i].type, 0);
  }
  for (uint64_t i = 0; !code && i < file.n_tensors; i++) {
    const rt_gguf_tensor *t = &file.tensors[i];
    must(t->offset <= size && t->bytes <= size - t->offset && rt_ggml_type_name(t->ggml_type, unnamed)[0]);
    rt_gguf_packing job = {.tensor = i};
    must(rt_gguf_pack(&file, &job, 1, 1, &st) != RT_OK); /* no room for any tensor */
    if (t->bytes && rt_gguf_supported(&file, t, &st) == RT_OK) pack_tensor(&file, i);
  }
  free(file.fields), free(file.tensors);
  return 0;
}
