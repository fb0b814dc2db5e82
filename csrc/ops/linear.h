/* y = W x.  W: packed groups of 16 rows (quant/r16.h), x: A16 activations (quant/act.h), y: [m][16 * (last - first)] f32.
 *
 * One lane is one row. Block formats: for each sub-block, in ascending order, the exact integer S = sum (u - offset) q, then
 * acc = fma(f32(S), scale, acc) and, with a least value, acc = fma(least, f32(sum q), acc); y = acc * act scale.
 * Float formats read x: four chains k mod 4 of fma in ascending k, (c0 + c1) + (c2 + c3).
 * The order knows nothing of m: up to V_DOT_TOKENS tokens share one pass over a group, which amortizes the unpacking.
 * Work is claimed as ranges of groups times ranges of tokens. */
#ifndef RT_OPS_LINEAR_H
#define RT_OPS_LINEAR_H
#include "quant/act.h"
#include "quant/all.h"

enum { RT_AT_ONCE = 4 }; /* most tokens of one pass */

typedef struct rt_rows { /* activations of some tokens */
  const int32_t *sum[RT_AT_ONCE];
  const int8_t *high[RT_AT_ONCE], *low[RT_AT_ONCE];
  const int16_t *q[RT_AT_ONCE];
  const float *x[RT_AT_ONCE];
  float scale[RT_AT_ONCE];
} rt_rows;

V_INLINE rt_rows rt_rows_of(const uint8_t *act, size_t stride, int k, int m) {
  rt_rows r;
  for (int t = 0; t < m; t++) {
    rt_act a = rt_act_at((uint8_t *)(uintptr_t)(act + t * stride), k);
    r.sum[t] = a.sum, r.high[t] = a.high, r.low[t] = a.low, r.q[t] = a.q, r.x[t] = a.x, r.scale[t] = *a.scale;
  }
  return r;
}

/* sum of q over the `sub` k (16 or 32) at k, of token t. */
V_INLINE int32_t rt_sum_at(const rt_rows *x, int t, int k, int sub) {
  const int32_t *sum = x->sum[t] + k / 16;
  return sub == 16 ? sum[0] : sum[0] + sum[1];
}

/* The same in one plane (the A8 path): [m] tokens at `act`, `stride` bytes apart, and where their parts begin behind it. */
typedef struct rt_byte_rows {
  const uint8_t *act;
  size_t stride, low, scales, totals;
} rt_byte_rows;

V_INLINE rt_byte_rows rt_byte_rows_of(const uint8_t *act, size_t stride, int k) {
  rt_act a = rt_act_at((uint8_t *)(uintptr_t)act, k);
#define RT_BEHIND(part) (size_t)((const uint8_t *)a.part - act)
  return (rt_byte_rows){act, stride, RT_BEHIND(low), RT_BEHIND(scales), RT_BEHIND(totals)};
#undef RT_BEHIND
}

V_INLINE float rt_byte_scale(const rt_byte_rows *x, int t, int k) {
  return ((const float *)(x->act + t * x->stride + x->scales))[k / 32];
}
V_INLINE const int32_t *rt_byte_sum(const rt_byte_rows *x, int t, int k) {
  return (const int32_t *)(x->act + t * x->stride + 64) + k / 16;
}
/* a * sum of q over the `sub` k at k. */
V_INLINE float rt_byte_total(const rt_byte_rows *x, int t, int k, int sub) {
  if (sub == 32) return ((const float *)(x->act + t * x->stride + x->totals))[k / 32];
  return rt_byte_scale(x, t, k) * (float)*rt_byte_sum(x, t, k);
}

/* Fetch `lines` cache lines behind p, in small portions, where the lines at p are read: a core waits when it has asked for more
 * than some twenty. Its first cache takes no more at a time, each for all of memory's latency, so that most lines have to be
 * brought by the processor's own foresight. Where products are quick (V_FAR): further ahead, into the second cache; but not for one
 * token's whole bytes (Q8_0), which are multiplied as they come. */
enum { RT_AHEAD = 3072, RT_FAR_AHEAD = 8192 };
#ifdef V_FAR
#define RT_FAR(tile_k, bits, m) ((m) > 1 || (tile_k) > RT_SPAN_K || (bits) != 8)
#else
#define RT_FAR(tile_k, bits, m) 0
#endif
V_INLINE void rt_prefetch(const uint8_t *p, int lines, int far) {
  for (int i = 0; i < lines; i++) {
    if (far) __builtin_prefetch(p + RT_FAR_AHEAD + i * 64, 0, 2);
    else __builtin_prefetch(p + RT_AHEAD + i * 64, 0, 3);
  }
}
#define RT_LINES(bytes, parts) (((bytes) / (parts) + 63) / 64) /* of a part of a tile */

