/* out[h] = sum_t p[h][t] V[t] / sum_t p[h][t],  p = e^(s - max),  s[h][t] = cap(scale * q_h . K[t]) over the tokens seen.
 *
 * A token is seen when its stored position p satisfies 0 <= p <= position and, with window > 0, p > position - window; what
 * an unseen slot holds is never looked at. Pages in ascending order, 16 tokens each: scores in ascending d, one lane a
 * token; V in ascending t, one lane a dimension; all fused. All `share` heads of a KV head meet a page while it is in cache.
 * The maximum starts at -FLT_MAX and moves only when a page's largest score exceeds it by more than 8 (p stays below e^8);
 * a page nobody sees is skipped. Work: one token and KV head, its pages split at fixed places into partials, which
 * `attention_combine` joins in order. Sinks join there. */
#ifndef RT_OPS_ATTENTION_H
#define RT_OPS_ATTENTION_H
#include "ops/rope_kv.h"

#include <float.h>

enum { RT_HEADS = 4 }; /* heads that meet a page together */

/* What meets pages of one format. `next` is the page after, fetched line by line while this one is read. */
#define RT_PAGE_FORMAT(name, bytes)                                                                                          \
  /* 16 values of which the last 16 - n are not there. p: n values */                                                        \
  V_INLINE v16f rt_page_part_##name(const uint8_t *p, int n) {                                                               \
    uint8_t wide[16 * bytes] = {0};                                                                                          \
    if (n >= 16) return rt_page_load_##name(p);                                                                              \
    memcpy(wide, p, (size_t)n * bytes);                                                                                      \
    return rt_page_load_##name(wide);                                                                                        \
  }                                                                                                                          \
  /* s[heads][16] = q[heads][head_dim] . k[head_dim][16] */                                                                  \
  V_INLINE void rt_scores_of_##name(const float *q, const uint8_t *k, const uint8_t *next, int head_dim, int heads,          \
                                    float *s) {                                                                              \
    v16f acc[RT_HEADS];                                                                                                      \
    for (int h = 0; h < heads; h++) acc[h] = v_zero();                                                                       \
    for (int d = 0; d < head_dim; d++, k += 16 * bytes, next += 16 * bytes) {                                                \
      v16f row = rt_page_load_##name(k);                                                                                     \
      __builtin_prefetch(next);                                                                                              \
      for (int h = 0; h < heads; h++) acc[h] = v_fma(v_set1(q[h * head_dim + d]), row, acc[h]);                              \
    }                                                                                                                        \
    for (int h = 0; h < heads; h++) v_store(s + h * 16, acc[h]);                                                             \
  }                                                                                                                          \
  static void rt_scores_##name(const float *q, const uint8_t *k, const uint8_t *next, int head_dim, int heads, float *s) {   \
    if (heads == 1) rt_scores_of_##name(q, k, next, head_dim, 1, s);                                                         \
    else if (heads == 2) rt_scores_of_##name(q, k, next, head_dim, 2, s);                                                    \
    else if (heads == 3) rt_scores_of_##name(q, k, next, head_dim, 3, s);                                                    \
    else rt_scores_of_##name(q, k, next, head_dim, 4, s);                                                                    \
  }                                                                                                                          \
  /* out[heads][d..] += p[heads][16] v[16][head_dim] over the n tokens whose slots are `seen`, for `parts` vectors of them   \
   * (few heads leave a core waiting for one sum; more parts give it others) */                                              \
  V_INLINE void rt_mix_at_##name(const float *p, const uint8_t *v, const uint8_t *next, int head_dim, int heads,             \
                                 const uint8_t *seen, int n, int d, int parts, int lanes, float *out) {                      \
    v16f acc[4][RT_HEADS];                                                                                                   \
    for (int c = 0; c < parts; c++)                                                                                          \
      for (int h = 0; h < heads; h++) acc[c][h] = v_load_n(out + h * head_dim + d + c * 16, lanes, 0.0f);                    \
    for (int i = 0; i < n; i++) {                                                                                            \
      size_t at = ((size_t)seen[i] * (size_t)head_dim + (size_t)d) * bytes;                                                  \
      __builtin_prefetch(next + at);                                                                                         \
      for (int c = 0; c < parts; c++) {                                                                                      \
        v16f row = rt_page_part_##name(v + at + c * 16 * bytes, lanes);                                                      \
        for (int h = 0; h < heads; h++) acc[c][h] = v_fma(v_set1(p[h * 16 + seen[i]]), row, acc[c][h]);                      \
      }                                                                                                                      \
    }                                                                                                                        \
    for (int c = 0; c < parts; c++)                                                                                          \
      for (int h = 0; h < heads; h++) v_store_n(out + h * head_dim + d + c * 16, acc[c][h], lanes);                          \
  }                                                                                                                          \
  V_INLINE void rt_mix_of_##name(const float *p, const uint8_t *v, const uint8_t *next, int head_dim, int heads,             \
                                 const uint8_t *seen, int n, float *out) {                                                   \
    int d = 0;                                                                                                               \
    for (; heads == 1 && d + 64 <= head_dim; d += 64) rt_mix_at_##name(p, v, next, head_dim, heads, seen, n, d, 4, 16, out); \
    for (; heads < 3 && d + 32 <= head_dim; d += 32) rt_mix_at_##name(p, v, next, head_dim, heads, seen, n, d, 2, 16, out);  \
    for (; d + 16 <= head_dim; d += 16) rt_mix_at_##name(p, v, next, head_dim, heads, seen, n, d, 1, 16, out);               \
    if (d < head_dim) rt_mix_at_##name(p, v, next, head_dim, heads, seen, n, d, 1, head_dim - d, out);                       \
  }                                                                                                                          \
  static void rt_mix_##name(const float *p, const uint8_t *v, const uint8_t *next, int head_dim, int heads,                  \
                            const uint8_t *seen, int n, float *out) {                                                        \
    if (heads == 1) rt_mix_of_##name(p, v, next, head_dim, 1, seen, n, out);                                                 \
    else if (heads == 2) rt_mix_of_##name(p, v, next, head_dim, 2, seen, n, out);                                            \
    else if (heads == 3) rt_mix_of_##name(p, v, next, head_dim, 3, seen, n, out);                                            \
    else rt_mix_of_##name(p, v, next, head_dim, 4, seen, n, out);                                                            \
  }
