/* One head at a time: optional RMS norm, rotation, and a place in a page.  One token's head is one chunk of work.
 *
 *   norm      x * (1 / sqrt(mean(x^2) + eps)) * norm
 *   rotation  (a, b) -> (a cos - b sin, b cos + a sin), each product rounded, for the pairs (2i, 2i + 1) when interleaved,
 *             else (i, i + pairs); dimensions past 2 * pairs stay
 *   page      K [head_dim][16 token], so that 16 scores are one vector; V [16 token][head_dim] */
#ifndef RT_OPS_ROPE_KV_H
#define RT_OPS_ROPE_KV_H
#include "ops/norm.h"

/* x: [head_dim] in place, norm: [head_dim] or NULL, cos, sin: [pairs] or pairs == 0 */
static void rt_rope_head(float *x, int head_dim, const float *norm, float eps, const float *cos, const float *sin, int pairs,
                         int interleaved) {
  if (norm != NULL) {
    float inverse = 1.0f / __builtin_sqrtf(rt_sum_squares(x, head_dim, 0.0f) / (float)head_dim + eps);
    for (int i = 0; i < head_dim; i++) x[i] = x[i] * inverse * norm[i];
  }
  int step = interleaved ? 2 : 1, apart = interleaved ? 1 : pairs;
  for (int i = 0; i < pairs; i++) {
    float a = x[i * step], b = x[i * step + apart];
    x[i * step] = a * cos[i] - b * sin[i];
    x[i * step + apart] = b * cos[i] + a * sin[i];
  }
}

/* How 16 values stand in a page, one pair of functions a format. */
V_INLINE v16f rt_page_load_F32(const uint8_t *p) { return v_load((const float *)p); }
V_INLINE v16f rt_page_load_F16(const uint8_t *p) { return v_load_f16((const uint16_t *)p); }
V_INLINE v16f rt_page_load_BF16(const uint8_t *p) { return v_load_bf16((const uint16_t *)p); }
V_INLINE void rt_page_store_F32(uint8_t *p, v16f x) { v_store((float *)p, x); }
V_INLINE void rt_page_store_F16(uint8_t *p, v16f x) { /* clamped to the finite range, NaN kept */
  v_store_f16((uint16_t *)p, v_min(v_set1(65504.0f), v_max(v_set1(-65504.0f), x)));
}
V_INLINE void rt_page_store_BF16(uint8_t *p, v16f x) { v_store_bf16((uint16_t *)p, x); }

/* x: [head_dim] -> lane `slot` of page [head_dim][16], or row `slot` of page [16][head_dim] */
#define RT_PAGE_STORE(name, bytes)                                                             \
  static void rt_store_k_##name(const float *x, int head_dim, int slot, uint8_t *page) {       \
    uint8_t wide[16 * bytes];                                                                  \
    for (int i = 0; i < head_dim; i += 16) {                                                   \
      int lanes = head_dim - i < 16 ? head_dim - i : 16;                                       \
      rt_page_store_##name(wide, v_load_n(x + i, lanes, 0.0f));                                \
      for (int l = 0; l < lanes; l++)                                                          \
        memcpy(page + ((size_t)(i + l) * 16 + (size_t)slot) * bytes, wide + l * bytes, bytes); \
    }                                                                                          \
  }                                                                                            \
  static void rt_store_v_##name(const float *x, int head_dim, int slot, uint8_t *page) {       \
    uint8_t wide[16 * bytes], *row = page + (size_t)slot * (size_t)head_dim * bytes;           \
    for (int i = 0; i < head_dim; i += 16) {                                                   \
      int lanes = head_dim - i < 16 ? head_dim - i : 16;                                       \
      rt_page_store_##name(wide, v_load_n(x + i, lanes, 0.0f));                                \
      memcpy(row + i * bytes, wide, (size_t)lanes * bytes);                                    \
    }                                                                                          \
  }                                                                                            \
  /* What reads them: 16 tokens' K in dimension d; `lanes` of V, c vectors behind number `at` of the page, with its scales. */ \
  enum { RT_ROW_BYTES_##name = 16 * bytes }; \
  V_INLINE v16f rt_k_scale_##name(const uint8_t *k, int head_dim, int d) { \
    (void)k, (void)head_dim, (void)d; \
    return v_zero(); \
  } \
  V_INLINE v16f rt_k_row_##name(const uint8_t *k, int head_dim, int d, v16f scale) { \
    (void)head_dim, (void)scale; \
    return rt_page_load_##name(k + (size_t)d * 16 * bytes); \
  } \
  enum { RT_V_SCALES_##name = 1 }; \
  V_INLINE void rt_v_scales_##name(const uint8_t *v, int head_dim, float *scales) { (void)v, (void)head_dim, (void)scales; } \
  V_INLINE v16f rt_v_row_##name(const uint8_t *v, int head_dim, size_t at, int c, int lanes, const float *scales) { \
    const uint8_t *p = v + at * bytes + c * 16 * bytes; \
    uint8_t wide[16 * bytes] = {0}; \
    (void)head_dim, (void)scales; \
    if (lanes >= 16) return rt_page_load_##name(p); \
    memcpy(wide, p, (size_t)lanes * bytes); \
    return rt_page_load_##name(wide); \
  }
