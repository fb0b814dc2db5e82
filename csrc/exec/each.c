#include "exec/each.h"
#include "base/checked.h"
#include "exec/work.h"

#include <math.h>
#include <string.h>

enum {
  STAY_BYTES = 256 << 10, /* weights that stay in a core's cache while portions of rows pass */
  TOGETHER = 8            /* groups a claim may take at least where rows come in portions, which are read anew for each claim */
};

/* A packed group of an op's matrices. */
static int64_t held_bytes(const rt_each *l) { return (int64_t)l->matrix->group_bytes + (l->up ? (int64_t)l->up->group_bytes : 0); }

/* ---- pairs in order ---- */

/* A slot holds whatever was put there: what names no matrix names the first. */
static int32_t matrix_of(const rt_engine *e, const rt_each *l, int32_t token, int32_t part) {
  if (l->routes < 0) return part;
  float named = row_of(e, l->routes, token)[part];
  return named >= 0.0f && named < (float)l->of ? (int32_t)named : 0;
}

/* The first of two equal ways, so that a matrix's pairs of one path lie together. */
static int32_t way_at(const rt_engine *e, const rt_each *l, int32_t token) {
  return l->ways[0].path != l->ways[1].path && e->step.batch->roles[token];
}

static int32_t key_of(const rt_engine *e, const rt_each *l, int32_t pair) {
  int32_t token = pair / l->parts;
  return matrix_of(e, l, token, pair % l->parts) * 2 + way_at(e, l, token);
}

static void sort_pairs(rt_engine *e, const rt_each *l) {
  rt_pairs *p = &e->pairs;
  int32_t n = e->step.batch->n_tokens * l->parts, keys = l->of * 2, before = 0;
  memset(p->ends, 0, (size_t)keys * sizeof *p->ends);
  for (int32_t i = 0; i < n; i++) p->ends[key_of(e, l, i)]++;
  for (int32_t k = 0; k < keys; k++) {
    int32_t count = p->ends[k];
    p->ends[k] = before; /* where the next of its pairs goes */
    before += count;
  }
  for (int32_t i = 0; i < n; i++) {
    p->place[i] = p->ends[key_of(e, l, i)]++;
    p->at[p->place[i]] = i;
  }
  p->n_blocks = 0;
  for (int32_t k = 0, first = 0; k < keys; first = p->ends[k + 1], k += 2)
    if (p->ends[k + 1] > first)
      p->blocks[p->n_blocks++] = (rt_pair_block){first, {p->ends[k] - first, p->ends[k + 1] - p->ends[k]}, k / 2};
}

rt_phase rt_each_open(rt_engine *e, const rt_each *l, int32_t part) {
  int32_t tokens = e->step.batch->n_tokens, pairs = tokens * l->parts;
  if (part == 0) {
    sort_pairs(e, l);
    return l->up ? (rt_phase){tokens, 2} : (rt_phase){pairs, 8};
  }
  int64_t bytes = held_bytes(l), rows = pairs / e->pairs.n_blocks;
  int32_t most = most_of(CLAIM_BYTES, bytes * rows / 4 + bytes);
  return (rt_phase){e->pairs.n_blocks * l->groups, rows > RT_TOKENS && most < TOGETHER ? TOGETHER : most};
}

/* ---- activations ---- */

static void round_input(rt_engine *e, const rt_each *l, const float *x, int32_t pair) {
  e->k->quantize(x, l->k, 0, l->norm, NULL, l->eps, l->ways[way_at(e, l, pair / l->parts)].path,
                 e->acts + (size_t)e->pairs.place[pair] * rt_act_bytes(l->k));
}

static void round_token(rt_engine *e, const rt_each *l, int32_t token) {
  size_t bytes = rt_act_bytes(l->k);
  const int32_t *place = e->pairs.place + token * l->parts;
  round_input(e, l, row_of(e, l->x, token), token * l->parts);
  for (int32_t j = 1; j < l->parts; j++) memcpy(e->acts + (size_t)place[j] * bytes, e->acts + (size_t)place[0] * bytes, bytes);
}

/* ---- products ---- */

/* Results of groups [first, first + n) to the slots of the sorted pairs [row, row + rows). */
static void bring_back(rt_engine *e, const rt_each *l, int32_t row, int32_t rows, int32_t first, int32_t n, rt_scratch *s) {
  int32_t width = n * RT_GROUP;
  for (int32_t i = 0; i < rows; i++) {
    int32_t pair = e->pairs.at[row + i];
    float *out = row_of(e, l->out, pair / l->parts) + (size_t)(pair % l->parts) * (size_t)l->out_stride + first * RT_GROUP;
    float *y = s->y + (size_t)i * (size_t)width;
    if (l->up) e->k->gate[l->activation](y, s->y2 + (size_t)i * (size_t)width, width, out);
    else memcpy(out, y, (size_t)width * sizeof *out);
  }
}

/* Groups [first, last) of the block's matrix times all its pairs, a portion of rows after the other, so that weights come from
 * memory once and from a cache afterwards. */
