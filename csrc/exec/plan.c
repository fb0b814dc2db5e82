/* Binding: every index, shape, format, group, rope and width of a plan is proven here, once, so that a step on a checked batch
 * cannot read or write outside. Everything is copied but the bytes of the weights. */
#include "base/checked.h"
#include "exec/engine.h"
#include "exec/sample.h"
#include "exec/work.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum {
  OPS_MOST = 1 << 16, SLOTS_MOST = 1 << 12, WEIGHTS_MOST = 1 << 18, GROUPS_MOST = 64, ROPES_MOST = 64, ROWS_MOST = 1 << 22,
  TOKENS_MOST = 1 << 16, HISTORIES_MOST = 1 << 20, LAYERS_MOST = 1 << 12, HEADS_MOST = 1 << 12, HEAD_DIM_MOST = 1 << 12,
  PAGES_MOST = 1 << 24, STATE_MOST = 1 << 28, CHANNELS_MOST = 1 << 20
};

typedef struct binding {
  rt_engine *e;
  const rt_plan *plan;
  rt_status *st;
  int32_t op;
} binding;

/* ---- messages ---- */

static bool range(rt_status *st, const char *what, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return true;
  rt_fail(st, RT_INVALID, "%s is %lld; it must be a whole number, %lld to %lld", what, (long long)value, (long long)low,
          (long long)high);
  return false;
}

__attribute__((format(printf, 2, 3))) static bool refuse(const binding *b, const char *format, ...) {
  char what[320];
  va_list args;
  va_start(args, format);
  vsnprintf(what, sizeof what, format, args);
  va_end(args);
  rt_fail(b->st, RT_BAD_FILE, "op %d (%s): %s", b->op, rt_op_table[b->plan->ops[b->op].kind].name, what);
  return false;
}

static bool finite_field(const binding *b, const char *field, float value) {
  return isfinite(value) || refuse(b, "%s is not a finite number", field);
}

/* ---- one operand each ---- */

static bool slot_index(const binding *b, const char *field, int32_t slot, int32_t per_row) {
  if (slot < 0 || slot >= b->e->n_slots) return refuse(b, "%s is slot %d; the plan has %d", field, slot, b->e->n_slots);
  if (b->e->slots[slot].per_row != per_row)
    return refuse(b, "%s is slot %d, which has a row for each %s", field, slot, per_row ? "token" : "flagged row");
  return true;
}

static bool slot_of(const binding *b, const char *field, int32_t slot, int64_t width, int32_t per_row) {
  if (!slot_index(b, field, slot, per_row)) return false;
  if (b->e->slots[slot].width != width)
    return refuse(b, "%s is slot %d, %d wide; %lld is needed", field, slot, b->e->slots[slot].width, (long long)width);
  return true;
}

static const rt_matrix *matrix_of(const binding *b, const char *field, int32_t weight, int32_t k) {
  if (weight < 0 || weight >= b->e->n_weights) {
    refuse(b, "%s is weight %d; the plan has %d", field, weight, b->e->n_weights);
    return NULL;
  }
  const rt_matrix *m = &b->e->weights[weight];
  if (m->k == 0) refuse(b, "%s is weight %d, a vector; a matrix is needed", field, weight);
  else if (m->k != k) refuse(b, "%s is weight %d, k = %d; %d is needed", field, weight, m->k, k);
  else if (!b->e->k->linear[RT_PATH_A16][m->format] || !b->e->k->embed[m->format])
    refuse(b, "%s is weight %d in %s, which instruction set %s cannot multiply", field, weight,
           rt_format_table[m->format].name, b->e->k->name);
  else return m;
  return NULL;
}

/* true with *out NULL when the weight is none and may be. */
static bool vector_of(const binding *b, const char *field, int32_t weight, int32_t n, bool needed, const float **out) {
  *out = NULL;
  if (weight == -1 && !needed) return true;
  if (weight < 0 || weight >= b->e->n_weights) return refuse(b, "%s is weight %d; the plan has %d", field, weight, b->e->n_weights);
  const rt_matrix *m = &b->e->weights[weight];
  if (m->k != 0) return refuse(b, "%s is weight %d, a matrix; a vector is needed", field, weight);
  if (m->rows != n) return refuse(b, "%s is weight %d with %d numbers; %d are needed", field, weight, m->rows, n);
  *out = m->values;
  return true;
}

/* ---- ops ---- */

static bool add_part(const binding *b, rt_linear *l, const char *field, int32_t weight, const char *bias_field, int32_t bias,
                     int32_t *width) {
  const rt_matrix *m = matrix_of(b, field, weight, l->k);
  const float *values;
  if (!m || !vector_of(b, bias_field, bias, m->rows, false, &values)) return false;
  if (*width > ROWS_MOST - m->rows) return refuse(b, "more than %d outputs", ROWS_MOST);
  l->parts[l->n_parts++] = (struct rt_part){.matrix = m, .bias = values, .first_group = l->groups, .offset = *width};
  l->groups += m->groups;
  *width += m->rows;
  return true;
}

static bool input_of(const binding *b, rt_linear *l, int32_t x, int32_t out) {
  if (!slot_index(b, "x", x, 0)) return false;
  if (x == out) return refuse(b, "it reads and writes slot %d", x);
  l->x = x, l->out = out, l->k = b->e->slots[x].width;
  return true;
}

static bool bind_embed(const binding *b, rt_bound *o) {
  const rt_op_embed *f = &o->f.embed;
  if (!slot_index(b, "out", f->out, 0) || !finite_field(b, "scale", f->scale)) return false;
  const rt_matrix *m = matrix_of(b, "weight", f->weight, b->e->slots[f->out].width);
  if (!m) return false;
  if (m->rows < b->e->vocab) return refuse(b, "weight has %d rows; the vocabulary has %d tokens", m->rows, b->e->vocab);
  if (m->k != b->e->width) return refuse(b, "rows are %d wide; the plan says %d", m->k, b->e->width);
  if (f->positions == -1) return true;
  const rt_matrix *p = matrix_of(b, "positions", f->positions, m->k);
  if (p && p->rows <= b->e->last_position) b->e->last_position = p->rows - 1;
  return p != NULL;
}

/* A norm of l's input. */
static bool norm_of(const binding *b, rt_linear *l, int32_t kind, int32_t norm, int32_t norm_bias) {
  if (kind != 0 && kind != 1) return refuse(b, "norm_kind is %d; it must be 0 or 1", kind);
  l->norm_kind = kind;
  return vector_of(b, "norm", norm, l->k, true, &l->norm) && vector_of(b, "norm_bias", norm_bias, l->k, false, &l->norm_bias);
}

static bool activation_of(const binding *b, rt_linear *l, int32_t activation, int32_t low) {
  l->activation = activation;
  return (activation >= low && activation <= 2) || refuse(b, "activation is %d; it must be %d to 2", activation, low);
}

static bool bind_norm_linear(const binding *b, rt_bound *o) {
  const rt_op_norm_linear *f = &o->f.norm_linear;
  rt_linear *l = &o->linear;
  const char *const names[2][3] = {{"w0", "w1", "w2"}, {"b0", "b1", "b2"}};
  const int32_t weights[3] = {f->w0, f->w1, f->w2}, biases[3] = {f->b0, f->b1, f->b2};
  int32_t width = 0;
  *l = (rt_linear){.finish = f->activation == -1 ? RT_STORE : RT_ACTIVATE, .eps = f->eps};
  if (!input_of(b, l, f->x, f->out) || !finite_field(b, "eps", f->eps) || !norm_of(b, l, f->norm_kind, f->norm, f->norm_bias) ||
      !activation_of(b, l, f->activation, -1))
    return false;
  for (int i = 0; i < 3; i++)
    if ((i == 0 || weights[i] != -1) && !add_part(b, l, names[0][i], weights[i], names[1][i], biases[i], &width)) return false;
  return slot_of(b, "out", f->out, width, 0);
}

