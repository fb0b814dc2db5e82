/* A machine with one program and no system: the ROM of an emulated PC, 2 MB that end where a processor starts. At their front
 * lies a static x86-64 Linux program, at COMMAND its command line, this code in the last 64 KB. It switches on all state the
 * processor can save, runs the program where a system would be and serves its system calls. What that writes goes to port 0xe9. */
#include <elf.h>
#include <stdint.h>

#define PROGRAM 0xffe00000ul
#define COMMAND 0xfffe0000ul
enum { WORDS = 0x00f00000, HEAP = 0x04000000, MAPPED = 0x06000000, STACK = 0x0f000000 };
enum { STAR = 0xc0000081, LSTAR = 0xc0000082, SFMASK = 0xc0000084, FS_BASE = 0xc0000100 };

struct state { uint64_t heap, mapped; };
#define STATE ((struct state *)0x9000)

#pragma GCC visibility push(hidden)
void system_call(void);
_Noreturn void enter(uint64_t first, uint64_t *stack);

static void set_msr(uint32_t msr, uint64_t value) {
  __asm__ volatile("wrmsr" : : "c"(msr), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)));
}
static void out(uint16_t port, char c) { __asm__ volatile("outb %0, %1" : : "a"(c), "Nd"(port)); }
static void say(const char *s, uint64_t n) { while (n--) out(0xe9, *s++); }
static void copy(void *to, const void *from, uint64_t n) {
  __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
}
static void clear(void *to, uint64_t n) { __asm__ volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(0) : "memory"); }

static _Noreturn void stop(uint64_t status) {
  char end[] = "exit 0\n";
  end[5] = (char)(status < 10 ? '0' + status : '?');
  say(end, 7);
  for (const char *s = "Shutdown"; *s; s++) out(0x8900, *s); /* Bochs's own port */
  for (;;) __asm__ volatile("cli; hlt");
}

/* Permission to use AMX's tiles is granted as a system grants it. */
static int64_t arch_prctl(uint64_t what, uint64_t value) {
  if (what == 0x1002) return set_msr(FS_BASE, value), 0; /* ARCH_SET_FS */
  return what == 0x1023 ? 0 : -22;                       /* ARCH_REQ_XCOMP_PERM; else EINVAL */
}

static int64_t map(uint64_t bytes) {
  uint64_t at = STATE->mapped;
  STATE->mapped += (bytes + 4095) & ~4095ul;
  return STATE->mapped < STACK - (8 << 20) ? (int64_t)at : -12;
}

int64_t serve(uint64_t number, uint64_t a, uint64_t b, uint64_t c) {
  struct { const char *at; uint64_t n; } *parts = (void *)b;
  int64_t done = 0;
  switch (number) {
    case 1: return say((const char *)b, c), (int64_t)c;                                                     /* write */
    case 20:                                                                                                /* writev */
      for (uint64_t i = 0; i < c; i++) say(parts[i].at, parts[i].n), done += (int64_t)parts[i].n;
      return done;
    case 9: return map(b);                                                                                  /* mmap */
    case 10: case 11: case 13: case 14: return 0;                       /* mprotect, munmap, rt_sigaction, rt_sigprocmask */
    case 12: return (int64_t)(STATE->heap = a >= HEAP && a < MAPPED ? a : STATE->heap);                     /* brk */
    case 158: return arch_prctl(a, b);
    case 218: return 1;                                                                                     /* set_tid_address */
    case 60: case 231: stop(a);
    case 2: case 21: case 89: case 257: case 267: return -2;                                 /* no file of any name: ENOENT */
    default: return -38;                                                                                    /* ENOSYS */
  }
}

static void cpuid(uint32_t leaf, uint32_t r[4]) {
  __asm__("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(0));
}

static void all_state(void) {
  uint32_t r[4];
  uint64_t cr4;
  cpuid(1, r);
  if (!(r[2] >> 26 & 1)) return; /* no XSAVE */
  __asm__ volatile("mov %%cr4, %0" : "=r"(cr4));
  __asm__ volatile("mov %0, %%cr4" : : "r"(cr4 | 1 << 18));
  cpuid(13, r);
  __asm__ volatile("xsetbv" : : "c"(0), "a"(r[0]), "d"(r[3]));
}

void boot(void) {
  const Elf64_Ehdr *elf = (const Elf64_Ehdr *)PROGRAM;
  const Elf64_Phdr *part = (const Elf64_Phdr *)(PROGRAM + elf->e_phoff);
  uint64_t *stack = (uint64_t *)(uint64_t)STACK, headers = 0;
  char *words = (char *)(uint64_t)WORDS;
  all_state();
  copy(words, (const char *)COMMAND, 4096);
  set_msr(STAR, 0x10ul << 32);
  set_msr(LSTAR, (uint64_t)system_call);
  set_msr(SFMASK, 0);
  *STATE = (struct state){HEAP, MAPPED};
  for (int i = 0; i < elf->e_phnum; i++) {
    if (part[i].p_type != PT_LOAD) continue;
    clear((void *)part[i].p_vaddr, part[i].p_memsz);
    copy((void *)part[i].p_vaddr, (const char *)elf + part[i].p_offset, part[i].p_filesz);
    if (part[i].p_offset <= elf->e_phoff && elf->e_phoff < part[i].p_offset + part[i].p_filesz)
      headers = part[i].p_vaddr + elf->e_phoff - part[i].p_offset;
  }
  *stack = 0;
  for (uint64_t *at = stack + 1; *words;) { /* words, each ended by a newline */
    *at++ = (uint64_t)words;
    ++*stack;
    *at = 0;
    while (*words != '\n') words++;
    *words++ = 0;
  }
  uint64_t more[] = {AT_PHDR, headers, AT_PHENT, sizeof *part, AT_PHNUM, elf->e_phnum, AT_PAGESZ, 4096, AT_ENTRY, elf->e_entry,
                     AT_RANDOM, PROGRAM, AT_SECURE, 0, AT_NULL, 0};
  uint64_t *at = stack + 1 + *stack + 1;
  *at++ = 0; /* no environment */
  copy(at, more, sizeof more);
  enter(elf->e_entry, stack);
}
