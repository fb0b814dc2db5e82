/* The other families over a vocabulary of any bytes: what a build accepts must encode any text, in steps that grow with it, and
 * tell for each token where it ends; and added tokens and maps of characters of any bytes.
 * The input: which, flags, seed, unknown, counts, then the tokens' lengths, kinds and scores, then lengths of merges, then the
 * bytes of tokens and of merges, then the text. Now and then an offset is any number instead. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "text/added.h"
#include "text/chars.h"
#include "text/charsmap.h"
#include "text/unigram.h"
#include "text/wordpiece.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MOST_TOKENS = 64, MOST_MERGES = 32, BYTES = 256, BYTE_TEXT = 6, WITH_BYTES = 1, SPACES = 2, FUSE = 4, SPLIT = 8, WHOLE = 16 };
enum { CHARS, UNIGRAM, WORDS, ADDED, MAP, KINDS };

typedef struct source { const uint8_t *bytes; size_t left; } source;

static void must(int truth) {
  if (!truth) abort();
}

static uint32_t take(source *s, size_t n) {
  uint32_t x = 0;
  if (n > s->left) n = s->left;
  memcpy(&x, s->bytes, n);
  s->bytes += n, s->left -= n;
  return x;
}

/* Copies of their own, exactly as long as they must be. */
static void *own(size_t bytes) {
  void *memory = calloc(bytes ? bytes : 1, 1);
  must(memory != NULL);
  return memory;
}

static void good(rt_code code, const rt_status *st) { must(code == RT_OK || (st->message[0] && !strchr(st->message, '\n'))); }

static void check_tokens(const rt_vocab *vocab, const int32_t *ids, const uint32_t *ends, size_t count, size_t n, bool exact,
                         const uint8_t *text) {
  size_t length = 0, whole = 0;
  for (size_t i = 0; i < count; i++) {
    const uint8_t *bytes = rt_vocab_token(vocab, ids[i], &length);
    must(bytes != NULL && ends[i] <= n && (i == 0 || ends[i] >= ends[i - 1]));
    must(!exact || (ends[i] >= length && memcmp(bytes, text + ends[i] - length, length) == 0));
    whole += length;
  }
  must(!exact || whole == n);
  must(rt_vocab_token(vocab, -1, &length) == NULL && rt_vocab_token(vocab, vocab->n_tokens, &length) == NULL);
}

