/* A small engine and batches of random ints: the edge in exec/batch.c must refuse what does not fit, and what it lets through
 * must run. The input is read as a plan's changed word, then batches: a good one made from it, some of its numbers changed.
 * Every array is as long as the batch says, so that a read past it is seen. FUZZ_THREADS: of the engine's own pool. */
#include "exec/op_fields.h"
#include "exec/ops.h"
#include "load/pack.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#ifndef FUZZ_THREADS
#define FUZZ_THREADS 1
#endif

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { WIDTH = 20, HEADS = 2, DIM = 12, HIDDEN = 24, VOCAB = 37, PAGES = 9, TOKENS = 48, ROWS = 6, SEQS = 4, HISTORIES = 2,
       QKV = (HEADS + 2) * DIM, TABLE_PAGES = 4, MASK_BYTES = (VOCAB + 7) / 8, FOUND = 4, WINDOW = 12, NUMBERS = 5, TAPS = 3,
       CHANNELS = HEADS * DIM + 2 * NUMBERS, STATES = 6, OPS = 12,
       LATENT = 16, TURNED = 4, EXPERTS = 4, CHOSEN = 2, DEEP_OPS = 15, WEIGHTS_MOST = 21 };

static void must(int truth) {
  if (!truth) abort();
}

/* ---- the input ---- */

typedef struct source { const uint8_t *bytes; size_t left; } source;

static uint32_t take(source *s, uint32_t below) {
  uint32_t x = 0;
  size_t n = below > 256 ? 4 : 1;
  if (n > s->left) n = s->left;
  memcpy(&x, s->bytes, n);
  s->bytes += n, s->left -= n;
  return below ? x % below : x;
}

/* A number of any kind: small, a power of two and its neighbours, or four bytes as they are. */
static int32_t any_int(source *s) {
  uint32_t kind = take(s, 4);
  if (kind == 0) return (int32_t)take(s, 64) - 8;
  if (kind == 1) return (int32_t)((1u << take(s, 32)) + take(s, 3) - 1u);
  return (int32_t)take(s, 0);
}

/* ---- the plan ---- */

typedef struct model {
  rt_weight weights[WEIGHTS_MOST];
  int32_t n;
} model;

static void add_weight(model *m, int32_t rows, int32_t k, int32_t format) {
  size_t bytes = k ? rt_packed_bytes((rt_format)format, (uint64_t)rows, (uint64_t)k) : (size_t)rows * 4, at;
  uint8_t *packed = aligned_alloc(64, (bytes + 63) / 64 * 64);
  must(packed != NULL && m->n < WEIGHTS_MOST);
  for (at = 0; at + 4 <= bytes; at += 4) {
    float x = (float)((at * 2654435761u >> 20) % 64) / 64 - 0.4f;
    memcpy(packed + at, &x, 4);
  }
  m->weights[m->n++] = (rt_weight){.format = format, .rows = rows, .k = k, .packed = packed, .bytes = bytes};
}

/* Made once: the weights, in this order. */
enum { TABLE_W, NORM_W, Q_W, K_W, V_W, O_W, GATE_W, UP_W, TAPS_W, A_W, INNER_W, HEADS_Q_W, ROW_W, ROW_NORM_W,
       TO_LATENT_W, TO_VALUE_W, MIXED_W, ROUTER_W, EXPERT_GATE_W, EXPERT_UP_W, EXPERT_DOWN_W };

static const model *weights(void) {
  static model m;
  if (m.n) return &m;
  add_weight(&m, VOCAB, WIDTH, RT_F32), add_weight(&m, WIDTH, 0, RT_F32);
  add_weight(&m, HEADS * DIM, WIDTH, RT_F32), add_weight(&m, DIM, WIDTH, RT_F32), add_weight(&m, DIM, WIDTH, RT_F32);
  add_weight(&m, WIDTH, HEADS * DIM, RT_F32), add_weight(&m, HIDDEN, WIDTH, RT_F32), add_weight(&m, HIDDEN, WIDTH, RT_F32);
  add_weight(&m, CHANNELS * TAPS, 0, RT_F32), add_weight(&m, HEADS, 0, RT_F32), add_weight(&m, HEADS * DIM, 0, RT_F32);
  add_weight(&m, HEADS * 2 * TURNED, WIDTH, RT_F32), add_weight(&m, LATENT + TURNED, WIDTH, RT_F32);
  add_weight(&m, LATENT, 0, RT_F32), add_weight(&m, HEADS * LATENT, TURNED, RT_F32);
  add_weight(&m, HEADS * LATENT, LATENT, RT_F32), add_weight(&m, WIDTH, HEADS * LATENT, RT_F32);
  add_weight(&m, EXPERTS, WIDTH, RT_F32), add_weight(&m, EXPERTS * 16, WIDTH, RT_F32);
  add_weight(&m, EXPERTS * 16, WIDTH, RT_F32), add_weight(&m, EXPERTS * 16, 16, RT_F32);
  return &m;
}

