/* CONV, SCAN and GATED_NORM: recurrences over a sequence's tokens in order, in every profile. A unit is a part of one sequence's
 * state with all its tokens in the step, so that a state has one writer; what it computes depends on nothing else.
 *
 *   CONV        -, a unit is (sequence, RT_CHANNELS channels)
 *   SCAN        rates and mixes of a token; a unit is (sequence, head); what a sequence keeps of an unfinished block
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

/* ---- SCAN ----
 *
 * Generated tokens run one after another (ops/scan.h). So do a prompt's, unless the group keeps rows: then its neighbouring tokens
 * of one page of positions, 16 at most, are a block (ops/scan_block.h), whatever the chunks. A chunk that ends inside a block
 * leaves the state as it is before the block, and the block's inputs beside it; the next prompt token goes on with
 * them, and a generated one first ends the block. */

typedef struct scan {
  const rt_op_scan *f;
  int32_t s, start, count, before, kept, width; /* a sequence: its first token here, tokens here and before, rows it keeps */
  float *state, *rows;                          /* [heads][numbers][head_dim]; [RT_PAGE][row] or NULL */
  size_t row;
} scan;

static float *kept_of(const scan *a) { return a->rows + (RT_PAGE - 1) * a->row; }

static scan scan_of(const rt_engine *e, const rt_op_scan *f, int32_t s) {
  const rt_cache *c = &e->groups[f->group];
  scan a = {.f = f, .s = s, .start = e->step.batch->starts[s], .count = count_of(e, s), .width = e->slots[f->out].width,
            .state = state_of(e, f->group, f->layer, s), .row = (size_t)c->row};
  a.before = e->step.batch->kv_lens[s] - a.count;
  if (a.row) {
    a.rows = a.state + c->width;
    a.kept = a.before ? (int32_t)*kept_of(&a) : 0;
  }
  return a;
}

/* x and B [width + groups * numbers], and rates [2][heads] of the i-th token here; below 0, of those kept. */
static const float *input_of(const rt_engine *e, const scan *a, int32_t i, const float **rates) {
  if (i >= 0) {
    *rates = e->rates + (size_t)(a->start + i) * 2 * (size_t)a->f->heads;
    return rt_row(e, a->f->x, a->start + i);
  }
  const float *row = a->rows + (size_t)(a->kept + i) * a->row;
  *rates = row + a->row - 2 * (size_t)a->f->heads;
  return row;
}

static bool is_prompt(const rt_engine *e, const scan *a, int32_t i) { return a->row && !e->step.batch->roles[a->start + i]; }

/* The first token of the i-th's block: below 0 if it is kept. */
static int32_t block_start(const rt_engine *e, const scan *a, int32_t i) {
  while (i > 0 && (a->before + i) % RT_PAGE && is_prompt(e, a, i - 1)) i--;
  return i == 0 && a->before % RT_PAGE ? -a->kept : i;
}

/* The token behind the i-th's block, as far as it is here. */
static int32_t block_end(const rt_engine *e, const scan *a, int32_t i) {
  do i++;
  while (i < a->count && (a->before + i) % RT_PAGE && is_prompt(e, a, i));
  return i;
}

static bool is_ended(const scan *a, int32_t end) { return end < a->count || (a->before + end) % RT_PAGE == 0; }

rt_phase rt_scan_phase(const rt_engine *e, const rt_op_scan *f, int32_t part) {
  const rt_batch *b = e->step.batch;
  if (part == 0) return (rt_phase){b->n_tokens, 4};
  if (part == 1) return (rt_phase){b->n_seqs * f->heads, b->n_tokens > b->n_seqs ? 1 : 4};
  return (rt_phase){e->groups[f->group].row ? b->n_seqs : 0, 1};
}

/* C of the token with B of its block's up to it. */
static void mix(const rt_engine *e, const rt_op_scan *f, int32_t token) {
  scan a = scan_of(e, f, e->step.tokens[token].sequence);
  int32_t i = token - a.start;
  if (!is_prompt(e, &a, i)) return;
  int32_t first = block_start(e, &a, i), n = i - first + 1, all = f->groups * f->numbers;
  const float *c = rt_row(e, f->x, token) + a.width + all, *rates, *b[RT_PAGE];
  for (int32_t g = 0; g < f->groups; g++) {
    for (int32_t j = 0; j < n; j++) b[j] = input_of(e, &a, first + j, &rates) + a.width + g * f->numbers;
    e->k->scan_mix(c + g * f->numbers, b, n, f->numbers, e->mixes + ((size_t)token * (size_t)f->groups + (size_t)g) * RT_PAGE);
  }
}

/* rates [tokens][2][heads]: dt = softplus(raw + bias) within its limits, decay = e^(dt a); in f64, each rounded once. */
void rt_scan_token(const rt_engine *e, const rt_op_scan *f, int32_t token) {
  const float *raw = rt_row(e, f->dt, token) + f->first, *bias = values_of(e, f->dt_bias), *a = values_of(e, f->a);
  float *dt = e->rates + (size_t)token * 2 * (size_t)f->heads, *decay = dt + f->heads;
  for (int32_t h = 0; h < f->heads; h++) {
    double x = (double)raw[h] + (bias ? (double)bias[h] : 0.0);
    float step = (float)(x > 20.0 ? x : log1p(exp(x)));
    step = step < f->dt_min ? f->dt_min : step > f->dt_max ? f->dt_max : step; /* a NaN stays */
    dt[h] = step;
    decay[h] = (float)exp((double)step * (double)a[h]);
  }
  if (e->groups[f->group].row) mix(e, f, token);
}

