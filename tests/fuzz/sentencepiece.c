/* A vocabulary of any bytes and scores: what rt_spm_build accepts must encode any text, nearly linearly, and give its bytes back.
 * The input: flags, seed, a count, unknown, then the tokens' lengths, kinds and scores, then their bytes, then the text. Now and
 * then an offset is any number instead. */
#define _GNU_SOURCE
#include "text/spm.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MOST_TOKENS = 64, BYTES = 256, BYTE_TEXT = 6, PREFIX = 1, WITH_BYTES = 2 };

typedef struct source { const uint8_t *bytes; size_t left; } source;

static void must(int truth) {
  if (!truth) abort();
}

static uint32_t take(source *s, size_t n) {
  uint32_t x = 0;
  if (n > s->left) n = s->left;
  memcpy(&x, s->bytes, n);
  s->bytes += n, s->left -= n;
  return x;
}

/* exact: every token stands where its bytes are. */
static void encode(const rt_spm *spm, const uint8_t *text, size_t n, bool special, bool exact) {
  const size_t most = rt_spm_most(spm, n);
  int32_t *ids = malloc((most + 1) * sizeof *ids);
  uint32_t *ends = malloc((most + 1) * sizeof *ends);
  size_t count = 0, length = 0, whole = 0;
  uint64_t work = 0;
  rt_status st = {0};
  must(ids && ends && rt_spm_encode(spm, text, n, special, ids, ends, &count, &work, &st) == RT_OK && count <= most);
  must(work <= 128 * (n + 1));
  for (size_t i = 0; i < count; i++) {
    const uint8_t *bytes = rt_spm_token(spm, ids[i], &length);
    must(bytes != NULL && ends[i] <= n && (i == 0 || ends[i] >= ends[i - 1]));
    must(!exact || (ends[i] >= length && memcmp(bytes, text + ends[i] - length, length) == 0));
    whole += length;
  }
  must(!exact || whole == n);
  free(ids), free(ends);
}

/* Copies of their own, exactly as long as they must be. */
static void *own(size_t bytes) {
  void *memory = calloc(bytes ? bytes : 1, 1);
  must(memory != NULL);
  return memory;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  source s = {data, size};
  const uint32_t flags = take(&s, 1), seed = take(&s, 4), more = take(&s, 1) % (MOST_TOKENS + 1), unknown = take(&s, 1);
  const uint32_t first = flags & WITH_BYTES ? BYTES : 0, n = first + more;
  uint32_t *offset = own((n + 1) * sizeof *offset);
  uint8_t *kind = own(n);
  float *score = own(n * sizeof *score);
  for (uint32_t i = 0; i < first; i++) kind[i] = RT_TOKEN_BYTE, offset[i + 1] = offset[i] + BYTE_TEXT;
  for (uint32_t i = first; i < n; i++) offset[i + 1] = offset[i] + take(&s, 1) % 12;
  for (uint32_t i = first; i < n; i++) kind[i] = (uint8_t)take(&s, 1), kind[i] = kind[i] < 250 ? kind[i] % 5 : kind[i];
  for (uint32_t i = first; i < n; i++) {
    const int32_t level = (int8_t)take(&s, 1);
    score[i] = level == -128 ? NAN : level == 127 ? INFINITY : (float)level / 4;
  }
  uint8_t *text = own(offset[n]);
  for (uint32_t i = 0; i < first; i++) {
    char name[BYTE_TEXT + 1];
    snprintf(name, sizeof name, "<0x%02X>", i);
    memcpy(text + offset[i], name, BYTE_TEXT);
  }
  for (uint32_t at = offset[first]; at < offset[n]; at++) text[at] = (uint8_t)take(&s, 1);
  const uint32_t odd = take(&s, 1), value = take(&s, 4);
  if (odd > 250 && n) offset[value % n] = value; /* the last one says how long the text is */
  rt_spm_spec spec = {.n_tokens = n, .text = text, .offset = offset, .kind = kind, .score = score, .seed = seed,
                      .unknown = (int32_t)unknown - 1, .space_prefix = flags & PREFIX};
  rt_status st = {0};
  rt_spm *spm = NULL;
  rt_code code = rt_spm_build(&spec, &spm, &st);
  must(code == RT_OK || (st.message[0] && !strchr(st.message, '\n')));
  free(text), free(offset), free(kind), free(score); /* what is needed was copied */
  if (code == RT_OK) {
    bool exact = first && !(flags & PREFIX) && !memmem(s.bytes, s.left, "\xe2\x96\x81", 3);
    encode(spm, s.bytes, s.left, false, exact);
    encode(spm, s.bytes, s.left, true, exact);
    size_t length;
    must(rt_spm_token(spm, -1, &length) == NULL && rt_spm_token(spm, n, &length) == NULL);
    rt_spm_free(spm);
  }
  return 0;
}
