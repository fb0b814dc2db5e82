/* One head's selective state space recurrence, token after token:
 *
 *   s[n][p] <- decay * s[n][p] + b[n] * (dt * x[p]);   out[p] = sum_n c[n] s[n][p] + d x[p]
 *
 * decay and dt are the token's and head's (exec/recur.c), b and c [numbers] those of the head's group. The state lies as
 * [numbers][head_dim], so that a lane is a p and nothing is folded across lanes. One order for every (n, p): dt * x, times b,
 * fused onto decay * s; sums in ascending n, fused; d x last. Tokens are never reordered: a state depends on what came before
 * alone. A unit of work is one head of one sequence with all its tokens. */
#ifndef RT_OPS_SCAN_H
#define RT_OPS_SCAN_H

/* `tokens` tokens from t on (they share the loads of the state) and `parts` vectors from p on, of which the last has `lanes`
 * lanes: constants where it pays. */
V_INLINE void rt_scan_tokens(const struct rt_scan_args *a, int t, int tokens, int p, int parts, int lanes) {
  v16f in[4], sum[4], decay[4];
  const float *b = a->b + (size_t)t * a->x_stride, *c = a->c + (size_t)t * a->x_stride;
  for (int i = 0; i < tokens; i++) {
    const float *x = a->x + (size_t)(t + i) * a->x_stride + p;
    v16f dt = v_set1(a->dt[(size_t)(t + i) * a->rate_stride]);
    decay[i] = v_set1(a->decay[(size_t)(t + i) * a->rate_stride]);
    for (int j = 0; j < parts; j++) {
      in[i + j] = v_mul(dt, v_load_n(x + j * 16, lanes, 0.0f));
      sum[i + j] = v_zero();
    }
  }
  for (int n = 0; n < a->numbers; n++) {
    float *row = a->state + (size_t)n * (size_t)a->head_dim + p;
    for (int j = 0; j < parts; j++) {
      v16f s = v_load_n(row + j * 16, lanes, 0.0f);
      for (int i = 0; i < tokens; i++) {
        s = v_fma(decay[i], s, v_mul(v_set1(b[(size_t)i * a->x_stride + (size_t)n]), in[i + j]));
        sum[i + j] = v_fma(v_set1(c[(size_t)i * a->x_stride + (size_t)n]), s, sum[i + j]);
      }
      v_store_n(row + j * 16, s, lanes);
    }
  }
  for (int i = 0; i < tokens; i++)
    for (int j = 0; j < parts; j++) {
      const float *x = a->x + (size_t)(t + i) * a->x_stride + p + j * 16;
      v16f y = v_fma(v_set1(a->d), v_load_n(x, lanes, 0.0f), sum[i + j]);
      v_store_n(a->out + (size_t)(t + i) * a->out_stride + p + j * 16, y, lanes);
    }
}

static void rt_scan_four_tokens(const struct rt_scan_args *a, int t, int p) { rt_scan_tokens(a, t, 4, p, 1, 16); }
static void rt_scan_four_parts(const struct rt_scan_args *a, int t, int p) { rt_scan_tokens(a, t, 1, p, 4, 16); }
static void rt_scan_one(const struct rt_scan_args *a, int t, int p, int lanes) {
  if (lanes == 16) rt_scan_tokens(a, t, 1, p, 1, 16);
  else rt_scan_tokens(a, t, 1, p, 1, lanes);
}

static void rt_scan(const struct rt_scan_args *a) {
  int p = 0;
  for (; a->tokens == 1 && p + 64 <= a->head_dim; p += 64) rt_scan_four_parts(a, 0, p);
  for (; p < a->head_dim; p += 16) {
    int lanes = a->head_dim - p < 16 ? a->head_dim - p : 16, t = 0;
    for (; lanes == 16 && t + 4 <= a->tokens; t += 4) rt_scan_four_tokens(a, t, p);
    for (; t < a->tokens; t++) rt_scan_one(a, t, p, lanes);
  }
}
#endif
