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

static const int32_t block_rows[RT_PATHS] = {[RT_PATH_A16] = RT_TOKENS, [RT_PATH_BF16] = RT_TOKENS_BF16};

/* y [rows][16 * (last - first)] = groups [first, last) of m times `rows` activations of one path. */
static inline void multiply(const rt_engine *e, const rt_matrix *m, int32_t first, int32_t last, const uint8_t *acts, int32_t rows,
                            enum rt_path path, float *restrict y, rt_scratch *s) {
  size_t stride = rt_act_bytes(m->k), ldy = (size_t)(last - first) * RT_GROUP;
  rt_linear_kernel *run = path == RT_PATH_BF16 ? e->k->linear_bf16[m->format] : e->k->linear[m->format];
  if (m->packed) {
    run(m->packed, m->k, first, last, acts, stride, rows, y, ldy);
  } else {
    for (int32_t g = first; g < last; g++)
      run(packed_group(m, g, s), m->k, 0, 1, acts, stride, rows, y + (g - first) * RT_GROUP, ldy);
  }
}
#endif
