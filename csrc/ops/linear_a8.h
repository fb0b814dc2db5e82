/* y = W x on the A8 path.  W: packed groups of 16 rows, y: [m][16 * (last - first)] f32. Float formats: as A16_BF16.
 *
 * Block formats: activations are 8-bit integers q under a scale a for every 32 k (quant/act.h). One lane is one row. For each
 * sub-block, in ascending order, the exact integer S = sum (u - offset) q, then acc = fma(f32(S), scale * a, acc) and, with a least
 * value, acc = fma(least, a * f32(sum q), acc). One product for four k where A16 has two, and a scale to multiply: for prompts
 * that may round as much. The order knows nothing of m: up to V_BYTE_TOKENS tokens share one pass over a group. */
#ifndef RT_OPS_LINEAR_A8_H
#define RT_OPS_LINEAR_A8_H
#include "ops/linear.h"
#include "ops/linear_pairs.h"

V_INLINE v16i rt_byte_minus(v16i s, const rt_byte_rows *x, int t, int k, int sub, int offset) {
  const int32_t *sum = rt_byte_sum(x, t, k);
  return offset ? v_minus(s, offset * (sub == 32 ? sum[0] + sum[1] : sum[0])) : s;
}

#ifdef V_WIDE_TOKENS /* 6 and 8 bits are quicker as 16 */
#define RT_BYTES_WIDE(name, bits, ...) ((bits) > 5 ? rt_wide8_##name(__VA_ARGS__) : 0)
#else
#define RT_BYTES_WIDE(name, bits, ...) 0
#endif

#define RT_BYTES_BLOCK(name, tile_k, tile_bytes, sub, bits, offset, with_least, FOLD)                                            \
  V_INLINE void rt_bytes_sub_##name(const uint8_t *restrict tile, int span, int c, const rt_byte_rows *x, int at, int m,         \
                                    v16f *acc) {                                                                                 \
    enum { STEPS = sub / 4, LINES = RT_LINES(tile_bytes, tile_k / sub) };                                                        \
    const uint8_t *ahead = tile + (span * (64 / sub) + c) * (LINES * 64);                                                        \
    v_dots dots;                                                                                                                 \
    v16i s[V_BYTE_TOKENS];                                                                                                       \
    v_dots_begin(&dots, m);                                                                                                      \
    _Pragma("GCC unroll 8") for (int j = 0; j < STEPS; j++) {                                                                    \
      v_dots_step(&dots, rt_step_##name(tile, span, c * STEPS + j), bits, j, x->act + at + j * 4 + x->low, x->stride, m);        \
      for (int l = j * LINES / STEPS; l < (j + 1) * LINES / STEPS; l++) rt_prefetch(ahead + l * 64, 1, RT_FAR(tile_k, bits, m)); \
    }                                                                                                                            \
    v_dots_end(&dots, bits, m, s);                                                                                               \
    v16f scale = rt_scale_##name(tile, span * (64 / sub) + c), least = FOLD##_OF(name, tile, span * (64 / sub) + c);             \
    for (int t = 0; t < m; t++) {                                                                                                \
      v16f sum = v_of_s32(rt_byte_minus(s[t], x, t, at, sub, offset - V_DOTS_LESS(bits)));                                       \
      acc[t] = v_fma(sum, v_mul(scale, v_set1(rt_byte_scale(x, t, at))), acc[t]);                                                \
      if (with_least) acc[t] = v_fma(least, v_set1(rt_byte_total(x, t, at, sub)), acc[t]);                                       \
    }                                                                                                                            \
  }                                                                                                                              \
  V_INLINE void rt_bytes_group_##name(const uint8_t *restrict tile, int k, const rt_byte_rows *x, int m, float *y,               \
                                      size_t ldy) {                                                                              \
    v16f acc[V_BYTE_TOKENS];                                                                                                     \
    for (int t = 0; t < m; t++) acc[t] = v_zero();                                                                               \
    for (int at = 0; at < k; at += tile_k, tile += tile_bytes)                                                                   \
      for (int span = 0; span < tile_k / 64; span++)                                                                             \
        _Pragma("GCC unroll 4") for (int c = 0; c < 64 / sub; c++)                                                               \
          rt_bytes_sub_##name(tile, span, c, x, at + span * 64 + c * sub, m, acc);                                               \
    for (int t = 0; t < m; t++) v_store(y + t * ldy, acc[t]);                                                                    \
  }                                                                                                                              \
  RT_BYTE_EACH(RT_BYTE_TOKENS, name)                                                                                             \
  static void rt_linear_a8_##name(const uint8_t *packed, int k, int first, int last, const uint8_t *act, size_t stride,          \
                                  int m, float *y, size_t ldy) {                                                                 \
    size_t group_bytes = (size_t)((k + tile_k - 1) / tile_k) * tile_bytes;                                                       \
    for (int g = first; g < last; g++, y += 16) {                                                                                \
      const uint8_t *tile = packed + (size_t)g * group_bytes;                                                                    \
      int done = RT_BYTES_WIDE(name, bits, tile, k, act, stride, m, y, ldy);                                                     \
      RT_BYTE_EACH(RT_BYTE_PASS, name)                                                                                           \
    }                                                                                                                            \
  }
#define RT_BYTE_TOKENS(name, m)                                                                                             \
  static __attribute__((noinline)) void rt_bytes##m##_##name(const uint8_t *tile, int k, const uint8_t *act, size_t stride, \
                                                             float *y, size_t ldy) {                                        \
    rt_byte_rows x = rt_byte_rows_of(act, stride, k);                                                                       \
    rt_bytes_group_##name(tile, k, &x, m, y, ldy);                                                                          \
  }
#define RT_BYTE_PASS(name, some) \
  for (; m - done >= some; done += some) rt_bytes##some##_##name(tile, k, act + done * stride, stride, y + done * ldy, ldy);
#if V_BYTE_TOKENS == 8
#define RT_BYTE_EACH(what, name) what(name, 8) what(name, 4) what(name, 1)
#elif V_BYTE_TOKENS == 4
#define RT_BYTE_EACH(what, name) what(name, 4) what(name, 1)
#else
#define RT_BYTE_EACH(what, name) what(name, 1)
#endif
#define RT_BYTES_SCALE(name, tile_k, tile_bytes, sub, bits, offset) \
  RT_BYTES_BLOCK(name, tile_k, tile_bytes, sub, bits, offset, 0, RT_FOLD_SCALE)
#define RT_BYTES_LEAST(name, tile_k, tile_bytes, sub, bits, offset) \
  RT_BYTES_BLOCK(name, tile_k, tile_bytes, sub, bits, offset, 1, RT_FOLD_LEAST)
#define RT_BYTES_FLOAT(name, tile_k, tile_bytes, sub, bits, offset)                                                     \
  static void rt_linear_a8_##name(const uint8_t *packed, int k, int first, int last, const uint8_t *act, size_t stride, \
                                  int m, float *y, size_t ldy) {                                                        \
    rt_linear_pairs_##name(packed, k, first, last, act, stride, m, y, ldy);                                             \
  }

#define FORMAT(name, ggml_type, block_weights, block_bytes, tile_k, packed_bytes, form, sub, bits, offset) \
  RT_BYTES_##form(name, tile_k, packed_bytes, sub, bits, offset)
#include "defs/formats.def"
#undef FORMAT
#endif
