/* AVX-512 F, BW, VL, DQ, VNNI, BF16. */
#if defined(__x86_64__)
#if !defined(RT_EMULATE_AVX512)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")
#endif
#define RT_SET avx512bf16
#include "simd/avx512bf16.h"

#include "isa/kernels.inc"
#endif
