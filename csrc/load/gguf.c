#include "load/gguf.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "load/pack.h"

typedef unsigned long long ull;

static rt_shown show(const char *bytes, uint64_t length) { return rt_show((rt_text){bytes, length}); }
#define bad(of, st, ...) rt_file_bad(&(of)->file, st, __VA_ARGS__)

static const struct ggml_type {
  const char *name;
  uint32_t number, block_weights, block_bytes;
} ggml_types[] = {
#define TYPE(name, number, block_weights, block_bytes) {#name, number, block_weights, block_bytes},
#include "defs/ggml_types.def"
#undef TYPE
};

static const struct ggml_type *find_type(uint32_t number) {
  for (size_t i = 0; i < sizeof ggml_types / sizeof *ggml_types; i++)
    if (ggml_types[i].number == number) return &ggml_types[i];
  return NULL;
}

const char *rt_ggml_type_name(uint32_t ggml_type, char unnamed[24]) {
  const struct ggml_type *type = find_type(ggml_type);
  if (type) return type->name;
  snprintf(unnamed, 24, "type %u", ggml_type);
  return unnamed;
}

/* ---- values ---- */

static const uint8_t item_bytes[RT_GGUF_TYPES] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
static const uint8_t least_bytes[RT_GGUF_TYPES] = {1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8};

static bool left(const rt_gguf *file, uint64_t at, uint64_t bytes) { return rt_file_holds(&file->file, at, bytes); }

static rt_code read_bytes(const rt_gguf *file, uint64_t *at, void *to, uint64_t bytes, const char *what, rt_status *st) {
  if (!left(file, *at, bytes)) return bad(file, st, "byte %llu: the file ends inside %s; get it again", (ull)*at, what);
  memcpy(to, file->file.map + *at, bytes);
  *at += bytes;
  return RT_OK;
}

static rt_code read_text(const rt_gguf *file, uint64_t *at, const char *what, uint64_t most, rt_text *text,
                         rt_status *st) {
  uint64_t start = *at, length = 0;
  if (read_bytes(file, at, &length, 8, what, st)) return st->code;
  if (length > most || !left(file, *at, length))
    return bad(file, st, "byte %llu: %s of %llu bytes, at most %llu can be there", (ull)start, what, (ull)length,
               (ull)(most < file->file.size - *at ? most : file->file.size - *at));
  *text = (rt_text){(const char *)file->file.map + *at, length};
  *at += length;
  return RT_OK;
}

static rt_code read_array(const rt_gguf *file, uint64_t *at, rt_gguf_value *value, rt_status *st) {
  uint64_t start = *at, least = 0;
  if (read_bytes(file, at, &value->item_type, 4, "the item type of an array", st)) return st->code;
  if (value->item_type >= RT_GGUF_TYPES)
    return bad(file, st, "byte %llu: an array of items of type %u, known are 0 to 12", (ull)start, value->item_type);
  if (read_bytes(file, at, &value->count, 8, "the length of an array", st)) return st->code;
  if (!rt_mul(value->count, least_bytes[value->item_type], &least) || !left(file, *at, least))
    return bad(file, st, "byte %llu: an array of %llu items in %llu bytes", (ull)start, (ull)value->count,
               (ull)(file->file.size - *at));
  value->at = *at;
  value->bytes = item_bytes[value->item_type] ? least : 0;
  return RT_OK;
}

rt_code rt_gguf_read(const rt_gguf *file, uint64_t *at, uint32_t type, rt_gguf_value *value, rt_status *st) {
  *value = (rt_gguf_value){.type = type, .count = 1, .at = *at};
  if (type == RT_GGUF_STRING) return read_text(file, at, "a string", UINT64_MAX, &value->text, st);
  if (type == RT_GGUF_ARRAY) return read_array(file, at, value, st);
  if (type >= RT_GGUF_TYPES) return bad(file, st, "byte %llu: a value of type %u, known are 0 to 12", (ull)*at, type);
  value->bytes = item_bytes[type];
  if (!left(file, *at, value->bytes)) return bad(file, st, "byte %llu: the file ends inside a value", (ull)*at);
  *at += value->bytes;
  return RT_OK;
}

enum { LENGTH_BYTES = 8 }; /* before a string */

/* Vocabularies are long: one tight loop. offset may be NULL; all of the bytes lie in the file, so their sum fits. */
static rt_code walk_texts(const rt_gguf *file, uint64_t *at, uint64_t count, uint64_t *restrict offset, rt_status *st) {
  const uint64_t size = file->file.size;
  uint64_t place = *at, length = 0, sum = 0;
  for (uint64_t i = 0; i < count; i++) {
    bool there = size - place >= LENGTH_BYTES;
    if (there) memcpy(&length, file->file.map + place, LENGTH_BYTES);
    if (!there || length > size - place - LENGTH_BYTES) {
      rt_text text;
      return read_text(file, &place, "a string", UINT64_MAX, &text, st) ? st->code : bad(file, st, "it changed while it was read");
    }
    place += LENGTH_BYTES + length;
    sum += length;
    if (offset) offset[i + 1] = sum;
  }
  *at = place;
  return RT_OK;
}

