/* y = W x on the A16_BF16 path.  W: packed groups of 16 rows, y: [m][16 * (last - first)] f32. Block formats: as A16.
 *
 * Float formats: w = the weight's f32 value, rounded to bf16, x: activations rounded to bf16. One lane is one row. Per two k,
 * ascending: acc <- fma(w[k + 1], x[k + 1], acc), then fma(w[k], x[k], acc). That is what vdpbf16ps computes, on every set (it
 * takes numbers below 2^-126 for zero; here they are not). One chain for all of k, so the order knows nothing of m.
 * Many tokens: two tiles of a few groups are unpacked once for all of them, and sums wait in y. */
#ifndef RT_OPS_LINEAR_PAIRS_H
#define RT_OPS_LINEAR_PAIRS_H
#include "quant/act.h"
#include "quant/all.h"

#ifndef V_PAIRS
enum { V_PAIR_GROUPS = 1, V_PAIR_TOKENS = 4 };
typedef struct v_duo { v16f even, odd; } v_duo; /* 16 lanes of two bf16 */
V_INLINE v_duo v_pair(v16f even, v16f odd) { return (v_duo){v_round_bf16(even), v_round_bf16(odd)}; }
V_INLINE v_duo v_load_duo(const uint16_t *p /* [2][16] */) { return (v_duo){v_load_bf16(p), v_load_bf16(p + 16)}; }
V_INLINE v_duo v_set1_duo(const uint16_t *p /* [2] */) { return (v_duo){v_set1(rt_bf16_to_f32(p[0])), v_set1(rt_bf16_to_f32(p[1]))}; }
V_INLINE v16f v_dot_duo(v16f acc, v_duo w, v_duo x) { return v_fma(w.even, x.even, v_fma(w.odd, x.odd, acc)); }
#endif

enum { RT_PAIR_TILES = 2, RT_TILE_PAIRS = 32 };

typedef struct rt_pairing { /* how a format's weights come out: the pairs of a tile of 64 k, `step` apart */
  void (*tile)(const uint8_t *restrict tile, v_duo *restrict w, int step);
  size_t tile_bytes;
} rt_pairing;

/* y[t][16 g ..] += `pairs` of w [pairs][groups] times x of `tokens`; `fresh`: y = them. */
V_INLINE void rt_pairs_some(const v_duo *restrict w, int pairs, int groups, const uint16_t *restrict x, size_t stride, int tokens,
                            int fresh, float *restrict y, size_t ldy) {
  v16f acc[V_PAIR_TOKENS][V_PAIR_GROUPS];
  v_duo row[V_PAIR_GROUPS];
  for (int t = 0; t < tokens; t++)
    for (int g = 0; g < groups; g++) acc[t][g] = fresh ? v_zero() : v_load(y + t * ldy + g * 16);
#pragma GCC unroll 2
  for (int p = 0; p < pairs; p++, w += groups) {
    for (int g = 0; g < groups; g++) row[g] = w[g];
    for (int t = 0; t < tokens; t++) {
      v_duo two = v_set1_duo(x + t * stride + 2 * p);
      for (int g = 0; g < groups; g++) acc[t][g] = v_dot_duo(acc[t][g], row[g], two);
    }
  }
  for (int t = 0; t < tokens; t++)
    for (int g = 0; g < groups; g++) v_store(y + t * ldy + g * 16, acc[t][g]);
}

typedef void rt_pairs_kernel(const v_duo *w, int pairs, const uint16_t *x, size_t stride, int fresh, float *y, size_t ldy);
#define RT_PAIRS_OF(name, groups, tokens)                                                                                      \
  static __attribute__((noinline)) void name(const v_duo *w, int pairs, const uint16_t *x, size_t stride, int fresh, float *y, \
                                             size_t ldy) {                                                                     \
    rt_pairs_some(w, pairs, groups, x, stride, tokens, fresh, y, ldy);                                                         \
  }
RT_PAIRS_OF(rt_pairs_groups_tokens, V_PAIR_GROUPS, V_PAIR_TOKENS)
RT_PAIRS_OF(rt_pairs_groups_token, V_PAIR_GROUPS, 1)
RT_PAIRS_OF(rt_pairs_group_tokens, 1, V_PAIR_TOKENS)
RT_PAIRS_OF(rt_pairs_group_token, 1, 1)

V_INLINE const uint16_t *rt_pairs_at(const uint8_t *act, int k) { return rt_act_at((uint8_t *)(uintptr_t)act, k).pairs; }

/* V_PAIR_GROUPS groups, or one, for any m. */
static void rt_pairs_groups(const rt_pairing *f, const uint8_t *packed, int groups, int k, const uint8_t *act, size_t act_stride,
                            int m, float *y, size_t ldy) {
  _Alignas(64) v_duo w[RT_PAIR_TILES * RT_TILE_PAIRS * V_PAIR_GROUPS];
  int tiles = (k + 63) / 64;
  size_t stride = act_stride / sizeof(uint16_t);
  rt_pairs_kernel *some = groups == 1 ? rt_pairs_group_tokens : rt_pairs_groups_tokens;
  rt_pairs_kernel *one = groups == 1 ? rt_pairs_group_token : rt_pairs_groups_token;
  for (int at = 0; at < tiles; at += RT_PAIR_TILES) {
    int n = tiles - at < RT_PAIR_TILES ? tiles - at : RT_PAIR_TILES, t = 0;
    const uint16_t *x = rt_pairs_at(act, k) + at * 64;
    for (int g = 0; g < groups; g++)
      for (int i = 0; i < n; i++)
        f->tile(packed + ((size_t)g * (size_t)tiles + (size_t)(at + i)) * f->tile_bytes, w + i * RT_TILE_PAIRS * groups + g, groups);
    for (; t + V_PAIR_TOKENS <= m; t += V_PAIR_TOKENS) some(w, n * RT_TILE_PAIRS, x + t * stride, stride, at == 0, y + t * ldy, ldy);
    for (; t < m; t++) one(w, n * RT_TILE_PAIRS, x + t * stride, stride, at == 0, y + t * ldy, ldy);
  }
}