static bool bind_plain(const binding *b, rt_bound *o, enum rt_finish finish, int32_t x, int32_t out, int32_t weight, int32_t bias,
                       float scale) {
  int32_t width = 0;
  o->linear = (rt_linear){.finish = finish, .scale = scale};
  return input_of(b, &o->linear, x, out) && finite_field(b, "scale", scale) &&
         add_part(b, &o->linear, "weight", weight, "bias", bias, &width) && slot_of(b, "out", out, width, 0);
}

static bool bind_norm_add(const binding *b, rt_bound *o) {
  const rt_op_norm_add *f = &o->f.norm_add;
  const float *norm;
  if (!slot_index(b, "x", f->x, 0) || !slot_of(b, "out", f->out, b->e->slots[f->x].width, 0)) return false;
  if (f->x == f->out) return refuse(b, "it reads and writes slot %d", f->x);
  return vector_of(b, "norm", f->norm, b->e->slots[f->x].width, true, &norm) && finite_field(b, "eps", f->eps);
}

static bool bind_gated(const binding *b, rt_bound *o) {
  const rt_op_gated *f = &o->f.gated;
  rt_linear *l = &o->linear;
  int32_t width = 0;
  *l = (rt_linear){.finish = RT_GATE, .eps = f->eps};
  if (!activation_of(b, l, f->activation, 0) || !input_of(b, l, f->x, f->out) || !finite_field(b, "eps", f->eps)) return false;
  if (!vector_of(b, "norm", f->norm, l->k, false, &l->norm) || !add_part(b, l, "gate", f->gate, "bias", -1, &width)) return false;
  if (!(l->up = matrix_of(b, "up", f->up, l->k))) return false;
  if (l->up->rows != width) return refuse(b, "gate has %d rows and up %d; they must agree", width, l->up->rows);
  return slot_of(b, "out", f->out, width, 0);
}

static bool bind_logits(const binding *b, rt_bound *o) {
  const rt_op_logits *f = &o->f.logits;
  rt_linear *l = &o->linear;
  int32_t width = 0;
  *l = (rt_linear){.finish = RT_CAP, .flagged = 1, .eps = f->eps, .scale = f->scale, .softcap = f->softcap};
  if (!input_of(b, l, f->x, f->out) || !finite_field(b, "eps", f->eps) || !finite_field(b, "scale", f->scale) ||
      !finite_field(b, "softcap", f->softcap) || !norm_of(b, l, f->norm_kind, f->norm, f->norm_bias) ||
      !add_part(b, l, "weight", f->weight, "bias", -1, &width))
    return false;
  return slot_of(b, "out", f->out, width, 1);
}

static const rt_cache *cache_of(const binding *b, int32_t group, int32_t layer, int32_t heads) {
  if (group < 0 || group >= b->e->n_groups) {
    refuse(b, "group is %d; the plan has %d", group, b->e->n_groups);
    return NULL;
  }
  const rt_cache *c = &b->e->groups[group];
  if (layer < 0 || layer >= c->layers) refuse(b, "layer is %d; its cache group has %d", layer, c->layers);
  else if (c->kind == RT_STATE) refuse(b, "group is %d, a state; K and V need pages", group);
  else if (heads < 1 || heads > HEADS_MOST || heads % c->kv_heads)
    refuse(b, "heads is %d; it must be 1 to %d, a multiple of %d key-value heads", heads, HEADS_MOST, c->kv_heads);
  else return c;
  return NULL;
}

static bool bind_rope_kv(const binding *b, rt_bound *o) {
  const rt_op_rope_kv *f = &o->f.rope_kv;
  const rt_cache *c = cache_of(b, f->group, f->layer, f->heads);
  const float *norm;
  if (!c || !slot_of(b, "qkv", f->qkv, ((int64_t)f->heads + 2 * c->kv_heads) * c->head_dim, 0) || !finite_field(b, "eps", f->eps))
    return false;
  if (c->kind != RT_PAGED) return refuse(b, "its cache group keeps no K and V apart");
  if (!vector_of(b, "q_norm", f->q_norm, c->head_dim, false, &norm) || !vector_of(b, "k_norm", f->k_norm, c->head_dim, false, &norm))
    return false;
  if (f->rope < -1 || f->rope >= b->e->n_ropes) return refuse(b, "rope is %d; the plan has %d", f->rope, b->e->n_ropes);
  if (f->rope >= 0 && 2 * b->e->ropes[f->rope].pairs > c->head_dim)
    return refuse(b, "rope %d turns %d pairs; a head has %d numbers", f->rope, b->e->ropes[f->rope].pairs, c->head_dim);
  return true;
}

static bool bind_latent_kv(const binding *b, rt_bound *o) {
  const rt_op_latent_kv *f = &o->f.latent_kv;
  const rt_cache *c = cache_of(b, f->group, f->layer, f->heads);
  const float *norm;
  if (!c) return false;
  if (c->kind != RT_LATENT) return refuse(b, "its cache group keeps no latent rows");
  int32_t turned = c->head_dim - c->value_dim;
  if (!slot_of(b, "kv", f->kv, c->head_dim, 0) || !slot_of(b, "out", f->out, (int64_t)f->heads * c->head_dim, 0) ||
      !slot_index(b, "q", f->q, 0) || !vector_of(b, "norm", f->norm, c->value_dim, true, &norm) || !finite_field(b, "eps", f->eps))
    return false;
  if (f->out == f->kv || f->out == f->q) return refuse(b, "it reads and writes slot %d", f->out);
  if (b->e->slots[f->q].width % f->heads || b->e->slots[f->q].width / f->heads < turned)
    return refuse(b, "q is slot %d, %d wide; %d heads of at least %d are needed", f->q, b->e->slots[f->q].width, f->heads, turned);
  if (f->rope < 0 || f->rope >= b->e->n_ropes) return refuse(b, "rope is %d; the plan has %d", f->rope, b->e->n_ropes);
  if (2 * b->e->ropes[f->rope].pairs > turned)
    return refuse(b, "rope %d turns %d pairs; a head has %d numbers to turn", f->rope, b->e->ropes[f->rope].pairs, turned);
  return true;
}

/* `of` matrices, one behind the other in a weight of k columns, each of whole packed groups: rows of one, 0 when it is none. */
static int32_t stack_of(const binding *b, const char *field, int32_t weight, int32_t k, int32_t of, const rt_matrix **out) {
  const rt_matrix *m = *out = matrix_of(b, field, weight, k);
  if (!m) return 0;
  if (m->rows % of || m->rows / of % RT_GROUP) {
    refuse(b, "%s is weight %d with %d rows; %d matrices of whole groups of %d are needed", field, weight, m->rows, of, RT_GROUP);
    return 0;
  }
  return m->rows / of;
}

