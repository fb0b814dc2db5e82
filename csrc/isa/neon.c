/* NEON with dot products: aarch64 from ARMv8.2 on. */
#if defined(__aarch64__) || defined(RT_EMULATE_NEON)
#ifndef RT_EMULATE_NEON
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif
#define RT_SET neon
#include "simd/neon.h"

#include "isa/kernels.inc"
#endif
