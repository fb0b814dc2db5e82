/* Arithmetic on numbers that come from a file: true when the exact result fits. */
#ifndef RT_CHECKED_H
#define RT_CHECKED_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline bool rt_add(uint64_t a, uint64_t b, uint64_t *sum) { return !__builtin_add_overflow(a, b, sum); }
static inline bool rt_mul(uint64_t a, uint64_t b, uint64_t *product) { return !__builtin_mul_overflow(a, b, product); }
static inline uint64_t rt_round_up(uint64_t n, uint64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
#endif
