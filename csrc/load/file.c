#include "load/file.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
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

enum {
  SHARE_BYTES = 256 * 1024, /* of a file: small enough to stay in cache between reading and packing */
  PAGE_BITS = 21            /* of a page where packed weights lie (base/region.h) */
};

/* Rows of a job that are read at once: `rows` from `first` on, in file order `bytes`. */
typedef struct share {
  const rt_file_packing *job;
  uint64_t first, rows, bytes;
  uint8_t *dst;
} share;

static uint64_t share_rows(const rt_file_packing *job) { /* whole groups */
  uint64_t row_bytes = rt_file_bytes(job->format, 1, job->k);
  return row_bytes < SHARE_BYTES / 16 ? SHARE_BYTES / (row_bytes * 16) * 16 : 16;
}

static bool pack_share(const rt_file *file, const share *s, uint8_t *restrict scratch) { /* false: it could not be read */
  const rt_file_packing *job = s->job;
  size_t group_bytes = rt_group_bytes(job->format, job->k);
  if (!read_exactly(file->fd, scratch, s->bytes, job->offset + s->first * rt_file_bytes(job->format, 1, job->k))) return false;
  for (uint64_t g = 0; g * 16 < s->rows; g++) rt_pack_group(job->format, s->rows, job->k, scratch, g, s->dst + g * group_bytes);
  return true;
}

/* Refuses what cannot be packed; otherwise counts the shares. */
static rt_code count_shares(const rt_file *file, const rt_file_packing *jobs, uint64_t n, uint64_t *shares, rt_status *st) {
  for (uint64_t j = 0; j < n; j++) {
    size_t need = rt_packed_bytes(jobs[j].format, jobs[j].rows, jobs[j].k);
    if (need == 0 || need != jobs[j].dst_bytes ||
        !rt_file_holds(file, jobs[j].offset, rt_file_bytes(jobs[j].format, jobs[j].rows, jobs[j].k)))
      return rt_fail(st, RT_INVALID, "%s: %llu x %llu at byte %llu pack into %zu bytes, not %zu", rt_show_path(file).text,
                     (ull)jobs[j].rows, (ull)jobs[j].k, (ull)jobs[j].offset, need, jobs[j].dst_bytes);
    uint64_t rows = share_rows(&jobs[j]);
    *shares += jobs[j].rows / rows + (jobs[j].rows % rows != 0);
  }
  return RT_OK;
}

/* shares: [counted], in the jobs' order; a run of them begins at starts[run] and all of it in one page. The largest's bytes. */
static uint64_t list_shares(const rt_file_packing *jobs, uint64_t n, share *shares, uint64_t *starts, uint64_t *runs) {
  uint64_t at = 0, most = 0;
  for (uint64_t j = 0; j < n; j++) {
    uint64_t rows = share_rows(&jobs[j]);
    for (uint64_t first = 0; first < jobs[j].rows; first += rows) {
      share s = {.job = &jobs[j], .first = first, .rows = jobs[j].rows - first < rows ? jobs[j].rows - first : rows};
      s.bytes = rt_file_bytes(jobs[j].format, s.rows, jobs[j].k);
      s.dst = jobs[j].dst + first / 16 * rt_group_bytes(jobs[j].format, jobs[j].k);
      if (s.bytes > most) most = s.bytes;
      bool begins = at == 0 || (uintptr_t)s.dst >> PAGE_BITS != (uintptr_t)shares[starts[*runs - 1]].dst >> PAGE_BITS;
      if (begins) starts[(*runs)++] = at;
      shares[at++] = s;
    }
  }
  starts[*runs] = at;
  return most;
}

/* What the threads of one call share. A run is one thread's: two that touched a new page at once would each have the system
 * clear one, and one be thrown away. */
typedef struct packing {
  const rt_file *file;
  const share *shares;
  const uint64_t *starts;
  uint64_t runs, most;
  atomic_uint_fast64_t next; /* run that nobody has claimed */
  atomic_bool cut, starved;
} packing;

static void *pack_runs(void *of) {
  packing *p = of;
  uint8_t *scratch = malloc(p->most);
  if (!scratch) atomic_store(&p->starved, true); /* others go on, the call fails */
  for (uint64_t run; scratch && (run = atomic_fetch_add(&p->next, 1)) < p->runs;)
    for (uint64_t i = p->starts[run]; i < p->starts[run + 1]; i++)
      if (!pack_share(p->file, &p->shares[i], scratch)) atomic_store(&p->cut, true);
  free(scratch);
  return NULL;
}

/* Plain threads: who has nothing left to pack sleeps, where OpenMP's would spin while others, such as the one that makes the
 * tokenizer, could run. One that cannot be made is one fewer. */
static void pack_with(packing *p, int threads) {
  enum { MOST = 1024 };
  pthread_t others[MOST];
  sigset_t all, before;
  int made = 0;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are the caller's */
  while (made + 1 < threads && made < MOST && pthread_create(&others[made], NULL, pack_runs, p) == 0) made++;
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  pack_runs(p);
  while (made) pthread_join(others[--made], NULL);
}

rt_code rt_file_pack(const rt_file *file, const rt_file_packing *jobs, uint64_t n, int threads, rt_status *st) {
  uint64_t count = 0;
  packing p = {.file = file};
  st->code = RT_OK;
  if (count_shares(file, jobs, n, &count, st) || count == 0) return st->code;
  share *shares = calloc(count, sizeof *shares);
  uint64_t *starts = calloc(count + 1, sizeof *starts);
  if (shares && starts) {
    p.shares = shares, p.starts = starts;
    p.most = list_shares(jobs, n, shares, starts, &p.runs);
    pack_with(&p, rt_pack_threads(threads, p.runs));
  }
  free(shares);
  free(starts);
  if (p.starved || p.runs == 0) return rt_fail(st, RT_NO_MEMORY, "%s: no memory left to pack its tensors", rt_show_path(file).text);
  if (rt_file_unchanged(file, st)) return st->code;
  return p.cut ? unreadable(file, st) : RT_OK;
}
