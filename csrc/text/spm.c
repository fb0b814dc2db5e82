#define _GNU_SOURCE
#include "text/spm.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "text/heap.h"
#include "text/trie.h"
#include "text/unicode.h"

enum { SHORT_WORD = 48, NOTHING = RT_NO_TOKEN, SPACE_BYTES = 3 };
static const uint8_t SPACE[SPACE_BYTES] = {0xE2, 0x96, 0x81}; /* U+2581 */

struct rt_spm {
  uint32_t n_tokens, longest; /* longest: bytes of the longest normal token */
  uint8_t *bytes;             /* what all tokens stand for */
  uint32_t *offset;           /* [n_tokens + 1] */
  uint32_t *rank;             /* [n_tokens] of a normal token: the lower, the earlier it is merged */
  int32_t byte_token[256];    /* or NOTHING */
  int32_t unknown;
  rt_names words;             /* normal tokens */
  rt_trie added, special;
  bool crossed[256];          /* the bytes that stand before a space inside some token */
  bool space_prefix;
};

/* ---- building ------------------------------------------------------------------------------------------------------- */

static rt_code no_memory(rt_status *st) { return rt_fail(st, RT_NO_MEMORY, "tokenizer: not enough memory for its tables"); }

static rt_code check_spec(const rt_spm_spec *restrict s, rt_status *restrict st) {
  if (s->n_tokens == 0 || s->n_tokens > RT_MAX_TOKENS)
    return rt_fail(st, RT_BAD_FILE, "tokenizer: %u tokens; the vocabulary must have 1 to %d", s->n_tokens, RT_MAX_TOKENS);
  if (s->offset[0] != 0) return rt_fail(st, RT_BAD_FILE, "tokenizer: the first token begins at byte %u", s->offset[0]);
  if (s->unknown < -1 || s->unknown >= (int64_t)s->n_tokens)
    return rt_fail(st, RT_BAD_FILE, "tokenizer: unknown token %d is outside the vocabulary of %u", s->unknown, s->n_tokens);
  for (uint32_t id = 0; id < s->n_tokens; id++) {
    if (s->offset[id] > s->offset[id + 1]) return rt_fail(st, RT_BAD_FILE, "tokenizer: token %u ends before it begins", id);
    if (s->kind[id] >= RT_TOKEN_KINDS) return rt_fail(st, RT_BAD_FILE, "tokenizer: token %u is of kind %u", id, s->kind[id]);
    if (s->kind[id] == RT_TOKEN_NORMAL && !isfinite(s->score[id]))
      return rt_fail(st, RT_BAD_FILE, "tokenizer: the score of token %u is not a finite number", id);
  }
  return RT_OK;
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

static rt_code copy_tokens(rt_spm *restrict spm, const rt_spm_spec *restrict s, rt_status *restrict st) {
  const size_t n = s->n_tokens;
  spm->bytes = malloc(s->offset[n] + 1);
  spm->offset = malloc((n + 1) * sizeof *spm->offset);
  if (!spm->bytes || !spm->offset) return no_memory(st);
  memset(spm->byte_token, 0xFF, sizeof spm->byte_token);
  uint32_t at = 0;
  for (uint32_t id = 0; id < n; id++) {
    const uint8_t *text = s->text + s->offset[id];
    const uint32_t length = s->offset[id + 1] - s->offset[id];
    spm->offset[id] = at;
    if (s->kind[id] == RT_TOKEN_BYTE) {
      const int byte = named_byte(text, length);
      if (byte < 0) return rt_fail(st, RT_BAD_FILE, "tokenizer: byte token %u is not written <0xHH>", id);
      if (spm->byte_token[byte] == NOTHING) spm->byte_token[byte] = (int32_t)id;
      spm->bytes[at++] = (uint8_t)byte;
    } else if (s->kind[id] == RT_TOKEN_SPECIAL) {
      memcpy(spm->bytes + at, text, length);
      at += length;
    } else {
      at += (uint32_t)with_spaces(text, length, spm->bytes + at);
    }
  }
  spm->offset[n] = at;
  return RT_OK;
}

/* u32 that fall as finite floats grow; 0 and -0 are the same. */
static uint32_t rank_of(float score) {
  uint32_t bits;
  score += 0.0f;
  memcpy(&bits, &score, sizeof bits);
  return ~(bits >> 31 ? ~bits : bits | 1u << 31);
}

static rt_code build_words(rt_spm *restrict spm, const rt_spm_spec *restrict s, rt_status *restrict st) {
  spm->rank = malloc(s->n_tokens * sizeof *spm->rank);
  if (!spm->rank || !rt_names_init(&spm->words, spm->bytes, spm->offset, s->n_tokens, s->seed)) return no_memory(st);
  for (uint32_t id = 0; id < s->n_tokens; id++) {
    const uint32_t at = spm->offset[id], end = spm->offset[id + 1];
    if (s->kind[id] != RT_TOKEN_NORMAL || at == end) continue;
    const uint32_t same = rt_names_add(&spm->words, id, s->n_tokens);
    if (same != RT_NO_NAME) return rt_fail(st, RT_BAD_FILE, "tokenizer: tokens %u and %u are the same text", same, id);
    spm->rank[id] = rank_of(s->score[id]);
    spm->longest = end - at > spm->longest ? end - at : spm->longest;
    for (uint32_t i = at + 1; i < end; i++) spm->crossed[spm->bytes[i - 1]] |= spm->bytes[i] == ' ';
  }
  return RT_OK;
}

static rt_code build_trie(rt_trie *restrict trie, const rt_spm *restrict spm, const rt_spm_spec *restrict s, rt_token_kind kind,
                          rt_status *restrict st) {
  uint64_t most = 0;
  for (uint32_t id = 0; id < s->n_tokens; id++) {
    const uint32_t length = spm->offset[id + 1] - spm->offset[id];
    if (s->kind[id] != kind) continue;
    if (length > RT_MAX_ADDED_BYTES)
      return rt_fail(st, RT_BAD_FILE, "tokenizer: added token %u has %u bytes; at most %d are supported", id, length,
                     RT_MAX_ADDED_BYTES);
    most += length;
  }
  if (!rt_trie_init(trie, most, s->seed)) return no_memory(st);
  for (uint32_t id = 0; id < s->n_tokens; id++) {
    if (s->kind[id] != kind) continue;
    const uint32_t at = spm->offset[id];
    const int32_t same = rt_trie_add(trie, spm->bytes + at, spm->offset[id + 1] - at, (int32_t)id);
    if (same != NOTHING) return rt_fail(st, RT_BAD_FILE, "tokenizer: added tokens %d and %u are the same text", same, id);
  }
  return RT_OK;
}

rt_code rt_spm_build(const rt_spm_spec *restrict spec, rt_spm **restrict out, rt_status *restrict st) {
  st->code = RT_OK;
  if (check_spec(spec, st)) return st->code;
  rt_spm *spm = calloc(1, sizeof *spm);
  if (!spm) return no_memory(st);
  spm->n_tokens = spec->n_tokens;
  spm->unknown = spec->unknown;
  spm->space_prefix = spec->space_prefix;
  if (copy_tokens(spm, spec, st) || build_words(spm, spec, st) || build_trie(&spm->added, spm, spec, RT_TOKEN_ADDED, st) ||
      build_trie(&spm->special, spm, spec, RT_TOKEN_SPECIAL, st)) {
    rt_spm_free(spm);
    return st->code;
  }
  *out = spm;
  return RT_OK;
}

void rt_spm_free(rt_spm *spm) {
  if (!spm) return;
  free(spm->bytes);
  free(spm->offset);
  free(spm->rank);
  free(spm->words.slot);
  rt_trie_free(&spm->added);
  rt_trie_free(&spm->special);
  free(spm);
}

/* ---- one word ------------------------------------------------------------------------------------------------------- */

/* What one call of encode carries around. `text` has spaces for every U+2581, places in it are places in `text`. */
typedef struct encoder {
  const rt_spm *restrict spm;
  const uint8_t *text;
  int32_t *ids;      /* [count] */
  uint32_t *ends;    /* [count] or NULL */
  size_t count;
  uint64_t work;
  size_t unknown;    /* where the last token ends if it stands for unknown characters, which then go on; else SIZE_MAX */
  void *long_word, *spaced; /* memory for words beyond SHORT_WORD bytes, for a text that is not as it is in the tokens */
  size_t long_room, spaced_room;
} encoder;

static void emit(encoder *restrict e, int32_t id, size_t end) {
  if (e->ends) e->ends[e->count] = (uint32_t)end;
  e->ids[e->count++] = id;
  e->unknown = SIZE_MAX;
}

static int32_t token_of(encoder *restrict e, size_t at, size_t end) {
  e->work++;
  return end - at > e->spm->longest ? NOTHING : (int32_t)rt_names_find(&e->spm->words, e->text + at, end - at);
}

/* What two neighbours make, text[at..end): rank << 32 | token, or RT_NONE. */
static uint64_t merge_of(encoder *restrict e, size_t at, size_t end) {
  const int32_t token = token_of(e, at, end);
  return token == NOTHING ? RT_NONE : (uint64_t)e->spm->rank[token] << 32 | (uint32_t)token;
}

/* text[at..end), a token or one character without. */
static void emit_symbol(encoder *restrict e, size_t at, size_t end) {
  const int32_t token = token_of(e, at, end);
  bool whole = true;
  if (token != NOTHING) {
    emit(e, token, end);
    return;
  }
  for (size_t i = at; i < end; i++) whole = whole && e->spm->byte_token[e->text[i]] != NOTHING;
  if (whole) {
    for (size_t i = at; i < end; i++) emit(e, e->spm->byte_token[e->text[i]], i + 1);
  } else if (e->spm->unknown != NOTHING) {
    if (e->unknown != at) emit(e, e->spm->unknown, end);
    else if (e->ends) e->ends[e->count - 1] = (uint32_t)end;
    e->unknown = end;
  }
}

/* Merges text[at..end), at most SHORT_WORD bytes: again and again the leftmost pair of lowest rank. */
static void merge_short(encoder *restrict e, size_t at, size_t end) {
  size_t start[SHORT_WORD + 1]; /* symbol i is text[start[i]..start[i + 1]) */
  uint64_t merge[SHORT_WORD];   /* of the pair that begins here */
  size_t n = 0;
  for (; at < end; at = rt_char_at(e->text, at, end).end) start[n++] = at;
  start[n] = end;
  for (size_t i = 0; i + 1 < n; i++) merge[i] = merge_of(e, start[i], start[i + 2]);
  while (n > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < n; i++) best = merge[i] >> 32 < merge[best] >> 32 ? i : best;
    if (merge[best] == RT_NONE) break;
    n--;
    for (size_t i = best + 1; i <= n; i++) start[i] = start[i + 1];
    for (size_t i = best + 1; i + 1 < n; i++) merge[i] = merge[i + 1];
    if (best > 0) merge[best - 1] = merge_of(e, start[best - 1], start[best + 1]);
    if (best + 1 < n) merge[best] = merge_of(e, start[best], start[best + 2]);
    e->work += n;
  }
  for (size_t i = 0; i < n; i++) emit_symbol(e, start[i], start[i + 1]);
}

