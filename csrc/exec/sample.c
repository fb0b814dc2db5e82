#include "exec/sample.h"
#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#define OUT (-FLT_MAX)  /* the logit of a token the mask leaves out */
#define WHOLE (-1)      /* a kept set that is every token not OUT, not yet written down */
#define FLOOR (-200.0)  /* exp below this is nothing beside the largest's 1 */

struct row {
  const struct rt_kernels *k;
  const float *x;      /* [vocab] logits after bias, penalties and mask */
  double high, per_t;  /* the largest of x, 1 / temperature */
  int vocab;
  float *y;            /* [vocab] */
  double *w;           /* [vocab] by token id */
  int32_t *ids;        /* [vocab] the kept tokens */
};

static size_t padded(size_t bytes) { return (bytes + 63) / 64 * 64; }

size_t rt_sample_bytes(int vocab) {
  size_t n = (size_t)vocab;
  return 3 * padded(n * sizeof(float)) + padded(n * sizeof(double));
}

/* ---- random numbers ---- */

void rt_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
  uint32_t a = counter[0], b = counter[1], c = counter[2], d = counter[3], k0 = key[0], k1 = key[1];
  for (int i = 0; i < 10; i++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
    uint64_t first = 0xD2511F53ull * a, second = 0xCD9E8D57ull * c;
    a = (uint32_t)(second >> 32) ^ b ^ k0, b = (uint32_t)second;
    c = (uint32_t)(first >> 32) ^ d ^ k1, d = (uint32_t)first;
  }
  out[0] = a, out[1] = b, out[2] = c, out[3] = d;
}

/* The row's number in [0, 1), 53 bits; `draw` counts the draws of one position. */
static double uniform(const rt_sampling *p, uint32_t draw) {
  const uint32_t counter[4] = {(uint32_t)p->candidate, (uint32_t)p->position, draw, 0};
  const uint32_t key[2] = {(uint32_t)p->seed, (uint32_t)(p->seed >> 32)};
  uint32_t r[4];
  rt_philox(counter, key, r);
  return (double)(((uint64_t)r[0] << 32 | r[1]) >> 11) * 0x1p-53;
}

/* ---- bias, penalties, mask ---- */

static bool has_penalties(const rt_sampling *p) { return p->repetition != 1 || p->frequency != 0 || p->presence != 0; }

/* Each token of the history once: its count of generated occurrences is gathered in times[token], then -1 marks it done. */
static void penalize(float *x, const rt_sampling *p, const int32_t *history, int n, int32_t *times) {
  for (int i = 0; i < n; i++) times[history[i] < 0 ? -1 - history[i] : history[i]] = 0;
  for (int i = 0; i < n; i++)
    if (history[i] < 0) times[-1 - history[i]]++;
  for (int i = 0; i < n; i++) {
    int32_t t = history[i] < 0 ? -1 - history[i] : history[i];
    if (times[t] < 0) continue;
    if (p->repetition != 1) x[t] = x[t] > 0 ? x[t] / p->repetition : x[t] * p->repetition;
    if (times[t] > 0) {
      x[t] = x[t] - p->frequency * (float)times[t];
      x[t] = x[t] - p->presence;
    }
    times[t] = -1;
  }
}

static void mask_out(float *x, int vocab, const uint8_t *mask) {
  for (int i = 0; i < vocab; i++)
    if (!(mask[i >> 3] >> (i & 7) & 1)) x[i] = OUT;
}

/* ---- order: by key (least first) when there is one, then by x (largest first) when there is one, then by id ---- */

static inline bool before(const double *key, const float *x, int32_t a, int32_t b) {
  if (key && key[a] != key[b]) return key[a] < key[b];
  if (x && x[a] != x[b]) return x[a] > x[b];
  return a < b;
}

/* ids[0, n) is a heap whose root comes last; restore it below i. */
static inline void sift(int32_t *ids, int n, int i, const double *key, const float *x) {
  int32_t moved = ids[i];
  for (int child; (child = 2 * i + 1) < n; i = child) {
    if (child + 1 < n && before(key, x, ids[child], ids[child + 1])) child++;
    if (!before(key, x, moved, ids[child])) break;
    ids[i] = ids[child];
  }
  ids[i] = moved;
}

