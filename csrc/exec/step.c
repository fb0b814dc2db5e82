/* One step: ops [first, last) over the whole ragged batch.
 *
 * An op is PHASES phases of the pool; what each computes is a function of the unit alone, so neither threads nor claims show
 * in the result:
 *   EMBED      -, a unit a token; so NORM_ADD
 *   linear     norm and round a token (only beyond RT_FUSED tokens), a unit is a packed group of 16 rows times a portion of the
 *              tokens: up to RT_TOKENS of prompts and as many generated ones (rt_way)
 *   EACH_LINEAR, EXPERTS   exec/each.h;  ROUTE, ROUTED_ADD  -, a unit a token
 *   ROPE_KV, LATENT_KV     cosines and sines of a token (once a step), a unit is the tokens that go to one page
 *   ATTENTION  a unit is (KV head, tile of tokens), or (KV head, tile, split) when tokens are few and then the joining of splits;
 *              of a latent group's one KV head the query heads are taken in parts
 *   SAMPLE     -, a unit a flagged row
 *   CONV, SCAN, GATED_NORM   exec/recur.c */
#define _GNU_SOURCE
#include "exec/each.h"
#include "exec/recur.h"
#include "exec/sample.h"
#include "exec/work.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>

enum { PHASES = 3 }; /* the last is SCAN's alone */
/* ---- EMBED ---- */

static void matrix_row(const rt_engine *e, int32_t weight, int32_t row, float scale, float *out, rt_scratch *s) {
  const rt_matrix *m = &e->weights[weight];
  e->k->embed[m->format](packed_group(m, row / RT_GROUP, s), m->k, row % RT_GROUP, scale, out);
}

static void embed(const rt_engine *e, const rt_op_embed *f, int32_t t, rt_scratch *s) {
  const rt_token *token = &e->step.tokens[t];
  size_t k = (size_t)e->weights[f->weight].k;
  float *out = row_of(e, f->out, t);
  if (token->token < 0) memcpy(out, e->step.batch->embeddings + (size_t)(-1 - token->token) * k, k * sizeof *out);
  else matrix_row(e, f->weight, token->token, f->scale, out, s);
  if (f->positions < 0) return;
  matrix_row(e, f->positions, token->position, 1.0f, s->row, s);
  e->k->add_bias(out, s->row, (int)k, out);
}

/* ---- linear ops ---- */

static int32_t rows_of(const rt_engine *e, const rt_linear *l) {
  return l->flagged ? e->step.batch->n_rows : e->step.batch->n_tokens;
}

static const rt_lines *lines_of(const rt_engine *e, const rt_linear *l) { return &e->step.lines[l->flagged]; }

static void round_line(const rt_engine *e, const rt_linear *l, int32_t line, uint8_t *act) {
  const rt_lines *lines = lines_of(e, l);
  int32_t row = lines->at[line];
  const float *x = row_of(e, l->x, l->flagged ? e->step.batch->rows[row] : row);
  e->k->quantize(x, l->k, l->norm_kind, l->norm, l->norm_bias, l->eps, l->ways[line >= lines->prompts].path, act);
}

static const uint8_t *rounded(rt_engine *e, int32_t op, const rt_linear *l, rt_scratch *s) {
  int32_t rows = rows_of(e, l);
  if (rows > RT_FUSED) return e->acts;
  if (s->run != e->run || s->op != op) {
    for (int32_t i = 0; i < rows; i++) round_line(e, l, i, s->acts + (size_t)i * rt_act_bytes(l->k));
    s->run = e->run, s->op = op;
  }
  return s->acts;
}

typedef struct block { int32_t first, rows; enum rt_path path; } block; /* lines of one path */
/* Lines of one unit. Where roles differ in their path these are two blocks, which meet a group of weights one after the other, so
 * that it is read once. */
typedef struct portion { block blocks[2]; int32_t count, rows; } portion;

