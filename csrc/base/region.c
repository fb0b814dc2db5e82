#include "base/region.h"

#include <sys/mman.h>

#include "base/checked.h"

#define HUGE_PAGE ((size_t)2 << 20)

rt_code rt_region_make(size_t bytes, rt_region *region, rt_status *st) {
  *region = (rt_region){0};
  if (bytes == 0) return RT_OK;
  uint64_t size = 0, with_slack = 0;
  bool fits = rt_add(bytes, HUGE_PAGE - 1, &size) && rt_add(size, HUGE_PAGE, &with_slack);
  void *all = fits ? mmap(NULL, with_slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) : MAP_FAILED;
  if (all == MAP_FAILED)
    return rt_fail(st, RT_NO_MEMORY, "no memory for %zu MB of weights; free some, or use the low-memory mode", bytes >> 20);
  size = size / HUGE_PAGE * HUGE_PAGE;
  with_slack = rt_round_up(with_slack, 4096);
  uint8_t *start = all, *base = (uint8_t *)rt_round_up((uintptr_t)start, HUGE_PAGE), *end = start + with_slack;
  if (base > start) munmap(start, (size_t)(base - start));
  if (end > base + size) munmap(base + size, (size_t)(end - base) - size);
  madvise(base, size, MADV_HUGEPAGE);
  *region = (rt_region){.base = base, .size = size};
  return RT_OK;
}

void rt_region_free(rt_region *region) {
  if (region->base) munmap(region->base, region->size);
  *region = (rt_region){0};
}

uint8_t *rt_region_take(rt_region *region, size_t bytes) {
  uint64_t padded = 0;
  if (!rt_add(bytes, RT_REGION_ALIGN - 1, &padded)) return NULL;
  padded = padded / RT_REGION_ALIGN * RT_REGION_ALIGN;
  if (padded > region->size - region->used) return NULL;
  region->used += padded;
  return region->base + region->used - padded;
}
