/* AVX-512 F, BW, VL, DQ, VNNI. */
#if defined(__x86_64__)
#ifndef RT_EMULATE_AVX512
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")
#endif
#define RT_SET avx512
#include "simd/avx512.h"

#include "isa/kernels.inc"
#endif
