/* Byte-pair merging of one word's symbols by a table of pairs: again and again the leftmost pair of the lowest rank. */
#ifndef RT_MERGE_H
#define RT_MERGE_H
#include "text/heap.h"
#include "text/table.h"

enum { RT_SHORT_WORD = 48 }; /* symbols up to which scanning beats a heap */

static inline uint64_t rt_pair_key(int32_t left, int32_t right) { return (uint64_t)left << 32 | (uint32_t)right; }

/* What a pair merges into: rank << 32 | token, or RT_NONE. pairs: from rt_pair_key. */
static inline uint64_t rt_merge_of(const rt_table *pairs, int32_t left, int32_t right, uint64_t *restrict work) {
  ++*work;
  return rt_table_get(pairs, rt_pair_key(left, right));
}

/* Merges id[0..n), n <= RT_SHORT_WORD, in place; returns how many are left. stop: [n] where in the text each ends. */
static inline size_t rt_merge_short(const rt_table *pairs, int32_t *restrict id, uint32_t *restrict stop, size_t n,
                                    uint64_t *restrict work) {
  uint64_t merge[RT_SHORT_WORD]; /* of the pair that begins here */
  for (size_t i = 0; i + 1 < n; i++) merge[i] = rt_merge_of(pairs, id[i], id[i + 1], work);
  while (n > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < n; i++) best = merge[i] >> 32 < merge[best] >> 32 ? i : best;
    if (merge[best] == RT_NONE) break;
    id[best] = (int32_t)(uint32_t)merge[best];
    stop[best] = stop[best + 1];
    n--;
    for (size_t i = best + 1; i < n; i++) {
      id[i] = id[i + 1];
      stop[i] = stop[i + 1];
      merge[i] = merge[i + 1];
    }
    if (best > 0) merge[best - 1] = rt_merge_of(pairs, id[best - 1], id[best], work);
    if (best + 1 < n) merge[best] = rt_merge_of(pairs, id[best], id[best + 1], work);
    *work += n;
  }
  return n;
}

/* The symbols of a long word, linked in order. All arrays have one entry per symbol. */
typedef struct rt_chain {
  uint64_t *merge;        /* of the pair that begins here, or RT_NONE */
  int32_t *id;            /* -1 once merged into the symbol before */
  uint32_t *stop;         /* where in the text the symbol ends */
  int32_t *next, *before; /* or -1 */
  rt_heap heap;           /* of rank << 32 | place */
} rt_chain;

/* A chain of n symbols in *memory, which grows where it has to: [*room] bytes; false when memory is short. */
static inline bool rt_chain_room(rt_chain *restrict c, size_t n, void **restrict memory, size_t *restrict room) {
  const size_t bytes = n * (3 * sizeof(uint64_t) + 4 * sizeof(int32_t));
  if (bytes > *room) {
    free(*memory);
    *memory = malloc(bytes);
    *room = *memory ? bytes : 0;
  }
  if (!*memory) return false;
  c->heap = (rt_heap){*memory, 0};
  c->merge = c->heap.key + 2 * n;
  c->id = (int32_t *)(c->merge + n);
  c->stop = (uint32_t *)(c->id + n);
  c->next = c->id + 2 * n;
  c->before = c->id + 3 * n;
  return true;
}

static inline void rt_chain_renew(rt_chain *restrict c, const rt_table *pairs, int32_t i, uint64_t *restrict work) {
  c->merge[i] = c->next[i] < 0 ? RT_NONE : rt_merge_of(pairs, c->id[i], c->id[c->next[i]], work);
  if (c->merge[i] != RT_NONE) rt_heap_push(&c->heap, (c->merge[i] >> 32 << 32) | (uint32_t)i, work);
}

/* The same as rt_merge_short for any length: merges c->id[0..n) and c->stop in place. A heap entry counts only while the pair
 * at its place still has its rank: a merge takes one entry out and puts at most two in, so 2n entries suffice. */
static inline size_t rt_merge_long(rt_chain *restrict c, const rt_table *pairs, size_t n, uint64_t *restrict work) {
  if (n == 0) return 0;
  for (size_t i = 0; i < n; i++) {
    c->before[i] = (int32_t)i - 1;
    c->next[i] = i + 1 < n ? (int32_t)i + 1 : -1;
  }
  for (size_t i = 0; i < n; i++) rt_chain_renew(c, pairs, (int32_t)i, work);
  while (c->heap.n > 0) {
    const uint64_t key = rt_heap_pop(&c->heap, work);
    const int32_t i = (int32_t)(uint32_t)key;
    if (c->id[i] < 0 || c->merge[i] == RT_NONE || c->merge[i] >> 32 != key >> 32) continue;
    const int32_t gone = c->next[i];
    c->id[i] = (int32_t)(uint32_t)c->merge[i];
    c->stop[i] = c->stop[gone];
    c->next[i] = c->next[gone];
    c->id[gone] = -1;
    if (c->next[i] >= 0) c->before[c->next[i]] = i;
    rt_chain_renew(c, pairs, i, work);
    if (c->before[i] >= 0) rt_chain_renew(c, pairs, c->before[i], work);
  }
  size_t left = 0;
  for (int32_t i = 0; i >= 0; i = c->next[i], left++) {
    c->id[left] = c->id[i];
    c->stop[left] = c->stop[i];
  }
  return left;
}
#endif
