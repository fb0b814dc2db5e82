#include "text/vocab.h"

#include <string.h>

#include "text/merge.h"

enum { SPACE_BYTES = 3 };
static const uint8_t SPACE[SPACE_BYTES] = {0xE2, 0x96, 0x81}; /* U+2581 */

rt_code rt_no_memory(rt_status *st) { return rt_fail(st, RT_NO_MEMORY, "tokenizer: not enough memory for its tables"); }

rt_code rt_check_offsets(const char *what, const uint32_t *restrict offset, uint32_t n, rt_status *restrict st) {
  if (offset[0] != 0) return rt_fail(st, RT_BAD_FILE, "tokenizer: the first %s begins at byte %u", what, offset[0]);
  for (uint32_t i = 0; i < n; i++)
    if (offset[i] > offset[i + 1]) return rt_fail(st, RT_BAD_FILE, "tokenizer: %s %u ends before it begins", what, i);
  return RT_OK;
}

static rt_code check(const rt_listed *restrict s, rt_status *restrict st) {
  if (s->n_tokens == 0 || s->n_tokens > RT_MAX_TOKENS)
    return rt_fail(st, RT_BAD_FILE, "tokenizer: %u tokens; the vocabulary must have 1 to %d", s->n_tokens, RT_MAX_TOKENS);
  for (uint32_t id = 0; id < s->n_tokens; id++)
    if (s->kind[id] >= RT_TOKEN_KINDS) return rt_fail(st, RT_BAD_FILE, "tokenizer: token %u is of kind %u", id, s->kind[id]);
  return rt_check_offsets("token", s->offset, s->n_tokens, st);
}

/* text: [n] with every U+2581 as a space; returns how many bytes out: [n] got. */
static size_t with_spaces(const uint8_t *restrict text, size_t n, uint8_t *restrict out) {
  size_t count = 0;
  for (size_t at = 0; at < n;) {
    const bool space = text[at] == SPACE[0] && n - at >= SPACE_BYTES && !memcmp(text + at, SPACE, SPACE_BYTES);
    out[count++] = space ? ' ' : text[at];
    at += space ? SPACE_BYTES : 1;
  }
  return count;
}

static int hex(uint8_t c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1; }

/* The byte that "<0xHH>" names, or -1. */
static int named_byte(const uint8_t *restrict text, size_t n) {
  if (n != 6 || memcmp(text, "<0x", 3) || text[5] != '>' || hex(text[3]) < 0 || hex(text[4]) < 0) return -1;
  return hex(text[3]) << 4 | hex(text[4]);
}

rt_code rt_vocab_copy(rt_vocab *restrict v, const rt_listed *restrict s, rt_status *restrict st) {
  if (check(s, st)) return st->code;
  const size_t n = s->n_tokens;
  v->bytes = malloc((size_t)s->offset[n] + 1);
  v->offset = malloc((n + 1) * sizeof *v->offset);
  v->kind = malloc(n);
  if (!v->bytes || !v->offset || !v->kind) return rt_no_memory(st);
  v->n_tokens = s->n_tokens;
  memset(v->byte_token, 0xFF, sizeof v->byte_token);
  memcpy(v->kind, s->kind, n);
  uint32_t at = 0;
  for (uint32_t id = 0; id < n; id++) {
    const uint8_t *text = s->text + s->offset[id];
    const uint32_t length = s->offset[id + 1] - s->offset[id];
    v->offset[id] = at;
    if (s->kind[id] == RT_TOKEN_BYTE) {
      const int byte = named_byte(text, length);
      if (byte < 0) return rt_fail(st, RT_BAD_FILE, "tokenizer: byte token %u is not written <0xHH>", id);
      if (v->byte_token[byte] == RT_NO_TOKEN) v->byte_token[byte] = (int32_t)id;
      v->bytes[at++] = (uint8_t)byte;
    } else if (s->spaces && s->kind[id] != RT_TOKEN_SPECIAL) {
      at += (uint32_t)with_spaces(text, length, v->bytes + at);
    } else {
      memcpy(v->bytes + at, text, length);
      at += length;
    }
  }
  v->offset[n] = at;
  return RT_OK;
}

void rt_vocab_free(rt_vocab *v) {
  free(v->bytes);
  free(v->offset);
  free(v->kind);
}

