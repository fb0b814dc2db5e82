/* The tiles of csrc/simd/amx.h in plain C, as Intel's manual states them operation by operation: palette 1, eight tiles of up to
 * 16 rows of 64 bytes. A use the manual forbids ends the process. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static _Thread_local struct { uint8_t rows[8]; uint16_t bytes[8]; uint8_t data[8][16][64]; int on; } tiles;

static inline void tile_must(int holds) { if (!holds) abort(); }

static inline void tile_config(const uint8_t *p) {
  tile_must(p[0] == 1 && p[1] == 0);
  for (int i = 2; i < 16; i++) tile_must(p[i] == 0);
  memset(&tiles, 0, sizeof tiles);
  for (int t = 0; t < 16; t++) {
    uint16_t bytes;
    memcpy(&bytes, p + 16 + 2 * t, 2);
    tile_must(p[48 + t] <= 16 && bytes <= 64 && (p[48 + t] == 0) == (bytes == 0) && (t < 8 || bytes == 0));
    if (t < 8) tiles.rows[t] = p[48 + t], tiles.bytes[t] = bytes;
  }
  tiles.on = 1;
}
static inline void tile_zero(int t) {
  tile_must(tiles.on && tiles.rows[t]);
  memset(tiles.data[t], 0, sizeof tiles.data[t]);
}
static inline void tile_load(int t, const void *p, long stride) {
  tile_zero(t);
  for (int r = 0; r < tiles.rows[t]; r++) memcpy(tiles.data[t][r], (const uint8_t *)p + r * stride, tiles.bytes[t]);
}
static inline void tile_store(int t, void *p, long stride) {
  tile_must(tiles.on && tiles.rows[t]);
  for (int r = 0; r < tiles.rows[t]; r++) memcpy((uint8_t *)p + r * stride, tiles.data[t][r], tiles.bytes[t]);
}
static inline float tile_flush(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0.0f, x) : x; }
static inline float tile_bf16_at(int t, int row, int i) {
  uint32_t bits = 0;
  memcpy((uint8_t *)&bits + 2, tiles.data[t][row] + 2 * i, 2);
  float x;
  memcpy(&x, &bits, 4);
  return tile_flush(x);
}
static inline void tile_fits(int c, int a, int b) {
  tile_must(tiles.on && c != a && c != b && a != b && tiles.rows[c] && tiles.rows[c] == tiles.rows[a] &&
            tiles.bytes[a] == 4 * tiles.rows[b] && tiles.bytes[c] == tiles.bytes[b]);
}
static inline void tile_bf16(int c, int a, int b) {
  tile_fits(c, a, b);
  for (int m = 0; m < tiles.rows[c]; m++)
    for (int n = 0; n < tiles.bytes[c] / 4; n++) {
      float even = 0, odd = 0, old;
      for (int k = 0; k < tiles.rows[b]; k++) {
        even = tile_flush(fmaf(tile_bf16_at(a, m, 2 * k), tile_bf16_at(b, k, 2 * n), even));
        odd = tile_flush(fmaf(tile_bf16_at(a, m, 2 * k + 1), tile_bf16_at(b, k, 2 * n + 1), odd));
      }
      memcpy(&old, tiles.data[c][m] + 4 * n, 4);
      old = tile_flush(tile_flush(old) + tile_flush(even + odd));
      memcpy(tiles.data[c][m] + 4 * n, &old, 4);
    }
}
static inline void tile_s8(int c, int a, int b) {
  tile_fits(c, a, b);
  for (int m = 0; m < tiles.rows[c]; m++)
    for (int n = 0; n < tiles.bytes[c] / 4; n++) {
      int32_t sum;
      memcpy(&sum, tiles.data[c][m] + 4 * n, 4);
      for (int k = 0; k < tiles.rows[b]; k++)
        for (int i = 0; i < 4; i++) sum += (int8_t)tiles.data[a][m][4 * k + i] * (int8_t)tiles.data[b][k][4 * n + i];
      memcpy(tiles.data[c][m] + 4 * n, &sum, 4);
    }
}

#define V_TILE_CONFIG(p) tile_config(p)
#define V_TILE_RELEASE() memset(&tiles, 0, sizeof tiles)
#define V_TILE_ZERO(c) tile_zero(c)
#define V_TILE_LOAD(t, p, stride) tile_load(t, p, (long)(stride))
#define V_TILE_LOAD_ONCE(t, p, stride) tile_load(t, p, (long)(stride))
#define V_TILE_STORE(t, p, stride) tile_store(t, p, (long)(stride))
#define V_TILE_BF16(c, a, b) tile_bf16(c, a, b)
#define V_TILE_S8(c, a, b) tile_s8(c, a, b)
