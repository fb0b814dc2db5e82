/* Errors: a code and one line that says what, where and what to do. No abort, no printing, no global state. */
#ifndef RT_STATUS_H
#define RT_STATUS_H
#include <stdarg.h>
#include <stdio.h>

typedef enum rt_code {
  RT_OK = 0,
  RT_INVALID,     /* a caller's value is outside what is allowed       -> FieldInvalid  */
  RT_BAD_FILE,    /* a model file is damaged, hostile or unsupported   -> ModelInvalid  */
  RT_NOT_FOUND,   /* a file is not there                               -> ModelNotFound */
  RT_IO,          /* reading failed                                    -> OSError       */
  RT_NO_MEMORY,   /* an allocation failed                              -> MemoryError   */
  RT_FAILED       /* an invariant of ours broke                        -> EngineFailed  */
} rt_code;

typedef struct rt_status {
  rt_code code;
  char message[480];
} rt_status;

/* Fill *st and return its code, so that `return rt_fail(st, RT_INVALID, "...")` reads as one step. */
__attribute__((format(printf, 3, 4))) static inline rt_code rt_fail(rt_status *st, rt_code code, const char *format, ...) {
  va_list args;
  va_start(args, format);
  st->code = code;
  vsnprintf(st->message, sizeof st->message, format, args);
  va_end(args);
  return code;
}
#endif
