/* The recurrent ops of a step (exec/recur.c). */
#ifndef RT_RECUR_H
#define RT_RECUR_H
#include "exec/engine.h"

rt_phase rt_conv_phase(const rt_engine *e, const rt_op_conv *f);
void rt_conv_unit(const rt_engine *e, const rt_op_conv *f, int32_t unit);

rt_phase rt_scan_phase(const rt_engine *e, const rt_op_scan *f, int32_t part);
void rt_scan_token(const rt_engine *e, const rt_op_scan *f, int32_t token);
void rt_scan_head(const rt_engine *e, const rt_op_scan *f, int32_t unit);
void rt_scan_keep(const rt_engine *e, const rt_op_scan *f, int32_t s);

void rt_gated_norm_row(const rt_engine *e, const rt_op_gated_norm *f, int32_t token);
#endif
