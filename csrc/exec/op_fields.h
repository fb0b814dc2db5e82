/* defs/ops.def as one struct an op, whose fields are rt_op's words. */
#ifndef RT_OP_FIELDS_H
#define RT_OP_FIELDS_H
#include "rt.h"

#define S(field) int32_t field;
#define W(field) int32_t field;
#define G(field) int32_t field;
#define R(field) int32_t field;
#define I(field) int32_t field;
#define F(field) float field;
#define OP(KIND, name, fields) typedef struct rt_op_##name { fields } rt_op_##name;
#include "defs/ops.def"
#undef OP
#undef S
#undef W
#undef G
#undef R
#undef I
#undef F

typedef union rt_op_fields {
  uint32_t words[RT_OP_WORDS];
#define OP(KIND, name, fields) rt_op_##name name;
#include "defs/ops.def"
#undef OP
} rt_op_fields;

_Static_assert(sizeof(rt_op_fields) == 4 * RT_OP_WORDS, "an op's fields must fit its words");
#endif
