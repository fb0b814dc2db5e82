/* What the vocabulary can say in its own words, the same for every set: tails, exp, tanh, erf.
 *
 * The coefficients are minimax fits (Lawson's iteration: least squares, reweighted until the largest error is level) of the
 * stated function over the stated interval, in 50-digit arithmetic, rounded to f32. Errors are of the whole function,
 * measured against f64 on one in a hundred of all floats. */
#ifndef RT_SIMD_MATH_H
#define RT_SIMD_MATH_H
#include "base/half.h"

/* The first n of 16 lanes, the others `fill`; n in 1..16. */
V_INLINE v16f v_load_n(const float *p, int n, float fill) {
  float lanes[16];
  if (n == 16) return v_load(p);
  v_store(lanes, v_set1(fill));
  memcpy(lanes, p, (size_t)n * sizeof *p);
  return v_load(lanes);
}
V_INLINE void v_store_n(float *p, v16f x, int n) {
  float lanes[16];
  if (n == 16) {
    v_store(p, x);
    return;
  }
  v_store(lanes, x);
  memcpy(p, lanes, (size_t)n * sizeof *p);
}
V_INLINE void v_store_bf16(uint16_t *p, v16f x) {
  float lanes[16];
  v_store(lanes, v_round_bf16(x));
  for (int l = 0; l < 16; l++) p[l] = (uint16_t)(rt_bits_of_float(lanes[l]) >> 16);
}

/* e^x within 1.1 ulp; -inf -> 0, above 88.72 -> inf, below -103.97 -> 0, NaN -> NaN.
 * x = n ln 2 + r, |r| <= ln 2 / 2, e^r = 1 + (r + r^2 P(r)), P of degree 4. ln 2 in two parts, the first of 15 bits. */
V_INLINE v16f v_exp(v16f x) {
  x = v_min(v_set1(89.0f), v_max(v_set1(-104.0f), x));
  v16f n = v_round(v_mul(x, v_set1(0x1.715476p+0f)));
  v16f r = v_fma(n, v_set1(-0x1.7f7d1cp-20f), v_fma(n, v_set1(-0x1.62e4p-1f), x));
  v16f p = v_fma(v_set1(0x1.6db5bap-10f), r, v_set1(0x1.123c78p-7f));
  p = v_fma(p, r, v_set1(0x1.55545cp-5f));
  p = v_fma(p, r, v_set1(0x1.55548ep-3f));
  p = v_fma(p, r, v_set1(0.5f));
  p = v_add(v_fma(v_mul(r, r), p, r), v_set1(1.0f));
  return v_scale2(p, n);
}
/* The same for x of at most 88, below -87 -> 0: what softmax needs, and no denormal numbers. */
V_INLINE v16f v_exp_low(v16f x) {
  const v16f least = v_set1(-87.0f);
  v16f kept = v_max(least, x), n = v_round(v_mul(kept, v_set1(0x1.715476p+0f)));
  v16f r = v_fma(n, v_set1(-0x1.7f7d1cp-20f), v_fma(n, v_set1(-0x1.62e4p-1f), kept));
  v16f p = v_fma(v_set1(0x1.6db5bap-10f), r, v_set1(0x1.123c78p-7f));
  p = v_fma(p, r, v_set1(0x1.55545cp-5f));
  p = v_fma(p, r, v_set1(0x1.55548ep-3f));
  p = v_fma(p, r, v_set1(0.5f));
  p = v_add(v_fma(v_mul(r, r), p, r), v_set1(1.0f));
  return v_select(v_less(x, least), v_zero(), v_scale2_normal(p, n));
}
V_INLINE float v_exp1(float x) { return v_first(v_exp(v_set1(x))); }

/* tanh x within 1.4 ulp: below 0.625 x + x s P(s), s = x^2, P of degree 4; else 1 - 2 / (e^2|x| + 1) with the sign of x. */
V_INLINE v16f v_tanh(v16f x) {
  v16f t = v_abs(x), s = v_mul(x, x), one = v_set1(1.0f);
  v16f p = v_fma(v_set1(-0x1.76abf6p-8f), s, v_set1(0x1.5256cep-6f));
  p = v_fma(p, s, v_set1(-0x1.b84448p-5f));
  p = v_fma(p, s, v_set1(0x1.110768p-3f));
  p = v_fma(p, s, v_set1(-0x1.555534p-2f));
  v16f small = v_fma(v_mul(p, s), x, x);
  v16f large = v_sub(one, v_div(v_set1(2.0f), v_add(v_exp(v_add(t, t)), one)));
  large = v_select(v_less(x, v_zero()), v_sub(v_zero(), large), large);
  return v_select(v_less(t, v_set1(0.625f)), small, large);
}

/* erf x within 1.4 ulp: below 0.9375 x + x P(x^2), P of degree 5; else 1 - e^(-t Q(t)) with the sign of x, t = min(|x|, 4),
 * Q of degree 6 = -log(erfc t) / t. */
V_INLINE v16f v_erf(v16f x) {
  v16f t = v_min(v_set1(4.0f), v_abs(x)), s = v_mul(x, x);
  v16f p = v_fma(v_set1(-0x1.34a2f0p-11f), s, v_set1(0x1.45eb0ep-8f));
  p = v_fma(p, s, v_set1(-0x1.b6539ep-6f));
  p = v_fma(p, s, v_set1(0x1.ce16c0p-4f));
  p = v_fma(p, s, v_set1(-0x1.8126d0p-2f));
  p = v_fma(p, s, v_set1(0x1.06eba6p-3f));
  v16f small = v_fma(p, x, x);
  v16f q = v_fma(v_set1(0x1.9aa0aep-17f), t, v_set1(-0x1.5d0a62p-12f));
  q = v_fma(q, t, v_set1(0x1.e2c946p-9f));
  q = v_fma(q, t, v_set1(-0x1.86bbf8p-6f));
  q = v_fma(q, t, v_set1(0x1.b38ea0p-4f));
  q = v_fma(q, t, v_set1(0x1.452a9cp-1f));
  q = v_fma(q, t, v_set1(0x1.20f016p+0f));
  v16f large = v_sub(v_set1(1.0f), v_exp(v_sub(v_zero(), v_mul(q, t))));
  large = v_select(v_less(x, v_zero()), v_sub(v_zero(), large), large);
  return v_select(v_less(t, v_set1(0.9375f)), small, large);
}
#endif
