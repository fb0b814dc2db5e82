#include "text/bpe.h"

#include <stdlib.h>
#include <string.h>

#include "text/heap.h"
#include "text/trie.h"

enum { SHORT_WORD = 48, NOTHING = RT_NO_TOKEN };

struct rt_bpe {
  uint32_t n_tokens, longest; /* longest: bytes of the longest word that is a token */
  uint8_t *bytes;             /* the bytes of all tokens */
  uint32_t *offset;           /* [n_tokens + 1] */
  uint8_t *kind;              /* [n_tokens] */
  int32_t byte_token[256];    /* or NOTHING */
  rt_table pairs;             /* left << 32 | right -> rank << 32 | merged */
  rt_names words;             /* the tokens that their own bytes encode to */
  rt_trie added;
  rt_split split;
};

/* ---- building ------------------------------------------------------------------------------------------------------- */

/* GPT-2 writes a byte as a visible character: itself where it is one, else U+0100 and up in order. */
static bool is_visible(int byte) { return (byte > 32 && byte < 127) || (byte > 160 && byte < 256 && byte != 173); }

/* The byte each of the 324 code points below U+0144 stands for, or NOTHING. */
static void byte_alphabet(int16_t of[324]) {
  for (int c = 0; c < 324; c++) of[c] = NOTHING;
  int next = 256;
  for (int byte = 0; byte < 256; byte++) of[is_visible(byte) ? byte : next++] = (int16_t)byte;
}

/* Writes the bytes that text stands for, all in the byte alphabet; their number, or 0 where one is not. */
static size_t from_alphabet(const int16_t of[324], const uint8_t *restrict text, size_t n, uint8_t *restrict out) {
  size_t count = 0;
  for (size_t at = 0; at < n;) {
    const rt_char c = rt_char_at(text, at, n);
    if (c.code >= 324 || of[c.code] == NOTHING) return 0;
    out[count++] = (uint8_t)of[c.code];
    at = c.end;
  }
  return count;
}

/* offset: [n + 1] places in a text, none before the one before it. */
static rt_code check_offsets(const char *what, const uint32_t *restrict offset, uint32_t n, rt_status *restrict st) {
  if (offset[0] != 0) return rt_fail(st, RT_BAD_FILE, "tokenizer: the first %s begins at byte %u", what, offset[0]);
  for (uint32_t i = 0; i < n; i++)
    if (offset[i] > offset[i + 1]) return rt_fail(st, RT_BAD_FILE, "tokenizer: %s %u ends before it begins", what, i);
  return RT_OK;
}

static rt_code check_spec(const rt_bpe_spec *restrict s, rt_status *restrict st) {
  if (s->n_tokens == 0 || s->n_tokens > RT_MAX_TOKENS)
    return rt_fail(st, RT_BAD_FILE, "tokenizer: %u tokens; the vocabulary must have 1 to %d", s->n_tokens, RT_MAX_TOKENS);
  if (s->n_merges > 2 * RT_MAX_TOKENS)
    return rt_fail(st, RT_BAD_FILE, "tokenizer: %u merges; at most %d are supported", s->n_merges, 2 * RT_MAX_TOKENS);
  if ((unsigned)s->split >= RT_SPLIT_COUNT) return rt_fail(st, RT_BAD_FILE, "tokenizer: no pre-tokenizer %d", (int)s->split);
  for (uint32_t id = 0; id < s->n_tokens; id++)
    if (s->kind[id] > RT_TOKEN_UNUSED) return rt_fail(st, RT_BAD_FILE, "tokenizer: token %u is of kind %u", id, s->kind[id]);
  if (check_offsets("token", s->offset, s->n_tokens, st)) return st->code;
  return check_offsets("merge", s->merge_offset, s->n_merges, st);
}

static rt_code no_memory(rt_status *st) { return rt_fail(st, RT_NO_MEMORY, "tokenizer: not enough memory for its tables"); }

/* Token bytes: what a normal token stands for, every other token's literal text. A normal token that is not written in the
 * byte alphabet keeps its literal text and is never produced. */