/* What the engine under test was made with; of groups the first is paged, with or without a window, and two are states. */
typedef struct made { rt_engine *e; int32_t window, n_ops, n_groups; } made;

static made started(const rt_plan *plan, int32_t window) {
  rt_limits limits = {.max_tokens = TOKENS, .max_rows = ROWS, .max_seqs = SEQS, .histories = HISTORIES, .threads = FUZZ_THREADS,
                      .isa = RT_ISA_scalar, .pool = 0};
  rt_status st = {0};
  rt_engine *e = NULL;
  must(rt_engine_new(plan, &limits, &e, &st) == RT_OK || (e == NULL && st.message[0]));
  return (made){e, window, plan->n_ops, plan->n_groups};
}

/* Slots of the plan with latents and experts. */
enum { X_S, Q_S, ROW_S, QUERIES_S, MIXED_S, VALUES_S, ROUTER_S, ROUTES_S, HIDDEN_S, RESULTS_S, LOGITS_S };
static const rt_slot deep_slots[] = {{WIDTH, 0}, {HEADS * 2 * TURNED, 0}, {LATENT + TURNED, 0}, {HEADS * (LATENT + TURNED), 0},
                                     {HEADS * LATENT, 0}, {HEADS * LATENT, 0}, {EXPERTS, 0}, {2 * CHOSEN, 0}, {CHOSEN * 16, 0},
                                     {CHOSEN * WIDTH, 0}, {VOCAB, 1}};

static rt_op_norm_linear normed(int32_t x, int32_t out, int32_t weight) {
  return (rt_op_norm_linear){.x = x, .out = out, .norm = NORM_W, .norm_bias = -1, .w0 = weight, .w1 = -1, .w2 = -1, .b0 = -1,
                             .b1 = -1, .b2 = -1, .activation = -1, .eps = 1e-5f};
}

