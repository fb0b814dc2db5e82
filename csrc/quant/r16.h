/* R16, the one layout every weight is multiplied in.
 *
 *   A matrix of rows x k is padded to whole groups of 16 rows and whole tiles of tile_k k (padding multiplies as zero).
 *   packed = [group: 16 rows][tile: tile_k k] tile, one tile being `packed_bytes` of defs/formats.def. Formats with blocks of
 *   256 have tiles of 256 k, the others of 64. A span is 64 k of a tile: all of it, or one of four.
 *   Weights of a tile stand as, or make up, steps of 64 bytes = [16 row][4 k]: one AVX-512 VNNI operand, two of AVX2, four of
 *   NEON. Scales of a tile come first, [sub][16 row], a sub-block being the k under one scale.
 *
 *   Weights of fewer than 8 bits are split into planes of 4, 2 or 1 bits, low ones first, in each span one behind the other. A
 *   plane of b bits has 2 b lines of 64 bytes a span; line l holds steps l, l + 2 b, l + 4 b .. of it, the first in its low bits.
 *
 * Each format's header has, for its block in the file and its tile, scalar and little-endian:
 *   rt_decode_<F>(block, out)                      one block          -> f32 [block_weights]
 *   rt_pack_<F>(blocks, stride, rows, k, tile)     up to 16 x tile_k  -> a tile, padding included
 * and over a vocabulary (simd/<set>.h), out of which everything that multiplies is made:
 *   rt_row_<F>(tile, i) -> v16f                    form FLOAT: k = i of 16 rows
 *   rt_step_<F>(tile, span, j) -> v64b             else: u of step j, 0 to 15 and a constant, of a span, k = 64 span + 4 j ..
 *   rt_scale_<F>(tile, s) -> v16f                  of the s-th sub-block of the tile
 *   rt_least_<F>(tile, s) -> v16f                  form LEAST: likewise
 *   value = scale * (u - offset), or scale * (u - offset) + least rounded once. */
#ifndef RT_R16_H
#define RT_R16_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/half.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "files and tiles are little-endian, and read in place");

enum { RT_TILE_ROWS = 16, RT_SPAN_K = 64, RT_TILE_MOST = 256, RT_STEP_K = 4, RT_STEP_BYTES = 64 };

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

/* ---- sixteen rows side by side ----
 * Vectors of 16 bytes that every compiler knows. RT_PICK: pieces of a and b by position, those of b counted behind those of a. */
#ifdef __clang__
#define RT_PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define RT_PICK(a, b, ...) __builtin_shuffle(a, b, (__typeof__(a)){__VA_ARGS__})
#endif
typedef uint32_t rt_words __attribute__((vector_size(16)));
typedef uint16_t rt_halves __attribute__((vector_size(16)));

static inline rt_words rt_load_words(const uint8_t *p) {
  rt_words x;
  memcpy(&x, p, sizeof x);
  return x;
}

/* Four words of each of four rows a, b, c, d: word j of all goes to to + 64 j. */
static inline void rt_turn_words(rt_words a, rt_words b, rt_words c, rt_words d, uint8_t *restrict to) {
  rt_words ab = RT_PICK(a, b, 0, 4, 1, 5), cd = RT_PICK(c, d, 0, 4, 1, 5);
  rt_words ab2 = RT_PICK(a, b, 2, 6, 3, 7), cd2 = RT_PICK(c, d, 2, 6, 3, 7);
  rt_words turned[4] = {RT_PICK(ab, cd, 0, 1, 4, 5), RT_PICK(ab, cd, 2, 3, 6, 7),
                        RT_PICK(ab2, cd2, 0, 1, 4, 5), RT_PICK(ab2, cd2, 2, 3, 6, 7)};
  for (int j = 0; j < 4; j++) memcpy(to + j * 64, &turned[j], 16);
}

/* Steps from rows: word j of row r, with `flip` upon it, goes to steps + 64 j + 4 r; other words stay as they are.
 * first: [rows][words] u32, `stride` bytes apart; rows <= 16. Sixteen rows of bytes in k order become a tile's steps. */