const uint8_t *rt_vocab_token(const rt_vocab *restrict v, int64_t id, size_t *restrict n) {
  if (id < 0 || id >= v->n_tokens) return NULL;
  *n = v->offset[id + 1] - v->offset[id];
  return v->bytes + v->offset[id];
}

rt_code rt_vocab_trie(rt_trie *restrict trie, const rt_vocab *restrict v, const uint8_t *restrict prefix, size_t skip,
                      uint64_t seed, rt_status *restrict st) {
  uint64_t most = 0;
  for (uint32_t id = 0; id < v->n_tokens; id++) {
    const uint32_t length = v->offset[id + 1] - v->offset[id];
    if (v->kind[id] != RT_TOKEN_NORMAL) continue;
    if (length > RT_MAX_PIECE_BYTES)
      return rt_fail(st, RT_BAD_FILE, "tokenizer: token %u has %u bytes; at most %d are supported", id, length, RT_MAX_PIECE_BYTES);
    most += length;
  }
  if (!rt_trie_init(trie, most, seed)) return rt_no_memory(st);
  for (uint32_t id = 0; id < v->n_tokens; id++) {
    const uint8_t *bytes = v->bytes + v->offset[id];
    const uint32_t length = v->offset[id + 1] - v->offset[id];
    if (v->kind[id] != RT_TOKEN_NORMAL || length < skip || (skip && memcmp(bytes, prefix, skip))) continue;
    const int32_t same = rt_trie_add(trie, bytes + skip, length - skip, (int32_t)id);
    if (same != RT_NO_TOKEN) return rt_fail(st, RT_BAD_FILE, "tokenizer: tokens %d and %u are the same text", same, id);
  }
  return RT_OK;
}

/* ---- merges --------------------------------------------------------------------------------------------------------- */

/* Every token by its text as the file writes it; unused ones without a text are none. */
static rt_code name_tokens(rt_names *restrict names, const rt_listed *restrict s, rt_status *restrict st) {
  if (!rt_names_init(names, s->text, s->offset, s->n_tokens, s->seed)) return rt_no_memory(st);
  for (uint32_t id = 0; id < s->n_tokens; id++) {
    if (s->kind[id] == RT_TOKEN_UNUSED && s->offset[id] == s->offset[id + 1]) continue;
    const uint32_t same = rt_names_add(names, id, s->n_tokens);
    if (same != RT_NO_NAME) return rt_fail(st, RT_BAD_FILE, "tokenizer: tokens %u and %u are the same text", same, id);
  }
  return RT_OK;
}

/* Some merges on their way into a table. */
typedef struct merging {
  const uint8_t *left, *right; /* of each: [left_n], [right_n]; together: where they stand one behind the other */
  uint8_t *together;
  size_t left_n, right_n;
  uint64_t left_hash, right_hash, hash;
  uint32_t guess; /* what they make, or RT_NO_NAME */
  uint64_t key, value;
} merging;

/* Whether token id is left and right. */
static bool makes(const rt_listed *restrict s, const merging *restrict m, uint32_t id) {
  if (id >= s->n_tokens || s->offset[id + 1] - s->offset[id] != m->left_n + m->right_n) return false;
  const uint8_t *text = s->text + s->offset[id];
  return !memcmp(text, m->left, m->left_n) && !memcmp(text + m->left_n, m->right, m->right_n);
}

/* Takes "left right" apart and asks for its places; false when it is not that. guess: a token it may make. */
static bool split_merge(merging *restrict m, const rt_names *restrict names, const rt_listed *restrict s,
                        const uint8_t *restrict text, size_t n, uint8_t *restrict together, uint32_t guess) {
  const uint8_t *space = memchr(text, ' ', n);
  const size_t left_n = space ? (size_t)(space - text) : n, right_n = space ? n - left_n - 1 : 0;
  if (!left_n || !right_n || memchr(space + 1, ' ', right_n)) return false;
  *m = (merging){.left = text, .right = space + 1, .together = together, .left_n = left_n, .right_n = right_n, .guess = RT_NO_NAME};
  rt_names_fetch(names, m->left_hash = rt_hash(names->seed, m->left, left_n));
  rt_names_fetch(names, m->right_hash = rt_hash(names->seed, m->right, right_n));
  if (makes(s, m, guess)) {
    m->guess = guess;
  } else {
    memcpy(together, m->left, left_n);
    memcpy(together + left_n, m->right, right_n);
    rt_names_fetch(names, m->hash = rt_hash(names->seed, together, left_n + right_n));
  }
  return true;
}

