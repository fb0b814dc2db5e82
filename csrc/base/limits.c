#include "base/limits.h"

#include <string.h>

typedef uint64_t words __attribute__((vector_size(32)));

enum { BLOCK = 256, AHEAD = 8192 }; /* bytes summed together; bytes between what is read and what is fetched */

uint64_t rt_limit_read(const uint8_t *restrict bytes, size_t n) {
  words sum[4] = {0};
  for (size_t at = 0; at + BLOCK <= n; at += BLOCK) {
    words block[8];
    for (int line = 0; line < BLOCK; line += 64) __builtin_prefetch(bytes + at + AHEAD + line, 0, 3);
    memcpy(block, bytes + at, BLOCK);
    for (int i = 0; i < 8; i++) sum[i % 4] += block[i];
  }
  words all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  return all[0] + all[1] + all[2] + all[3];
}
