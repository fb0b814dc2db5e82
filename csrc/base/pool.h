/* Threads that share one step's work.
 *
 * A work is phases in order, each a number of units; a phase begins when every unit of the one before is done. A phase's
 * units lie in lanes, one a thread (at most RT_LANES): a thread claims neighbours from its own lane, so that it reads memory
 * as one stream, then helps with the others'. The word a claim is taken from carries the phase's generation, so a late claim
 * fails and touches nothing: work, not threads, ends a phase, and a thread that the system has put aside holds up no one
 * unless it holds units. Whoever finishes the last unit opens the next phase; there is no barrier. The caller takes part.
 * Waiting threads spin about 200 us, which covers what stands between two steps, then sleep.
 *
 * How many units a claim takes may depend on the number of threads; what a unit computes must not. */
#ifndef RT_POOL_H
#define RT_POOL_H
#include "base/status.h"
#include <stdint.h>

enum rt_pool_kind { RT_POOL_OWN, RT_POOL_OPENMP };
enum { RT_THREADS_MAX = 1024, RT_LANES = 8 };

typedef struct rt_phase { int32_t units, most; } rt_phase; /* most: units one claim may take, at least 1 */

typedef struct rt_work {
  void *self;
  int32_t phases;
  /* Called once when a phase opens, by one thread, with everything before it done. 0 units skips the phase. */
  rt_phase (*open)(void *self, int32_t phase);
  /* Units [first, last) of a phase, on thread `thread` of the pool. */
  void (*units)(void *self, int32_t phase, int32_t first, int32_t last, int32_t thread);
} rt_work;

typedef struct rt_pool rt_pool;

rt_code rt_pool_new(int32_t threads, enum rt_pool_kind kind, rt_pool **out, rt_status *st);
void rt_pool_free(rt_pool *pool);
/* Returns when every phase is done. One caller at a time; RT_FAILED in a forked child, where the threads are not. */
rt_code rt_pool_run(rt_pool *pool, const rt_work *work, rt_status *st);
#endif