static void multiply_block(rt_engine *e, const rt_each *l, const rt_pair_block *b, int32_t first, int32_t last, rt_scratch *s) {
  const rt_matrix *m = l->matrix, *up = l->up;
  int32_t from = b->matrix * l->groups + first, row = b->first;
  const uint8_t *gates = take_groups(m, from, last - first, s->group, s), *ups = NULL;
  if (up) ups = take_groups(up, from, last - first, s->group + rt_round_up(m->group_bytes, 64), s);
  for (int32_t way = 0; way < 2; way++)
    for (int32_t end = row + b->rows[way], rows; row < end; row += rows) {
      const uint8_t *acts = e->acts + (size_t)row * rt_act_bytes(l->k);
      enum rt_path path = l->ways[way].path;
      rows = least(end - row, l->ways[way].rows);
      for (int32_t g = 0, n; g < last - first; g += n) {
        n = least(last - first - g, RT_LINE_FLOATS / (RT_GROUP * rows));
        multiply(e, m, gates + (size_t)g * m->group_bytes, n, acts, rows, path, s->y, (size_t)n * RT_GROUP);
        if (up) multiply(e, up, ups + (size_t)g * up->group_bytes, n, acts, rows, path, s->y2, (size_t)n * RT_GROUP);
        bring_back(e, l, row, rows, first + g, n, s);
      }
    }
}

/* How many groups of a block are taken at once: where rows come in portions, those that stay in a core's cache meanwhile. */
static int32_t at_once(const rt_each *l, const rt_pair_block *b) {
  if (!l->matrix->packed || (l->up && !l->up->packed)) return 1;
  bool portions = b->rows[0] > l->ways[0].rows || b->rows[1] > (b->rows[0] ? 0 : l->ways[1].rows);
  return portions ? most_of(STAY_BYTES, held_bytes(l)) : l->groups;
}

void rt_each_units(rt_engine *e, const rt_each *l, int32_t part, int32_t first, int32_t last, rt_scratch *s) {
  for (int32_t u = first; part == 0 && u < last; u++) {
    if (l->up) round_token(e, l, u);
    else round_input(e, l, row_of(e, l->x, u / l->parts) + (size_t)(u % l->parts) * (size_t)l->x_stride, u);
  }
  for (int32_t u = first, end; part == 1 && u < last; u += end) {
    const rt_pair_block *b = &e->pairs.blocks[u / l->groups];
    int32_t group = u % l->groups;
    end = least(least(l->groups - group, last - u), at_once(l, b));
    multiply_block(e, l, b, group, group + end, s);
  }
}

/* ---- ROUTE ---- */

static void score(const float *logits, int32_t experts, int32_t scoring, double *scores) {
  double most = -INFINITY, sum = 0.0;
  if (scoring == RT_SIGMOID) {
    for (int32_t i = 0; i < experts; i++) scores[i] = 1.0 / (1.0 + exp(-(double)logits[i]));
    return;
  }
  for (int32_t i = 0; i < experts; i++) most = logits[i] > most ? logits[i] : most;
  for (int32_t i = 0; i < experts; i++) sum += scores[i] = exp(logits[i] - most);
  for (int32_t i = 0; i < experts; i++) scores[i] /= sum;
}

/* Index of the largest of x[n] whose bit is not in `taken`, lowest first; it joins them. There is one. */
static int32_t take_largest(const double *x, int32_t n, uint8_t *taken) {
  int32_t at = -1;
  for (int32_t i = 0; i < n; i++)
    if (!taken[i] && (at < 0 || x[i] > x[at])) at = i;
  taken[at] = 1;
  return at;
}

/* Choices of the groups that do not stay become -inf. */
static void keep_groups(const rt_op_route *f, int32_t experts, double *choices) {
  int32_t each = experts / f->groups;
  double best[RT_EXPERTS];
  uint8_t taken[RT_EXPERTS];
  for (int32_t g = 0; g < f->groups; g++) {
    memset(taken, 0, (size_t)each);
    best[g] = 0.0;
    for (int32_t i = 0; i < f->group_best; i++) best[g] += choices[g * each + take_largest(choices + g * each, each, taken)];
  }
  memset(taken, 0, (size_t)f->groups);
  for (int32_t i = 0; i < f->groups_kept; i++) take_largest(best, f->groups, taken);
  for (int32_t i = 0; i < experts; i++)
    if (!taken[i / each]) choices[i] = -INFINITY;
}

void rt_route(const float *logits, const float *bias, const rt_op_route *f, int32_t experts, double *scratch, float *out) {
  double *scores = scratch, *choices = scratch + experts, sum = 0.0;
  uint8_t taken[RT_EXPERTS] = {0};
  score(logits, experts, f->scoring, scores);
  for (int32_t i = 0; i < experts; i++) choices[i] = scores[i] + (bias ? (double)bias[i] : 0.0);
  if (f->groups > 1) keep_groups(f, experts, choices);
  for (int32_t i = 0; i < f->top_k; i++) take_largest(choices, experts, taken);
  for (int32_t i = 0, j = 0; i < experts; i++)
    if (taken[i]) out[j++] = (float)i, sum += scores[i];
  for (int32_t j = 0; j < f->top_k; j++)
    out[f->top_k + j] = (float)(f->scale * scores[(int32_t)out[j]] / (f->normalize ? sum + 1e-20 : 1.0));
}
