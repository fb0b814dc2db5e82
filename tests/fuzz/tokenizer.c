/* A vocabulary of any bytes: what rt_bpe_build accepts must encode any text, linearly, and give its bytes back.
 * The input: split, seed, counts, kinds, then the lengths of tokens and merges, then their bytes, then the text. Now and then
 * an offset is any number instead. */
#include "text/bpe.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MOST_TOKENS = 64, MOST_MERGES = 32 };

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

/* offset[n + 1] from n lengths, from `first` on. */
static void read_offsets(source *s, uint32_t n, uint32_t first, uint32_t *offset) {
  offset[0] = first;
  for (uint32_t i = 0; i < n; i++) offset[i + 1] = offset[i] + take(s, 1) % 12;
}

/* GPT-2's letter for each byte in UTF-8, one after another: with them as tokens nothing is left out. Returns their bytes. */
static uint32_t put_letters(uint8_t *text, uint32_t *offset) {
  uint32_t n = 0, next = 256;
  for (uint32_t b = 0; b < 256; b++) {
    uint32_t c = (b > 32 && b < 127) || (b > 160 && b != 173) ? b : next++;
    offset[b] = n;
    if (c < 128) text[n++] = (uint8_t)c;
    else text[n++] = (uint8_t)(0xc0 | c >> 6), text[n++] = (uint8_t)(0x80 | (c & 63));
  }
  return n;
}

/* A copy of its own, and exactly as long: the next n - first bytes of the input, zeros where it ends. */
static uint8_t *read_text(source *s, size_t first, size_t n) {
  uint8_t *text = calloc(n ? n : 1, 1);
  size_t here = n - first < s->left ? n - first : s->left;
  must(text != NULL);
  memcpy(text + first, s->bytes, here);
  s->bytes += here, s->left -= here;
  return n ? text : realloc(text, 1);
}

/* exact: each token stands where its bytes are. Not so where bytes have no token and are left out, nor where a merge makes an
 * added token, whose text is literal. */
static void encode(const rt_bpe *bpe, const uint8_t *text, size_t n, bool special, bool exact) {
  int32_t *ids = malloc((n + 1) * sizeof *ids);
  uint32_t *ends = malloc((n + 1) * sizeof *ends);
  size_t count = 0, length = 0, whole = 0;
  uint64_t work = 0;
  rt_status st = {0};
  must(ids && ends && rt_bpe_encode(bpe, text, n, special, ids, ends, &count, &work, &st) == RT_OK && count <= n);
  must(work <= 64 * (n + 1));
  for (size_t i = 0; i < count; i++) {
    const uint8_t *bytes = rt_bpe_token(bpe, ids[i], &length);
    must(bytes != NULL && ends[i] <= n && (i == 0 || ends[i] >= ends[i - 1]));
    must(!exact || (ends[i] >= length && memcmp(bytes, text + ends[i] - length, length) == 0));
    whole += length;
  }
  must(!exact || whole == n);
  free(ids), free(ends);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  source s = {data, size};
  uint32_t *offset = malloc((MOST_TOKENS + 257) * 4), merge_offset[MOST_MERGES + 1], flags, letters;
  uint8_t all_letters[512], *text, *merges, *kind;
  rt_status st = {0};
  rt_bpe *bpe = NULL;
  must(offset != NULL);
  rt_bpe_spec spec = {.split = (rt_split)(take(&s, 1) % 8), .ignore_merges = (flags = take(&s, 1)) & 1, .seed = take(&s, 4)};
  spec.ranked = flags & 4;
  uint32_t n_tokens = take(&s, 1) % (MOST_TOKENS + 1), first = flags & 2 ? 256 : 0;
  spec.n_tokens = first + n_tokens, spec.n_merges = take(&s, 1) % (MOST_MERGES + 1);
  letters = first ? put_letters(all_letters, offset) : 0;
  read_offsets(&s, n_tokens, letters, offset + first), read_offsets(&s, spec.n_merges, 0, merge_offset);
  text = read_text(&s, letters, offset[spec.n_tokens]), merges = read_text(&s, 0, merge_offset[spec.n_merges]);
  memcpy(text, all_letters, letters);
  kind = read_text(&s, first, spec.n_tokens);
  bool added = false;
  for (uint32_t i = 0; i < spec.n_tokens; i++) added |= (kind[i] = kind[i] < 250 ? kind[i] % 4 : kind[i]) == RT_TOKEN_ADDED;
  uint32_t odd = take(&s, 1), value = take(&s, 4);
  if (odd > 250 && spec.n_tokens) offset[value % spec.n_tokens] = value;      /* the last one says how long the text is */
  if (odd > 240 && odd <= 250 && spec.n_merges) merge_offset[value % spec.n_merges] = value;
  spec.text = text, spec.offset = offset, spec.kind = kind, spec.merge_text = merges, spec.merge_offset = merge_offset;
  rt_code code = rt_bpe_build(&spec, &bpe, &st);
  must(code == RT_OK || (st.message[0] && !strchr(st.message, '\n')));
  free(text), free(merges), free(kind), free(offset); /* what is needed was copied */
  if (code == RT_OK) {
    bool exact = rt_bpe_known_bytes(bpe) == 256 && !added;
    encode(bpe, s.bytes, s.left, false, exact);
    encode(bpe, s.bytes, s.left, true, exact);
    size_t n;
    must(rt_bpe_token(bpe, -1, &n) == NULL && rt_bpe_token(bpe, spec.n_tokens, &n) == NULL);
    rt_bpe_free(bpe);
  }
  return 0;
}