/* ---- one group for m <= V_DOT_TOKENS tokens. y: [m][16], rows ldy apart ---- */
/* Floats. One token meets k in order; more keep one chain of each in registers. */
#define RT_GROUP_FLOAT(name, tile_k, tile_bytes, sub, bits, offset)                                                     \
  V_INLINE void rt_one_##name(const uint8_t *restrict tile, const float *restrict x, v16f (*chain)[RT_AT_ONCE]) {       \
    for (int i = 0; i < tile_k; i++) {                                                                                  \
      if (i % 4 == 0) rt_prefetch(tile + i * (tile_bytes / tile_k), RT_LINES(tile_bytes, 16), RT_FAR(tile_k, bits, 1)); \
      chain[i % 4][0] = v_fma(rt_row_##name(tile, i), v_set1(x[i]), chain[i % 4][0]);                                   \
    }                                                                                                                   \
  }                                                                                                                     \
  V_INLINE void rt_some_##name(const uint8_t *restrict tile, const rt_rows *x, int at, int m,                           \
                               v16f (*chain)[RT_AT_ONCE]) {                                                             \
    for (int c = 0; c < 4; c++) {                                                                                       \
      rt_prefetch(tile + c * (tile_bytes / 4), RT_LINES(tile_bytes, 4), RT_FAR(tile_k, bits, m));                       \
      v16f acc[RT_AT_ONCE];                                                                                             \
      for (int t = 0; t < m; t++) acc[t] = chain[c][t];                                                                 \
      for (int i = c; i < tile_k; i += 4) {                                                                             \
        v16f w = rt_row_##name(tile, i);                                                                                \
        for (int t = 0; t < m; t++) acc[t] = v_fma(w, v_set1(x->x[t][at + i]), acc[t]);                                 \
      }                                                                                                                 \
      for (int t = 0; t < m; t++) chain[c][t] = acc[t];                                                                 \
    }                                                                                                                   \
  }                                                                                                                     \
  V_INLINE void rt_group_##name(const uint8_t *restrict tile, int k, const rt_rows *x, int m, float *y, size_t ldy) {   \
    v16f acc[4][RT_AT_ONCE];                                                                                            \
    for (int c = 0; c < 4; c++)                                                                                         \
      for (int t = 0; t < m; t++) acc[c][t] = v_zero();                                                                 \
    for (int at = 0; at < k; at += tile_k, tile += tile_bytes) {                                                        \
      if (m == 1) rt_one_##name(tile, x->x[0] + at, acc);                                                               \
      else rt_some_##name(tile, x, at, m, acc);                                                                         \
    }                                                                                                                   \
    for (int t = 0; t < m; t++)                                                                                         \
      v_store(y + t * ldy, v_add(v_add(acc[0][t], acc[1][t]), v_add(acc[2][t], acc[3][t])));                            \
  }

