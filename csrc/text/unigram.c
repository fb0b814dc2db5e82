#include "text/unigram.h"

#include <math.h>
#include <string.h>

#include "text/unicode.h"

enum { NOTHING = RT_NO_TOKEN };
static const double UNKNOWN_PENALTY = 10.0;

struct rt_unigram {
  rt_vocab vocab;
  rt_trie trie;        /* the normal tokens */
  double *score;       /* [n_tokens] */
  double unknown_score;
  int32_t unknown;
  bool split_words, single;
  bool crossed[256];   /* the bytes that stand before a space inside some token */
};

/* ---- building ------------------------------------------------------------------------------------------------------- */

static rt_code copy_scores(rt_unigram *restrict u, const rt_unigram_spec *restrict s, rt_status *restrict st) {
  const rt_vocab *v = &u->vocab;
  u->score = malloc(v->n_tokens * sizeof *u->score);
  if (!u->score) return rt_no_memory(st);
  for (uint32_t id = 0; id < v->n_tokens; id++) {
    if (v->kind[id] != RT_TOKEN_NORMAL) continue;
    if (!isfinite(s->score[id])) return rt_fail(st, RT_BAD_FILE, "tokenizer: the score of token %u is not a finite number", id);
    u->score[id] = s->single ? (float)s->score[id] : s->score[id];
    for (uint32_t i = v->offset[id] + 1; i < v->offset[id + 1]; i++) u->crossed[v->bytes[i - 1]] |= v->bytes[i] == ' ';
  }
  return RT_OK;
}

rt_code rt_unigram_build(const rt_unigram_spec *restrict s, rt_unigram **restrict out, rt_status *restrict st) {
  st->code = RT_OK;
  if (s->unknown < -1 || s->unknown >= (int64_t)s->listed.n_tokens)
    return rt_fail(st, RT_BAD_FILE, "tokenizer: unknown token %d is outside the vocabulary of %u", s->unknown, s->listed.n_tokens);
  if (!isfinite(s->least)) return rt_fail(st, RT_BAD_FILE, "tokenizer: the worst score is not a finite number");
  rt_unigram *u = calloc(1, sizeof *u);
  if (!u) return rt_no_memory(st);
  u->unknown = s->unknown;
  u->split_words = s->split_words;
  u->single = s->single;
  u->unknown_score = s->single ? (float)((float)s->least - (float)UNKNOWN_PENALTY) : s->least - UNKNOWN_PENALTY;
  if (rt_vocab_copy(&u->vocab, &s->listed, st) || copy_scores(u, s, st) ||
      rt_vocab_trie(&u->trie, &u->vocab, NULL, 0, s->listed.seed, st)) {
    rt_unigram_free(u);
    return st->code;
  }
  *out = u;
  return RT_OK;
}

void rt_unigram_free(rt_unigram *u) {
  if (!u) return;
  rt_vocab_free(&u->vocab);
  rt_trie_free(&u->trie);
  free(u->score);
  free(u);
}

const rt_vocab *rt_unigram_vocab(const rt_unigram *u) { return &u->vocab; }

/* ---- encoding ------------------------------------------------------------------------------------------------------- */

/* The best way to cut a text up to one place: its sum, and its last token, which begins `length` bytes before. */
typedef struct best {
  double sum;
  int32_t token;   /* NOTHING for a character without one */
  uint32_t length; /* 0: no token ends here */
} best;

/* What one call of encode carries around. */
typedef struct encoder {
  const rt_unigram *restrict unigram;
  const uint8_t *restrict text; /* [n] */
  int32_t *ids;                 /* [count] */
  uint32_t *ends;               /* [count] or NULL */
  size_t count;
  uint64_t work;
  double sum;     /* of the text before this stretch */
  size_t unknown; /* where the last token ends if it stands for unknown characters, which then go on; else SIZE_MAX */
  best *best;     /* [room] */
  size_t room;
} encoder;

static void emit(encoder *restrict e, int32_t id, size_t end) {
  if (e->ends) e->ends[e->count] = (uint32_t)end;
  e->ids[e->count++] = id;
  e->unknown = SIZE_MAX;
}