static rt_code copy_tokens(rt_bpe *restrict bpe, const rt_bpe_spec *restrict s, rt_status *restrict st) {
  const size_t n = s->n_tokens;
  bpe->bytes = malloc(s->offset[n] + 1);
  bpe->offset = malloc((n + 1) * sizeof *bpe->offset);
  bpe->kind = malloc(n);
  if (!bpe->bytes || !bpe->offset || !bpe->kind) return no_memory(st);
  int16_t alphabet[324];
  byte_alphabet(alphabet);
  memset(bpe->byte_token, 0xFF, sizeof bpe->byte_token);
  uint32_t at = 0;
  for (uint32_t id = 0; id < n; id++) {
    const uint8_t *text = s->text + s->offset[id];
    const uint32_t length = s->offset[id + 1] - s->offset[id];
    bpe->offset[id] = at;
    bpe->kind[id] = s->kind[id];
    size_t count = s->kind[id] == RT_TOKEN_NORMAL ? from_alphabet(alphabet, text, length, bpe->bytes + at) : 0;
    if (count == 1 && bpe->byte_token[bpe->bytes[at]] == NOTHING) bpe->byte_token[bpe->bytes[at]] = (int32_t)id;
    if (count == 0) {
      if (bpe->kind[id] == RT_TOKEN_NORMAL) bpe->kind[id] = RT_TOKEN_UNUSED;
      memcpy(bpe->bytes + at, text, length);
      count = length;
    }
    at += (uint32_t)count;
  }
  bpe->offset[n] = at;
  return RT_OK;
}

static uint64_t pair_key(int32_t left, int32_t right) { return (uint64_t)left << 32 | (uint32_t)right; }

/* Every token by its text as the file writes it; unused ones without a text are none. */
static rt_code name_tokens(rt_names *restrict names, const rt_bpe_spec *restrict s, rt_status *restrict st) {
  if (!rt_names_init(names, s->text, s->offset, s->n_tokens, s->seed)) return no_memory(st);
  for (uint32_t id = 0; id < s->n_tokens; id++) {
    if (s->kind[id] == RT_TOKEN_UNUSED && s->offset[id] == s->offset[id + 1]) continue;
    const uint32_t same = rt_names_add(names, id);
    if (same != RT_NO_NAME) return rt_fail(st, RT_BAD_FILE, "tokenizer: tokens %u and %u are the same text", same, id);
  }
  return RT_OK;
}

/* The merge of one rank. text: [n] "left right"; scratch: [n]. */
static rt_code copy_merge(rt_bpe *restrict bpe, const rt_names *restrict names, uint32_t rank, const uint8_t *restrict text,
                          size_t n, uint8_t *restrict scratch, rt_status *restrict st) {
  const uint8_t *space = memchr(text, ' ', n);
  const size_t left_n = space ? (size_t)(space - text) : n, right_n = space ? n - left_n - 1 : 0;
  if (!left_n || !right_n || memchr(space + 1, ' ', right_n))
    return rt_fail(st, RT_BAD_FILE, "tokenizer: merge %u is not two tokens with a space between them", rank);
  memcpy(scratch, text, left_n);
  memcpy(scratch + left_n, space + 1, right_n);
  const uint32_t left = rt_names_find(names, text, left_n), right = rt_names_find(names, space + 1, right_n);
  const uint32_t merged = rt_names_find(names, scratch, left_n + right_n);
  if (left == RT_NO_NAME || right == RT_NO_NAME || merged == RT_NO_NAME)
    return rt_fail(st, RT_BAD_FILE, "tokenizer: merge %u: %s is not a token", rank,
                   left == RT_NO_NAME    ? "its left side"
                   : right == RT_NO_NAME ? "its right side"
                                         : "what it makes");
  if (bpe->kind[merged] == RT_TOKEN_SPECIAL)
    return rt_fail(st, RT_BAD_FILE, "tokenizer: merge %u makes the special token %u", rank, merged);
  if (!rt_table_put(&bpe->pairs, pair_key((int32_t)left, (int32_t)right), (uint64_t)rank << 32 | merged))
    return rt_fail(st, RT_BAD_FILE, "tokenizer: merge %u, of tokens %u and %u, is there twice", rank, left, right);
  return RT_OK;
}

