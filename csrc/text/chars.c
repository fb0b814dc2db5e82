#include "text/chars.h"

#include <string.h>

#include "text/merge.h"
#include "text/unicode.h"

enum { NOTHING = RT_NO_TOKEN };

struct rt_chars {
  rt_vocab vocab;
  uint32_t longest; /* bytes of the longest token that can be made */
  rt_names words;   /* the tokens that can be made */
  rt_table pairs;   /* merge.h */
  int32_t unknown;
  bool fuse_unknown, split_words, ignore_merges;
  bool has_space;    /* a space has a token: unknown characters never go on there */
  bool crossed[256]; /* the bytes that stand before a space inside some token */
};

/* ---- building ------------------------------------------------------------------------------------------------------- */

static rt_code build_words(rt_chars *restrict c, uint64_t seed, rt_status *restrict st) {
  const rt_vocab *v = &c->vocab;
  if (!rt_names_init(&c->words, v->bytes, v->offset, v->n_tokens, seed)) return rt_no_memory(st);
  for (uint32_t id = 0; id < v->n_tokens; id++) {
    const uint32_t at = v->offset[id], end = v->offset[id + 1];
    for (uint32_t i = at + 1; i < end; i++) c->crossed[v->bytes[i - 1]] |= v->bytes[i] == ' ';
    if ((v->kind[id] != RT_TOKEN_NORMAL && v->kind[id] != RT_TOKEN_ADDED) || at == end) continue;
    const uint32_t same = rt_names_add(&c->words, id, v->n_tokens);
    if (same != RT_NO_NAME) return rt_fail(st, RT_BAD_FILE, "tokenizer: tokens %u and %u are the same text", same, id);
    c->longest = end - at > c->longest ? end - at : c->longest;
  }
  c->has_space = rt_names_find(&c->words, (const uint8_t *)" ", 1) != RT_NO_NAME;
  return RT_OK;
}

rt_code rt_chars_build(const rt_chars_spec *restrict s, rt_chars **restrict out, rt_status *restrict st) {
  st->code = RT_OK;
  if (s->unknown < -1 || s->unknown >= (int64_t)s->listed.n_tokens)
    return rt_fail(st, RT_BAD_FILE, "tokenizer: unknown token %d is outside the vocabulary of %u", s->unknown, s->listed.n_tokens);
  rt_chars *c = calloc(1, sizeof *c);
  if (!c) return rt_no_memory(st);
  c->unknown = s->unknown;
  c->fuse_unknown = s->fuse_unknown;
  c->split_words = s->split_words;
  c->ignore_merges = s->ignore_merges;
  if (rt_vocab_copy(&c->vocab, &s->listed, st) || build_words(c, s->listed.seed, st) ||
      rt_read_merges(&c->pairs, &s->listed, s->n_merges, s->merge_text, s->merge_offset, true, st)) {
    rt_chars_free(c);
    return st->code;
  }
  *out = c;
  return RT_OK;
}

void rt_chars_free(rt_chars *c) {
  if (!c) return;
  rt_vocab_free(&c->vocab);
  free(c->words.slot);
  free(c->pairs.entry);
  free(c);
}

const rt_vocab *rt_chars_vocab(const rt_chars *c) { return &c->vocab; }

/* ---- encoding ------------------------------------------------------------------------------------------------------- */

/* What one call of encode carries around. */
typedef struct encoder {
  const rt_chars *restrict chars;
  const uint8_t *restrict text; /* [n] */
  int32_t *ids;                 /* [count] */
  uint32_t *ends;               /* [count] or NULL */
  size_t count;
  uint64_t work;
  void *long_word; /* memory for words beyond RT_SHORT_WORD bytes */
  size_t long_room;
} encoder;

static int32_t token_of(encoder *restrict e, size_t at, size_t end) {
  e->work++;
  return end - at > e->chars->longest ? NOTHING : (int32_t)rt_names_find(&e->chars->words, e->text + at, end - at);
}

