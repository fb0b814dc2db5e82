/* Byte-pair encoding as SentencePiece does it: characters merge into the token of the highest score that two neighbours make,
 * the leftmost of equals first; a character that no token holds becomes the tokens of its bytes.
 *
 * A token writes a space as U+2581, so that both mean a space here and come back as one. A vocabulary is built once and never
 * changes, so any number of threads may encode with it. Time is n log n for a text of n bytes, memory 40 n of its longest
 * stretch that merges could reach across: where no token has a space behind a certain character, none ever crosses there. */
#ifndef RT_SPM_H
#define RT_SPM_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "text/tokens.h"

typedef struct rt_spm_spec {
  uint32_t n_tokens;
  const uint8_t *text;    /* the UTF-8 of all tokens, one after another */
  const uint32_t *offset; /* [n_tokens + 1] where each begins in text; the first is 0 */
  const uint8_t *kind;    /* [n_tokens] rt_token_kind */
  const float *score;     /* [n_tokens] read of normal tokens only */
  int32_t unknown;        /* token of characters without one where bytes have none either, or -1 */
  bool space_prefix;      /* a space goes before a text, and before text behind a special token */
  uint64_t seed;          /* random: hash tables are laid out by it, results are not */
} rt_spm_spec;

typedef struct rt_spm rt_spm;

/* Checks every number of *spec and copies what it needs. */
rt_code rt_spm_build(const rt_spm_spec *restrict spec, rt_spm **restrict out, rt_status *restrict st);
void rt_spm_free(rt_spm *spm);

/* The most tokens that n bytes of text can become. */
size_t rt_spm_most(const rt_spm *spm, size_t n);

/* The tokens of text: [n] bytes. Where neither bytes nor unknown characters have a token they are left out.
 * ids: [rt_spm_most]; ends: the same or NULL: where in text each token ends; *work: steps taken, for tests of linearity. */
rt_code rt_spm_encode(const rt_spm *restrict spm, const uint8_t *restrict text, size_t n, bool allow_special,
                      int32_t *restrict ids, uint32_t *restrict ends, size_t *restrict count, uint64_t *restrict work,
                      rt_status *restrict st);

/* The bytes of one token, or NULL where id is not a token; *n their number. They live as long as spm. */
const uint8_t *rt_spm_token(const rt_spm *restrict spm, int64_t id, size_t *restrict n);
#endif
