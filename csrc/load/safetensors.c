#include "load/safetensors.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

typedef unsigned long long ull;

#define bad(of, st, ...) rt_file_bad(&(of)->file, st, __VA_ARGS__)

static const struct dtype {
  const char *name;
  uint32_t bits;
  rt_format format;
} dtypes[] = {
#define TYPE(name, bits, format) {#name, bits, format},
#include "defs/safetensors_types.def"
#undef TYPE
};

/* ---- the JSON of a header ---- */

typedef struct parser {
  rt_safetensors *file;
  uint64_t at, end; /* in the file */
  char *texts;      /* where the next string is written */
  rt_status *st;
} parser;

static int peek(const parser *p) { return p->at < p->end ? p->file->file.map[p->at] : -1; }

static bool skip(parser *p, char c) {
  if (peek(p) != c) return false;
  p->at++;
  return true;
}

static int peek_behind_blanks(parser *p) {
  int c;
  while ((c = peek(p)) == ' ' || c == '\n' || c == '\r' || c == '\t') p->at++;
  return c;
}

static rt_code wrong(parser *p, const char *wanted) {
  if (p->at >= p->end) return bad(p->file, p->st, "byte %llu: the header ends where %s should be", (ull)p->at, wanted);
  return bad(p->file, p->st, "byte %llu: \"%s\" in the header where %s should be", (ull)p->at,
             rt_show((rt_text){(const char *)p->file->file.map + p->at, 1}).text, wanted);
}

static rt_code take(parser *p, char c, const char *wanted) {
  peek_behind_blanks(p);
  return skip(p, c) ? RT_OK : wrong(p, wanted);
}

/* Behind a value: true with *over false when another follows, true with *over when it was the last. */
static bool more(parser *p, char close, bool *over, const char *wanted) {
  int c = peek_behind_blanks(p);
  if (c != ',' && c != close) return wrong(p, wanted), false;
  p->at++;
  *over = c == close;
  return true;
}

static rt_code read_number(parser *p, uint64_t *number) {
  int c = peek_behind_blanks(p);
  uint64_t start = p->at;
  *number = 0;
  if (c < '0' || c > '9') return wrong(p, "a whole number");
  for (; (c = peek(p)) >= '0' && c <= '9'; p->at++)
    if (!rt_mul(*number, 10, number) || !rt_add(*number, (uint64_t)(c - '0'), number))
      return bad(p->file, p->st, "byte %llu: a number that does not fit in 64 bits", (ull)start);
  if (p->file->file.map[start] == '0' && p->at > start + 1)
    return bad(p->file, p->st, "byte %llu: a number that begins with 0", (ull)start);
  return RT_OK;
}

static bool read_hex4(parser *p, uint32_t *code) {
  *code = 0;
  for (int i = 0; i < 4; i++, p->at++) {
    int c = peek(p), letter = c | 0x20;
    bool decimal = c >= '0' && c <= '9';
    if (!decimal && (letter < 'a' || letter > 'f')) return false;
    *code = *code << 4 | (uint32_t)(decimal ? c - '0' : letter - 'a' + 10);
  }
  return true;
}

/* A character behind a backslash. Half of a surrogate pair alone is none. */
static bool read_escape(parser *p) {
  static const char plain[] = "\"\"\\\\//b\bf\fn\nr\rt\t"; /* pairs: letter, meaning */
  uint32_t code, low;
  int c = peek(p);
  p->at++;
  for (const char *pair = plain; *pair; pair += 2)
    if (c == pair[0]) return *p->texts++ = pair[1], true;
  if (c != 'u' || !read_hex4(p, &code) || code >> 10 == 0xdc00 >> 10) return false;
  if (code >> 10 == 0xd800 >> 10) {
    if (!skip(p, '\\') || !skip(p, 'u') || !read_hex4(p, &low) || low >> 10 != 0xdc00 >> 10) return false;
    code = 0x10000 + ((code & 0x3ff) << 10 | (low & 0x3ff));
  }
  if (code < 0x80) *p->texts++ = (char)code;
  else {
    int behind = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    *p->texts++ = (char)((0xff00 >> (behind + 1) & 0xff) | code >> 6 * behind);
    while (behind--) *p->texts++ = (char)(0x80 | (code >> 6 * behind & 0x3f));
  }
  return true;
}

