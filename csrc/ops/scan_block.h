/* The same recurrence of up to 16 tokens at once, as products that share each load of the state S before them:
 *
 *   out_i = gain_i (c_i S) + sum_(j <= i) share_ij (c_i b_j) (dt_j x_j) + d x_i
 *   S     <- gain_last S + sum_j b_j (share_last,j dt_j x_j)
 *
 * gain_i = decay_0 ... decay_i, share_ij = decay_(j+1) ... decay_i: products in ascending order, so that nothing is divided. A
 * lane is a p, nothing is folded across lanes. One order for every number: c_i S in ascending n, fused; times gain; j ascending,
 * fused; d x last. An output is a function of its own token and those before it in the block, so that a block may be
 * answered in several calls, and its state taken on in the last. c_i b_j: 16 lanes of n, fused in ascending n, then folded. */
#ifndef RT_OPS_SCAN_BLOCK_H
#define RT_OPS_SCAN_BLOCK_H

static void rt_scan_mix(const float *c, const float *const *b, int n, int numbers, float *mix) {
  int whole = numbers / 16 * 16, rest = numbers - whole;
  for (int j = 0; j < n; j++) {
    v16f sum = v_zero();
    for (int i = 0; i < whole; i += 16) sum = v_fma(v_load(c + i), v_load(b[j] + i), sum);
    if (rest) sum = v_fma(v_load_n(c + whole, rest, 0.0f), v_load_n(b[j] + whole, rest, 0.0f), sum);
    mix[j] = v_sum(sum);
  }
}

/* Outputs of `rows` tokens from i on, lanes p. input [tokens][16] is dt x; share [rows of all][16]. */
V_INLINE void rt_scan_outputs(const struct rt_scan_block_args *a, int i, int rows, int p, int lanes, const float *gain,
                              float (*share)[RT_PAGE], float (*input)[16]) {
  const float *c[V_SCAN_TOKENS], *state = a->state + p;
  v16f sum[V_SCAN_TOKENS];
  for (int t = 0; t < rows; t++) c[t] = a->c[i + t], sum[t] = v_zero();
  for (int n = 0; n < a->numbers; n++, state += a->head_dim) {
    v16f s = v_load_n(state, lanes, 0.0f);
    for (int t = 0; t < rows; t++) sum[t] = v_fma(v_set1(c[t][n]), s, sum[t]);
  }
  for (int t = 0; t < rows; t++) {
    v16f y = v_mul(v_set1(gain[i + t]), sum[t]);
    for (int j = 0; j <= i + t; j++) y = v_fma(v_set1(share[i + t][j]), v_load(input[j]), y);
    y = v_fma(v_set1(a->d), v_load_n(a->x[i + t] + p, lanes, 0.0f), y);
    v_store_n(a->out[i + t] + p, y, lanes);
  }
}

/* S <- gain S + what `rows` tokens from j on leave, lanes p; left [tokens][16] is share dt x. */
V_INLINE void rt_scan_leave(const struct rt_scan_block_args *a, int j, int rows, int p, int lanes, float gain, float (*left)[16]) {
  const float *b[V_SCAN_TOKENS];
  float *state = a->state + p;
  v16f own[V_SCAN_TOKENS];
  for (int t = 0; t < rows; t++) b[t] = a->b[j + t], own[t] = v_load(left[j + t]);
  for (int n = 0, numbers = a->numbers, width = a->head_dim; n < numbers; n++, state += width) {
    v16f s = v_load_n(state, lanes, 0.0f);
    if (j == 0) s = v_mul(v_set1(gain), s);
    for (int t = 0; t < rows; t++) s = v_fma(v_set1(b[t][n]), own[t], s);
    v_store_n(state, s, lanes);
  }
}

#define RT_SCAN_SPAN(lanes)                                                                \
  for (; i + V_SCAN_TOKENS <= n; i += V_SCAN_TOKENS)                                       \
    rt_scan_outputs(a, i, V_SCAN_TOKENS, p, lanes, gain, share, input);                    \
  for (; i < n; i++) rt_scan_outputs(a, i, 1, p, lanes, gain, share, input);               \
  if (!a->ends) return;                                                                    \
  for (; j + V_SCAN_TOKENS <= n; j += V_SCAN_TOKENS)                                       \
    rt_scan_leave(a, j, V_SCAN_TOKENS, p, lanes, gain[n - 1], left);                       \
  for (; j < n; j++) rt_scan_leave(a, j, 1, p, lanes, gain[n - 1], left);

static void rt_scan_span(const struct rt_scan_block_args *a, int p, int lanes, const float *gain, const float *to_last,
                         float (*share)[RT_PAGE]) {
  _Alignas(64) float input[RT_PAGE][16], left[RT_PAGE][16];
  int i = a->first, j = 0, n = a->tokens;
  for (int t = 0; t < n; t++) {
    v16f in = v_mul(v_set1(a->dt[t]), v_load_n(a->x[t] + p, lanes, 0.0f));
    v_store(input[t], in);
    v_store(left[t], v_mul(v_set1(to_last[t]), in));
  }
  if (lanes == 16) {
    RT_SCAN_SPAN(16)
  } else {
    RT_SCAN_SPAN(lanes)
  }
}

static void rt_scan_block(const struct rt_scan_block_args *a) {
  _Alignas(64) float gain[RT_PAGE], to_last[RT_PAGE] = {0}, share[RT_PAGE][RT_PAGE];
  for (int i = 0; i < a->tokens; i++) {
    gain[i] = i ? gain[i - 1] * a->decay[i] : a->decay[i];
    for (int j = 0; j < i; j++) to_last[j] *= a->decay[i];
    to_last[i] = 1.0f;
    for (int j = 0; i >= a->first && j <= i; j++) share[i][j] = to_last[j] * a->mix[i][j];
  }
  for (int p = 0; p < a->head_dim; p += 16)
    rt_scan_span(a, p, a->head_dim - p < 16 ? a->head_dim - p : 16, gain, to_last, share);
}
#endif