/* The symbols of a long word, linked in order. All arrays have one entry per byte, symbols are numbered in order. */
typedef struct chain {
  uint64_t *merge;        /* of the pair that begins here, or RT_NONE: also where a symbol was merged into the one before */
  uint32_t *start, *stop; /* where in the text the symbol stands */
  int32_t *next, *before; /* or NOTHING */
} chain;

static void renew(encoder *restrict e, chain *c, rt_heap *h, int32_t i) {
  c->merge[i] = c->next[i] == NOTHING ? RT_NONE : merge_of(e, c->start[i], c->stop[c->next[i]]);
  if (c->merge[i] != RT_NONE) rt_heap_push(h, (c->merge[i] >> 32 << 32) | (uint32_t)i, &e->work);
}

/* At least `bytes` bytes at *memory: [*room], what stood there is lost. */
static bool has_room(void **memory, size_t *room, size_t bytes) {
  if (bytes <= *room) return true;
  free(*memory);
  *memory = malloc(bytes);
  *room = *memory ? bytes : 0;
  return *memory != NULL;
}

static bool room_for(encoder *restrict e, size_t n, chain *c, rt_heap *h) {
  if (!has_room(&e->long_word, &e->long_room, n * (3 * sizeof(uint64_t) + 4 * sizeof(int32_t)))) return false;
  h->key = e->long_word;
  c->merge = h->key + 2 * n;
  c->start = (uint32_t *)(c->merge + n);
  c->stop = c->start + n;
  c->next = (int32_t *)(c->stop + n);
  c->before = c->next + n;
  return true;
}

