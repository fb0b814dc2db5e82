#include "exec/history.h"

#include <stdlib.h>

enum { FIRST_CAPACITY = 256, LONGEST = 1 << 28 };

static rt_code reserve(rt_history *h, int32_t length, rt_status *st) {
  if (length <= h->capacity) return RT_OK;
  int64_t capacity = h->capacity ? h->capacity : FIRST_CAPACITY;
  while (capacity < length) capacity *= 2;
  int32_t *grown = realloc(h->tokens, (size_t)capacity * sizeof *grown);
  if (!grown) return rt_fail(st, RT_NO_MEMORY, "no memory for a history of %d tokens", length);
  h->tokens = grown;
  h->capacity = (int32_t)capacity;
  return RT_OK;
}

rt_code rt_history_append(rt_history *h, const int32_t *tokens, int32_t n, int32_t generated, int32_t vocab, rt_status *st) {
  if (n < 0 || n > LONGEST - h->length)
    return rt_fail(st, RT_INVALID, "a history of %d tokens cannot take %d more; %d is the most", h->length, n, LONGEST);
  for (int32_t i = 0; i < n; i++)
    if (tokens[i] < 0 || tokens[i] >= vocab)
      return rt_fail(st, RT_INVALID, "history token %d is %d; it must be 0 to %d", i, tokens[i], vocab - 1);
  if (reserve(h, h->length + n, st) != RT_OK) return st->code;
  for (int32_t i = 0; i < n; i++) h->tokens[h->length + i] = generated ? -1 - tokens[i] : tokens[i];
  h->length += n;
  return RT_OK;
}

void rt_history_free(rt_history *h) {
  free(h->tokens);
  *h = (rt_history){0};
}
