/* The vocabulary in plain C: 16 floats in a struct. This is the specification of every other simd/<set>.h.
 *
 *   v16f  16 floats     v16i  16 s32     v16m  a mask of 16
 *   max and min give the second operand when either is NaN or both are zero, as x86 does; a NaN's payload is nobody's.
 *   v_sum and v_most fold 16 -> 8 -> 4 -> 2 -> 1, lane i with lane i + half. */
#ifndef RT_SIMD_SCALAR_H
#define RT_SIMD_SCALAR_H
#include "base/half.h"

#include <stdint.h>
#include <string.h>

#define V_INLINE static inline __attribute__((unused)) /* the specification need not be fast */

typedef struct v16f { float f[16]; } v16f;
typedef struct v16i { int32_t i[16]; } v16i;
typedef struct v16m { uint32_t bits; } v16m;

#define V_LANES for (int l = 0; l < 16; l++)

#define V_ROWS 4 /* query rows that share a load in attention_tile */
#define V_SCAN_TOKENS 4 /* tokens of scan_block that share a load of the state */
#define V_SUMS 4 /* sums that attention keeps in registers for one token */

V_INLINE v16f v_set1(float x) { v16f r; V_LANES r.f[l] = x; return r; }
V_INLINE v16f v_zero(void) { return v_set1(0.0f); }
V_INLINE v16f v_load(const float *p) { v16f r; memcpy(&r, p, sizeof r); return r; }
V_INLINE void v_store(float *p, v16f a) { memcpy(p, &a, sizeof a); }
V_INLINE v16f v_load_f16(const uint16_t *p) { v16f r; V_LANES r.f[l] = rt_f16_to_f32(p[l]); return r; }
V_INLINE v16f v_load_bf16(const uint16_t *p) { v16f r; V_LANES r.f[l] = rt_bf16_to_f32(p[l]); return r; }
V_INLINE v16f v_set1_f16(const uint16_t *p) { return v_set1(rt_f16_to_f32(*p)); }
/* 16 numbers of E5M2, of E4M3. */
V_INLINE v16f v_load_e5m2(const uint8_t *p) { v16f r; V_LANES r.f[l] = rt_f16_to_f32((uint16_t)(p[l] << 8)); return r; }
V_INLINE v16f v_load_e4m3(const uint8_t *p) {
  v16f r;
  V_LANES r.f[l] = rt_e4m3_to_f32(p[l]);
  return r;
}
V_INLINE void v_store_f16(uint16_t *p, v16f a) { V_LANES p[l] = rt_f32_to_f16(a.f[l]); }

V_INLINE v16f v_add(v16f a, v16f b) { V_LANES a.f[l] += b.f[l]; return a; }
V_INLINE v16f v_sub(v16f a, v16f b) { V_LANES a.f[l] -= b.f[l]; return a; }
V_INLINE v16f v_mul(v16f a, v16f b) { V_LANES a.f[l] *= b.f[l]; return a; }
V_INLINE v16f v_div(v16f a, v16f b) { V_LANES a.f[l] /= b.f[l]; return a; }
V_INLINE v16f v_fma(v16f a, v16f b, v16f c) { V_LANES c.f[l] = __builtin_fmaf(a.f[l], b.f[l], c.f[l]); return c; }
V_INLINE v16f v_max(v16f a, v16f b) { V_LANES a.f[l] = a.f[l] > b.f[l] ? a.f[l] : b.f[l]; return a; }
V_INLINE v16f v_min(v16f a, v16f b) { V_LANES a.f[l] = a.f[l] < b.f[l] ? a.f[l] : b.f[l]; return a; }
V_INLINE v16f v_abs(v16f a) { V_LANES a.f[l] = __builtin_fabsf(a.f[l]); return a; }
V_INLINE v16f v_round(v16f a) { V_LANES a.f[l] = __builtin_rintf(a.f[l]); return a; } /* to even */

