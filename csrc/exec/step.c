/* One step: ops [first, last) over the whole ragged batch.
 *
 * An op is PHASES phases of the pool; what each computes is a function of the unit alone, so neither threads nor claims show
 * in the result:
 *   EMBED      -, a unit a token; so NORM_ADD
 *   linear     norm and round a token (only beyond RT_FUSED tokens), a unit is RT_TOKENS tokens times a packed group of 16 rows
 *   ROPE_KV    cosines and sines of a token (once a step), a unit is the tokens that go to one page
 *   ATTENTION  a unit is (KV head, token), or (KV head, token, split) when those are few and then the joining of splits
 *   SAMPLE     -, a unit a flagged row */
#define _GNU_SOURCE
#include "exec/engine.h"
#include "exec/sample.h"
#include "load/pack.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>

enum { PHASES = 2 };
enum { CLAIM_BYTES = 96 << 10 }; /* a claim's weights at one token; more tokens, fewer weights */

static inline int32_t least(int32_t a, int32_t b) { return a < b ? a : b; }
static inline int32_t most_of(int64_t budget, int64_t unit) { return budget > unit ? (int32_t)(budget / unit) : 1; }

static float *row_of(const rt_engine *e, int32_t slot, int32_t row) {
  return e->slots[slot].data + (size_t)row * (size_t)e->slots[slot].width;
}

/* ---- EMBED ---- */

static const uint8_t *packed_group(const rt_matrix *m, int32_t group, rt_scratch *s) {
  if (m->packed) return m->packed + (size_t)group * m->group_bytes;
  rt_pack_group(m->format, (uint64_t)m->rows, (uint64_t)m->k, m->blocks, (uint64_t)group, s->group);
  return s->group;
}

static void embed(rt_engine *e, const rt_op_embed *f, int32_t t, rt_scratch *s) {
  const rt_matrix *m = &e->weights[f->weight];
  int32_t token = e->step.tokens[t].token;
  float *out = row_of(e, f->out, t);
  if (token < 0) memcpy(out, e->step.batch->embeddings + (size_t)(-1 - token) * (size_t)m->k, (size_t)m->k * sizeof *out);
  else e->k->embed[m->format](packed_group(m, token / RT_GROUP, s), m->k, token % RT_GROUP, f->scale, out);
}

/* ---- linear ops ---- */

static int32_t rows_of(const rt_engine *e, const rt_linear *l) {
  return l->flagged ? e->step.batch->n_rows : e->step.batch->n_tokens;
}

static void round_row(const rt_engine *e, const rt_linear *l, int32_t row, uint8_t *act) {
  const float *x = row_of(e, l->x, l->flagged ? e->step.batch->rows[row] : row);
  e->k->quantize(x, l->k, l->norm_kind, l->norm, l->norm_bias, l->eps, act);
}

static const uint8_t *rounded(rt_engine *e, int32_t op, const rt_linear *l, rt_scratch *s) {
  int32_t rows = rows_of(e, l);
  if (rows > RT_FUSED) return e->acts;
  if (s->run != e->run || s->op != op) {
    for (int32_t row = 0; row < rows; row++) round_row(e, l, row, s->acts + (size_t)row * rt_act_bytes(l->k));
    s->run = e->run, s->op = op;
  }
  return s->acts;
}

/* y [rows][16 * (last - first)] = groups [first, last) of m times `rows` activations. */
static void multiply(const rt_engine *e, const rt_matrix *m, int32_t first, int32_t last, const uint8_t *acts, int32_t rows,
                     float *restrict y, rt_scratch *s) {
  size_t stride = rt_act_bytes(m->k), ldy = (size_t)(last - first) * RT_GROUP;
  if (m->packed) {
    e->k->linear[m->format](m->packed, m->k, first, last, acts, stride, rows, y, ldy);
  } else {
    for (int32_t g = first; g < last; g++)
      e->k->linear[m->format](packed_group(m, g, s), m->k, 0, 1, acts, stride, rows, y + (g - first) * RT_GROUP, ldy);
  }
}

