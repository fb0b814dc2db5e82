/* The tokens a sequence's penalties look back on: a growing list, a generated token t standing as -1 - t. */
#ifndef RT_HISTORY_H
#define RT_HISTORY_H
#include "base/status.h"
#include <stdint.h>

typedef struct rt_history {
  int32_t *tokens; /* [capacity] */
  int32_t length, capacity;
} rt_history;

/* Tokens in [0, vocab) join the end. */
rt_code rt_history_append(rt_history *h, const int32_t *tokens, int32_t n, int32_t generated, int32_t vocab, rt_status *st);
void rt_history_free(rt_history *h);
#endif
