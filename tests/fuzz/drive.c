/* A fuzzer that needs no more than gcc: the compiler tells each edge a run takes (-fsanitize-coverage=trace-pc), an input
 * that takes one in a new way, or a new number of times, is kept and mutated further. Targets are libFuzzer's, so clang can
 * drive them too. This file is compiled without the sanitizers' coverage.
 *
 *   drive RUNS SEED CRASH FEW FILE...   mutates the files; what ends the process is written to CRASH, and into the folder
 *                                       FEW, unless it is "-", a few inputs that take every edge the files alone do not
 * The same RUNS, SEED and FILEs give the same inputs. One line of JSON at the end. */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
void __sanitizer_set_death_callback(void (*callback)(void));

/* A broken property ends as any other finding; so does an allocation that only a lie can ask for. */
const char *__asan_default_options(void) { return "handle_abort=1:handle_sigill=1:max_allocation_size_mb=256"; }

enum { EDGES = 1 << 16, MOST_BYTES = 4096, MOST_KEPT = 1 << 14, HANG_SECONDS = 10 };

typedef struct input { uint8_t *bytes; size_t size; } input;

static uint8_t taken[EDGES], seen[EDGES];
static uintptr_t before;
static _Thread_local int is_main; /* other threads' edges are not followed: when they run is chance */
static input kept[MOST_KEPT];
static size_t n_kept;
static uint8_t now[MOST_BYTES];
static size_t now_size;
static const char *crash_path;
static volatile uint64_t run, run_of_last_look;
static volatile int looks;
static uint64_t state;

void __sanitizer_cov_trace_pc(void) {
  if (!is_main) return;
  uintptr_t here = (uintptr_t)__builtin_return_address(0) * 0x9e3779b97f4a7c15ull >> 40;
  taken[(here ^ before) % EDGES]++;
  before = here >> 1;
}

static uint64_t chance(uint64_t below) { /* splitmix64 */
  uint64_t z = state += 0x9e3779b97f4a7c15ull;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ z >> 27) * 0x94d049bb133111ebull;
  return (z ^ z >> 31) % below;
}

/* ---- what ends the process ---- */

static void keep_crash(void) {
  FILE *file = fopen(crash_path, "wb");
  if (!file) return;
  fwrite(now, 1, now_size, file);
  fclose(file);
}

static void look(int signal) {
  (void)signal;
  looks = run == run_of_last_look ? looks + 1 : 0;
  run_of_last_look = run;
  if (looks < HANG_SECONDS) return;
  static const char text[] = "a run takes more than 10 seconds of the processor\n";
  keep_crash();
  (void)!write(2, text, sizeof text - 1);
  _exit(3);
}

/* ---- one run ---- */

/* A count as its order of magnitude, one bit each. */
static uint8_t order_of(uint8_t n) { return n < 4 ? (uint8_t)(1 << n >> 1) : n < 8 ? 8 : n < 16 ? 16 : n < 32 ? 32 : n < 128 ? 64 : 128; }

static int try_now(void) {
  uint8_t *copy = malloc(now_size ? now_size : 1); /* of its own, so that a byte too far is seen */
  if (!copy) abort();
  memcpy(copy, now, now_size);
  memset(taken, 0, sizeof taken);
  before = 0;
  run++;
  LLVMFuzzerTestOneInput(copy, now_size);
  free(copy);
  int fresh = 0;
  for (int i = 0; i < EDGES; i += 8) {
    uint64_t eight;
    memcpy(&eight, taken + i, 8);
    for (int j = i; eight && j < i + 8; j++) {
      uint8_t order = order_of(taken[j]);
      fresh |= order & ~seen[j];
      seen[j] |= order;
    }
  }
  return fresh;
}

static void keep(void) {
  if (n_kept == MOST_KEPT) return;
  uint8_t *bytes = malloc(now_size ? now_size : 1);
  if (!bytes) abort();
  memcpy(bytes, now, now_size);
  kept[n_kept++] = (input){bytes, now_size};
}

/* ---- mutations ---- */

static uint64_t striking(void) {
  uint64_t near = 1ull << chance(64);
  switch (chance(4)) {
  case 0: return near + chance(3) - 1;
  case 1: return ~near + chance(3);
  case 2: return chance(40);
  default: return (uint64_t)0 - chance(40);
  }
}

static void overwrite(void) {
  size_t size = (size_t)1 << chance(4), at;
  if (now_size < size) return;
  at = chance(now_size - size + 1);
  uint64_t value = 0;
  memcpy(&value, now + at, size);
  value = chance(3) ? striking() : value + chance(17) - 8;
  memcpy(now + at, &value, size);
}

