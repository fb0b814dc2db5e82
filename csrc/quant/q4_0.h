/* Q4_0, value = d * (n - 8).
 *   file (18 for 32 weights):  d f16 | n u4[32], byte i holds n[i] low and n[i + 16] high
 *   tile (576):                d f16 [2 half][16 row] | [8 step][16 row][4 k] u8
 *                              step j, byte i holds k = 4 j + i low (half 0) and k = 32 + 4 j + i high (half 1)
 * A padding weight is n = 0 under d = 0. */
#ifndef RT_Q4_0_H
#define RT_Q4_0_H
#include "quant/r16.h"

static inline void rt_decode_Q4_0(const uint8_t *restrict block, float *restrict out /* [32] */) {
  float d = rt_load_f16(block);
  for (int k = 0; k < 16; k++) {
    out[k] = d * (float)((block[2 + k] & 15) - 8);
    out[k + 16] = d * (float)((block[2 + k] >> 4) - 8);
  }
}

static inline void rt_pack_Q4_0(const uint8_t *restrict blocks, size_t stride, int rows, int k, uint8_t *restrict tile) {
  size_t second = k > 32 ? 18 : 0;
  if (rows < RT_TILE_ROWS || !second) memset(tile, 0, 64);
  for (int r = 0; r < rows; r++) {
    const uint8_t *first = blocks + r * stride;
    memcpy(tile + r * 2, first, 2);
    if (second) memcpy(tile + 32 + r * 2, first + second, 2);
  }
  rt_pack_nibbles(blocks + 2, stride, rows, second, tile + 64);
}

static inline void rt_unpack_Q4_0(const uint8_t *restrict tile, int row, float *restrict out /* [64] */) {
  for (int k = 0; k < 32; k++) {
    uint8_t both = tile[64 + rt_step_at(row, k)];
    out[k] = rt_load_f16(tile + row * 2) * (float)((both & 15) - 8);
    out[k + 32] = rt_load_f16(tile + 32 + row * 2) * (float)((both >> 4) - 8);
  }
}

/* ---- dot ---- */
/* acc += d * S for each of the two blocks, S = sum (n - 8) q, exact. */
#ifdef V_INLINE
V_INLINE void rt_sums_Q4_0(const uint8_t *restrict tile, const rt_rows *x, int k, int m, rt_sums *s) {
  rt_rows at = rt_rows_at(x, k, m);
  rt_prefetch(tile, 576);
  v_dot_u4(tile + 64, at.q, at.high, at.low, m, s->half[0], s->half[1]);
  for (int h = 0; h < 2; h++)
    for (int t = 0; t < m; t++) s->half[h][t] = v_minus(s->half[h][t], 8 * x->sum[t][k / 32 + h]);
}
V_INLINE void rt_fold_Q4_0(const uint8_t *restrict tile, const rt_rows *x, int k, int m, const rt_sums *s, v16f *acc) {
  (void)x, (void)k;
  for (int h = 0; h < 2; h++) {
    v16f d = v_load_f16((const uint16_t *)(tile + h * 32));
    for (int t = 0; t < m; t++) acc[t] = v_fma(v_of_s32(s->half[h][t]), d, acc[t]);
  }
}
#ifdef V_WIDE_TOKENS
V_INLINE void rt_widen_Q4_0(const uint8_t *restrict tile, int16_t (*wide)[512]) { v_widen_u4(tile + 64, 8, wide[0], wide[1]); }
#endif
#endif
#endif
