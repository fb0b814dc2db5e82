/* What an instruction set offers: one const table per set, filled by isa/kernels.inc.
 *
 * Every kernel computes in one fixed order on 16 lanes (simd/<set>.h), multiplies and adds fused only where written so:
 * the sets give the same bits, scalar is the specification, and a row's bits depend on no neighbour. */
#ifndef RT_KERNELS_H
#define RT_KERNELS_H
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

/* One token's activations as the linear kernels read them, `rt_act_bytes(k)` bytes, 64-byte aligned. kp = k rounded up
 * to 64, padding is zero. q = round(x * 32639 / max|x|) = 256*high + low, sums of q per 16; float formats read x.
 *   f32 scale, pad to 64 bytes | s32 sum[kp/16], padded to 64 bytes | s8 high[kp] | s8 low[kp] | s16 q[kp] | f32 x[kp] */
size_t rt_act_bytes(int k);

struct rt_attention_args { /* one token, one KV head and the `share` query heads that read it */
  const float *q;          /* [share][head_dim] */
  float *out;              /* [share][head_dim] */
  const uint8_t *const *k; /* [blocks] K of this head in each page: [head_dim][16] in k_format */
  const uint8_t *const *v; /* [blocks] V of this head in each page: [16][head_dim] in v_format */
  const int32_t *const *positions; /* [blocks][16] stored position of each slot, -1 = empty */
  int32_t blocks, share, head_dim, position, window;
  float scale, softcap;
};

struct rt_kernels {
  const char *name;
  /* act <- the A16 form of x[k] (rms or layer norm applied first when norm != NULL; kind as plan.NormKind). */
  void (*quantize)(const float *x, int k, int norm_kind, const float *norm, const float *norm_bias, float eps, uint8_t *act);
  /* y[m][16*(last-first)] (row stride ldy) = packed groups [first, last) times each of m activations (stride act_stride).
   * `packed` points at group 0; a group is kp / tile_k tiles. Any m; each row's bits equal those of m = 1. */
  void (*linear[RT_FORMATS])(const uint8_t *packed, int k, int first, int last, const uint8_t *act, size_t act_stride, int m,
                             float *y, size_t ldy);
  /* out[k] = row `row` of a packed matrix, times scale. */
  void (*embed[RT_FORMATS])(const uint8_t *packed, int k, int64_t row, float scale, float *out);
  /* y[i] += scale * (x[i] + bias[i]);  bias may be NULL.  n any. */
  void (*add_scaled)(const float *x, const float *bias, float scale, int n, float *y);
  /* y[i] = x[i] + bias[i] */
  void (*add_bias)(const float *x, const float *bias, int n, float *y);
  /* y[i] += x[i] * (1 / sqrt(mean(x^2) + eps)) * norm[i] */
  void (*norm_add)(const float *x, int n, const float *norm, float eps, float *y);
  /* out[i] = activation(gate[i]) * up[i] */
  void (*gate[3])(const float *gate, const float *up, int n, float *out);
  /* One head in place: optional RMS norm with weight norm[head_dim], then rotation by cos/sin [pairs]. */
  void (*rope_head)(float *x, int head_dim, const float *norm, float eps, const float *cos, const float *sin, int pairs,
                    int interleaved);
  /* Store one token's K [head_dim] at lane `slot` of a page's [head_dim][16], V [head_dim] at row `slot` of [16][head_dim];
   * formats F32, F16 (clamped to its finite range, NaN kept). */
  void (*store_k[RT_FORMATS])(const float *x, int head_dim, int slot, uint8_t *page);
  void (*store_v[RT_FORMATS])(const float *x, int head_dim, int slot, uint8_t *page);
  /* Online softmax over pages in order; partial form for split contexts: writes out unnormalized with max and sum
   * per query head [share], combined by `attention_combine` in block order. k_format, v_format are enum rt_format. */
  void (*attention)(const struct rt_attention_args *args, int k_format, int v_format, float *max, float *sum);
  /* out[share][head_dim] <- n partials out[n][share][head_dim], max[n][share], sum[n][share], and sinks [share] or NULL. */
  void (*attention_combine)(int n, int share, int head_dim, const float *partial, const float *max, const float *sum,
                            const float *sinks, float *out);
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