static rt_code copy_merges(rt_bpe *restrict bpe, const rt_bpe_spec *restrict s, rt_status *restrict st) {
  const uint32_t *offset = s->merge_offset;
  rt_names names = {0};
  uint8_t *scratch = malloc((size_t)offset[s->n_merges] + 1);
  if (!scratch || !rt_table_init(&bpe->pairs, s->n_merges, s->seed)) no_memory(st);
  else name_tokens(&names, s, st);
  for (uint32_t rank = 0; rank < s->n_merges && st->code == RT_OK; rank++)
    copy_merge(bpe, &names, rank, s->merge_text + offset[rank], offset[rank + 1] - offset[rank], scratch, st);
  free(names.slot);
  free(scratch);
  return st->code;
}

static rt_code build_trie(rt_bpe *restrict bpe, const rt_bpe_spec *restrict s, rt_status *restrict st) {
  uint64_t most = 0;
  for (uint32_t id = 0; id < s->n_tokens; id++) {
    const uint32_t length = bpe->offset[id + 1] - bpe->offset[id];
    if (bpe->kind[id] != RT_TOKEN_ADDED && bpe->kind[id] != RT_TOKEN_SPECIAL) continue;
    if (length > RT_MAX_ADDED_BYTES)
      return rt_fail(st, RT_BAD_FILE, "tokenizer: added token %u has %u bytes; at most %d are supported", id, length,
                     RT_MAX_ADDED_BYTES);
    most += length;
  }
  if (!rt_trie_init(&bpe->added, most, s->seed)) return no_memory(st);
  for (uint32_t id = 0; id < s->n_tokens; id++) {
    if (bpe->kind[id] != RT_TOKEN_ADDED && bpe->kind[id] != RT_TOKEN_SPECIAL) continue;
    const uint32_t at = bpe->offset[id];
    const int32_t same = rt_trie_add(&bpe->added, bpe->bytes + at, bpe->offset[id + 1] - at, (int32_t)id);
    if (same != NOTHING) return rt_fail(st, RT_BAD_FILE, "tokenizer: added tokens %d and %u are the same text", same, id);
  }
  return RT_OK;
}

/* ---- merging one word ----------------------------------------------------------------------------------------------- */

/* What one call of encode carries around. */
typedef struct encoder {
  const rt_bpe *restrict bpe;
  const uint8_t *restrict text; /* [n] */
  int32_t *ids;                 /* [count] */
  uint32_t *ends;               /* [count] or NULL */
  size_t count;
  uint64_t work;
  void *long_word; /* memory for words beyond SHORT_WORD bytes */
  size_t long_room;
} encoder;

static void emit(encoder *restrict e, int32_t id, size_t end) {
  if (e->ends) e->ends[e->count] = (uint32_t)end;
  e->ids[e->count++] = id;
}

static uint64_t merge_of(encoder *restrict e, int32_t left, int32_t right) {
  e->work++;
  return rt_table_get(&e->bpe->pairs, pair_key(left, right));
}

/* Merges text[at..end), at most SHORT_WORD bytes, and emits its tokens: again and again the leftmost pair of lowest rank. */
static void merge_short(encoder *restrict e, size_t at, size_t end) {
  int32_t id[SHORT_WORD];
  uint32_t stop[SHORT_WORD];
  uint64_t merge[SHORT_WORD]; /* of the pair that begins here: rank << 32 | merged, RT_NONE where there is none */
  size_t n = 0;
  for (; at < end; at++) {
    const int32_t token = e->bpe->byte_token[e->text[at]];
    if (token == NOTHING) continue;
    id[n] = token;
    stop[n++] = (uint32_t)(at + 1);
  }
  for (size_t i = 0; i + 1 < n; i++) merge[i] = merge_of(e, id[i], id[i + 1]);
  while (n > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < n; i++) best = merge[i] < merge[best] ? i : best;
    if (merge[best] == RT_NONE) break;
    id[best] = (int32_t)(uint32_t)merge[best];
    stop[best] = stop[best + 1];
    n--;
    for (size_t i = best + 1; i < n; i++) {
      id[i] = id[i + 1];
      stop[i] = stop[i + 1];
      merge[i] = merge[i + 1];
    }
    if (best > 0) merge[best - 1] = merge_of(e, id[best - 1], id[best]);
    if (best + 1 < n) merge[best] = merge_of(e, id[best], id[best + 1]);
    e->work += n;
  }
  for (size_t i = 0; i < n; i++) emit(e, id[i], stop[i]);
}