/* The same as merge_short for any length. A heap entry counts only while the pair at its place still has its rank: a merge
 * takes one entry out and puts at most two in, so 2n entries suffice. */
static rt_code merge_long(encoder *restrict e, size_t at, size_t end, rt_status *restrict st) {
  chain c;
  rt_heap h = {NULL, 0}; /* of rank << 32 | place */
  if (!room_for(e, end - at, &c, &h))
    return rt_fail(st, RT_NO_MEMORY, "tokenizer: not enough memory for a word of %zu bytes", end - at);
  int32_t n = 0;
  for (size_t stop; at < end; at = stop, n++) {
    stop = rt_char_at(e->text, at, end).end;
    c.start[n] = (uint32_t)at;
    c.stop[n] = (uint32_t)stop;
    c.before[n] = n - 1;
    c.next[n] = n + 1;
  }
  c.next[n - 1] = NOTHING;
  for (int32_t i = 0; i < n; i++) renew(e, &c, &h, i);
  while (h.n > 0) {
    const uint64_t key = rt_heap_pop(&h, &e->work);
    const int32_t i = (int32_t)(uint32_t)key;
    if (c.merge[i] == RT_NONE || c.merge[i] >> 32 != key >> 32) continue;
    const int32_t gone = c.next[i];
    c.stop[i] = c.stop[gone];
    c.next[i] = c.next[gone];
    c.merge[gone] = RT_NONE;
    if (c.next[i] != NOTHING) c.before[c.next[i]] = i;
    renew(e, &c, &h, i);
    if (c.before[i] != NOTHING) renew(e, &c, &h, c.before[i]);
  }
  for (int32_t i = 0; i != NOTHING; i = c.next[i]) emit_symbol(e, c.start[i], c.stop[i]);
  return RT_OK;
}