RT_PAGE_FORMAT(F32, 4)
RT_PAGE_FORMAT(F16, 2)
RT_PAGE_FORMAT(BF16, 2)
#undef RT_PAGE_FORMAT

static void (*const rt_scores[RT_FORMATS])(const float *, const uint8_t *, const uint8_t *, int, int, float *) = {
    [RT_F32] = rt_scores_F32, [RT_F16] = rt_scores_F16, [RT_BF16] = rt_scores_BF16};
static void (*const rt_mix[RT_FORMATS])(const float *, const uint8_t *, const uint8_t *, int, int, const uint8_t *, int,
                                            float *) = {
    [RT_F32] = rt_mix_F32, [RT_F16] = rt_mix_F16, [RT_BF16] = rt_mix_BF16};

V_INLINE void rt_scale_row(float *x, int n, float factor) {
  for (int i = 0; i < n; i += 16) {
    int lanes = n - i < 16 ? n - i : 16;
    v_store_n(x + i, v_mul(v_load_n(x + i, lanes, 0.0f), v_set1(factor)), lanes);
  }
}

/* One head's scores [16] become probabilities under the running maximum; out [head_dim] and sum follow when it moves. */
V_INLINE void rt_soften(float *s, v16m seen, float scale, float softcap, int head_dim, float *out, float *max, float *sum) {
  v16f x = v_mul(v_load(s), v_set1(scale));
  if (softcap > 0.0f) x = v_mul(v_set1(softcap), v_tanh(v_div(x, v_set1(softcap))));
  x = v_select(seen, x, v_set1(-__builtin_inff()));
  float most = v_most(x);
  if (most > *max + 8.0f) {
    float shrink = v_exp1(*max - most);
    *max = most;
    *sum *= shrink;
    rt_scale_row(out, head_dim, shrink);
  }
  x = v_exp(v_sub(x, v_set1(*max)));
  *sum += v_sum(x);
  v_store(s, x);
}