rt_code rt_gguf_text_offsets(const rt_gguf *file, uint64_t *at, uint64_t count, uint64_t *restrict offset, rt_status *st) {
  offset[0] = 0;
  return walk_texts(file, at, count, offset, st);
}

/* Lengths are not read again: those of a file that changes meanwhile would not be the proven ones. */
void rt_gguf_text_bytes(const rt_gguf *file, uint64_t at, uint64_t count, const uint64_t *restrict offset, uint8_t *restrict to) {
  const uint8_t *from = file->file.map + at;
  for (uint64_t i = 0; i < count; i++)
    memcpy(to + offset[i], from + (i + 1) * LENGTH_BYTES + offset[i], offset[i + 1] - offset[i]);
}

/* Proves a value and moves behind it. */
static rt_code walk_value(const rt_gguf *file, uint64_t *at, uint32_t type, int depth, rt_status *st) {
  rt_gguf_value value;
  uint64_t start = *at;
  if (rt_gguf_read(file, at, type, &value, st)) return st->code;
  if (type != RT_GGUF_ARRAY) return RT_OK;
  if (depth == RT_GGUF_DEPTH) return bad(file, st, "byte %llu: arrays nested deeper than %d", (ull)start, RT_GGUF_DEPTH);
  *at += value.bytes;
  if (item_bytes[value.item_type]) return RT_OK;
  if (value.item_type == RT_GGUF_STRING) return walk_texts(file, at, value.count, NULL, st);
  for (uint64_t i = 0; i < value.count; i++)
    if (walk_value(file, at, value.item_type, depth + 1, st)) return st->code;
  return RT_OK;
}

/* ---- the header ---- */

static rt_code read_start(rt_gguf *file, uint64_t *at, uint64_t *n_tensors, uint64_t *n_fields, rt_status *st) {
  if (file->file.size == 0) return bad(file, st, "the file is empty");
  if (file->file.size < 4 || memcmp(file->file.map, "GGUF", 4)) {
    uint64_t n = file->file.size < 4 ? file->file.size : 4;
    return bad(file, st, "not a GGUF file: it starts with \"%s\", not \"GGUF\"", show((const char *)file->file.map, n).text);
  }
  *at = 4;
  if (read_bytes(file, at, &file->version, 4, "the version", st)) return st->code;
  if (file->version != 0 && (file->version & 0xffff) == 0)
    return bad(file, st, "a big-endian GGUF file; convert it to little-endian (gguf-convert-endian does)");
  if (file->version == 1) return bad(file, st, "GGUF version 1 is no longer read; convert the model again (version 3)");
  if (file->version != 2 && file->version != 3)
    return bad(file, st, "byte 4: GGUF version %u; versions 2 and 3 are read", file->version);
  if (read_bytes(file, at, n_tensors, 8, "the number of tensors", st)) return st->code;
  if (read_bytes(file, at, n_fields, 8, "the number of metadata fields", st)) return st->code;
  uint64_t fields = 0, tensors = 0, all = 0; /* the least a field and a tensor take: 13 and 24 bytes */
  if (*n_fields > RT_GGUF_MAX_FIELDS || *n_tensors > RT_GGUF_MAX_TENSORS || !rt_mul(*n_fields, 13, &fields) ||
      !rt_mul(*n_tensors, 24, &tensors) || !rt_add(fields, tensors, &all) || !left(file, *at, all))
    return bad(file, st, "byte 8: %llu tensors and %llu metadata fields in a file of %llu bytes", (ull)*n_tensors,
               (ull)*n_fields, (ull)file->file.size);
  return RT_OK;
}

static rt_code read_alignment(rt_gguf *file, const rt_gguf_field *field, rt_status *st) {
  uint64_t at = field->at;
  static const char key[] = "general.alignment";
  if (field->key.length != sizeof key - 1 || memcmp(field->key.bytes, key, sizeof key - 1)) return RT_OK;
  if (field->type != RT_GGUF_UINT32)
    return bad(file, st, "byte %llu: general.alignment has type %u, not 4 (uint32)", (ull)at, field->type);
  if (read_bytes(file, &at, &file->alignment, 4, "general.alignment", st)) return st->code;
  uint32_t a = file->alignment;
  if (a < 8 || a > 1 << 20 || a & (a - 1))
    return bad(file, st, "byte %llu: general.alignment is %u, not a power of two from 8 to 1048576", (ull)field->at, a);
  return RT_OK;
}

