/* What ops of several files share: rows of slots, groups of matrices, products. Inside csrc/exec only. */
#ifndef RT_WORK_H
#define RT_WORK_H
#include "exec/engine.h"
#include "load/pack.h"

enum { CLAIM_BYTES = 96 << 10 }; /* a claim's weights at one token; more tokens, fewer weights */

static inline int32_t least(int32_t a, int32_t b) { return a < b ? a : b; }
static inline int32_t most_of(int64_t budget, int64_t unit) { return budget > unit ? (int32_t)(budget / unit) : 1; }

static inline float *row_of(const rt_engine *e, int32_t slot, int32_t row) { return rt_row(e, slot, row); }

static inline const float *values_of(const rt_engine *e, int32_t weight) { return weight < 0 ? NULL : e->weights[weight].values; }

static inline const uint8_t *packed_group(const rt_matrix *m, int32_t group, rt_scratch *s) {
  if (m->packed) return m->packed + (size_t)group * m->group_bytes;
  rt_pack_group(m->format, (uint64_t)m->rows, (uint64_t)m->k, m->blocks, (uint64_t)group, s->group);
  return s->group;
}

/* `n` packed groups of m for one pass over them, which the op clock counts: where they lie, or in low-memory mode the one that is
 * packed into `room`. */
static inline const uint8_t *take_groups(const rt_matrix *m, int32_t first, int32_t n, uint8_t *room, rt_scratch *s) {
  if (m->packed) {
    *s->read += (int64_t)n * (int64_t)m->group_bytes;
    return m->packed + (size_t)first * m->group_bytes;
  }
  *s->read += (int64_t)least(RT_GROUP, m->rows - first * RT_GROUP) * (int64_t)m->row_bytes;
  rt_pack_group(m->format, (uint64_t)m->rows, (uint64_t)m->k, m->blocks, (uint64_t)first, room);
  return room;
}

/* y [rows][16 * n], rows ldy apart = n packed groups of m times `rows` activations of one path. */
static inline void multiply(const rt_engine *e, const rt_matrix *m, const uint8_t *groups, int32_t n, const uint8_t *acts,
                            int32_t rows, enum rt_path path, float *restrict y, size_t ldy) {
  e->k->linear[path][m->format](groups, m->k, 0, n, acts, rt_act_bytes(m->k), rows, y, ldy);
}
#endif
