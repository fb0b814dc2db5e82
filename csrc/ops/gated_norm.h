/* One group of a row, x, gate, norm, out: [n]; out may be x.
 *
 *   gate first  v = x silu(gate);  out = v * (1 / sqrt(mean(v^2) + eps)) * norm
 *   gate last   out = x * (1 / sqrt(mean(x^2) + eps)) * norm * silu(gate)
 * The mean is a sum over 16 lanes in ascending n, folded as v_sum does. */
#ifndef RT_OPS_GATED_NORM_H
#define RT_OPS_GATED_NORM_H
#include "ops/gated.h"

static void rt_gated_norm(const float *x, const float *gate, int n, const float *norm, float eps, int gate_last, float *out) {
  v16f acc = v_zero();
  for (int i = 0; i < n; i += 16) {
    int lanes = n - i < 16 ? n - i : 16;
    v16f v = v_load_n(x + i, lanes, 0.0f);
    if (!gate_last) v = v_mul(v, rt_silu(v_load_n(gate + i, lanes, 0.0f)));
    acc = v_fma(v, v, acc);
    v_store_n(out + i, v, lanes);
  }
  v16f inverse = v_set1(1.0f / __builtin_sqrtf(v_sum(acc) / (float)n + eps));
  for (int i = 0; i < n; i += 16) {
    int lanes = n - i < 16 ? n - i : 16;
    v16f v = v_mul(v_mul(v_load_n(out + i, lanes, 0.0f), inverse), v_load_n(norm + i, lanes, 0.0f));
    if (gate_last) v = v_mul(v, rt_silu(v_load_n(gate + i, lanes, 0.0f)));
    v_store_n(out + i, v, lanes);
  }
}
#endif