/* a * 2^n for whole n in [-250, 250], rounded once; a in [0.5, 2]. */
V_INLINE v16f v_scale2(v16f a, v16f n) {
  V_LANES {
    int32_t e = n.f[l] == n.f[l] ? (int32_t)n.f[l] : 0, half = e >> 1;
    a.f[l] = a.f[l] * rt_float_of_bits((uint32_t)(half + 127) << 23) * rt_float_of_bits((uint32_t)(e - half + 127) << 23);
  }
  return a;
}
/* The same where the result is a normal number; NaN stays. */
V_INLINE v16f v_scale2_normal(v16f a, v16f n) { return v_scale2(a, n); }

V_INLINE v16m v_less(v16f a, v16f b) { v16m r = {0}; V_LANES r.bits |= (uint32_t)(a.f[l] < b.f[l]) << l; return r; }
/* Lanes with low <= p[l] <= high. */
V_INLINE v16m v_within(const int32_t *p, int32_t low, int32_t high) {
  v16m r = {0};
  V_LANES r.bits |= (uint32_t)(p[l] >= low && p[l] <= high) << l;
  return r;
}
V_INLINE uint32_t v_bits(v16m m) { return m.bits; }
V_INLINE v16m v_mask(uint32_t bits) { return (v16m){bits}; }
V_INLINE v16f v_select(v16m m, v16f a, v16f b) { V_LANES a.f[l] = m.bits >> l & 1 ? a.f[l] : b.f[l]; return a; } /* m ? a : b */

V_INLINE float v_sum(v16f a) {
  for (int half = 8; half; half >>= 1)
    for (int l = 0; l < half; l++) a.f[l] += a.f[l + half];
  return a.f[0];
}
V_INLINE float v_most(v16f a) {
  for (int half = 8; half; half >>= 1)
    for (int l = 0; l < half; l++) a.f[l] = a.f[l] > a.f[l + half] ? a.f[l] : a.f[l + half];
  return a.f[0];
}
V_INLINE float v_first(v16f a) { return a.f[0]; }

V_INLINE void v_store_s32(int32_t *p, v16f a) { V_LANES p[l] = (int32_t)__builtin_rintf(a.f[l]); } /* to even; |a| < 2^31 */
/* The same as s16 q[16] and as planes, q = 256 * high + low, |q| <= 32639 (high NULL: not wanted); returns the sum of q. */
V_INLINE int32_t v_store_planes(v16f a, int16_t *q, int8_t *high, int8_t *low) {
  int32_t whole[16], sum = 0;
  v_store_s32(whole, a);
  for (int l = 0; l < 16; l++) {
    q[l] = (int16_t)whole[l];
    if (high) high[l] = (int8_t)((whole[l] + 128) >> 8);
    low[l] = (int8_t)whole[l]; /* q - 256 * high, which fits, is q modulo 256 */
    sum += whole[l];
  }
  return sum;
}
V_INLINE v16f v_of_s32(v16i a) { v16f r; V_LANES r.f[l] = (float)a.i[l]; return r; }
V_INLINE v16i v_minus(v16i a, int32_t b) { V_LANES a.i[l] -= b; return a; }

/* ---- steps: 64 bytes = 16 rows x 4 k (quant/r16.h), as the weight formats put them together ---- */
typedef struct v64b { uint8_t b[64]; } v64b;
#define V_BYTES for (int i = 0; i < 64; i++)

V_INLINE v64b v_bytes(const uint8_t *p) { v64b r; memcpy(&r, p, sizeof r); return r; }
V_INLINE void v_store_bytes(uint8_t *p, v64b a) { memcpy(p, &a, sizeof a); }
/* Of each byte (a >> right) & mask, or (a << -right) & mask. The mask has no bit that a neighbour's would come to: sets shift
 * wider words. right and mask are constants. */
V_INLINE v64b v_field(v64b a, int right, int mask) {
  V_BYTES a.b[i] = (uint8_t)((right < 0 ? a.b[i] << -right : a.b[i] >> right) & mask);
  return a;
}
V_INLINE v64b v_or(v64b a, v64b b) { V_BYTES a.b[i] |= b.b[i]; return a; }
/* table[16] at each byte; a < 16. */
V_INLINE v64b v_lookup(const uint8_t *table, v64b a) { V_BYTES a.b[i] = table[a.b[i]]; return a; }
/* 16 bytes as numbers. */
V_INLINE v16f v_of_u8(const uint8_t *p) { v16f r; V_LANES r.f[l] = (float)p[l]; return r; }
V_INLINE v16f v_of_s8(const uint8_t *p) { v16f r; V_LANES r.f[l] = (float)(int8_t)p[l]; return r; }

