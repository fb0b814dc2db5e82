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

static size_t digits_end(const uint8_t *restrict text, size_t at, size_t n, int most) {
  for (int k = 0; k < most && at < n; k++) {
    const rt_char c = rt_char_at(text, at, n);
    if (c.class != RT_NUMBER) break;
    at = c.end;
  }
  return at;
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
  if (c.class == RT_NUMBER) return digits_end(text, at, n, most_digits);
  const rt_char next = c.end < n ? rt_char_at(text, c.end, n) : (rt_char){UINT32_MAX, RT_SPACE, RT_KIND_SPACE, n};
  if (next.class == RT_LETTER && !is_newline(c.code)) return run_end(RT_LETTER, text, next.end, n);
  if (c.class == RT_OTHER) return newlines_end(text, run_end(RT_OTHER, text, c.end, n), n);
  if (c.code == ' ' && next.class == RT_OTHER) return newlines_end(text, run_end(RT_OTHER, text, next.end, n), n);
  return lines_or_spaces_end(text, at, n);
}

static bool is_capital(rt_kind kind) { return kind == RT_KIND_UPPER || kind == RT_KIND_CASELESS || kind == RT_KIND_MARK; }
static bool is_small(rt_kind kind) { return kind == RT_KIND_LOWER || kind == RT_KIND_CASELESS || kind == RT_KIND_MARK; }

/* [U]*[L]+|[U]+[L]* at text[at], where U is [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}] and L is [\p{Ll}\p{Lm}\p{Lo}\p{M}]; at where neither
 * matches. Without a lower-case letter behind the run of U, U* gives back what it took until L+ has a character of both: `first`
 * tells whether there is one, and with it the first of the two matches. */
static size_t cased_end(const uint8_t *restrict text, size_t at, size_t n, bool *restrict first) {
  size_t end = at, both = 0;
  rt_char c = {0, RT_OTHER, RT_KIND_NONE, at};
  while (end < n && is_capital((c = rt_char_at(text, end, n)).kind)) {
    end = c.end;
    if (c.kind != RT_KIND_UPPER) both = end;
  }
  *first = both || (end < n && c.kind == RT_KIND_LOWER);
  if (end < n && c.kind == RT_KIND_LOWER) {
    while (end < n && is_small((c = rt_char_at(text, end, n)).kind)) end = c.end;
    return end;
  }
  return both ? both : end;
}

static size_t newlines_or_slashes_end(const uint8_t *restrict text, size_t at, size_t n) {
  while (at < n && (is_newline(text[at]) || text[at] == '/')) at++;
  return at;
}

/* With U and L as above:
 * tekken: [^\r\n\p{L}\p{N}]?[U]*[L]+|[^\r\n\p{L}\p{N}]?[U]+[L]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+
 * gpt-4o: the same with (?i:'s|'t|'re|'ve|'m|'ll|'d)? behind each of the first two, and \p{N}{1,3}. */
static size_t cased_words_end(const uint8_t *restrict text, size_t at, size_t n, bool contractions, int most_digits) {
  const rt_char c = rt_char_at(text, at, n);
  const bool before = c.class != RT_LETTER && c.class != RT_NUMBER && !is_newline(c.code);
  bool first;
  size_t begin = before ? c.end : at, end = cased_end(text, begin, n, &first);
  if (before && !first && c.kind == RT_KIND_MARK) end = cased_end(text, begin = at, n, &first);
  if (end > begin) {
    const size_t more = contractions && end < n && text[end] == '\'' ? contraction_end(text, end, n, true) : 0;
    return more ? more : end;
  }
  if (c.class == RT_NUMBER) return digits_end(text, at, n, most_digits);
  if (c.class == RT_OTHER) return newlines_or_slashes_end(text, run_end(RT_OTHER, text, c.end, n), n);
  if (c.code == ' ' && c.end < n && rt_char_at(text, c.end, n).class == RT_OTHER)
    return newlines_or_slashes_end(text, run_end(RT_OTHER, text, c.end, n), n);
  return lines_or_spaces_end(text, at, n);
}

