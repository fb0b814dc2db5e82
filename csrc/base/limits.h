/* This machine's limits, to stand beside what a kernel reaches. */
#ifndef RT_LIMITS_H
#define RT_LIMITS_H
#include <stddef.h>
#include <stdint.h>

/* Read bytes[n] once, front to back, as fast as one thread can; returns a sum so that nothing is left out. n in 256s. */
uint64_t rt_limit_read(const uint8_t *restrict bytes, size_t n);
#endif