/* What EACH_LINEAR and EXPERTS share. Pairs and units of a step fit their type: TOKENS_MOST * RT_EXPERTS pairs, and ROWS_MOST
 * leaves RT_PATHS * 2^18 units, as each is a group of 16 rows on one path. */
static bool each_of(const binding *b, rt_each *l) {
  if (l->of < 1 || l->of > RT_EXPERTS) return refuse(b, "of is %d; it must be 1 to %d", l->of, RT_EXPERTS);
  if (l->parts < 1 || l->parts > l->of) return refuse(b, "parts is %d; it must be 1 to %d", l->parts, l->of);
  if (l->routes != -1 && !slot_of(b, "routes", l->routes, 2 * (int64_t)l->parts, 0)) return false;
  if (l->routes == -1 && l->parts != l->of) return refuse(b, "without routes a token meets %d matrices, not %d", l->of, l->parts);
  if (!slot_index(b, "x", l->x, 0) || !slot_index(b, "out", l->out, 0)) return false;
  if (l->x == l->out || l->out == l->routes) return refuse(b, "it reads and writes slot %d", l->out);
  if (b->e->slots[l->out].width % l->parts)
    return refuse(b, "out is slot %d, %d wide; it must be a multiple of %d", l->out, b->e->slots[l->out].width, l->parts);
  l->out_stride = b->e->slots[l->out].width / l->parts;
  return true;
}

static bool bind_each_linear(const binding *b, rt_bound *o) {
  const rt_op_each_linear *f = &o->f.each_linear;
  rt_each *l = &o->each;
  *l = (rt_each){.x = f->x, .out = f->out, .routes = f->routes, .parts = f->parts, .of = f->of};
  if (!each_of(b, l)) return false;
  if (f->weight >= 0 && f->weight < b->e->n_weights) l->k = b->e->weights[f->weight].k;
  int32_t rows = stack_of(b, "weight", f->weight, l->k, l->of, &l->matrix);
  if (rows == 0) return false;
  l->groups = rows / RT_GROUP;
  if (b->e->slots[f->x].width % l->parts || (l->x_stride = b->e->slots[f->x].width / l->parts) < l->k)
    return refuse(b, "x is slot %d, %d wide; %d parts of at least %d are needed", f->x, b->e->slots[f->x].width, l->parts, l->k);
  if (l->out_stride < rows)
    return refuse(b, "out is slot %d, %d wide; %d parts of at least %d are needed", f->out, b->e->slots[f->out].width, l->parts,
                  rows);
  return true;
}

static bool bind_experts(const binding *b, rt_bound *o) {
  const rt_op_experts *f = &o->f.experts;
  rt_each *l = &o->each;
  *l = (rt_each){.x = f->x, .out = f->out, .routes = f->routes, .parts = f->parts, .of = f->of, .activation = f->activation,
                 .eps = f->eps};
  if (f->activation < 0 || f->activation > 2) return refuse(b, "activation is %d; it must be 0 to 2", f->activation);
  if (!each_of(b, l) || !finite_field(b, "eps", f->eps)) return false;
  l->k = b->e->slots[f->x].width;
  if (!vector_of(b, "norm", f->norm, l->k, false, &l->norm)) return false;
  int32_t rows = stack_of(b, "gate", f->gate, l->k, l->of, &l->matrix), ups = 0;
  if (rows == 0 || (ups = stack_of(b, "up", f->up, l->k, l->of, &l->up)) == 0) return false;
  if (rows != ups) return refuse(b, "gate has %d rows and up %d; they must agree", rows, ups);
  l->groups = rows / RT_GROUP;
  if (l->out_stride != rows)
    return refuse(b, "out is slot %d, %d wide; %d parts of %d are needed", f->out, b->e->slots[f->out].width, l->parts, rows);
  return true;
}

static bool bind_route(const binding *b, rt_bound *o) {
  const rt_op_route *f = &o->f.route;
  const float *bias;
  if (!slot_index(b, "logits", f->logits, 0)) return false;
  int32_t experts = b->e->slots[f->logits].width;
  if (experts > RT_EXPERTS) return refuse(b, "logits is %d wide; %d experts are the most", experts, RT_EXPERTS);
  if (f->scoring < 0 || f->scoring >= RT_SCORINGS) return refuse(b, "scoring is %d; it must be 0 or 1", f->scoring);
  if (f->normalize < 0 || f->normalize > 1) return refuse(b, "normalize is %d; it must be 0 or 1", f->normalize);
  if (f->groups < 1 || f->groups > experts || experts % f->groups)
    return refuse(b, "groups is %d; %d experts do not divide evenly over it", f->groups, experts);
  if (f->groups_kept < 1 || f->groups_kept > f->groups)
    return refuse(b, "groups_kept is %d; it must be 1 to %d", f->groups_kept, f->groups);
  if (f->group_best < 1 || f->group_best > experts / f->groups)
    return refuse(b, "group_best is %d; it must be 1 to %d", f->group_best, experts / f->groups);
  if (f->top_k < 1 || f->top_k > experts / f->groups * f->groups_kept)
    return refuse(b, "top_k is %d; it must be 1 to %d", f->top_k, experts / f->groups * f->groups_kept);
  if (f->logits == f->out) return refuse(b, "it reads and writes slot %d", f->out);
  return slot_of(b, "out", f->out, 2 * (int64_t)f->top_k, 0) && vector_of(b, "bias", f->bias, experts, false, &bias) &&
         finite_field(b, "scale", f->scale);
}

static bool bind_routed_add(const binding *b, rt_bound *o) {
  const rt_op_routed_add *f = &o->f.routed_add;
  if (f->parts < 1 || f->parts > RT_EXPERTS) return refuse(b, "parts is %d; it must be 1 to %d", f->parts, RT_EXPERTS);
  if (!slot_index(b, "out", f->out, 0) || !slot_of(b, "x", f->x, (int64_t)b->e->slots[f->out].width * f->parts, 0)) return false;
  if (f->x == f->out || f->routes == f->out) return refuse(b, "it reads and writes slot %d", f->out);
  return slot_of(b, "routes", f->routes, 2 * (int64_t)f->parts, 0);
}

static bool bind_attention(const binding *b, rt_bound *o) {
  const rt_op_attention *f = &o->f.attention;
  const rt_cache *c = cache_of(b, f->group, f->layer, f->heads);
  const float *sinks;
  int64_t beside = c && c->kind == RT_PAGED ? 2 * c->kv_heads : 0; /* a latent group's slot holds q alone */
  if (!c || !slot_of(b, "qkv", f->qkv, (f->heads + beside) * c->head_dim, 0) ||
      !slot_of(b, "out", f->out, (int64_t)f->heads * c->value_dim, 0) ||
      !vector_of(b, "sinks", f->sinks, f->heads, false, &sinks) || !finite_field(b, "scale", f->scale) || !finite_field(b, "softcap", f->softcap))
    return false;
  if (f->qkv == f->out) return refuse(b, "it reads and writes slot %d", f->out);
  if (f->window < 0) return refuse(b, "window is %d; it must be 0 or more", f->window);
  if (c->window > 0 && (f->window == 0 || f->window > c->window))
    return refuse(b, "window is %d; its cache group keeps %d tokens", f->window, c->window);
  return true;
}

