#include "text/added.h"

#include <stdlib.h>
#include <string.h>

#include "text/trie.h"
#include "text/unicode.h"
#include "text/vocab.h"

struct rt_added {
  rt_trie trie;
  uint8_t *flags; /* [n] */
};

rt_code rt_added_build(const rt_added_spec *restrict s, rt_added **restrict out, rt_status *restrict st) {
  st->code = RT_OK;
  if (s->n > RT_MAX_TOKENS) return rt_fail(st, RT_BAD_FILE, "tokenizer: %u added tokens; at most %d are supported", s->n, RT_MAX_TOKENS);
  if (rt_check_offsets("added token", s->offset, s->n, st)) return st->code;
  for (uint32_t i = 0; i < s->n; i++)
    if (s->offset[i + 1] - s->offset[i] > RT_MAX_ADDED_BYTES)
      return rt_fail(st, RT_BAD_FILE, "tokenizer: added token %u has %u bytes; at most %d are supported", i,
                     s->offset[i + 1] - s->offset[i], RT_MAX_ADDED_BYTES);
  rt_added *added = calloc(1, sizeof *added);
  if (!added) return rt_no_memory(st);
  added->flags = malloc(s->n + 1);
  if (!added->flags || !rt_trie_init(&added->trie, s->offset[s->n], s->seed)) rt_no_memory(st);
  for (uint32_t i = 0; i < s->n && st->code == RT_OK; i++) {
    const int32_t same = rt_trie_add(&added->trie, s->text + s->offset[i], s->offset[i + 1] - s->offset[i], (int32_t)i);
    added->flags[i] = s->flags[i];
    if (same != RT_NO_TOKEN) rt_fail(st, RT_BAD_FILE, "tokenizer: added tokens %d and %u are the same text", same, i);
  }
  if (st->code) rt_added_free(added);
  else *out = added;
  return st->code;
}

void rt_added_free(rt_added *added) {
  if (!added) return;
  rt_trie_free(&added->trie);
  free(added->flags);
  free(added);
}

/* Where the white space that ends at text[at] begins, not before text[least]. */
static size_t space_begin(const uint8_t *restrict text, size_t least, size_t at) {
  while (at > least) {
    size_t begin = at - 1;
    while (begin > least && at - begin < 4 && (text[begin] & 0xC0) == 0x80) begin--;
    const rt_char c = rt_char_at(text, begin, at);
    if (c.class != RT_SPACE || c.end != at) break;
    at = begin;
  }
  return at;
}

static size_t space_end(const uint8_t *restrict text, size_t at, size_t n) {
  for (rt_char c; at < n && (c = rt_char_at(text, at, n)).class == RT_SPACE;) at = c.end;
  return at;
}

rt_code rt_added_find(const rt_added *restrict added, const uint8_t *restrict text, size_t n, bool allow_special,
                      uint32_t *restrict span, size_t *restrict count, uint64_t *restrict work, rt_status *restrict st) {
  st->code = RT_OK;
  *count = 0;
  *work = n;
  if (n > RT_MAX_TEXT) return rt_fail(st, RT_INVALID, "text: %zu bytes; at most %d can be encoded at once", n, RT_MAX_TEXT);
  for (size_t at = 0, last = 0; at < n;) { /* last: where what was found before ends */
    size_t end = at + 1;
    const int32_t which = rt_trie_longest(&added->trie, text, at, n, &end, work);
    const uint8_t flags = which == RT_NO_TOKEN ? 0 : added->flags[which];
    if (which != RT_NO_TOKEN && (allow_special || !(flags & RT_ADDED_SPECIAL))) {
      const size_t begin = flags & RT_ADDED_LEFT ? space_begin(text, last, at) : at;
      if (flags & RT_ADDED_RIGHT) end = space_end(text, end, n);
      *work += end - begin;
      span[3 * *count] = (uint32_t)begin;
      span[3 * *count + 1] = (uint32_t)end;
      span[3 * *count + 2] = (uint32_t)which;
      ++*count;
      last = end;
    }
    at = end;
  }
  return RT_OK;
}
