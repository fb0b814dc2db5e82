/* Attention of tokens on the BF16 path: ops/attention.h with q, K, V and p rounded to bf16.
 *
 * A function of the token's place and the cache alone, however many tokens are computed at once. One lane is a slot of a page,
 * then a dimension. Of each split (up to RT_SPAN_PAGES pages at absolute places):
 *   s    per 32 d, ascending, an even and an odd chain of fma from zero, acc += even + odd (what ops/linear_bf16.h does)
 *   max  the largest score of the split
 *   p    e^(s - max) rounded, 0 below e^-28: products stay clear of what tiles take for zero;  sums on 16 lanes, pages ascending
 *   out  as s, per 32 slots
 * A slot a token does not see has p = 0 and takes part, which changes no bit, with V = 0 where its V is not finite.
 * Each page is unpacked once for all tokens. Partials join as ever (`attention_join`). */
#ifndef RT_OPS_ATTENTION_BF16_H
#define RT_OPS_ATTENTION_BF16_H
#include "ops/attention.h"
#include "ops/linear_bf16.h"

enum { RT_SPAN = RT_SPAN_PAGES * RT_PAGE, RT_SPAN_PAIRS = RT_SPAN_PAGES / 2 };

typedef struct rt_span {
  const struct rt_attention_args *args;
  int first, last, width; /* pages [first, last), whole pairs, hold all that is seen; width: head_dim in whole 32 */
  int shape;              /* of the tiles as they stand */
  uint16_t seen[RT_SPAN_PAGES][RT_QUERY_ROWS]; /* slots of a page that a token sees */
  rt_wide *operands;  /* K [RT_SPAN_PAGES][width / 32][RT_WIDE_PART]; then V [dimensions / 16][RT_SPAN_PAIRS][RT_WIDE_PART] */
  float *page;        /* [16][width], one page as f32 */
  rt_coarse *q, *p;   /* [RT_SPAN_ROWS][width], [rows][RT_SPAN] */
  float *s;           /* [RT_SPAN_ROWS][RT_SPAN] */
} rt_span;

/* y[rows][16] = 32 * steps numbers of x times w. x: rows `stride` numbers apart, y: rows ldy floats apart. */
#ifdef V_TILES
static void rt_coarse_product(const rt_wide *w, int steps, const rt_coarse *x, size_t stride, int rows, float *y, size_t ldy,
                              int *shape) {
  for (int t = 0; t < rows; t += 32, x += 32 * stride, y += 32 * ldy) {
    int rows0 = rows - t < 16 ? rows - t : 16, rows1 = rows - t < 32 ? rows - t - rows0 : 16, now = rows0 * 32 + rows1;
    if (*shape != now) v_tiles(rows0, rows1, 64);
    *shape = now;
    V_TILE_ZERO(0);
    if (rows1) V_TILE_ZERO(2);
    for (int i = 0; i < steps; i++) {
      V_TILE_LOAD(6, w + i * RT_WIDE_PART, 64);
      V_TILE_LOAD(4, x + i * 32, stride * 2);
      V_TILE_BF16(0, 4, 6);
      if (rows1) V_TILE_LOAD(5, x + 16 * stride + i * 32, stride * 2);
      if (rows1) V_TILE_BF16(2, 5, 6);
    }
    V_TILE_STORE(0, y, ldy * 4);
    if (rows1) V_TILE_STORE(2, y + 16 * ldy, ldy * 4);
  }
}
#else
V_INLINE void rt_coarse_rows(const rt_wide *w, int steps, const rt_coarse *x, size_t stride, int rows, float *y, size_t ldy) {
  v16f acc[V_BF16_TOKENS];
  for (int t = 0; t < rows; t++) acc[t] = v_zero();
  for (int i = 0; i < steps; i++) rt_chains_bf16(w + i * RT_WIDE_PART, x + i * 32, stride, rows, acc);
  for (int t = 0; t < rows; t++) v_store(y + t * ldy, acc[t]);
}
static void rt_coarse_product(const rt_wide *w, int steps, const rt_coarse *x, size_t stride, int rows, float *y, size_t ldy,
                              int *shape) {
  int t = 0;
  (void)shape;
  for (; V_BF16_TOKENS > 1 && rows - t >= V_BF16_TOKENS; t += V_BF16_TOKENS)
    rt_coarse_rows(w, steps, x + t * stride, stride, V_BF16_TOKENS, y + t * ldy, ldy);
  for (; t < rows; t++) rt_coarse_rows(w, steps, x + t * stride, stride, 1, y + t * ldy, ldy);
}
#endif