static void finish(const rt_engine *e, const rt_linear *l, const float *bias, float *restrict y, const float *restrict y2, int32_t n,
                   float *restrict out) {
  switch (l->finish) {
    case RT_ADD: e->k->add_scaled(y, bias, l->scale, n, out); return;
    case RT_GATE: e->k->gate[l->activation](y, y2, n, out); return;
    case RT_CAP: if (l->scale != 1.0f || l->softcap != 0.0f) e->k->scale_cap(y, n, l->scale, l->softcap); break;
    case RT_STORE: if (bias) { e->k->add_bias(y, bias, n, out); return; } break;
  }
  memcpy(out, y, (size_t)n * sizeof *out);
}

/* Groups [first, last) of one part, rows [row, row + rows). */
static void linear_block(rt_engine *e, const rt_linear *l, const struct rt_part *part, int32_t first, int32_t last,
                         const uint8_t *acts, int32_t row, int32_t rows, rt_scratch *s) {
  int32_t ldy = (last - first) * RT_GROUP, n = least(last * RT_GROUP, part->matrix->rows) - first * RT_GROUP;
  acts += (size_t)row * rt_act_bytes(l->k);
  multiply(e, part->matrix, first, last, acts, rows, s->y, s);
  if (l->up) multiply(e, l->up, first, last, acts, rows, s->y2, s);
  for (int32_t i = 0; i < rows; i++)
    finish(e, l, part->bias ? part->bias + first * RT_GROUP : NULL, s->y + (size_t)i * (size_t)ldy, s->y2 + (size_t)i * (size_t)ldy, n,
           row_of(e, l->out, row + i) + part->offset + first * RT_GROUP);
}

/* Units run over groups first, then over blocks of tokens. */
static void linear_units(rt_engine *e, int32_t op, const rt_linear *l, int32_t first, int32_t last, rt_scratch *s) {
  const uint8_t *acts = rounded(e, op, l, s);
  int32_t all = rows_of(e, l);
  for (int32_t u = first; u < last;) {
    int32_t row = u / l->groups * RT_TOKENS, rows = least(all - row, RT_TOKENS), group = u % l->groups;
    const struct rt_part *part = &l->parts[l->n_parts - 1];
    while (part->first_group > group) part--;
    int32_t end = least(part->first_group + part->matrix->groups, group + last - u);
    end = least(end, group + RT_LINE_FLOATS / (RT_GROUP * rows));
    linear_block(e, l, part, group - part->first_group, end - part->first_group, acts, row, rows, s);
    u += end - group;
  }
}

static rt_phase linear_phase(const rt_engine *e, const rt_linear *l) {
  int32_t rows = rows_of(e, l), blocks = (rows + RT_TOKENS - 1) / RT_TOKENS;
  int64_t bytes = (int64_t)l->parts[0].matrix->group_bytes * (l->up ? 2 : 1);
  return (rt_phase){blocks * l->groups, most_of(CLAIM_BYTES, bytes * least(rows, RT_TOKENS) / 4 + bytes)};
}

/* ---- ROPE_KV ---- */

static void turn_angles(const rt_rotation *r, int32_t t, int32_t position) {
  float *c = r->cos + (size_t)t * (size_t)r->pairs, *s = r->sin + (size_t)t * (size_t)r->pairs;
  for (int32_t i = 0; i < r->pairs; i++) {
    double angle = position * r->inv_freq[i];
    c[i] = (float)(cos(angle) * r->mscale);
    s[i] = (float)(sin(angle) * r->mscale);
  }
}

static void turn_heads(const rt_engine *e, const rt_op_rope_kv *f, float *x, int32_t heads, int32_t head_dim, const float *norm,
                       int32_t t) {
  const rt_rotation *r = f->rope < 0 ? NULL : &e->ropes[f->rope];
  if (!r && !norm) return;
  size_t at = r ? (size_t)t * (size_t)r->pairs : 0;
  for (int32_t h = 0; h < heads; h++)
    e->k->rope_head(x + (size_t)h * (size_t)head_dim, head_dim, norm, f->eps, r ? r->cos + at : NULL, r ? r->sin + at : NULL,
                    r ? r->pairs : 0, r ? r->interleaved : 0);
}

