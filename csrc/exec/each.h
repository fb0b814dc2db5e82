/* Ops in which tokens meet different matrices: EACH_LINEAR (heads, experts' outputs), EXPERTS, and ROUTE, which chooses.
 *
 * A token meets `parts` of the `of` matrices that lie one behind the other in a weight: those its row of `routes` names, or,
 * without routes, all of them in order. A (token, part) is a pair. Pairs are sorted by matrix, path and token; those of one
 * matrix are a block, and a group of the matrix is multiplied by all of them, in portions of one path and of as many rows as the
 * units of other linear ops have, while it stays in a cache. So a matrix is read once a step, however many tokens chose it, and
 * not at all when nobody did, and the bits of a pair depend on no other.
 *   phase 0    a unit is a pair (EXPERTS: a token, whose parts share one input): activations, rounded into their sorted place
 *   phase 1    a unit is a block of pairs times a packed group of 16 rows of its matrix */
#ifndef RT_EACH_H
#define RT_EACH_H
#include "base/pool.h"
#include "exec/engine.h"

rt_phase rt_each_open(rt_engine *e, const rt_each *l, int32_t part);
void rt_each_units(rt_engine *e, const rt_each *l, int32_t part, int32_t first, int32_t last, rt_scratch *s);

/* out [top_k ids, ascending | top_k weights] of logits [experts]; bias [experts] or NULL.
 *   scores   softmax or sigmoid of the logits; choices are scores + bias
 *   groups   of neighbouring experts: the groups_kept with the largest sum of their group_best best choices stay
 *   experts  the top_k of what stays by choice, lowest index first among equals
 *   weights  scale * score, the scores first divided by their sum + 1e-20 when `normalize`
 * All in f64. scratch: [2 * experts]. What the logits hold, ids are distinct and within [0, experts). */
void rt_route(const float *logits, const float *bias, const rt_op_route *f, int32_t experts, double *scratch, float *out);
#endif