/* Latent attention, then a mixture of experts. */
static made make_deep(source *s) {
  rt_op ops[DEEP_OPS] = {{0}};
  rt_op_fields f[DEEP_OPS] = {{{0}}};
  static const int32_t kinds[] = {RT_OP_EMBED, RT_OP_NORM_LINEAR, RT_OP_NORM_LINEAR, RT_OP_EACH_LINEAR, RT_OP_LATENT_KV,
                                        RT_OP_ATTENTION, RT_OP_EACH_LINEAR, RT_OP_LINEAR_ADD, RT_OP_NORM_LINEAR, RT_OP_ROUTE,
                                        RT_OP_EXPERTS, RT_OP_EACH_LINEAR, RT_OP_ROUTED_ADD, RT_OP_LOGITS, RT_OP_SAMPLE};
  f[0].embed = (rt_op_embed){.out = X_S, .weight = TABLE_W, .positions = -1, .scale = 1};
  f[1].norm_linear = normed(X_S, Q_S, HEADS_Q_W), f[2].norm_linear = normed(X_S, ROW_S, ROW_W);
  f[3].each_linear = (rt_op_each_linear){.x = Q_S, .out = QUERIES_S, .routes = -1, .weight = TO_LATENT_W, .parts = HEADS,
                                         .of = HEADS};
  f[4].latent_kv = (rt_op_latent_kv){.kv = ROW_S, .q = Q_S, .out = QUERIES_S, .norm = ROW_NORM_W, .heads = HEADS, .eps = 1e-5f};
  f[5].attention = (rt_op_attention){.qkv = QUERIES_S, .out = MIXED_S, .sinks = -1, .heads = HEADS, .scale = 0.3f};
  f[6].each_linear = (rt_op_each_linear){.x = MIXED_S, .out = VALUES_S, .routes = -1, .weight = TO_VALUE_W, .parts = HEADS,
                                         .of = HEADS};
  f[7].linear_add = (rt_op_linear_add){.x = VALUES_S, .out = X_S, .weight = MIXED_W, .bias = -1, .scale = 1};
  f[8].norm_linear = normed(X_S, ROUTER_S, ROUTER_W);
  f[9].route = (rt_op_route){.logits = ROUTER_S, .out = ROUTES_S, .bias = -1, .top_k = CHOSEN, .scoring = (int32_t)take(s, 2),
                             .groups = 2, .groups_kept = 1 + (int32_t)take(s, 2), .group_best = 1 + (int32_t)take(s, 2),
                             .scale = 1};
  f[10].experts = (rt_op_experts){.x = X_S, .out = HIDDEN_S, .routes = ROUTES_S, .norm = NORM_W, .gate = EXPERT_GATE_W,
                                  .up = EXPERT_UP_W, .parts = CHOSEN, .of = EXPERTS, .eps = 1e-5f};
  f[11].each_linear = (rt_op_each_linear){.x = HIDDEN_S, .out = RESULTS_S, .routes = ROUTES_S, .weight = EXPERT_DOWN_W,
                                          .parts = CHOSEN, .of = EXPERTS};
  f[12].routed_add = (rt_op_routed_add){.x = RESULTS_S, .out = X_S, .routes = ROUTES_S, .parts = CHOSEN};
  f[13].logits = (rt_op_logits){.x = X_S, .out = LOGITS_S, .norm = NORM_W, .norm_bias = -1, .weight = TABLE_W, .eps = 1e-5f,
                                .scale = 1};
  f[14].sample = (rt_op_sample){.logits = LOGITS_S};
  for (int i = 0; i < DEEP_OPS; i++) {
    ops[i].kind = kinds[i];
    memcpy(ops[i].words, f[i].words, sizeof f[i].words);
  }
  const double freqs[TURNED / 2] = {1, 0.5};
  const rt_group group = {.kind = RT_LATENT, .layers = 1, .kv_heads = 1, .head_dim = LATENT + TURNED, .width = LATENT,
                          .k_format = RT_F16, .v_format = RT_F16, .pages = PAGES};
  const rt_rope rope = {.inv_freq = freqs, .pairs = TURNED / 2, .mscale = 1};
  if (take(s, 8) == 0) ops[take(s, DEEP_OPS)].words[take(s, RT_OP_WORDS)] = (uint32_t)any_int(s);
  rt_plan plan = {.ops = ops, .n_ops = DEEP_OPS, .slots = deep_slots, .n_slots = 11, .weights = weights()->weights,
                  .n_weights = weights()->n, .groups = &group, .n_groups = 1, .ropes = &rope, .n_ropes = 1, .vocab = VOCAB,
                  .width = WIDTH};
  return started(&plan, 0);
}

