/* f32 -> blocks of a file: what --quantize asks for.
 *
 * F16 and BF16 round to nearest even; Q8_0, Q4_0, Q4_1, Q5_0 and Q5_1 round plainly, to the bits that the `gguf` package gives.
 * Q4_K, Q5_K and Q6_K are searched for: each sub-block's scale (and least value) by least squares from several ranges, then
 * their neighbours once they are rounded; where plain rounding (pyruntime/quant) is as near, it stands. */
#ifndef RT_QUANTIZE_H
#define RT_QUANTIZE_H
#include <stdbool.h>

#include "base/status.h"
#include "quant/formats.h"

bool rt_can_quantize(rt_format format);

/* x: [rows][k]; blocks: [rt_file_bytes(format, rows, k)], which must not be 0. RT_BAD_FILE: a value is not finite, or beyond what
 * the format's scales reach. */
rt_code rt_quantize(rt_format format, uint64_t rows, uint64_t k, const float *restrict x, uint8_t *restrict blocks, int threads,
                    rt_status *st);
#endif
