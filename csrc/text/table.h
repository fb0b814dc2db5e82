/* A hash table from u64 to u64 that is sized once: open addressing, at most half full, multiplied by a secret odd number. */
#ifndef RT_TABLE_H
#define RT_TABLE_H
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#define RT_NONE UINT64_MAX /* no such key; never a key or value itself */

typedef struct rt_entry {
  uint64_t key, value;
} rt_entry;

typedef struct rt_table {
  rt_entry *entry; /* [mask + 1] */
  uint64_t mask, seed;
  int shift;
} rt_table;

/* Room for `most` keys; false when memory is short. */
static inline bool rt_table_init(rt_table *t, uint64_t most, uint64_t seed) {
  int bits = 4;
  while ((1ull << bits) < 2 * most) bits++;
  t->mask = (1ull << bits) - 1;
  t->shift = 64 - bits;
  t->seed = seed | 1;
  t->entry = malloc(sizeof *t->entry << bits);
  for (uint64_t i = 0; t->entry && i <= t->mask; i++) t->entry[i] = (rt_entry){RT_NONE, RT_NONE};
  return t->entry != NULL;
}

/* The entry that holds key, or the free one where it belongs. */
static inline rt_entry *rt_table_at(const rt_table *t, uint64_t key) {
  uint64_t mixed = key * t->seed;
  mixed ^= mixed >> 32;
  uint64_t i = (mixed * t->seed) >> t->shift;
  while (t->entry[i].key != key && t->entry[i].key != RT_NONE) i = (i + 1) & t->mask;
  return &t->entry[i];
}

static inline uint64_t rt_table_get(const rt_table *t, uint64_t key) { return rt_table_at(t, key)->value; }

/* False when key is there already. */
static inline bool rt_table_put(rt_table *t, uint64_t key, uint64_t value) {
  rt_entry *e = rt_table_at(t, key);
  if (e->key == key) return false;
  *e = (rt_entry){key, value};
  return true;
}
#endif
