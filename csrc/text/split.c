#include "text/split.h"

#include <stdbool.h>

/* The end of the run of characters of one class that begins at text[at]. */
static size_t run_end(rt_class class, const uint8_t *restrict text, size_t at, size_t n) {
  while (at < n) {
    const rt_char c = rt_char_at(text, at, n);
    if (c.class != class) break;
    at = c.end;
  }
  return at;
}

static uint32_t code_at(const uint8_t *restrict text, size_t at, size_t n) {
  return at < n ? rt_char_at(text, at, n).code : UINT32_MAX;
}

/* 's|'t|'re|'ve|'m|'ll|'d after the apostrophe at text[at]; 0 when there is none. Either case with `fold`, where the long s
 * (U+017F) is an s too. */
static size_t contraction_end(const uint8_t *restrict text, size_t at, size_t n, bool fold) {
  if (at + 1 >= n) return 0;
  if (fold && code_at(text, at + 1, n) == 0x17F) return at + 3;
  const uint8_t lower = fold ? 0x20 : 0;
  const uint8_t a = text[at + 1] | lower, b = at + 2 < n ? text[at + 2] | lower : 0;
  if (a == 's' || a == 't' || a == 'm' || a == 'd') return at + 2;
  if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return at + 3;
  return 0;
}

/* \s+(?!\S)|\s+ at a space: the run, without its last character where a character of the same piece follows. */
static size_t spaces_end(const uint8_t *restrict text, size_t at, size_t n, bool digits_apart) {
  size_t end = at, last = at;
  rt_class next = RT_SPACE;
  while (end < n) {
    const rt_char c = rt_char_at(text, end, n);
    next = c.class;
    if (next != RT_SPACE) break;
    last = end;
    end = c.end;
  }
  const bool piece_ends = end == n || (digits_apart && next == RT_NUMBER);
  return piece_ends || last == at ? end : last;
}

/* gpt2:   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 * smollm: every \p{N} is a piece of its own, then the same within each piece between them. */
static size_t gpt2_end(const uint8_t *restrict text, size_t at, size_t n, bool digits_apart) {
  rt_char c = rt_char_at(text, at, n);
  if (digits_apart && c.class == RT_NUMBER) return c.end;
  if (c.code == '\'') {
    const size_t end = contraction_end(text, at, n, false);
    if (end) return end;
  }
  if (c.class != RT_SPACE) return run_end(c.class, text, c.end, n);
  if (c.code == ' ' && c.end < n) {
    const rt_char next = rt_char_at(text, c.end, n);
    if (next.class != RT_SPACE && !(digits_apart && next.class == RT_NUMBER)) return run_end(next.class, text, next.end, n);
  }
  return spaces_end(text, at, n, digits_apart);
}

static bool is_newline(uint32_t code) { return code == '\n' || code == '\r'; }

static size_t newlines_end(const uint8_t *restrict text, size_t at, size_t n) {
  while (at < n && is_newline(text[at])) at++;
  return at;
}

/* \s*[\r\n]+|\s+(?!\S)|\s+ at a space. */
static size_t lines_or_spaces_end(const uint8_t *restrict text, size_t at, size_t n) {
  size_t after_newline = 0;
  for (size_t end = at; end < n;) {
    const rt_char c = rt_char_at(text, end, n);
    if (c.class != RT_SPACE) break;
    end = c.end;
    if (is_newline(c.code)) after_newline = end;
  }
  return after_newline ? after_newline : spaces_end(text, at, n, false);
}

/* llama3: (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
 * qwen2:  the same with \p{N} alone. */
static size_t llama3_end(const uint8_t *restrict text, size_t at, size_t n, int most_digits) {
  const rt_char c = rt_char_at(text, at, n);
  if (c.code == '\'') {
    const size_t end = contraction_end(text, at, n, true);
    if (end) return end;
  }
  if (c.class == RT_LETTER) return run_end(RT_LETTER, text, c.end, n);
  if (c.class == RT_NUMBER) {
    size_t end = c.end;
    for (int k = 1; k < most_digits && end < n; k++) {
      const rt_char next = rt_char_at(text, end, n);
      if (next.class != RT_NUMBER) break;
      end = next.end;
    }
    return end;
  }
  const rt_char next = c.end < n ? rt_char_at(text, c.end, n) : (rt_char){UINT32_MAX, RT_SPACE, n};
  if (next.class == RT_LETTER && !is_newline(c.code)) return run_end(RT_LETTER, text, next.end, n);
  if (c.class == RT_OTHER) return newlines_end(text, run_end(RT_OTHER, text, c.end, n), n);
  if (c.code == ' ' && next.class == RT_OTHER) return newlines_end(text, run_end(RT_OTHER, text, next.end, n), n);
  return lines_or_spaces_end(text, at, n);
}

size_t rt_word_end(rt_split split, const uint8_t *restrict text, size_t at, size_t n) {
  switch (split) {
    case RT_SPLIT_SMOLLM: return gpt2_end(text, at, n, true);
    case RT_SPLIT_LLAMA3: return llama3_end(text, at, n, 3);
    case RT_SPLIT_QWEN2: return llama3_end(text, at, n, 1);
    default: return gpt2_end(text, at, n, false);
  }
}
