/* Q4_1, value = d * n + m.
 *   file (20 for 32 weights):  d f16 | m f16 | n u4[32], byte i holds n[i] low and n[i + 16] high
 *   tile (640):                d f16 [2 half][16 row] | m f16 [2 half][16 row] | [8 step][16 row][4 k] u8 as in Q4_0
 * A padding weight is n = 0 under d = m = 0. */
#ifndef RT_Q4_1_H
#define RT_Q4_1_H
#include "quant/r16.h"

static inline void rt_decode_Q4_1(const uint8_t *restrict block, float *restrict out /* [32] */) {
  float d = rt_load_f16(block), m = rt_load_f16(block + 2);
  for (int k = 0; k < 16; k++) {
    out[k] = d * (float)(block[4 + k] & 15) + m;
    out[k + 16] = d * (float)(block[4 + k] >> 4) + m;
  }
}

static inline void rt_pack_Q4_1(const uint8_t *restrict blocks, size_t stride, int rows, int k, uint8_t *restrict tile) {
  size_t second = k > 32 ? 20 : 0;
  if (rows < RT_TILE_ROWS || !second) memset(tile, 0, 128);
  for (int r = 0; r < rows; r++) {
    const uint8_t *first = blocks + r * stride;
    memcpy(tile + r * 2, first, 2);
    memcpy(tile + 64 + r * 2, first + 2, 2);
    if (second) memcpy(tile + 32 + r * 2, first + second, 2), memcpy(tile + 96 + r * 2, first + second + 2, 2);
  }
  rt_pack_nibbles(blocks + 4, stride, rows, second, tile + 128);
}

static inline void rt_unpack_Q4_1(const uint8_t *restrict tile, int row, float *restrict out /* [64] */) {
  for (int k = 0; k < 32; k++) {
    uint8_t both = tile[128 + rt_step_at(row, k)];
    out[k] = rt_load_f16(tile + row * 2) * (float)(both & 15) + rt_load_f16(tile + 64 + row * 2);
    out[k + 32] = rt_load_f16(tile + 32 + row * 2) * (float)(both >> 4) + rt_load_f16(tile + 96 + row * 2);
  }
}

/* ---- dot ---- */
/* acc += d * S, then acc += m * sum, for each of the two blocks, S = sum n q, exact. */
#ifdef V_INLINE
V_INLINE void rt_sums_Q4_1(const uint8_t *restrict tile, const rt_rows *x, int k, int m, rt_sums *s) {
  rt_rows at = rt_rows_at(x, k, m);
  rt_prefetch(tile, 640);
  v_dot_u4(tile + 128, at.q, at.high, at.low, m, s->half[0], s->half[1]);
}
V_INLINE void rt_fold_Q4_1(const uint8_t *restrict tile, const rt_rows *x, int k, int m, const rt_sums *s, v16f *acc) {
  for (int h = 0; h < 2; h++) {
    v16f d = v_load_f16((const uint16_t *)(tile + h * 32)), least = v_load_f16((const uint16_t *)(tile + 64 + h * 32));
    for (int t = 0; t < m; t++) {
      acc[t] = v_fma(v_of_s32(s->half[h][t]), d, acc[t]);
      acc[t] = v_fma(least, v_set1((float)x->sum[t][k / 32 + h]), acc[t]);
    }
  }
}
#ifdef V_WIDE_TOKENS
V_INLINE void rt_widen_Q4_1(const uint8_t *restrict tile, int16_t (*wide)[512]) { v_widen_u4(tile + 128, 0, wide[0], wide[1]); }
#endif
#endif
#endif