/* Blocks: the sums of sub-block c of a span, which enter acc with its scale. */
#define RT_GROUP_BLOCK(name, tile_k, tile_bytes, sub, bits, offset, FOLD)                                             \
  V_INLINE void rt_sums_##name(const uint8_t *restrict tile, int span, int c, const rt_rows *x, int at, int m,        \
                               v16i *s) {                                                                             \
    enum { STEPS = sub / 4, LINES = RT_LINES(tile_bytes, tile_k / sub) };                                             \
    const uint8_t *ahead = tile + (span * (64 / sub) + c) * (LINES * 64);                                             \
    v_sums sums;                                                                                                      \
    v_sums_begin(&sums, m);                                                                                           \
    _Pragma("GCC unroll 8") for (int j = 0; j < STEPS; j++) {                                                         \
      v_sums_step(&sums, rt_step_##name(tile, span, c * STEPS + j), bits, j, x->q, x->high, x->low, at + j * 4, m);   \
      ahead = v_after(ahead, &sums, bits);                                                                            \
      for (int l = j * LINES / STEPS; l < (j + 1) * LINES / STEPS; l++)                                               \
        rt_prefetch(ahead + l * 64, 1, RT_FAR(tile_k, bits, m));                                                      \
    }                                                                                                                 \
    v_sums_end(&sums, bits, STEPS, m, s);                                                                             \
  }                                                                                                                   \
  V_INLINE void rt_span_##name(const uint8_t *restrict tile, int span, const rt_rows *x, int at, int m, v16f *acc) {  \
    enum { SUBS = 64 / sub };                                                                                         \
    _Pragma("GCC unroll 4") for (int c = 0; c < SUBS; c++) {                                                          \
      v16i s[RT_AT_ONCE];                                                                                             \
      rt_sums_##name(tile, span, c, x, at + c * sub, m, s);                                                           \
      v16f scale = rt_scale_##name(tile, span * SUBS + c), least = FOLD##_OF(name, tile, span * SUBS + c);            \
      for (int t = 0; t < m; t++) {                                                                                   \
        int32_t sum = rt_sum_at(x, t, at + c * sub, sub);                                                             \
        acc[t] = FOLD(v_fma(v_of_s32(offset ? v_minus(s[t], offset * sum) : s[t]), scale, acc[t]), least, sum);       \
      }                                                                                                               \
    }                                                                                                                 \
  }                                                                                                                   \
  V_INLINE void rt_group_##name(const uint8_t *restrict tile, int k, const rt_rows *x, int m, float *y, size_t ldy) { \
    v16f acc[RT_AT_ONCE];                                                                                             \
    for (int t = 0; t < m; t++) acc[t] = v_zero();                                                                    \
    for (int at = 0; at < k; at += tile_k, tile += tile_bytes)                                                        \
      for (int span = 0; span < tile_k / 64; span++) rt_span_##name(tile, span, x, at + span * 64, m, acc);           \
    for (int t = 0; t < m; t++) v_store(y + t * ldy, v_mul(acc[t], v_set1(x->scale[t])));                             \
  }
#define RT_FOLD_SCALE(acc, least, sum) ((void)least, acc)
#define RT_FOLD_SCALE_OF(name, tile, s) v_zero()
#define RT_FOLD_LEAST(acc, least, sum) v_fma(least, v_set1((float)(sum)), acc)
#define RT_FOLD_LEAST_OF(name, tile, s) rt_least_##name(tile, s)
#define RT_GROUP_SCALE(name, tile_k, tile_bytes, sub, bits, offset) \
  RT_GROUP_BLOCK(name, tile_k, tile_bytes, sub, bits, offset, RT_FOLD_SCALE)
#define RT_GROUP_LEAST(name, tile_k, tile_bytes, sub, bits, offset) \
  RT_GROUP_BLOCK(name, tile_k, tile_bytes, sub, bits, offset, RT_FOLD_LEAST)

/* ---- blocks and many tokens, where unpacking costs much: RT_WIDE_K k are widened once for up to RT_WIDE_MOST tokens ---- */
enum { RT_WIDE_FROM = 8, RT_WIDE_MOST = 64, RT_WIDE_K = 256 };
#define RT_WIDE_FLOAT(name, tile_k, tile_bytes, sub, offset) RT_WIDE_NONE(name)
#if defined(V_TILES)
#include "ops/tiles_a16.h"
#elif defined(V_WIDE_TOKENS)
typedef struct rt_widened { /* spans of RT_WIDE_K k: u - offset as v_widen leaves it, and each sub-block's scale and least */
  _Alignas(64) int16_t u[RT_WIDE_K / 4][64];
  _Alignas(64) float scale[RT_WIDE_K / 16][16], least[RT_WIDE_K / 16][16];
} rt_widened;

/* acc[t] <- the sub-blocks of k in [at, at + n) for V_WIDE_TOKENS tokens; plane: of the A8 path, else NULL. */
V_INLINE void rt_fold_widened(const rt_widened *restrict w, const rt_rows *x, const rt_byte_rows *plane, int at, int n, int sub,
                              int with_least, v16f *acc) {
  for (int c = 0; c < n / sub; c++) {
    v16i s[V_WIDE_TOKENS];
    v_dot_wide(w->u[c * (sub / 4)], sub / 4, x->q, at + c * sub, s);
    v16f scale = v_load(w->scale[c]), least = with_least ? v_load(w->least[c]) : scale;
    for (int t = 0; t < V_WIDE_TOKENS; t++) {
      int k = at + c * sub;
      acc[t] = v_fma(v_of_s32(s[t]), plane ? v_mul(scale, v_set1(rt_byte_scale(plane, t, k))) : scale, acc[t]);
      if (with_least)
        acc[t] = v_fma(least, v_set1(plane ? rt_byte_total(plane, t, k, sub) : (float)rt_sum_at(x, t, k, sub)), acc[t]);
    }
  }
}

