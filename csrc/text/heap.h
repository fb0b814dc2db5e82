/* A min-heap of u64. `work` counts steps. */
#ifndef RT_HEAP_H
#define RT_HEAP_H
#include <stddef.h>
#include <stdint.h>

typedef struct rt_heap {
  uint64_t *key; /* [the most there will be] */
  size_t n;
} rt_heap;

static inline void rt_heap_push(rt_heap *h, uint64_t key, uint64_t *restrict work) {
  size_t i = h->n++;
  for (; i > 0 && h->key[(i - 1) / 2] > key; i = (i - 1) / 2, ++*work) h->key[i] = h->key[(i - 1) / 2];
  h->key[i] = key;
}

static inline uint64_t rt_heap_pop(rt_heap *h, uint64_t *restrict work) {
  const uint64_t least = h->key[0], key = h->key[--h->n];
  size_t i = 0;
  for (size_t child = 1; child < h->n; child = 2 * i + 1, ++*work) {
    if (child + 1 < h->n && h->key[child + 1] < h->key[child]) child++;
    if (h->key[child] >= key) break;
    h->key[i] = h->key[child];
    i = child;
  }
  h->key[i] = key;
  return least;
}
#endif