static made make_engine(source *s) {
  if (take(s, 3) == 0) return make_deep(s);
  const model *m = weights();
  rt_op ops[OPS] = {{0}};
  rt_op_fields f[OPS] = {{{0}}};
  static const int32_t kinds[OPS] = {RT_OP_EMBED, RT_OP_NORM_LINEAR, RT_OP_ROPE_KV, RT_OP_ATTENTION, RT_OP_LINEAR_ADD, RT_OP_GATED,
                                     RT_OP_LOGITS, RT_OP_SAMPLE, RT_OP_CONV, RT_OP_SCAN, RT_OP_GATED_NORM, RT_OP_LINEAR_ADD};
  bool recurrent = take(s, 2) == 0;
  int32_t window = take(s, 2) ? 0 : WINDOW;
  f[0].embed = (rt_op_embed){.out = 0, .weight = TABLE_W, .positions = -1, .scale = 1};
  f[1].norm_linear = (rt_op_norm_linear){.x = 0, .out = 1, .norm = NORM_W, .norm_bias = -1, .w0 = Q_W, .w1 = K_W, .w2 = V_W, .b0 = -1,
                                         .b1 = -1, .b2 = -1, .activation = -1, .eps = 1e-5f};
  f[2].rope_kv = (rt_op_rope_kv){.qkv = 1, .q_norm = -1, .k_norm = -1, .heads = HEADS, .eps = 1e-5f};
  f[3].attention = (rt_op_attention){.qkv = 1, .out = 2, .sinks = -1, .heads = HEADS, .window = window, .scale = 0.3f};
  f[4].linear_add = (rt_op_linear_add){.x = 2, .out = 0, .weight = O_W, .bias = -1, .scale = 1};
  f[5].gated = (rt_op_gated){.x = 0, .out = 3, .norm = NORM_W, .gate = GATE_W, .up = UP_W, .eps = 1e-5f};
  f[6].logits = (rt_op_logits){.x = 0, .out = 4, .norm = NORM_W, .norm_bias = -1, .weight = TABLE_W, .eps = 1e-5f, .scale = 1};
  f[7].sample = (rt_op_sample){.logits = 4};
  if (take(s, 2)) { /* positions of their own, LayerNorm, an activation */
    f[0].embed.positions = TABLE_W;
    f[1].norm_linear.norm_kind = f[6].logits.norm_kind = 1;
    f[1].norm_linear.norm_bias = f[6].logits.norm_bias = NORM_W;
    f[1].norm_linear.activation = (int32_t)take(s, 4) - 1;
  }
  f[8].conv = (rt_op_conv){.x = 1, .out = 5, .group = 1, .weight = TAPS_W, .bias = -1, .first = 2, .taps = TAPS};
  f[9].scan = (rt_op_scan){.x = 5, .dt = 1, .out = 6, .group = 2, .dt_bias = A_W, .a = A_W, .d = -1, .first = 40, .heads = HEADS,
                           .groups = 1, .numbers = NUMBERS, .dt_max = 1};
  f[10].gated_norm = (rt_op_gated_norm){.x = 6, .gate = 1, .out = 6, .norm = INNER_W, .groups = HEADS, .eps = 1e-5f};
  f[11].linear_add = (rt_op_linear_add){.x = 6, .out = 0, .weight = O_W, .bias = -1, .scale = 1};
  for (int i = 0; i < OPS; i++) { /* recurrences behind the first norm and projection */
    int from = !recurrent || i < 2 ? i : i < 6 ? i + 6 : i - 4;
    ops[i].kind = kinds[from];
    memcpy(ops[i].words, f[from].words, sizeof f[from].words);
  }
  const rt_slot slots[] = {{WIDTH, 0}, {QKV, 0}, {HEADS * DIM, 0}, {HIDDEN, 0}, {VOCAB, 1}, {CHANNELS, 0}, {HEADS * DIM, 0}};
  const double freqs[DIM / 2] = {1, 0.5, 0.25, 0.125, 0.0625, 0.03};
  int32_t row = take(s, 2) ? 0 : HEADS * DIM + NUMBERS + 2 * HEADS;
  const rt_group groups[] = {
      {.layers = 1, .kv_heads = 1, .head_dim = DIM, .k_format = RT_F16, .v_format = RT_F32, .window = window, .pages = PAGES},
      {.kind = RT_STATE, .layers = 1, .width = (TAPS - 1) * CHANNELS, .pages = STATES},
      {.kind = RT_STATE, .layers = 1, .width = HEADS * DIM * NUMBERS, .row = row, .pages = STATES}};
  const rt_rope rope = {.inv_freq = freqs, .pairs = DIM / 2, .mscale = 1};
  int32_t n_ops = recurrent ? OPS : 8, n_groups = recurrent ? 3 : 1;
  if (take(s, 8) == 0) ops[take(s, (uint32_t)n_ops)].words[take(s, RT_OP_WORDS)] = (uint32_t)any_int(s);
  rt_plan plan = {.ops = ops, .n_ops = n_ops, .slots = slots, .n_slots = 7, .weights = m->weights, .n_weights = m->n,
                  .groups = groups, .n_groups = n_groups, .ropes = &rope, .n_ropes = 1, .vocab = VOCAB, .width = WIDTH};
  return started(&plan, window);
}

/* ---- a batch ---- */

static void *room(size_t n, size_t item) {
  void *p = calloc(n ? n : 1, item);
  must(p != NULL);
  return n ? p : realloc(p, 1);
}

typedef struct arrays {
  rt_batch b, made; /* as it is given; as the arrays are long */
  int32_t *tokens, *positions, *starts, *kv_lens, *adapters, *table, *states, *rows, *bias_ids, widths[3];
  const int32_t *tables[3];
  uint8_t *roles, *masks;
  float *bias_values, *embeddings;
  rt_sampling *sampling;
} arrays;