static inline void heapify(int32_t *ids, int n, const double *key, const float *x) {
  for (int i = n / 2; i-- > 0;) sift(ids, n, i, key, x);
}

/* A heap becomes a list in order. */
static inline void unheap(int32_t *ids, int n, const double *key, const float *x) {
  while (n > 1) {
    int32_t last = ids[0];
    ids[0] = ids[--n];
    ids[n] = last;
    sift(ids, n, 0, key, x);
  }
}

static inline void sort(int32_t *ids, int n, const double *key, const float *x) {
  heapify(ids, n, key, x);
  unheap(ids, n, key, x);
}

/* ids <- the k largest of x[n], in order; k <= n. */
static void largest(const float *x, int n, int k, int32_t *ids) {
  for (int i = 0; i < k; i++) ids[i] = i;
  heapify(ids, k, NULL, x);
  float least = k ? x[ids[0]] : 0;
  for (int i = k; i < n && k; i++)
    if (x[i] > least) {
      ids[0] = i;
      sift(ids, k, 0, NULL, x);
      least = x[ids[0]];
    }
  unheap(ids, k, NULL, x);
}

/* ---- weights and sums ---- */

static double exponent(const struct row *r, int id) { return ((double)r->x[id] - r->high) * r->per_t; }

static double weigh(const struct row *r, int n) { /* w of the kept -> their sum */
  double sum = 0;
  for (int i = 0; i < n; i++) sum += r->w[r->ids[i]] = exp(exponent(r, r->ids[i]));
  return sum;
}

/* Sum of exp(x - high) in blocks; each block's sum goes to sums[block] when there is one. */
static double block_sums(const struct rt_kernels *k, const float *x, int n, float high, double *sums) {
  double sum = 0;
  for (int first = 0; first < n; first += RT_SAMPLE_BLOCK) {
    int m = n - first < RT_SAMPLE_BLOCK ? n - first : RT_SAMPLE_BLOCK;
    double part = k->exp_sum(x + first, m, high);
    if (sums) sums[first / RT_SAMPLE_BLOCK] = part;
    sum += part;
  }
  return sum;
}

/* Sum of every w; w[block] <- the blocks' sums. */
static double whole_sum(const struct row *r) {
  for (int i = 0; i < r->vocab; i++) {
    double e = exponent(r, i);
    r->y[i] = (float)(e > FLOOR ? e : FLOOR);
  }
  return block_sums(r->k, r->y, r->vocab, 0, r->w);
}

/* ids <- every token whose exponent is at least `least` and that is not OUT. */
static int gather(const struct row *r, double least) {
  double cut = r->high + least / r->per_t;
  float bound = cut > OUT ? nextafterf((float)cut, OUT) : OUT;
  int n = 0;
  for (int i = 0; i < r->vocab; i++)
    if (r->x[i] >= bound && r->x[i] > OUT) r->ids[n++] = i;
  return n;
}

/* ---- the filters: n kept -> n kept ---- */

static int top_k(const struct row *r, int k) {
  if (k <= 0 || k >= r->vocab) return WHOLE;
  largest(r->x, r->vocab, k, r->ids);
  while (k > 1 && r->x[r->ids[k - 1]] <= OUT) k--;
  return k;
}

static int prefix(const struct row *r, int n, double wanted) { /* the fewest first ones whose w reach `wanted` */
  double sum = 0;
  for (int i = 0; i < n; i++)
    if ((sum += r->w[r->ids[i]]) >= wanted) return i + 1;
  return n;
}

static int top_p(const struct row *r, int n, double share) {
  if (n != WHOLE) return prefix(r, n, share * weigh(r, n)); /* top-k left them in order */
  double wanted = share * whole_sum(r);
  for (double least = -3;; least -= 3) { /* go down until the mass is there, so that few are ever sorted */
    bool all = least < -40;
    n = gather(r, all ? -INFINITY : least);
    if (weigh(r, n) < wanted && !all) continue;
    sort(r->ids, n, NULL, r->x);
    return prefix(r, n, wanted);
  }
}

