/* Works of random shape on a pool, many times over; each unit must run once, after all of the phase before. Built by
 * test_pool.py, with and without the thread sanitizer. Plain (not atomic) cells: a race between phases would show. */
#include "base/pool.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { PHASES = 24, UNITS = 300 };

typedef struct job { int32_t units[PHASES], cells[PHASES][UNITS]; int32_t opened, threads; int bad; } job;

static rt_phase open_phase(void *self, int32_t phase) {
  job *j = self;
  j->bad |= phase != j->opened++;
  for (int32_t p = 0; p < phase; p++)
    for (int32_t u = 0; u < j->units[p]; u++) j->bad |= j->cells[p][u] != p + 1;
  return (rt_phase){j->units[phase], 1 + phase % 7};
}

static void run_units(void *self, int32_t phase, int32_t first, int32_t last, int32_t thread) {
  job *j = self;
  if (thread < 0 || thread >= j->threads || first < 0 || last > j->units[phase] || first >= last) abort();
  for (int32_t u = first; u < last; u++) {
    int32_t before = phase && j->units[phase - 1] ? j->cells[phase - 1][u % j->units[phase - 1]] : phase;
    j->cells[phase][u] += before + 1;
  }
}

int main(int argc, char **argv) {
  int threads = atoi(argv[1]), rounds = atoi(argv[3]);
  (void)argc;
  rt_status st = {0};
  rt_pool *pool;
  if (rt_pool_new(threads, atoi(argv[2]) ? RT_POOL_OPENMP : RT_POOL_OWN, &pool, &st) != RT_OK) return puts(st.message), 2;
  unsigned seed = 1;
  for (int r = 0; r < rounds; r++) {
    job *j = calloc(1, sizeof *j);
    if (!j) return 2;
    j->threads = threads;
    for (int p = 0; p < PHASES; p++) j->units[p] = rand_r(&seed) % 4 ? rand_r(&seed) % UNITS : rand_r(&seed) % 2;
    rt_work work = {.self = j, .phases = PHASES, .open = open_phase, .units = run_units};
    if (rt_pool_run(pool, &work, &st) != RT_OK) return puts(st.message), 2;
    int bad = j->bad || j->opened != PHASES;
    for (int p = 0; p < PHASES; p++)
      for (int u = 0; u < UNITS; u++) bad |= j->cells[p][u] != (u < j->units[p] ? p + 1 : 0);
    free(j);
    if (bad) return printf("round %d: a unit was lost, done twice, or done too early\n", r), 1;
    if (r % 64 == 0) usleep(300); /* long enough for waiting threads to fall asleep */
  }
  rt_pool_free(pool);
  return 0;
}
