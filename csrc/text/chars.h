/* Byte-pair encoding over characters: a text's characters merge by a list of merges as its bytes do in bpe.h; a character that
 * no token holds becomes the tokens of its bytes, or the unknown token.
 *
 * What SentencePiece's BPE becomes in a tokenizer.json. The text is as the tokens write it, a space for every U+2581. A
 * vocabulary is built once and never changes, so any number of threads may encode with it. Time is n log n for a text of n
 * bytes, memory 40 n of its longest stretch that merges could reach across. */
#ifndef RT_CHARS_H
#define RT_CHARS_H
#include "text/vocab.h"

typedef struct rt_chars_spec {
  rt_listed listed;
  uint32_t n_merges;
  const uint8_t *merge_text;    /* "left right" of every merge, one after another, in order of rank */
  const uint32_t *merge_offset; /* [n_merges + 1] */
  int32_t unknown;              /* token of characters without one where bytes have none either, or -1 */
  bool fuse_unknown;            /* neighbours of them share one */
  bool split_words;             /* nothing merges across the place before a space */
  bool ignore_merges;           /* a word, or a text that is not split, that is a token is that token */
} rt_chars_spec;

typedef struct rt_chars rt_chars;

/* Checks every number of *spec and copies what it needs. */
rt_code rt_chars_build(const rt_chars_spec *restrict spec, rt_chars **restrict out, rt_status *restrict st);
void rt_chars_free(rt_chars *chars);

/* The tokens of text: [n] bytes. Where neither bytes nor unknown characters have a token they are left out.
 * ids: [n]; ends: [n] or NULL: where in text each token ends; *work: steps taken, for tests of linearity. */
rt_code rt_chars_encode(const rt_chars *restrict chars, const uint8_t *restrict text, size_t n, int32_t *restrict ids,
                        uint32_t *restrict ends, size_t *restrict count, uint64_t *restrict work, rt_status *restrict st);

const rt_vocab *rt_chars_vocab(const rt_chars *chars);
#endif