/* A character of more than one byte as UTF-8 has it: no longer than it need be, no surrogate, none above 0x10ffff. */
static bool read_wide(parser *p) {
  int first = peek(p), behind = first >= 0xf0 ? 3 : first >= 0xe0 ? 2 : 1;
  uint32_t code = (uint32_t)first & (0x3fu >> behind);
  if (first < 0xc2 || first > 0xf4) return false;
  for (*p->texts++ = (char)first, p->at++; behind-- > 0; p->at++) {
    int c = peek(p);
    if (c < 0x80 || c > 0xbf) return false;
    code = code << 6 | ((uint32_t)c & 0x3f);
    *p->texts++ = (char)c;
  }
  static const uint32_t least[] = {0, 0x80, 0x800, 0x10000};
  int bytes = first >= 0xf0 ? 3 : first >= 0xe0 ? 2 : 1;
  return code >= least[bytes] && code <= 0x10ffff && code >> 11 != 0xd800 >> 11;
}

/* Writes to p->texts no more bytes than the string takes in the file. */
static rt_code read_string(parser *p, const char *wanted, rt_text *text) {
  if (take(p, '"', wanted)) return p->st->code;
  uint64_t start = p->at;
  char *first = p->texts;
  for (int c; (c = peek(p)) != '"';) {
    uint64_t here = p->at;
    if (c < 0) return bad(p->file, p->st, "byte %llu: the header ends inside a string", (ull)start);
    if (c < 0x20) return bad(p->file, p->st, "byte %llu: a control character inside a string", (ull)here);
    if (c == '\\') {
      p->at++;
      if (!read_escape(p)) return bad(p->file, p->st, "byte %llu: an escape that JSON does not have", (ull)here);
    } else if (c >= 0x80) {
      if (!read_wide(p)) return bad(p->file, p->st, "byte %llu: not UTF-8", (ull)here);
    } else {
      *p->texts++ = (char)c, p->at++;
    }
  }
  p->at++;
  *text = (rt_text){first, (uint64_t)(p->texts - first)};
  return RT_OK;
}

static bool is(rt_text text, const char *word) { return text.length == strlen(word) && !memcmp(text.bytes, word, text.length); }

/* ---- what stands in it ---- */

static rt_code read_dtype(parser *p, rt_safetensors_tensor *t, uint32_t *bits) {
  rt_text name;
  uint64_t start = p->at;
  if (read_string(p, "a dtype", &name)) return p->st->code;
  for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++)
    if (is(name, dtypes[i].name)) {
      t->dtype = dtypes[i].name, t->format = dtypes[i].format, *bits = dtypes[i].bits;
      return RT_OK;
    }
  return bad(p->file, p->st, "byte %llu: tensor %s has the dtype %s, which is none", (ull)start, rt_show(t->name).text,
             rt_show(name).text);
}

/* [a, b, ..]: at most `most` numbers; *n of them. */
static rt_code read_numbers(parser *p, const rt_safetensors_tensor *t, uint64_t *numbers, uint32_t most, uint32_t *n) {
  bool over = false;
  *n = 0;
  if (take(p, '[', "a list of numbers")) return p->st->code;
  if (peek_behind_blanks(p) == ']') return p->at++, RT_OK;
  while (!over) {
    if (*n == most)
      return bad(p->file, p->st, "byte %llu: tensor %s: more than %u numbers in a list", (ull)p->at, rt_show(t->name).text, most);
    if (read_number(p, &numbers[(*n)++]) || !more(p, ']', &over, "a , or ]")) return p->st->code;
  }
  return RT_OK;
}

/* Its bytes from its shape, which must be those its offsets tell. */
static rt_code measure(parser *p, const rt_safetensors_tensor *t, uint32_t bits, uint64_t first, uint64_t last) {
  uint64_t size = bits;
  bool fits = true;
  for (uint32_t i = 0; i < t->n_dims; i++) fits = fits && rt_mul(size, t->dims[i], &size);
  if (!fits) return bad(p->file, p->st, "tensor %s: its size does not fit in 64 bits", rt_show(t->name).text);
  if (first <= last && size % 8 == 0 && size / 8 == last - first) return RT_OK;
  return bad(p->file, p->st, "tensor %s: its shape and dtype %s take %llu bits, its data_offsets are %llu to %llu",
             rt_show(t->name).text, t->dtype, (ull)size, (ull)first, (ull)last);
}

