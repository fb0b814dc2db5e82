/* AVX-512 (F, BW, VL, DQ, VNNI, BF16) and AMX (TILE, INT8, BF16). */
#if defined(__x86_64__)
#ifndef RT_EMULATE_AMX
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,amx-tile,amx-int8,amx-bf16,avx2,fma,f16c")
#endif
#define RT_SET amx
#include "simd/amx.h"

#include "isa/kernels.inc"
#endif