/* ---- whole texts ---------------------------------------------------------------------------------------------------- */

/* Text without added tokens, cut before every space that no token reaches across. */
static rt_code encode_words(encoder *restrict e, size_t at, size_t end, rt_status *restrict st) {
  e->work += end - at;
  while (at < end) {
    size_t stop = at + 1;
    while (stop < end && (e->text[stop] != ' ' || e->spm->crossed[e->text[stop - 1]])) stop++;
    if (stop - at <= SHORT_WORD) merge_short(e, at, stop);
    else if (merge_long(e, at, stop, st)) return st->code;
    at = stop;
  }
  return RT_OK;
}

static rt_code encode_spaced(encoder *restrict e, size_t at, size_t n, rt_status *restrict st) {
  size_t words = at; /* where the text that is not an added token begins */
  while (at < n) {
    size_t end = at + 1;
    const int32_t id = rt_trie_longest(&e->spm->added, e->text, at, n, &end, &e->work);
    if (id != NOTHING) {
      if (encode_words(e, words, at, st)) return st->code;
      emit(e, id, end);
      words = end;
    }
    at = end;
  }
  return encode_words(e, words, n, st);
}

/* ends: [count] places in text with spaces, which began `prefix` before text: [n] -> places in text, moved on by `at`. */
static void places_in(const uint8_t *restrict text, size_t n, size_t prefix, size_t at, uint32_t *restrict ends, size_t count) {
  size_t here = 0, spaced = prefix;
  for (size_t i = 0; i < count; i++) {
    for (; spaced < ends[i]; spaced++)
      here += n - here >= SPACE_BYTES && !memcmp(text + here, SPACE, SPACE_BYTES) ? SPACE_BYTES : 1;
    ends[i] = (uint32_t)(at + here);
  }
}

