/* Hash tables that are sized once: open addressing, at most half full, laid out by a secret number so that no file can make
 * its entries meet. */
#ifndef RT_TABLE_H
#define RT_TABLE_H
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { RT_AHEAD = 16 }; /* tables are larger than a cache: so many places are asked for before the first is looked at */

#define RT_NONE UINT64_MAX /* no such key; never a key or value itself */

/* From u64 to u64. */
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

static inline uint64_t rt_table_home(const rt_table *t, uint64_t key) {
  uint64_t mixed = key * t->seed;
  mixed ^= mixed >> 32;
  return (mixed * t->seed) >> t->shift;
}

static inline void rt_table_fetch(const rt_table *t, uint64_t key) { __builtin_prefetch(&t->entry[rt_table_home(t, key)], 1); }

/* The entry that holds key, or the free one where it belongs. */
static inline rt_entry *rt_table_at(const rt_table *t, uint64_t key) {
  uint64_t i = rt_table_home(t, key);
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

/* A set of byte strings that have numbers, sized once: the strings stand in bytes[offset[id]..offset[id + 1]). */
typedef struct rt_names {
  const uint8_t *bytes;
  const uint32_t *offset;
  struct {
    uint32_t tag, id; /* tag: the hash's upper half */
  } *slot;            /* [mask + 1] */
  uint64_t mask, seed;
} rt_names;

#define RT_NO_NAME UINT32_MAX

/* Room for `most` strings; false when memory is short. bytes and offset must live as long. */
static inline bool rt_names_init(rt_names *t, const uint8_t *bytes, const uint32_t *offset, uint64_t most, uint64_t seed) {
  uint64_t room = 16;
  while (room < 2 * most) room *= 2;
  *t = (rt_names){bytes, offset, malloc(room * sizeof *t->slot), room - 1, seed | 1};
  for (uint64_t i = 0; t->slot && i < room; i++) t->slot[i].id = RT_NO_NAME;
  return t->slot != NULL;
}

/* The last bytes of a string, 8 or all of them: some twice, which n tells apart. */
static inline uint64_t rt_last_bytes(const uint8_t *restrict bytes, size_t n) {
  uint64_t last = 0;
  uint32_t front, back;
  if (n >= 8) {
    memcpy(&last, bytes + n - 8, 8);
  } else if (n >= 4) {
    memcpy(&front, bytes, 4);
    memcpy(&back, bytes + n - 4, 4);
    last = (uint64_t)back << 32 | front;
  } else if (n) {
    last = (uint64_t)bytes[n - 1] << 16 | (uint64_t)bytes[n / 2] << 8 | bytes[0];
  }
  return last;
}

static inline uint64_t rt_fold(uint64_t a, uint64_t b) {
  const unsigned __int128 product = (unsigned __int128)a * b;
  return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline uint64_t rt_hash(uint64_t seed, const uint8_t *restrict bytes, size_t n) {
  uint64_t hash = seed ^ n, part;
  for (size_t i = 0; i + 8 < n; i += 8) {
    memcpy(&part, bytes + i, 8);
    hash = rt_fold(part ^ hash, seed);
  }
  return rt_fold(rt_last_bytes(bytes, n) ^ hash, seed);
}

/* The slot of bytes[0..n): its own, or the free one where it belongs. */
static inline uint64_t rt_names_slot(const rt_names *t, uint64_t hash, const uint8_t *restrict bytes, size_t n) {
  uint64_t i = hash & t->mask;
  for (;; i = (i + 1) & t->mask) {
    const uint32_t id = t->slot[i].id;
    if (id == RT_NO_NAME) return i;
    if (t->slot[i].tag == hash >> 32 && t->offset[id + 1] - t->offset[id] == n && !memcmp(t->bytes + t->offset[id], bytes, n))
      return i;
  }
}

/* The string's number, or RT_NO_NAME. hash: rt_hash of it. */
static inline uint32_t rt_names_find_hashed(const rt_names *t, uint64_t hash, const uint8_t *restrict bytes, size_t n) {
  return t->slot[rt_names_slot(t, hash, bytes, n)].id;
}

static inline uint32_t rt_names_find(const rt_names *t, const uint8_t *restrict bytes, size_t n) {
  return t->slot[rt_names_slot(t, rt_hash(t->seed, bytes, n), bytes, n)].id;
}

static inline void rt_names_fetch(const rt_names *t, uint64_t hash) { __builtin_prefetch(&t->slot[hash & t->mask], 1); }

/* Adds string `id` of `count`; the number of one that is the same and there already, or RT_NO_NAME. Whoever adds one after another
 * finds the places in a cache: that of the string RT_AHEAD behind it is fetched. */
static inline uint32_t rt_names_add(rt_names *t, uint32_t id, uint32_t count) {
  const uint8_t *name = t->bytes + t->offset[id];
  const size_t n = t->offset[id + 1] - t->offset[id];
  if (id + RT_AHEAD < count) {
    const uint32_t *ahead = t->offset + id + RT_AHEAD;
    rt_names_fetch(t, rt_hash(t->seed, t->bytes + ahead[0], ahead[1] - ahead[0]));
  }
  const uint64_t hash = rt_hash(t->seed, name, n), i = rt_names_slot(t, hash, name, n);
  const uint32_t same = t->slot[i].id;
  if (same != RT_NO_NAME) return same;
  t->slot[i].tag = (uint32_t)(hash >> 32);
  t->slot[i].id = id;
  return RT_NO_NAME;
}
#endif