/* args->out [share][head_dim] not yet divided, max and sum: [share]. The formats are ones that store_k and store_v have. */
static void rt_attention(const struct rt_attention_args *args, int k_format, int v_format, float *max, float *sum) {
  int head_dim = args->head_dim, low = args->window > 0 ? args->position - args->window + 1 : 0;
  float s[RT_HEADS * 16];
  for (int h = 0; h < args->share; h++) max[h] = -FLT_MAX, sum[h] = 0.0f;
  memset(args->out, 0, (size_t)args->share * (size_t)head_dim * sizeof *args->out);
  for (int b = 0; b < args->blocks; b++) {
    v16m seen = v_within(args->positions[b], low > 0 ? low : 0, args->position);
    uint8_t slots[16];
    int n = 0;
    for (uint32_t bits = v_bits(seen); bits != 0; bits &= bits - 1) slots[n++] = (uint8_t)__builtin_ctz(bits);
    if (n == 0) continue;
    int next = b + 1 < args->blocks ? b + 1 : b; /* fetched while this page is read */
    for (int first = 0; first < args->share; first += RT_HEADS) {
      int heads = args->share - first < RT_HEADS ? args->share - first : RT_HEADS;
      float *out = args->out + (size_t)first * (size_t)head_dim;
      rt_scores[k_format](args->q + (size_t)first * (size_t)head_dim, args->k[b], args->k[next], head_dim, heads, s);
      for (int h = 0; h < heads; h++)
        rt_soften(s + h * 16, seen, args->scale, args->softcap, head_dim, out + (size_t)h * (size_t)head_dim, &max[first + h],
                  &sum[first + h]);
      rt_mix[v_format](s, args->v[b], args->v[next], head_dim, heads, slots, n, out);
    }
  }
}

/* out[share][head_dim] = sum_i w_i partial[i] / (sum_i w_i sum[i] + e^(sink - top)),  w_i = e^(max[i] - top), i in order;
 * top is the largest of max[.][h] and the sink. A head that saw nothing is 0. partial: [n][share][head_dim], max, sum:
 * [n][share], sinks: [share] or NULL. */
static void rt_attention_combine(int n, int share, int head_dim, const float *partial, const float *max, const float *sum,
                                 const float *sinks, float *out) {
  for (int h = 0; h < share; h++, out += head_dim) {
    float top = sinks != NULL ? sinks[h] : -FLT_MAX;
    for (int i = 0; i < n; i++) top = max[i * share + h] > top ? max[i * share + h] : top;
    float total = sinks != NULL ? v_exp1(sinks[h] - top) : 0.0f;
    memset(out, 0, (size_t)head_dim * sizeof *out);
    for (int i = 0; i < n; i++) {
      float weight = v_exp1(max[i * share + h] - top);
      const float *part = partial + (size_t)(i * share + h) * (size_t)head_dim;
      total = total + weight * sum[i * share + h];
      for (int d = 0; d < head_dim; d += 16) {
        int lanes = head_dim - d < 16 ? head_dim - d : 16;
        v16f acc = v_fma(v_set1(weight), v_load_n(part + d, lanes, 0.0f), v_load_n(out + d, lanes, 0.0f));
        v_store_n(out + d, acc, lanes);
      }
    }
    for (int d = 0; d < head_dim && total != 0.0f; d += 16) {
      int lanes = head_dim - d < 16 ? head_dim - d : 16;
      v_store_n(out + d, v_div(v_load_n(out + d, lanes, 0.0f), v_set1(total)), lanes);
    }
  }
}
#endif
