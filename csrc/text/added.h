/* Added tokens: texts that are found in a text before anything else is done with it, the longest at the leftmost place. */
#ifndef RT_ADDED_H
#define RT_ADDED_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "text/tokens.h"

typedef enum rt_added_flag {
  RT_ADDED_SPECIAL = 1, /* found only where special tokens are allowed */
  RT_ADDED_LEFT = 2,    /* takes the white space before it along */
  RT_ADDED_RIGHT = 4    /* and behind it */
} rt_added_flag;

typedef struct rt_added_spec {
  uint32_t n;
  const uint8_t *text;    /* the UTF-8 of all of them, one after another */
  const uint32_t *offset; /* [n + 1] where each begins in text; the first is 0 */
  const uint8_t *flags;   /* [n] rt_added_flag */
  uint64_t seed;          /* random: hash tables are laid out by it, results are not */
} rt_added_spec;

typedef struct rt_added rt_added;

/* Checks every number of *spec and copies what it needs. Texts that are empty are never found. */
rt_code rt_added_build(const rt_added_spec *restrict spec, rt_added **restrict out, rt_status *restrict st);
void rt_added_free(rt_added *added);

/* What is found in text: [n] bytes. span: [3 * n] room for (begin, end, which of spec's) of each. *work: steps taken. */
rt_code rt_added_find(const rt_added *restrict added, const uint8_t *restrict text, size_t n, bool allow_special,
                      uint32_t *restrict span, size_t *restrict count, uint64_t *restrict work, rt_status *restrict st);
#endif
