/* TQ2_0, value = d * (n - 1).
 *   file (66 for 256 weights):  n u2[256], of each 32 bytes bits 2 b.. are k = 32 b + i of 128 | d f16
 *   tile (1088):                d f16 [16 row], padded to 64
 *                               | [4 span][4 line][16 row][4 k] u8, bits 2 b.. of line l are k = 64 span + 16 b + 4 l + i
 * A padding row is n = 0 under d = 0. */
#ifndef RT_TQ2_0_H
#define RT_TQ2_0_H
#include "quant/r16.h"

static inline void rt_decode_TQ2_0(const uint8_t *restrict block, float *restrict out /* [256] */) {
  float d = rt_load_f16(block + 64);
  uint8_t n[256] = {0};
  rt_split_runs(block, 256, 2, 32, 0, n);
  for (int k = 0; k < 256; k++) out[k] = d * (float)(n[k] - 1);
}

/* A row of a tile. d: f16; n: [256] */
static inline void rt_pack_ternary(const uint8_t *restrict d, const uint8_t *restrict n, int row, uint8_t *restrict tile) {
  memcpy(tile + row * 2, d, 2);
  for (int span = 0; span < 4; span++) rt_pack_plane(n + span * 64, 2, 0, row, tile + 64 + span * 256);
}

static inline void rt_pack_TQ2_0(const uint8_t *restrict blocks, size_t stride, int rows, int k, uint8_t *restrict tile) {
  (void)k;
  memset(tile, 0, 1088);
  for (int r = 0; r < rows; r++) {
    uint8_t n[256] = {0};
    rt_split_runs(blocks + r * stride, 256, 2, 32, 0, n);
    rt_pack_ternary(blocks + r * stride + 64, n, r, tile);
  }
}

#ifdef V_INLINE
V_INLINE v64b rt_step_TQ2_0(const uint8_t *restrict tile, int span, int j) {
  return v_field(v_bytes(tile + 64 + span * 256 + j % 4 * 64), j / 4 * 2, 3);
}
V_INLINE v16f rt_scale_TQ2_0(const uint8_t *restrict tile, int s) {
  (void)s;
  return v_load_f16((const uint16_t *)tile);
}
#endif
#endif
