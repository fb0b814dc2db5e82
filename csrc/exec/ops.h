/* defs/ops.def as an enum and a table. */
#ifndef RT_OPS_H
#define RT_OPS_H

enum rt_op_kind {
#define OP(KIND, name, fields) RT_OP_##KIND,
#include "defs/ops.def"
#undef OP
  RT_OPS
};

typedef struct rt_op_info { const char *name, *fields; } rt_op_info; /* fields: the text of defs/ops.def */

extern const rt_op_info rt_op_table[RT_OPS];
#endif
