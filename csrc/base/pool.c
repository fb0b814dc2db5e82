#define _GNU_SOURCE
#include "base/pool.h"

#include <linux/futex.h>
#include <omp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { LINE = 64, SPIN_NS = 200000, YIELD_NS = 20000, PAUSES = 64 };
enum { OPEN = 0, IDLE = -1 }; /* the low half of the pool's word */

struct rt_pool {
  /* generation << 32 | 0, or IDLE. The generation rises with every phase and when the work ends. */
  _Alignas(LINE) _Atomic uint64_t word;
  _Atomic uint32_t events; /* sleepers wait for it to change; it does after every change of generation */
  _Atomic int32_t sleepers, most, stop;
  _Alignas(LINE) _Atomic int32_t unfinished; /* units of the open phase whose work is not reported yet */
  /* Written by whoever opens a phase, read only by holders of its units. */
  _Alignas(LINE) rt_work work;
  int32_t phase, phase_units;
  /* Units left to claim in each lane: generation << 32 | left. */
  struct lane { _Alignas(LINE) _Atomic uint64_t word; } lanes[RT_LANES];
  /* Fixed. */
  _Alignas(LINE) int32_t threads, n_lanes;
  int32_t started; /* own threads beside the caller */
  enum rt_pool_kind kind;
  pid_t owner;
  struct seat { struct rt_pool *pool; pthread_t handle; int32_t thread; } seats[];
};

static inline uint32_t generation_of(uint64_t word) { return (uint32_t)(word >> 32); }
static inline int32_t left_of(uint64_t word) { return (int32_t)(uint32_t)word; }