RT_PAGE_STORE(F32, 4)
RT_PAGE_STORE(F16, 2)
RT_PAGE_STORE(BF16, 2)
#undef RT_PAGE_STORE

/* Q8_0: blocks of 32 along head_dim, a multiple of it, each token its own: value = scale * q, q of one byte and the scale in
 * f16, so that the value is exact in f32. Scales lie before the bytes: K f16 [head_dim / 32][16], s8 [head_dim][16];
 * V f16 [16][head_dim / 32], s8 [16][head_dim].
 * scale = max|x| / 127 rounded to f16 and at most its largest, q = round(x / scale) within -127..127; a NaN makes its block NaN. */
enum { RT_ROW_BYTES_Q8_0 = 17 };

/* x: [32] -> q, one every `apart` bytes; the scale as f16 */
static uint16_t rt_page_block_Q8_0(const float *x, int apart, uint8_t *q) {
  const v16f most = v_set1(3e38f), least = v_set1(-3e38f), ends = v_set1(127.0f), inf = v_set1(__builtin_inff());
  v16f a = v_min(most, v_max(least, v_load(x))), b = v_min(most, v_max(least, v_load(x + 16)));
  int32_t whole[32];
  float scale = v_most(v_max(v_abs(a), v_abs(b))) / 127.0f;
  uint16_t half = rt_f32_to_f16(scale < 65504.0f ? scale : 65504.0f);
  if ((v_bits(v_less(v_abs(a), inf)) & v_bits(v_less(v_abs(b), inf))) != 0xffff) {
    for (int i = 0; i < 32; i++) q[i * apart] = 0;
    return 0x7e00;
  }
  scale = rt_f16_to_f32(half);
  v16f divisor = v_set1(scale > 0.0f ? scale : 1.0f);
  v_store_s32(whole, v_round(v_min(ends, v_max(v_set1(-127.0f), v_div(a, divisor)))));
  v_store_s32(whole + 16, v_round(v_min(ends, v_max(v_set1(-127.0f), v_div(b, divisor)))));
  for (int i = 0; i < 32; i++) q[i * apart] = (uint8_t)whole[i];
  return half;
}
static void rt_store_k_Q8_0(const float *x, int head_dim, int slot, uint8_t *page) {
  for (int i = 0; i < head_dim; i += 32) {
    uint16_t half = rt_page_block_Q8_0(x + i, 16, page + head_dim + i * 16 + slot);
    memcpy(page + i + slot * 2, &half, 2);
  }
}
static void rt_store_v_Q8_0(const float *x, int head_dim, int slot, uint8_t *page) {
  for (int i = 0; i < head_dim; i += 32) {
    uint16_t half = rt_page_block_Q8_0(x + i, 1, page + head_dim + slot * head_dim + i);
    memcpy(page + (slot * head_dim + i) / 32 * 2, &half, 2);
  }
}
V_INLINE v16f rt_k_scale_Q8_0(const uint8_t *k, int head_dim, int d) {
  (void)head_dim;
  return v_load_f16((const uint16_t *)k + d / 32 * 16);
}
V_INLINE v16f rt_k_row_Q8_0(const uint8_t *k, int head_dim, int d, v16f scale) {
  return v_mul(v_of_s8(k + head_dim + d * 16), scale);
}
enum { RT_V_SCALES_Q8_0 = 1 << 11 }; /* of a page of the largest head_dim */
V_INLINE void rt_v_scales_Q8_0(const uint8_t *v, int head_dim, float *scales) {
  for (int i = 0; i < head_dim / 2; i += 16) v_store(scales + i, v_load_f16((const uint16_t *)v + i));
}
V_INLINE v16f rt_v_row_Q8_0(const uint8_t *v, int head_dim, size_t at, int c, int lanes, const float *scales) {
  (void)lanes; /* c > 0 only from a block's first number on */
  return v_mul(v_of_s8(v + head_dim + at + c * 16), v_set1((scales + at / 32)[c / 2]));
}
#endif