/* The state that an op alone goes on from: `width` numbers, and rows of `row` if it keeps any. */
static bool state_of(const binding *b, int32_t group, int32_t layer, int64_t width, int64_t row) {
  if (group < 0 || group >= b->e->n_groups) return refuse(b, "group is %d; the plan has %d", group, b->e->n_groups);
  const rt_cache *c = &b->e->groups[group];
  if (c->kind != RT_STATE) return refuse(b, "group is %d, which holds pages; a state is needed", group);
  if (layer < 0 || layer >= c->layers) return refuse(b, "layer is %d; its cache group has %d", layer, c->layers);
  if (c->width != width) return refuse(b, "group is %d, states of %d numbers; %lld are needed", group, c->width, (long long)width);
  if (c->row != 0 && c->row != row) return refuse(b, "group is %d, rows of %d numbers; %lld are needed", group, c->row, (long long)row);
  for (int32_t i = 0; i < b->op; i++) {
    int32_t its_group, its_layer;
    if (rt_is_recurrent(&b->e->ops[i], &its_group, &its_layer) && its_group == group && its_layer == layer)
      return refuse(b, "layer %d of group %d is op %d's state", layer, group, i);
  }
  return true;
}

/* Numbers [first, first + n) of every row of a slot. */
static bool part_of(const binding *b, const char *field, int32_t slot, int32_t first, int64_t n) {
  if (!slot_index(b, field, slot, 0)) return false;
  if (first < 0 || first + n > b->e->slots[slot].width)
    return refuse(b, "%s is slot %d, %d wide; %lld from %d on are needed", field, slot, b->e->slots[slot].width, (long long)n, first);
  return true;
}

static bool bind_conv(const binding *b, rt_bound *o) {
  const rt_op_conv *f = &o->f.conv;
  const float *values;
  if (!slot_index(b, "out", f->out, 0)) return false;
  int32_t channels = b->e->slots[f->out].width;
  if (f->taps < 2 || f->taps > RT_TAPS) return refuse(b, "taps is %d; it must be 2 to %d", f->taps, RT_TAPS);
  if (f->activation < -1 || f->activation > 2) return refuse(b, "activation is %d; it must be -1 to 2", f->activation);
  if (f->x == f->out) return refuse(b, "it reads and writes slot %d", f->x);
  if (channels > CHANNELS_MOST) return refuse(b, "it has %d channels; at most %d are supported", channels, CHANNELS_MOST);
  return part_of(b, "x", f->x, f->first, channels) && vector_of(b, "weight", f->weight, channels * f->taps, true, &values) &&
         vector_of(b, "bias", f->bias, channels, false, &values) &&
         state_of(b, f->group, f->layer, (int64_t)(f->taps - 1) * channels, 0);
}

static bool bind_scan(const binding *b, rt_bound *o) {
  const rt_op_scan *f = &o->f.scan;
  const float *values;
  if (!slot_index(b, "out", f->out, 0)) return false;
  int32_t width = b->e->slots[f->out].width;
  if (f->heads < 1 || f->heads > HEADS_MOST || width % f->heads)
    return refuse(b, "heads is %d; it must be 1 to %d and divide the %d numbers of out", f->heads, HEADS_MOST, width);
  if (f->groups < 1 || f->heads % f->groups) return refuse(b, "groups is %d; it must divide %d heads", f->groups, f->heads);
  if (f->numbers < 1 || f->numbers > HEAD_DIM_MOST)
    return refuse(b, "numbers is %d; it must be 1 to %d", f->numbers, HEAD_DIM_MOST);
  if (!(f->dt_min >= 0.0f && f->dt_min <= f->dt_max)) return refuse(b, "dt_min must be 0 or more and dt_max no less");
  if (f->x == f->out || f->dt == f->out) return refuse(b, "it reads and writes slot %d", f->out);
  return slot_of(b, "x", f->x, width + 2 * (int64_t)f->groups * f->numbers, 0) && part_of(b, "dt", f->dt, f->first, f->heads) &&
         vector_of(b, "dt_bias", f->dt_bias, f->heads, false, &values) && vector_of(b, "a", f->a, f->heads, true, &values) &&
         vector_of(b, "d", f->d, f->heads, false, &values) &&
         state_of(b, f->group, f->layer, (int64_t)width * f->numbers, width + (int64_t)f->groups * f->numbers + 2 * f->heads);
}

static bool bind_gated_norm(const binding *b, rt_bound *o) {
  const rt_op_gated_norm *f = &o->f.gated_norm;
  const float *values;
  if (!slot_index(b, "x", f->x, 0)) return false;
  int32_t width = b->e->slots[f->x].width;
  if (f->groups < 1 || width % f->groups) return refuse(b, "groups is %d; it must divide the %d numbers of x", f->groups, width);
  if (f->gate_last != 0 && f->gate_last != 1) return refuse(b, "gate_last is %d; it must be 0 or 1", f->gate_last);
  if (f->gate == f->out) return refuse(b, "it reads its gate from and writes slot %d", f->out);
  return slot_of(b, "out", f->out, width, 0) && part_of(b, "gate", f->gate, f->first, width) &&
         vector_of(b, "norm", f->norm, width, true, &values) && finite_field(b, "eps", f->eps);
}

static bool bind_op(binding *b, int32_t i) {
  rt_bound *o = &b->e->ops[i];
  const rt_op *op = &b->plan->ops[i];
  b->op = i;
  if (!range(b->st, "an op's kind", op->kind, 0, RT_OPS - 1)) return false;
  o->kind = (enum rt_op_kind)op->kind;
  memcpy(o->f.words, op->words, sizeof o->f.words);
  switch (o->kind) {
    case RT_OP_EMBED: return bind_embed(b, o);
    case RT_OP_NORM_LINEAR: return bind_norm_linear(b, o);
    case RT_OP_LINEAR: return bind_plain(b, o, RT_STORE, o->f.linear.x, o->f.linear.out, o->f.linear.weight, o->f.linear.bias, 1.0f);
    case RT_OP_LINEAR_ADD:
      return bind_plain(b, o, RT_ADD, o->f.linear_add.x, o->f.linear_add.out, o->f.linear_add.weight, o->f.linear_add.bias,
                        o->f.linear_add.scale);
    case RT_OP_NORM_ADD: return bind_norm_add(b, o);
    case RT_OP_GATED: return bind_gated(b, o);
    case RT_OP_ROPE_KV: return bind_rope_kv(b, o);
    case RT_OP_ATTENTION: return bind_attention(b, o);
    case RT_OP_CONV: return bind_conv(b, o);
    case RT_OP_SCAN: return bind_scan(b, o);
    case RT_OP_GATED_NORM: return bind_gated_norm(b, o);
    case RT_OP_LATENT_KV: return bind_latent_kv(b, o);
    case RT_OP_EACH_LINEAR: return bind_each_linear(b, o);
    case RT_OP_ROUTE: return bind_route(b, o);
    case RT_OP_EXPERTS: return bind_experts(b, o);
    case RT_OP_ROUTED_ADD: return bind_routed_add(b, o);
    case RT_OP_LOGITS: return bind_logits(b, o);
    case RT_OP_SAMPLE: return slot_of(b, "logits", o->f.sample.logits, b->e->vocab, 1);
    case RT_OPS: break;
  }
  return refuse(b, "no such op");
}

/* ---- what ops share ---- */

/* Vectors and frequencies are small: they become the engine's own. */
static void *copied(const void *from, size_t bytes) {
  void *to = aligned_alloc(64, rt_round_up(bytes, 64));
  return to ? memcpy(to, from, bytes) : NULL;
}

