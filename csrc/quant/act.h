/* One token's activations, in the form the linear kernels of its path read.
 *
 * A path is how a product rounds. It belongs to a token, never to the batch it is in.
 *   A16       activations are 16-bit integers, sums of a block exact; float formats multiply x
 *   A16_BF16  the same, but for float formats: they and their activations are rounded to bf16 (ops/linear_pairs.h)
 *   BF16      weights and activations are rounded to bf16 (ops/linear_bf16.h)
 *   A8        activations are 8-bit integers under a scale for every 32; float formats as A16_BF16 (ops/linear_a8.h)
 *
 * A16:
 *   kp = k rounded up to 64; padding is zero.  scale = max|x| / 32639,  q = round to even(x / scale) = 256 * high + low
 *   f32 scale, padded to 64 bytes | s32 sum[kp / 16] of q, padded to 64 | s8 high[kp] | s8 low[kp] | s16 q[kp] | f32 x[kp]
 *
 * 32639 = 127 * 256 + 127 is the most that high = (q + 128) >> 8, low = q - 256 * high hold in 8 bits each.
 * A16_BF16: bf16[kp] in the place of x.
 * A8: q = round to even(x / scale), scale = max|x| / 127 of 32 k each, stands in q, low and sum; where high is, f32 scales[kp / 32]
 * and totals[kp / 32] = scale * sum of q; x as A16_BF16's. The row's own scale is 1.
 * BF16: bf16[kp] where high and low are, and x[kp] holds the same numbers; scale, sum and q are not written.
 * What is below 2^-100 everywhere under its scale is zero, and so is the scale. A row with a NaN or an infinity is zero under
 * scales NaN, so that whatever is multiplied with it is NaN. */
#ifndef RT_ACT_H
#define RT_ACT_H
#include <stddef.h>
#include <stdint.h>

enum rt_path { RT_PATH_A16, RT_PATH_A16_BF16, RT_PATH_BF16, RT_PATH_A8, RT_PATHS }; /* closest to f32 first, as machine.PATHS */

typedef struct rt_act {
  float *scale;        /* [1] */
  int32_t *sum;        /* [kp / 16] */
  int8_t *high, *low;  /* [kp] */
  int16_t *q;          /* [kp] */
  float *x;            /* [kp] */
  uint16_t *bf16;      /* [kp] of BF16 */
  uint16_t *pairs;     /* [kp] bf16 of A16_BF16 and A8 */
  float *scales, *totals; /* [kp / 32] of A8 */
} rt_act;

static inline size_t rt_act_k(int k) { return ((size_t)k + 63) / 64 * 64; }
static inline size_t rt_act_head(size_t kp) { return 64 + (kp / 16 * 4 + 63) / 64 * 64; }
static inline size_t rt_act_size(int k) { return rt_act_head(rt_act_k(k)) + rt_act_k(k) * 8; }

static inline rt_act rt_act_at(uint8_t *act, int k) {
  size_t kp = rt_act_k(k), head = rt_act_head(kp);
  return (rt_act){(float *)act,        (int32_t *)(act + 64),           (int8_t *)(act + head), (int8_t *)(act + head + kp),
                  (int16_t *)(act + head + 2 * kp), (float *)(act + head + 4 * kp), (uint16_t *)(act + head),
                  (uint16_t *)(act + head + 4 * kp), (float *)(act + head), (float *)(act + head) + kp / 32};
}

#ifdef V_INLINE
#include "simd/math.h"

/* Fill everything but x from x[kp], `most` = max|x|, `broken` = NaN when an x is not finite, else 0. */
static inline void rt_act_round(rt_act a, size_t kp, float most, float broken) {
  enum { MOST = 32639 };
  int usable = broken == 0.0f && most >= 0x1p-100f;
  *a.scale = usable ? most / (float)MOST : broken;
  if (!usable) {
    memset(a.sum, 0, kp / 16 * sizeof *a.sum);
    memset(a.high, 0, kp);
    memset(a.low, 0, kp);
    memset(a.q, 0, kp * sizeof *a.q);
    return;
  }
  v16f inverse = v_set1((float)MOST / most);
  for (size_t b = 0; b < kp / 16; b++)
    a.sum[b] = v_store_planes(v_mul(v_load(a.x + b * 16), inverse), a.q + b * 16, a.high + b * 16, a.low + b * 16);
}

/* The same of A8, block by block. */
static inline void rt_act_round8(rt_act a, size_t kp, float broken) {
  enum { MOST = 127, BLOCK = 32 };
  *a.scale = 1.0f;
  for (size_t b = 0; b < kp / BLOCK; b++) {
    const float *x = a.x + b * BLOCK;
    v16f x0 = v_load(x), x1 = v_load(x + 16);
    float most = v_most(v_max(v_abs(x0), v_abs(x1)));
    int usable = broken == 0.0f && most >= 0x1p-100f;
    v16f inverse = v_set1(usable ? (float)MOST / most : 0.0f);
    if (!usable) x0 = x1 = v_zero();
    int32_t first = v_store_planes(v_mul(x0, inverse), a.q + b * BLOCK, NULL, a.low + b * BLOCK);
    int32_t second = v_store_planes(v_mul(x1, inverse), a.q + b * BLOCK + 16, NULL, a.low + b * BLOCK + 16);
    a.sum[2 * b] = first, a.sum[2 * b + 1] = second;
    a.scales[b] = usable ? most / (float)MOST : broken;
    a.totals[b] = a.scales[b] * (float)(first + second);
  }
}

/* pairs[kp] <- x[kp], which lies there, rounded to bf16. */
static inline void rt_act_pairs(rt_act a, size_t kp) {
  for (size_t i = 0; i < kp; i += 16) {
    v16f x = v_load(a.x + i);
    __asm__ volatile("" ::: "memory"); /* the same bytes, as numbers of another type */
    v_store_bf16(a.pairs + i, x);
  }
}

/* x[kp] and bf16[kp] <- x rounded to bf16. */
static inline void rt_act_bf16(rt_act a, size_t kp) {
  for (size_t i = 0; i < kp; i += 16) {
    v_store_bf16(a.bf16 + i, v_load(a.x + i));
    v_store(a.x + i, v_load_bf16(a.bf16 + i));
  }
}
#endif
#endif