#define RT_WIDE_BLOCK(name, tile_k, tile_bytes, sub, offset, with_least, FOLD)                                              \
  V_INLINE void rt_widen_##name(const uint8_t *restrict tile, int span, int at, rt_widened *restrict w) {                   \
    enum { SUBS = 64 / sub, LINES = RT_LINES(tile_bytes, tile_k / 64) };                                                    \
    rt_prefetch(tile + span * (LINES * 64), LINES, RT_FAR(tile_k, 0, RT_WIDE_FROM));                                        \
    _Pragma("GCC unroll 16") for (int j = 0; j < 16; j++) v_widen(rt_step_##name(tile, span, j), offset, w->u[at / 4 + j]); \
    for (int c = 0; c < SUBS; c++) {                                                                                        \
      v_store(w->scale[at / sub + c], rt_scale_##name(tile, span * SUBS + c));                                              \
      if (with_least) v_store(w->least[at / sub + c], FOLD##_OF(name, tile, span * SUBS + c));                              \
    }                                                                                                                       \
  }                                                                                                                         \
  V_INLINE void rt_many_##name(const uint8_t *restrict tile, int k, const uint8_t *act, size_t stride, int m,               \
                               float *y, size_t ldy, int one_plane) {                                                       \
    rt_widened w;                                                                                                           \
    v16f acc[RT_WIDE_MOST];                                                                                                 \
    for (int t = 0; t < m; t++) acc[t] = v_zero();                                                                          \
    for (int at = 0, n; at < k; at += RT_WIDE_K) {                                                                          \
      for (n = 0; n < RT_WIDE_K && at + n < k; n += 64) {                                                                   \
        rt_widen_##name(tile, n % tile_k / 64, n, &w);                                                                      \
        tile += (n + 64) % tile_k == 0 ? tile_bytes : 0;                                                                    \
      }                                                                                                                     \
      for (int t = 0; t < m; t += V_WIDE_TOKENS) {                                                                          \
        rt_rows x = rt_rows_of(act + t * stride, stride, k, V_WIDE_TOKENS);                                                 \
        rt_byte_rows plane = rt_byte_rows_of(act + t * stride, stride, k);                                                  \
        rt_fold_widened(&w, &x, one_plane ? &plane : NULL, at, n, sub, with_least, acc + t);                                \
      }                                                                                                                     \
    }                                                                                                                       \
    for (int t = 0; t < m; t++)                                                                                             \
      v_store(y + t * ldy, v_mul(acc[t], v_set1(*rt_act_at((uint8_t *)(uintptr_t)(act + t * stride), k).scale)));           \
  }                                                                                                                         \
  RT_WIDE_TOKENS_OF(rt_wide_##name, rt_many_##name, 0)                                                                      \
  RT_WIDE_TOKENS_OF(rt_wide8_##name, rt_many_##name, 1)
/* Returns how many tokens it has done: whole V_WIDE_TOKENS, none when there are few. */
#define RT_WIDE_TOKENS_OF(wide, many, one_plane)                                                                      \
  static __attribute__((noinline)) int wide(const uint8_t *tile, int k, const uint8_t *act, size_t stride, int m,     \
                                            float *y, size_t ldy) {                                                   \
    int whole = m < RT_WIDE_FROM ? 0 : m / V_WIDE_TOKENS * V_WIDE_TOKENS;                                             \
    for (int t = 0; t < whole; t += RT_WIDE_MOST)                                                                     \
      many(tile, k, act + t * stride, stride, whole - t < RT_WIDE_MOST ? whole - t : RT_WIDE_MOST, y + t * ldy, ldy,  \
           one_plane);                                                                                                \
    return whole;                                                                                                     \
  }
#endif
#ifdef RT_WIDE_BLOCK
#define RT_WIDE_SCALE(name, tile_k, tile_bytes, sub, offset) \
  RT_WIDE_BLOCK(name, tile_k, tile_bytes, sub, offset, 0, RT_FOLD_SCALE)
#define RT_WIDE_LEAST(name, tile_k, tile_bytes, sub, offset) \
  RT_WIDE_BLOCK(name, tile_k, tile_bytes, sub, offset, 1, RT_FOLD_LEAST)
#else
#define RT_WIDE_SCALE RT_WIDE_FLOAT
#define RT_WIDE_LEAST RT_WIDE_FLOAT
#endif
#define RT_WIDE_NONE(name)                                                                                                  \
  V_INLINE int rt_wide_##name(const uint8_t *tile, int k, const uint8_t *act, size_t stride, int m, float *y, size_t ldy) { \
    (void)tile, (void)k, (void)act, (void)stride, (void)m, (void)y, (void)ldy;                                              \
    return 0;                                                                                                               \
  }

/* ---- groups [first, last) for m tokens: widened, by fours, twos and ones; a group stays in cache meanwhile ----
 * A function for each: what one keeps in registers is not the others' trouble. */
#define RT_TOKENS(name, m)                                                                                            \
  static __attribute__((noinline)) void rt_tokens##m##_##name(const uint8_t *tile, int k, const uint8_t *act,         \
                                                              size_t stride, float *y, size_t ldy) {                  \
    rt_rows x = rt_rows_of(act, stride, k, m);                                                                        \
    rt_group_##name(tile, k, &x, m, y, ldy);                                                                          \
  }
#define RT_PASS(name, m) \
  for (; left >= m; left -= m, act += m * stride, y += m * ldy) rt_tokens##m##_##name(tile, k, act, stride, y, ldy);
#if V_DOT_TOKENS == 4
#define RT_EACH(what, name) what(name, 4) what(name, 2) what(name, 1)
#elif V_DOT_TOKENS == 2
#define RT_EACH(what, name) what(name, 2) what(name, 1)
#else
#define RT_EACH(what, name) what(name, 1)
#endif
#define RT_LINEAR(name, tile_k, tile_bytes)                                                                           \
  RT_EACH(RT_TOKENS, name)                                                                                            \
  V_INLINE void rt_all_##name(const uint8_t *tile, int k, const uint8_t *act, size_t stride, int m, float *y,         \
                              size_t ldy) {                                                                           \
    int done = rt_wide_##name(tile, k, act, stride, m, y, ldy), left = m - done;                                      \
    act += done * stride, y += done * ldy;                                                                            \
    RT_EACH(RT_PASS, name)                                                                                            \
  }                                                                                                                   \
  static void rt_linear_##name(const uint8_t *packed, int k, int first, int last, const uint8_t *act, size_t stride,  \
                               int m, float *y, size_t ldy) {                                                         \
    size_t group_bytes = (size_t)((k + tile_k - 1) / tile_k) * tile_bytes;                                            \
    for (int g = first; g < last; g++, y += 16) rt_all_##name(packed + g * group_bytes, k, act, stride, m, y, ldy);   \
  }

