/* UTF-8 and the four classes of code points that pre-tokenizers tell apart. */
#ifndef RT_UNICODE_H
#define RT_UNICODE_H
#include <stddef.h>
#include <stdint.h>

typedef enum rt_class { RT_OTHER = 0, RT_LETTER, RT_NUMBER, RT_SPACE } rt_class;

/* One character of a text: what it is and where it ends. A byte that is not UTF-8 is a character of class RT_OTHER. */
typedef struct rt_char {
  uint32_t code; /* the code point; UINT32_MAX for a byte that is not UTF-8 */
  rt_class class;
  size_t end;
} rt_char;

/* The character that begins at text[at], at < n. text: [n] bytes. */
rt_char rt_char_at(const uint8_t *restrict text, size_t at, size_t n);
#endif