static void good_batch(arrays *a, const made *m, source *s) {
  int32_t n_seqs = 1 + (int32_t)take(s, SEQS), n_tokens = 0, n_rows = (int32_t)take(s, ROWS + 1), counts[SEQS], befores[SEQS];
  for (int32_t i = 0; i < n_seqs; i++) {
    counts[i] = take(s, 3) ? 1 : (int32_t)take(s, 20), befores[i] = (int32_t)take(s, TABLE_PAGES * RT_PAGE - 20);
    if (n_tokens + counts[i] > TOKENS) counts[i] = 0;
    n_tokens += counts[i];
  }
  if (n_tokens == 0) n_tokens = counts[0] = 1;
  *a = (arrays){.b = {.n_tokens = n_tokens, .n_seqs = n_seqs, .n_rows = n_rows, .n_bias = (int32_t)take(s, 3),
                      .n_masks = (int32_t)take(s, 3), .n_embeddings = (int32_t)take(s, 3)}};
  a->tokens = room((size_t)n_tokens, 4), a->positions = room((size_t)n_tokens, 4), a->roles = room((size_t)n_tokens, 1);
  a->starts = room((size_t)n_seqs + 1, 4), a->kv_lens = room((size_t)n_seqs, 4), a->adapters = room((size_t)n_seqs, 4);
  a->table = room((size_t)n_seqs * TABLE_PAGES, 4), a->states = room((size_t)n_seqs, 4), a->rows = room((size_t)n_rows, 4);
  a->sampling = room((size_t)n_rows, sizeof *a->sampling);
  a->bias_ids = room((size_t)a->b.n_bias, 4), a->bias_values = room((size_t)a->b.n_bias, 4);
  a->made = a->b;
  a->masks = room((size_t)a->b.n_masks * MASK_BYTES, 1), a->embeddings = room((size_t)a->b.n_embeddings * WIDTH, 4);
  for (int32_t i = 0, at = 0; i < n_seqs; i++) {
    a->starts[i + 1] = a->starts[i] + counts[i], a->kv_lens[i] = befores[i] + counts[i], a->adapters[i] = -1;
    for (int32_t j = 0; j < counts[i]; j++, at++) {
      a->tokens[at] = (int32_t)take(s, VOCAB), a->positions[at] = befores[i] + j, a->roles[at] = (uint8_t)take(s, 2);
    }
    for (int32_t j = 0; j < TABLE_PAGES; j++) {
      bool gone = m->window && j * RT_PAGE + RT_PAGE - 1 <= befores[i] - m->window && take(s, 2);
      a->table[i * TABLE_PAGES + j] = gone ? -1 : (i * 2 + j + (int32_t)take(s, 2)) % PAGES;
    }
    a->states[i] = i + (int32_t)take(s, 2);
    for (int32_t g = 1, layers; g < m->n_groups && take(s, 8); g++) *rt_engine_seen(m->e, g, a->states[i], &layers) = befores[i];
  }
  for (int32_t r = 0; r < n_rows; r++) {
    a->rows[r] = (int32_t)((int64_t)r * n_tokens / n_rows);
    a->sampling[r] = (rt_sampling){.seed = take(s, 256), .temperature = (float)take(s, 4) / 2, .top_p = 1 - (float)take(s, 3) / 4,
                                   .typical_p = 1, .repetition = 1, .top_k = (int32_t)take(s, 4), .history = -1, .allowed = -1,
                                   .logprobs = (int32_t)take(s, 4) - 1};
  }
  for (int32_t i = 0; i < a->b.n_masks * MASK_BYTES; i++) a->masks[i] = (uint8_t)take(s, 256);
  a->widths[0] = TABLE_PAGES, a->tables[0] = a->table;
  a->widths[1] = a->widths[2] = 1, a->tables[1] = a->tables[2] = a->states;
  a->b.tokens = a->tokens, a->b.positions = a->positions, a->b.roles = a->roles, a->b.starts = a->starts, a->b.kv_lens = a->kv_lens;
  a->b.adapters = a->adapters, a->b.tables = a->tables, a->b.table_widths = a->widths, a->b.rows = a->rows;
  a->b.sampling = a->sampling, a->b.bias_ids = a->bias_ids, a->b.bias_values = a->bias_values;
  a->b.masks = a->b.n_masks ? a->masks : NULL, a->b.embeddings = a->b.n_embeddings ? a->embeddings : NULL;
}