static const float *values_of(const rt_engine *e, int32_t weight) { return weight < 0 ? NULL : e->weights[weight].values; }

static void rope_kv(rt_engine *e, const rt_op_rope_kv *f, const rt_run *run) {
  const rt_cache *c = &e->groups[f->group];
  const rt_block *block = &e->step.blocks[f->group][run->block];
  uint8_t *page = c->memory.base + (size_t)block->page * c->page_bytes + (size_t)f->layer * c->layer_bytes;
  for (int32_t i = 0; i < run->count; i++) {
    float *q = row_of(e, f->qkv, run->token + i), *k = q + (size_t)f->heads * (size_t)c->head_dim;
    float *v = k + (size_t)c->kv_heads * (size_t)c->head_dim;
    turn_heads(e, f, q, f->heads, c->head_dim, values_of(e, f->q_norm), run->token + i);
    turn_heads(e, f, k, c->kv_heads, c->head_dim, values_of(e, f->k_norm), run->token + i);
    for (int32_t h = 0; h < c->kv_heads; h++) {
      uint8_t *head = page + (size_t)h * c->head_bytes;
      e->k->store_k[c->k_format](k + (size_t)h * (size_t)c->head_dim, c->head_dim, run->slot + i, head);
      e->k->store_v[c->v_format](v + (size_t)h * (size_t)c->head_dim, c->head_dim, run->slot + i, head + c->k_bytes);
    }
  }
}

/* ---- ATTENTION ---- */

typedef struct query { const rt_op_attention *f; const rt_cache *c; int32_t token, head, share, floats; } query;

static query query_of(const rt_engine *e, const rt_op_attention *f, int32_t unit) {
  const rt_cache *c = &e->groups[f->group];
  int32_t tokens = e->step.batch->n_tokens, share = f->heads / c->kv_heads;
  return (query){f, c, unit % tokens, unit / tokens, share, share * c->head_dim};
}

/* One split in partial form; 0 when the token sees nothing of it. */
static int32_t attend_split(const rt_engine *e, const query *q, int32_t split, float *out, float *max, float *sum) {
  const rt_token *t = &e->step.tokens[q->token];
  const rt_block *blocks = e->step.blocks[q->f->group];
  int32_t start = e->step.block_starts[t->sequence] + split * RT_SPLIT;
  int32_t end = least(e->step.block_starts[t->sequence + 1], start + RT_SPLIT), n = 0;
  const uint8_t *k[RT_SPLIT], *v[RT_SPLIT];
  const int32_t *positions[RT_SPLIT];
  size_t at = (size_t)q->f->layer * q->c->layer_bytes + (size_t)q->head * q->c->head_bytes;
  for (int32_t b = start; b < end; b++) {
    if (blocks[b].low > t->position || (q->f->window && blocks[b].high <= t->position - q->f->window)) continue;
    k[n] = q->c->memory.base + (size_t)blocks[b].page * q->c->page_bytes + at;
    v[n] = k[n] + q->c->k_bytes;
    positions[n++] = blocks[b].positions;
  }
  if (n == 0) return 0;
  struct rt_attention_args args = {
      .q = row_of(e, q->f->qkv, q->token) + (size_t)q->head * (size_t)q->floats, .out = out, .k = k, .v = v, .positions = positions,
      .blocks = n, .share = q->share, .head_dim = q->c->head_dim, .position = t->position, .window = q->f->window,
      .scale = q->f->scale, .softcap = q->f->softcap};
  e->k->attention(&args, (int)q->c->k_format, (int)q->c->v_format, max, sum);
  return 1;
}

static void join_splits(const rt_engine *e, const query *q, int32_t n, const float *partial, const float *max, const float *sum) {
  const float *sinks = values_of(e, q->f->sinks);
  float *out = row_of(e, q->f->out, q->token) + (size_t)q->head * (size_t)q->floats;
  if (n == 0) memset(out, 0, (size_t)q->floats * sizeof *out);
  else e->k->attention_combine(n, q->share, q->c->head_dim, partial, max, sum, sinks ? sinks + q->head * q->share : NULL, out);
}

