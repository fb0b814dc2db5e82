/* SentencePiece's precompiled map of characters: which texts a normalizer exchanges for which.
 *
 * Its bytes are the size of a trie in u32, the trie (a double array: units of 32 bits as darts-clone lays them), then texts
 * that end with a zero. A map is read where it is used, each unit and text checked against what is there. */
#ifndef RT_CHARSMAP_H
#define RT_CHARSMAP_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct rt_charsmap rt_charsmap;

/* map: [n] as the file has it. */
rt_code rt_charsmap_build(const uint8_t *restrict map, size_t n, rt_charsmap **restrict out, rt_status *restrict st);
void rt_charsmap_free(rt_charsmap *map);

/* text: [n] bytes, mapped; *out: [*out_n] is the caller's to free. At every place the longest text that has an entry is
 * exchanged; with `graphemes` it is as the `tokenizers` package does it: a grapheme below six bytes is exchanged whole for
 * what its shortest beginning maps to, any other text character by character. */
rt_code rt_charsmap_apply(const rt_charsmap *restrict map, const uint8_t *restrict text, size_t n, bool graphemes,
                          uint8_t **restrict out, size_t *restrict out_n, rt_status *restrict st);
#endif
