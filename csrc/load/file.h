/* A model file as both readers see it: opened, mapped read-only, asked whether it is still what it was, and named in errors.
 *
 * A file that changes later: rt_file_unchanged compares size and time; rt_file_read and packing use pread, where a cut file is
 * an error and not a SIGBUS. Whoever reads through the mapping asks rt_file_unchanged first; a file that is cut between the
 * question and the read still ends the process, as with every mapping. */
#ifndef RT_FILE_H
#define RT_FILE_H
#include <stdbool.h>
#include <time.h>

#include "base/status.h"
#include "quant/formats.h"

typedef struct rt_text {
  const char *bytes; /* not ended by a zero */
  uint64_t length;
} rt_text;

typedef struct rt_file {
  char *path;
  int fd;
  const uint8_t *map; /* [size] */
  uint64_t size;
  struct timespec modified;
} rt_file;

/* *file is zero before, and closed by rt_file_close whatever this gives. kind: "GGUF" */
rt_code rt_file_open(rt_file *file, const char *path, const char *kind, rt_status *st);
void rt_file_close(rt_file *file);
rt_code rt_file_unchanged(const rt_file *file, rt_status *st);

static inline bool rt_file_holds(const rt_file *file, uint64_t at, uint64_t bytes) {
  return at <= file->size && bytes <= file->size - at;
}

/* Bytes [at, at + bytes) to `to`, with pread: the mapping stays untouched, so its pages take no memory here. */
rt_code rt_file_read(const rt_file *file, uint64_t at, uint64_t bytes, uint8_t *restrict to, rt_status *st);

/* Matrices [rows][k] of the file into R16, in parallel across all of them. */
typedef struct rt_file_packing {
  rt_format format;
  uint64_t rows, k, offset;
  uint8_t *dst;     /* [dst_bytes], rt_packed_bytes of its format and shape */
  size_t dst_bytes;
} rt_file_packing;

rt_code rt_file_pack(const rt_file *file, const rt_file_packing *jobs /* [n] */, uint64_t n, int threads, rt_status *st);

/* ---- words for errors ---- */

typedef struct rt_shown {
  char text[128];
} rt_shown;

/* Bytes as one printable line; a long one keeps its end. */
rt_shown rt_show(rt_text text);
rt_shown rt_show_path(const rt_file *file);

/* RT_BAD_FILE: "path: what". */
__attribute__((format(printf, 3, 4))) rt_code rt_file_bad(const rt_file *file, rt_status *st, const char *format, ...);

/* RT_NO_MEMORY, for the header of this file. */
rt_code rt_file_no_memory(const rt_file *file, rt_status *st);

/* Room for one more in an array that grows with what has been read, not with what a file announces. */
bool rt_grow(void **items, uint64_t used, size_t item);

/* The first of two equal texts, NULL when all differ. texts: [n], sorted in place. */
const rt_text *rt_find_twin(rt_text *texts, uint64_t n);
#endif
