/* R16, the one layout every weight is multiplied in.
 *
 *   A matrix of rows x k is padded to whole groups of 16 rows and whole tiles of 64 k (padding multiplies as zero).
 *   packed = [group: 16 rows][tile: 64 k] tile, one tile being `packed_bytes` of defs/formats.def.
 *   Weights of a tile stand as steps of 64 bytes = [16 row][4 k]: one AVX-512 VNNI operand, two of AVX2, four of NEON.
 *   Scales of a tile come first, [half][16 row], a half being the 32 k of one block in the file.
 *
 * Each format's header has, for its block in the file and its tile:
 *   rt_decode_<F>(block, out)                      one block         -> f32 [block_weights]
 *   rt_pack_<F>(blocks, stride, rows, k, tile)     up to 16 x 64     -> a tile, padding included
 *   rt_unpack_<F>(tile, row, out)                  a row of a tile   -> f32 [64], the bits rt_decode_<F> gives
 * Scalar and little-endian: this is the specification. */
#ifndef RT_R16_H
#define RT_R16_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/half.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "files and tiles are little-endian, and read in place");

enum { RT_TILE_ROWS = 16, RT_TILE_K = 64, RT_STEP_K = 4, RT_STEP_BYTES = 64 };

static inline uint16_t rt_load_u16(const uint8_t *p) {
  uint16_t x;
  memcpy(&x, p, sizeof x);
  return x;
}

static inline uint32_t rt_load_u32(const uint8_t *p) {
  uint32_t x;
  memcpy(&x, p, sizeof x);
  return x;
}

static inline float rt_load_f16(const uint8_t *p) { return rt_f16_to_f32(rt_load_u16(p)); }

/* tile[k][16 row] of elements of `bytes` (2 or 4): how F32, F16 and BF16 stand. */
static inline void rt_pack_elements(const uint8_t *restrict rows_first, size_t stride, int rows, int k, size_t bytes,
                                    uint8_t *restrict tile) {
  memset(tile, 0, RT_TILE_ROWS * RT_TILE_K * bytes);
  for (int r = 0; r < rows; r++)
    for (int i = 0; i < k; i++)
      memcpy(tile + (i * RT_TILE_ROWS + r) * bytes, rows_first + r * stride + i * bytes, bytes);
}

/* The 16 file bytes of a nibble block hold weights 0..15 low and 16..31 high; a tile byte holds k of half 0 low and of
 * half 1 high. q0, q1: [16] nibbles of the two halves. steps: [8][64], this row's 4 bytes of each are written. */
static inline void rt_pack_nibbles(const uint8_t *restrict q0, const uint8_t *restrict q1, uint8_t *restrict steps) {
  for (int j = 0; j < 4; j++) {
    uint32_t a = rt_load_u32(q0 + 4 * j), b = rt_load_u32(q1 + 4 * j);
    uint32_t low = (a & 0x0f0f0f0f) | (b & 0x0f0f0f0f) << 4, high = (a >> 4 & 0x0f0f0f0f) | (b & 0xf0f0f0f0);
    memcpy(steps + j * RT_STEP_BYTES, &low, 4);
    memcpy(steps + (j + 4) * RT_STEP_BYTES, &high, 4);
  }
}

/* Where the weight of (row, k) of a tile stands in its steps of 64 bytes, k < 32. */
static inline size_t rt_step_at(int row, int k) {
  return (size_t)(k / RT_STEP_K * RT_STEP_BYTES + row * RT_STEP_K + k % RT_STEP_K);
}
#endif
