/* What rt_engine_new binds and a step works on. Inside csrc/exec only. */
#ifndef RT_ENGINE_H
#define RT_ENGINE_H
#include "base/pool.h"
#include "base/region.h"
#include "exec/history.h"
#include "exec/op_fields.h"
#include "exec/ops.h"
#include "rt.h"

#include <stdbool.h>

/* Sizes of work. None depends on the number of threads. */
enum {
  RT_SPLIT = 16,       /* pages of one attention split, at absolute block indices */
  RT_SPLIT_UNITS = 64, /* up to this many (token, KV head) pairs splits are units of their own */
  RT_TOKENS = 64,      /* rows of one linear unit in A16 */
  RT_TOKENS_FAST = 128, /* in A8, and of float formats in A16_BF16: quick enough that reading weights again would show */
  RT_TOKENS_BF16 = 256, /* and in BF16, where weights cost most to unpack */
  RT_LATENT_HEADS = 16, /* most query heads of a latent group that one unit of attention takes */
  RT_EXPERTS = 2048,   /* most matrices that a token may choose from */
  RT_FUSED = 4,        /* up to this many tokens each thread rounds the activations for itself */
  RT_CHANNELS = 64,    /* channels of one convolution unit */
  RT_GONE = -1,         /* in a block table: the page behind a window was given back */
  RT_LINE_FLOATS = 12288 /* floats of one product in a thread's scratch */
};

typedef struct rt_matrix {
  rt_format format;
  int32_t rows, k, groups; /* k == 0: a vector, `values` */
  size_t group_bytes, row_bytes; /* of a packed group; of a row in the file, low-memory mode */
  const uint8_t *packed, *blocks;
  const float *values; /* [rows] */
} rt_matrix;

/* How an op computes the tokens of a role: the path, where another has the same bits that one, and rows of one unit. */
typedef struct rt_way { enum rt_path path; int32_t rows; } rt_way;

enum rt_finish { RT_STORE, RT_ACTIVATE, RT_ADD, RT_GATE, RT_CAP };

/* NORM_LINEAR, LINEAR, LINEAR_ADD, GATED and LOGITS are one thing: norm and round x, multiply by parts side by side, finish. */
typedef struct rt_linear {
  enum rt_finish finish;
  int32_t x, out, k, groups, n_parts, norm_kind, activation, flagged; /* flagged: only the batch's rows */
  float eps, scale, softcap;
  rt_way ways[2];                /* of prompt and of generated rows */
  const float *norm, *norm_bias; /* [k] or NULL */
  const rt_matrix *up;           /* RT_GATE */
  struct rt_part {
    const rt_matrix *matrix;
    const float *bias;           /* [matrix->rows] or NULL */
    int32_t first_group, offset; /* where the part begins among all groups and in `out` */
  } parts[3];
} rt_linear;

/* EACH_LINEAR and EXPERTS (exec/each.h). x_stride 0: a token's parts share one input. */
typedef struct rt_each {
  int32_t x, out, routes, k, parts, of, groups, x_stride, out_stride, activation; /* groups: of one matrix */
  rt_way ways[2];
  float eps;
  const float *norm;                 /* [k] or NULL */
  const rt_matrix *matrix, *up;      /* [of * 16 groups][k]; up only in EXPERTS */
} rt_each;

enum rt_scoring { RT_SOFTMAX, RT_SIGMOID, RT_SCORINGS }; /* plan.Scoring */

typedef struct rt_bound { enum rt_op_kind kind; rt_op_fields f; rt_linear linear; rt_each each; } rt_bound;

/* One group: [page][layer][kv_head][K [head_dim][16] | V [16][head_dim]]; a latent one: [page][layer][row [head_dim] of 16], of
 * which the first value_dim numbers are V; of states [slot][layer][width], behind each layer's width, with a row, [RT_PAGE]
 * [row]: the last one's first number says how many of the others are kept; the rest is 0. */
typedef struct rt_cache {
  rt_region memory;
  enum rt_group_kind kind;
  int32_t layers, kv_heads, head_dim, value_dim, window, width, row, pages;
  rt_format k_format, v_format;
  size_t k_bytes, head_bytes, layer_bytes, page_bytes;
  int32_t *positions; /* [pages][16] stored position of each slot */
  uint32_t *writer;   /* [pages] the last check that saw a token written there */
  int32_t *seen;      /* [pages][layers] of a state group: tokens that each layer's state has taken in */
} rt_cache;

typedef struct rt_rotation { const double *inv_freq; float *cos, *sin; int32_t pairs, interleaved; double mscale; uint64_t run; } rt_rotation;

typedef struct rt_activations { float *data; int32_t width, per_row; } rt_activations; /* data [max_tokens or max_rows][width] */

typedef struct rt_partials { float *out, *max, *sum; } rt_partials; /* out [rows][width], max [rows], sum [rows][16] */

typedef struct rt_scratch { /* one thread's */
  uint8_t *acts;        /* [RT_FUSED] activations of operation `op` in run `run` */
  uint64_t run;
  int32_t op;
  float *y, *y2;        /* [RT_LINE_FLOATS] */
  float *row;           /* one row of an embedding that positions are added to */
  uint8_t *group;       /* one packed group, low-memory mode; of EXPERTS two */
  int64_t *read;        /* bytes of weights that passes of the open phase took */
  rt_partials partials; /* of one tile */
  float *top, *total;   /* [rows], [rows][16] of a tile */
  float *pages;         /* scratch of attention_tile and attention_bf16 */
  uint8_t *sample;      /* rt_sample_bytes */
} rt_scratch;