static int min_p(const struct row *r, int n, double share) { /* the largest w is 1 */
  if (n == WHOLE) n = gather(r, log(share) - 1e-3);
  int kept = 0;
  for (int i = 0; i < n; i++)
    if (exp(exponent(r, r->ids[i])) >= share) r->ids[kept++] = r->ids[i];
  return kept;
}

/* ids <- first those whose w[id] is at most `most`. */
static int nearest(const struct row *r, int n, double most) {
  int m = 0;
  for (int i = 0; i < n; i++) {
    int32_t id = r->ids[i];
    if (r->w[id] <= most) r->ids[i] = r->ids[m], r->ids[m++] = id;
  }
  return m;
}

static int typical(const struct row *r, int n, double share) {
  if (n == WHOLE) n = gather(r, -INFINITY);
  double sum = weigh(r, n), mean = 0, reached = 0;
  for (int i = 0; i < n; i++) mean += r->w[r->ids[i]] * exponent(r, r->ids[i]);
  double log_sum = log(sum), entropy = log_sum - mean / sum;
  for (int i = 0; i < n; i++) r->w[r->ids[i]] = fabs(exponent(r, r->ids[i]) - log_sum + entropy);
  for (double most = 0.5;; most *= 2, reached = 0) { /* go outwards until the mass is there, so that few are ever sorted */
    int m = nearest(r, n, most);
    sort(r->ids, m, r->w, r->x);
    for (int i = 0; i < m; i++)
      if ((reached += exp(exponent(r, r->ids[i]) - log_sum)) >= share) return i + 1;
    if (m == n) return n;
  }
}

/* ---- the draw ---- */

static int32_t draw_kept(const struct row *r, int n, double u) {
  sort(r->ids, n, NULL, NULL);
  double target = u * weigh(r, n), running = 0;
  for (int i = 0; i < n; i++)
    if ((running += r->w[r->ids[i]]) > target) return r->ids[i];
  return r->ids[n - 1];
}

static int32_t draw_whole(const struct row *r, double u, int32_t best) {
  double target = u * whole_sum(r);
  int32_t last = best;
  for (int first = 0; first < r->vocab; first += RT_SAMPLE_BLOCK) {
    double part = r->w[first / RT_SAMPLE_BLOCK], running = 0;
    int end = first + RT_SAMPLE_BLOCK < r->vocab ? first + RT_SAMPLE_BLOCK : r->vocab;
    if (target >= part && end < r->vocab) {
      target -= part;
      continue;
    }
    for (int i = first; i < end; i++) {
      double w = r->x[i] > OUT ? exp(exponent(r, i)) : 0;
      if (w > 0) last = i;
      if ((running += w) > target) return i;
    }
    return last; /* the block's own sum was a rounding larger */
  }
  return last;
}

static int32_t draw(const struct row *r, const rt_sampling *p, int32_t best) {
  int n = top_k(r, p->top_k);
  if (p->top_p < 1) n = top_p(r, n, p->top_p);
  if (p->min_p > 0) n = min_p(r, n, p->min_p);
  if (p->typical_p < 1) n = typical(r, n, p->typical_p);
  double u = uniform(p, 0);
  return n == WHOLE ? draw_whole(r, u, best) : draw_kept(r, n, u);
}

/* ---- what the raw logits say of the token ---- */

static void report(const struct rt_kernels *k, const float *logits, int vocab, float high, int best, int32_t *ids,
                   rt_sampled *out) {
  double log_sum = (double)high + log(block_sums(k, logits, vocab, high, NULL));
  float own = logits[out->token];
  int32_t ahead = 0;
  for (int i = 0; i < vocab; i++) ahead += logits[i] > own;
  for (int i = 0; i < out->token; i++) ahead += logits[i] == own;
  out->rank = ahead + 1;
  out->logprob = (float)(own - log_sum);
  out->top_count = best < vocab ? best : vocab;
  largest(logits, vocab, out->top_count, ids);
  for (int i = 0; i < out->top_count; i++) {
    out->top_ids[i] = ids[i];
    out->top_logprobs[i] = (float)(logits[ids[i]] - log_sum);
  }
}