static rt_code read_field(rt_gguf *file, uint64_t *at, rt_status *st) {
  if (!rt_grow((void **)&file->fields, file->n_fields, sizeof *file->fields)) return rt_file_no_memory(&file->file, st);
  rt_gguf_field *field = &file->fields[file->n_fields];
  if (read_text(file, at, "a key", RT_GGUF_KEY, &field->key, st)) return st->code;
  if (read_bytes(file, at, &field->type, 4, "the type of a field", st)) return st->code;
  field->at = *at;
  if (walk_value(file, at, field->type, 0, st)) return st->code;
  file->n_fields++;
  return read_alignment(file, field, st);
}

/* Bytes of a tensor from its type and dims. */
static rt_code measure(const rt_gguf *file, rt_gguf_tensor *t, uint64_t at, rt_status *st) {
  const struct ggml_type *type = find_type(t->ggml_type);
  t->format = type ? rt_format_of_ggml(t->ggml_type) : RT_FORMATS; /* formats without a number share one, which is no type */
  t->sized = type != NULL;
  if (!type) return RT_OK;
  if (t->dims[0] % type->block_weights)
    return bad(file, st, "byte %llu: tensor %s: rows of %llu are not whole blocks of %u (%s)", (ull)at,
               show(t->name.bytes, t->name.length).text, (ull)t->dims[0], type->block_weights, type->name);
  bool fits = rt_mul(t->dims[0] / type->block_weights, type->block_bytes, &t->bytes);
  for (int i = 1; i < RT_GGUF_DIMS; i++) fits = fits && rt_mul(t->bytes, t->dims[i], &t->bytes);
  if (fits) return RT_OK;
  return bad(file, st, "byte %llu: tensor %s: its size does not fit in 64 bits", (ull)at,
             show(t->name.bytes, t->name.length).text);
}

/* `offset` still counts from the data section. */
static rt_code read_tensor(rt_gguf *file, uint64_t *at, rt_status *st) {
  if (!rt_grow((void **)&file->tensors, file->n_tensors, sizeof *file->tensors)) return rt_file_no_memory(&file->file, st);
  rt_gguf_tensor *t = &file->tensors[file->n_tensors];
  uint64_t start = *at;
  *t = (rt_gguf_tensor){.dims = {1, 1, 1, 1}};
  if (read_text(file, at, "a tensor name", RT_GGUF_NAME, &t->name, st)) return st->code;
  if (read_bytes(file, at, &t->n_dims, 4, "a tensor's number of dimensions", st)) return st->code;
  if (t->n_dims > RT_GGUF_DIMS)
    return bad(file, st, "byte %llu: tensor %s has %u dimensions, at most 4 are allowed", (ull)start,
               show(t->name.bytes, t->name.length).text, t->n_dims);
  if (read_bytes(file, at, t->dims, 8 * (uint64_t)t->n_dims, "a tensor's shape", st)) return st->code;
  if (read_bytes(file, at, &t->ggml_type, 4, "a tensor's type", st)) return st->code;
  if (read_bytes(file, at, &t->offset, 8, "a tensor's offset", st)) return st->code;
  file->n_tensors++;
  return measure(file, t, start, st);
}

/* ---- what has to hold between the parts ---- */

static rt_code place_tensors(rt_gguf *file, uint64_t header_end, rt_status *st) {
  uint64_t data = rt_round_up(header_end, file->alignment);
  for (uint64_t i = 0; i < file->n_tensors; i++) {
    rt_gguf_tensor *t = &file->tensors[i];
    rt_shown name = show(t->name.bytes, t->name.length);
    if (t->offset % file->alignment)
      return bad(file, st, "tensor %s: offset %llu is not a multiple of the alignment %u", name.text, (ull)t->offset,
                 file->alignment);
    if (!rt_add(data, t->offset, &t->offset) || !left(file, t->offset, t->bytes))
      return bad(file, st, "tensor %s: %llu bytes at byte %llu, but the file has %llu bytes: incomplete or damaged, get it again",
                 name.text, (ull)t->bytes, (ull)t->offset, (ull)file->file.size);
  }
  return RT_OK;
}

static int by_offset(const void *a, const void *b) {
  const rt_gguf_tensor *x = *(rt_gguf_tensor *const *)a, *y = *(rt_gguf_tensor *const *)b;
  return (x->offset > y->offset) - (x->offset < y->offset);
}

