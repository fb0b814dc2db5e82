/* What an instruction set offers: one const table per set, filled by isa/kernels.inc.
 *
 * Every kernel computes in one fixed order on 16 lanes (simd/<set>.h), multiplies and adds fused only where written so:
 * the sets give the same bits, scalar is the specification, and a row's bits depend on no neighbour. */
#ifndef RT_KERNELS_H
#define RT_KERNELS_H
#include "quant/act.h"
#include "quant/formats.h"
#include <stddef.h>
#include <stdint.h>

enum rt_isa {
#define ISA(name, needs) RT_ISA_##name,
#include "defs/isas.def"
#undef ISA
  RT_ISAS
};

#define RT_PAGE 16 /* tokens of one page */
#define RT_GROUP 16 /* output rows of one packed group */

size_t rt_act_bytes(int k); /* of one token's activations (quant/act.h), 64-byte aligned */

#define RT_QUERY_ROWS 96 /* most query rows (tokens times share) of attention_tile */

#define RT_TILE_SLOTS 64 /* slots of the pages that attention_tile widens at a time */

/* A row of a partial result: head_dim up to whole vectors. */
#define RT_SPAN_PAGES 16 /* most pages of attention_bf16 */
#define RT_SPAN_ROWS 32 /* query rows whose scores it holds at a time */
static inline int32_t rt_attention_width(int32_t head_dim) { return (head_dim + 15) / 16 * 16; }
static inline size_t rt_attention_bf16_floats(int32_t head_dim, int32_t rows) { /* its scratch */
  size_t width = ((size_t)head_dim + 31) / 32 * 32, slots = RT_SPAN_PAGES * RT_PAGE;
  return (slots + 16 + RT_SPAN_ROWS) * width + (RT_SPAN_ROWS + (size_t)rows) * slots;
}

struct rt_block { /* 16 slots of a sequence; low, high: least and greatest position stored in them, high -1 when none is */
  int32_t page, low, high;
  const int32_t *positions; /* [16], -1 = empty; never read when none is */
};
struct rt_query { /* what a token may see: by position, and of its sequence's tokens of this step those with a bit (0 = all) */
  int32_t position;
  uint64_t tree;
};
struct rt_attention_args { /* tokens of one sequence, one KV head and the `share` query heads that read it, some blocks */
  const float *q;                 /* [tokens], q_stride floats apart, of [share][head_dim] */
  const struct rt_query *queries; /* [tokens] */
  const uint8_t *k, *v;           /* K and V of this head in page 0; page i is i * k_stride, i * v_stride bytes further;
                                   * v NULL: k holds latent rows [16][head_dim], which are both */
  const struct rt_block *blocks;  /* [n_blocks], the sequence's from first_block on; `more` lie behind them, to fetch early */
  float *out, *max, *sum;         /* a partial result: [tokens * share][width], [tokens * share], [tokens * share][16] */
  size_t q_stride, k_stride, v_stride;
  int32_t n_blocks, more, first_block, fresh, tokens, share, head_dim, window; /* fresh: slot of the step's first new token */
  enum rt_format k_format, v_format;
  float scale, softcap;
};

#define RT_TAPS 16 /* most inputs of a channel that CONV meets */

struct rt_conv_args { /* tokens of one sequence, some channels; rows of x, state and out are their strides apart */
  const float *x, *w, *bias; /* [tokens] of [channels]; [channels][taps]; [channels] or NULL */
  float *state, *out;        /* [taps - 1] of [channels]; [tokens] of [channels] */
  size_t x_stride, state_stride, out_stride;
  int32_t tokens, channels, taps, activation; /* plan.Activation, -1: none */
};
struct rt_scan_args { /* tokens of one sequence, one head; rows of x, b and c are x_stride apart */
  const float *x, *b, *c;   /* [tokens] of [head_dim], [numbers], [numbers] */
  const float *dt, *decay;  /* [tokens], rate_stride apart */
  float *state, *out;       /* [numbers][head_dim]; [tokens] of [head_dim] */
  size_t x_stride, rate_stride, out_stride;
  int32_t tokens, head_dim, numbers;
  float d;
};

struct rt_scan_block_args { /* up to RT_PAGE tokens in a row of one head; those from `first` on are answered */
  const float *x[RT_PAGE], *b[RT_PAGE];    /* of each token: [head_dim], [numbers] */
  const float *c[RT_PAGE], *mix[RT_PAGE];  /* of each from `first` on: [numbers]; c with b of the tokens up to it */
  float *out[RT_PAGE];                     /* of each from `first` on: [head_dim] */
  float dt[RT_PAGE], decay[RT_PAGE];
  float *state;                            /* before the first of them; with `ends` it becomes the one after the last */
  int32_t tokens, first, ends, head_dim, numbers; /* [numbers][head_dim] is the state */
  float d;
};

/* y[m][16*(last-first)] (row stride ldy) = packed groups [first, last) times each of m activations (stride act_stride).
 * `packed` points at group 0; a group is kp / tile_k tiles. Any m; each row's bits equal those of m = 1. */
