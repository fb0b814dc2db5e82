/* Weights into the R16 layout (quant/r16.h). */
#ifndef RT_PACK_H
#define RT_PACK_H
#include "base/status.h"
#include "quant/formats.h"

/* Bytes of a rows x k matrix as it stands in a file; of one packed group of 16 rows; of the whole packed matrix.
 * 0 when the format is unknown, rows or k is 0, k is not whole blocks, or a number does not fit. */
size_t rt_file_bytes(rt_format format, uint64_t rows, uint64_t k);
size_t rt_group_bytes(rt_format format, uint64_t k);
size_t rt_packed_bytes(rt_format format, uint64_t rows, uint64_t k);

/* One group of 16 rows. blocks: [rows][k] in file blocks, of the whole matrix; dst: [rt_group_bytes].
 * Needs rt_packed_bytes(format, rows, k) != 0 and group < ceil(rows / 16). */
void rt_pack_group(rt_format format, uint64_t rows, uint64_t k, const uint8_t *restrict blocks, uint64_t group,
                   uint8_t *restrict dst);

/* How many OpenMP threads share `pieces` when `threads` are asked for (0: as many as OpenMP would take); and the end of
 * their work, after which no idle thread is left behind: a process may fork and go on packing in the child. */
int rt_pack_threads(int threads, uint64_t pieces);
void rt_pack_threads_done(void);

/* Every group, in parallel. dst: [rt_packed_bytes]. */
rt_code rt_pack(rt_format format, uint64_t rows, uint64_t k, const uint8_t *restrict blocks, size_t blocks_bytes,
                uint8_t *restrict dst, size_t dst_bytes, int threads, rt_status *st);

/* A row of a packed matrix, or of the file's blocks, as f32. out: [k]. The same bits both ways. */
void rt_unpack_row(rt_format format, uint64_t k, const uint8_t *restrict packed, uint64_t row, float *restrict out);
void rt_decode_row(rt_format format, uint64_t k, const uint8_t *restrict row_blocks, float *restrict out);

/* All rows of a matrix in file blocks, in parallel. out: [rows][k]. Needs rt_file_bytes(format, rows, k) != 0. */
rt_code rt_decode(rt_format format, uint64_t rows, uint64_t k, const uint8_t *restrict blocks, float *restrict out, int threads,
                  rt_status *st);
#endif
