/* AVX2 + FMA + F16C. */
#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c")
#define RT_SET avx2
#include "simd/avx2.h"

#include "isa/kernels.inc"
#endif
