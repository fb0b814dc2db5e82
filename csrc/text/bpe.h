/* Byte-level byte-pair encoding.
 *
 * A normal token's text is written in the byte alphabet of GPT-2.
 * A vocabulary is built once; what it learns of a word afterwards is the same whoever learns it, so any number of threads may
 * encode with it. Encoding splits the text at added tokens, then into words (split.h), and merges within each word: a word that
 * is a token is looked up whole, a short one is merged by scanning for the lowest rank, a long one with a heap. Time is n log n
 * for one word of n bytes, memory 36 n. */
#ifndef RT_BPE_H
#define RT_BPE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "text/split.h"
#include "text/tokens.h"

typedef struct rt_bpe_spec {
  uint32_t n_tokens;
  const uint8_t *text;      /* the UTF-8 of all tokens, one after another */
  const uint32_t *offset;   /* [n_tokens + 1] where each begins in text; the first is 0 */
  const uint8_t *kind;      /* [n_tokens] rt_token_kind */
  uint32_t n_merges;
  const uint8_t *merge_text;    /* "left right" of every merge, one after another, in order of rank */
  const uint32_t *merge_offset; /* [n_merges + 1] */
  rt_split split;
  bool ranked;              /* any two neighbours that make a token merge, in order of ids: there are no merges */
  bool ignore_merges;       /* a word that is a token is that token, whatever its merges say */
  uint64_t seed;            /* random: hash tables are laid out by it, results are not */
} rt_bpe_spec;

typedef struct rt_bpe rt_bpe;

/* Checks every number of *spec and copies what it needs. */
rt_code rt_bpe_build(const rt_bpe_spec *restrict spec, rt_bpe **restrict out, rt_status *restrict st);
void rt_bpe_free(rt_bpe *bpe);

/* The tokens of text: [n] bytes. Bytes that have no token are left out.
 * ids: [n] room for tokens; ends: [n] or NULL: where in text each token ends; *work: steps taken, for tests of linearity. */
rt_code rt_bpe_encode(const rt_bpe *restrict bpe, const uint8_t *restrict text, size_t n, bool allow_special,
                      int32_t *restrict ids, uint32_t *restrict ends, size_t *restrict count, uint64_t *restrict work,
                      rt_status *restrict st);

/* The bytes of one token, or NULL where id is not a token; *n their number. They live as long as bpe. */
const uint8_t *rt_bpe_token(const rt_bpe *restrict bpe, int64_t id, size_t *restrict n);

/* How many of the 256 bytes have a token of their own; with all 256 encoding loses nothing. */
int rt_bpe_known_bytes(const rt_bpe *bpe);
#endif
