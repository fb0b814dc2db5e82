/* The A16 path on tiles, from RT_TILES_FROM tokens on: each plane of the activation times the weights, 16 tokens at a time.
 * RT_TILES_K k of a group are unpacked once for all tokens, as signed bytes u - offset: no sum of q has to be taken off then. A
 * step of R16 is a line of a B tile; a sub-block's sums are two C tiles, one a plane, exact. They go through scratch into the
 * float steps of linear.h, one by one in its order, so that a row has the bits it has alone; what the steps add up stays in
 * registers, and the next sub-block is multiplied meanwhile. y holds it between one RT_TILES_K and the next.
 * Included by ops/linear.h. */
#ifndef RT_OPS_TILES_A16_H
#define RT_OPS_TILES_A16_H

enum { RT_TILES_FROM = 8, RT_TILES_K = 256, RT_TILES_STEPS = RT_TILES_K / 4, RT_TILES_SUBS = RT_TILES_K / 16 };

typedef struct rt_lines8 { /* RT_TILES_K k of a group: u - offset, a step a line, and each sub-block's scale and least */
  _Alignas(64) uint8_t u[RT_TILES_STEPS][64];
  _Alignas(64) float scale[RT_TILES_SUBS][16], least[RT_TILES_SUBS][16];
} rt_lines8;

typedef struct rt_pass8 { /* up to 16 tokens that meet them: `rows` tokens at `act`, k in [at, at + n) */
  const rt_lines8 *w;
  const uint8_t *act;
  size_t stride, ldy;
  int k, at, n, rows;
  float *y; /* [rows][16] */
} rt_pass8;

/* sum[plane][token][row] <- a sub-block. Neighbours use tiles of their own, so that none waits. */
V_INLINE void rt_sums8(int odd, const uint8_t *u, const int8_t *high, const int8_t *low, size_t stride, int32_t (*sum)[16][16]) {
  V_TILE_LOAD_ONCE(4, high, stride);
  V_TILE_LOAD_ONCE(5, low, stride);
  if (odd) {
    V_TILE_LOAD(7, u, 64);
    V_TILE_ZERO(2);
    V_TILE_S8(2, 4, 7);
    V_TILE_ZERO(3);
    V_TILE_S8(3, 5, 7);
    V_TILE_STORE(2, sum[0], 64);
    V_TILE_STORE(3, sum[1], 64);
  } else {
    V_TILE_LOAD(6, u, 64);
    V_TILE_ZERO(0);
    V_TILE_S8(0, 4, 6);
    V_TILE_ZERO(1);
    V_TILE_S8(1, 5, 6);
    V_TILE_STORE(0, sum[0], 64);
    V_TILE_STORE(1, sum[1], 64);
  }
}

/* acc[most] <- a sub-block whose sums are there. q: sums of q, 16 floats between tokens. */
V_INLINE void rt_fold8(int32_t (*sum)[16][16], const rt_lines8 *w, int c, const float *q, int with_least, int most, v16f *acc) {
  v16f scale = v_load(w->scale[c]), least = with_least ? v_load(w->least[c]) : scale;
#pragma GCC unroll 16
  for (int t = 0; t < most; t++) {
    acc[t] = v_fma(v_of_planes(sum[0][t], sum[1][t]), scale, acc[t]);
    if (with_least) acc[t] = v_fma(least, v_set1(q[t * 16]), acc[t]);
  }
}

