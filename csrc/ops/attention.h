/* out[h] = sum_t p[h][t] V[t] / sum_t p[h][t],  p = e^(s - max),  s[h][t] = cap(scale * q_h . K[t]) over the tokens seen.
 *
 * A token is seen when its stored position p satisfies 0 <= p <= position and, with window > 0, p > position - window, and
 * when it is old or the query's tree has its bit; what an unseen slot holds is never looked at. One order for every query
 * row, whichever kernel computes it: pages ascending, 16 tokens each; scores in ascending d, one lane a token; V in ascending
 * t, one lane a dimension; all fused. The maximum starts at -FLT_MAX and moves only when a score of the page exceeds it by
 * more than 8 (p stays below e^8); sums stay on 16 lanes; a page nobody sees is skipped.
 *
 * The pages of a sequence are split at fixed places into partials, which `attention_join` adds up in order: the larger
 * maximum stays, the other side shrinks. Sinks are there from the start.
 *
 * `attention` takes one token: all `share` heads of a KV head meet a page as it is stored. `attention_tile` takes several
 * tokens of a sequence: each page is widened to f32 once, then V_ROWS query rows at a time share every load of it.
 *
 * A latent page holds one row a token, which is its K and its V (args->v is NULL): `attention_tile` takes these too, also for
 * one token. A score is then 16 lanes of fused steps along d, folded as v_sum does. */
#ifndef RT_OPS_ATTENTION_H
#define RT_OPS_ATTENTION_H
#include "ops/rope_kv.h"

#include <float.h>

enum { RT_HEADS = 4, RT_PAGES = 4 }; /* heads that meet a page together; pages whose scores are taken together */

/* Of 4, 2 and 1 the most things that as many heads can have a sum of each in registers: of pages, or of parts of V. More sums
 * than heads keep a core from waiting for the last one. */
V_INLINE int rt_beside(int heads) { return heads * 4 <= V_SUMS ? 4 : heads * 2 <= V_SUMS ? 2 : 1; }

/* Into the second cache where products are quick, as weights are (ops/linear.h). */
V_INLINE void rt_fetch(const uint8_t *p) {
#ifdef V_FAR
  __builtin_prefetch(p, 0, 2);
#else
  __builtin_prefetch(p);
#endif
}

