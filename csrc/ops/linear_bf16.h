/* y = W x on the BF16 path.  W: packed groups of 16 rows, x: activations rounded to bf16, y: [m][16 * (last - first)] f32.
 *
 * w = the weight's f32 value, rounded to bf16. One lane is one row. Per 32 k, ascending: an even and an odd chain of fma from
 * zero over ascending k, acc += even + odd. That is what the tile product of AMX computes, on every set (tiles take numbers
 * below 2^-126 for zero; here they are not). The order knows nothing of m. A tile is unpacked once for up to RT_BF16_MOST
 * tokens. */
#ifndef RT_OPS_LINEAR_BF16_H
#define RT_OPS_LINEAR_BF16_H
#include "quant/act.h"
#include "quant/all.h"

enum { RT_BF16_MOST = 256 };

#ifdef V_TILES
typedef uint16_t rt_wide; /* 32 k of 16 rows: the operand of a tile product, [16 pair of k][16 row][2] */
typedef uint16_t rt_coarse; /* what it is multiplied with */
V_INLINE void rt_store_coarse(rt_coarse *p, v16f rounded) { v_store_bf16(p, rounded); }
V_INLINE void rt_pair_bf16(rt_wide *restrict w, int k, v16f even, v16f odd) { v_store_pairs(w + k * 16, even, odd); }
#else
typedef float rt_wide; /* 32 k of 16 rows, [32][16] */
typedef float rt_coarse;
V_INLINE void rt_store_coarse(rt_coarse *p, v16f rounded) { v_store(p, rounded); }
V_INLINE void rt_pair_bf16(rt_wide *restrict w, int k, v16f even, v16f odd) {
  v_store(w + k * 16, v_round_bf16(even));
  v_store(w + k * 16 + 16, v_round_bf16(odd));
}
#endif
enum { RT_WIDE_PART = 32 * 16 };

/* How a format's weights come out: 32 k of 16 rows at a time, `part` of a tile. */
typedef struct rt_spread {
  void (*part)(const uint8_t *restrict tile, int part, rt_wide *restrict w /* [RT_WIDE_PART] */);
  int tile_k;
  size_t tile_bytes;
} rt_spread;

V_INLINE size_t rt_group_bytes_of(const rt_spread *f, int k) { return (size_t)((k + f->tile_k - 1) / f->tile_k) * f->tile_bytes; }
V_INLINE void rt_spread_at(const rt_spread *f, const uint8_t *group, int k, rt_wide *restrict w) {
  f->part(group + (size_t)(k / f->tile_k) * f->tile_bytes, k % f->tile_k / 32, w);
}

#ifdef V_TILES
#include "ops/tiles_bf16.h"
#else
/* acc[t] += 32 k of w[32][16] times x[t * stride], for `tokens` of them. */
V_INLINE void rt_chains_bf16(const rt_wide *restrict w, const float *restrict x, size_t stride, int tokens, v16f *restrict acc) {
  v16f even[V_BF16_TOKENS], odd[V_BF16_TOKENS];
  for (int t = 0; t < tokens; t++) even[t] = odd[t] = v_zero();
#pragma GCC unroll 16
  for (int k = 0; k < 32; k += 2) {
    v16f row = v_load(w + k * 16);
    for (int t = 0; t < tokens; t++) even[t] = v_fma(row, v_set1(x[t * stride + k]), even[t]);
  }
#pragma GCC unroll 16
  for (int k = 1; k < 32; k += 2) {
    v16f row = v_load(w + k * 16);
    for (int t = 0; t < tokens; t++) odd[t] = v_fma(row, v_set1(x[t * stride + k]), odd[t]);
  }
  for (int t = 0; t < tokens; t++) acc[t] = v_add(acc[t], v_add(even[t], odd[t]));
}