/* text[at..end), one character without a token. */
static void emit_unknown(encoder *restrict e, size_t at, size_t end) {
  const rt_unigram *u = e->unigram;
  if (e->unknown == at) {
    if (e->ends) e->ends[e->count - 1] = (uint32_t)end;
    e->unknown = end;
  } else if (rt_has_bytes(&u->vocab, e->text, at, end)) {
    for (size_t i = at; i < end; i++) emit(e, u->vocab.byte_token[e->text[i]], i + 1);
  } else if (u->unknown != NOTHING) {
    emit(e, u->unknown, end);
    e->unknown = end;
  }
}

/* `single` rounds what is kept, not what it is compared with: as the `sentencepiece` package does, which decides between equals. */
static void offer(best *restrict b, double sum, bool single, int32_t token, size_t length) {
  if (b->length == 0 || sum > b->sum) *b = (best){single ? (float)sum : sum, token, (uint32_t)length};
}

/* Fills e->best[1..n] for text[at..at + n), which ends where a character does. */
static void find_best(encoder *restrict e, size_t at, size_t n) {
  const rt_unigram *u = e->unigram;
  const uint8_t *text = e->text + at;
  best *b = e->best;
  for (size_t i = 0; i <= n; i++) b[i].length = 0;
  b[0].sum = e->sum;
  for (size_t from = 0, next; from < n; from = next) {
    bool whole = false; /* the character itself is a token */
    uint64_t node = 0;
    next = rt_char_at(text, from, n).end;
    for (size_t to = from; to < n && (node = rt_table_get(&u->trie.edges, node << 8 | text[to])) != RT_NONE;) {
      const int32_t token = u->trie.token[node];
      to++;
      e->work++;
      if (token == RT_NO_TOKEN) continue;
      offer(&b[to], b[from].sum + u->score[token], u->single, token, to - from);
      whole |= to == next;
    }
    e->work++;
    const double unknown = b[from].sum + u->unknown_score;
    if (!whole) offer(&b[next], u->single ? (float)unknown : unknown, u->single, NOTHING, next - from);
  }
}

static rt_code encode_stretch(encoder *restrict e, size_t at, size_t end, rt_status *restrict st) {
  const size_t n = end - at;
  if (n + 1 > e->room) {
    free(e->best);
    e->best = malloc((n + 1) * sizeof *e->best);
    e->room = e->best ? n + 1 : 0;
  }
  if (!e->best) return rt_fail(st, RT_NO_MEMORY, "tokenizer: not enough memory for a word of %zu bytes", n);
  find_best(e, at, n);
  e->sum = e->best[n].sum;
  /* From the end to the beginning, then back: the length of the token that begins at a place moves there. */
  uint32_t length = 0;
  int32_t token = NOTHING;
  for (size_t i = n;;) {
    const best here = e->best[i];
    e->best[i].length = length;
    e->best[i].token = token;
    if (i == 0) break;
    length = here.length;
    token = here.token;
    i -= length;
  }
  for (size_t i = 0; i < n;) {
    const best here = e->best[i];
    const size_t stop = i + here.length;
    if (here.token == NOTHING) emit_unknown(e, at + i, at + stop);
    else emit(e, here.token, at + stop);
    i = stop;
  }
  return RT_OK;
}

rt_code rt_unigram_encode(const rt_unigram *restrict u, const uint8_t *restrict text, size_t n, int32_t *restrict ids,
                          uint32_t *restrict ends, size_t *restrict count, uint64_t *restrict work, rt_status *restrict st) {
  st->code = RT_OK;
  if (n > RT_MAX_TEXT) return rt_fail(st, RT_INVALID, "text: %zu bytes; at most %d can be encoded at once", n, RT_MAX_TEXT);
  encoder e = {.unigram = u, .text = text, .ids = ids, .ends = ends, .unknown = SIZE_MAX, .work = n};
  for (size_t at = 0, end; at < n && st->code == RT_OK; at = end) {
    for (end = at + 1; end < n && (text[end] != ' ' || (!u->split_words && u->crossed[text[end - 1]]));) end++;
    encode_stretch(&e, at, end, st);
    if (!u->split_words) continue;
    e.sum = 0;
    e.unknown = SIZE_MAX;
  }
  free(e.best);
  *count = e.count;
  *work = e.work;
  return st->code;
}