/* What meets pages of one format. `ahead` is a page that is met later, fetched line by line while this one is read. */
#define RT_PAGE_FORMAT(name)                                                                                                 \
  /* s[pages][RT_HEADS][16] = q[heads][head_dim] . k[page][head_dim][16] */                                                  \
  V_INLINE void rt_scores_of_##name(const float *q, const uint8_t *const *k, const uint8_t *const *ahead, int head_dim,      \
                                    int heads, int pages, float *s) {                                                        \
    v16f acc[RT_PAGES][RT_HEADS], scale[RT_PAGES];                                                                           \
    for (int i = 0; i < pages; i++)                                                                                          \
      for (int h = 0; h < heads; h++) acc[i][h] = v_zero();                                                                  \
    for (int first = 0; first < head_dim; first += 32) {                                                                     \
      for (int i = 0; i < pages; i++) scale[i] = rt_k_scale_##name(k[i], head_dim, first);                                   \
      for (int d = first; d < head_dim && d < first + 32; d++)                                                               \
        for (int i = 0; i < pages; i++) {                                                                                    \
          v16f row = rt_k_row_##name(k[i], head_dim, d, scale[i]);                                                           \
          rt_fetch(ahead[i] + (size_t)d * RT_ROW_BYTES_##name);                                                              \
          for (int h = 0; h < heads; h++) acc[i][h] = v_fma(v_set1(q[h * head_dim + d]), row, acc[i][h]);                    \
        }                                                                                                                    \
    }                                                                                                                        \
    for (int i = 0; i < pages; i++)                                                                                          \
      for (int h = 0; h < heads; h++) v_store(s + (i * RT_HEADS + h) * 16, acc[i][h]);                                       \
  }                                                                                                                          \
  V_INLINE void rt_scores_by_##name(const float *q, const uint8_t *const *k, const uint8_t *const *ahead, int head_dim,      \
                                    int heads, int pages, float *s) {                                                        \
    int i = 0;                                                                                                               \
    for (; i + rt_beside(heads) <= pages; i += rt_beside(heads))                                                             \
      rt_scores_of_##name(q, k + i, ahead + i, head_dim, heads, rt_beside(heads), s + i * RT_HEADS * 16);                    \
    for (; i < pages; i++) rt_scores_of_##name(q, k + i, ahead + i, head_dim, heads, 1, s + i * RT_HEADS * 16);              \
  }                                                                                                                          \
  static void rt_scores_##name(const float *q, const uint8_t *const *k, const uint8_t *const *ahead, int head_dim, int heads,\
                               int pages, float *s) {                                                                        \
    if (heads == 1) rt_scores_by_##name(q, k, ahead, head_dim, 1, pages, s);                                                 \
    else if (heads == 2) rt_scores_by_##name(q, k, ahead, head_dim, 2, pages, s);                                            \
    else if (heads == 3) rt_scores_by_##name(q, k, ahead, head_dim, 3, pages, s);                                            \
    else rt_scores_by_##name(q, k, ahead, head_dim, 4, pages, s);                                                            \
  }                                                                                                                          \
  /* out[heads][d..] += p[heads][16] v[16][head_dim] over the n tokens whose slots are `seen`, for `parts` vectors of them.  \
   * out: rows of `width` floats */                                                                                          \
  V_INLINE void rt_mix_at_##name(const float *p, const uint8_t *v, const uint8_t *ahead, int head_dim, int heads,            \
                                 const uint8_t *seen, int n, int d, int parts, int lanes, const float *scales, float *out,   \
                                 int width) {                                                                                \
    v16f acc[4][RT_HEADS];                                                                                                   \
    for (int c = 0; c < parts; c++)                                                                                          \
      for (int h = 0; h < heads; h++) acc[c][h] = v_load(out + h * width + d + c * 16);                                      \
    for (int i = 0; i < n; i++) {                                                                                            \
      size_t at = (size_t)seen[i] * (size_t)head_dim + (size_t)d;                                                            \
      const uint8_t *later = ahead + at * RT_ROW_BYTES_##name / 16;                                                          \
      for (int c = 0; c < parts; c++) {                                                                                      \
        v16f row = rt_v_row_##name(v, head_dim, at, c, lanes, scales);                                                       \
        if (c % 2 == 0) rt_fetch(later + c * RT_ROW_BYTES_##name);                                                           \
        for (int h = 0; h < heads; h++) acc[c][h] = v_fma(v_set1(p[h * 16 + seen[i]]), row, acc[c][h]);                      \
      }                                                                                                                      \
    }                                                                                                                        \
    for (int c = 0; c < parts; c++)                                                                                          \
      for (int h = 0; h < heads; h++) v_store(out + h * width + d + c * 16, acc[c][h]);                                      \
  }                                                                                                                          \
  V_INLINE void rt_mix_of_##name(const float *p, const uint8_t *v, const uint8_t *ahead, int head_dim, int heads,            \
                                 const uint8_t *seen, int n, float *out, int width) {                                        \
    float scales[RT_V_SCALES_##name];                                                                                        \
    int d = 0;                                                                                                               \
    rt_v_scales_##name(v, head_dim, scales);                                                                                 \
    for (; rt_beside(heads) >= 4 && d + 64 <= head_dim; d += 64)                                                             \
      rt_mix_at_##name(p, v, ahead, head_dim, heads, seen, n, d, 4, 16, scales, out, width);                                 \
    for (; rt_beside(heads) >= 2 && d + 32 <= head_dim; d += 32)                                                             \
      rt_mix_at_##name(p, v, ahead, head_dim, heads, seen, n, d, 2, 16, scales, out, width);                                 \
    for (; d + 16 <= head_dim; d += 16)                                                                                      \
      rt_mix_at_##name(p, v, ahead, head_dim, heads, seen, n, d, 1, 16, scales, out, width);                                 \
    if (d < head_dim) rt_mix_at_##name(p, v, ahead, head_dim, heads, seen, n, d, 1, head_dim - d, scales, out, width);       \
  }                                                                                                                          \
  static void rt_mix_##name(const float *p, const uint8_t *v, const uint8_t *ahead, int head_dim, int heads,                 \
                            const uint8_t *seen, int n, float *out, int width) {                                             \
    if (heads == 1) rt_mix_of_##name(p, v, ahead, head_dim, 1, seen, n, out, width);                                         \
    else if (heads == 2) rt_mix_of_##name(p, v, ahead, head_dim, 2, seen, n, out, width);                                    \
    else if (heads == 3) rt_mix_of_##name(p, v, ahead, head_dim, 3, seen, n, out, width);                                    \
    else rt_mix_of_##name(p, v, ahead, head_dim, 4, seen, n, out, width);                                                    \
  }                                                                                                                          \
  /* k -> f32 [head_dim][16] */                                                                                              \
  static void rt_widen_k_##name(const uint8_t *k, const uint8_t *next, int head_dim, float *wide) {                          \
    for (int first = 0; first < head_dim; first += 32) {                                                                     \
      v16f scale = rt_k_scale_##name(k, head_dim, first);                                                                    \
      for (int d = first; d < head_dim && d < first + 32; d++) {                                                             \
        __builtin_prefetch(next + (size_t)d * RT_ROW_BYTES_##name);                                                          \
        v_store(wide + d * 16, rt_k_row_##name(k, head_dim, d, scale));                                                      \
      }                                                                                                                      \
    }                                                                                                                        \
  }                                                                                                                          \
  /* v -> f32 [16][width], zeros past head_dim */                                                                            \
  static void rt_widen_v_##name(const uint8_t *v, const uint8_t *next, int head_dim, float *wide) {                          \
    int width = rt_attention_width(head_dim);                                                                                \
    float scales[RT_V_SCALES_##name];                                                                                        \
    rt_v_scales_##name(v, head_dim, scales);                                                                                 \
    for (int t = 0; t < 16; t++)                                                                                             \
      for (int d = 0; d < head_dim; d += 16) {                                                                               \
        size_t at = (size_t)t * (size_t)head_dim + (size_t)d;                                                                \
        __builtin_prefetch(next + at * RT_ROW_BYTES_##name / 16);                                                            \
        v_store(wide + t * width + d, rt_v_row_##name(v, head_dim, at, 0, head_dim - d < 16 ? head_dim - d : 16, scales));   \
      }                                                                                                                      \
  }
RT_PAGE_FORMAT(F32)
RT_PAGE_FORMAT(F16)
RT_PAGE_FORMAT(BF16)
RT_PAGE_FORMAT(Q8_0)
#undef RT_PAGE_FORMAT

static void (*const rt_scores[RT_FORMATS])(const float *, const uint8_t *const *, const uint8_t *const *, int, int, int, float *) = {
    [RT_F32] = rt_scores_F32, [RT_F16] = rt_scores_F16, [RT_BF16] = rt_scores_BF16, [RT_Q8_0] = rt_scores_Q8_0};
static void (*const rt_mix[RT_FORMATS])(const float *, const uint8_t *, const uint8_t *, int, int, const uint8_t *, int, float *,
                                        int) = {
    [RT_F32] = rt_mix_F32, [RT_F16] = rt_mix_F16, [RT_BF16] = rt_mix_BF16, [RT_Q8_0] = rt_mix_Q8_0};
static void (*const rt_widen_k[RT_FORMATS])(const uint8_t *, const uint8_t *, int, float *) = {
    [RT_F32] = rt_widen_k_F32, [RT_F16] = rt_widen_k_F16, [RT_BF16] = rt_widen_k_BF16, [RT_Q8_0] = rt_widen_k_Q8_0};
static void (*const rt_widen_v[RT_FORMATS])(const uint8_t *, const uint8_t *, int, float *) = {
    [RT_F32] = rt_widen_v_F32, [RT_F16] = rt_widen_v_F16, [RT_BF16] = rt_widen_v_BF16, [RT_Q8_0] = rt_widen_v_Q8_0};

/* ---- what every row does ---- */

V_INLINE void rt_scale_row(float *x, int width, float factor) {
  for (int i = 0; i < width; i += 16) v_store(x + i, v_mul(v_load(x + i), v_set1(factor)));
}

/* Slots of a block that a query sees, one bit each. */
V_INLINE uint32_t rt_seen_slots(const struct rt_attention_args *args, int b, struct rt_query query) {
  int low = args->window > 0 ? query.position - args->window + 1 : 0;
  uint32_t seen = v_bits(v_within(args->blocks[b].positions, low > 0 ? low : 0, query.position));
  if (query.tree == 0) return seen;
  int at = (args->first_block + b) * RT_PAGE - args->fresh; /* new token in the block's first slot; those before are old */
  if (at <= -RT_PAGE) return seen;
  if (at < 0) return seen & (uint32_t)(query.tree << -at | ((1u << -at) - 1));
  return at < 64 ? seen & (uint32_t)(query.tree >> at) : 0;
}

/* A row's scores [16] as exponents; -inf where it does not see. */
V_INLINE v16f rt_scaled(const float *s, uint32_t seen, float scale, float softcap) {
  v16f x = v_mul(v_load(s), v_set1(scale));
  if (softcap > 0.0f) x = v_mul(v_set1(softcap), v_tanh(v_div(x, v_set1(softcap))));
  return seen == 0xffff ? x : v_select(v_mask(seen), x, v_set1(-__builtin_inff()));
}
V_INLINE int rt_exceeds(v16f x, float max) { return v_bits(v_less(v_set1(max + 8.0f), x)) != 0; }

/* The maximum moves to the page's largest; out [width] and sum [16] shrink to it. */
V_INLINE void rt_move(v16f x, int width, float *out, float *max, float *sum) {
  float most = v_most(x), shrink = v_exp1(*max - most);
  *max = most;
  v_store(sum, v_mul(v_load(sum), v_set1(shrink)));
  rt_scale_row(out, width, shrink);
}

/* Exponents become probabilities p [16] under the maximum, and are added to sum [16]. */
V_INLINE void rt_soften(v16f x, float max, float *p, float *sum) {
  x = v_exp_low(v_sub(x, v_set1(max)));
  v_store(sum, v_add(v_load(sum), x));
  v_store(p, x);
}

/* A page is passed over when no position stored in it can be seen from positions [low, high]. */
V_INLINE int rt_out_of_sight(const struct rt_attention_args *args, int b, int low, int high) {
  return args->blocks[b].low > high || (args->window > 0 && args->blocks[b].high <= low - args->window);
}

V_INLINE void rt_attention_start(const struct rt_attention_args *args) {
  size_t rows = (size_t)args->tokens * (size_t)args->share, width = (size_t)rt_attention_width(args->head_dim);
  memset(args->out, 0, rows * width * sizeof(float));
  memset(args->sum, 0, rows * 16 * sizeof(float));
  for (size_t r = 0; r < rows; r++) args->max[r] = -FLT_MAX;
}

/* ---- one token ---- */

struct rt_sight { /* up to RT_PAGES pages in sight of the token, in order */
  int pages, n[RT_PAGES];
  uint32_t bits[RT_PAGES];        /* slots it sees .. */
  uint8_t slots[RT_PAGES][16];    /* .. and their numbers, [n] */
  const uint8_t *k[RT_PAGES], *v[RT_PAGES], *k_ahead[RT_PAGES], *v_ahead[RT_PAGES]; /* the page itself, and RT_PAGES further */
};

/* The numbers of the bits; returns how many. */
V_INLINE int rt_slots_of(uint32_t bits, uint8_t *slots /* [16] */) {
  static const uint8_t all[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  int n = 0;
  if (bits == 0xffff) {
    memcpy(slots, all, sizeof all);
    return 16;
  }
  for (; bits != 0; bits &= bits - 1) slots[n++] = (uint8_t)__builtin_ctz(bits);
  return n;
}

/* The next pages in sight from block b on; returns the block behind them. */
static int rt_look(const struct rt_attention_args *args, int b, struct rt_sight *sight) {
  int position = args->queries->position, last = args->n_blocks + args->more - 1, i = 0;
  for (; b < args->n_blocks && i < RT_PAGES; b++) {
    uint32_t bits = rt_out_of_sight(args, b, position, position) ? 0 : rt_seen_slots(args, b, *args->queries);
    if (bits == 0) continue;
    size_t page = (size_t)args->blocks[b].page, ahead = (size_t)args->blocks[b + RT_PAGES <= last ? b + RT_PAGES : b].page;
    sight->k[i] = args->k + page * args->k_stride, sight->k_ahead[i] = args->k + ahead * args->k_stride;
    sight->v[i] = args->v + page * args->v_stride, sight->v_ahead[i] = args->v + ahead * args->v_stride;
    sight->bits[i] = bits;
    sight->n[i] = rt_slots_of(bits, sight->slots[i]);
    i++;
  }
  sight->pages = i;
  return b;
}

/* out[heads] += p V of the pages [first, last) in sight; p: [pages][RT_HEADS][16]. */
V_INLINE void rt_mix_pages(const struct rt_attention_args *args, const struct rt_sight *sight, const float *p, int first, int last,
                           int heads, float *out) {
  for (int i = first; i < last; i++)
    rt_mix[args->v_format](p + i * RT_HEADS * 16, sight->v[i], sight->v_ahead[i], args->head_dim, heads, sight->slots[i],
                           sight->n[i], out, rt_attention_width(args->head_dim));
}

/* `heads` heads from `first` on meet the pages in sight. Pages are mixed when all have their weights, or a maximum moves. */
static void rt_meet(const struct rt_attention_args *args, const struct rt_sight *sight, int first, int heads) {
  int width = rt_attention_width(args->head_dim), mixed = 0;
  float s[RT_PAGES][RT_HEADS * 16], *out = args->out + (size_t)first * (size_t)width;
  rt_scores[args->k_format](args->q + (size_t)first * (size_t)args->head_dim, sight->k, sight->k_ahead, args->head_dim, heads,
                            sight->pages, s[0]);
  for (int i = 0; i < sight->pages; i++)
    for (int h = 0; h < heads; h++) {
      float *max = &args->max[first + h], *sum = args->sum + (first + h) * 16;
      v16f x = rt_scaled(s[i] + h * 16, sight->bits[i], args->scale, args->softcap);
      if (rt_exceeds(x, *max)) {
        rt_mix_pages(args, sight, s[0], mixed, i, heads, out);
        mixed = i;
        rt_move(x, width, out + (size_t)h * (size_t)width, max, sum);
      }
      rt_soften(x, *max, s[i] + h * 16, sum);
    }
  rt_mix_pages(args, sight, s[0], mixed, sight->pages, heads, out);
}

static void rt_attention(const struct rt_attention_args *args) {
  struct rt_sight sight;
  int any = 0;
  rt_attention_start(args);
  for (int b = 0; b < args->n_blocks;) {
    b = rt_look(args, b, &sight);
    any |= sight.pages;
    for (int first = 0; first < args->share && sight.pages; first += RT_HEADS)
      rt_meet(args, &sight, first, args->share - first < RT_HEADS ? args->share - first : RT_HEADS);
  }
  for (int h = 0; h < args->share && !any; h++) args->sum[h * 16] = -1.0f;
}

/* ---- a tile: several tokens of a sequence ---- */

struct rt_meeting { /* `pages` pages as f32, and every query row */
  const struct rt_attention_args *args;
  const float *k, *v; /* [pages][head_dim][16], [pages * 16][width]; latent pages: k is v */
  int width, pages;
  const float *q[RT_QUERY_ROWS];
  uint16_t seen[RT_QUERY_ROWS]; /* of the only page, or 0xffff: more than one are there when everybody sees all of them */
};

/* s[rows][stride] = q[rows][head_dim] . k[head_dim][16] */
V_INLINE void rt_tile_scores(const float *const *q, const float *k, int head_dim, int rows, float *s) {
  v16f acc[V_ROWS];
  for (int r = 0; r < rows; r++) acc[r] = v_zero();
  for (int d = 0; d < head_dim; d++) {
    v16f row = v_load(k + d * 16);
    for (int r = 0; r < rows; r++) acc[r] = v_fma(v_set1(q[r][d]), row, acc[r]);
  }
  for (int r = 0; r < rows; r++) v_store(s + r * RT_TILE_SLOTS, acc[r]);
}

/* The same of latent rows k[16][width], zeros past head_dim. */
V_INLINE void rt_tile_scores_latent(const float *const *q, const float *k, int head_dim, int rows, float *s) {
  int width = rt_attention_width(head_dim), d;
  for (int t = 0; t < 16; t++, k += width) {
    v16f acc[V_ROWS];
    for (int r = 0; r < rows; r++) acc[r] = v_zero();
    for (d = 0; d + 16 <= head_dim; d += 16) {
      v16f row = v_load(k + d);
      for (int r = 0; r < rows; r++) acc[r] = v_fma(v_load(q[r] + d), row, acc[r]);
    }
    for (int r = 0; r < rows && d < head_dim; r++) acc[r] = v_fma(v_load_n(q[r] + d, head_dim - d, 0.0f), v_load(k + d), acc[r]);
    for (int r = 0; r < rows; r++) s[r * RT_TILE_SLOTS + t] = v_sum(acc[r]);
  }
}

/* out[rows][width] += p[rows][slots] v[slots][width] */
V_INLINE void rt_tile_mix(const float *p, const float *v, int slots, int width, int rows, float *out) {
  for (int d = 0; d < width; d += 16) {
    v16f acc[V_ROWS];
    for (int r = 0; r < rows; r++) acc[r] = v_load(out + r * width + d);
    for (int t = 0; t < slots; t++) {
      v16f row = v_load(v + t * width + d);
      for (int r = 0; r < rows; r++) acc[r] = v_fma(v_set1(p[r * RT_TILE_SLOTS + t]), row, acc[r]);
    }
    for (int r = 0; r < rows; r++) v_store(out + r * width + d, acc[r]);
  }
}

/* One row's share of pages [first, last), by the slots it sees. */
static void rt_tile_mix_row(const struct rt_meeting *t, int row, const float *p, int first, int last, float *out) {
  for (int page = first; page < last; page++) {
    uint8_t slots[16];
    int n = 0;
    for (uint32_t rest = t->seen[row]; rest != 0; rest &= rest - 1) slots[n++] = (uint8_t)__builtin_ctz(rest);
    const uint8_t *v = (const uint8_t *)(t->v + (size_t)page * 16 * (size_t)t->width);
    rt_mix_F32(p + page * 16, v, v, t->width, 1, slots, n, out, t->width);
  }
}

/* `rows` query rows from `first` on meet the pages. A row whose maximum moves takes what lies before it at once. */
V_INLINE void rt_tile_rows(const struct rt_meeting *t, int first, int rows) {
  const struct rt_attention_args *args = t->args;
  float s[V_ROWS * RT_TILE_SLOTS], *out = args->out + (size_t)first * (size_t)t->width;
  uint32_t any = 0, all = 0xffff;
  int mixed[V_ROWS], together = 1;
  for (int r = 0; r < rows; r++) any |= t->seen[first + r], all &= t->seen[first + r];
  if (any == 0) return;
  for (int i = 0; i < t->pages; i++) {
    const float *page = t->k + (size_t)i * 16 * (size_t)(t->k == t->v ? t->width : args->head_dim);
    if (t->k == t->v) rt_tile_scores_latent(t->q + first, page, args->head_dim, rows, s + i * 16);
    else rt_tile_scores(t->q + first, page, args->head_dim, rows, s + i * 16);
  }
  for (int r = 0; r < rows; r++) {
    float *p = s + r * RT_TILE_SLOTS, *max = &args->max[first + r], *mine = out + r * t->width;
    mixed[r] = 0;
    for (int i = 0; i < t->pages && t->seen[first + r] != 0; i++) {
      v16f x = rt_scaled(p + i * 16, t->seen[first + r], args->scale, args->softcap);
      if (rt_exceeds(x, *max)) {
        rt_tile_mix_row(t, first + r, p, mixed[r], i, mine);
        mixed[r] = i, together &= i == 0;
        rt_move(x, t->width, mine, max, args->sum + (first + r) * 16);
      }
      rt_soften(x, *max, p + i * 16, args->sum + (first + r) * 16);
    }
  }
  if (together && all == 0xffff) {
    rt_tile_mix(s, t->v, t->pages * 16, t->width, rows, out);
    return;
  }
  for (int r = 0; r < rows; r++) rt_tile_mix_row(t, first + r, s + r * RT_TILE_SLOTS, mixed[r], t->pages, out + r * t->width);
}

static void rt_tile_whole(const struct rt_meeting *t, int first) { rt_tile_rows(t, first, V_ROWS); }
static void rt_tile_two(const struct rt_meeting *t, int first) { rt_tile_rows(t, first, 2); }
static void rt_tile_one(const struct rt_meeting *t, int first) { rt_tile_rows(t, first, 1); }

static void rt_tile_meet(struct rt_meeting *t) {
  int rows = t->args->tokens * t->args->share, r = 0;
  if (t->pages == 0) return;
  for (; r + V_ROWS <= rows; r += V_ROWS) rt_tile_whole(t, r);
  for (; r + 2 <= rows; r += 2) rt_tile_two(t, r);
  if (r < rows) rt_tile_one(t, r);
  t->pages = 0;
}

/* Which slots of block b each row sees. Returns 0 when none sees any, 1 when all see all, else 2. */
static int rt_tile_look(const struct rt_attention_args *args, int b, uint16_t *seen, uint16_t *ever) {
  uint32_t any = 0, all = 0xffff;
  for (int t = 0; t < args->tokens; t++) {
    uint32_t bits = rt_seen_slots(args, b, args->queries[t]);
    any |= bits, all &= bits, ever[t] |= (uint16_t)bits;
    for (int h = 0; h < args->share; h++) seen[t * args->share + h] = (uint16_t)bits;
  }
  return any == 0 ? 0 : all == 0xffff ? 1 : 2;
}

/* Block b as f32 behind the pages that are there. */
static void rt_tile_widen(struct rt_meeting *t, int b, float *k, float *v) {
  const struct rt_attention_args *args = t->args;
  size_t page = (size_t)args->blocks[b].page, next = (size_t)args->blocks[b + 1 < args->n_blocks ? b + 1 : b].page;
  size_t at = (size_t)t->pages++ * 16;
  if (args->v == NULL) {
    rt_widen_v[args->k_format](args->k + page * args->k_stride, args->k + next * args->k_stride, args->head_dim,
                               k + at * (size_t)t->width);
    return;
  }
  rt_widen_k[args->k_format](args->k + page * args->k_stride, args->k + next * args->k_stride, args->head_dim,
                             k + at * (size_t)args->head_dim);
  rt_widen_v[args->v_format](args->v + page * args->v_stride, args->v + next * args->v_stride, args->head_dim,
                             v + at * (size_t)t->width);
}

static void rt_attention_tile(const struct rt_attention_args *args, float *scratch) {
  int low = INT32_MAX, high = 0, rows = args->tokens * args->share;
  float *k = scratch, *v = args->v == NULL ? k : scratch + (size_t)args->head_dim * RT_TILE_SLOTS;
  uint16_t seen[RT_QUERY_ROWS], ever[RT_QUERY_ROWS] = {0};
  struct rt_meeting t = {.args = args, .k = k, .v = v, .width = rt_attention_width(args->head_dim)};
  rt_attention_start(args);
  for (int i = 0; i < args->tokens; i++) {
    low = args->queries[i].position < low ? args->queries[i].position : low;
    high = args->queries[i].position > high ? args->queries[i].position : high;
    const float *q = args->q + (size_t)i * args->q_stride;
    for (int h = 0; h < args->share; h++) t.q[i * args->share + h] = q + (size_t)h * (size_t)args->head_dim;
  }
  for (int b = 0; b < args->n_blocks; b++) {
    int sight = rt_out_of_sight(args, b, low, high) ? 0 : rt_tile_look(args, b, seen, ever);
    if (sight == 0) continue;
    if (sight == 2 || t.pages == RT_TILE_SLOTS / 16) rt_tile_meet(&t);
    memcpy(t.seen, seen, (size_t)rows * sizeof *seen);
    rt_tile_widen(&t, b, k, v);
    if (sight == 2) rt_tile_meet(&t);
  }
  rt_tile_meet(&t);
  for (int r = 0; r < rows; r++)
    if (ever[r / args->share] == 0) args->sum[r * 16] = -1.0f;
}

/* ---- partials in order ---- */

/* top [rows], total [rows][16] and out [rows][head_dim] take in one partial: out [rows][width], max [rows], sum [rows][16]. */
static void rt_attention_join(int rows, int head_dim, const float *partial, const float *max, const float *sum, float *top,
                              float *total, float *out) {
  int width = rt_attention_width(head_dim);
  for (int r = 0; r < rows; r++) {
    if (sum[r * 16] < 0.0f) continue; /* saw nothing */
    float weight = 1.0f, shrink = 1.0f;
    if (max[r] > top[r]) {
      shrink = v_exp1(top[r] - max[r]);
      top[r] = max[r];
    } else {
      weight = v_exp1(max[r] - top[r]);
    }
    v16f w = v_set1(weight), keep = v_set1(shrink);
    v_store(total + r * 16, v_fma(w, v_load(sum + r * 16), v_mul(v_load(total + r * 16), keep)));
    for (int d = 0; d < head_dim; d += 16) {
      int lanes = head_dim - d < 16 ? head_dim - d : 16;
      float *at = out + (size_t)r * (size_t)head_dim + d;
      v16f part = v_load(partial + (size_t)r * (size_t)width + d);
      v_store_n(at, v_fma(w, part, v_mul(v_load_n(at, lanes, 0.0f), keep)), lanes);
    }
  }
}

/* out [rows][head_dim] /= the sum of total [rows][16]; a row that saw nothing stays 0. */
static void rt_attention_end(int rows, int head_dim, const float *total, float *out) {
  for (int r = 0; r < rows; r++, out += head_dim) {
    float all = v_sum(v_load(total + r * 16));
    for (int d = 0; d < head_dim && all != 0.0f; d += 16) {
      int lanes = head_dim - d < 16 ? head_dim - d : 16;
      v_store_n(out + d, v_div(v_load_n(out + d, lanes, 0.0f), v_set1(all)), lanes);
    }
  }
}
#endif