static inline void rt_pack_words(const uint8_t *restrict first, size_t stride, int rows, int words, uint32_t flip,
                                 uint8_t *restrict steps) {
  int fours = rows / 4 * 4, whole = words / 4 * 4;
  rt_words flips = {flip, flip, flip, flip};
  for (int r = 0; r < fours; r += 4)
    for (int j = 0; j < whole; j += 4) {
      const uint8_t *p = first + r * stride + j * 4;
      rt_turn_words(rt_load_words(p) ^ flips, rt_load_words(p + stride) ^ flips, rt_load_words(p + 2 * stride) ^ flips,
                    rt_load_words(p + 3 * stride) ^ flips, steps + j * 64 + r * 4);
    }
  for (int r = 0; r < rows; r++)
    for (int j = r < fours ? whole : 0; j < words; j++) {
      uint32_t word = rt_load_u32(first + r * stride + j * 4) ^ flip;
      memcpy(steps + j * 64 + r * 4, &word, 4);
    }
}

/* Halves of a and b in turn: those of their fronts, those of their ends. */
static inline rt_halves rt_fronts(rt_halves a, rt_halves b) { return RT_PICK(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
static inline rt_halves rt_ends(rt_halves a, rt_halves b) { return RT_PICK(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }

/* Eight halves of each of eight rows: half i of all goes to to + 32 i. Three rounds, each of rows twice as near. */
static inline void rt_turn_halves(const uint8_t *restrict first, size_t stride, uint8_t *restrict to) {
  rt_halves x[8], y[8];
  for (int r = 0; r < 8; r++) memcpy(&x[r], first + r * stride, 16);
  for (int i = 0; i < 4; i++) y[2 * i] = rt_fronts(x[i], x[i + 4]), y[2 * i + 1] = rt_ends(x[i], x[i + 4]);
  for (int i = 0; i < 4; i++) x[2 * i] = rt_fronts(y[i], y[i + 4]), x[2 * i + 1] = rt_ends(y[i], y[i + 4]);
  for (int i = 0; i < 4; i++) y[2 * i] = rt_fronts(x[i], x[i + 4]), y[2 * i + 1] = rt_ends(x[i], x[i + 4]);
  for (int i = 0; i < 8; i++) memcpy(to + i * 32, &y[i], 16);
}

/* tile[64 k][16 row] of words (F32) or halves (F16, BF16); zeros where there are no rows or no k. */
static inline void rt_pack_f32s(const uint8_t *restrict first, size_t stride, int rows, int k, uint8_t *restrict tile) {
  if (rows < RT_TILE_ROWS || k < RT_SPAN_K) memset(tile, 0, RT_TILE_ROWS * RT_SPAN_K * 4);
  rt_pack_words(first, stride, rows, k, 0, tile);
}

static inline void rt_pack_f16s(const uint8_t *restrict first, size_t stride, int rows, int k, uint8_t *restrict tile) {
  if (rows < RT_TILE_ROWS || k < RT_SPAN_K) memset(tile, 0, RT_TILE_ROWS * RT_SPAN_K * 2);
  int eights = rows / 8 * 8, whole = k / 8 * 8;
  for (int r = 0; r < eights; r += 8)
    for (int i = 0; i < whole; i += 8) rt_turn_halves(first + r * stride + i * 2, stride, tile + i * 32 + r * 2);
  for (int r = 0; r < rows; r++)
    for (int i = r < eights ? whole : 0; i < k; i++) memcpy(tile + i * 32 + r * 2, first + r * stride + i * 2, 2);
}

/* tile[64 k][16 row] of bytes. */
static inline void rt_pack_bytes(const uint8_t *restrict first, size_t stride, int rows, int k, uint8_t *restrict tile) {
  if (rows < RT_TILE_ROWS || k < RT_SPAN_K) memset(tile, 0, RT_TILE_ROWS * RT_SPAN_K);
  for (int i = 0; i < k; i++)
    for (int r = 0; r < rows; r++) tile[i * RT_TILE_ROWS + r] = first[r * stride + i];
}

/* A nibble block's 16 file bytes hold weights 0..15 low and 16..31 high; a tile byte holds k of half 0 low and of half 1
 * high. q0, q1: the 16 bytes of the two halves. low, high: steps 0-3 and 4-7 of this row. */
static inline void rt_join_nibbles(rt_words q0, rt_words q1, rt_words *restrict low, rt_words *restrict high) {
  *low = (q0 & 0x0f0f0f0f) | (q1 & 0x0f0f0f0f) << 4;
  *high = (q0 >> 4 & 0x0f0f0f0f) | (q1 & 0xf0f0f0f0);
}

/* Steps of a nibble format, 8 of 64 bytes. first: [rows], `stride` bytes apart, its 16 bytes of half 0; half 1 `second` bytes
 * behind, or all zero when `second` is 0. Rows that are not there are zero. */
static inline void rt_pack_nibbles(const uint8_t *restrict first, size_t stride, int rows, size_t second,
                                   uint8_t *restrict steps) {
  for (int r = 0; r < RT_TILE_ROWS; r += 4) {
    rt_words low[4] = {{0}}, high[4] = {{0}};
    for (int i = 0; i < 4 && r + i < rows; i++) {
      const uint8_t *q = first + (r + i) * stride;
      rt_join_nibbles(rt_load_words(q), second ? rt_load_words(q + second) : (rt_words){0}, &low[i], &high[i]);
    }
    rt_turn_words(low[0], low[1], low[2], low[3], steps + r * 4);
    rt_turn_words(high[0], high[1], high[2], high[3], steps + 4 * RT_STEP_BYTES + r * 4);
  }
}

/* A row's two words of a span's plane of single bits. h0, h1: bit i is k = i of its 32. Byte i, bit m of line l is k = 8 m + 4 l
 * + i: the product brings bits 0, 8, 16, 24 of a word together in its upper four. */
static inline void rt_pack_bits(uint32_t h0, uint32_t h1, int row, uint8_t *restrict lines) {
  for (int b = 0; b < 8; b++) {
    uint32_t first = (h0 >> b & 0x01010101) * 0x01020408 >> 24 & 15, second = (h1 >> b & 0x01010101) * 0x01020408 >> 24 & 15;
    lines[b / 4 * RT_STEP_BYTES + row * RT_STEP_K + b % 4] = (uint8_t)(first | second << 4);
  }
}

/* A row's part of a plane of a span: bits below .. below + bits - 1 of u, 2 * bits lines, line l holding steps l, l + 2 bits..,
 * low bits first. u: [64]; lines: [2 * bits][64]. */
static inline void rt_pack_plane(const uint8_t *restrict u, int bits, int below, int row, uint8_t *restrict lines) {
  uint32_t mask = ((1u << bits) - 1) * 0x01010101;
  for (int l = 0; l < 2 * bits; l++) {
    uint32_t four = 0;
    for (int b = 0; b * bits < 8; b++) four |= (rt_load_u32(u + (l + b * 2 * bits) * RT_STEP_K) >> below & mask) << b * bits;
    memcpy(lines + l * RT_STEP_BYTES + row * RT_STEP_K, &four, 4);
  }
}

/* Bits of a block: each `run` bytes, a multiple of 8, hold weights 0 .. run - 1 in their low `bits`, the next run of them above.
 * u[k] |= them << up. bytes: [n * bits / 8]; u: [n] */
static inline void rt_split_runs(const uint8_t *restrict bytes, int n, int bits, int run, int up, uint8_t *restrict u) {
  uint64_t mask = ((1u << bits) - 1) * 0x0101010101010101u, eight, into;
  for (const uint8_t *end = u + n; u < end; bytes += run)
    for (int b = 0; b < 8; b += bits)
      for (int i = 0; i < run; i += 8, u += 8) {
        memcpy(&eight, bytes + i, 8);
        memcpy(&into, u, 8);
        into |= (eight >> b & mask) << up;
        memcpy(u, &into, 8);
      }
}
#endif