/* ---- sums of one sub-block (16 or 32 k): S[row] = sum of u[row][k] * q[k], exact, for m tokens at once ----
 * v_sums_begin, then v_sums_step for every 4 k in ascending order, then v_sums_end. `bits` of u, a constant, and `j`, the
 * number of the step in its sub-block, let a set keep narrower sums while they cannot overflow. An activation is q[k] and the
 * same as planes, q = 256 * high + low (quant/act.h); a set reads whichever it likes. [m] pointers, read from `at` on. */
#define V_DOT_TOKENS 1 /* most tokens of one v_sums */

typedef struct v_sums { v16i s[V_DOT_TOKENS]; } v_sums;

V_INLINE void v_sums_begin(v_sums *restrict sums, int m) { memset(sums->s, 0, (size_t)m * sizeof sums->s[0]); }
V_INLINE void v_sums_step(v_sums *restrict sums, v64b u, int bits, int j, const int16_t *const *q, const int8_t *const *high,
                          const int8_t *const *low, int at, int m) {
  (void)bits, (void)j, (void)high, (void)low;
  for (int t = 0; t < m; t++)
    for (int l = 0; l < 16; l++)
      for (int i = 0; i < 4; i++) sums->s[t].i[l] += u.b[l * 4 + i] * q[t][at + i];
}
/* p, not before the last step's sums: what is fetched ahead stays spread among the steps instead of in front of them all. */
V_INLINE const uint8_t *v_after(const uint8_t *p, const v_sums *sums, int bits) {
  (void)sums, (void)bits;
  return p;
}
/* steps: how many there were. s: [m] */
V_INLINE void v_sums_end(v_sums *restrict sums, int bits, int steps, int m, v16i *restrict s) {
  (void)bits, (void)steps;
  memcpy(s, sums->s, (size_t)m * sizeof *s);
}

/* ---- the same of activations in one plane (ops/linear_a8.h), and of u less a number that the set chooses ----
 * x: s8 [4] of the first token; those of the next are `stride` bytes behind. */
#define V_BYTE_TOKENS 1 /* most tokens of one v_dots */
#define V_DOTS_LESS(bits) 0

typedef v_sums v_dots;

V_INLINE void v_dots_begin(v_dots *restrict dots, int m) { v_sums_begin(dots, m); }
V_INLINE void v_dots_step(v_dots *restrict dots, v64b u, int bits, int j, const uint8_t *x, size_t stride, int m) {
  (void)bits, (void)j;
  for (int t = 0; t < m; t++)
    for (int l = 0; l < 16; l++)
      for (int i = 0; i < 4; i++) dots->s[t].i[l] += u.b[l * 4 + i] * (int8_t)x[t * stride + (size_t)i];
}
V_INLINE void v_dots_end(v_dots *restrict dots, int bits, int m, v16i *restrict s) { v_sums_end(dots, bits, 0, m, s); }

/* ---- many tokens, where a set defines V_WIDE_TOKENS (simd/avx2.h): a tile is unpacked once for all of them ----
 *   v_widen(u, offset, wide)    a step as s16 u - offset, in an order of the set's own, [64]
 *   v_dot_wide(wide, steps, q, at, s)   s[t] = sum of wide * q[t] over `steps` steps, for V_WIDE_TOKENS tokens */

/* ---- the BF16 path (ops/linear_bf16.h) ---- */
#define V_BF16_TOKENS 1 /* tokens that share a weight */

V_INLINE v16f v_number(v64b a, int i) { v16f r; V_LANES r.f[l] = (float)a.b[l * 4 + i]; return r; } /* k = i of a step; i constant */
V_INLINE v16f v_round_bf16(v16f a) { V_LANES a.f[l] = rt_bf16_to_f32(rt_f32_to_bf16(a.f[l])); return a; }
#endif