/* [一-龥぀-ゟ゠-ヿ] */
static bool is_east_asian(uint32_t code) { return (code >= 0x4E00 && code <= 0x9FA5) || (code >= 0x3040 && code <= 0x30FF); }

/* The end of the piece that begins or goes on at text[at]: three digits, a run of East Asian characters, or what is neither. */
static size_t piece_end(const uint8_t *restrict text, size_t at, size_t n) {
  const rt_char c = rt_char_at(text, at, n);
  if (c.class == RT_NUMBER) return digits_end(text, at, n, 3);
  for (size_t end = c.end;;) {
    if (end == n) return n;
    const rt_char next = rt_char_at(text, end, n);
    if (next.class == RT_NUMBER || is_east_asian(next.code) != is_east_asian(c.code)) return end;
    end = next.end;
  }
}

static bool is_letter_or_mark(rt_char c) { return c.class == RT_LETTER || c.kind == RT_KIND_MARK; }
static bool is_sign(rt_char c) { return c.kind == RT_KIND_PUNCTUATION || c.kind == RT_KIND_SYMBOL; }

static size_t letters_and_marks_end(const uint8_t *restrict text, size_t at, size_t n) {
  for (rt_char c; at < n && is_letter_or_mark(c = rt_char_at(text, at, n));) at = c.end;
  return at;
}

static size_t signs_end(const uint8_t *restrict text, size_t at, size_t n) {
  for (rt_char c; at < n && is_sign(c = rt_char_at(text, at, n));) at = c.end;
  return newlines_end(text, at, n);
}

static bool is_ascii_letter(uint8_t c) { return (c | 0x20) >= 'a' && (c | 0x20) <= 'z'; }

/* \p{N}{1,3}, then [一-龥぀-ゟ゠-ヿ]+ between them, then within each piece, P being any of ASCII's punctuation:
 * [P][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+ and what lies between. */
static size_t deepseek_end(const uint8_t *restrict text, size_t at, size_t n) {
  n = piece_end(text, at, n);
  for (size_t end = at;;) {
    const rt_char c = rt_char_at(text, end, n);
    const rt_char next = c.end < n ? rt_char_at(text, c.end, n) : (rt_char){UINT32_MAX, RT_SPACE, RT_KIND_SPACE, n};
    const bool word = is_letter_or_mark(c) || (!is_sign(c) && !is_newline(c.code) && is_letter_or_mark(next));
    if (end > at && (word || is_sign(c) || c.class == RT_SPACE)) return end;
    if (word) return letters_and_marks_end(text, c.end, n);
    if (is_sign(c)) {
      size_t letters = c.end;
      while (c.code < 0x80 && letters < n && is_ascii_letter(text[letters])) letters++;
      return letters > c.end ? letters : signs_end(text, end, n);
    }
    if (c.code == ' ' && c.end < n && is_sign(next)) return signs_end(text, c.end, n);
    if (c.class == RT_SPACE) return lines_or_spaces_end(text, end, n);
    if (c.end == n) return n;
    end = c.end;
  }
}

size_t rt_word_end(rt_split split, const uint8_t *restrict text, size_t at, size_t n) {
  switch (split) {
    case RT_SPLIT_SMOLLM: return gpt2_end(text, at, n, true);
    case RT_SPLIT_LLAMA3: return llama3_end(text, at, n, 3);
    case RT_SPLIT_QWEN2: return llama3_end(text, at, n, 1);
    case RT_SPLIT_TEKKEN: return cased_words_end(text, at, n, false, 1);
    case RT_SPLIT_GPT4O: return cased_words_end(text, at, n, true, 3);
    case RT_SPLIT_DEEPSEEK: return deepseek_end(text, at, n);
    default: return gpt2_end(text, at, n, false);
  }
}