typedef struct rt_token { int32_t token, position, sequence; } rt_token;
typedef struct rt_run { int32_t token, count, block, slot; } rt_run; /* tokens that go to one page: `block` of rt_step.blocks */
typedef struct rt_block rt_block;
typedef struct rt_query rt_query;
typedef struct rt_pair_block { int32_t first, rows[2], matrix; } rt_pair_block; /* first those of the first way */
typedef struct rt_pairs { /* of the EACH_LINEAR or EXPERTS op that runs: pair token * parts + part */
  int32_t *place, *at, *ends; /* [pairs] where a pair stands among the sorted; [pairs] which one stands there; [of * 2] */
  rt_pair_block *blocks;      /* [of] pairs of one matrix */
  int32_t n_blocks;
} rt_pairs;
/* Neighbouring tokens of a sequence and of one path that attention takes together; fresh: slot of the sequence's first token in
 * this step. */
typedef struct rt_tile { int32_t sequence, token, count, fresh; enum rt_path path; } rt_tile;

/* Rows of a linear op in the order it computes them: the i-th is row at[i], and those of prompts come first. */
typedef struct rt_lines { int32_t *at, n, prompts; } rt_lines;

typedef struct rt_step { /* one batch, checked */
  const rt_batch *batch;
  int32_t first, n_runs, n_tiles, splits; /* splits: of the longest sequence */
  rt_token *tokens;              /* [max_tokens] */
  rt_query *queries;             /* [max_tokens] */
  rt_run *runs;                  /* [max_tokens] */
  rt_tile *tiles;                /* [max_tokens] */
  int32_t *block_starts;         /* [max_seqs + 1] */
  rt_block **blocks;             /* [n_groups] -> [block_room], which grows with what sequences hold */
  int32_t block_room;
  rt_lines lines[2];             /* of every token [max_tokens]; of the flagged rows [max_rows] */
  int32_t **states;              /* [n_groups] -> [max_seqs] slots of a state group */
  int32_t **tails;               /* [n_groups] -> [max_seqs][16] positions of a last, partly filled page */
} rt_step;

typedef struct rt_clock { /* time goes to `op` since `since`; op n_ops is what stands before the first */
  int32_t on, op;
  int64_t since, *ns, *read; /* ns, read [n_ops + 1] */
} rt_clock;

struct rt_engine {
  rt_limits limits;
  const struct rt_kernels *k;
  rt_pool *pool;
  rt_region memory;
  int32_t n_ops, n_slots, n_weights, n_groups, n_paged, n_ropes, vocab, width; /* n_paged: groups that are no state */
  int32_t last_position; /* that a batch may name */
  rt_bound *ops;
  rt_activations *slots;
  rt_matrix *weights;
  rt_cache *groups;
  rt_rotation *ropes;
  rt_scratch *scratch;   /* [threads] */
  rt_history *histories; /* [histories] */
  rt_sampled *sampled;   /* [max_rows] */
  uint8_t *acts;         /* activations of every token, when more than RT_FUSED */
  float *rates;          /* dt and decay of a SCAN's heads [max_tokens][2][heads] */
  float *mixes;          /* of a SCAN in blocks: C of a token with B of its block's [max_tokens][groups][RT_PAGE] */
  rt_pairs pairs;
  uint32_t checks;       /* number of this batch check */
  rt_partials partials;  /* of RT_SPLIT_UNITS (token, KV head) pairs */
  rt_step step;
  rt_clock clock;
  uint64_t run;          /* number of this rt_engine_run */
  int32_t splits;        /* of one pair that partials have room for */
  /* The largest an op needs. */
  size_t acts_bytes, fused_bytes, group_bytes, row_floats;
  size_t pairs_most, keys_most;
  size_t page_floats;                        /* scratch of a tile's attention */
  int32_t scan_heads, scan_groups;
  int32_t share, query_rows, partial_floats; /* query heads of a KV head; rows of a tile; floats of a tile's partial */
};

/* A slot's row of a token, or of a flagged row. */
static inline float *rt_row(const rt_engine *e, int32_t slot, int32_t row) {
  return e->slots[slot].data + (size_t)row * (size_t)e->slots[slot].width;
}

/* CONV and SCAN: the group and layer whose state an op goes on from, or false. */
static inline bool rt_is_recurrent(const rt_bound *o, int32_t *group, int32_t *layer) {
  if (o->kind == RT_OP_CONV) *group = o->f.conv.group, *layer = o->f.conv.layer;
  else if (o->kind == RT_OP_SCAN) *group = o->f.scan.group, *layer = o->f.scan.layer;
  else return false;
  return true;
}

/* exec/room.c: room for a batch's blocks in all, and for the splits of its longest sequence. */
rt_code rt_room_for_blocks(rt_engine *e, int64_t count, rt_status *st);
rt_code rt_room_for_splits(rt_engine *e, int32_t splits, rt_status *st);
void rt_room_free(rt_engine *e);

/* exec/batch.c: everything a step reads from a batch, proven; then the step's tables. */
rt_code rt_step_begin(rt_engine *e, const rt_batch *batch, int32_t first, int32_t last, rt_status *st);
enum rt_path rt_path_of(const rt_engine *e, const rt_batch *b, int32_t token);

/* Query heads that one unit of attention takes: those of a KV head; of a latent group's one head, whose page is widened for
 * them, the largest divisor that is not more than RT_LATENT_HEADS. */
static inline int32_t rt_share_of(const rt_cache *c, int32_t heads) {
  if (c->kind != RT_LATENT) return heads / c->kv_heads;
  int32_t share = heads < RT_LATENT_HEADS ? heads : RT_LATENT_HEADS;
  while (heads % share) share--;
  return share;
}
#endif
