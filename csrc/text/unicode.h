/* UTF-8, and what of Unicode's properties pre-tokenizers and normalizers ask for. */
#ifndef RT_UNICODE_H
#define RT_UNICODE_H
#include <stddef.h>
#include <stdint.h>

/* Groups of general categories; RT_KIND_SPACE is the property White_Space. make_unicode.py lists them in this order. */
typedef enum rt_kind {
  RT_KIND_NONE = 0,
  RT_KIND_UPPER,    /* Lu Lt */
  RT_KIND_LOWER,    /* Ll */
  RT_KIND_CASELESS, /* Lm Lo */
  RT_KIND_MARK,     /* M */
  RT_KIND_NUMBER,   /* N */
  RT_KIND_SPACE,
  RT_KIND_PUNCTUATION, /* P */
  RT_KIND_SYMBOL       /* S */
} rt_kind;

/* The classes most patterns speak of. */
typedef enum rt_class { RT_OTHER = 0, RT_LETTER, RT_NUMBER, RT_SPACE } rt_class;

/* One character of a text: what it is and where it ends. A byte that is not UTF-8 is a character of class RT_OTHER. */
typedef struct rt_char {
  uint32_t code; /* the code point; UINT32_MAX for a byte that is not UTF-8 */
  rt_class class;
  rt_kind kind;
  size_t end;
} rt_char;

/* The character that begins at text[at], at < n. text: [n] bytes. */
rt_char rt_char_at(const uint8_t *restrict text, size_t at, size_t n);

/* Where the grapheme that begins at text[at] ends, as UAX 29 extends them, but for what makes no difference below six bytes:
 * flags, emoji joined by U+200D and Indic conjuncts are cut. at < n and at < result <= n. text: [n] bytes. */
size_t rt_grapheme_end(const uint8_t *restrict text, size_t at, size_t n);
#endif