/* The symbols of a long word, linked in order. All arrays have one entry per symbol. */
typedef struct chain {
  uint64_t *merge;       /* of the pair that begins here, or RT_NONE */
  int32_t *id;           /* NOTHING once merged into the symbol before */
  uint32_t *stop;        /* where in the text the symbol ends */
  int32_t *next, *before; /* or NOTHING */
} chain;

static void renew(encoder *restrict e, chain *c, rt_heap *h, int32_t i) {
  c->merge[i] = c->next[i] == NOTHING ? RT_NONE : merge_of(e, c->id[i], c->id[c->next[i]]);
  if (c->merge[i] != RT_NONE) rt_heap_push(h, (c->merge[i] >> 32 << 32) | (uint32_t)i, &e->work);
}

static bool room_for(encoder *restrict e, size_t n, chain *c, rt_heap *h) {
  const size_t bytes = n * (3 * sizeof(uint64_t) + 4 * sizeof(int32_t));
  if (bytes > e->long_room) {
    free(e->long_word);
    e->long_word = malloc(bytes);
    e->long_room = e->long_word ? bytes : 0;
  }
  if (!e->long_word) return false;
  h->key = e->long_word;
  c->merge = h->key + 2 * n;
  c->id = (int32_t *)(c->merge + n);
  c->stop = (uint32_t *)(c->id + n);
  c->next = c->id + 2 * n;
  c->before = c->id + 3 * n;
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
  for (; at < end; at++) {
    c.id[n] = e->bpe->byte_token[e->text[at]];
    c.stop[n] = (uint32_t)(at + 1);
    c.before[n] = n - 1;
    c.next[n] = n + 1;
    n += c.id[n] != NOTHING;
  }
  if (n == 0) return RT_OK;
  c.next[n - 1] = NOTHING;
  for (int32_t i = 0; i < n; i++) renew(e, &c, &h, i);
  while (h.n > 0) {
    const uint64_t key = rt_heap_pop(&h, &e->work);
    const int32_t i = (int32_t)(uint32_t)key;
    if (c.id[i] == NOTHING || c.merge[i] == RT_NONE || c.merge[i] >> 32 != key >> 32) continue;
    const int32_t gone = c.next[i];
    c.id[i] = (int32_t)(uint32_t)c.merge[i];
    c.stop[i] = c.stop[gone];
    c.next[i] = c.next[gone];
    c.id[gone] = NOTHING;
    if (c.next[i] != NOTHING) c.before[c.next[i]] = i;
    renew(e, &c, &h, i);
    if (c.before[i] != NOTHING) renew(e, &c, &h, c.before[i]);
  }
  for (int32_t i = 0; i != NOTHING; i = c.next[i]) emit(e, c.id[i], c.stop[i]);
  return RT_OK;
}

/* ---- whole words ---------------------------------------------------------------------------------------------------- */

/* The token that word: [n] bytes encodes to, or NOTHING where it takes several. */
static int32_t whole_word(const rt_bpe *restrict bpe, const uint8_t *restrict word, size_t n) {
  return n > bpe->longest ? NOTHING : (int32_t)rt_names_find(&bpe->words, word, n);
}

static rt_code encode_word(encoder *restrict e, size_t at, size_t end, rt_status *restrict st) {
  const int32_t whole = whole_word(e->bpe, e->text + at, end - at);
  if (whole != NOTHING) {
    emit(e, whole, end);
    return RT_OK;
  }
  if (end - at > SHORT_WORD) return merge_long(e, at, end, st);
  merge_short(e, at, end);
  return RT_OK;
}

/* Whether the token's own bytes encode to it alone. */
static bool is_whole(encoder *restrict e, int32_t id, rt_status *restrict st) {
  const uint32_t at = e->bpe->offset[id], end = e->bpe->offset[id + 1];
  e->count = 0;
  if (end - at > SHORT_WORD) merge_long(e, at, end, st);
  else merge_short(e, at, end);
  return e->count == 1 && e->ids[0] == id;
}