typedef void rt_linear_kernel(const uint8_t *packed, int k, int first, int last, const uint8_t *act, size_t act_stride, int m,
                              float *y, size_t ldy);

struct rt_kernels {
  const char *name;
  /* act <- x[k] as `path` reads it (rms or layer norm applied first when norm != NULL; kind as plan.NormKind). */
  void (*quantize)(const float *x, int k, int norm_kind, const float *norm, const float *norm_bias, float eps,
                   enum rt_path path, uint8_t *act);
  rt_linear_kernel *linear[RT_PATHS][RT_FORMATS]; /* products */
  /* out[k] = row `row` of a packed matrix, times scale. */
  void (*embed[RT_FORMATS])(const uint8_t *packed, int k, int64_t row, float scale, float *out);
  /* y[i] += scale * (x[i] + bias[i]);  bias may be NULL.  n any. */
  void (*add_scaled)(const float *x, const float *bias, float scale, int n, float *y);
  /* y[i] = x[i] + bias[i] */
  void (*add_bias)(const float *x, const float *bias, int n, float *y);
  /* y[i] += x[i] * (1 / sqrt(mean(x^2) + eps)) * norm[i] */
  void (*norm_add)(const float *x, int n, const float *norm, float eps, float *y);
  /* out[i] = activation(gate[i]) * up[i]; up may be NULL: activation(gate[i]) */
  void (*gate[3])(const float *gate, const float *up, int n, float *out);
  /* One head in place: optional RMS norm with weight norm[head_dim], then rotation by cos/sin [pairs]. */
  void (*rope_head)(float *x, int head_dim, const float *norm, float eps, const float *cos, const float *sin, int pairs,
                    int interleaved);
  /* Store one token's K [head_dim] at lane `slot` of a page's [head_dim][16], V [head_dim] at row `slot` of [16][head_dim];
   * formats F32, BF16, F16 (clamped to its finite range, NaN kept), Q8_0 (head_dim a multiple of 32). */
  void (*store_k[RT_FORMATS])(const float *x, int head_dim, int slot, uint8_t *page);
  void (*store_v[RT_FORMATS])(const float *x, int head_dim, int slot, uint8_t *page);
  /* Online softmax over blocks in order, not yet divided: out, max and sum of each query row; sum[row][0] is -1 where a row
   * saw nothing. `attention` takes one token, `attention_tile` up to RT_QUERY_ROWS rows, with the same bits in each row
   * (latent pages go to `attention_tile` alone);
   * scratch: f32 [RT_TILE_SLOTS][head_dim] and [RT_TILE_SLOTS][width]. */
  void (*attention)(const struct rt_attention_args *args);
  void (*attention_tile)(const struct rt_attention_args *args, float *scratch);
  /* The same on the BF16 path, of tokens in any number up to RT_QUERY_ROWS rows (or one with more) and up to RT_SPAN_PAGES blocks
   * from an even one on: a token's bits are its own. scratch: rt_attention_bf16_floats f32. */
  void (*attention_bf16)(const struct rt_attention_args *args, float *scratch);
  /* One more partial, in order of blocks, into top [rows], total [rows][16] and out [rows][head_dim]. They start as -FLT_MAX,
   * 0, 0, or with a sink as the sink, (1, 0, ...), 0. */
  void (*attention_join)(int rows, int head_dim, const float *partial, const float *max, const float *sum, float *top,
                         float *total, float *out);
  /* out[rows][head_dim] /= sum of total[rows][16]; a row that saw nothing stays 0. */
  void (*attention_end)(int rows, int head_dim, const float *total, float *out);
  /* The recurrences of ops/conv.h and ops/scan.h; the state goes on to what it is after the last token. */
  void (*conv)(const struct rt_conv_args *args);
  void (*scan)(const struct rt_scan_args *args);
  /* mix[j] = c [numbers] with b[j] [numbers], of n <= RT_PAGE tokens. */
  void (*scan_mix)(const float *c, const float *const *b, int n, int numbers, float *mix);
  void (*scan_block)(const struct rt_scan_block_args *args);
  /* One group of a row: out = rmsnorm(x * silu(gate)) * norm, or rmsnorm(x) * norm * silu(gate). [n] each; out may be x. */
  void (*gated_norm)(const float *x, const float *gate, int n, const float *norm, float eps, int gate_last, float *out);
  /* x <- softcap * tanh(scale * x / softcap), or scale * x when softcap is 0. */
  void (*scale_cap)(float *x, int n, float scale, float softcap);
  /* Index of the largest, lowest index first; *finite = 0 when any is NaN or infinite. Also the largest value. */
  int (*argmax)(const float *x, int n, float *largest, int *finite);
  /* sum exp(x - largest), in f32 lanes folded in a fixed order into f64. */
  double (*exp_sum)(const float *x, int n, float largest);
};

#define ISA(name, needs) extern const struct rt_kernels rt_kernels_##name;
#include "defs/isas.def"
#undef ISA
#endif
