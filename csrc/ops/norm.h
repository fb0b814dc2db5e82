/* act <- norm(x) as its path reads it.  x, norm, norm_bias: [k]; one token is one chunk of work.
 *
 *   RMS    n = x * (1 / sqrt(mean(x^2) + eps)) * norm
 *   LAYER  n = (x - mean) * (1 / sqrt(mean((x - mean)^2) + eps)) * norm + norm_bias
 *   norm == NULL: n = x
 * Means are sums over 16 lanes in ascending k, folded as v_sum does. */
#ifndef RT_OPS_NORM_H
#define RT_OPS_NORM_H
#include "quant/act.h"

/* Sum of (x - shift)^2 over [n]. */
V_INLINE float rt_sum_squares(const float *x, int n, float shift) {
  v16f acc = v_zero(), s = v_set1(shift);
  for (int i = 0; i < n; i += 16) {
    v16f d = v_sub(v_load_n(x + i, n - i < 16 ? n - i : 16, shift), s);
    acc = v_fma(d, d, acc);
  }
  return v_sum(acc);
}

V_INLINE float rt_sum_all(const float *x, int n) {
  v16f acc = v_zero();
  for (int i = 0; i < n; i += 16) acc = v_add(acc, v_load_n(x + i, n - i < 16 ? n - i : 16, 0.0f));
  return v_sum(acc);
}

static void rt_quantize(const float *x, int k, int norm_kind, const float *norm, const float *norm_bias, float eps,
                        enum rt_path path, uint8_t *act) {
  enum { LAYER = 1 };
  rt_act a = rt_act_at(act, k);
  size_t kp = rt_act_k(k);
  int layer = norm != NULL && norm_kind == LAYER;
  float shift = layer ? rt_sum_all(x, k) / (float)k : 0.0f;
  v16f inverse = v_set1(norm == NULL ? 1.0f : 1.0f / __builtin_sqrtf(rt_sum_squares(x, k, shift) / (float)k + eps));
  v16f most = v_zero(), broken = v_zero();
  memset(a.x + kp - 64, 0, 64 * sizeof *a.x);
  for (int i = 0; i < k; i += 16) {
    int lanes = k - i < 16 ? k - i : 16;
    v16f v = v_load_n(x + i, lanes, 0.0f);
    if (layer) v = v_sub(v, v_set1(shift));
    if (norm != NULL) v = v_mul(v_mul(v, inverse), v_load_n(norm + i, lanes, 0.0f));
    if (layer && norm_bias != NULL) v = v_add(v, v_load_n(norm_bias + i, lanes, 0.0f));
    v_store_n(a.x + i, v, lanes);
    v = v_load(a.x + i); /* lanes past k are zero again */
    most = v_max(most, v_abs(v));
    broken = v_fma(v, v_zero(), broken);
  }
  if (path == RT_PATH_BF16) rt_act_bf16(a, kp);
  else if (path == RT_PATH_A8) rt_act_round8(a, kp, v_sum(broken));
  else rt_act_round(a, kp, v_most(most), v_sum(broken));
  if (path == RT_PATH_A16_BF16 || path == RT_PATH_A8) rt_act_pairs(a, kp);
}

/* y[i] += x[i] * (1 / sqrt(mean(x^2) + eps)) * norm[i], the last product and the sum rounded once. x, norm, y: [n] */
static void rt_norm_add(const float *x, int n, const float *norm, float eps, float *y) {
  v16f inverse = v_set1(1.0f / __builtin_sqrtf(rt_sum_squares(x, n, 0.0f) / (float)n + eps));
  for (int i = 0; i < n; i += 16) {
    int lanes = n - i < 16 ? n - i : 16;
    v16f v = v_mul(v_load_n(x + i, lanes, 0.0f), inverse);
    v_store_n(y + i, v_fma(v, v_load_n(norm + i, lanes, 0.0f), v_load_n(y + i, lanes, 0.0f)), lanes);
  }
}
#endif