static bool bind_weight(const binding *b, int32_t i) {
  const rt_weight *w = &b->plan->weights[i];
  rt_matrix *m = &b->e->weights[i];
  rt_status *st = b->st;
  const uint8_t *given = w->packed ? w->packed : w->blocks;
  size_t need;
  if (!given) return rt_fail(st, RT_INVALID, "weight %d has no bytes", i), false;
  if (w->rows < 1 || w->rows > ROWS_MOST || w->k < 0 || w->k > ROWS_MOST || w->format < 0 || w->format >= RT_FORMATS)
    return rt_fail(st, RT_INVALID, "weight %d is %d x %d in format %d; rows and k must be at most %d and the format below %d", i,
                   w->rows, w->k, w->format, ROWS_MOST, (int)RT_FORMATS), false;
  if (w->k == 0) need = (size_t)w->rows * sizeof(float);
  else need = (w->packed ? rt_packed_bytes : rt_file_bytes)((rt_format)w->format, (uint64_t)w->rows, (uint64_t)w->k);
  if (need == 0 || need != w->bytes)
    return rt_fail(st, RT_INVALID, "weight %d is %d x %d in %s: %zu bytes are needed, %zu given", i, w->rows, w->k,
                   rt_format_table[w->format].name, need, w->bytes), false;
  if ((w->k == 0 || w->packed) && (uintptr_t)given % (w->k ? 64 : sizeof(float)))
    return rt_fail(st, RT_INVALID, "weight %d is not aligned to %d bytes", i, w->k ? 64 : 4), false;
  if (w->k == 0 && !w->packed) return rt_fail(st, RT_INVALID, "weight %d is a vector; give it as `packed`", i), false;
  *m = (rt_matrix){.format = (rt_format)w->format, .rows = w->rows, .k = w->k, .packed = w->packed, .blocks = w->blocks};
  if (w->k != 0) {
    m->groups = (w->rows + RT_GROUP - 1) / RT_GROUP;
    m->group_bytes = rt_group_bytes(m->format, (uint64_t)w->k);
    m->row_bytes = w->packed ? 0 : w->bytes / (size_t)w->rows;
  } else if (!(m->values = copied(w->packed, w->bytes))) {
    return rt_fail(st, RT_NO_MEMORY, "no memory for weight %d", i), false;
  }
  return true;
}

static bool make_pages(rt_cache *c, rt_status *st) {
  uint64_t all;
  if (!rt_mul(c->page_bytes, (uint64_t)c->pages, &all) || all > SIZE_MAX / 4)
    return rt_fail(st, RT_NO_MEMORY, "a cache of %d pages of %zu bytes does not fit memory", c->pages, c->page_bytes), false;
  if (rt_region_make((size_t)all, &c->memory, st) != RT_OK)
    return rt_fail(st, RT_NO_MEMORY, "no memory for a cache of %zu MB (%d pages of %d %s); ask for fewer pages", (size_t)all >> 20,
                   c->pages, c->kind == RT_STATE ? 1 : RT_PAGE, c->kind == RT_STATE ? "sequence" : "tokens"), false;
  return true;
}

static bool bind_states(const binding *b, int32_t i) {
  const rt_group *g = &b->plan->groups[i];
  rt_cache *c = &b->e->groups[i];
  if (!range(b->st, "a state group's layers", g->layers, 1, LAYERS_MOST) ||
      !range(b->st, "a state's width", g->width, 1, STATE_MOST) || !range(b->st, "a state's row", g->row, 0, STATE_MOST) ||
      !range(b->st, "pages", g->pages, 1, PAGES_MOST))
    return false;
  *c = (rt_cache){.kind = RT_STATE, .layers = g->layers, .width = g->width, .row = g->row, .pages = g->pages,
                  .layer_bytes = (size_t)g->width * sizeof(float)};
  c->layer_bytes += RT_PAGE * (size_t)c->row * sizeof(float);
  c->page_bytes = c->layer_bytes * (size_t)c->layers;
  return make_pages(c, b->st);
}

static bool bind_group(const binding *b, int32_t i) {
  const rt_group *g = &b->plan->groups[i];
  rt_cache *c = &b->e->groups[i];
  rt_status *st = b->st;
  if (g->kind == RT_STATE) return bind_states(b, i);
  if (g->kind != RT_PAGED && g->kind != RT_LATENT)
    return rt_fail(st, RT_INVALID, "cache group %d is of kind %d; known: paged, latent, state", i, g->kind), false;
  b->e->n_paged++;
  if (!range(st, "a cache group's layers", g->layers, 1, LAYERS_MOST) || !range(st, "kv_heads", g->kv_heads, 1, HEADS_MOST) ||
      !range(st, "head_dim", g->head_dim, 1, HEAD_DIM_MOST) || !range(st, "pages", g->pages, 1, PAGES_MOST) ||
      !range(st, "a cache group's window", g->window, 0, INT32_MAX) ||
      !range(st, "k_format", g->k_format, 0, RT_FORMATS - 1) || !range(st, "v_format", g->v_format, 0, RT_FORMATS - 1))
    return false;
  if (g->kind == RT_LATENT && (!range(st, "a latent group's kv_heads", g->kv_heads, 1, 1) ||
                               !range(st, "a latent group's width", g->width, 1, g->head_dim) ||
                               !range(st, "a latent group's v_format, as its k_format,", g->v_format, g->k_format, g->k_format)))
    return false;
  *c = (rt_cache){.kind = (enum rt_group_kind)g->kind, .layers = g->layers, .kv_heads = g->kv_heads, .head_dim = g->head_dim,
                  .value_dim = g->kind == RT_LATENT ? g->width : g->head_dim, .window = g->window, .pages = g->pages,
                  .k_format = (rt_format)g->k_format, .v_format = (rt_format)g->v_format};
  const rt_format_info *k = &rt_format_table[c->k_format], *v = &rt_format_table[c->v_format];
  if (!b->e->k->store_k[c->k_format] || !b->e->k->store_v[c->v_format])
    return rt_fail(st, RT_INVALID, "a cache in %s and %s is not supported; known: F32, F16, BF16, Q8_0", k->name, v->name), false;
  if (c->head_dim % k->block_weights || c->head_dim % v->block_weights)
    return rt_fail(st, RT_INVALID, "a cache in %s and %s needs heads of whole blocks of %d, and head_dim is %d; take F16 or BF16",
                   k->name, v->name, k->block_weights > v->block_weights ? k->block_weights : v->block_weights, c->head_dim), false;
  c->k_bytes = (size_t)(c->head_dim / k->block_weights) * RT_PAGE * (size_t)k->block_bytes;
  c->head_bytes = c->k_bytes;
  if (g->kind != RT_LATENT) c->head_bytes += (size_t)(c->head_dim / v->block_weights) * RT_PAGE * (size_t)v->block_bytes;
  c->layer_bytes = c->head_bytes * (size_t)c->kv_heads;
  c->page_bytes = c->layer_bytes * (size_t)c->layers;
  return make_pages(c, st);
}