/* Tokens [first, end) of a block, one head, of which those before `fresh` were answered before. */
static void run_block(const rt_engine *e, const scan *a, int32_t head, int32_t first, int32_t fresh, int32_t end, bool ends) {
  const rt_op_scan *f = a->f;
  int32_t head_dim = a->width / f->heads, group = head / (f->heads / f->groups), all = f->groups * f->numbers;
  const float *d = values_of(e, f->d), *rates;
  struct rt_scan_block_args args = {
      .state = a->state + (size_t)head * (size_t)head_dim * (size_t)f->numbers, .tokens = end - first, .first = fresh - first,
      .ends = ends, .head_dim = head_dim, .numbers = f->numbers, .d = d ? d[head] : 0.0f};
  for (int32_t i = first, t = 0; i < end; i++, t++) {
    const float *x = input_of(e, a, i, &rates);
    args.x[t] = x + head * head_dim, args.b[t] = x + a->width + group * f->numbers;
    args.dt[t] = rates[head], args.decay[t] = rates[f->heads + head];
    if (i < fresh) continue;
    args.c[t] = args.b[t] + all;
    args.mix[t] = e->mixes + ((size_t)(a->start + i) * (size_t)f->groups + (size_t)group) * RT_PAGE;
    args.out[t] = rt_row(e, f->out, a->start + i) + head * head_dim;
  }
  e->k->scan_block(&args);
}

/* Tokens [first, end) one after another. */
static void run_steps(const rt_engine *e, const scan *a, int32_t head, int32_t first, int32_t end) {
  const rt_op_scan *f = a->f;
  int32_t head_dim = a->width / f->heads, group = head / (f->heads / f->groups);
  const float *rates, *x = input_of(e, a, first, &rates), *b = x + a->width + group * f->numbers, *d = values_of(e, f->d);
  struct rt_scan_args args = {
      .x = x + head * head_dim, .b = b, .c = b + f->groups * f->numbers, .dt = rates + head, .decay = rates + f->heads + head,
      .state = a->state + (size_t)head * (size_t)head_dim * (size_t)f->numbers,
      .out = rt_row(e, f->out, a->start + first) + head * head_dim, .x_stride = (size_t)e->slots[f->x].width,
      .rate_stride = 2 * (size_t)f->heads, .out_stride = (size_t)a->width, .tokens = end - first, .head_dim = head_dim,
      .numbers = f->numbers, .d = d ? d[head] : 0.0f};
  e->k->scan(&args);
}

void rt_scan_head(const rt_engine *e, const rt_op_scan *f, int32_t unit) {
  int32_t head = unit % f->heads;
  scan a = scan_of(e, f, unit / f->heads);
  size_t numbers = (size_t)(a.width / f->heads) * (size_t)f->numbers;
  if (a.count && a.before == 0) memset(a.state + (size_t)head * numbers, 0, numbers * sizeof *a.state);
  for (int32_t i = 0, end; i < a.count; i = end) {
    if (is_prompt(e, &a, i)) {
      end = block_end(e, &a, i);
      run_block(e, &a, head, block_start(e, &a, i), i, end, is_ended(&a, end));
      continue;
    }
    if (i == 0 && a.kept) run_block(e, &a, head, -a.kept, 0, 0, true);
    for (end = i + 1; end < a.count && !is_prompt(e, &a, end);) end++;
    run_steps(e, &a, head, i, end);
  }
}

/* What an unfinished block leaves: rows of its tokens here behind those kept before, or in their place. */
void rt_scan_keep(const rt_engine *e, const rt_op_scan *f, int32_t s) {
  scan a = scan_of(e, f, s);
  if (a.count == 0) return;
  int32_t last = a.count - 1, had = (int32_t)*kept_of(&a), first = is_prompt(e, &a, last) ? block_start(e, &a, last) : a.count;
  if (first < a.count && is_ended(&a, a.count)) first = a.count;
  size_t from_slot = (a.row - 2 * (size_t)f->heads) * sizeof(float), rates_bytes = 2 * (size_t)f->heads * sizeof(float);
  int32_t kept = a.count - first;
  for (int32_t i = first < 0 ? 0 : first; i < a.count; i++) {
    const float *rates, *x = input_of(e, &a, i, &rates);
    float *row = a.rows + (size_t)(i - first) * a.row;
    memcpy(row, x, from_slot);
    memcpy(row + a.row - 2 * (size_t)f->heads, rates, rates_bytes);
  }
  if (kept < had) memset(a.rows + (size_t)kept * a.row, 0, (size_t)(had - kept) * a.row * sizeof(float));
  *kept_of(&a) = (float)kept;
}

/* ---- GATED_NORM ---- */

void rt_gated_norm_row(const rt_engine *e, const rt_op_gated_norm *f, int32_t token) {
  int32_t n = e->slots[f->x].width / f->groups;
  const float *x = rt_row(e, f->x, token), *gate = rt_row(e, f->gate, token) + f->first, *norm = values_of(e, f->norm);
  float *out = rt_row(e, f->out, token);
  for (int32_t at = 0; at < f->groups * n; at += n)
    e->k->gated_norm(x + at, gate + at, n, norm + at, f->eps, f->gate_last, out + at);
}