#define ENCODE(family, exact)                                                                                             \
  do {                                                                                                                    \
    int32_t *ids = own((s.left + 1) * sizeof *ids);                                                                       \
    uint32_t *ends = own((s.left + 1) * sizeof *ends);                                                                    \
    must(rt_##family##_encode(made, s.bytes, s.left, ids, ends, &count, &work, &st) == RT_OK && count <= s.left);         \
    must(work <= 128 * (s.left + 1));                                                                                     \
    check_tokens(rt_##family##_vocab(made), ids, ends, count, s.left, exact, s.bytes);                                    \
    free(ids), free(ends);                                                                                                \
    rt_##family##_free(made);                                                                                             \
  } while (0)

static void map_of_characters(source s, bool graphemes) {
  rt_status st = {0};
  rt_charsmap *map = NULL;
  size_t n = take(&s, 2);
  n %= s.left + 1;
  uint8_t *bytes = own(n), *out = NULL;
  size_t out_n = 0;
  memcpy(bytes, s.bytes, n);
  s.bytes += n, s.left -= n;
  const rt_code code = rt_charsmap_build(bytes, n, &map, &st);
  good(code, &st);
  free(bytes);
  if (code) return;
  must(rt_charsmap_apply(map, s.bytes, s.left, graphemes, &out, &out_n, &st) == RT_OK && out_n <= 256 * s.left);
  free(out);
  rt_charsmap_free(map);
}

static void added_tokens(source s, const rt_listed *listed) {
  rt_added_spec spec = {listed->n_tokens, listed->text, listed->offset, listed->kind, listed->seed};
  rt_status st = {0};
  rt_added *added = NULL;
  const rt_code code = rt_added_build(&spec, &added, &st);
  good(code, &st);
  if (code) return;
  uint32_t *span = own(3 * (s.left + 1) * sizeof *span);
  for (int allowed = 0; allowed < 2; allowed++) {
    size_t count = 0, last = 0;
    uint64_t work = 0;
    must(rt_added_find(added, s.bytes, s.left, allowed, span, &count, &work, &st) == RT_OK && count <= s.left);
    must(work <= 64 * (s.left + 1));
    for (size_t i = 0; i < count; i++, last = span[3 * i - 2]) {
      const uint32_t begin = span[3 * i], end = span[3 * i + 1], which = span[3 * i + 2];
      must(last <= begin && begin < end && end <= s.left && which < listed->n_tokens);
      must(allowed || !(listed->kind[which] & RT_ADDED_SPECIAL));
    }
  }
  free(span);
  rt_added_free(added);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  source s = {data, size};
  const uint32_t which = take(&s, 1) % KINDS, flags = take(&s, 1), seed = take(&s, 4);
  const int32_t unknown = (int32_t)take(&s, 1) - 1;
  if (which == MAP) {
    map_of_characters(s, flags & 1);
    return 0;
  }
  const uint32_t more = take(&s, 1) % (MOST_TOKENS + 1), first = flags & WITH_BYTES && which < WORDS ? BYTES : 0, n = first + more;
  const uint32_t n_merges = take(&s, 1) % (MOST_MERGES + 1);
  uint32_t *offset = own((n + 1) * sizeof *offset), *merge_offset = own((n_merges + 1) * sizeof *merge_offset);
  uint8_t *kind = own(n);
  double *score = own(n * sizeof *score);
  for (uint32_t i = 0; i < first; i++) kind[i] = RT_TOKEN_BYTE, offset[i + 1] = offset[i] + BYTE_TEXT;
  for (uint32_t i = first; i < n; i++) offset[i + 1] = offset[i] + take(&s, 1) % 12;
  for (uint32_t i = first; i < n; i++) kind[i] = (uint8_t)take(&s, 1), kind[i] = kind[i] < 250 ? kind[i] % 5 : kind[i];
  for (uint32_t i = first; i < n; i++) {
    const int32_t level = (int8_t)take(&s, 1);
    score[i] = level == -128 ? NAN : level == 127 ? INFINITY : (double)level / 4;
  }
  for (uint32_t i = 0; i < n_merges; i++) merge_offset[i + 1] = merge_offset[i] + take(&s, 1) % 12;
  uint8_t *text = own(offset[n]), *merges = own(merge_offset[n_merges]);
  for (uint32_t i = 0; i < first; i++) {
    char name[BYTE_TEXT + 1];
    snprintf(name, sizeof name, "<0x%02X>", i);
    memcpy(text + offset[i], name, BYTE_TEXT);
  }
  for (uint32_t at = offset[first]; at < offset[n]; at++) text[at] = (uint8_t)take(&s, 1);
  for (uint32_t at = 0; at < merge_offset[n_merges]; at++) merges[at] = (uint8_t)take(&s, 1);
  const uint32_t odd = take(&s, 1), value = take(&s, 4);
  if (odd > 250 && n) offset[value % n] = value; /* the last one says how long the text is */
  if (odd > 245 && odd <= 250 && n_merges) merge_offset[value % n_merges] = value;
  const rt_listed listed = {n, text, offset, kind, flags & SPACES, seed};
  rt_status st = {0};
  size_t count = 0;
  uint64_t work = 0;
  if (which == CHARS) {
    rt_chars *made = NULL;
    const rt_chars_spec spec = {listed, n_merges, merges, merge_offset, unknown, flags & FUSE, flags & SPLIT, flags & WHOLE};
    const rt_code code = rt_chars_build(&spec, &made, &st);
    good(code, &st);
    if (code == RT_OK) ENCODE(chars, first > 0);
  } else if (which == UNIGRAM) {
    rt_unigram *made = NULL;
    const rt_unigram_spec spec = {listed, score, -32, unknown, flags & SPLIT, flags & WHOLE};
    const rt_code code = rt_unigram_build(&spec, &made, &st);
    good(code, &st);
    if (code == RT_OK) ENCODE(unigram, first > 0);
  } else if (which == WORDS) {
    rt_wordpiece *made = NULL;
    const rt_wordpiece_spec spec = {listed, (const uint8_t *)"##", flags & FUSE ? 2 : 0, flags >> 3, unknown};
    const rt_code code = rt_wordpiece_build(&spec, &made, &st);
    good(code, &st);
    if (code == RT_OK) ENCODE(wordpiece, false);
  } else {
    added_tokens(s, &listed);
  }
  free(text), free(merges), free(offset), free(merge_offset), free(kind), free(score);
  return 0;
}
