/* The safetensors reader over a file in memory of exactly its size, then what must hold of all it accepts: names are UTF-8,
 * every tensor lies inside, and together they take every byte of the data once. */
#include "load/safetensors.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(int truth) {
  if (!truth) abort();
}

static void read_text(rt_text text, const rt_safetensors *file) {
  static volatile uint8_t sum;
  must(text.bytes >= file->texts && text.length <= file->file.size);
  for (uint64_t i = 0; i < text.length; i++) {
    uint8_t c = (uint8_t)text.bytes[i];
    sum = sum + c;
    must(c != 0xc0 && c != 0xc1 && c < 0xf5);
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  rt_status st = {0};
  char path[] = "mutated.safetensors";
  rt_safetensors file = {.file = {.path = path, .fd = -1, .map = data, .size = size}};
  rt_code code = read_header(&file, &st);
  uint64_t taken = 0;
  must(code == RT_OK || code == RT_BAD_FILE);
  must(code == RT_OK || (strlen(st.message) > strlen(path) && !strchr(st.message, '\n')));
  for (uint64_t i = 0; !code && i < file.n_fields; i++) read_text(file.fields[i].key, &file), read_text(file.fields[i].text, &file);
  for (uint64_t i = 0; !code && i < file.n_tensors; i++) {
    const rt_safetensors_tensor *t = &file.tensors[i];
    read_text(t->name, &file);
    must(t->offset <= size && t->bytes <= size - t->offset && t->n_dims <= RT_SAFETENSORS_DIMS);
    must((rt_safetensors_supported(&file, t, &st) == RT_OK) == (t->format != RT_FORMATS));
    taken += t->bytes;
  }
  if (!code) {
    uint64_t length;
    memcpy(&length, data, 8);
    must(taken == size - 8 - length);
  }
  free(file.texts), free(file.tensors), free(file.fields);
  return 0;
}