#define FORMAT(name, ggml_type, block_weights, block_bytes, tile_k, packed_bytes, form, sub, bits, offset) \
  RT_GROUP_##form(name, tile_k, packed_bytes, sub, bits, offset)                                           \
  RT_WIDE_##form(name, tile_k, packed_bytes, sub, offset)                                                  \
  RT_LINEAR(name, tile_k, packed_bytes)
#include "defs/formats.def"
#undef FORMAT

/* y[i] += scale * (x[i] + bias[i]), the product and the last sum rounded once. x, bias, y: [n]; bias may be NULL. */
static void rt_add_scaled(const float *x, const float *bias, float scale, int n, float *y) {
  for (int i = 0; i < n; i += 16) {
    int lanes = n - i < 16 ? n - i : 16;
    v16f v = v_load_n(x + i, lanes, 0.0f);
    if (bias != NULL) v = v_add(v, v_load_n(bias + i, lanes, 0.0f));
    v_store_n(y + i, v_fma(v_set1(scale), v, v_load_n(y + i, lanes, 0.0f)), lanes);
  }
}

/* y[i] = x[i] + bias[i]. x, bias, y: [n] */
static void rt_add_bias(const float *x, const float *bias, int n, float *y) {
  for (int i = 0; i < n; i += 16) {
    int lanes = n - i < 16 ? n - i : 16;
    v_store_n(y + i, v_add(v_load_n(x + i, lanes, 0.0f), v_load_n(bias + i, lanes, 0.0f)), lanes);
  }
}
#endif
