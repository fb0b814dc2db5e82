#include "load/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "load/pack.h"

typedef unsigned long long ull;

/* ---- words for errors ---- */

/* Only the path, which is the user's own, may go beyond ASCII. */
static rt_shown show_up_to(rt_text text, unsigned char last) {
  rt_shown s;
  size_t n = 0;
  uint64_t i = 0;
  if (text.length > 100) i = text.length - 97, memcpy(s.text, "...", n = 3);
  for (; i < text.length && n + 5 < sizeof s.text; i++) {
    unsigned char c = (unsigned char)text.bytes[i];
    if (c >= 0x20 && c != 0x7f && c <= last) s.text[n++] = (char)c;
    else n += (size_t)snprintf(s.text + n, 5, "\\x%02x", c);
  }
  s.text[n] = 0;
  return s;
}

rt_shown rt_show(rt_text text) { return show_up_to(text, 0x7e); }
rt_shown rt_show_path(const rt_file *file) { return show_up_to((rt_text){file->path, strlen(file->path)}, 0xff); }

rt_code rt_file_bad(const rt_file *file, rt_status *st, const char *format, ...) {
  char what[360];
  va_list args;
  va_start(args, format);
  vsnprintf(what, sizeof what, format, args);
  va_end(args);
  return rt_fail(st, RT_BAD_FILE, "%s: %s", rt_show_path(file).text, what);
}

rt_code rt_file_no_memory(const rt_file *file, rt_status *st) {
  return rt_fail(st, RT_NO_MEMORY, "%s: no memory left for its header", rt_show_path(file).text);
}

bool rt_grow(void **items, uint64_t used, size_t item) {
  if (used & (used - 1) || used == 1) return true;
  void *more = realloc(*items, (used ? 2 * used : 2) * item);
  if (more) *items = more;
  return more != NULL;
}

static int by_text(const void *a, const void *b) {
  const rt_text *x = a, *y = b;
  if (x->length != y->length) return x->length < y->length ? -1 : 1;
  return x->length ? memcmp(x->bytes, y->bytes, x->length) : 0;
}

const rt_text *rt_find_twin(rt_text *texts, uint64_t n) {
  qsort(texts, n, sizeof *texts, by_text);
  for (uint64_t i = 1; i < n; i++)
    if (by_text(texts + i - 1, texts + i) == 0) return texts + i;
  return NULL;
}

/* ---- open, close, changes ---- */

static rt_code open_error(const rt_file *file, rt_status *st) {
  int error = errno;
  if (error == ENOENT || error == ENOTDIR)
    return rt_fail(st, RT_NOT_FOUND, "%s: no such file; check the path or `pyruntime ls`", rt_show_path(file).text);
  return rt_fail(st, RT_IO, "%s: cannot be opened: %s", rt_show_path(file).text, strerror(error));
}

