#include "text/charsmap.h"

#include <stdlib.h>
#include <string.h>

#include "text/tokens.h"
#include "text/unicode.h"

enum { LONGEST_KEY = 64, LONGEST_TEXT = 256, GRAPHEME = 6 };

struct rt_charsmap {
  uint8_t *bytes;
  uint32_t n_units;     /* of the trie, at bytes + 4 */
  const uint8_t *texts; /* [n_texts] */
  size_t n_texts;
};

rt_code rt_charsmap_build(const uint8_t *restrict map, size_t n, rt_charsmap **restrict out, rt_status *restrict st) {
  st->code = RT_OK;
  uint32_t size = 0;
  if (n >= 4) memcpy(&size, map, 4);
  if (n < 4 || n > RT_MAX_TEXT || size > n - 4 || size % 4 || size == 0)
    return rt_fail(st, RT_BAD_FILE, "tokenizer: the map of characters: a trie of %u bytes in %zu", size, n);
  rt_charsmap *m = calloc(1, sizeof *m);
  if (m) m->bytes = malloc(n);
  if (!m || !m->bytes) {
    rt_charsmap_free(m);
    return rt_fail(st, RT_NO_MEMORY, "tokenizer: not enough memory for its tables");
  }
  memcpy(m->bytes, map, n);
  m->n_units = size / 4;
  m->texts = m->bytes + 4 + size;
  m->n_texts = n - 4 - size;
  *out = m;
  return RT_OK;
}

void rt_charsmap_free(rt_charsmap *m) {
  if (!m) return;
  free(m->bytes);
  free(m);
}

static uint32_t unit_at(const rt_charsmap *restrict m, uint32_t i) {
  uint32_t unit = 0;
  memcpy(&unit, m->bytes + 4 + 4 * (size_t)i, 4);
  return unit;
}

static uint32_t offset_of(uint32_t unit) { return (unit >> 10) << ((unit & 1u << 9) >> 6); }

/* What text[0..n) maps to: the entry that is its longest beginning, or its shortest. *length: that beginning's, 0 without one;
 * *to: [result]. An entry that is damaged is none. */
static size_t look_up(const rt_charsmap *restrict m, const uint8_t *restrict text, size_t n, bool longest, size_t *restrict length,
                      const uint8_t **restrict to) {
  size_t count = 0;
  uint32_t place = offset_of(unit_at(m, 0));
  *length = 0;
  for (size_t i = 0; i < n && i < LONGEST_KEY && text[i] && (*length == 0 || longest); i++) {
    place ^= text[i];
    if (place >= m->n_units) break;
    const uint32_t unit = unit_at(m, place);
    if ((unit & (1u << 31 | 0xFF)) != text[i]) break;
    place ^= offset_of(unit);
    if (!(unit >> 8 & 1)) continue;
    const uint32_t value = place < m->n_units ? unit_at(m, place) & 0x7FFFFFFF : UINT32_MAX;
    if (value >= m->n_texts) break;
    const size_t most = m->n_texts - value < LONGEST_TEXT ? m->n_texts - value : LONGEST_TEXT;
    count = strnlen((const char *)m->texts + value, most);
    *to = m->texts + value;
    *length = i + 1;
  }
  return count;
}

typedef struct output {
  uint8_t *bytes;
  size_t n, room;
} output;

static bool put(output *restrict o, const uint8_t *restrict bytes, size_t n) {
  if (o->n + n > o->room) {
    const size_t room = 2 * (o->n + n) + 64;
    uint8_t *more = room > 4ull * RT_MAX_TEXT ? NULL : realloc(o->bytes, room);
    if (!more) return false;
    o->bytes = more;
    o->room = room;
  }
  if (n) memcpy(o->bytes + o->n, bytes, n);
  o->n += n;
  return true;
}

static bool put_chars(output *restrict o, const rt_charsmap *restrict m, const uint8_t *restrict text, size_t n) {
  bool ok = true;
  for (size_t at = 0, end; at < n && ok; at = end) {
    size_t length;
    const uint8_t *to = NULL;
    end = rt_char_at(text, at, n).end;
    const size_t count = look_up(m, text + at, end - at, false, &length, &to);
    ok = length ? put(o, to, count) : put(o, text + at, end - at);
  }
  return ok;
}

static bool put_graphemes(output *restrict o, const rt_charsmap *restrict m, const uint8_t *restrict text, size_t n) {
  bool ok = true;
  for (size_t at = 0, end; at < n && ok; at = end) {
    size_t length = 0;
    const uint8_t *to = NULL;
    end = rt_grapheme_end(text, at, n);
    const size_t count = end - at < GRAPHEME ? look_up(m, text + at, end - at, false, &length, &to) : 0;
    ok = length ? put(o, to, count) : put_chars(o, m, text + at, end - at);
  }
  return ok;
}

static bool put_longest(output *restrict o, const rt_charsmap *restrict m, const uint8_t *restrict text, size_t n) {
  bool ok = true;
  for (size_t at = 0; at < n && ok;) {
    size_t length;
    const uint8_t *to = NULL;
    const size_t count = look_up(m, text + at, n - at, true, &length, &to), end = rt_char_at(text, at, n).end;
    ok = length ? put(o, to, count) : put(o, text + at, end - at);
    at = length ? at + length : end;
  }
  return ok;
}

rt_code rt_charsmap_apply(const rt_charsmap *restrict m, const uint8_t *restrict text, size_t n, bool graphemes,
                          uint8_t **restrict out, size_t *restrict out_n, rt_status *restrict st) {
  st->code = RT_OK;
  output o = {malloc(n + 64), 0, n + 64};
  if (!o.bytes || !(graphemes ? put_graphemes : put_longest)(&o, m, text, n)) {
    free(o.bytes);
    return rt_fail(st, RT_NO_MEMORY, "tokenizer: not enough memory for a text of %zu bytes", n);
  }
  *out = o.bytes;
  *out_n = o.n;
  return RT_OK;
}
