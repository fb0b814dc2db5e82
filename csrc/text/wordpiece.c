#include "text/wordpiece.h"

#include <string.h>

#include "text/unicode.h"

struct rt_wordpiece {
  rt_vocab vocab;
  rt_trie begin, within; /* tokens a word can begin with, and those within it without their prefix */
  uint32_t most_chars;
  int32_t unknown;
};

rt_code rt_wordpiece_build(const rt_wordpiece_spec *restrict s, rt_wordpiece **restrict out, rt_status *restrict st) {
  st->code = RT_OK;
  if (s->unknown < 0 || s->unknown >= (int64_t)s->listed.n_tokens)
    return rt_fail(st, RT_BAD_FILE, "tokenizer: unknown token %d is outside the vocabulary of %u", s->unknown, s->listed.n_tokens);
  rt_wordpiece *w = calloc(1, sizeof *w);
  if (!w) return rt_no_memory(st);
  w->most_chars = s->most_chars;
  w->unknown = s->unknown;
  if (rt_vocab_copy(&w->vocab, &s->listed, st) || rt_vocab_trie(&w->begin, &w->vocab, NULL, 0, s->listed.seed, st) ||
      rt_vocab_trie(&w->within, &w->vocab, s->prefix, s->prefix_n, s->listed.seed, st)) {
    rt_wordpiece_free(w);
    return st->code;
  }
  *out = w;
  return RT_OK;
}

void rt_wordpiece_free(rt_wordpiece *w) {
  if (!w) return;
  rt_vocab_free(&w->vocab);
  rt_trie_free(&w->begin);
  rt_trie_free(&w->within);
  free(w);
}

const rt_vocab *rt_wordpiece_vocab(const rt_wordpiece *w) { return &w->vocab; }

/* What one call of encode carries around. */
typedef struct encoder {
  const rt_wordpiece *restrict wordpiece;
  const uint8_t *restrict text; /* [n] */
  int32_t *ids;                 /* [count] */
  uint32_t *ends;               /* [count] or NULL */
  size_t count;
  uint64_t work;
} encoder;

static void emit(encoder *restrict e, int32_t id, size_t end) {
  if (e->ends) e->ends[e->count] = (uint32_t)end;
  e->ids[e->count++] = id;
}

/* text[at..end), a word of so many characters. */
static void encode_word(encoder *restrict e, size_t at, size_t end, size_t chars) {
  const rt_wordpiece *w = e->wordpiece;
  const size_t first = e->count;
  size_t here = chars > w->most_chars ? end : at;
  bool whole = here == at;
  while (here < end) {
    size_t next = here;
    const int32_t id = rt_trie_longest(here == at ? &w->begin : &w->within, e->text, here, end, &next, &e->work);
    e->work++;
    if (id == RT_NO_TOKEN) {
      whole = false;
      break;
    }
    emit(e, id, next);
    here = next;
  }
  if (whole) return;
  e->count = first;
  emit(e, w->unknown, end);
}

/* P, and all of ASCII's signs. */
static bool is_punctuation(rt_char c) {
  return c.kind == RT_KIND_PUNCTUATION || (c.kind == RT_KIND_SYMBOL && c.code < 0x80);
}

rt_code rt_wordpiece_encode(const rt_wordpiece *restrict w, const uint8_t *restrict text, size_t n, int32_t *restrict ids,
                            uint32_t *restrict ends, size_t *restrict count, uint64_t *restrict work, rt_status *restrict st) {
  st->code = RT_OK;
  if (n > RT_MAX_TEXT) return rt_fail(st, RT_INVALID, "text: %zu bytes; at most %d can be encoded at once", n, RT_MAX_TEXT);
  encoder e = {.wordpiece = w, .text = text, .ids = ids, .ends = ends, .work = n};
  size_t word = 0, chars = 0; /* the word that goes on: where it begins, of how many characters */
  for (size_t at = 0; at < n;) {
    const rt_char c = rt_char_at(text, at, n);
    const bool sign = is_punctuation(c);
    if (chars && (sign || c.class == RT_SPACE)) {
      encode_word(&e, word, at, chars);
      chars = 0;
    }
    if (sign) encode_word(&e, at, c.end, 1);
    else if (c.class != RT_SPACE && chars++ == 0) word = at;
    at = c.end;
  }
  if (chars) encode_word(&e, word, n, chars);
  *count = e.count;
  *work = e.work;
  return st->code;
}
