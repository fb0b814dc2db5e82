/* The sets of defs/isas.def that this build has, by number. */
#include "isa/kernels.h"
#include "quant/act.h"

const struct rt_kernels *rt_isa_kernels(int32_t isa) {
  static const struct rt_kernels *const table[RT_ISAS] = {
#define ISA(name, needs) [RT_ISA_##name] = &rt_kernels_##name,
#include "defs/isas.def"
#undef ISA
  };
  return isa >= 0 && isa < RT_ISAS ? table[isa] : NULL;
}

size_t rt_act_bytes(int k) { return rt_act_size(k); }
