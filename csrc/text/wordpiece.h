/* BERT's WordPiece: words, and signs of punctuation apart from them; of each word the longest token it begins with, again and
 * again, where what is not a beginning is written with a prefix such as "##"; or the unknown token where that fails.
 *
 * White space belongs to no token. The text has been lower-cased and the like before. A vocabulary is built once and never
 * changes, so any number of threads may encode with it. Time is n times the longest token's bytes at most, without memory. */
#ifndef RT_WORDPIECE_H
#define RT_WORDPIECE_H
#include "text/vocab.h"

typedef struct rt_wordpiece_spec {
  rt_listed listed;
  const uint8_t *prefix; /* [prefix_n] what tokens within a word begin with */
  uint32_t prefix_n;
  uint32_t most_chars;   /* a word of more characters is unknown */
  int32_t unknown;
} rt_wordpiece_spec;

typedef struct rt_wordpiece rt_wordpiece;

/* Checks every number of *spec and copies what it needs. */
rt_code rt_wordpiece_build(const rt_wordpiece_spec *restrict spec, rt_wordpiece **restrict out, rt_status *restrict st);
void rt_wordpiece_free(rt_wordpiece *wordpiece);

/* The tokens of text: [n] bytes.
 * ids: [n]; ends: [n] or NULL: where in text each token ends; *work: steps taken, for tests of linearity. */
rt_code rt_wordpiece_encode(const rt_wordpiece *restrict wordpiece, const uint8_t *restrict text, size_t n, int32_t *restrict ids,
                            uint32_t *restrict ends, size_t *restrict count, uint64_t *restrict work, rt_status *restrict st);

const rt_vocab *rt_wordpiece_vocab(const rt_wordpiece *wordpiece);
#endif
