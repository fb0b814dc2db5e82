#include "text/bpe.h"

#include <stdlib.h>
#include <string.h>

#include "text/merge.h"
#include "text/trie.h"
#include "text/vocab.h"

enum { NOTHING = RT_NO_TOKEN };
enum { UNASKED = 0, WHOLE, IN_PARTS };

struct rt_bpe {
  uint32_t n_tokens, longest; /* longest: bytes of the longest word that is a token */
  uint8_t *bytes;             /* the bytes of all tokens */
  uint32_t *offset;           /* [n_tokens + 1] */
  uint8_t *kind;              /* [n_tokens] */
  int32_t byte_token[256];    /* or NOTHING */
  rt_table pairs;             /* left << 32 | right -> rank << 32 | merged */
  rt_names words;             /* normal tokens */
  uint8_t *whole;             /* [n_tokens] of a normal token, whether its own bytes encode to it: known once it was asked */
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

static rt_code check_spec(const rt_bpe_spec *restrict s, rt_status *restrict st) {
  if (s->n_tokens == 0 || s->n_tokens > RT_MAX_TOKENS)
    return rt_fail(st, RT_BAD_FILE, "tokenizer: %u tokens; the vocabulary must have 1 to %d", s->n_tokens, RT_MAX_TOKENS);
  if ((unsigned)s->split >= RT_SPLIT_COUNT) return rt_fail(st, RT_BAD_FILE, "tokenizer: no pre-tokenizer %d", (int)s->split);
  for (uint32_t id = 0; id < s->n_tokens; id++)
    if (s->kind[id] > RT_TOKEN_UNUSED) return rt_fail(st, RT_BAD_FILE, "tokenizer: token %u is of kind %u", id, s->kind[id]);
  return rt_check_offsets("token", s->offset, s->n_tokens, st);
}

/* Token bytes: what a normal token stands for, every other token's literal text. A normal token that is not written in the
 * byte alphabet keeps its literal text and is never produced. */
static rt_code copy_tokens(rt_bpe *restrict bpe, const rt_bpe_spec *restrict s, rt_status *restrict st) {
  const size_t n = s->n_tokens;
  bpe->bytes = malloc(s->offset[n] + 1);
  bpe->offset = malloc((n + 1) * sizeof *bpe->offset);
  bpe->kind = malloc(n);
  if (!bpe->bytes || !bpe->offset || !bpe->kind) return rt_no_memory(st);
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

/* Every two neighbours that make a token merge into it, in order of ids. */
static rt_code rank_tokens(rt_bpe *restrict bpe, const rt_bpe_spec *restrict s, rt_status *restrict st) {
  rt_names names = {0};
  if (!rt_names_init(&names, bpe->bytes, bpe->offset, s->n_tokens, s->seed)) return rt_no_memory(st);
  for (uint32_t id = 0; id < s->n_tokens && st->code == RT_OK; id++) {
    const uint32_t same = bpe->kind[id] == RT_TOKEN_NORMAL ? rt_names_add(&names, id, s->n_tokens) : RT_NO_NAME;
    if (same != RT_NO_NAME) rt_fail(st, RT_BAD_FILE, "tokenizer: tokens %u and %u are the same bytes", same, id);
    else if (bpe->offset[id + 1] - bpe->offset[id] > RT_MAX_PIECE_BYTES)
      rt_fail(st, RT_BAD_FILE, "tokenizer: token %u has %u bytes; at most %d are supported", id,
              bpe->offset[id + 1] - bpe->offset[id], RT_MAX_PIECE_BYTES);
  }
  uint64_t count = 0;
  for (int pass = 0; pass < 2 && st->code == RT_OK; pass++) { /* the first counts */
    if (pass && !rt_table_init(&bpe->pairs, count, s->seed)) rt_no_memory(st);
    for (uint32_t id = 0; id < s->n_tokens && st->code == RT_OK; id++) {
      const uint8_t *bytes = bpe->bytes + bpe->offset[id];
      const uint32_t length = bpe->offset[id + 1] - bpe->offset[id];
      for (uint32_t cut = 1; bpe->kind[id] == RT_TOKEN_NORMAL && cut < length; cut++) {
        const uint32_t left = rt_names_find(&names, bytes, cut), right = rt_names_find(&names, bytes + cut, length - cut);
        if (left == RT_NO_NAME || right == RT_NO_NAME) continue;
        if (pass) rt_table_put(&bpe->pairs, rt_pair_key((int32_t)left, (int32_t)right), (uint64_t)id << 32 | id);
        else count++;
      }
    }
  }
  free(names.slot);
  return st->code;
}

static rt_code build_merges(rt_bpe *restrict bpe, const rt_bpe_spec *restrict s, rt_status *restrict st) {
  if (s->ranked) return rank_tokens(bpe, s, st);
  const rt_listed listed = {s->n_tokens, s->text, s->offset, s->kind, false, s->seed};
  return rt_read_merges(&bpe->pairs, &listed, s->n_merges, s->merge_text, s->merge_offset, false, st);
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
  if (!rt_trie_init(&bpe->added, most, s->seed)) return rt_no_memory(st);
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
  void *long_word; /* memory for words beyond RT_SHORT_WORD bytes */
  size_t long_room;
} encoder;

static void emit(encoder *restrict e, int32_t id, size_t end) {
  if (e->ends) e->ends[e->count] = (uint32_t)end;
  e->ids[e->count++] = id;
}

/* The tokens of the bytes text[at..end) that have one, unmerged; returns how many. */
static size_t symbols(const encoder *restrict e, size_t at, size_t end, int32_t *restrict id, uint32_t *restrict stop) {
  size_t n = 0;
  for (; at < end; at++) {
    id[n] = e->bpe->byte_token[e->text[at]];
    stop[n] = (uint32_t)(at + 1);
    n += id[n] != NOTHING;
  }
  return n;
}

static void emit_all(encoder *restrict e, const int32_t *restrict id, const uint32_t *restrict stop, size_t n) {
  for (size_t i = 0; i < n; i++) emit(e, id[i], stop[i]);
}

/* Merges text[at..end), and emits its tokens. */
static rt_code merge_word(encoder *restrict e, size_t at, size_t end, rt_status *restrict st) {
  const rt_table *pairs = &e->bpe->pairs;
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

/* ---- whole words ---------------------------------------------------------------------------------------------------- */

/* The normal token of a word: [n] bytes, or NOTHING. */
static int32_t whole_word(const rt_bpe *restrict bpe, const uint8_t *restrict word, size_t n) {
  return n > bpe->longest ? NOTHING : (int32_t)rt_names_find(&bpe->words, word, n);
}

/* A word that is a token need not encode to it. Whoever meets it first merges it and writes down what came out: merging goes
 * the same way every time, so threads that write write the same. */
static rt_code encode_word(encoder *restrict e, size_t at, size_t end, rt_status *restrict st) {
  const int32_t id = whole_word(e->bpe, e->text + at, end - at);
  const int known = id == NOTHING ? IN_PARTS : __atomic_load_n(&e->bpe->whole[id], __ATOMIC_RELAXED);
  if (known == WHOLE) {
    emit(e, id, end);
    return RT_OK;
  }
  const size_t first = e->count;
  if (merge_word(e, at, end, st) || known == IN_PARTS) return st->code;
  const bool whole = e->count == first + 1 && e->ids[first] == id;
  __atomic_store_n(&e->bpe->whole[id], whole ? WHOLE : IN_PARTS, __ATOMIC_RELAXED);
  return RT_OK;
}

static rt_code build_words(rt_bpe *restrict bpe, const rt_bpe_spec *restrict s, rt_status *restrict st) {
  bpe->whole = malloc(s->n_tokens);
  if (!bpe->whole || !rt_names_init(&bpe->words, bpe->bytes, bpe->offset, s->n_tokens, s->seed)) return rt_no_memory(st);
  memset(bpe->whole, s->ignore_merges ? WHOLE : UNASKED, s->n_tokens);
  for (uint32_t id = 0; id < s->n_tokens; id++) {
    if (bpe->kind[id] != RT_TOKEN_NORMAL) continue;
    rt_names_add(&bpe->words, id, s->n_tokens);
    if (bpe->offset[id + 1] - bpe->offset[id] > bpe->longest) bpe->longest = bpe->offset[id + 1] - bpe->offset[id];
  }
  return st->code;
}

rt_code rt_bpe_build(const rt_bpe_spec *restrict spec, rt_bpe **restrict out, rt_status *restrict st) {
  st->code = RT_OK;
  if (check_spec(spec, st)) return st->code;
  rt_bpe *bpe = calloc(1, sizeof *bpe);
  if (!bpe) return rt_no_memory(st);
  bpe->n_tokens = spec->n_tokens;
  bpe->split = spec->split;
  if (copy_tokens(bpe, spec, st) || build_merges(bpe, spec, st) || build_trie(bpe, spec, st) || build_words(bpe, spec, st)) {
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
  free(bpe->whole);
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
