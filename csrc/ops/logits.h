/* The end of a step.  x: [n] logits of one row; a row is one chunk of work. */
#ifndef RT_OPS_LOGITS_H
#define RT_OPS_LOGITS_H

/* x <- softcap * tanh(scale * x / softcap), or scale * x when softcap is 0 */
static void rt_scale_cap(float *x, int n, float scale, float softcap) {
  for (int i = 0; i < n; i += 16) {
    int lanes = n - i < 16 ? n - i : 16;
    v16f v = v_mul(v_load_n(x + i, lanes, 0.0f), v_set1(scale));
    if (softcap > 0.0f) v = v_mul(v_set1(softcap), v_tanh(v_div(v, v_set1(softcap))));
    v_store_n(x + i, v, lanes);
  }
}

/* The lowest index of the largest value. *finite = 0 when a value is NaN or infinite; the index is then of no meaning. */
static int rt_argmax(const float *x, int n, float *largest, int *finite) {
  v16f most = v_set1(-__builtin_inff()), broken = v_zero();
  for (int i = 0; i < n; i += 16) {
    int lanes = n - i < 16 ? n - i : 16;
    most = v_max(most, v_load_n(x + i, lanes, -__builtin_inff()));
    broken = v_fma(v_load_n(x + i, lanes, 0.0f), v_zero(), broken);
  }
  *largest = v_most(most);
  *finite = v_sum(broken) == 0.0f;
  int at = 0;
  while (at < n && x[at] != *largest) at++;
  return at < n ? at : 0;
}

/* Sum of e^(x - largest): 16 lanes in f32 over 4096 values at a time, folded, then added in f64. */
static double rt_exp_sum(const float *x, int n, float largest) {
  double total = 0.0;
  v16f top = v_set1(largest);
  for (int first = 0; first < n; first += 4096) {
    int last = n - first < 4096 ? n : first + 4096;
    v16f acc = v_zero();
    for (int i = first; i < last; i += 16)
      acc = v_add(acc, v_exp(v_sub(v_load_n(x + i, last - i < 16 ? last - i : 16, -__builtin_inff()), top)));
    total += (double)v_sum(acc);
  }
  return total;
}
#endif