static rt_code build_words(rt_bpe *restrict bpe, const rt_bpe_spec *restrict s, rt_status *restrict st) {
  uint32_t longest = 0;
  for (uint32_t id = 0; id < s->n_tokens; id++)
    if (bpe->offset[id + 1] - bpe->offset[id] > longest) longest = bpe->offset[id + 1] - bpe->offset[id];
  encoder e = {.bpe = bpe, .text = bpe->bytes, .ids = malloc(((size_t)longest + 1) * sizeof *e.ids)};
  if (!e.ids || !rt_names_init(&bpe->words, bpe->bytes, bpe->offset, s->n_tokens, s->seed)) no_memory(st);
  for (uint32_t id = 0; id < s->n_tokens && st->code == RT_OK; id++) {
    if (bpe->kind[id] != RT_TOKEN_NORMAL || !(s->ignore_merges || is_whole(&e, (int32_t)id, st))) continue;
    rt_names_add(&bpe->words, id);
    if (bpe->offset[id + 1] - bpe->offset[id] > bpe->longest) bpe->longest = bpe->offset[id + 1] - bpe->offset[id];
  }
  free(e.long_word);
  free(e.ids);
  return st->code;
}

rt_code rt_bpe_build(const rt_bpe_spec *restrict spec, rt_bpe **restrict out, rt_status *restrict st) {
  st->code = RT_OK;
  if (check_spec(spec, st)) return st->code;
  rt_bpe *bpe = calloc(1, sizeof *bpe);
  if (!bpe) return no_memory(st);
  bpe->n_tokens = spec->n_tokens;
  bpe->split = spec->split;
  if (copy_tokens(bpe, spec, st) || copy_merges(bpe, spec, st) || build_trie(bpe, spec, st) || build_words(bpe, spec, st)) {
    rt_bpe_free(bpe);
    return st->code;
  }
  *out = bpe;
  return RT_OK;
}

void rt_bpe_free(rt_bpe *bpe) {
  if (!bpe) return;
  free(bpe->bytes);
  free(bpe->offset);
  free(bpe->kind);
  free(bpe->pairs.entry);
  free(bpe->words.slot);
  rt_trie_free(&bpe->added);
  free(bpe);
}

/* ---- whole texts ---------------------------------------------------------------------------------------------------- */

static rt_code encode_words(encoder *restrict e, size_t at, size_t n, rt_status *restrict st) {
  e->work += n - at;
  while (at < n) {
    const size_t end = rt_word_end(e->bpe->split, e->text, at, n);
    if (encode_word(e, at, end, st)) return st->code;
    at = end;
  }
  return RT_OK;
}

static rt_code encode_text(encoder *restrict e, size_t n, bool allow_special, rt_status *restrict st) {
  size_t words = 0; /* where the text that is not an added token begins */
  for (size_t at = 0; at < n;) {
    size_t end = at + 1;
    const int32_t id = rt_trie_longest(&e->bpe->added, e->text, at, n, &end, &e->work);
    if (id != NOTHING && (allow_special || e->bpe->kind[id] == RT_TOKEN_ADDED)) {
      if (encode_words(e, words, at, st)) return st->code;
      emit(e, id, end);
      words = end;
    }
    at = end;
  }
  return encode_words(e, words, n, st);
}

rt_code rt_bpe_encode(const rt_bpe *restrict bpe, const uint8_t *restrict text, size_t n, bool allow_special,
                      int32_t *restrict ids, uint32_t *restrict ends, size_t *restrict count, uint64_t *restrict work,
                      rt_status *restrict st) {
  st->code = RT_OK;
  if (n > RT_MAX_TEXT) return rt_fail(st, RT_INVALID, "text: %zu bytes; at most %d can be encoded at once", n, RT_MAX_TEXT);
  encoder e = {.bpe = bpe, .text = text, .ids = ids, .ends = ends};
  encode_text(&e, n, allow_special, st);
  free(e.long_word);
  *count = e.count;
  *work = e.work;
  return st->code;
}

const uint8_t *rt_bpe_token(const rt_bpe *restrict bpe, int64_t id, size_t *restrict n) {
  if (id < 0 || id >= bpe->n_tokens) return NULL;
  *n = bpe->offset[id + 1] - bpe->offset[id];
  return bpe->bytes + bpe->offset[id];
}

int rt_bpe_known_bytes(const rt_bpe *bpe) {
  int known = 0;
  for (int byte = 0; byte < 256; byte++) known += bpe->byte_token[byte] != NOTHING;
  return known;
}
