#include "text/unicode.h"

#include <stdbool.h>

#include "text/unicode.inc"

/* Grapheme_Cluster_Break, in the order of make_unicode.py; the last two are Hangul syllables without and with a final. */
typedef enum join { J_OTHER = 0, J_CONTROL, J_EXTEND, J_SPACING, J_PREPEND, J_L, J_V, J_T, J_LV, J_LVT } join;

static unsigned four_bits(const uint8_t *restrict block, const uint8_t *restrict bits, uint32_t code) {
  return bits[block[code >> 8] * 128 + ((code & 255) >> 1)] >> 4 * (code & 1) & 15;
}

static rt_char char_of(uint32_t code, size_t end) {
  static const uint8_t class_of[RT_KIND_SYMBOL + 1] = {
      [RT_KIND_UPPER] = RT_LETTER, [RT_KIND_LOWER] = RT_LETTER, [RT_KIND_CASELESS] = RT_LETTER,
      [RT_KIND_NUMBER] = RT_NUMBER, [RT_KIND_SPACE] = RT_SPACE};
  const rt_kind kind = (rt_kind)four_bits(rt_kind_block, rt_kind_bits, code);
  return (rt_char){code, (rt_class)class_of[kind], kind, end};
}

/* The code point at text[at] and its length in bytes; length 1 and UINT32_MAX when the bytes are not UTF-8 (RFC 3629). */
static uint32_t decode(const uint8_t *restrict text, size_t at, size_t n, size_t *length) {
  static const uint32_t smallest[5] = {0, 0, 0x80, 0x800, 0x10000};
  const uint8_t lead = text[at];
  const size_t want = lead < 0xC2 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 1;
  *length = 1;
  if (want == 1 || n - at < want) return UINT32_MAX;
  uint32_t code = lead & (0x7F >> want);
  for (size_t k = 1; k < want; k++) {
    if ((text[at + k] & 0xC0) != 0x80) return UINT32_MAX;
    code = code << 6 | (text[at + k] & 0x3F);
  }
  if (code < smallest[want] || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) return UINT32_MAX;
  *length = want;
  return code;
}

rt_char rt_char_at(const uint8_t *restrict text, size_t at, size_t n) {
  if (text[at] < 0x80) return char_of(text[at], at + 1);
  size_t length;
  const uint32_t code = decode(text, at, n, &length);
  return code == UINT32_MAX ? (rt_char){code, RT_OTHER, RT_KIND_NONE, at + length} : char_of(code, at + length);
}

static join join_of(uint32_t code) {
  if (code == UINT32_MAX) return J_CONTROL;
  if (code >= 0xAC00 && code <= 0xD7A3) return (code - 0xAC00) % 28 ? J_LVT : J_LV;
  return (join)four_bits(rt_join_block, rt_join_bits, code);
}

/* Whether nothing ends between two characters. */
static bool joined(join left, join right) {
  if (left == J_CONTROL || right == J_CONTROL) return false;
  if (left == J_L && (right == J_L || right == J_V || right == J_LV || right == J_LVT)) return true;
  if ((left == J_LV || left == J_V) && (right == J_V || right == J_T)) return true;
  if ((left == J_LVT || left == J_T) && right == J_T) return true;
  return right == J_EXTEND || right == J_SPACING || left == J_PREPEND;
}

size_t rt_grapheme_end(const uint8_t *restrict text, size_t at, size_t n) {
  rt_char c = rt_char_at(text, at, n);
  if (c.code == '\r' && c.end < n && text[c.end] == '\n') return c.end + 1;
  join left = join_of(c.code);
  while (c.end < n) {
    const rt_char next = rt_char_at(text, c.end, n);
    const join right = join_of(next.code);
    if (!joined(left, right)) break;
    left = right;
    c = next;
  }
  return c.end;
}
