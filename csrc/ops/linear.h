/* y = W x.  W: packed groups of 16 rows (quant/r16.h), x: A16 activations (quant/act.h), y: [m][16 * (last - first)] f32.
 *
 * One lane is one row. Block formats: acc = fma(f32(S), d, acc) over blocks of 32 k in ascending order, S the exact integer
 * sum; y = acc * scale. Float formats read x: four chains k mod 4 of fma in ascending k, (c0 + c1) + (c2 + c3).
 * The order knows nothing of m: up to V_DOT_TOKENS tokens share one pass over a group, which amortizes the unpacking.
 * Work is claimed as ranges of groups times ranges of tokens. */
#ifndef RT_OPS_LINEAR_H
#define RT_OPS_LINEAR_H
#include "quant/act.h"

typedef struct rt_rows { /* V_DOT_TOKENS activations, at some k */
  const int32_t *sum[V_DOT_TOKENS];
  const int8_t *high[V_DOT_TOKENS], *low[V_DOT_TOKENS];
  const int16_t *q[V_DOT_TOKENS];
  const float *x[V_DOT_TOKENS];
  float scale[V_DOT_TOKENS];
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

V_INLINE void rt_prefetch(const uint8_t *p, int bytes) {
  for (int b = 0; b < bytes; b += 64) __builtin_prefetch(p + b, 0, 3);
}

#include "quant/bf16.h"
#include "quant/f16.h"
#include "quant/f32.h"
#include "quant/q4_0.h"
#include "quant/q4_1.h"
#include "quant/q8_0.h"

enum { RT_AHEAD = 2048 }; /* bytes between the tile that is read and the one that is fetched */

/* One group for m tokens. chains: sums kept apart per row, joined pairwise at the end. */
#define RT_LINEAR_GROUP(name, tile_bytes, chains)                                                                    \
  V_INLINE void rt_group_##name(const uint8_t *restrict tile, int k, const rt_rows *x, int m, float *y, size_t ldy) { \
    v16f acc[chains * V_DOT_TOKENS];                                                                                 \
    for (int i = 0; i < chains * m; i++) acc[i] = v_zero();                                                          \
    for (int at = 0; at < k; at += 64, tile += tile_bytes) {                                                         \
      rt_prefetch(tile + RT_AHEAD, tile_bytes);                                                                      \
      rt_dot_##name(tile, x, at, m, acc);                                                                            \
    }                                                                                                                \
    for (int t = 0; t < m; t++) v_store(y + t * ldy, rt_close_##chains(acc, x, t, m));                               \
  }

V_INLINE v16f rt_close_1(const v16f *acc, const rt_rows *x, int t, int m) {
  (void)m;
  return v_mul(acc[t], v_set1(x->scale[t]));
}
V_INLINE v16f rt_close_4(const v16f *acc, const rt_rows *x, int t, int m) {
  (void)x;
  return v_add(v_add(acc[t], acc[m + t]), v_add(acc[2 * m + t], acc[3 * m + t]));
}

/* Tokens V_DOT_TOKENS at a time, then one by one: a group stays in cache while every token reads it. */
#define RT_LINEAR(name, packed_bytes, chains)                                                                          \
  RT_LINEAR_GROUP(name, packed_bytes, chains)                                                                          \
  static void rt_linear_##name(const uint8_t *packed, int k, int first, int last, const uint8_t *act, size_t stride,   \
                               int m, float *y, size_t ldy) {                                                          \
    size_t group_bytes = rt_act_k(k) / 64 * packed_bytes;                                                              \
    for (int g = first; g < last; g++, y += 16) {                                                                      \
      const uint8_t *tile = packed + g * group_bytes;                                                                  \
      int t = 0;                                                                                                       \
      for (; t + V_DOT_TOKENS <= m && V_DOT_TOKENS > 1; t += V_DOT_TOKENS) {                                           \
        rt_rows x = rt_rows_of(act + t * stride, stride, k, V_DOT_TOKENS);                                             \
        rt_group_##name(tile, k, &x, V_DOT_TOKENS, y + t * ldy, ldy);                                                  \
      }                                                                                                                \
      for (; t < m; t++) {                                                                                             \
        rt_rows x = rt_rows_of(act + t * stride, stride, k, 1);                                                        \
        rt_group_##name(tile, k, &x, 1, y + t * ldy, ldy);                                                             \
      }                                                                                                                \
    }                                                                                                                  \
  }

#define RT_CHAINS_F32 4
#define RT_CHAINS_F16 4
#define RT_CHAINS_BF16 4
#define RT_CHAINS_Q8_0 1
#define RT_CHAINS_Q4_0 1
#define RT_CHAINS_Q4_1 1
#define RT_LINEAR_EXPANDED(name, packed_bytes, chains) RT_LINEAR(name, packed_bytes, chains)
#define FORMAT(name, ggml_type, block_weights, block_bytes, packed_bytes) \
  RT_LINEAR_EXPANDED(name, packed_bytes, RT_CHAINS_##name)
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
