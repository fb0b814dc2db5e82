/* The longest of a set of byte strings at a place: a trie whose edges are keyed (node << 8 | byte). Node 0 is the root. */
#ifndef RT_TRIE_H
#define RT_TRIE_H
#include "text/table.h"

#define RT_NO_TOKEN (-1)

typedef struct rt_trie {
  rt_table edges;
  int32_t *token; /* [n_nodes] the token that ends at a node, or RT_NO_TOKEN */
  uint32_t n_nodes;
  bool first[256]; /* the bytes a string can begin with */
} rt_trie;

/* Room for strings of `most` bytes in all; false when memory is short. */
static inline bool rt_trie_init(rt_trie *t, uint64_t most, uint64_t seed) {
  t->token = malloc((most + 1) * sizeof *t->token);
  if (!t->token || !rt_table_init(&t->edges, most + 1, seed)) return false;
  t->token[t->n_nodes++] = RT_NO_TOKEN;
  return true;
}

static inline void rt_trie_free(rt_trie *t) {
  free(t->edges.entry);
  free(t->token);
}

/* Adds bytes[0..n) as `token`; the token that has the same bytes and is there already, or RT_NO_TOKEN. */
static inline int32_t rt_trie_add(rt_trie *t, const uint8_t *restrict bytes, size_t n, int32_t token) {
  uint64_t node = 0;
  for (size_t i = 0; i < n; i++) {
    rt_entry *e = rt_table_at(&t->edges, node << 8 | bytes[i]);
    if (e->value == RT_NONE) {
      *e = (rt_entry){node << 8 | bytes[i], t->n_nodes};
      t->token[t->n_nodes++] = RT_NO_TOKEN;
    }
    node = e->value;
  }
  if (node == 0) return RT_NO_TOKEN;
  if (t->token[node] != RT_NO_TOKEN) return t->token[node];
  t->token[node] = token;
  t->first[bytes[0]] = true;
  return RT_NO_TOKEN;
}

/* The longest string at text[at], or RT_NO_TOKEN; *end where it ends, *work the steps taken. text: [n] */
static inline int32_t rt_trie_longest(const rt_trie *t, const uint8_t *restrict text, size_t at, size_t n, size_t *restrict end,
                                      uint64_t *restrict work) {
  int32_t found = RT_NO_TOKEN;
  uint64_t node = 0;
  if (!t->first[text[at]]) return found;
  while (at < n && (node = rt_table_get(&t->edges, node << 8 | text[at])) != RT_NONE) {
    at++;
    ++*work;
    if (t->token[node] == RT_NO_TOKEN) continue;
    found = t->token[node];
    *end = at;
  }
  return found;
}
#endif