static bool bind_rope(const binding *b, int32_t i) {
  const rt_rope *r = &b->plan->ropes[i];
  if (!range(b->st, "a rope's pairs", r->pairs, 1, HEAD_DIM_MOST / 2)) return false;
  bool finite = isfinite(r->mscale);
  for (int32_t p = 0; p < r->pairs; p++) finite = finite && isfinite(r->inv_freq[p]);
  if (!finite) return rt_fail(b->st, RT_BAD_FILE, "rope %d has a frequency or scale that is not finite", i), false;
  const double *own = copied(r->inv_freq, (size_t)r->pairs * sizeof *own);
  if (!own) return rt_fail(b->st, RT_NO_MEMORY, "no memory for rope %d", i), false;
  b->e->ropes[i] = (rt_rotation){.inv_freq = own, .pairs = r->pairs, .interleaved = r->interleaved != 0, .mscale = r->mscale};
  return true;
}

static bool bind_slot(const binding *b, int32_t i) {
  const rt_slot *s = &b->plan->slots[i];
  if (!range(b->st, "a slot's width", s->width, 1, ROWS_MOST)) return false;
  b->e->slots[i] = (rt_activations){.width = s->width, .per_row = s->per_row != 0};
  return true;
}

/* ---- memory ---- */

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

static bool is_float(const rt_matrix *m) { return m && rt_format_table[m->format].form == RT_FLOAT; }

/* What an op makes of a role's path, with some matrices of float formats, or all. Flagged rows, from which tokens are drawn, never
 * meet activations of 8 bits: they are few. */
static rt_way way_of(enum rt_path path, bool some, bool all, bool flagged) {
  if (path == RT_PATH_A8 && (flagged || all)) path = RT_PATH_A16_BF16;
  if (path == RT_PATH_A16_BF16 && !some) path = RT_PATH_A16;
  if (path == RT_PATH_BF16) return (rt_way){path, RT_TOKENS_BF16};
  return (rt_way){path, path == RT_PATH_A8 || (path == RT_PATH_A16_BF16 && all) ? RT_TOKENS_FAST : RT_TOKENS};
}

static void choose_ways(const rt_engine *e, rt_bound *o) {
  rt_linear *l = &o->linear;
  bool some = is_float(l->up), all = !l->up || is_float(l->up);
  for (int p = 0; p < l->n_parts; p++) {
    some |= is_float(l->parts[p].matrix);
    all &= is_float(l->parts[p].matrix);
  }
  for (int role = 0; role < 2; role++) {
    enum rt_path path = (enum rt_path)(role ? e->limits.generated_path : e->limits.prompt_path);
    l->ways[role] = way_of(path, some, all, l->flagged);
    o->each.ways[role] = way_of(path, is_float(o->each.matrix) || is_float(o->each.up), false, false);
  }
}

static void measure(rt_engine *e) {
  int32_t widest = 0;
  for (int32_t i = 0; i < e->n_ops; i++) {
    const rt_bound *o = &e->ops[i];
    const rt_linear *l = &o->linear;
    choose_ways(e, &e->ops[i]);
    if (o->kind == RT_OP_ATTENTION) {
      const rt_cache *c = &e->groups[o->f.attention.group];
      int32_t share = rt_share_of(c, o->f.attention.heads), width = rt_attention_width(c->head_dim);
      e->share = share > e->share ? share : e->share;
      e->query_rows = e->share > RT_QUERY_ROWS ? e->share : RT_QUERY_ROWS / e->share * e->share;
      widest = width > widest ? width : widest;
    }
    if (o->kind == RT_OP_SCAN) {
      const rt_op_scan *f = &o->f.scan;
      e->scan_heads = f->heads > e->scan_heads ? f->heads : e->scan_heads;
      if (e->groups[f->group].row && f->groups > e->scan_groups) e->scan_groups = f->groups;
    }
    if (o->each.matrix) {
      const rt_each *each = &o->each;
      size_t pairs = (size_t)e->limits.max_tokens * (size_t)each->parts;
      e->acts_bytes = larger(e->acts_bytes, rt_act_bytes(each->k) * pairs);
      e->group_bytes = larger(e->group_bytes, rt_round_up(each->matrix->group_bytes, 64) + (each->up ? each->up->group_bytes : 0));
      e->pairs_most = larger(e->pairs_most, pairs), e->keys_most = larger(e->keys_most, (size_t)each->of * 2);
    }
    if (l->n_parts) {
      size_t one = rt_act_bytes(l->k);
      e->acts_bytes = larger(e->acts_bytes, one * (size_t)(l->flagged ? e->limits.max_rows : e->limits.max_tokens));
      e->fused_bytes = larger(e->fused_bytes, one * RT_FUSED);
      for (int p = 0; p < l->n_parts; p++) e->group_bytes = larger(e->group_bytes, l->parts[p].matrix->group_bytes);
      if (l->up) e->group_bytes = larger(e->group_bytes, l->up->group_bytes);
    } else if (o->kind == RT_OP_EMBED) {
      const rt_matrix *m = &e->weights[o->f.embed.weight], *p = o->f.embed.positions < 0 ? NULL : &e->weights[o->f.embed.positions];
      e->group_bytes = larger(e->group_bytes, m->group_bytes);
      if (p) e->group_bytes = larger(e->group_bytes, p->group_bytes), e->row_floats = larger(e->row_floats, (size_t)m->k);
    }
  }
  e->partial_floats = e->query_rows * widest;
  e->page_floats = 2 * RT_TILE_SLOTS * (size_t)widest;
  if (e->limits.prompt_path == RT_PATH_BF16 || e->limits.generated_path == RT_PATH_BF16)
    e->page_floats = larger(e->page_floats, rt_attention_bf16_floats(widest, e->query_rows));
}

/* Counts first (region.base NULL), then hands out: one list of everything the engine owns. */
typedef struct taker { rt_region *region; uint64_t used; bool fits; } taker;

static void *take(taker *t, uint64_t count, uint64_t size) {
  uint64_t bytes = 0;
  t->fits = t->fits && rt_mul(count, size, &bytes) && rt_add(t->used, rt_round_up(bytes, 64), &t->used) && t->used < SIZE_MAX / 4;
  return t->region->base ? rt_region_take(t->region, bytes) : NULL;
}

static void lay_out_thread(rt_engine *e, taker *t, rt_scratch *into) {
  rt_scratch s = {.op = -1};
  s.acts = take(t, e->fused_bytes, 1);
  s.y = take(t, RT_LINE_FLOATS, sizeof(float));
  s.y2 = take(t, RT_LINE_FLOATS, sizeof(float));
  s.row = take(t, e->row_floats, sizeof(float));
  s.group = take(t, e->group_bytes, 1);
  s.read = take(t, 1, sizeof *s.read);
  s.sample = take(t, rt_sample_bytes(e->vocab), 1);
  s.partials.out = take(t, (uint64_t)e->partial_floats, sizeof(float));
  s.partials.max = take(t, (uint64_t)e->query_rows, sizeof(float));
  s.partials.sum = take(t, (uint64_t)e->query_rows, 16 * sizeof(float));
  s.top = take(t, (uint64_t)e->query_rows, sizeof(float));
  s.total = take(t, (uint64_t)e->query_rows, 16 * sizeof(float));
  s.pages = take(t, e->page_floats, sizeof(float));
  take(t, 128, 1); /* neighbours' lines stay apart */
  if (t->region->base) *into = s;
}

