/* One piece of memory in 2 MB pages where the system gives them, handed out from front to back and freed as a whole. */
#ifndef RT_REGION_H
#define RT_REGION_H
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum { RT_REGION_ALIGN = 64 };

typedef struct rt_region {
  uint8_t *base; /* [size], zero at first, on a 2 MB boundary; NULL when empty */
  size_t size, used;
} rt_region;

rt_code rt_region_make(size_t bytes, rt_region *region, rt_status *st);
void rt_region_free(rt_region *region);

/* The next `bytes`, aligned to 64; NULL when they are not there. */
uint8_t *rt_region_take(rt_region *region, size_t bytes);
#endif
