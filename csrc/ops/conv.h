/* out[t][c] = act(bias[c] + sum_i w[c][i] x[t - taps + 1 + i][c]): each channel's last `taps` inputs.
 *
 * Inputs before the first token here are the state, [taps - 1][channels], the oldest first; afterwards it holds the last
 * taps - 1 inputs. One order: the bias, then taps ascending, fused, a lane a channel; so neither the number of tokens nor the
 * number of channels shows in a bit. A unit of work is some channels of one sequence with all its tokens. */
#ifndef RT_OPS_CONV_H
#define RT_OPS_CONV_H
#include "ops/gated.h"

V_INLINE v16f rt_activate(int activation, v16f x) { /* plan.Activation, -1: none */
  if (activation == 0) return rt_silu(x);
  if (activation == 1) return rt_gelu_tanh(x);
  return activation == 2 ? rt_gelu(x) : x;
}

/* Input t of 16 channels from c on; t < 0: from the state. */
V_INLINE v16f rt_conv_input(const struct rt_conv_args *a, int t, int c, int lanes) {
  const float *row = t >= 0 ? a->x + (size_t)t * a->x_stride : a->state + (size_t)(a->taps - 1 + t) * a->state_stride;
  return v_load_n(row + c, lanes, 0.0f);
}

enum { RT_CONV_VECTORS = 4 }; /* of channels that go through the tokens together: a row's whole lines */

/* Channels [c, c + n), n at most 16 RT_CONV_VECTORS. */
static void rt_conv_channels(const struct rt_conv_args *a, int c, int n) {
  float w[RT_CONV_VECTORS][RT_TAPS][16] = {{{0}}}, bias[RT_CONV_VECTORS][16] = {{0}};
  for (int l = 0; l < n; l++) {
    bias[l / 16][l % 16] = a->bias != NULL ? a->bias[c + l] : 0.0f;
    for (int i = 0; i < a->taps; i++) w[l / 16][i][l % 16] = a->w[(c + l) * a->taps + i];
  }
  for (int t = 0; t < a->tokens; t++)
    for (int v = 0; v * 16 < n; v++) {
      int lanes = n - v * 16 < 16 ? n - v * 16 : 16;
      v16f acc = v_load(bias[v]);
      for (int i = 0; i < a->taps; i++)
        acc = v_fma(v_load(w[v][i]), rt_conv_input(a, t - a->taps + 1 + i, c + v * 16, lanes), acc);
      v_store_n(a->out + (size_t)t * a->out_stride + c + v * 16, rt_activate(a->activation, acc), lanes);
    }
}

static void rt_conv(const struct rt_conv_args *a) {
  for (int c = 0, n; c < a->channels; c += n) {
    n = a->channels - c < 16 * RT_CONV_VECTORS ? a->channels - c : 16 * RT_CONV_VECTORS;
    rt_conv_channels(a, c, n);
  }
  for (int i = 0; i < a->taps - 1; i++) /* ascending: what is read lies behind what is written */
    for (int c = 0; c < a->channels; c += 16) {
      int lanes = a->channels - c < 16 ? a->channels - c : 16;
      v_store_n(a->state + (size_t)i * a->state_stride + c, rt_conv_input(a, a->tokens - a->taps + 1 + i, c, lanes), lanes);
    }
}
#endif
