/* out[i] = activation(gate[i]) * up[i], activation as plan.Activation; up NULL: activation(gate[i]).  gate, up, out: [n];
 * ranges of n are chunks of work.
 *
 *   SILU       x / (1 + e^-x)
 *   GELU_TANH  x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
 *   GELU       x/2 (1 + erf(x / sqrt 2)) */
#ifndef RT_OPS_GATED_H
#define RT_OPS_GATED_H

V_INLINE v16f rt_silu(v16f x) { return v_div(x, v_add(v_set1(1.0f), v_exp(v_sub(v_zero(), x)))); }

V_INLINE v16f rt_gelu_tanh(v16f x) {
  v16f cube = v_mul(v_mul(x, x), x), inner = v_mul(v_set1(0.7978845608f), v_fma(v_set1(0.044715f), cube, x));
  return v_mul(v_mul(v_set1(0.5f), x), v_add(v_set1(1.0f), v_tanh(inner)));
}

V_INLINE v16f rt_gelu(v16f x) {
  return v_mul(v_mul(v_set1(0.5f), x), v_add(v_set1(1.0f), v_erf(v_mul(x, v_set1(0.7071067812f)))));
}

#define RT_GATE(name)                                                                 \
  static void rt_gate_##name(const float *gate, const float *up, int n, float *out) { \
    for (int i = 0; i < n; i += 16) {                                                 \
      int lanes = n - i < 16 ? n - i : 16;                                            \
      v16f g = rt_##name(v_load_n(gate + i, lanes, 0.0f));                            \
      if (up != NULL) g = v_mul(g, v_load_n(up + i, lanes, 0.0f));                    \
      v_store_n(out + i, g, lanes);                                                   \
    }                                                                                 \
  }
RT_GATE(silu)
RT_GATE(gelu_tanh)
RT_GATE(gelu)
#undef RT_GATE
#endif