/* What each token sees, page by page. Returns whether anything is. */
static int rt_span_look(rt_span *n) {
  const struct rt_attention_args *args = n->args;
  memset(n->seen, 0, sizeof n->seen);
  n->first = RT_SPAN_PAGES, n->last = 0;
  for (int b = 0; b < args->n_blocks; b++)
    for (int t = 0; t < args->tokens; t++) {
      if (rt_out_of_sight(args, b, args->queries[t].position, args->queries[t].position)) continue;
      n->seen[b][t] = (uint16_t)rt_seen_slots(args, b, args->queries[t]);
      if (n->seen[b][t] == 0) continue;
      n->first = b < n->first ? b / 2 * 2 : n->first;
      n->last = b / 2 * 2 + 2;
    }
  return n->last > 0;
}

/* Slots of page b that some, that all of tokens [from, to) see. */
V_INLINE uint32_t rt_span_any(const rt_span *n, int b, int from, int to) {
  uint32_t any = 0;
  for (int t = from; t < to; t++) any |= n->seen[b][t];
  return any;
}
V_INLINE uint32_t rt_span_all(const rt_span *n, int b, int from, int to) {
  uint32_t all = 0xffff;
  for (int t = from; t < to; t++) all &= n->seen[b][t];
  return all;
}

static void rt_span_keys(const rt_span *n) {
  const struct rt_attention_args *args = n->args;
  for (int b = n->first; b < n->last; b++) {
    if (rt_span_any(n, b, 0, args->tokens) == 0) continue;
    const uint8_t *k = args->k + (size_t)args->blocks[b].page * args->k_stride;
    const uint8_t *next = args->k + (size_t)args->blocks[b + 1 < args->n_blocks ? b + 1 : b].page * args->k_stride;
    rt_widen_k[args->k_format](k, next, args->head_dim, n->page);
    for (int d = args->head_dim; d < n->width; d++) v_store(n->page + d * 16, v_zero());
    for (int d = 0; d < n->width; d += 2)
      rt_pair_bf16(n->operands + (size_t)b * 16 * (size_t)n->width, d, v_load(n->page + d * 16), v_load(n->page + d * 16 + 16));
  }
}

/* V of what tokens [from, to) see. Returns 0 when a V that only some of them see is not finite. */
static int rt_span_values(const rt_span *n, int from, int to) {
  const struct rt_attention_args *args = n->args;
  int width = rt_attention_width(args->head_dim), finite = 1;
  for (int b = n->first; b < n->last; b++) {
    uint32_t any = rt_span_any(n, b, from, to), some = any & ~rt_span_all(n, b, from, to);
    if (any != 0) {
      const uint8_t *v = args->v + (size_t)args->blocks[b].page * args->v_stride;
      const uint8_t *next = args->v + (size_t)args->blocks[b + 1 < args->n_blocks ? b + 1 : b].page * args->v_stride;
      rt_widen_v[args->v_format](v, next, args->head_dim, n->page);
    }
    for (int t = 0; t < 16; t++)
      for (int d = 0; d < width; d += 16) {
        if (!(any >> t & 1)) v_store(n->page + t * width + d, v_zero());
        else if (some >> t & 1)
          finite &= v_bits(v_less(v_abs(v_round_bf16(v_load(n->page + t * width + d))), v_set1(__builtin_inff()))) == 0xffff;
      }
    for (int d = 0; d < width; d += 16)
      for (int t = 0; t < 16; t += 2)
        rt_pair_bf16(n->operands + ((size_t)d / 16 * RT_SPAN_PAIRS + (size_t)b / 2) * RT_WIDE_PART, b % 2 * 16 + t,
                     v_load(n->page + t * width + d), v_load(n->page + (t + 1) * width + d));
  }
  return finite;
}