/* ---- each format ---- */
#define RT_DUO_ROUNDED(name, tile, i) v_pair(rt_row_##name(tile, i), rt_row_##name(tile, (i) + 1))
#define RT_DUO_F32(tile, i) RT_DUO_ROUNDED(F32, tile, i)
#define RT_DUO_F16(tile, i) RT_DUO_ROUNDED(F16, tile, i)
#define RT_DUO_BF16(tile, i) v_load_duo((const uint16_t *)(tile) + (i) * 16)
#define RT_DUO_F8_E4M3(tile, i) RT_DUO_ROUNDED(F8_E4M3, tile, i)
#define RT_DUO_F8_E5M2(tile, i) RT_DUO_ROUNDED(F8_E5M2, tile, i)

/* A few tokens: straight from the tiles, one group at a time. */
#define RT_PAIRS_FEW(name, tile_bytes, m)                                                                                 \
  static __attribute__((noinline)) void rt_pairs_few##m##_##name(const uint8_t *restrict tile, int k, const uint8_t *act, \
                                                                 size_t act_stride, float *y, size_t ldy) {               \
    size_t stride = act_stride / sizeof(uint16_t);                                                                        \
    const uint16_t *x = rt_pairs_at(act, k);                                                                              \
    v16f acc[m];                                                                                                          \
    for (int t = 0; t < m; t++) acc[t] = v_zero();                                                                        \
    for (int at = 0; at < k; at += 64, tile += tile_bytes, x += 64)                                                       \
      for (int i = 0; i < 64; i += 2) {                                                                                   \
        if (i % 4 == 0) rt_prefetch(tile + i * (tile_bytes / 64), RT_LINES(tile_bytes, 16), RT_FAR(64, 0, m));            \
        v_duo w = RT_DUO_##name(tile, i);                                                                                 \
        for (int t = 0; t < m; t++) acc[t] = v_dot_duo(acc[t], w, v_set1_duo(x + t * stride + i));                        \
      }                                                                                                                   \
    for (int t = 0; t < m; t++) v_store(y + t * ldy, acc[t]);                                                             \
  }
#define RT_PAIRS_FEWER(name, m) \
  for (; left >= m; left -= m, few += m * stride, to += m * ldy) rt_pairs_few##m##_##name(groups, k, few, stride, to, ldy);

#define RT_PAIRS_FLOAT(name, tile_bytes)                                                                                      \
  static void rt_pairs_tile_##name(const uint8_t *restrict tile, v_duo *restrict w, int step) {                               \
    for (int i = 0; i < 64; i += 2, w += step) *w = RT_DUO_##name(tile, i);                                                   \
  }                                                                                                                           \
  RT_PAIRS_FEW(name, tile_bytes, 4)                                                                                           \
  RT_PAIRS_FEW(name, tile_bytes, 2)                                                                                           \
  RT_PAIRS_FEW(name, tile_bytes, 1)                                                                                           \
  static void rt_linear_pairs_##name(const uint8_t *packed, int k, int first, int last, const uint8_t *act, size_t stride,    \
                                     int m, float *y, size_t ldy) {                                                           \
    static const rt_pairing f = {rt_pairs_tile_##name, tile_bytes};                                                           \
    size_t group_bytes = (size_t)((k + 63) / 64) * tile_bytes;                                                                \
    for (int g = first, n; g < last; g += n, y += 16 * n) {                                                                   \
      const uint8_t *groups = packed + (size_t)g * group_bytes, *few = act;                                                   \
      float *to = y;                                                                                                          \
      int left = m;                                                                                                           \
      n = m >= V_PAIR_TOKENS && last - g >= V_PAIR_GROUPS ? V_PAIR_GROUPS : 1;                                                \
      if (m >= V_PAIR_TOKENS) {                                                                                               \
        rt_pairs_groups(&f, groups, n, k, act, stride, m, y, ldy);                                                            \
        continue;                                                                                                             \
      }                                                                                                                       \
      RT_PAIRS_FEWER(name, 4) RT_PAIRS_FEWER(name, 2) RT_PAIRS_FEWER(name, 1)                                                 \
    }                                                                                                                         \
  }
#define RT_PAIRS_SCALE(name, tile_bytes)                                                                                   \
  static void rt_linear_pairs_##name(const uint8_t *packed, int k, int first, int last, const uint8_t *act, size_t stride, \
                                     int m, float *y, size_t ldy) {                                                        \
    rt_linear_##name(packed, k, first, last, act, stride, m, y, ldy);                                                      \
  }
#define RT_PAIRS_LEAST(name, tile_bytes) RT_PAIRS_SCALE(name, tile_bytes)

#define FORMAT(name, ggml_type, block_weights, block_bytes, tile_k, packed_bytes, form, sub, bits, offset) \
  RT_PAIRS_##form(name, packed_bytes)
#include "defs/formats.def"
#undef FORMAT
#endif