static rt_code refuse_overlaps(const rt_gguf *file, rt_status *st) {
  const rt_gguf_tensor **order = malloc((file->n_tensors + 1) * sizeof *order), *before = NULL;
  uint64_t n = 0;
  if (!order) return rt_file_no_memory(&file->file, st);
  for (uint64_t i = 0; i < file->n_tensors; i++)
    if (file->tensors[i].bytes) order[n++] = &file->tensors[i];
  qsort(order, n, sizeof *order, by_offset);
  st->code = RT_OK;
  for (uint64_t i = 0; i < n && !st->code; before = order[i++])
    if (before && before->offset + before->bytes > order[i]->offset)
      bad(file, st, "byte %llu: tensor %s overlaps tensor %s", (ull)order[i]->offset,
          show(order[i]->name.bytes, order[i]->name.length).text, show(before->name.bytes, before->name.length).text);
  free(order);
  return st->code;
}

/* texts: [n], sorted in place. */
static rt_code refuse_twins(const rt_gguf *file, rt_text *texts, uint64_t n, const char *what, rt_status *st) {
  const rt_text *twin = rt_find_twin(texts, n);
  return twin ? bad(file, st, "%s %s is there twice", what, rt_show(*twin).text) : RT_OK;
}

static rt_code refuse_duplicates(const rt_gguf *file, rt_status *st) {
  uint64_t most = file->n_fields > file->n_tensors ? file->n_fields : file->n_tensors;
  rt_text *texts = malloc((most + 1) * sizeof *texts);
  if (!texts) return rt_file_no_memory(&file->file, st);
  for (uint64_t i = 0; i < file->n_fields; i++) texts[i] = file->fields[i].key;
  rt_code code = refuse_twins(file, texts, file->n_fields, "metadata field", st);
  for (uint64_t i = 0; i < file->n_tensors; i++) texts[i] = file->tensors[i].name;
  if (!code) code = refuse_twins(file, texts, file->n_tensors, "tensor", st);
  free(texts);
  return code;
}

static rt_code read_header(rt_gguf *file, rt_status *st) {
  uint64_t at = 0, n_tensors = 0, n_fields = 0;
  if (read_start(file, &at, &n_tensors, &n_fields, st)) return st->code;
  while (file->n_fields < n_fields)
    if (read_field(file, &at, st)) return st->code;
  while (file->n_tensors < n_tensors)
    if (read_tensor(file, &at, st)) return st->code;
  if (refuse_duplicates(file, st) || place_tensors(file, at, st)) return st->code;
  return refuse_overlaps(file, st);
}

/* ---- open and close ---- */

rt_code rt_gguf_open(const char *path, rt_gguf **out, rt_status *st) {
  rt_gguf *file = calloc(1, sizeof *file);
  *out = NULL;
  if (!file) return rt_fail(st, RT_NO_MEMORY, "no memory left to open a file");
  file->alignment = 32;
  if (rt_file_open(&file->file, path, "GGUF", st) || read_header(file, st) || rt_file_unchanged(&file->file, st)) {
    rt_gguf_close(file);
    return st->code;
  }
  *out = file;
  return RT_OK;
}

void rt_gguf_close(rt_gguf *file) {
  if (!file) return;
  rt_file_close(&file->file);
  free(file->fields);
  free(file->tensors);
  free(file);
}

/* ---- packing ---- */

rt_code rt_gguf_supported(const rt_gguf *file, const rt_gguf_tensor *tensor, rt_status *st) {
  char unnamed[24], ours[RT_FORMATS * 8] = "";
  size_t at = 0;
  if (tensor->format != RT_FORMATS) return RT_OK;
  for (int f = 0; f < RT_FORMATS && at < sizeof ours; f++)
    if (rt_format_table[f].ggml_type != RT_NO_GGML_TYPE)
      at += (size_t)snprintf(ours + at, sizeof ours - at, "%s ", rt_format_table[f].name);
  return bad(file, st, "tensor %s is stored as %s (ggml type %u), which is not supported; use a file with %sweights",
             show(tensor->name.bytes, tensor->name.length).text, rt_ggml_type_name(tensor->ggml_type, unnamed),
             tensor->ggml_type, ours);
}

rt_code rt_gguf_pack(const rt_gguf *file, const rt_gguf_packing *jobs, uint64_t n, int threads, rt_status *st) {
  rt_file_packing *all = calloc(n + 1, sizeof *all);
  if (!all) return rt_file_no_memory(&file->file, st);
  st->code = RT_OK;
  for (uint64_t j = 0; j < n && !st->code; j++) {
    const rt_gguf_tensor *t = &file->tensors[jobs[j].tensor];
    if (rt_gguf_supported(file, t, st)) break;
    uint64_t rows = t->bytes ? t->dims[1] * t->dims[2] * t->dims[3] : 0; /* fits, since its bytes do */
    all[j] = (rt_file_packing){t->format, rows, t->dims[0], t->offset, jobs[j].dst, jobs[j].dst_bytes};
  }
  if (!st->code) rt_file_pack(&file->file, all, n, threads, st);
  free(all);
  return st->code;
}
