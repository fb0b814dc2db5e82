/* Plain C: runs anywhere, and is what every other set must equal. */
#define RT_SET scalar
#include "simd/scalar.h"

#include "isa/kernels.inc"