static void lay_out_step(rt_engine *e, taker *t) {
  rt_step *s = &e->step;
  uint64_t tokens = (uint64_t)e->limits.max_tokens, seqs = (uint64_t)e->limits.max_seqs;
  s->tokens = take(t, tokens, sizeof *s->tokens);
  s->queries = take(t, tokens, sizeof *s->queries);
  s->runs = take(t, tokens, sizeof *s->runs);
  s->tiles = take(t, tokens, sizeof *s->tiles);
  s->lines[0].at = take(t, tokens, sizeof *s->lines[0].at);
  s->lines[1].at = take(t, (uint64_t)e->limits.max_rows, sizeof *s->lines[1].at);
  s->block_starts = take(t, seqs + 1, sizeof *s->block_starts);
  for (int32_t g = 0; g < e->n_groups; g++) {
    bool state = e->groups[g].kind == RT_STATE;
    s->tails[g] = take(t, state ? 0 : seqs * RT_PAGE, sizeof **s->tails);
    s->states[g] = take(t, state ? seqs : 0, sizeof **s->states);
  }
}

static void lay_out(rt_engine *e, taker *t) {
  uint64_t tokens = (uint64_t)e->limits.max_tokens, rows = (uint64_t)e->limits.max_rows;
  for (int32_t i = 0; i < e->n_slots; i++)
    e->slots[i].data = take(t, (e->slots[i].per_row ? rows : tokens) * (uint64_t)e->slots[i].width, sizeof(float));
  for (int32_t i = 0; i < e->n_ropes; i++) {
    e->ropes[i].cos = take(t, tokens * (uint64_t)e->ropes[i].pairs, sizeof(float));
    e->ropes[i].sin = take(t, tokens * (uint64_t)e->ropes[i].pairs, sizeof(float));
  }
  for (int32_t g = 0; g < e->n_groups; g++) {
    rt_cache *c = &e->groups[g];
    uint64_t pages = (uint64_t)c->pages;
    c->writer = take(t, pages, sizeof(uint32_t));
    c->positions = c->kind == RT_STATE ? NULL : take(t, pages * RT_PAGE, sizeof(int32_t));
    c->seen = c->kind == RT_STATE ? take(t, pages * (uint64_t)c->layers, sizeof(int32_t)) : NULL;
  }
  e->sampled = take(t, rows, sizeof *e->sampled);
  e->acts = take(t, e->acts_bytes, 1);
  e->rates = take(t, tokens * 2 * (uint64_t)e->scan_heads, sizeof(float));
  e->mixes = take(t, tokens * (uint64_t)e->scan_groups, RT_PAGE * sizeof(float));
  e->pairs.place = take(t, e->pairs_most, sizeof *e->pairs.place);
  e->pairs.at = take(t, e->pairs_most, sizeof *e->pairs.at);
  e->pairs.ends = take(t, e->keys_most, sizeof *e->pairs.ends);
  e->pairs.blocks = take(t, e->keys_most, sizeof *e->pairs.blocks);
  lay_out_step(e, t);
  for (int32_t i = 0; i < e->limits.threads; i++) lay_out_thread(e, t, &e->scratch[i]);
}

static rt_code allocate(rt_engine *e, rt_status *st) {
  taker counting = {.region = &e->memory, .fits = true};
  lay_out(e, &counting);
  if (!counting.fits || rt_region_make((size_t)counting.used, &e->memory, st) != RT_OK)
    return rt_fail(st, RT_NO_MEMORY, "no memory for the activations of %d tokens (%llu MB); lower max_tokens or max_rows",
                   e->limits.max_tokens, (unsigned long long)(counting.used >> 20));
  taker handing = {.region = &e->memory, .fits = true};
  lay_out(e, &handing);
  for (int32_t g = 0; g < e->n_groups; g++)
    if (e->groups[g].positions) memset(e->groups[g].positions, 0xff, (size_t)e->groups[g].pages * RT_PAGE * sizeof(int32_t));
  return RT_OK;
}

/* ---- the engine ---- */

static bool check_limits(const rt_plan *p, const rt_limits *l, rt_status *st) {
  return range(st, "ops", p->n_ops, 1, OPS_MOST) && range(st, "slots", p->n_slots, 0, SLOTS_MOST) &&
         range(st, "weights", p->n_weights, 0, WEIGHTS_MOST) && range(st, "cache groups", p->n_groups, 0, GROUPS_MOST) &&
         range(st, "ropes", p->n_ropes, 0, ROPES_MOST) && range(st, "vocab", p->vocab, 1, ROWS_MOST) &&
         range(st, "width", p->width, 1, ROWS_MOST) && range(st, "max_tokens", l->max_tokens, 1, TOKENS_MOST) &&
         range(st, "max_rows", l->max_rows, 1, TOKENS_MOST) && range(st, "max_seqs", l->max_seqs, 1, TOKENS_MOST) &&
         range(st, "histories", l->histories, 0, HISTORIES_MOST) && range(st, "threads", l->threads, 1, RT_THREADS_MAX) &&
         range(st, "pool", l->pool, 0, 1) && range(st, "prompt_path", l->prompt_path, 0, RT_PATHS - 1) &&
         range(st, "generated_path", l->generated_path, 0, RT_PATHS - 1);
}

static rt_code choose_kernels(rt_engine *e, rt_status *st) {
  char missing[RT_MISSING_BYTES];
  int32_t isa = e->limits.isa;
  if (!rt_isa_name(isa)) return rt_fail(st, RT_INVALID, "isa is %d; it must be 0 to %d", isa, rt_isa_count() - 1);
  e->k = rt_isa_kernels(isa);
  if (*rt_isa_missing(isa, missing))
    return rt_fail(st, RT_INVALID, "instruction set %s cannot run on this CPU, which lacks %s", rt_isa_name(isa), missing);
  return e->k ? RT_OK : rt_fail(st, RT_INVALID, "instruction set %s is not part of this build", rt_isa_name(isa));
}

static bool make_lists(rt_engine *e, const rt_plan *p) {
  e->n_ops = p->n_ops, e->n_slots = p->n_slots, e->n_weights = p->n_weights, e->n_groups = p->n_groups, e->n_ropes = p->n_ropes;
  e->vocab = p->vocab, e->width = p->width, e->last_position = INT32_MAX;
  e->ops = calloc((size_t)e->n_ops, sizeof *e->ops);
  e->slots = calloc((size_t)e->n_slots + 1, sizeof *e->slots);
  e->weights = calloc((size_t)e->n_weights + 1, sizeof *e->weights);
  e->groups = calloc((size_t)e->n_groups + 1, sizeof *e->groups);
  e->ropes = calloc((size_t)e->n_ropes + 1, sizeof *e->ropes);
  e->scratch = calloc((size_t)e->limits.threads, sizeof *e->scratch);
  e->histories = calloc((size_t)e->limits.histories + 1, sizeof *e->histories);
  e->clock.ns = calloc((size_t)e->n_ops + 1, sizeof *e->clock.ns);
  e->clock.read = calloc((size_t)e->n_ops + 1, sizeof *e->clock.read);
  e->step.blocks = calloc((size_t)e->n_groups + 1, sizeof *e->step.blocks);
  e->step.tails = calloc((size_t)e->n_groups + 1, sizeof *e->step.tails);
  e->step.states = calloc((size_t)e->n_groups + 1, sizeof *e->step.states);
  return e->ops && e->slots && e->weights && e->groups && e->ropes && e->scratch && e->histories && e->clock.ns && e->clock.read &&
         e->step.blocks && e->step.tails && e->step.states;
}