/* The tokens of the characters of text[at..end), unmerged; returns how many, at most end - at. */
static size_t symbols(encoder *restrict e, size_t at, size_t end, int32_t *restrict id, uint32_t *restrict stop) {
  const rt_chars *c = e->chars;
  size_t n = 0;
  bool unknown = false; /* the last symbol stands for unknown characters, which may go on */
  for (size_t next; at < end; at = next) {
    next = rt_char_at(e->text, at, end).end;
    const int32_t token = token_of(e, at, next);
    if (token != NOTHING) {
      id[n] = token;
      stop[n++] = (uint32_t)next;
    } else if (rt_has_bytes(&c->vocab, e->text, at, next)) {
      for (size_t i = at; i < next; i++, n++) {
        id[n] = c->vocab.byte_token[e->text[i]];
        stop[n] = (uint32_t)(i + 1);
      }
    } else if (c->unknown != NOTHING) {
      if (unknown && c->fuse_unknown) {
        stop[n - 1] = (uint32_t)next;
      } else {
        id[n] = c->unknown;
        stop[n++] = (uint32_t)next;
      }
      unknown = true;
      continue;
    }
    unknown = false;
  }
  return n;
}

static void emit_all(encoder *restrict e, const int32_t *restrict id, const uint32_t *restrict stop, size_t n) {
  for (size_t i = 0; i < n; i++, e->count++) {
    e->ids[e->count] = id[i];
    if (e->ends) e->ends[e->count] = stop[i];
  }
}

static rt_code encode_word(encoder *restrict e, size_t at, size_t end, rt_status *restrict st) {
  const rt_table *pairs = &e->chars->pairs;
  if (end - at <= RT_SHORT_WORD) {
    int32_t id[RT_SHORT_WORD];
    uint32_t stop[RT_SHORT_WORD];
    emit_all(e, id, stop, rt_merge_short(pairs, id, stop, symbols(e, at, end, id, stop), &e->work));
    return RT_OK;
  }
  rt_chain c;
  if (!rt_chain_room(&c, end - at, &e->long_word, &e->long_room))
    return rt_fail(st, RT_NO_MEMORY, "tokenizer: not enough memory for a word of %zu bytes", end - at);
  emit_all(e, c.id, c.stop, rt_merge_long(&c, pairs, symbols(e, at, end, c.id, c.stop), &e->work));
  return RT_OK;
}

/* text[at..end), cut before every space that no token reaches across. */
static rt_code encode_stretch(encoder *restrict e, size_t at, size_t end, rt_status *restrict st) {
  const int32_t whole = e->chars->ignore_merges ? token_of(e, at, end) : NOTHING;
  if (whole != NOTHING) {
    emit_all(e, &whole, &(uint32_t){(uint32_t)end}, 1);
    return RT_OK;
  }
  while (at < end) {
    size_t stop = at + 1;
    while (stop < end && (e->text[stop] != ' ' || !e->chars->has_space || e->chars->crossed[e->text[stop - 1]])) stop++;
    if (encode_word(e, at, stop, st)) return st->code;
    at = stop;
  }
  return RT_OK;
}

rt_code rt_chars_encode(const rt_chars *restrict chars, const uint8_t *restrict text, size_t n, int32_t *restrict ids,
                        uint32_t *restrict ends, size_t *restrict count, uint64_t *restrict work, rt_status *restrict st) {
  st->code = RT_OK;
  if (n > RT_MAX_TEXT) return rt_fail(st, RT_INVALID, "text: %zu bytes; at most %d can be encoded at once", n, RT_MAX_TEXT);
  encoder e = {.chars = chars, .text = text, .ids = ids, .ends = ends, .work = n};
  for (size_t at = 0, end; at < n && st->code == RT_OK; at = end) {
    for (end = at + 1; end < n && !(chars->split_words && text[end] == ' ');) end++;
    encode_stretch(&e, at, end, st);
  }
  free(e.long_word);
  *count = e.count;
  *work = e.work;
  return st->code;
}