/* Finds its tokens and asks for their place among the pairs; value RT_NONE: none is due. */
static rt_code find_merge(merging *restrict m, const rt_table *restrict pairs, const rt_names *restrict names,
                          const rt_listed *restrict s, uint32_t rank, bool leave_special, rt_status *restrict st) {
  const uint32_t left = rt_names_find_hashed(names, m->left_hash, m->left, m->left_n);
  const uint32_t right = rt_names_find_hashed(names, m->right_hash, m->right, m->right_n);
  const uint32_t merged = m->guess != RT_NO_NAME ? m->guess
                                                 : rt_names_find_hashed(names, m->hash, m->together, m->left_n + m->right_n);
  if (left == RT_NO_NAME || right == RT_NO_NAME || merged == RT_NO_NAME)
    return rt_fail(st, RT_BAD_FILE, "tokenizer: merge %u: %s is not a token", rank,
                   left == RT_NO_NAME    ? "its left side"
                   : right == RT_NO_NAME ? "its right side"
                                         : "what it makes");
  m->key = rt_pair_key((int32_t)left, (int32_t)right);
  m->value = RT_NONE;
  if (s->kind[merged] == RT_TOKEN_SPECIAL && leave_special) return RT_OK;
  if (s->kind[merged] == RT_TOKEN_SPECIAL)
    return rt_fail(st, RT_BAD_FILE, "tokenizer: merge %u makes the special token %u", rank, merged);
  m->value = (uint64_t)rank << 32 | merged;
  rt_table_fetch(pairs, m->key);
  return RT_OK;
}

/* Merges [first, end), at most RT_AHEAD. The first that is wrong is the one an error names, whatever is wrong with it.
 * *next: the token behind the last that was made, which most often is the next. together: [their bytes] */
static rt_code read_some(rt_table *restrict pairs, const rt_names *restrict names, const rt_listed *restrict s, uint32_t first,
                         uint32_t end, const uint8_t *restrict text, const uint32_t *restrict offset, bool leave_special,
                         uint8_t *restrict together, uint32_t *restrict next, rt_status *restrict st) {
  merging m[RT_AHEAD];
  uint32_t split = 0, found = 0;
  for (uint32_t i = first; i < end; i++, split++)
    if (!split_merge(&m[split], names, s, text + offset[i], offset[i + 1] - offset[i], together + offset[i], *next + split)) break;
  while (found < split && !find_merge(&m[found], pairs, names, s, first + found, leave_special, st)) found++;
  for (uint32_t i = 0; i < found; i++) {
    if (m[i].value == RT_NONE) continue;
    *next = (uint32_t)m[i].value + 1;
    if (rt_table_put(pairs, m[i].key, m[i].value)) continue;
    return rt_fail(st, RT_BAD_FILE, "tokenizer: merge %u, of tokens %u and %u, is there twice", first + i,
                   (uint32_t)(m[i].key >> 32), (uint32_t)m[i].key);
  }
  if (found < split || first + split == end) return st->code;
  return rt_fail(st, RT_BAD_FILE, "tokenizer: merge %u is not two tokens with a space between them", first + split);
}

rt_code rt_read_merges(rt_table *restrict pairs, const rt_listed *restrict s, uint32_t n, const uint8_t *restrict text,
                       const uint32_t *restrict offset, bool leave_special, rt_status *restrict st) {
  if (n > 2 * RT_MAX_TOKENS)
    return rt_fail(st, RT_BAD_FILE, "tokenizer: %u merges; at most %d are supported", n, 2 * RT_MAX_TOKENS);
  if (rt_check_offsets("merge", offset, n, st)) return st->code;
  rt_names names = {0};
  uint8_t *together = malloc((size_t)offset[n] + 1);
  if (!together || !rt_table_init(pairs, n, s->seed)) rt_no_memory(st);
  else name_tokens(&names, s, st);
  uint32_t next = 0;
  for (uint32_t rank = 0; rank < n && st->code == RT_OK; rank += RT_AHEAD)
    read_some(pairs, &names, s, rank, n - rank < RT_AHEAD ? n : rank + RT_AHEAD, text, offset, leave_special, together, &next, st);
  free(names.slot);
  free(together);
  return st->code;
}