/* One group for m <= RT_BF16_MOST tokens. x: [m][kp], `stride` floats apart. */
static void rt_group_bf16(const rt_spread *f, const uint8_t *group, int k, const float *x, size_t stride, int m, float *y,
                          size_t ldy) {
  _Alignas(64) rt_wide w[RT_WIDE_PART];
  v16f acc[RT_BF16_MOST];
  for (int t = 0; t < m; t++) acc[t] = v_zero();
  for (int at = 0; at < k; at += 32) {
    rt_spread_at(f, group, at, w);
    int t = 0;
    for (; V_BF16_TOKENS > 1 && m - t >= V_BF16_TOKENS; t += V_BF16_TOKENS)
      rt_chains_bf16(w, x + t * stride + at, stride, V_BF16_TOKENS, acc + t);
    for (; t < m; t++) rt_chains_bf16(w, x + t * stride + at, stride, 1, acc + t);
  }
  for (int t = 0; t < m; t++) v_store(y + t * ldy, acc[t]);
}

static void rt_groups_bf16(const rt_spread *f, const uint8_t *packed, int k, int first, int last, const uint8_t *act,
                           size_t act_stride, int m, float *y, size_t ldy) {
  for (int g = first; g < last; g++, y += 16)
    for (int t = 0; t < m; t += RT_BF16_MOST)
      rt_group_bf16(f, packed + g * rt_group_bytes_of(f, k), k, rt_act_at((uint8_t *)(uintptr_t)(act + t * act_stride), k).x,
                    act_stride / sizeof(float), m - t < RT_BF16_MOST ? m - t : RT_BF16_MOST, y + t * ldy, ldy);
}

#endif

/* ---- 32 k of each format ---- */
#define RT_SPREAD_FLOAT(name, sub, offset)                                                              \
  static void rt_spread_##name(const uint8_t *restrict tile, int part, rt_wide *restrict w) {             \
    for (int k = 0; k < 32; k += 2)                                                                     \
      rt_pair_bf16(w, k, rt_row_##name(tile, part * 32 + k), rt_row_##name(tile, part * 32 + k + 1));   \
  }

/* Steps [8 * second, 8 * second + 8) of a span; `second` a constant, as the formats' steps want. */
#define RT_SPREAD_BLOCK(name, sub, offset, VALUE)                                                                  \
  V_INLINE void rt_steps_##name(const uint8_t *restrict tile, int span, int second, rt_wide *restrict w) {           \
    enum { STEPS = sub / 4 };                                                                                      \
    const v16f zero = v_set1((float)(offset));                                                                     \
    _Pragma("GCC unroll 8") for (int j = 0; j < 8; j++) {                                                          \
      int s = span * (64 / sub) + (second * 8 + j) / STEPS;                                                        \
      v16f scale = rt_scale_##name(tile, s), n[4];                                                                 \
      v64b u = rt_step_##name(tile, span, second * 8 + j);                                                         \
      _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++) n[i] = VALUE(name, v_sub(v_number(u, i), zero), tile, s); \
      rt_pair_bf16(w, j * 4, n[0], n[1]);                                                                          \
      rt_pair_bf16(w, j * 4 + 2, n[2], n[3]);                                                                      \
    }                                                                                                              \
  }                                                                                                                \
  static void rt_spread_##name(const uint8_t *restrict tile, int part, rt_wide *restrict w) {                        \
    if (part % 2) rt_steps_##name(tile, part / 2, 1, w);                                                           \
    else rt_steps_##name(tile, part / 2, 0, w);                                                                    \
  }
#define RT_SPREAD_OF_SCALE(name, n, tile, s) v_mul(n, scale)
#define RT_SPREAD_OF_LEAST(name, n, tile, s) v_fma(n, scale, rt_least_##name(tile, s))
#define RT_SPREAD_SCALE(name, sub, offset) RT_SPREAD_BLOCK(name, sub, offset, RT_SPREAD_OF_SCALE)
#define RT_SPREAD_LEAST(name, sub, offset) RT_SPREAD_BLOCK(name, sub, offset, RT_SPREAD_OF_LEAST)

#define FORMAT(name, ggml_type, block_weights, block_bytes, tile_k, packed_bytes, form, sub, bits, offset)                \
  RT_SPREAD_##form(name, sub, offset)                                                                                     \
  static void rt_linear_bf16_##name(const uint8_t *packed, int k, int first, int last, const uint8_t *act, size_t stride, \
                                    int m, float *y, size_t ldy) {                                                        \
    static const rt_spread f = {rt_spread_##name, tile_k, packed_bytes};                                                  \
    rt_groups_bf16(&f, packed, k, first, last, act, stride, m, y, ldy);                                                   \
  }
#include "defs/formats.def"
#undef FORMAT
#endif
