/* What families of tokenizers share: tokens as a file lists them, checked and copied, and the merges between them. */
#ifndef RT_VOCAB_H
#define RT_VOCAB_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "text/table.h"
#include "text/tokens.h"
#include "text/trie.h"

/* Tokens as the file writes them. */
typedef struct rt_listed {
  uint32_t n_tokens;
  const uint8_t *text;    /* the UTF-8 of all tokens, one after another */
  const uint32_t *offset; /* [n_tokens + 1] where each begins in text; the first is 0 */
  const uint8_t *kind;    /* [n_tokens] rt_token_kind */
  bool spaces;            /* a token that is not special writes a space as U+2581 */
  uint64_t seed;          /* random: hash tables are laid out by it, results are not */
} rt_listed;

/* What they stand for. */
typedef struct rt_vocab {
  uint32_t n_tokens;
  uint8_t *bytes;          /* the bytes of all tokens */
  uint32_t *offset;        /* [n_tokens + 1] */
  uint8_t *kind;           /* [n_tokens] */
  int32_t byte_token[256]; /* RT_TOKEN_BYTE of each byte, or RT_NO_TOKEN */
} rt_vocab;

rt_code rt_no_memory(rt_status *st);

/* offset: [n + 1] places in a text, none before the one before it. */
rt_code rt_check_offsets(const char *what, const uint32_t *restrict offset, uint32_t n, rt_status *restrict st);

/* Checks every number of *listed and copies. *vocab is zero before; rt_vocab_free frees it, after a failure too. */
rt_code rt_vocab_copy(rt_vocab *restrict vocab, const rt_listed *restrict listed, rt_status *restrict st);
void rt_vocab_free(rt_vocab *vocab);

/* The bytes of one token, or NULL where id is not a token; *n their number. They live as long as vocab. */
const uint8_t *rt_vocab_token(const rt_vocab *restrict vocab, int64_t id, size_t *restrict n);

/* The byte tokens of text[at..end) if every byte has one: whether each has. */
static inline bool rt_has_bytes(const rt_vocab *restrict vocab, const uint8_t *restrict text, size_t at, size_t end) {
  while (at < end && vocab->byte_token[text[at]] != RT_NO_TOKEN) at++;
  return at == end;
}

/* A trie of the normal tokens, without the first `skip` bytes of each; RT_MAX_PIECE_BYTES at most, so that a step at every byte
 * of a text stays cheap. A token is left out where skip is not 0 and it does not begin with prefix: [skip]. */
rt_code rt_vocab_trie(rt_trie *restrict trie, const rt_vocab *restrict vocab, const uint8_t *restrict prefix, size_t skip,
                      uint64_t seed, rt_status *restrict st);

/* Merges into *pairs (merge.h). A merge that makes a special token is an error, or left out with `leave_special`: text never
 * becomes one. text: "left right" of every merge, one after another, in order of rank; offset: [n + 1]. */
rt_code rt_read_merges(rt_table *restrict pairs, const rt_listed *restrict listed, uint32_t n, const uint8_t *restrict text,
                       const uint32_t *restrict offset, bool leave_special, rt_status *restrict st);
#endif
