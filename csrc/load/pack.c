#include "load/pack.h"

#include <omp.h>

#include "base/checked.h"
#include "quant/r16.h"

static uint64_t tiles_of(uint64_t k, uint32_t tile_k) { return k / tile_k + (k % tile_k != 0); }
static uint64_t groups_of(uint64_t rows) { return rows / RT_TILE_ROWS + (rows % RT_TILE_ROWS != 0); }

static bool whole_blocks(rt_format format, uint64_t k) {
  return (unsigned)format < RT_FORMATS && k != 0 && k % rt_format_table[format].block_weights == 0;
}

size_t rt_file_bytes(rt_format format, uint64_t rows, uint64_t k) {
  uint64_t row = 0, all = 0;
  if (!whole_blocks(format, k)) return 0;
  const rt_format_info *f = &rt_format_table[format];
  return rt_mul(k / f->block_weights, f->block_bytes, &row) && rt_mul(row, rows, &all) ? all : 0;
}

size_t rt_group_bytes(rt_format format, uint64_t k) {
  uint64_t bytes = 0;
  if (!whole_blocks(format, k)) return 0;
  const rt_format_info *f = &rt_format_table[format];
  return rt_mul(tiles_of(k, f->tile_k), f->packed_bytes, &bytes) ? bytes : 0;
}

size_t rt_packed_bytes(rt_format format, uint64_t rows, uint64_t k) {
  uint64_t bytes = 0;
  if (rt_file_bytes(format, rows, k) == 0) return 0;
  return rt_mul(rt_group_bytes(format, k), groups_of(rows), &bytes) ? bytes : 0;
}

void rt_pack_group(rt_format format, uint64_t rows, uint64_t k, const uint8_t *restrict blocks, uint64_t group,
                   uint8_t *restrict dst) {
  const rt_format_info *f = &rt_format_table[format];
  size_t stride = k / f->block_weights * f->block_bytes, tile_step = f->tile_k / f->block_weights * f->block_bytes;
  uint64_t first = group * RT_TILE_ROWS, left = rows - first;
  const uint8_t *from = blocks + first * stride;
  for (uint64_t done = 0; done < k; done += f->tile_k, from += tile_step, dst += f->packed_bytes)
    f->pack(from, stride, left < RT_TILE_ROWS ? (int)left : RT_TILE_ROWS, (int)(k - done < f->tile_k ? k - done : f->tile_k),
            dst);
}

int rt_pack_threads(int threads, uint64_t pieces) {
  if (threads <= 0) threads = omp_get_max_threads();
  if (pieces == 0) return 1;
  return (uint64_t)threads < pieces ? threads : (int)pieces;
}

void rt_pack_threads_done(void) { omp_pause_resource_all(omp_pause_soft); }

rt_code rt_pack(rt_format format, uint64_t rows, uint64_t k, const uint8_t *restrict blocks, size_t blocks_bytes,
                uint8_t *restrict dst, size_t dst_bytes, int threads, rt_status *st) {
  size_t need = rt_packed_bytes(format, rows, k), group_bytes = rt_group_bytes(format, k);
  if (need == 0) return rt_fail(st, RT_INVALID, "a matrix of %llu x %llu cannot be packed: rows and k must be positive and "
                                "k whole blocks of its format", (unsigned long long)rows, (unsigned long long)k);
  if (blocks_bytes != rt_file_bytes(format, rows, k) || dst_bytes != need)
    return rt_fail(st, RT_INVALID, "packing %llu x %llu %s takes %zu bytes to %zu, not %zu to %zu", (unsigned long long)rows,
                   (unsigned long long)k, rt_format_table[format].name, rt_file_bytes(format, rows, k), need, blocks_bytes,
                   dst_bytes);
  int64_t groups = (int64_t)groups_of(rows);
#pragma omp parallel for schedule(dynamic, 8) num_threads(rt_pack_threads(threads, (uint64_t)groups))
  for (int64_t g = 0; g < groups; g++) rt_pack_group(format, rows, k, blocks, (uint64_t)g, dst + (size_t)g * group_bytes);
  rt_pack_threads_done();
  return RT_OK;
}

void rt_unpack_row(rt_format format, uint64_t k, const uint8_t *restrict packed, uint64_t row, float *restrict out) {
  const rt_format_info *f = &rt_format_table[format];
  const uint8_t *tile = packed + row / RT_TILE_ROWS * rt_group_bytes(format, k);
  float last[RT_TILE_MOST];
  for (; k >= f->tile_k; k -= f->tile_k, tile += f->packed_bytes, out += f->tile_k)
    f->unpack(tile, (int)(row % RT_TILE_ROWS), out);
  if (k == 0) return;
  f->unpack(tile, (int)(row % RT_TILE_ROWS), last);
  memcpy(out, last, k * sizeof *out);
}

void rt_decode_row(rt_format format, uint64_t k, const uint8_t *restrict row_blocks, float *restrict out) {
  const rt_format_info *f = &rt_format_table[format];
  for (uint64_t done = 0; done < k; done += f->block_weights, row_blocks += f->block_bytes)
    f->decode(row_blocks, out + done);
}

rt_code rt_decode(rt_format format, uint64_t rows, uint64_t k, const uint8_t *restrict blocks, float *restrict out, int threads,
                  rt_status *st) {
  size_t stride = rt_file_bytes(format, 1, k);
  st->code = RT_OK;
  if (threads == 1) { /* without waking anyone */
    for (uint64_t r = 0; r < rows; r++) rt_decode_row(format, k, blocks + r * stride, out + r * k);
    return RT_OK;
  }
#pragma omp parallel for schedule(dynamic, 8) num_threads(rt_pack_threads(threads, rows / 8))
  for (uint64_t r = 0; r < rows; r++) rt_decode_row(format, k, blocks + r * stride, out + r * k);
  rt_pack_threads_done();
  return RT_OK;
}