void rt_sample_row(const struct rt_kernels *k, const float *restrict logits, int vocab, const rt_sampling *p,
                   const int32_t *restrict history, int n_history, const int32_t *bias_ids, const float *bias_values,
                   const uint8_t *masks, uint8_t *restrict scratch, rt_sampled *restrict out) {
  size_t n = (size_t)vocab, floats = padded(n * sizeof(float));
  float *x = (float *)scratch, *y = (float *)(scratch + floats);
  int32_t *ids = (int32_t *)(scratch + 2 * floats);
  memset(out, 0, sizeof *out);
  memset(out->top_ids, 0xff, sizeof out->top_ids);
  out->token = -1;

  int finite;
  float raw_high, high;
  int best = k->argmax(logits, vocab, &raw_high, &finite);
  bool penalties = has_penalties(p) && n_history > 0, masked = p->allowed >= 0 && masks;
  high = raw_high;
  if (finite && (penalties || masked || p->bias_count > 0)) {
    memcpy(x, logits, n * sizeof(float));
    for (int i = p->bias_first; i < p->bias_first + p->bias_count; i++) x[bias_ids[i]] += bias_values[i];
    if (penalties) penalize(x, p, history, n_history, ids);
    if (masked) mask_out(x, vocab, masks + (size_t)p->allowed * ((n + 7) / 8));
    best = k->argmax(x, vocab, &high, &finite);
  } else {
    x = (float *)logits; /* only read from here on */
  }
  if (!finite || high <= OUT) {
    out->flags = finite ? RT_SAMPLED_NONE_LEFT : RT_SAMPLED_NOT_FINITE;
    return;
  }
  struct row r = {k, x, high, 1 / (double)p->temperature, vocab, y, (double *)(scratch + 3 * floats), ids};
  out->token = p->temperature > 0 ? draw(&r, p, best) : best;
  if (p->logprobs >= 0) report(k, logits, vocab, raw_high, p->logprobs < RT_TOP ? p->logprobs : RT_TOP, ids, out);
}

/* ---- the edge ---- */

rt_code rt_sample_check(const rt_sampling *p, int row, int n_bias, int n_masks, int histories, rt_status *st) {
  const struct { const char *name; double value, low, high; bool above; } reals[] = {
    {"temperature", p->temperature, 0, 1e6, false}, {"top_p", p->top_p, 0, 1, true},
    {"min_p", p->min_p, 0, 1, false},               {"typical_p", p->typical_p, 0, 1, true},
    {"repetition", p->repetition, 0, 1e6, true},    {"presence", p->presence, -1e6, 1e6, false},
    {"frequency", p->frequency, -1e6, 1e6, false},
  };
  for (size_t i = 0; i < sizeof reals / sizeof *reals; i++) {
    double v = reals[i].value, low = reals[i].low;
    if (!(v >= low && v <= reals[i].high) || (reals[i].above && v == low))
      return rt_fail(st, RT_INVALID, "sampling row %d: %s is %g; it must be %s %g and at most %g", row, reals[i].name, v,
                     reals[i].above ? "above" : "at least", low, reals[i].high);
  }
  const struct { const char *name; int64_t value, low, high; } whole[] = {
    {"top_k", p->top_k, 0, INT32_MAX},         {"candidate", p->candidate, 0, INT32_MAX},
    {"position", p->position, 0, INT32_MAX},   {"history", p->history, -1, (int64_t)histories - 1},
    {"bias_first", p->bias_first, 0, n_bias},  {"bias_count", p->bias_count, 0, (int64_t)n_bias - p->bias_first},
    {"allowed", p->allowed, -1, (int64_t)n_masks - 1}, {"logprobs", p->logprobs, -1, RT_TOP},
  };
  for (size_t i = 0; i < sizeof whole / sizeof *whole; i++)
    if (whole[i].value < whole[i].low || whole[i].value > whole[i].high)
      return rt_fail(st, RT_INVALID, "sampling row %d: %s is %lld; it must be %lld to %lld", row, whole[i].name,
                     (long long)whole[i].value, (long long)whole[i].low, (long long)whole[i].high);
  return RT_OK;
}