/* A row's scores become p, their maximum and sum. */
static void rt_span_soften(const rt_span *n, int row, float *s) {
  const struct rt_attention_args *args = n->args;
  const v16f unseen = v_set1(-__builtin_inff());
  v16f top = unseen, sum = v_zero();
  uint32_t any = 0;
  for (int b = n->first; b < n->last; b++) {
    uint32_t seen = n->seen[b][row / args->share];
    v16f x = seen == 0 ? unseen : rt_scaled(s + b * 16, seen, args->scale, args->softcap);
    any |= seen;
    top = v_max(x, top);
    v_store(s + b * 16, x);
  }
  float max = v_most(top);
  max = max > -FLT_MAX ? max : -FLT_MAX;
  for (int b = n->first; b < n->last; b++) {
    v16f x = v_sub(v_load(s + b * 16), v_set1(max));
    v16f p = v_round_bf16(v_select(v_less(x, v_set1(-28.0f)), v_zero(), v_exp_low(x)));
    sum = v_add(sum, p);
    rt_store_coarse(n->p + (size_t)row * RT_SPAN + b * 16, p);
  }
  args->max[row] = max;
  v_store(args->sum + row * 16, sum);
  if (any == 0) args->sum[row * 16] = -1.0f;
}

/* Up to RT_SPAN_ROWS rows from `first` on. */
static void rt_span_rows(rt_span *n, int first, int rows) {
  const struct rt_attention_args *args = n->args;
  for (int r = 0; r < rows; r++) {
    const float *q = args->q + (size_t)((first + r) / args->share) * args->q_stride +
                     (size_t)((first + r) % args->share) * (size_t)args->head_dim;
    for (int d = 0; d < n->width; d += 16) {
      int lanes = args->head_dim - d < 16 ? args->head_dim - d : 16;
      rt_store_coarse(n->q + r * n->width + d, lanes > 0 ? v_round_bf16(v_load_n(q + d, lanes, 0.0f)) : v_zero());
    }
  }
  for (int b = n->first; b < n->last; b++)
    if (rt_span_any(n, b, 0, args->tokens) != 0)
      rt_coarse_product(n->operands + (size_t)b * 16 * (size_t)n->width, n->width / 32, n->q, (size_t)n->width, rows, n->s + b * 16,
                        RT_SPAN, &n->shape);
  for (int r = 0; r < rows; r++) rt_span_soften(n, first + r, n->s + r * RT_SPAN);
}

/* out of tokens [from, to) */
static void rt_span_mix(rt_span *n, int from, int to) {
  const struct rt_attention_args *args = n->args;
  int width = rt_attention_width(args->head_dim), row = from * args->share;
  if (!rt_span_values(n, from, to) && to - from > 1) {
    for (int t = from; t < to; t++) rt_span_mix(n, t, t + 1);
    return;
  }
  for (int d = 0; d < width; d += 16)
    rt_coarse_product(n->operands + ((size_t)d / 16 * RT_SPAN_PAIRS + (size_t)n->first / 2) * RT_WIDE_PART, (n->last - n->first) / 2,
                      n->p + (size_t)row * RT_SPAN + n->first * 16, RT_SPAN, (to - from) * args->share,
                      args->out + (size_t)row * (size_t)width + d, (size_t)width, &n->shape);
}

static void rt_attention_bf16(const struct rt_attention_args *args, float *scratch) {
  int rows = args->tokens * args->share, width = (args->head_dim + 31) / 32 * 32;
  rt_span n = {.args = args, .width = width, .operands = (rt_wide *)scratch, .page = scratch + RT_SPAN * width};
  n.s = n.page + 16 * width;
  n.q = (rt_coarse *)(n.s + RT_SPAN_ROWS * RT_SPAN);
  n.p = (rt_coarse *)((float *)n.q + RT_SPAN_ROWS * width);
  rt_attention_start(args);
  for (int r = 0; r < rows; r++) args->sum[r * 16] = -1.0f;
  if (!rt_span_look(&n)) return;
  rt_span_keys(&n);
  for (int r = 0; r < rows; r += RT_SPAN_ROWS) rt_span_rows(&n, r, rows - r < RT_SPAN_ROWS ? rows - r : RT_SPAN_ROWS);
  rt_span_mix(&n, 0, args->tokens);
#ifdef V_TILES
  V_TILE_RELEASE();
#endif
}
#endif
