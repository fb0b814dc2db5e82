/* What this CPU and its system can run, by the feature names of defs/isas.def. No unsupported instruction is executed to find out. */
#ifndef RT_CPU_H
#define RT_CPU_H
#include <stdint.h>

enum { RT_MISSING_BYTES = 128 };

int32_t rt_isa_count(void);
const char *rt_isa_name(int32_t isa);                                      /* NULL when there is no such set */
int32_t rt_cpu_best_isa(void);                                             /* the highest set that can run here */
const char *rt_isa_missing(int32_t isa, char missing[RT_MISSING_BYTES]);   /* features it lacks, "" when it can run */
#endif
