/* SentencePiece's unigram model: of all ways to cut a text into tokens, the one whose scores make the highest sum.
 *
 * A character without a token costs ten more than the worst token, and becomes the tokens of its bytes or the unknown token,
 * which neighbours share. The text is as the tokens write it, a space for every U+2581. A vocabulary is built once and never
 * changes, so any number of threads may encode with it. Time is n times the longest token's bytes at most, memory 16 bytes a
 * byte of the longest stretch that tokens could reach across. */
#ifndef RT_UNIGRAM_H
#define RT_UNIGRAM_H
#include "text/vocab.h"

typedef struct rt_unigram_spec {
  rt_listed listed;
  const double *score; /* [n_tokens] read of normal tokens only */
  double least;        /* the worst score there is */
  int32_t unknown;     /* or -1: characters that have neither token nor bytes are left out */
  bool split_words;    /* no token reaches across the place before a space, and sums begin anew there */
  bool single;         /* sums are rounded to 32 bits, as the `sentencepiece` package keeps them */
} rt_unigram_spec;

typedef struct rt_unigram rt_unigram;

/* Checks every number of *spec and copies what it needs. */
rt_code rt_unigram_build(const rt_unigram_spec *restrict spec, rt_unigram **restrict out, rt_status *restrict st);
void rt_unigram_free(rt_unigram *unigram);

/* The tokens of text: [n] bytes.
 * ids: [n]; ends: [n] or NULL: where in text each token ends; *work: steps taken, for tests of linearity. */
rt_code rt_unigram_encode(const rt_unigram *restrict unigram, const uint8_t *restrict text, size_t n, int32_t *restrict ids,
                          uint32_t *restrict ends, size_t *restrict count, uint64_t *restrict work, rt_status *restrict st);

const rt_vocab *rt_unigram_vocab(const rt_unigram *unigram);
#endif
