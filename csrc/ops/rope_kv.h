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
  }
RT_PAGE_STORE(F32, 4)
RT_PAGE_STORE(F16, 2)
RT_PAGE_STORE(BF16, 2)
#undef RT_PAGE_STORE
#endif