static inline void pause_cpu(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Where lane `lane` begins among a phase's units. */
static inline int32_t lane_start(const rt_pool *p, int32_t lane, int32_t units) {
  return (int32_t)((int64_t)units * lane / p->n_lanes);
}

/* units: of the phase that opens; 0 and state IDLE when the work ends. */
static void publish(rt_pool *p, int32_t units, int32_t state) {
  uint64_t generation = (uint64_t)(generation_of(atomic_load_explicit(&p->word, memory_order_relaxed)) + 1u) << 32;
  atomic_store_explicit(&p->unfinished, units, memory_order_relaxed);
  for (int32_t i = 0; i < p->n_lanes && units; i++)
    atomic_store_explicit(&p->lanes[i].word, generation | (uint32_t)(lane_start(p, i + 1, units) - lane_start(p, i, units)),
                          memory_order_relaxed);
  atomic_store_explicit(&p->word, generation | (uint32_t)state, memory_order_release);
  atomic_fetch_add(&p->events, 1);
  if (atomic_load(&p->sleepers)) syscall(SYS_futex, &p->events, FUTEX_WAKE_PRIVATE, RT_THREADS_MAX, NULL, NULL, 0);
}

/* Open the next phase that has units. One single unit is done here and now: telling others would take longer. */
static void open_next(rt_pool *p, int32_t thread) {
  rt_work *w = &p->work;
  while (++p->phase < w->phases) {
    rt_phase open = w->open(w->self, p->phase);
    if (open.units > 1) {
      p->phase_units = open.units;
      atomic_store_explicit(&p->most, open.most, memory_order_relaxed);
      publish(p, open.units, OPEN);
      return;
    }
    if (open.units == 1) w->units(w->self, p->phase, 0, 1, thread);
  }
  publish(p, 0, IDLE);
}

/* Take some units of a lane: half of what is left, so that claims are few and the end is even. Returns how many. */
static int32_t claim(rt_pool *p, uint32_t generation, int32_t lane, int32_t *first) {
  uint64_t word = atomic_load_explicit(&p->lanes[lane].word, memory_order_relaxed);
  int32_t left;
  while (generation_of(word) == generation && (left = left_of(word)) > 0) {
    int32_t half = (left + 1) / 2, most = atomic_load_explicit(&p->most, memory_order_relaxed), take = half < most ? half : most;
    if (atomic_compare_exchange_weak_explicit(&p->lanes[lane].word, &word, word - (uint32_t)take, memory_order_acquire,
                                              memory_order_relaxed)) {
      *first = lane_start(p, lane + 1, p->phase_units) - left;
      return take;
    }
  }
  return 0;
}

/* Units held and not reported keep the phase open: what is read while holding some stays as it is. */
static void work_on(rt_pool *p, int32_t thread, uint32_t generation) {
  int32_t first, take, done = 0, own = thread % p->n_lanes;
  for (int32_t i = 0; i < p->n_lanes; i++) {
    int32_t lane = own + i < p->n_lanes ? own + i : own + i - p->n_lanes;
    while ((take = claim(p, generation, lane, &first)) > 0) {
      p->work.units(p->work.self, p->phase, first, first + take, thread);
      done += take;
    }
  }
  if (done && atomic_fetch_sub_explicit(&p->unfinished, done, memory_order_acq_rel) == done) open_next(p, thread);
}

static bool moved_on(rt_pool *p, uint64_t word) {
  return generation_of(atomic_load_explicit(&p->word, memory_order_acquire)) != generation_of(word);
}

/* Until the generation changes: spin, then let others run, then sleep. */
static void wait_on(rt_pool *p, uint64_t word) {
  for (int64_t start = now_ns(), waited = 0; waited < SPIN_NS; waited = now_ns() - start) {
    for (int i = 0; i < PAUSES; i++, pause_cpu())
      if (moved_on(p, word)) return;
    if (waited > YIELD_NS) sched_yield();
  }
  atomic_fetch_add(&p->sleepers, 1);
  uint32_t events = atomic_load(&p->events);
  if (!moved_on(p, word)) syscall(SYS_futex, &p->events, FUTEX_WAIT_PRIVATE, events, NULL, NULL, 0);
  atomic_fetch_sub(&p->sleepers, 1);
}

/* Workers of our own stay until the pool is freed; others until the work ends. */
static void take_part(rt_pool *p, int32_t thread, bool stay) {
  for (;;) {
    uint64_t word = atomic_load_explicit(&p->word, memory_order_acquire);
    bool idle = left_of(word) == IDLE;
    if (stay ? atomic_load_explicit(&p->stop, memory_order_acquire) : idle) return;
    if (!idle) work_on(p, thread, generation_of(word));
    wait_on(p, word);
  }
}

static void *worker(void *arg) {
  struct seat *seat = arg;
  take_part(seat->pool, seat->thread, true);
  return NULL;
}

/* Signals are the caller's business. */
static bool start_threads(rt_pool *p) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int failed = 0;
  while (!failed && p->started < p->threads - 1) {
    struct seat *seat = &p->seats[p->started];
    *seat = (struct seat){.pool = p, .thread = p->started + 1};
    failed = pthread_create(&seat->handle, NULL, worker, seat);
    p->started += !failed;
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  return !failed;
}

rt_code rt_pool_new(int32_t threads, enum rt_pool_kind kind, rt_pool **out, rt_status *st) {
  *out = NULL;
  if (threads < 1 || threads > RT_THREADS_MAX)
    return rt_fail(st, RT_INVALID, "threads is %d; it must be a whole number, 1 to %d", threads, RT_THREADS_MAX);
  if (kind != RT_POOL_OWN && kind != RT_POOL_OPENMP) return rt_fail(st, RT_INVALID, "pool is %d; it must be 0 or 1", (int)kind);
  size_t bytes = (sizeof(rt_pool) + (size_t)threads * sizeof(struct seat) + LINE - 1) / LINE * LINE;
  rt_pool *p = aligned_alloc(LINE, bytes);
  if (!p) return rt_fail(st, RT_NO_MEMORY, "no memory for a pool of %d threads", threads);
  memset(p, 0, bytes);
  atomic_init(&p->word, (uint32_t)IDLE);
  p->threads = threads, p->n_lanes = threads < RT_LANES ? threads : RT_LANES, p->kind = kind, p->owner = getpid();
  if (kind == RT_POOL_OWN && !start_threads(p)) {
    rt_pool_free(p);
    return rt_fail(st, RT_NO_MEMORY, "the system gives no more threads: %d were wanted; ask for fewer", threads);
  }
  *out = p;
  return RT_OK;
}

void rt_pool_free(rt_pool *p) {
  if (!p) return;
  if (p->owner == getpid()) { /* a forked child has the memory but not the threads */
    atomic_store_explicit(&p->stop, 1, memory_order_release);
    publish(p, 0, IDLE);
    for (int32_t i = 0; i < p->started; i++) pthread_join(p->seats[i].handle, NULL);
  }
  free(p);
}

rt_code rt_pool_run(rt_pool *p, const rt_work *work, rt_status *st) {
  if (p->owner != getpid())
    return rt_fail(st, RT_FAILED, "this engine was made in process %d and its threads stayed there; make a new engine after a fork",
                   (int)p->owner);
  p->work = *work;
  p->phase = -1;
  open_next(p, 0);
  if (p->kind == RT_POOL_OWN) {
    take_part(p, 0, false);
  } else {
#pragma omp parallel num_threads(p->threads)
    take_part(p, omp_get_thread_num(), false);
  }
  return RT_OK;
}