/* text[at..end) between special tokens: as the tokens write it. */
static rt_code encode_plain(encoder *restrict e, const uint8_t *text, size_t at, size_t end, rt_status *restrict st) {
  const size_t n = end - at, prefix = e->spm->space_prefix, first = e->count;
  if (n == 0) return RT_OK;
  e->unknown = SIZE_MAX;
  if (!prefix && !memmem(text + at, n, SPACE, SPACE_BYTES)) {
    e->text = text;
    return encode_spaced(e, at, end, st);
  }
  if (!has_room(&e->spaced, &e->spaced_room, n + 1))
    return rt_fail(st, RT_NO_MEMORY, "tokenizer: not enough memory for a text of %zu bytes", n);
  uint8_t *spaced = e->spaced;
  spaced[0] = ' ';
  e->text = spaced;
  if (encode_spaced(e, 0, prefix + with_spaces(text + at, n, spaced + prefix), st)) return st->code;
  if (e->ends) places_in(text + at, n, prefix, at, e->ends + first, e->count - first);
  return RT_OK;
}

static rt_code encode_text(encoder *restrict e, const uint8_t *text, size_t n, bool allow_special, rt_status *restrict st) {
  size_t plain = 0; /* where the text that is not a special token begins */
  for (size_t at = 0; allow_special && at < n;) {
    size_t end = at + 1;
    const int32_t id = rt_trie_longest(&e->spm->special, text, at, n, &end, &e->work);
    if (id != NOTHING) {
      if (encode_plain(e, text, plain, at, st)) return st->code;
      emit(e, id, end);
      plain = end;
    }
    at = end;
  }
  return encode_plain(e, text, plain, n, st);
}

size_t rt_spm_most(const rt_spm *spm, size_t n) { return spm->space_prefix ? 2 * n : n; }

rt_code rt_spm_encode(const rt_spm *restrict spm, const uint8_t *restrict text, size_t n, bool allow_special,
                      int32_t *restrict ids, uint32_t *restrict ends, size_t *restrict count, uint64_t *restrict work,
                      rt_status *restrict st) {
  st->code = RT_OK;
  if (n > RT_MAX_TEXT) return rt_fail(st, RT_INVALID, "text: %zu bytes; at most %d can be encoded at once", n, RT_MAX_TEXT);
  encoder e = {.spm = spm, .ids = ids, .ends = ends, .unknown = SIZE_MAX};
  encode_text(&e, text, n, allow_special, st);
  free(e.long_word);
  free(e.spaced);
  *count = e.count;
  *work = e.work;
  return st->code;
}

const uint8_t *rt_spm_token(const rt_spm *restrict spm, int64_t id, size_t *restrict n) {
  if (id < 0 || id >= spm->n_tokens) return NULL;
  *n = spm->offset[id + 1] - spm->offset[id];
  return spm->bytes + spm->offset[id];
}
