#include "text/unicode.h"

#include "text/unicode.inc"

static rt_class class_of(uint32_t code) {
  return rt_class_bits[rt_class_block[code >> 8] * 64 + ((code & 255) >> 2)] >> 2 * (code & 3) & 3;
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
  if (text[at] < 0x80) return (rt_char){text[at], class_of(text[at]), at + 1};
  size_t length;
  const uint32_t code = decode(text, at, n, &length);
  return (rt_char){code, code == UINT32_MAX ? RT_OTHER : class_of(code), at + length};
}
