/* The BF16 path on tiles: weights outermost. RT_CHUNK k of two groups are unpacked into operands that stay in the nearest cache
 * while up to RT_BF16_MOST tokens pass over them, 32 at a time; the next chunk is unpacked piece by piece in between, for the
 * products leave the vector units free. y holds the sums between chunks. Included by ops/linear_bf16.h. */
#ifndef RT_OPS_TILES_BF16_H
#define RT_OPS_TILES_BF16_H

enum { RT_CHUNK = 512, RT_CHUNK_PARTS = RT_CHUNK / 32 };

typedef struct rt_chunk { /* what is being unpacked: `groups` groups, k in [at, at + 32 * steps) */
  const rt_spread *f;
  const uint8_t *group[2];
  rt_wide *to; /* [steps][2][RT_WIDE_PART] */
  int groups, at, steps, done, due;
} rt_chunk;

static void rt_chunk_part(rt_chunk *c) {
  int step = c->done / c->groups, g = c->done % c->groups;
  rt_spread_at(c->f, c->group[g], c->at + step * 32, c->to + (step * 2 + g) * RT_WIDE_PART);
  c->done++;
}

/* One of `times` equal shares of the chunk, as far as it is not done. */
V_INLINE void rt_chunk_share(rt_chunk *c, int times) {
  for (c->due += c->steps * c->groups; c->due >= times && c->done < c->steps * c->groups; c->due -= times) rt_chunk_part(c);
}

/* y [16 or 32 token][16 or 32] <- (first ? 0 : y) + `steps` times 32 k of a times b. stride, ldy: bytes between tokens. */
V_INLINE void rt_block_bf16(int two_rows, int two_groups, int first, const rt_wide *b, int steps, const uint8_t *a, size_t stride,
                            uint8_t *y, size_t ldy, rt_chunk *next, int times) {
  uint8_t *y1 = y + 16 * ldy;
  if (first) {
    V_TILE_ZERO(0);
    if (two_groups) V_TILE_ZERO(1);
    if (two_rows) V_TILE_ZERO(2);
    if (two_rows && two_groups) V_TILE_ZERO(3);
  } else {
    V_TILE_LOAD(0, y, ldy);
    if (two_groups) V_TILE_LOAD(1, y + 64, ldy);
    if (two_rows) V_TILE_LOAD(2, y1, ldy);
    if (two_rows && two_groups) V_TILE_LOAD(3, y1 + 64, ldy);
  }
  for (int i = 0; i < steps; i++, a += 64, b += 2 * RT_WIDE_PART) {
    V_TILE_LOAD(6, b, 64);
    V_TILE_LOAD_ONCE(4, a, stride);
    V_TILE_BF16(0, 4, 6);
    if (two_groups) V_TILE_LOAD(7, b + RT_WIDE_PART, 64);
    if (two_groups) V_TILE_BF16(1, 4, 7);
    if (two_rows) V_TILE_LOAD_ONCE(5, a + 16 * stride, stride);
    if (two_rows) V_TILE_BF16(2, 5, 6);
    if (two_rows && two_groups) V_TILE_BF16(3, 5, 7);
    rt_chunk_share(next, times);
  }
  V_TILE_STORE(0, y, ldy);
  if (two_groups) V_TILE_STORE(1, y + 64, ldy);
  if (two_rows) V_TILE_STORE(2, y1, ldy);
  if (two_rows && two_groups) V_TILE_STORE(3, y1 + 64, ldy);
}

/* m tokens over a chunk that is unpacked, while the next one is. shape: rows of A tile 5 as the tiles stand, changed with them. */
static void rt_pass_bf16(const rt_chunk *c, rt_chunk *next, const uint8_t *a, size_t stride, int m, float *y, size_t ldy,
                         int *shape) {
  int times = c->steps * ((m + 31) / 32);
  for (int t = 0; t < m; t += 32) {
    int rows0 = m - t < 16 ? m - t : 16, rows1 = m - t < 32 ? m - t - rows0 : 16, now = rows0 * 32 + rows1;
    if (*shape != now) v_tiles(rows0, rows1, 64);
    *shape = now;
    const uint8_t *at = a + t * stride + c->at * 2;
    uint8_t *to = (uint8_t *)(y + t * ldy);
    if (rows1 && c->groups == 2) rt_block_bf16(1, 1, c->at == 0, c->to, c->steps, at, stride, to, ldy * 4, next, times);
    else if (rows1) rt_block_bf16(1, 0, c->at == 0, c->to, c->steps, at, stride, to, ldy * 4, next, times);
    else if (c->groups == 2) rt_block_bf16(0, 1, c->at == 0, c->to, c->steps, at, stride, to, ldy * 4, next, times);
    else rt_block_bf16(0, 0, c->at == 0, c->to, c->steps, at, stride, to, ldy * 4, next, times);
  }
  while (next->done < next->steps * next->groups) rt_chunk_part(next);
}

/* Chunks run over k first, then over pairs of groups. */
static void rt_groups_bf16(const rt_spread *f, const uint8_t *packed, int k, int first, int last, const uint8_t *act,
                           size_t act_stride, int m, float *y, size_t ldy) {
  _Alignas(64) rt_wide operands[2][RT_CHUNK_PARTS * 2 * RT_WIDE_PART];
  int kp = (int)rt_act_k(k), each = (kp + RT_CHUNK - 1) / RT_CHUNK, chunks = each * ((last - first + 1) / 2), shape = 0;
  const uint8_t *a = (const uint8_t *)rt_act_at((uint8_t *)(uintptr_t)act, k).bf16;
  size_t group_bytes = rt_group_bytes_of(f, k);
  rt_chunk now = {0}, next;
  for (int c = 0; c <= chunks; c++, now = next) {
    int g = first + c / each * 2, at = c % each * RT_CHUNK, steps = (kp - at < RT_CHUNK ? kp - at : RT_CHUNK) / 32;
    next = (rt_chunk){.f = f, .group = {packed + g * group_bytes, packed + (g + 1) * group_bytes}, .to = operands[c % 2],
                      .groups = last - g < 2 ? 1 : 2, .at = at, .steps = c < chunks ? steps : 0};
    if (c > 0) rt_pass_bf16(&now, &next, a, act_stride, m, y + (c - 1) / each * 32, ldy, &shape);
    else while (next.done < next.steps * next.groups) rt_chunk_part(&next);
  }
  V_TILE_RELEASE();
}
#endif