/* `n` bytes of `from` to `at`, over what is there or before it. */
static void bring(const uint8_t *from, size_t n, size_t at, int over) {
  uint8_t piece[MOST_BYTES];
  if (n > MOST_BYTES - at) n = MOST_BYTES - at;
  memcpy(piece, from, n);
  if (!over) {
    size_t behind = now_size - at;
    if (behind > MOST_BYTES - at - n) behind = MOST_BYTES - at - n;
    memmove(now + at + n, now + at, behind);
    now_size = at + n + behind;
  } else if (now_size < at + n) {
    now_size = at + n;
  }
  memcpy(now + at, piece, n);
}

static void remove_some(void) {
  if (now_size < 2) return;
  size_t at = chance(now_size), n = 1 + chance(chance(8) ? 16 : now_size);
  if (n > now_size - at) n = now_size - at;
  memmove(now + at, now + at + n, now_size - at - n);
  now_size -= n;
}

static void mutate(void) {
  const input *other = &kept[chance(n_kept)];
  switch (chance(8)) {
  case 0: if (now_size) now[chance(now_size)] ^= (uint8_t)(1u << chance(8)); break;
  case 1: if (now_size) now[chance(now_size)] = (uint8_t)chance(256); break;
  case 2: case 3: overwrite(); break;
  case 4: remove_some(); break;
  case 5: if (chance(4) == 0) now_size = chance(now_size + 1); break;
  default:
    if (other->size) {
      size_t from = chance(other->size), n = 1 + chance(chance(4) ? 32 : other->size - from);
      bring(other->bytes + from, n < other->size - from ? n : other->size - from, chance(now_size + 1), chance(2) != 0);
    }
  }
}

static void read_seed(const char *path) {
  FILE *file = fopen(path, "rb");
  if (!file) perror(path), exit(2);
  now_size = fread(now, 1, sizeof now, file);
  fclose(file);
  try_now();
  keep();
}

static int by_size(const void *a, const void *b) {
  const input *x = a, *y = b;
  return (x->size > y->size) - (x->size < y->size);
}

/* Runs a kept input again: does it take an edge that none before it did? */
static int covers_more(const input *in) {
  static uint8_t covered[EDGES];
  int more = 0;
  memcpy(now, in->bytes, now_size = in->size);
  try_now();
  for (int i = 0; i < EDGES; i++) more |= taken[i] && !covered[i], covered[i] |= taken[i] != 0;
  return more;
}

/* The smallest first, named by what they hold. */
static void write_few(const char *folder, size_t n_files) {
  char path[4096];
  for (size_t n = 0; n < n_files; n++) covers_more(&kept[n]);
  qsort(kept + n_files, n_kept - n_files, sizeof *kept, by_size);
  for (size_t n = n_files; n < n_kept; n++) {
    if (!covers_more(&kept[n])) continue;
    uint64_t name = 0xcbf29ce484222325ull;
    for (size_t i = 0; i < now_size; i++) name = (name ^ now[i]) * 0x100000001b3ull;
    snprintf(path, sizeof path, "%s/%016llx", folder, (unsigned long long)name);
    FILE *file = fopen(path, "wb");
    if (!file) perror(path), exit(2);
    fwrite(now, 1, now_size, file);
    fclose(file);
  }
}

int main(int argc, char **argv) {
  if (argc < 6) return fprintf(stderr, "drive RUNS SEED CRASH FEW FILE...\n"), 2;
  is_main = 1;
  uint64_t runs = strtoull(argv[1], NULL, 10);
  state = strtoull(argv[2], NULL, 10);
  crash_path = argv[3];
  __sanitizer_set_death_callback(keep_crash);
  signal(SIGPROF, look);
  setitimer(ITIMER_PROF, &(struct itimerval){{1, 0}, {1, 0}}, NULL);
  struct timespec start, end;
  clock_gettime(CLOCK_MONOTONIC, &start);
  for (int i = 5; i < argc; i++) read_seed(argv[i]);
  for (run = 0; run < runs;) {
    const input *parent = &kept[chance(4) ? chance(n_kept) : n_kept - 1 - chance(n_kept < 64 ? n_kept : 64)];
    memcpy(now, parent->bytes, now_size = parent->size);
    for (uint64_t i = 1 + chance(1ull << chance(5)); i; i--) mutate();
    if (try_now()) keep();
  }
  clock_gettime(CLOCK_MONOTONIC, &end);
  int edges = 0;
  for (int i = 0; i < EDGES; i++) edges += seen[i] != 0;
  printf("{\"runs\": %llu, \"seconds\": %.1f, \"edges\": %d, \"kept\": %zu}\n", (unsigned long long)run,
         (double)(end.tv_sec - start.tv_sec) + (double)(end.tv_nsec - start.tv_nsec) * 1e-9, edges, n_kept);
  if (strcmp(argv[4], "-")) write_few(argv[4], (size_t)argc - 5);
  return 0;
}
