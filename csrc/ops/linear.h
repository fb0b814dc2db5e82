/* y = W x.  W: packed groups of 16 rows (quant/r16.h), x: A16 activations (quant/act.h), y: [m][16 * (last - first)] f32.
 *
 * One lane is one row. Block formats: acc = fma(f32(S), d, acc) over blocks of 32 k in ascending order, S the exact integer
 * sum; y = acc * scale. Float formats read x: four chains k mod 4 of fma in ascending k, (c0 + c1) + (c2 + c3).
 * The order knows nothing of m: up to V_DOT_TOKENS tokens share one pass over a group, which amortizes the unpacking.
 * Work is claimed as ranges of groups times ranges of tokens. */
#ifndef RT_OPS_LINEAR_H
#define RT_OPS_LINEAR_H
#include "quant/act.h"

enum { RT_AT_ONCE = 4 }; /* most tokens of one pass */

typedef struct rt_rows { /* activations of some tokens, at some k */
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

/* Integer activations moved on by k. */
V_INLINE rt_rows rt_rows_at(const rt_rows *x, int k, int m) {
  rt_rows r;
  for (int t = 0; t < m; t++) r.high[t] = x->high[t] + k, r.low[t] = x->low[t] + k, r.q[t] = x->q[t] + k;
  return r;
}

typedef struct rt_sums { v16i half[2][RT_AT_ONCE]; } rt_sums; /* S of a tile's two blocks, a lane a row */

/* Fetch what stands RT_AHEAD behind p. In small portions, where the lines at p are read: a core waits when it has asked for
 * more than some twenty. */
enum { RT_AHEAD = 3072 };
V_INLINE void rt_prefetch(const uint8_t *p, int bytes) {
  for (int b = 0; b < bytes; b += 64) __builtin_prefetch(p + RT_AHEAD + b, 0, 3);
}

#include "quant/bf16.h"
#include "quant/f16.h"
#include "quant/f32.h"
#include "quant/q4_0.h"
#include "quant/q4_1.h"
#include "quant/q8_0.h"

/* One group for m <= V_DOT_TOKENS tokens. y: [m][16], rows ldy apart. */
#define RT_FLOAT_GROUP(name, tile_bytes)                                                                              \
  V_INLINE void rt_group_##name(const uint8_t *restrict tile, int k, const rt_rows *x, int m, float *y, size_t ldy) { \
    v16f acc[4][RT_AT_ONCE];                                                                                          \
    for (int c = 0; c < 4; c++)                                                                                       \
      for (int t = 0; t < m; t++) acc[c][t] = v_zero();                                                               \
    for (int at = 0; at < k; at += 64, tile += tile_bytes) {                                                          \
      rt_dot_##name(tile, x, at, m, acc);                                                                             \
    }                                                                                                                 \
    for (int t = 0; t < m; t++)                                                                                       \
      v_store(y + t * ldy, v_add(v_add(acc[0][t], acc[1][t]), v_add(acc[2][t], acc[3][t])));                          \
  }

#define RT_BLOCK_GROUP(name, tile_bytes)                                                                              \
  V_INLINE void rt_group_##name(const uint8_t *restrict tile, int k, const rt_rows *x, int m, float *y, size_t ldy) { \
    v16f acc[RT_AT_ONCE];                                                                                             \
    for (int t = 0; t < m; t++) acc[t] = v_zero();                                                                    \
    for (int at = 0; at < k; at += 64, tile += tile_bytes) {                                                          \
      rt_sums s;                                                                                                      \
      rt_sums_##name(tile, x, at, m, &s);                                                                             \
      rt_fold_##name(tile, x, at, m, &s, acc);                                                                        \
    }                                                                                                                 \
    for (int t = 0; t < m; t++) v_store(y + t * ldy, v_mul(acc[t], v_set1(x->scale[t])));                             \
  }