static void attend(const rt_engine *e, const rt_op_attention *f, int32_t unit, rt_scratch *s) {
  query q = query_of(e, f, unit);
  const rt_partials *p = &s->partials;
  int32_t n = 0;
  for (int32_t i = 0; i < e->step.splits; i++)
    n += attend_split(e, &q, i, p->out + (size_t)n * (size_t)q.floats, p->max + n * q.share, p->sum + n * q.share);
  join_splits(e, &q, n, p->out, p->max, p->sum);
}

/* Splits of one query as units of their own: partial i of the query has its place in the engine's memory; sum < 0 marks none. */
static void attend_part(const rt_engine *e, const rt_op_attention *f, int32_t unit) {
  query q = query_of(e, f, unit / e->step.splits);
  const rt_partials *p = &e->partials;
  size_t at = (size_t)unit * (size_t)q.share;
  if (!attend_split(e, &q, unit % e->step.splits, p->out + (size_t)unit * (size_t)q.floats, p->max + at, p->sum + at))
    p->sum[at] = -1.0f;
}

static void join_parts(const rt_engine *e, const rt_op_attention *f, int32_t unit) {
  query q = query_of(e, f, unit);
  const rt_partials *p = &e->partials;
  size_t first = (size_t)unit * (size_t)e->step.splits, floats = (size_t)q.floats, share = (size_t)q.share;
  int32_t n = 0;
  for (size_t i = first; i < first + (size_t)e->step.splits; i++) {
    if (p->sum[i * share] < 0.0f) continue;
    size_t to = first + (size_t)n++;
    if (to == i) continue;
    memcpy(p->out + to * floats, p->out + i * floats, floats * sizeof(float));
    memcpy(p->max + to * share, p->max + i * share, share * sizeof(float));
    memcpy(p->sum + to * share, p->sum + i * share, share * sizeof(float));
  }
  join_splits(e, &q, n, p->out + first * floats, p->max + first * share, p->sum + first * share);
}

static bool by_splits(const rt_engine *e, int32_t queries) { return queries <= RT_SPLIT_UNITS && e->step.splits > 1; }

static rt_phase attention_phase(const rt_engine *e, const rt_op_attention *f, int32_t part) {
  int32_t queries = e->step.batch->n_tokens * e->groups[f->group].kv_heads;
  if (by_splits(e, queries)) return (rt_phase){part ? queries : queries * e->step.splits, 8};
  return (rt_phase){part ? 0 : queries, 8};
}

static void attention_units(rt_engine *e, const rt_op_attention *f, int32_t part, int32_t first, int32_t last, rt_scratch *s) {
  bool split = by_splits(e, e->step.batch->n_tokens * e->groups[f->group].kv_heads);
  for (int32_t u = first; u < last; u++) {
    if (part) join_parts(e, f, u);
    else if (split) attend_part(e, f, u);
    else attend(e, f, u, s);
  }
}

/* ---- NORM_ADD ---- */

static void norm_add(const rt_engine *e, const rt_op_norm_add *f, int32_t t) {
  e->k->norm_add(row_of(e, f->x, t), e->slots[f->x].width, values_of(e, f->norm), f->eps, row_of(e, f->out, t));
}

/* ---- SAMPLE ---- */

static void sample(rt_engine *e, const rt_op_sample *f, int32_t row, rt_scratch *s) {
  const rt_batch *b = e->step.batch;
  const rt_sampling *p = &b->sampling[row];
  const rt_history *h = p->history < 0 ? NULL : &e->histories[p->history];
  rt_sample_row(e->k, row_of(e, f->logits, row), e->vocab, p, h ? h->tokens : NULL, h ? h->length : 0, b->bias_ids, b->bias_values,
                b->masks, s->sample, &e->sampled[row]);
}

/* ---- the step ---- */