rt_code rt_file_open(rt_file *file, const char *path, const char *kind, rt_status *st) {
  struct stat stat;
  st->code = RT_OK;
  file->fd = -1;
  if (!(file->path = strdup(path))) return rt_fail(st, RT_NO_MEMORY, "no memory left to open a file");
  file->fd = open(file->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe is refused, not waited for */
  if (file->fd < 0) return open_error(file, st);
  if (fstat(file->fd, &stat)) return open_error(file, st);
  if (S_ISDIR(stat.st_mode)) return rt_file_bad(file, st, "a folder, not a %s file; name the file in it", kind);
  if (!S_ISREG(stat.st_mode)) return rt_file_bad(file, st, "not a regular file");
  file->size = (uint64_t)stat.st_size;
  file->modified = stat.st_mtim;
  if (file->size == 0) return RT_OK;
  void *map = mmap(NULL, file->size, PROT_READ, MAP_SHARED, file->fd, 0);
  if (map == MAP_FAILED)
    return rt_fail(st, RT_IO, "%s: cannot be mapped: %s", rt_show_path(file).text, strerror(errno));
  file->map = map;
  return RT_OK;
}

void rt_file_close(rt_file *file) {
  if (file->map) munmap((void *)file->map, file->size);
  if (file->fd >= 0) close(file->fd);
  free(file->path);
  *file = (rt_file){.fd = -1};
}

rt_code rt_file_unchanged(const rt_file *file, rt_status *st) {
  struct stat stat;
  if (fstat(file->fd, &stat)) return rt_fail(st, RT_IO, "%s: %s", rt_show_path(file).text, strerror(errno));
  if ((uint64_t)stat.st_size == file->size && stat.st_mtim.tv_sec == file->modified.tv_sec &&
      stat.st_mtim.tv_nsec == file->modified.tv_nsec)
    return RT_OK;
  return rt_file_bad(file, st, "changed since it was opened (%llu bytes then, %llu now); load it again", (ull)file->size,
                     (ull)stat.st_size);
}

/* ---- reading ---- */

static bool read_exactly(int fd, uint8_t *to, size_t bytes, uint64_t offset) {
  while (bytes) {
    ssize_t n = pread(fd, to, bytes, (off_t)offset);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    to += n, offset += (uint64_t)n, bytes -= (size_t)n;
  }
  return true;
}

static rt_code unreadable(const rt_file *file, rt_status *st) {
  return rt_fail(st, RT_IO, "%s: its tensors could not be read", rt_show_path(file).text);
}

rt_code rt_file_read(const rt_file *file, uint64_t at, uint64_t bytes, uint8_t *restrict to, rt_status *st) {
  bool whole = read_exactly(file->fd, to, bytes, at);
  if (rt_file_unchanged(file, st)) return st->code;
  return whole ? RT_OK : unreadable(file, st);
}

/* ---- packing ---- */

/* A share of a tensor small enough to stay in cache between reading and packing. */
enum { SHARE_BYTES = 256 * 1024 };

typedef struct share_size {
  uint64_t row_bytes, share_rows, share_bytes, shares;
} share_size;

/* Needs rows and k above 0. */
static share_size share_of(const rt_file_packing *job) {
  share_size s = {.row_bytes = rt_file_bytes(job->format, 1, job->k)};
  s.share_rows = s.row_bytes < SHARE_BYTES / 16 ? SHARE_BYTES / (s.row_bytes * 16) * 16 : 16;
  s.share_bytes = s.row_bytes * (job->rows < s.share_rows ? job->rows : s.share_rows);
  s.shares = (job->rows + s.share_rows - 1) / s.share_rows;
  return s;
}

/* False when the file could not be read. scratch: [share_bytes]. */
static bool pack_share(const rt_file *file, const rt_file_packing *job, const share_size *s, uint64_t share,
                       uint8_t *restrict scratch) {
  uint64_t first = share * s->share_rows, rows = job->rows - first < s->share_rows ? job->rows - first : s->share_rows;
  size_t group_bytes = rt_group_bytes(job->format, job->k);
  uint8_t *to = job->dst + first / 16 * group_bytes;
  if (!read_exactly(file->fd, scratch, rows * s->row_bytes, job->offset + first * s->row_bytes)) return false;
  for (uint64_t g = 0; g * 16 < rows; g++) rt_pack_group(job->format, rows, job->k, scratch, g, to + g * group_bytes);
  return true;
}

/* Refuses what cannot be packed; otherwise counts the shares and finds the largest. */
static rt_code plan_packing(const rt_file *file, const rt_file_packing *jobs, uint64_t n, uint64_t *scratch_bytes,
                            uint64_t *shares, rt_status *st) {
  for (uint64_t j = 0; j < n; j++) {
    size_t need = rt_packed_bytes(jobs[j].format, jobs[j].rows, jobs[j].k);
    if (need == 0 || need != jobs[j].dst_bytes ||
        !rt_file_holds(file, jobs[j].offset, rt_file_bytes(jobs[j].format, jobs[j].rows, jobs[j].k)))
      return rt_fail(st, RT_INVALID, "%s: %llu x %llu at byte %llu pack into %zu bytes, not %zu", rt_show_path(file).text,
                     (ull)jobs[j].rows, (ull)jobs[j].k, (ull)jobs[j].offset, need, jobs[j].dst_bytes);
    share_size s = share_of(&jobs[j]);
    if (s.share_bytes > *scratch_bytes) *scratch_bytes = s.share_bytes;
    *shares += s.shares;
  }
  return RT_OK;
}

rt_code rt_file_pack(const rt_file *file, const rt_file_packing *jobs, uint64_t n, int threads, rt_status *st) {
  uint64_t scratch_bytes = 0, shares = 0;
  int cut = 0, starved = 0;
  st->code = RT_OK;
  if (plan_packing(file, jobs, n, &scratch_bytes, &shares, st) || shares == 0) return st->code;
#pragma omp parallel num_threads(rt_pack_threads(threads, shares))
  {
    uint8_t *scratch = malloc(scratch_bytes);
    for (uint64_t j = 0; j < n; j++) {
      share_size s = share_of(&jobs[j]);
#pragma omp for schedule(dynamic, 1) nowait
      for (uint64_t i = 0; i < s.shares; i++) {
        if (scratch && pack_share(file, &jobs[j], &s, i, scratch)) continue;
#pragma omp atomic write
        *(scratch ? &cut : &starved) = 1;
      }
    }
    free(scratch);
  }
  rt_pack_threads_done();
  if (starved) return rt_fail(st, RT_NO_MEMORY, "%s: no memory left to pack its tensors", rt_show_path(file).text);
  if (rt_file_unchanged(file, st)) return st->code;
  return cut ? unreadable(file, st) : RT_OK;
}