/* {"dtype": .., "shape": .., "data_offsets": ..} in any order. `offset` counts from the data. */
static rt_code read_tensor(parser *p, rt_text name) {
  static const char *const keys[] = {"dtype", "shape", "data_offsets"};
  rt_safetensors *file = p->file;
  uint64_t offsets[2] = {0, 0}, start = p->at;
  uint32_t n_offsets = 0, bits = 0, there = 0;
  bool over = false;
  if (name.length > RT_SAFETENSORS_NAME || file->n_tensors == RT_SAFETENSORS_MAX_TENSORS)
    return bad(file, p->st, "byte %llu: tensor %s: a name of %llu bytes, tensor number %llu; at most %d and %d can be",
               (ull)start, rt_show(name).text, (ull)name.length, (ull)file->n_tensors + 1, RT_SAFETENSORS_NAME,
               RT_SAFETENSORS_MAX_TENSORS);
  if (!rt_grow((void **)&file->tensors, file->n_tensors, sizeof *file->tensors)) return rt_file_no_memory(&file->file, p->st);
  rt_safetensors_tensor *t = &file->tensors[file->n_tensors];
  *t = (rt_safetensors_tensor){.name = name, .format = RT_FORMATS};
  if (take(p, '{', "{")) return p->st->code;
  while (!over) {
    rt_text key;
    char *texts = p->texts;
    uint32_t which = 0;
    if (read_string(p, "dtype, shape or data_offsets", &key)) return p->st->code;
    while (which < 3 && !is(key, keys[which])) which++;
    if (which == 3 || there >> which & 1)
      return bad(file, p->st, "byte %llu: tensor %s: %s is %s", (ull)p->at, rt_show(name).text, rt_show(key).text,
                 which == 3 ? "nothing a tensor has" : "there twice");
    there |= 1u << which;
    if (take(p, ':', ":")) return p->st->code;
    if (which == 0 ? read_dtype(p, t, &bits)
                   : which == 1 ? read_numbers(p, t, t->dims, RT_SAFETENSORS_DIMS, &t->n_dims)
                                : read_numbers(p, t, offsets, 2, &n_offsets)) return p->st->code;
    p->texts = texts;
    if (!more(p, '}', &over, "a , or }")) return p->st->code;
  }
  if (there != 7 || n_offsets != 2)
    return bad(file, p->st, "byte %llu: tensor %s needs a dtype, a shape and two data_offsets", (ull)start, rt_show(name).text);
  t->offset = offsets[0], t->bytes = offsets[1] - offsets[0];
  file->n_tensors++;
  return measure(p, t, bits, offsets[0], offsets[1]);
}

static rt_code read_metadata(parser *p) {
  rt_safetensors *file = p->file;
  bool over = false;
  if (take(p, '{', "{")) return p->st->code;
  if (peek_behind_blanks(p) == '}') return p->at++, RT_OK;
  while (!over) {
    if (!rt_grow((void **)&file->fields, file->n_fields, sizeof *file->fields)) return rt_file_no_memory(&file->file, p->st);
    rt_safetensors_field *field = &file->fields[file->n_fields];
    if (read_string(p, "a key", &field->key) || take(p, ':', ":") || read_string(p, "a text", &field->text)) return p->st->code;
    file->n_fields++;
    if (!more(p, '}', &over, "a , or }")) return p->st->code;
  }
  return RT_OK;
}

static rt_code read_entries(parser *p) {
  bool over = false, told = false;
  p->at++; /* { */
  if (peek_behind_blanks(p) == '}') return p->at++, RT_OK;
  while (!over) {
    rt_text name;
    if (read_string(p, "a tensor's name", &name) || take(p, ':', ":")) return p->st->code;
    bool metadata = is(name, "__metadata__");
    if (metadata && told) return bad(p->file, p->st, "byte %llu: __metadata__ is there twice", (ull)p->at);
    told |= metadata;
    if ((metadata ? read_metadata(p) : read_tensor(p, name)) || !more(p, '}', &over, "a , or }")) return p->st->code;
  }
  return RT_OK;
}

/* ---- what has to hold between the parts ---- */

static rt_code refuse_duplicates(const rt_safetensors *file, rt_status *st) {
  uint64_t most = file->n_fields > file->n_tensors ? file->n_fields : file->n_tensors;
  rt_text *texts = malloc((most + 1) * sizeof *texts);
  const rt_text *twin;
  if (!texts) return rt_file_no_memory(&file->file, st);
  st->code = RT_OK;
  for (uint64_t i = 0; i < file->n_tensors; i++) texts[i] = file->tensors[i].name;
  if ((twin = rt_find_twin(texts, file->n_tensors))) bad(file, st, "tensor %s is there twice", rt_show(*twin).text);
  for (uint64_t i = 0; i < file->n_fields; i++) texts[i] = file->fields[i].key;
  if (!st->code && (twin = rt_find_twin(texts, file->n_fields))) bad(file, st, "metadata %s is there twice", rt_show(*twin).text);
  free(texts);
  return st->code;
}