/* Another number in place of one; array lengths only shrink or leave every range, as arrays must be as long as they say. */
static void change(arrays *a, source *s) {
  const rt_batch *made = &a->made;
  int32_t value = any_int(s), *const ints[] = {a->tokens, a->positions, a->starts, a->kv_lens, a->adapters, a->table, a->rows, a->bias_ids, a->states};
  const int32_t lengths[] = {made->n_tokens, made->n_tokens, made->n_seqs + 1, made->n_seqs, made->n_seqs, made->n_seqs * TABLE_PAGES, made->n_rows,
                             made->n_bias, made->n_seqs};
  uint32_t which = take(s, 13), at;
  if (which < 8 || which == 12) {
    which = which == 12 ? 8 : which;
    if (lengths[which] > 0) ints[which][take(s, (uint32_t)lengths[which])] = value;
  } else if (which == 8 && made->n_rows > 0) {
    at = take(s, sizeof(rt_sampling) / 4);
    memcpy((uint8_t *)&a->sampling[take(s, (uint32_t)made->n_rows)] + 4 * at, &value, 4);
  } else if (which == 9 && made->n_tokens > 0) {
    a->roles[take(s, (uint32_t)made->n_tokens)] = (uint8_t)value;
  } else if (which == 10) {
    int32_t *const counts[] = {&a->b.n_tokens, &a->b.n_seqs, &a->b.n_rows, &a->b.n_bias, &a->b.n_masks, &a->b.n_embeddings};
    const int32_t given[] = {made->n_tokens, made->n_seqs, made->n_rows, made->n_bias, made->n_masks, made->n_embeddings};
    const int32_t most[] = {TOKENS, SEQS, ROWS, INT32_MAX, INT32_MAX, INT32_MAX};
    at = take(s, 6);
    if (value <= given[at] || value > most[at]) *counts[at] = value;
  } else if (which == 11) {
    float x;
    memcpy(&x, &value, 4);
    if (made->n_embeddings > 0) a->embeddings[take(s, (uint32_t)made->n_embeddings * WIDTH)] = x;
    else if (made->n_bias > 0) a->bias_values[take(s, (uint32_t)made->n_bias)] = x;
  }
}

static void run_batch(const made *m, source *s) {
  arrays a;
  rt_engine *e = m->e;
  rt_status st = {0};
  good_batch(&a, m, s);
  int32_t changes = (int32_t)take(s, 4), first = 0, last = m->n_ops;
  for (int32_t i = 0; i < changes; i++) change(&a, s);
  if (take(s, 16) == 0) first = any_int(s), last = any_int(s);
  rt_code code = rt_engine_run(e, &a.b, first, last, &st);
  must(code == RT_OK || (code == RT_INVALID && st.message[0] && !strchr(st.message, '\n')));
  for (int32_t r = 0; code == RT_OK && first == 0 && last == m->n_ops && r < a.b.n_rows; r++) {
    const rt_sampled *out = &rt_engine_sampled(e)[r];
    must(out->token >= -1 && out->token < VOCAB && (out->token >= 0) == (out->flags == 0));
  }
  free(a.tokens), free(a.positions), free(a.roles), free(a.starts), free(a.kv_lens), free(a.adapters), free(a.table), free(a.states);
  free(a.rows), free(a.sampling), free(a.bias_ids), free(a.bias_values), free(a.masks), free(a.embeddings);
}

static void use_history(rt_engine *e, source *s) {
  rt_status st = {0};
  int32_t tokens[3] = {(int32_t)take(s, VOCAB), (int32_t)take(s, VOCAB), (int32_t)take(s, VOCAB)}, n = any_int(s), history = any_int(s);
  size_t bytes = 0;
  rt_history_extend(e, history, tokens, n > 3 ? 3 : n, (int32_t)take(s, 2), &st);
  rt_history_truncate(e, history, any_int(s), &st);
  if (take(s, 4) == 0) rt_history_reset(e, history, &st);
  rt_engine_copy_page(e, any_int(s), any_int(s), any_int(s), &st);
  uint8_t *page = rt_engine_page(e, any_int(s), any_int(s), &bytes);
  must(page == NULL || bytes > 0);
  const int32_t snapshots[] = {any_int(s), (int32_t)take(s, STATES), (int32_t)take(s, STATES)};
  int32_t first = (int32_t)take(s, 3), left = -1;
  if (rt_state_truncate(e, any_int(s), any_int(s), any_int(s), snapshots + first, 3 - first, &left, &st) == RT_OK) must(left >= 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  source s = {data, size};
  made m = make_engine(&s);
  if (!m.e) return 0;
  for (int i = 0; i < FOUND && s.left; i++) {
    use_history(m.e, &s);
    run_batch(&m, &s);
  }
  rt_engine_free(m.e);
  return 0;
}
