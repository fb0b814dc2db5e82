#include "exec/ops.h"

const rt_op_info rt_op_table[RT_OPS] = {
#define OP(KIND, name, fields) {#name, #fields},
#include "defs/ops.def"
#undef OP
};
