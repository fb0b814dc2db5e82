/* Pre-tokenizers: where the words of a text end. Each is one pass over the text, equal to the regular expression above it
 * in split.c as the `tokenizers` package reads it. */
#ifndef RT_SPLIT_H
#define RT_SPLIT_H
#include "text/unicode.h"

typedef enum rt_split {
  RT_SPLIT_GPT2 = 0,
  RT_SPLIT_SMOLLM,
  RT_SPLIT_LLAMA3,
  RT_SPLIT_QWEN2,
  RT_SPLIT_TEKKEN,
  RT_SPLIT_GPT4O,
  RT_SPLIT_DEEPSEEK,
  RT_SPLIT_COUNT
} rt_split;

/* Where the word that begins at text[at] ends; at < n, and at < result <= n. text: [n] bytes. */
size_t rt_word_end(rt_split split, const uint8_t *restrict text, size_t at, size_t n);
#endif