static int by_offset(const void *a, const void *b) {
  const rt_safetensors_tensor *x = *(rt_safetensors_tensor *const *)a, *y = *(rt_safetensors_tensor *const *)b;
  if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
  return (x->bytes > y->bytes) - (x->bytes < y->bytes); /* empty ones first */
}

/* Tensors lie end to end from `data` to the end of the file; offsets count from the file's start afterwards. */
static rt_code place_tensors(rt_safetensors *file, uint64_t data, rt_status *st) {
  rt_safetensors_tensor **order = malloc((file->n_tensors + 1) * sizeof *order);
  uint64_t at = 0, end = file->file.size - data;
  if (!order) return rt_file_no_memory(&file->file, st);
  st->code = RT_OK;
  for (uint64_t i = 0; i < file->n_tensors; i++) order[i] = &file->tensors[i];
  qsort(order, file->n_tensors, sizeof *order, by_offset);
  for (uint64_t i = 0; i < file->n_tensors && !st->code; i++) {
    rt_safetensors_tensor *t = order[i];
    if (t->offset != at)
      bad(file, st, "tensor %s begins at byte %llu of the data, %s at byte %llu", rt_show(t->name).text, (ull)t->offset,
          t->offset < at ? "inside one that ends" : "behind a hole that begins", (ull)at);
    else if (t->bytes > end - at)
      bad(file, st, "tensor %s: %llu bytes at byte %llu of the data, which has %llu: incomplete or damaged, get it again",
          rt_show(t->name).text, (ull)t->bytes, (ull)at, (ull)end);
    at += t->bytes;
    t->offset += data;
  }
  if (!st->code && at != end) bad(file, st, "%llu bytes behind the last tensor belong to none", (ull)(end - at));
  free(order);
  return st->code;
}

static rt_code read_header(rt_safetensors *file, rt_status *st) {
  uint64_t length = 0;
  st->code = RT_OK;
  if (!rt_file_holds(&file->file, 0, 8)) return bad(file, st, "%llu bytes are no safetensors file", (ull)file->file.size);
  memcpy(&length, file->file.map, 8);
  if (length > RT_SAFETENSORS_HEADER || !rt_file_holds(&file->file, 8, length))
    return bad(file, st, "byte 0: a header of %llu bytes in a file of %llu, at most %d can be; not a safetensors file, or incomplete",
               (ull)length, (ull)file->file.size, RT_SAFETENSORS_HEADER);
  if (length == 0 || file->file.map[8] != '{') return bad(file, st, "byte 8: the header does not begin with {");
  if (!(file->texts = malloc(length))) return rt_file_no_memory(&file->file, st);
  parser p = {.file = file, .at = 8, .end = 8 + length, .texts = file->texts, .st = st};
  if (read_entries(&p)) return st->code;
  if (peek_behind_blanks(&p) >= 0) return wrong(&p, "its end");
  if (refuse_duplicates(file, st)) return st->code;
  return place_tensors(file, 8 + length, st);
}

/* ---- open and close ---- */

rt_code rt_safetensors_open(const char *path, rt_safetensors **out, rt_status *st) {
  rt_safetensors *file = calloc(1, sizeof *file);
  *out = NULL;
  if (!file) return rt_fail(st, RT_NO_MEMORY, "no memory left to open a file");
  if (rt_file_open(&file->file, path, "safetensors", st) || read_header(file, st) || rt_file_unchanged(&file->file, st)) {
    rt_safetensors_close(file);
    return st->code;
  }
  *out = file;
  return RT_OK;
}

void rt_safetensors_close(rt_safetensors *file) {
  if (!file) return;
  rt_file_close(&file->file);
  free(file->texts);
  free(file->tensors);
  free(file->fields);
  free(file);
}

rt_code rt_safetensors_supported(const rt_safetensors *file, const rt_safetensors_tensor *tensor, rt_status *st) {
  st->code = RT_OK;
  if (tensor->format != RT_FORMATS) return RT_OK;
  return bad(file, st, "tensor %s is stored as %s, which is not supported; use a model stored as F32, F16 or BF16",
             rt_show(tensor->name).text, tensor->dtype);
}
