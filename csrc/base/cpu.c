#define _GNU_SOURCE
#include "base/cpu.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

static const struct { const char *name, *needs; } sets[] = {
#define ISA(name, needs) {#name, needs},
#include "defs/isas.def"
#undef ISA
};

int32_t rt_isa_count(void) { return (int32_t)(sizeof sets / sizeof *sets); }

const char *rt_isa_name(int32_t isa) { return isa >= 0 && isa < rt_isa_count() ? sets[isa].name : NULL; }

#if defined(__x86_64__)
enum { EAX, EBX, ECX, EDX };
enum { YMM_STATE = 0x6, ZMM_STATE = 0xe6, TILE_STATE = 0x600e6 }; /* bits of XCR0 the system must have set to keep these registers */

static const struct feature { const char *name; unsigned leaf, part, reg, bit, state; } features[] = {
  {"fma", 1, 0, ECX, 12, YMM_STATE},         {"f16c", 1, 0, ECX, 29, YMM_STATE},     {"avx2", 7, 0, EBX, 5, YMM_STATE},
  {"avx512f", 7, 0, EBX, 16, ZMM_STATE},     {"avx512dq", 7, 0, EBX, 17, ZMM_STATE}, {"avx512bw", 7, 0, EBX, 30, ZMM_STATE},
  {"avx512vl", 7, 0, EBX, 31, ZMM_STATE},    {"avx512_vnni", 7, 0, ECX, 11, ZMM_STATE},
  {"avx512_bf16", 7, 1, EAX, 5, ZMM_STATE},  {"amx_bf16", 7, 0, EDX, 22, TILE_STATE},
  {"amx_tile", 7, 0, EDX, 24, TILE_STATE},   {"amx_int8", 7, 0, EDX, 25, TILE_STATE},
};

#define RT_GRANT "amx_permission" /* no feature of the CPU: what the system must grant where amx_tile is */

static uint64_t register_state(void) {
  unsigned r[4] = {0}, low, high;
  if (!__get_cpuid(1, &r[EAX], &r[EBX], &r[ECX], &r[EDX]) || !(r[ECX] >> 27 & 1)) return 0; /* no OSXSAVE: no xgetbv */
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t)high << 32 | low;
}

/* Linux gives a process the tiles' memory on request, once for all its threads; asking again changes nothing. */
static bool tiles_granted(void) {
#if defined(__linux__)
  enum { ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18 };
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0;
#else
  return false;
#endif
}

static bool ask(const struct feature *f) {
  unsigned r[4] = {0};
  return __get_cpuid_count(f->leaf, f->part, &r[EAX], &r[EBX], &r[ECX], &r[EDX]) && (r[f->reg] >> f->bit & 1) &&
         (register_state() & f->state) == f->state;
}

/* Asked once: on a virtual machine each question goes to the host. Threads that ask at the same time write the same. */
static bool knows(size_t i) {
  enum { UNASKED, NO, YES };
  static atomic_char known[sizeof features / sizeof *features];
  char answer = atomic_load_explicit(&known[i], memory_order_relaxed);
  if (answer == UNASKED) atomic_store_explicit(&known[i], answer = ask(&features[i]) ? YES : NO, memory_order_relaxed);
  return answer == YES;
}

static bool has(const char *name, size_t length) {
  if (length == strlen(RT_GRANT) && memcmp(name, RT_GRANT, length) == 0) return !has("amx_tile", 8) || tiles_granted();
  for (size_t i = 0; i < sizeof features / sizeof *features; i++)
    if (strlen(features[i].name) == length && memcmp(features[i].name, name, length) == 0) return knows(i);
  return false;
}
#elif defined(__aarch64__)
static const struct feature { const char *name; unsigned long bit; } features[] = {{"asimd", HWCAP_ASIMD}, {"asimddp", HWCAP_ASIMDDP}};

static bool has(const char *name, size_t length) {
  for (size_t i = 0; i < sizeof features / sizeof *features; i++)
    if (strlen(features[i].name) == length && memcmp(features[i].name, name, length) == 0)
      return (getauxval(AT_HWCAP) & features[i].bit) != 0;
  return false;
}
#else
static bool has(const char *name, size_t length) {
  (void)name, (void)length;
  return false;
}
#endif

const char *rt_isa_missing(int32_t isa, char missing[RT_MISSING_BYTES]) {
  size_t used = 0;
  missing[0] = 0;
  if (!rt_isa_name(isa)) return strcpy(missing, "an instruction set of that number");
  for (const char *at = sets[isa].needs; *at;) {
    size_t length = strcspn(at, " ");
    if (length && !has(at, length) && used + length + 2 < RT_MISSING_BYTES)
      used += (size_t)snprintf(missing + used, RT_MISSING_BYTES - used, "%s%.*s", used ? " " : "", (int)length, at);
    at += length + (at[length] == ' ');
  }
  return missing;
}

int32_t rt_cpu_best_isa(void) {
  char missing[RT_MISSING_BYTES];
  int32_t isa = rt_isa_count() - 1;
  while (isa > 0 && *rt_isa_missing(isa, missing)) isa--;
  return isa;
}