static portion portion_at(const rt_linear *l, const rt_lines *lines, int32_t number) {
  portion p = {.count = 0};
  int32_t ends[2] = {l->ways[0].path == l->ways[1].path ? lines->n : lines->prompts, lines->n};
  for (int32_t role = 0, begin = 0; role < 2; begin = ends[role++]) {
    int32_t first = begin + number * l->ways[role].rows, rows = least(ends[role] - first, l->ways[role].rows);
    if (rows <= 0) continue;
    p.blocks[p.count++] = (block){first, rows, l->ways[role].path};
    p.rows += rows;
  }
  return p;
}

static void finish(const rt_engine *e, const rt_linear *l, const float *bias, float *restrict y, const float *restrict y2, int32_t n,
                   float *restrict out) {
  switch (l->finish) {
    case RT_ACTIVATE:
      if (bias) e->k->add_bias(y, bias, n, y);
      e->k->gate[l->activation](y, NULL, n, out);
      return;
    case RT_ADD: e->k->add_scaled(y, bias, l->scale, n, out); return;
    case RT_GATE: e->k->gate[l->activation](y, y2, n, out); return;
    case RT_CAP: if (l->scale != 1.0f || l->softcap != 0.0f) e->k->scale_cap(y, n, l->scale, l->softcap); break;
    case RT_STORE: if (bias) { e->k->add_bias(y, bias, n, out); return; } break;
  }
  memcpy(out, y, (size_t)n * sizeof *out);
}

/* y [rows][16 * (last - first)] = groups [first, last) of m times a portion's activations. */
static void multiply_groups(const rt_engine *e, const rt_matrix *m, int32_t first, int32_t last, const uint8_t *acts,
                            const portion *p, float *restrict y, rt_scratch *s) {
  size_t ldy = (size_t)(last - first) * RT_GROUP, act_bytes = rt_act_bytes(m->k);
  for (int32_t g = first, n = m->packed ? last - first : 1; g < last; g += n) {
    const uint8_t *groups = take_groups(m, g, n, s->group, s);
    float *to = y + (g - first) * RT_GROUP;
    for (const block *b = p->blocks; b < p->blocks + p->count; to += (size_t)b++->rows * ldy)
      multiply(e, m, groups, n, acts + (size_t)b->first * act_bytes, b->rows, b->path, to, ldy);
  }
}

/* Groups [first, last) of one part times a portion of lines. */
static void linear_portion(rt_engine *e, const rt_linear *l, const struct rt_part *part, int32_t first, int32_t last,
                           const uint8_t *acts, const portion *p, rt_scratch *s) {
  int32_t ldy = (last - first) * RT_GROUP, n = least(last * RT_GROUP, part->matrix->rows) - first * RT_GROUP;
  float *y = s->y, *y2 = s->y2;
  multiply_groups(e, part->matrix, first, last, acts, p, y, s);
  if (l->up) multiply_groups(e, l->up, first, last, acts, p, y2, s);
  for (const block *b = p->blocks; b < p->blocks + p->count; b++)
    for (int32_t i = b->first; i < b->first + b->rows; i++, y += ldy, y2 += ldy)
      finish(e, l, part->bias ? part->bias + first * RT_GROUP : NULL, y, y2, n,
             row_of(e, l->out, lines_of(e, l)->at[i]) + part->offset + first * RT_GROUP);
}

/* Units run over groups first, then over portions of lines. */
static void linear_units(rt_engine *e, int32_t op, const rt_linear *l, int32_t first, int32_t last, rt_scratch *s) {
  const uint8_t *acts = rounded(e, op, l, s);
  for (int32_t u = first; u < last;) {
    portion p = portion_at(l, lines_of(e, l), u / l->groups);
    int32_t group = u % l->groups;
    const struct rt_part *part = &l->parts[l->n_parts - 1];
    while (part->first_group > group) part--;
    int32_t end = least(part->first_group + part->matrix->groups, group + last - u);
    end = least(end, group + RT_LINE_FLOATS / (RT_GROUP * p.rows));
    linear_portion(e, l, part, group - part->first_group, end - part->first_group, acts, &p, s);
    u += end - group;
  }
}