/* most: 8 or 16, at least p->rows; rows that are not there are 0. A constant, as sub and with_least. */
V_INLINE void rt_pass_tiles(const rt_pass8 *p, int sub, int with_least, int most) {
  _Alignas(64) int32_t sum[2][2][16][16];
  _Alignas(64) float q[16][16];
  const rt_lines8 *w = p->w;
  rt_act a = rt_act_at((uint8_t *)(uintptr_t)p->act, p->k);
  const int8_t *high = a.high + p->at, *low = a.low + p->at;
  v16f acc[16];
  if (p->rows < most) memset(sum, 0, sizeof sum), memset(q, 0, sizeof q);
  for (int t = 0; with_least && t < p->rows; t++)
    v_store(q[t], v_sums_q((const int32_t *)((const uint8_t *)a.sum + t * p->stride) + p->at / 16, sub));
#pragma GCC unroll 16
  for (int t = 0; t < most; t++) acc[t] = p->at == 0 || t >= p->rows ? v_zero() : v_load(p->y + t * p->ldy);
  rt_sums8(0, w->u[0], high, low, p->stride, sum[0]);
  for (int c = 0; c < p->n / sub; c += 2) {
    int next = c + 1, after = c + 2;
    rt_sums8(1, w->u[next * (sub / 4)], high + next * sub, low + next * sub, p->stride, sum[1]);
    rt_fold8(sum[0], w, c, &q[0][c * (sub / 16)], with_least, most, acc);
    if (after < p->n / sub) rt_sums8(0, w->u[after * (sub / 4)], high + after * sub, low + after * sub, p->stride, sum[0]);
    rt_fold8(sum[1], w, next, &q[0][next * (sub / 16)], with_least, most, acc);
  }
#pragma GCC unroll 16
  for (int t = 0; t < most; t++)
    if (t < p->rows)
      v_store(p->y + t * p->ldy,
              p->at + p->n < p->k ? acc[t] : v_mul(acc[t], v_set1(*(const float *)(p->act + t * p->stride))));
}

#define RT_PASS_TILES(sub, with_least)                                                                                             \
  static __attribute__((noinline)) void rt_pass8_##sub##_##with_least(const rt_pass8 *p) { rt_pass_tiles(p, sub, with_least, 8); } \
  static __attribute__((noinline)) void rt_pass16_##sub##_##with_least(const rt_pass8 *p) { rt_pass_tiles(p, sub, with_least, 16); }
RT_PASS_TILES(16, 0)
RT_PASS_TILES(16, 1)
RT_PASS_TILES(32, 0)
RT_PASS_TILES(32, 1)
#undef RT_PASS_TILES

#define RT_WIDE_BLOCK(name, tile_k, tile_bytes, sub, offset, with_least, FOLD)                                              \
  V_INLINE void rt_lines8_##name(const uint8_t *restrict tile, int span, int at, rt_lines8 *restrict w) {                   \
    enum { SUBS = 64 / sub, LINES = RT_LINES(tile_bytes, tile_k / 64) };                                                    \
    rt_prefetch(tile + span * (LINES * 64), LINES, RT_FAR(tile_k, 0, RT_WIDE_FROM));                                        \
    _Pragma("GCC unroll 16") for (int j = 0; j < 16; j++)                                                                   \
      v_store_bytes(w->u[at / 4 + j], v_less_byte(rt_step_##name(tile, span, j), offset));                                  \
    for (int c = 0; c < SUBS; c++) {                                                                                        \
      v_store(w->scale[at / sub + c], rt_scale_##name(tile, span * SUBS + c));                                              \
      if (with_least) v_store(w->least[at / sub + c], FOLD##_OF(name, tile, span * SUBS + c));                              \
    }                                                                                                                       \
  }                                                                                                                         \
  /* Returns how many tokens it has done: all, or none when there are few. */                                               \
  static __attribute__((noinline)) int rt_wide_##name(const uint8_t *tile, int k, const uint8_t *act, size_t stride, int m, \
                                                      float *y, size_t ldy) {                                               \
    rt_lines8 w;                                                                                                            \
    int shape = 0; /* tokens of the A tiles as they stand */                                                                \
    if (m < RT_TILES_FROM) return 0;                                                                                        \
    for (int at = 0, n; at < k; at += RT_TILES_K) {                                                                         \
      for (n = 0; n < RT_TILES_K && at + n < k; n += 64) {                                                                  \
        rt_lines8_##name(tile, n % tile_k / 64, n, &w);                                                                     \
        tile += (n + 64) % tile_k == 0 ? tile_bytes : 0;                                                                    \
      }                                                                                                                     \
      for (int t = 0; t < m; t += 16) {                                                                                     \
        rt_pass8 p = {&w, act + t * stride, stride, ldy, k, at, n, m - t < 16 ? m - t : 16, y + t * ldy};                   \
        if (shape != p.rows) v_tiles(p.rows, p.rows, sub);                                                                  \
        shape = p.rows;                                                                                                     \
        if (p.rows > 8) rt_pass16_##sub##_##with_least(&p);                                                                 \
        else rt_pass8_##sub##_##with_least(&p);                                                                             \
      }                                                                                                                     \
    }                                                                                                                       \
    V_TILE_RELEASE();                                                                                                       \
    return m;                                                                                                               \
  }
#endif
