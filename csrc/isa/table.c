/* The sets of defs/isas.def that this build has, by number. */
#include "isa/kernels.h"
#include "quant/act.h"

const struct rt_kernels *rt_isa_kernels(int32_t isa) {
  static const struct rt_kernels *const table[RT_ISAS] = {
      [RT_ISA_scalar] = &rt_kernels_scalar,
#if defined(__x86_64__)
      [RT_ISA_avx2] = &rt_kernels_avx2,
      [RT_ISA_avx512] = &rt_kernels_avx512,
#endif
  };
  return isa >= 0 && isa < RT_ISAS ? table[isa] : NULL;
}

size_t rt_act_bytes(int k) { return rt_act_size(k); }