static rt_phase open_phase(void *self, int32_t phase) {
  rt_engine *e = self;
  rt_bound *o = &e->ops[e->step.first + phase / PHASES];
  int32_t part = phase % PHASES, tokens = e->step.batch->n_tokens;
  rt_rotation *r;
  switch (o->kind) {
    case RT_OP_EMBED:
    case RT_OP_NORM_ADD: return (rt_phase){part ? tokens : 0, 16};
    case RT_OP_SAMPLE: return (rt_phase){part ? e->step.batch->n_rows : 0, 1};
    case RT_OP_ATTENTION: return attention_phase(e, &o->f.attention, part);
    case RT_OP_ROPE_KV:
      if (part) return (rt_phase){e->step.n_runs, 4};
      r = o->f.rope_kv.rope < 0 ? NULL : &e->ropes[o->f.rope_kv.rope];
      if (!r || r->run == e->run) return (rt_phase){0, 1};
      r->run = e->run;
      return (rt_phase){tokens, 16};
    default:
      if (part) return linear_phase(e, &o->linear);
      return (rt_phase){rows_of(e, &o->linear) > RT_FUSED ? rows_of(e, &o->linear) : 0, 8};
  }
}

static void run_units(void *self, int32_t phase, int32_t first, int32_t last, int32_t thread) {
  rt_engine *e = self;
  int32_t op = e->step.first + phase / PHASES, part = phase % PHASES;
  const rt_bound *o = &e->ops[op];
  rt_scratch *s = &e->scratch[thread];
  switch (o->kind) {
    case RT_OP_EMBED: for (int32_t t = first; t < last; t++) embed(e, &o->f.embed, t, s); break;
    case RT_OP_NORM_ADD: for (int32_t t = first; t < last; t++) norm_add(e, &o->f.norm_add, t); break;
    case RT_OP_SAMPLE: for (int32_t r = first; r < last; r++) sample(e, &o->f.sample, r, s); break;
    case RT_OP_ATTENTION: attention_units(e, &o->f.attention, part, first, last, s); break;
    case RT_OP_ROPE_KV:
      for (int32_t i = first; i < last; i++)
        if (part) rope_kv(e, &o->f.rope_kv, &e->step.runs[i]);
        else turn_angles(&e->ropes[o->f.rope_kv.rope], i, e->step.tokens[i].position);
      break;
    default:
      if (part) linear_units(e, op, &o->linear, first, last, s);
      else
        for (int32_t row = first; row < last; row++) round_row(e, &o->linear, row, e->acts + (size_t)row * rt_act_bytes(o->linear.k));
  }
}

/* With the clock on, the time from one opening of a phase to the next belongs to the first one's op: everything of a phase is
 * done when the next opens, so the ops' times add up to the step's. */
static void turn_to(rt_clock *c, int32_t op) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  int64_t now = (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
  if (c->op >= 0) c->ns[c->op] += now - c->since;
  c->op = op, c->since = now;
}

static rt_phase open_timed(void *self, int32_t phase) {
  rt_engine *e = self;
  turn_to(&e->clock, e->step.first + phase / PHASES);
  return open_phase(self, phase);
}

#ifdef RT_DEBUG
static void poison(rt_engine *e) {
  for (int32_t i = 0; i < e->n_slots; i++) {
    size_t rows = (size_t)(e->slots[i].per_row ? e->limits.max_rows : e->limits.max_tokens);
    memset(e->slots[i].data, 0xff, rows * (size_t)e->slots[i].width * sizeof(float)); /* all ones is a NaN */
  }
}
#endif

rt_code rt_engine_run(rt_engine *e, const rt_batch *batch, int32_t first, int32_t last, rt_status *st) {
  st->code = RT_OK;
  e->clock.op = -1;
  if (e->clock.on) turn_to(&e->clock, e->n_ops);
  if (rt_step_begin(e, batch, first, last, st) != RT_OK) return st->code;
#ifdef RT_DEBUG
  if (first == 0) poison(e);
#endif
  e->run++;
  rt_work work = {.self = e, .phases = (last - first) * PHASES, .open = e->clock.on ? open_timed : open_phase, .units = run_units};
  rt_pool_run(e->pool, &work, st);
  if (e->clock.on) turn_to(&e->clock, -1);
  return st->code;
}
