/* CONV, SCAN and GATED_NORM: recurrences over a sequence's tokens in order, in every profile. A unit is a part of one sequence's
 * state with all its tokens in the step, so that a state has one writer; what it computes depends on nothing else.
 *
 *   CONV        -, a unit is (sequence, RT_CHANNELS channels)
 *   SCAN        dt and decay of a token's heads, a unit is (sequence, head)
 *   GATED_NORM  -, a unit a token
 *
 * A sequence with nothing before this step starts from zeros, whatever its slot held. */
#include "exec/recur.h"

#include <math.h>
#include <string.h>

static float *state_of(const rt_engine *e, int32_t group, int32_t layer, int32_t s) {
  const rt_cache *c = &e->groups[group];
  return (float *)(c->memory.base + (size_t)e->step.states[group][s] * c->page_bytes + (size_t)layer * c->layer_bytes);
}

static int32_t count_of(const rt_engine *e, int32_t s) { return e->step.batch->starts[s + 1] - e->step.batch->starts[s]; }

static const float *values_of(const rt_engine *e, int32_t weight) { return weight < 0 ? NULL : e->weights[weight].values; }

/* ---- CONV ---- */

static int32_t channel_blocks(const rt_engine *e, const rt_op_conv *f) {
  return (e->slots[f->out].width + RT_CHANNELS - 1) / RT_CHANNELS;
}

rt_phase rt_conv_phase(const rt_engine *e, const rt_op_conv *f) {
  const rt_batch *b = e->step.batch;
  return (rt_phase){b->n_seqs * channel_blocks(e, f), b->n_tokens > b->n_seqs ? 1 : 4};
}

void rt_conv_unit(const rt_engine *e, const rt_op_conv *f, int32_t unit) {
  int32_t s = unit / channel_blocks(e, f), first = unit % channel_blocks(e, f) * RT_CHANNELS, all = e->slots[f->out].width;
  int32_t start = e->step.batch->starts[s], count = count_of(e, s), n = all - first < RT_CHANNELS ? all - first : RT_CHANNELS;
  float *state = state_of(e, f->group, f->layer, s) + first;
  const float *bias = values_of(e, f->bias);
  if (count == 0) return;
  for (int32_t i = 0; i < f->taps - 1 && e->step.batch->kv_lens[s] == count; i++)
    memset(state + (size_t)i * (size_t)all, 0, (size_t)n * sizeof *state);
  struct rt_conv_args args = {
      .x = rt_row(e, f->x, start) + f->first + first, .w = values_of(e, f->weight) + (size_t)first * (size_t)f->taps,
      .bias = bias ? bias + first : NULL, .state = state, .out = rt_row(e, f->out, start) + first,
      .x_stride = (size_t)e->slots[f->x].width, .state_stride = (size_t)all, .out_stride = (size_t)all, .tokens = count,
      .channels = n, .taps = f->taps, .activation = f->activation};
  e->k->conv(&args);
}

/* ---- SCAN ---- */

rt_phase rt_scan_phase(const rt_engine *e, const rt_op_scan *f, int32_t part) {
  const rt_batch *b = e->step.batch;
  if (!part) return (rt_phase){b->n_tokens, 4};
  return (rt_phase){b->n_seqs * f->heads, b->n_tokens > b->n_seqs ? 1 : 4};
}

/* rates [tokens][2][heads]: dt = softplus(raw + bias) within its limits, decay = e^(dt a); in f64, each rounded once. */
void rt_scan_rates(const rt_engine *e, const rt_op_scan *f, int32_t token) {
  const float *raw = rt_row(e, f->dt, token) + f->first, *bias = values_of(e, f->dt_bias), *a = values_of(e, f->a);
  float *dt = e->rates + (size_t)token * 2 * (size_t)f->heads, *decay = dt + f->heads;
  for (int32_t h = 0; h < f->heads; h++) {
    double x = (double)raw[h] + (bias ? (double)bias[h] : 0.0);
    float step = (float)(x > 20.0 ? x : log1p(exp(x)));
    step = step < f->dt_min ? f->dt_min : step > f->dt_max ? f->dt_max : step; /* a NaN stays */
    dt[h] = step;
    decay[h] = (float)exp((double)step * (double)a[h]);
  }
}

void rt_scan_unit(const rt_engine *e, const rt_op_scan *f, int32_t unit) {
  int32_t s = unit / f->heads, head = unit % f->heads, start = e->step.batch->starts[s], count = count_of(e, s);
  int32_t width = e->slots[f->out].width, head_dim = width / f->heads, group = head / (f->heads / f->groups);
  size_t numbers = (size_t)head_dim * (size_t)f->numbers;
  float *state = state_of(e, f->group, f->layer, s) + (size_t)head * numbers;
  const float *x = rt_row(e, f->x, start), *b = x + width + group * f->numbers, *d = values_of(e, f->d);
  const float *dt = e->rates + (size_t)start * 2 * (size_t)f->heads + head;
  if (count == 0) return;
  if (e->step.batch->kv_lens[s] == count) memset(state, 0, numbers * sizeof *state);
  struct rt_scan_args args = {
      .x = x + head * head_dim, .b = b, .c = b + f->groups * f->numbers, .dt = dt, .decay = dt + f->heads, .state = state,
      .out = rt_row(e, f->out, start) + head * head_dim, .x_stride = (size_t)e->slots[f->x].width,
      .rate_stride = 2 * (size_t)f->heads, .out_stride = (size_t)width, .tokens = count, .head_dim = head_dim,
      .numbers = f->numbers, .d = d ? d[head] : 0.0f};
  e->k->scan(&args);
}

/* ---- GATED_NORM ---- */

void rt_gated_norm_row(const rt_engine *e, const rt_op_gated_norm *f, int32_t token) {
  int32_t n = e->slots[f->x].width / f->groups;
  const float *x = rt_row(e, f->x, token), *gate = rt_row(e, f->gate, token) + f->first, *norm = values_of(e, f->norm);
  float *out = rt_row(e, f->out, token);
  for (int32_t at = 0; at < f->groups * n; at += n)
    e->k->gated_norm(x + at, gate + at, n, norm + at, f->eps, f->gate_last, out + at);
}