static rt_phase linear_phase(const rt_engine *e, const rt_linear *l) {
  int32_t rows = rows_of(e, l), portions = 0;
  while (portion_at(l, lines_of(e, l), portions).count) portions++;
  int64_t bytes = (int64_t)l->parts[0].matrix->group_bytes * (l->up ? 2 : 1);
  return (rt_phase){portions * l->groups, most_of(CLAIM_BYTES, bytes * least(rows, RT_TOKENS) / 4 + bytes)};
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

/* ---- LATENT_KV ---- */

static void turn(const rt_engine *e, int32_t rope, float *x, int32_t dims, int32_t t) {
  const rt_rotation *r = &e->ropes[rope];
  size_t at = (size_t)t * (size_t)r->pairs;
  e->k->rope_head(x, dims, NULL, 0.0f, r->cos + at, r->sin + at, r->pairs, r->interleaved);
}

static void latent_kv(rt_engine *e, const rt_op_latent_kv *f, const rt_run *run, rt_scratch *s) {
  const rt_cache *c = &e->groups[f->group];
  const rt_block *block = &e->step.blocks[f->group][run->block];
  uint8_t *page = c->memory.base + (size_t)block->page * c->page_bytes + (size_t)f->layer * c->layer_bytes;
  int32_t turned = c->head_dim - c->value_dim, q_stride = e->slots[f->q].width / f->heads;
  for (int32_t t = run->token; t < run->token + run->count; t++) {
    float *row = s->y, *q = row_of(e, f->q, t) + q_stride - turned, *out = row_of(e, f->out, t) + c->value_dim;
    memcpy(row, row_of(e, f->kv, t), (size_t)c->head_dim * sizeof *row);
    e->k->rope_head(row, c->value_dim, values_of(e, f->norm), f->eps, NULL, NULL, 0, 0);
    turn(e, f->rope, row + c->value_dim, turned, t);
    e->k->store_v[c->k_format](row, c->head_dim, run->slot + t - run->token, page);
    for (int32_t h = 0; h < f->heads; h++, q += q_stride, out += c->head_dim) {
      memcpy(out, q, (size_t)turned * sizeof *out);
      turn(e, f->rope, out, turned, t);
    }
  }
}

/* ---- ATTENTION ---- */

/* A tile's tokens, one KV head or some heads of a latent group: `rows` query rows, `width` floats a row of a partial, `floats` a
 * token's query, `values` its result. */
typedef struct query {
  const rt_op_attention *f;
  const rt_cache *c;
  const rt_tile *tile;
  int32_t head, share, rows, width, floats, values, splits;
} query;

/* How many units the heads of a token make. */
static int32_t heads_apart(const rt_engine *e, const rt_op_attention *f) {
  return f->heads / rt_share_of(&e->groups[f->group], f->heads);
}

static query query_of(const rt_engine *e, const rt_op_attention *f, int32_t unit) {
  const rt_cache *c = &e->groups[f->group];
  const rt_tile *tile = &e->step.tiles[unit % e->step.n_tiles];
  int32_t share = rt_share_of(c, f->heads);
  int32_t blocks = e->step.block_starts[tile->sequence + 1] - e->step.block_starts[tile->sequence];
  return (query){f, c, tile, unit / e->step.n_tiles, share, share * tile->count, rt_attention_width(c->head_dim), share * c->head_dim,
                 share * c->value_dim, (blocks + RT_SPLIT - 1) / RT_SPLIT};
}

_Static_assert(RT_SPLIT <= RT_SPAN_PAGES && RT_SPLIT % 2 == 0, "a split is what attention_bf16 takes");

/* What the tile sees of one split. */
static void attend_split(const rt_engine *e, const query *q, int32_t split, rt_partials to, rt_scratch *s) {
  const rt_step *step = &e->step;
  const rt_tile *tile = q->tile;
  bool latent = q->c->kind == RT_LATENT;
  const uint8_t *k = q->c->memory.base + (size_t)q->f->layer * q->c->layer_bytes;
  k += latent ? 0 : (size_t)q->head * q->c->head_bytes;
  int32_t blocks = step->block_starts[tile->sequence + 1] - step->block_starts[tile->sequence], first = split * RT_SPLIT;
  struct rt_attention_args args = {
      .q = row_of(e, q->f->qkv, tile->token) + (size_t)q->head * (size_t)q->floats, .queries = step->queries + tile->token, .k = k,
      .v = latent ? NULL : k + q->c->k_bytes, .blocks = step->blocks[q->f->group] + step->block_starts[tile->sequence] + first,
      .out = to.out, .max = to.max, .sum = to.sum, .q_stride = (size_t)e->slots[q->f->qkv].width, .k_stride = q->c->page_bytes,
      .v_stride = q->c->page_bytes, .n_blocks = least(blocks - first, RT_SPLIT),
      .more = blocks - first - least(blocks - first, RT_SPLIT), .first_block = first, .fresh = tile->fresh,
      .tokens = tile->count, .share = q->share, .head_dim = q->c->head_dim, .window = q->f->window, .k_format = q->c->k_format,
      .v_format = q->c->v_format, .scale = q->f->scale, .softcap = q->f->softcap};
  if (tile->path == RT_PATH_BF16 && !latent) e->k->attention_bf16(&args, s->pages);
  else if (tile->count == 1 && !latent) e->k->attention(&args);
  else e->k->attention_tile(&args, s->pages);
}

static void start_rows(const rt_engine *e, const query *q, rt_scratch *s) {
  const float *sinks = values_of(e, q->f->sinks);
  for (int32_t i = 0; i < q->tile->count; i++)
    memset(row_of(e, q->f->out, q->tile->token + i) + (size_t)q->head * (size_t)q->values, 0, (size_t)q->values * sizeof(float));
  memset(s->total, 0, (size_t)q->rows * 16 * sizeof(float));
  for (int32_t r = 0; r < q->rows; r++) {
    s->top[r] = sinks ? sinks[q->head * q->share + r % q->share] : -FLT_MAX;
    if (sinks) s->total[r * 16] = 1.0f;
  }
}

static void join_split(const rt_engine *e, const query *q, rt_partials p, rt_scratch *s) {
  int32_t at_once = q->values == q->floats ? q->share : 1; /* a latent row of a partial is longer than its result */
  for (int32_t i = 0; i < q->rows; i += at_once) {
    float *out = row_of(e, q->f->out, q->tile->token + i / q->share) + (size_t)q->head * (size_t)q->values;
    e->k->attention_join(at_once, q->c->value_dim, p.out + (size_t)i * (size_t)q->width, p.max + i, p.sum + i * 16, s->top + i,
                         s->total + i * 16, out + (size_t)(i % q->share) * (size_t)q->c->value_dim);
  }
}

static void end_rows(const rt_engine *e, const query *q, const rt_scratch *s) {
  for (int32_t i = 0; i < q->tile->count; i++)
    e->k->attention_end(q->share, q->c->value_dim, s->total + (size_t)(i * q->share) * 16,
                        row_of(e, q->f->out, q->tile->token + i) + (size_t)q->head * (size_t)q->values);
}

static void attend(const rt_engine *e, const rt_op_attention *f, int32_t unit, rt_scratch *s) {
  query q = query_of(e, f, unit);
  start_rows(e, &q, s);
  for (int32_t i = 0; i < q.splits; i++) {
    attend_split(e, &q, i, s->partials, s);
    join_split(e, &q, s->partials, s);
  }
  end_rows(e, &q, s);
}

/* Splits as units of their own: those of a (KV head, tile) lie side by side in the engine's memory. */
static rt_partials part_of(const rt_engine *e, const query *q, int32_t split) {
  size_t pair = (size_t)q->head * (size_t)e->step.batch->n_tokens + (size_t)q->tile->token;
  size_t row = pair * (size_t)(q->share * e->step.splits) + (size_t)split * (size_t)q->rows;
  return (rt_partials){e->partials.out + row * (size_t)q->width, e->partials.max + row, e->partials.sum + row * 16};
}

static void attend_part(const rt_engine *e, const rt_op_attention *f, int32_t unit, rt_scratch *s) {
  query q = query_of(e, f, unit / e->step.splits);
  if (unit % e->step.splits < q.splits) attend_split(e, &q, unit % e->step.splits, part_of(e, &q, unit % e->step.splits), s);
}

static void join_parts(const rt_engine *e, const rt_op_attention *f, int32_t unit, rt_scratch *s) {
  query q = query_of(e, f, unit);
  start_rows(e, &q, s);
  for (int32_t i = 0; i < q.splits; i++) join_split(e, &q, part_of(e, &q, i), s);
  end_rows(e, &q, s);
}

static bool by_splits(const rt_engine *e, const rt_op_attention *f) {
  return e->step.batch->n_tokens * heads_apart(e, f) <= RT_SPLIT_UNITS && e->step.splits > 1;
}

static rt_phase attention_phase(const rt_engine *e, const rt_op_attention *f, int32_t part) {
  int32_t units = e->step.n_tiles * heads_apart(e, f), claim = e->step.n_tiles < e->step.batch->n_tokens ? 1 : 8;
  if (by_splits(e, f)) return (rt_phase){part ? units : units * e->step.splits, claim};
  return (rt_phase){part ? 0 : units, claim};
}

static void attention_units(rt_engine *e, const rt_op_attention *f, int32_t part, int32_t first, int32_t last, rt_scratch *s) {
  bool split = by_splits(e, f);
  for (int32_t u = first; u < last; u++) {
    if (part) join_parts(e, f, u, s);
    else if (split) attend_part(e, f, u, s);
    else attend(e, f, u, s);
  }
}

/* ---- NORM_ADD ---- */

static void norm_add(const rt_engine *e, const rt_op_norm_add *f, int32_t t) {
  e->k->norm_add(row_of(e, f->x, t), e->slots[f->x].width, values_of(e, f->norm), f->eps, row_of(e, f->out, t));
}

/* ---- ROUTE, ROUTED_ADD ---- */

static void route(const rt_engine *e, const rt_op_route *f, int32_t t, rt_scratch *s) {
  rt_route(row_of(e, f->logits, t), values_of(e, f->bias), f, e->slots[f->logits].width, (double *)s->y, row_of(e, f->out, t));
}

static void routed_add(const rt_engine *e, const rt_op_routed_add *f, int32_t t) {
  const float *x = row_of(e, f->x, t), *weights = row_of(e, f->routes, t) + f->parts;
  int32_t width = e->slots[f->out].width;
  for (int32_t j = 0; j < f->parts; j++, x += width) e->k->add_scaled(x, NULL, weights[j], width, row_of(e, f->out, t));
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

/* ROPE_KV's and LATENT_KV's: the angles of every token, once a step. */
static rt_phase angles_phase(rt_engine *e, int32_t rope) {
  rt_rotation *r = rope < 0 ? NULL : &e->ropes[rope];
  if (!r || r->run == e->run) return (rt_phase){0, 1};
  r->run = e->run;
  return (rt_phase){e->step.batch->n_tokens, 16};
}

static rt_phase open_phase(void *self, int32_t phase) {
  rt_engine *e = self;
  rt_bound *o = &e->ops[e->step.first + phase / PHASES];
  int32_t part = phase % PHASES, tokens = e->step.batch->n_tokens;
  if (part == PHASES - 1 && o->kind != RT_OP_SCAN) return (rt_phase){0, 1};
  switch (o->kind) {
    case RT_OP_EMBED:
    case RT_OP_ROUTE:
    case RT_OP_ROUTED_ADD:
    case RT_OP_NORM_ADD: return (rt_phase){part ? tokens : 0, 16};
    case RT_OP_SAMPLE: return (rt_phase){part ? e->step.batch->n_rows : 0, 1};
    case RT_OP_ATTENTION: return attention_phase(e, &o->f.attention, part);
    case RT_OP_CONV: return part ? rt_conv_phase(e, &o->f.conv) : (rt_phase){0, 1};
    case RT_OP_SCAN: return rt_scan_phase(e, &o->f.scan, part);
    case RT_OP_GATED_NORM: return (rt_phase){part ? tokens : 0, 4};
    case RT_OP_EACH_LINEAR:
    case RT_OP_EXPERTS: return rt_each_open(e, &o->each, part);
    case RT_OP_ROPE_KV: return part ? (rt_phase){e->step.n_runs, 4} : angles_phase(e, o->f.rope_kv.rope);
    case RT_OP_LATENT_KV: return part ? (rt_phase){e->step.n_runs, 4} : angles_phase(e, o->f.latent_kv.rope);
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
    case RT_OP_ROUTE: for (int32_t t = first; t < last; t++) route(e, &o->f.route, t, s); break;
    case RT_OP_ROUTED_ADD: for (int32_t t = first; t < last; t++) routed_add(e, &o->f.routed_add, t); break;
    case RT_OP_EACH_LINEAR:
    case RT_OP_EXPERTS: rt_each_units(e, &o->each, part, first, last, s); break;
    case RT_OP_LATENT_KV:
      for (int32_t i = first; i < last; i++)
        if (part) latent_kv(e, &o->f.latent_kv, &e->step.runs[i], s);
        else turn_angles(&e->ropes[o->f.latent_kv.rope], i, e->step.tokens[i].position);
      break;
    case RT_OP_SAMPLE: for (int32_t r = first; r < last; r++) sample(e, &o->f.sample, r, s); break;
    case RT_OP_ATTENTION: attention_units(e, &o->f.attention, part, first, last, s); break;
    case RT_OP_CONV: for (int32_t u = first; u < last; u++) rt_conv_unit(e, &o->f.conv, u); break;
    case RT_OP_SCAN:
      for (int32_t u = first; u < last; u++)
        if (part == 0) rt_scan_token(e, &o->f.scan, u);
        else if (part == 1) rt_scan_head(e, &o->f.scan, u);
        else rt_scan_keep(e, &o->f.scan, u);
      break;
    case RT_OP_GATED_NORM: for (int32_t t = first; t < last; t++) rt_gated_norm_row(e, &o->f.gated_norm, t); break;
    case RT_OP_ROPE_KV:
      for (int32_t i = first; i < last; i++)
        if (part) rope_kv(e, &o->f.rope_kv, &e->step.runs[i]);
        else turn_angles(&e->ropes[o->f.rope_kv.rope], i, e->step.tokens[i].position);
      break;
    default:
      if (part) linear_units(e, op, &o->linear, first, last, s);
      else
        for (int32_t i = first; i < last; i++) round_line(e, &o->linear, i, e->acts + (size_t)i * rt_act_bytes(o->linear.k));
  }
}

/* With the clock on, the time from one opening of a phase to the next belongs to the first one's op, and so do the weights that
 * threads took meanwhile: everything of a phase is done when the next opens, so the ops' times add up to the step's. */
static void turn_to(rt_engine *e, int32_t op) {
  rt_clock *c = &e->clock;
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  int64_t now = (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
  if (c->op >= 0) c->ns[c->op] += now - c->since;
  for (int32_t i = 0; i < e->limits.threads; i++) {
    if (c->op >= 0) c->read[c->op] += *e->scratch[i].read;
    *e->scratch[i].read = 0;
  }
  c->op = op, c->since = now;
}

static rt_phase open_timed(void *self, int32_t phase) {
  rt_engine *e = self;
  turn_to(e, e->step.first + phase / PHASES);
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
  if (e->clock.on) turn_to(e, e->n_ops);
  if (rt_step_begin(e, batch, first, last, st) != RT_OK) return st->code;
#ifdef RT_DEBUG
  if (first == 0) poison(e);
#endif
  e->run++;
  rt_work work = {.self = e, .phases = (last - first) * PHASES, .open = e->clock.on ? open_timed : open_phase, .units = run_units};
  rt_pool_run(e->pool, &work, st);
  if (e->clock.on) turn_to(e, -1);
  return st->code;
}