static rt_code bind(rt_engine *e, const rt_plan *plan, rt_status *st) {
  binding b = {.e = e, .plan = plan, .st = st};
  if (choose_kernels(e, st) != RT_OK) return st->code;
  for (int32_t i = 0; i < e->n_slots; i++) if (!bind_slot(&b, i)) return st->code;
  for (int32_t i = 0; i < e->n_weights; i++) if (!bind_weight(&b, i)) return st->code;
  for (int32_t i = 0; i < e->n_ropes; i++) if (!bind_rope(&b, i)) return st->code;
  for (int32_t i = 0; i < e->n_groups; i++) if (!bind_group(&b, i)) return st->code;
  for (int32_t i = 0; i < e->n_ops; i++) if (!bind_op(&b, i)) return st->code;
  measure(e);
  if (allocate(e, st) != RT_OK) return st->code;
  return rt_pool_new(e->limits.threads, (enum rt_pool_kind)e->limits.pool, &e->pool, st);
}

rt_code rt_engine_new(const rt_plan *plan, const rt_limits *limits, rt_engine **out, rt_status *st) {
  *out = NULL;
  st->code = RT_OK;
  if (!check_limits(plan, limits, st)) return st->code;
  rt_engine *e = calloc(1, sizeof *e);
  if (!e) return rt_fail(st, RT_NO_MEMORY, "no memory for an engine");
  e->limits = *limits;
  rt_code code = make_lists(e, plan) ? bind(e, plan, st) : rt_fail(st, RT_NO_MEMORY, "no memory for a plan of %d ops", plan->n_ops);
  if (code == RT_OK) *out = e;
  else rt_engine_free(e);
  return code;
}

void rt_engine_free(rt_engine *e) {
  if (!e) return;
  rt_pool_free(e->pool);
  for (int32_t i = 0; e->weights && i < e->n_weights; i++)
    if (e->weights[i].k == 0) free((void *)(uintptr_t)e->weights[i].values);
  for (int32_t i = 0; e->ropes && i < e->n_ropes; i++) free((void *)(uintptr_t)e->ropes[i].inv_freq);
  for (int32_t i = 0; e->groups && i < e->n_groups; i++) rt_region_free(&e->groups[i].memory);
  rt_room_free(e);
  for (int32_t i = 0; e->histories && i < e->limits.histories; i++) rt_history_free(&e->histories[i]);
  void *lists[] = {e->ops, e->slots, e->weights, e->groups, e->ropes, e->scratch, e->histories, e->clock.ns, e->clock.read,
                   e->step.blocks, e->step.tails, e->step.states};
  for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) free(lists[i]);
  rt_region_free(&e->memory);
  free(e);
}

/* ---- what others look at between steps ---- */

float *rt_engine_slot(rt_engine *e, int32_t slot) { return slot >= 0 && slot < e->n_slots ? e->slots[slot].data : NULL; }

const rt_sampled *rt_engine_sampled(rt_engine *e) { return e->sampled; }

uint8_t *rt_engine_page(rt_engine *e, int32_t group, int32_t page, size_t *bytes) {
  if (group < 0 || group >= e->n_groups || page < 0 || page >= e->groups[group].pages) return NULL;
  *bytes = e->groups[group].page_bytes;
  return e->groups[group].memory.base + (size_t)page * e->groups[group].page_bytes;
}

int32_t *rt_engine_seen(rt_engine *e, int32_t group, int32_t slot, int32_t *layers) {
  if (group < 0 || group >= e->n_groups || e->groups[group].kind != RT_STATE || slot < 0 || slot >= e->groups[group].pages) return NULL;
  *layers = e->groups[group].layers;
  return e->groups[group].seen + (size_t)slot * (size_t)e->groups[group].layers;
}

void rt_engine_clock(rt_engine *e, int32_t on) {
  e->clock.on = on;
  if (!on) return;
  memset(e->clock.ns, 0, ((size_t)e->n_ops + 1) * sizeof *e->clock.ns);
  memset(e->clock.read, 0, ((size_t)e->n_ops + 1) * sizeof *e->clock.read);
}

const int64_t *rt_engine_times(rt_engine *e) { return e->clock.ns; }

const int64_t *rt_engine_weights_read(rt_engine *e) { return e->clock.read; }

rt_code rt_engine_copy_page(rt_engine *e, int32_t group, int32_t from, int32_t to, rt_status *st) {
  if (!range(st, "group", group, 0, e->n_groups - 1) || !range(st, "source page", from, 0, e->groups[group].pages - 1) ||
      !range(st, "target page", to, 0, e->groups[group].pages - 1))
    return st->code;
  size_t bytes;
  rt_cache *c = &e->groups[group];
  if (from == to) return RT_OK;
  memcpy(rt_engine_page(e, group, to, &bytes), rt_engine_page(e, group, from, &bytes), c->page_bytes);
  size_t layers = (size_t)c->layers;
  if (c->kind == RT_STATE) memcpy(c->seen + (size_t)to * layers, c->seen + (size_t)from * layers, layers * sizeof(int32_t));
  else memcpy(c->positions + (size_t)to * RT_PAGE, c->positions + (size_t)from * RT_PAGE, RT_PAGE * sizeof(int32_t));
  return RT_OK;
}

/* Tokens that a state has taken in, -1 when its layers differ. */
static int32_t state_length(const rt_cache *c, int32_t slot) {
  const int32_t *seen = c->seen + (size_t)slot * (size_t)c->layers;
  for (int32_t l = 1; l < c->layers; l++) if (seen[l] != seen[0]) return -1;
  return seen[0];
}

rt_code rt_state_truncate(rt_engine *e, int32_t group, int32_t slot, int32_t length, const int32_t *snapshots, int32_t n,
                          int32_t *left, rt_status *st) {
  if (!range(st, "group", group, 0, e->n_groups - 1)) return st->code;
  rt_cache *c = &e->groups[group];
  if (c->kind != RT_STATE) return rt_fail(st, RT_INVALID, "group %d holds pages; only a state is cut back like this", group);
  if (!range(st, "slot", slot, 0, c->pages - 1) || !range(st, "length", length, 0, INT32_MAX)) return st->code;
  for (int32_t i = 0; i < n; i++) if (!range(st, "a snapshot", snapshots[i], 0, c->pages - 1)) return st->code;
  int32_t best = slot, most = state_length(c, slot);
  if (most < 0 || most > length) {
    most = 0;
    for (int32_t i = 0; i < n; i++) {
      int32_t here = state_length(c, snapshots[i]);
      if (here > most && here <= length) best = snapshots[i], most = here;
    }
  }
  *left = most;
  if (most == 0) memset(c->seen + (size_t)slot * (size_t)c->layers, 0, (size_t)c->layers * sizeof(int32_t));
  return most == 0 ? RT_OK : rt_engine_copy_page(e, group, best, slot, st);
}

rt_code rt_history_reset(rt_engine *e, int32_t history, rt_status *st) { return rt_history_truncate(e, history, 0, st); }

rt_code rt_history_extend(rt_engine *e, int32_t history, const int32_t *tokens, int32_t n, int32_t generated, rt_status *st) {
  if (!range(st, "history", history, 0, e->limits.histories - 1)) return st->code;
  return rt_history_append(&e->histories[history], tokens, n, generated, e->vocab, st);
}

rt_code rt_history_truncate(rt_engine *e, int32_t history, int32_t length, rt_status *st) {
  if (!range(st, "history", history, 0, e->limits.histories - 1) ||
      !range(st, "length", length, 0, e->histories[history].length))
    return st->code;
  e->histories[history].length = length;
  return RT_OK;
}
