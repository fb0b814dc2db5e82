/* The only header Cython sees: opaque types, plain structs, functions. Shapes stand on every pointer.
 *
 * Life: rt_engine_new (plan + weights + cache sizes, everything checked once) -> rt_engine_run per step -> rt_engine_free.
 * One caller at a time per engine; engines do not share anything. */
#ifndef RT_H
#define RT_H
#include "base/cpu.h"
#include "base/status.h"
#include "isa/kernels.h"
#include <stdint.h>

/* ---- the plan ---- */
#define RT_OP_WORDS 20
typedef struct rt_op { int32_t kind; uint32_t words[RT_OP_WORDS]; } rt_op; /* words: the op's fields, defs/ops.def order */

typedef struct rt_slot { int32_t width, per_row; } rt_slot;

typedef struct rt_weight {
  int32_t format, rows, k;  /* k == 0: a vector [rows] of f32, `packed` points at it */
  const uint8_t *packed;    /* R16 groups, or NULL in low-memory mode */
  const uint8_t *blocks;    /* the file's blocks [rows][k / block], read when packed == NULL */
  size_t bytes;             /* of what is given: proven against format, rows and k when the engine is made */
} rt_weight;

enum rt_group_kind { RT_PAGED, RT_LATENT, RT_STATE, RT_GROUP_KINDS }; /* plan.KINDS */

/* window: what each attention op on the group sees at most, 0 = everything. width: of a latent group, how many of a row's head_dim
 * numbers are its V, the first ones; of a state, f32 numbers a layer. row: of a SCAN's states whose prompts run in blocks, f32 numbers
 * that a token of an unfinished block leaves behind; 0: token by token. */
typedef struct rt_group { int32_t kind, layers, kv_heads, head_dim, k_format, v_format, window, width, row, pages; } rt_group;

typedef struct rt_rope { const double *inv_freq; int32_t pairs, interleaved; double mscale; } rt_rope; /* inv_freq [pairs] */

typedef struct rt_plan {
  const rt_op *ops;         int32_t n_ops;
  const rt_slot *slots;     int32_t n_slots;
  const rt_weight *weights; int32_t n_weights;
  const rt_group *groups;   int32_t n_groups;
  const rt_rope *ropes;     int32_t n_ropes;
  int32_t vocab, width;
} rt_plan;

typedef struct rt_limits {
  int32_t max_tokens, max_rows, max_seqs, histories, threads, isa, pool; /* pool: 0 own, 1 OpenMP */
  int32_t prompt_path, generated_path;                                   /* enum rt_path of each role */
} rt_limits;

/* ---- one step ---- */
typedef struct rt_sampling { /* types.SAMPLING */
  uint64_t seed;
  float temperature, top_p, min_p, typical_p, repetition, presence, frequency;
  int32_t top_k, candidate, position, history, bias_first, bias_count, allowed, logprobs, reserved;
} rt_sampling;

#define RT_TOP 20
typedef struct rt_sampled { /* types.SAMPLED */
  int32_t token, rank, flags, top_count;
  float logprob;
  int32_t top_ids[RT_TOP];
  float top_logprobs[RT_TOP];
} rt_sampled;

typedef struct rt_batch { /* types.Batch says what fills each */
  int32_t n_tokens, n_seqs, n_rows, n_bias, n_masks, n_embeddings;
  const int32_t *tokens, *positions;  /* [n_tokens] */
  const uint8_t *roles;               /* [n_tokens] */
  const int32_t *starts;              /* [n_seqs + 1] */
  const int32_t *kv_lens, *adapters;  /* [n_seqs] */
  const int32_t *const *tables;       /* [n_groups] -> [n_seqs][table_widths[g]] */
  const int32_t *table_widths;        /* [n_groups] */
  const int32_t *rows;                /* [n_rows] */
  const rt_sampling *sampling;        /* [n_rows] */
  const int32_t *bias_ids;            /* [n_bias] */
  const float *bias_values;           /* [n_bias] */
  const uint8_t *masks;               /* [n_masks][(vocab + 7) / 8] or NULL */
  const float *embeddings;            /* [n_embeddings][width] or NULL */
  const uint64_t *trees;              /* [n_tokens] or NULL */
} rt_batch;

typedef struct rt_engine rt_engine;

rt_code rt_engine_new(const rt_plan *plan, const rt_limits *limits, rt_engine **out, rt_status *st);
void rt_engine_free(rt_engine *e);
rt_code rt_engine_run(rt_engine *e, const rt_batch *batch, int32_t first, int32_t last, rt_status *st);
float *rt_engine_slot(rt_engine *e, int32_t slot);                /* [max_tokens or max_rows][width] */
const rt_sampled *rt_engine_sampled(rt_engine *e);                /* [max_rows] */
uint8_t *rt_engine_page(rt_engine *e, int32_t group, int32_t page, size_t *bytes); /* one page's K and V of all layers */
int32_t *rt_engine_seen(rt_engine *e, int32_t group, int32_t slot, int32_t *layers); /* tokens that a state has taken in, a layer */
/* The op clock: off until asked for, and then two readings of the clock an op. Switching it on sets every sum to 0. Weights are
 * counted by passes: each unit of work that takes a packed group of a matrix (in low-memory mode, its rows in the file) counts it
 * once, however many tokens meet it there. EMBED's rows are not counted. */
void rt_engine_clock(rt_engine *e, int32_t on);
const int64_t *rt_engine_times(rt_engine *e); /* [n_ops + 1] nanoseconds each op took, summed over runs; last: checking batches */
const int64_t *rt_engine_weights_read(rt_engine *e); /* [n_ops] bytes of weights each op took from memory, summed over runs */
rt_code rt_engine_copy_page(rt_engine *e, int32_t group, int32_t from, int32_t to, rt_status *st);
/* A state goes back to at most `length` tokens: it stays if it has seen no more, else it becomes the longest of the snapshots,
 * slots [n] that hold earlier states of the same tokens, that is no longer, else nothing. *left: tokens it then has. */
rt_code rt_state_truncate(rt_engine *e, int32_t group, int32_t slot, int32_t length, const int32_t *snapshots, int32_t n,
                          int32_t *left, rt_status *st);
rt_code rt_history_reset(rt_engine *e, int32_t history, rt_status *st);
rt_code rt_history_extend(rt_engine *e, int32_t history, const int32_t *tokens, int32_t n, int32_t generated, rt_status *st);
rt_code rt_history_truncate(rt_engine *e, int32_t history, int32_t length, rt_status *st);

/* ---- the machine ---- */
/* base/cpu.h has rt_cpu_best_isa and rt_isa_missing. */
const struct rt_kernels *rt_isa_kernels(int32_t isa);       /* NULL when this build does not have the set */
#endif
