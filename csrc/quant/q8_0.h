/* Q8_0, value = d * q.
 *   file (34 for 32 weights):  d f16 | q s8[32]
 *   tile (1088):               d f16 [2 half][16 row] | [2 half][8 step][16 row][4 k] u8 = q ^ 0x80
 *                              half h, step j, byte i is k = 32 h + 4 j + i
 * A padding weight is 0x80 (q = 0) under d = 0. */
#ifndef RT_Q8_0_H
#define RT_Q8_0_H
#include "quant/r16.h"

static inline void rt_decode_Q8_0(const uint8_t *restrict block, float *restrict out /* [32] */) {
  float d = rt_load_f16(block);
  for (int k = 0; k < 32; k++) out[k] = d * (float)(int8_t)block[2 + k];
}

static inline void rt_pack_Q8_0(const uint8_t *restrict blocks, size_t stride, int rows, int k, uint8_t *restrict tile) {
  if (rows < RT_TILE_ROWS || k < RT_TILE_K) memset(tile, 0, 64), memset(tile + 64, 0x80, 1024);
  for (int h = 0; 32 * h < k; h++) {
    const uint8_t *block = blocks + h * 34;
    for (int r = 0; r < rows; r++) memcpy(tile + h * 32 + r * 2, block + r * stride, 2);
    rt_pack_words(block + 2, stride, rows, 8, 0x80808080, tile + 64 + h * 512);
  }
}

static inline void rt_unpack_Q8_0(const uint8_t *restrict tile, int row, float *restrict out /* [64] */) {
  for (int k = 0; k < RT_TILE_K; k++) {
    float d = rt_load_f16(tile + k / 32 * 32 + row * 2);
    out[k] = d * (float)(int8_t)(tile[64 + k / 32 * 512 + rt_step_at(row, k % 32)] ^ 0x80);
  }
}

/* ---- dot ---- */
/* acc += d * S for each of the two blocks, S = sum (u8 - 128) q, exact. */
#ifdef V_INLINE
V_INLINE void rt_sums_Q8_0(const uint8_t *restrict tile, const rt_rows *x, int k, int m, rt_sums *s) {
  for (int h = 0; h < 2; h++) {
    rt_rows at = rt_rows_at(x, k + 32 * h, m);
    rt_prefetch(tile + h * 544, 544);
    v_dot_u8(tile + 64 + h * 512, at.q, at.high, at.low, m, s->half[h]);
    for (int t = 0; t < m; t++) s->half[h][t] = v_minus(s->half[h][t], 128 * x->sum[t][k / 32 + h]);
  }
}
V_INLINE void rt_fold_Q8_0(const uint8_t *restrict tile, const rt_rows *x, int k, int m, const rt_sums *s, v16f *acc) {
  (void)x, (void)k;
  for (int h = 0; h < 2; h++) {
    v16f d = v_load_f16((const uint16_t *)(tile + h * 32));
    for (int t = 0; t < m; t++) acc[t] = v_fma(v_of_s32(s->half[h][t]), d, acc[t]);
  }
}
#ifdef V_WIDE_TOKENS
V_INLINE void rt_widen_Q8_0(const uint8_t *restrict tile, int16_t (*wide)[512]) {
  for (int h = 0; h < 2; h++) v_widen_u8(tile + 64 + h * 512, 128, wide[h]);
}
#endif
#endif
#endif