/* Groups [first, last) for m tokens, V_DOT_TOKENS at a time and then by ones: a group stays in cache while they read it. */
#define RT_LINEAR(name, tile_bytes)                                                                                  \
  V_INLINE void rt_tokens_##name(const uint8_t *tile, int k, const uint8_t *act, size_t stride, int m, float *y,     \
                                 size_t ldy) {                                                                       \
    rt_rows x = rt_rows_of(act, stride, k, m);                                                                       \
    rt_group_##name(tile, k, &x, m, y, ldy);                                                                         \
  }                                                                                                                  \
  static void rt_linear_##name(const uint8_t *packed, int k, int first, int last, const uint8_t *act, size_t stride, \
                               int m, float *y, size_t ldy) {                                                        \
    size_t group_bytes = rt_act_k(k) / 64 * tile_bytes;                                                              \
    for (int g = first; g < last; g++, y += 16) {                                                                    \
      const uint8_t *tile = packed + g * group_bytes;                                                                \
      int t = rt_wide_##name(tile, k, act, stride, m, y, ldy);                                                       \
      for (; V_DOT_TOKENS > 1 && m - t >= V_DOT_TOKENS; t += V_DOT_TOKENS)                                           \
        rt_tokens_##name(tile, k, act + t * stride, stride, V_DOT_TOKENS, y + t * ldy, ldy);                         \
      for (; V_DOT_TOKENS > 2 && m - t >= 2; t += 2)                                                                 \
        rt_tokens_##name(tile, k, act + t * stride, stride, 2, y + t * ldy, ldy);                                    \
      for (; t < m; t++) rt_tokens_##name(tile, k, act + t * stride, stride, 1, y + t * ldy, ldy);                   \
    }                                                                                                                \
  }

/* The same for many tokens where unpacking costs much: each tile is widened once for up to RT_WIDE_MOST tokens. Returns how
 * many tokens it has done: whole V_WIDE_TOKENS, none when there are few. */
enum { RT_WIDE_LEAST = 12, RT_WIDE_MOST = 64 };
#ifdef V_WIDE_TOKENS
#define RT_WIDE(name, tile_bytes)                                                                                     \
  V_INLINE void rt_widened_##name(const uint8_t *restrict tile, int k, const uint8_t *act, size_t stride, int m,      \
                                  float *y, size_t ldy) {                                                             \
    _Alignas(64) int16_t wide[2][512];                                                                                \
    v16f acc[RT_WIDE_MOST];                                                                                           \
    for (int t = 0; t < m; t++) acc[t] = v_zero();                                                                    \
    for (int at = 0; at < k; at += 64, tile += tile_bytes) {                                                          \
      rt_prefetch(tile, tile_bytes);                                                                                  \
      rt_widen_##name(tile, wide);                                                                                    \
      for (int t = 0; t < m; t += V_WIDE_TOKENS) {                                                                    \
        rt_rows x = rt_rows_of(act + t * stride, stride, k, V_WIDE_TOKENS), here = rt_rows_at(&x, at, V_WIDE_TOKENS); \
        rt_sums s;                                                                                                    \
        v_dot_wide(wide[0], here.q, s.half[0]);                                                                       \
        for (int i = 0; i < V_WIDE_TOKENS; i++) here.q[i] += 32;                                                      \
        v_dot_wide(wide[1], here.q, s.half[1]);                                                                       \
        rt_fold_##name(tile, &x, at, V_WIDE_TOKENS, &s, acc + t);                                                     \
      }                                                                                                               \
    }                                                                                                                 \
    for (int t = 0; t < m; t++)                                                                                       \
      v_store(y + t * ldy, v_mul(acc[t], v_set1(*rt_act_at((uint8_t *)(uintptr_t)(act + t * stride), k).scale)));     \
  }                                                                                                                   \
  static int rt_wide_##name(const uint8_t *tile, int k, const uint8_t *act, size_t stride, int m, float *y,           \
                            size_t ldy) {                                                                             \
    int whole = m < RT_WIDE_LEAST ? 0 : m / V_WIDE_TOKENS * V_WIDE_TOKENS;                                            \
    for (int t = 0; t < whole; t += RT_WIDE_MOST)                                                                     \
      rt_widened_##name(tile, k, act + t * stride, stride, whole - t < RT_WIDE_MOST ? whole - t : RT_WIDE_MOST,       \
                        y + t * ldy, ldy);                                                                            \
    return whole;                                                                                                     \
  }
#else
#define RT_WIDE(name, tile_bytes) RT_NO_WIDE(name)
#endif
#define RT_NO_WIDE(name)                                                                                                    \
  V_INLINE int rt_wide_##name(const uint8_t *tile, int k, const uint8_t *act, size_t stride, int m, float *y, size_t ldy) { \
    (void)tile, (void)k, (void)act, (void)stride, (void)m, (void)y, (void)ldy;                                              \
    return 0;                                                                                                               \
  }

/* Which of the two forms a format has follows from its block in defs/formats.def: 1 weight or 32. */
#define RT_FORM_1(name, tile_bytes) RT_FLOAT_GROUP(name, tile_bytes) RT_NO_WIDE(name) RT_LINEAR(name, tile_bytes)
#define RT_FORM_32(name, tile_bytes) RT_BLOCK_GROUP(name, tile_bytes) RT_WIDE(name, tile_bytes) RT_LINEAR(name, tile_bytes)
#define FORMAT(name, ggml_type, block_weights, block_bytes, packed_bytes) RT_FORM_##block_weights(name, packed_bytes)
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
