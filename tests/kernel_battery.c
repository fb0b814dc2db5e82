/* Every kernel of every set this CPU can run, on the same seeded inputs: prints `set kernel format hash`, a line each. The hash
 * of a kernel is the same for every set, on every architecture. NaNs are all one, their payload being nobody's. */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "base/half.h"
#include "isa/kernels.h"
#include "load/pack.h"
#include "quant/act.h"
#include "rt.h"

typedef struct source { uint64_t state; } source;

static uint64_t bits_of(source *s) { /* splitmix64 */
  uint64_t z = s->state += 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return z ^ z >> 31;
}
static int below(source *s, int n) { return (int)(bits_of(s) % (uint64_t)n); }
/* The sum of four, so that values crowd around 0; exact. */
static float value(source *s) {
  int32_t sum = 0;
  for (int i = 0; i < 4; i++) sum += (int32_t)(bits_of(s) >> 44) - (1 << 19);
  return (float)sum * 0x1p-20f;
}

enum kind { TAME, SPIKE, HUGE_ONES, TINY, DENORMAL, ZEROS, NANS, INFINITE, KINDS };

static void fill(source *s, enum kind kind, float *x, int n) {
  static const float factors[KINDS] = {1, 1, 1e37f, 1e-33f, 1e-40f, 0, 1, 1};
  for (int i = 0; i < n; i++) {
    x[i] = value(s) * factors[kind];
    if (below(s, 40) != 0) continue;
    if (kind == SPIKE) x[i] *= 1e4f;
    if (kind == NANS) x[i] = NAN;
    if (kind == INFINITE) x[i] = x[i] < 0 ? -INFINITY : INFINITY;
  }
}

static void *room(size_t bytes) {
  void *p = aligned_alloc(64, (bytes + 4096 + 63) / 64 * 64);
  if (!p) exit(2);
  return memset(p, 0, (bytes + 4096 + 63) / 64 * 64);
}

/* ---- hashes: FNV-1a ---- */
typedef struct hash { uint64_t h; } hash;

static void add_bytes(hash *h, const void *p, size_t n) {
  for (size_t i = 0; i < n; i++) h->h = (h->h ^ ((const uint8_t *)p)[i]) * 0x100000001b3;
}
static void add_floats(hash *h, const float *x, size_t n) {
  for (size_t i = 0; i < n; i++) {
    uint32_t bits = x[i] == x[i] ? rt_bits_of_float(x[i]) : 0x7fc00000;
    add_bytes(h, &bits, 4);
  }
}
static void say(const char *set, const char *kernel, const char *format, hash *h) {
  printf("%s %s %s %016llx\n", set, kernel, format, (unsigned long long)h->h);
  h->h = 0xcbf29ce484222325;
}

/* ---- weights ---- */
/* Blocks of rows x k. Tame: each block decodes to finite values of ordinary size; wild: any bytes. */
static uint8_t *blocks_of(source *s, rt_format format, int rows, int k, bool wild) {
  const rt_format_info *f = &rt_format_table[format];
  size_t bytes = rt_file_bytes(format, (uint64_t)rows, (uint64_t)k);
  uint8_t *blocks = room(bytes);
  float out[256];
  for (size_t at = 0; at < bytes; at += f->block_bytes)
    for (int tries = 0; tries < 100000; tries++) {
      for (size_t i = 0; i < f->block_bytes; i++) blocks[at + i] = (uint8_t)(bits_of(s) >> 32);
      f->decode(blocks + at, out);
      float most = 0;
      for (uint32_t i = 0; i < f->block_weights; i++) most = fabsf(out[i]) <= most ? most : fabsf(out[i]);
      if (wild || (most >= 0x1p-8f && most <= 0x1p4f)) break;
    }
  return blocks;
}

static uint8_t *packed_of(source *s, rt_format format, int rows, int k, bool wild) {
  uint8_t *blocks = blocks_of(s, format, rows, k, wild), *packed = room(rt_packed_bytes(format, (uint64_t)rows, (uint64_t)k));
  size_t group = rt_group_bytes(format, (uint64_t)k);
  for (int g = 0; g < (rows + 15) / 16; g++)
    rt_pack_group(format, (uint64_t)rows, (uint64_t)k, blocks, (uint64_t)g, packed + (size_t)g * group);
  free(blocks);
  return packed;
}

static const int shapes[][3] = {{16, 64, 1}, {40, 256, 3}, {24, 512, 9}, {33, 768, 6}, {16, 832, 21}}; /* rows, k, tokens */
enum { SHAPES = sizeof shapes / sizeof *shapes };

static void linear(const struct rt_kernels *K, rt_format format, enum rt_path path, hash *h) {
  rt_linear_kernel *kernel = K->linear[path][format];
  source s = {(uint64_t)format};
  int k_block = (int)rt_format_table[format].block_weights;
  for (int i = 0; i < SHAPES * 2; i++) {
    int rows = shapes[i / 2][0], k = (shapes[i / 2][1] + k_block - 1) / k_block * k_block;
    int m = shapes[i / 2][2], groups = (rows + 15) / 16;
    uint8_t *w = packed_of(&s, format, rows, k, i % 2 != 0);
    size_t stride = rt_act_bytes(k);
    uint8_t *act = room(stride * (size_t)m);
    float *x = room((size_t)k * 4), *y = room((size_t)(m * groups) * 64);
    for (int t = 0; t < m; t++) {
      fill(&s, t % 3 == 2 ? SPIKE : TAME, x, k);
      K->quantize(x, k, 0, NULL, NULL, 0, path, act + (size_t)t * stride);
    }
    kernel(w, k, 0, groups, act, stride, m, y, (size_t)groups * 16);
    add_floats(h, y, (size_t)(m * groups) * 16);
    free(y), free(x), free(act), free(w);
  }
}

static void embed(const struct rt_kernels *K, rt_format format, hash *h) {
  source s = {100 + (uint64_t)format};
  for (int i = 0; i < SHAPES * 2; i++) {
    int rows = shapes[i / 2][0], k = (shapes[i / 2][1] + 255) / 256 * 256;
    uint8_t *w = packed_of(&s, format, rows, k, i % 2 != 0);
    float *out = room((size_t)k * 4);
    for (int row = 0; row < rows; row += 7) {
      K->embed[format](w, k, row, row % 2 ? 1.0f : 27.7f, out);
      add_floats(h, out, (size_t)k);
    }
    free(out), free(w);
  }
}

static const int lengths[] = {1, 15, 16, 64, 65, 100, 256, 576};
enum { LENGTHS = sizeof lengths / sizeof *lengths, LONGEST = 576 };

static void quantize(const struct rt_kernels *K, enum rt_path path, hash *h) {
  source s = {1};
  static float x[LONGEST], w[LONGEST], b[LONGEST];
  for (int i = 0; i < LENGTHS * KINDS * 3; i++) {
    int k = lengths[i % LENGTHS], norm = i / LENGTHS % 3;
    uint8_t *act = room(rt_act_bytes(k));
    fill(&s, (enum kind)(i / LENGTHS / 3), x, k);
    fill(&s, TAME, w, k);
    fill(&s, TAME, b, k);
    K->quantize(x, k, norm == 2, norm ? w : NULL, norm == 2 ? b : NULL, 1e-5f, path, act);
    rt_act a = rt_act_at(act, k);
    size_t kp = rt_act_k(k);
    const uint16_t *coarse = path == RT_PATH_BF16 ? a.bf16 : a.pairs;
    for (size_t n = 0; n < kp && path != RT_PATH_A16; n++) add_floats(h, (float[]){rt_bf16_to_f32(coarse[n])}, 1);
    if (path != RT_PATH_BF16) {
      add_floats(h, a.scale, 1);
      const uint8_t *from = (uint8_t *)(path == RT_PATH_A8 ? a.low : a.high); /* A8 has floats there, NaNs too */
      if (path == RT_PATH_A8) add_floats(h, a.scales, kp / 16);
      add_bytes(h, a.sum, kp / 16 * sizeof *a.sum);
      add_bytes(h, from, (size_t)((uint8_t *)a.x - from));
    }
    if (path == RT_PATH_A16 || path == RT_PATH_BF16) add_floats(h, a.x, kp);
    free(act);
  }
}

static void elementwise(const struct rt_kernels *K, hash *h) {
  source s = {2};
  static float x[LONGEST], y[LONGEST], b[LONGEST], out[LONGEST];
  for (int i = 0; i < LENGTHS * KINDS; i++) {
    int n = lengths[i % LENGTHS], finite = 0;
    float largest = 0;
    fill(&s, (enum kind)(i / LENGTHS), x, n);
    fill(&s, (enum kind)(i / LENGTHS), y, n);
    fill(&s, TAME, b, n);
    for (int biased = 0; biased < 2; biased++) {
      memcpy(out, y, sizeof y);
      K->add_scaled(x, biased ? b : NULL, 0.7f, n, out);
      add_floats(h, out, (size_t)n);
    }
    K->add_bias(x, b, n, out);
    add_floats(h, out, (size_t)n);
    memcpy(out, y, sizeof y);
    K->norm_add(x, n, b, 1e-5f, out);
    add_floats(h, out, (size_t)n);
    for (int a = 0; a < 3; a++) {
      for (int gated = 0; gated < 2; gated++) {
        K->gate[a](x, gated ? y : NULL, n, out);
        add_floats(h, out, (size_t)n);
      }
    }
    for (int cap = 0; cap < 2; cap++) {
      memcpy(out, x, sizeof x);
      K->scale_cap(out, n, 3.0f, cap ? 30.0f : 0.0f);
      add_floats(h, out, (size_t)n);
    }
    int at = K->argmax(x, n, &largest, &finite);
    double sum = K->exp_sum(x, n, largest);
    sum = sum == sum ? sum : 0.5;
    add_bytes(h, &at, sizeof at);
    add_bytes(h, &finite, sizeof finite);
    add_floats(h, &largest, 1);
    add_bytes(h, &sum, sizeof sum);
  }
}

static void rope(const struct rt_kernels *K, hash *h) {
  source s = {3};
  float x[256], w[256], c[128], sn[128];
  for (int i = 0; i < 24; i++) {
    int half = 1 + below(&s, 128), pairs = i % 3 ? half : half / 2;
    fill(&s, (enum kind)(i % KINDS), x, 2 * half);
    fill(&s, TAME, w, 2 * half);
    fill(&s, TAME, c, half);
    fill(&s, TAME, sn, half);
    K->rope_head(x, 2 * half, i % 2 ? w : NULL, 1e-6f, pairs ? c : NULL, pairs ? sn : NULL, pairs, i / 2 % 2);
    add_floats(h, x, 2 * (size_t)half);
  }
}

/* Chunks of several and of single tokens; two groups of channels, one with a tail. */
static void recurrences(const struct rt_kernels *K, hash *h) {
  enum { TOKENS_MOST = 7, WIDE = 96 + 2 * 20 };
  source s = {4};
  float x[TOKENS_MOST * WIDE], w[WIDE * RT_TAPS], bias[WIDE], state[96 * 20], out[TOKENS_MOST * WIDE], rates[2 * TOKENS_MOST];
  for (int i = 0; i < 24; i++) {
    int tokens = i % 3 ? 1 + below(&s, TOKENS_MOST) : 1, channels = 1 + below(&s, WIDE), taps = 2 + below(&s, 5);
    int head_dim = i % 2 ? 16 * (1 + below(&s, 6)) : 1 + below(&s, 96), numbers = 1 + below(&s, 20), wide = head_dim + 2 * numbers;
    fill(&s, (enum kind)(i % KINDS), x, tokens * WIDE);
    fill(&s, TAME, w, channels * taps), fill(&s, TAME, bias, channels), fill(&s, TAME, state, (taps - 1) * channels);
    struct rt_conv_args conv = {.x = x, .w = w, .bias = i % 4 ? bias : NULL, .state = state, .out = out, .x_stride = WIDE,
                                .state_stride = (size_t)channels, .out_stride = WIDE, .tokens = tokens, .channels = channels,
                                .taps = taps, .activation = i % 4 - 1};
    K->conv(&conv);
    for (int t = 0; t < tokens; t++) add_floats(h, out + t * WIDE, (size_t)channels);
    add_floats(h, state, (size_t)((taps - 1) * channels));
    fill(&s, TAME, state, head_dim * numbers), fill(&s, TAME, rates, 2 * TOKENS_MOST);
    struct rt_scan_args scan = {.x = x, .b = x + head_dim, .c = x + head_dim + numbers, .dt = rates, .decay = rates + TOKENS_MOST,
                                .state = state, .out = out, .x_stride = (size_t)wide, .rate_stride = 1,
                                .out_stride = (size_t)head_dim, .tokens = tokens, .head_dim = head_dim, .numbers = numbers, .d = 0.7f};
    K->scan(&scan);
    add_floats(h, out, (size_t)(tokens * head_dim));
    add_floats(h, state, (size_t)(head_dim * numbers));
    float mix[TOKENS_MOST][RT_PAGE];
    struct rt_scan_block_args block = {.state = state, .tokens = tokens, .first = tokens / 3, .ends = i % 5 != 0,
                                       .head_dim = head_dim, .numbers = numbers, .d = 0.7f};
    for (int t = 0; t < tokens; t++) {
      block.x[t] = x + t * wide, block.b[t] = block.x[t] + head_dim, block.c[t] = block.b[t] + numbers;
      block.dt[t] = rates[t], block.decay[t] = rates[TOKENS_MOST + t], block.mix[t] = mix[t], block.out[t] = out + t * head_dim;
      K->scan_mix(block.c[t], block.b, t + 1, numbers, mix[t]);
    }
    K->scan_block(&block);
    add_floats(h, out, (size_t)(tokens * head_dim));
    add_floats(h, state, (size_t)(head_dim * numbers));
    fill(&s, TAME, bias, channels);
    K->gated_norm(x, w, channels, bias, 1e-5f, i % 2, out);
    add_floats(h, out, (size_t)channels);
  }
}

enum { PAGES = 7, OLD = 70, TOKENS = 11, HEAD_MOST = 128, SHARE_MOST = 7 };
#define ROWS (TOKENS * SHARE_MOST)

/* K and V of 16 * PAGES tokens, stored one by one. */
static void fill_pages(source *s, const struct rt_kernels *K, struct rt_attention_args *a, uint8_t *k, uint8_t *v) {
  float x[HEAD_MOST];
  for (size_t t = 0; t < 16 * PAGES; t++) {
    fill(s, TAME, x, a->head_dim);
    K->store_k[a->k_format](x, a->head_dim, (int)(t % 16), k + t / 16 * a->k_stride);
    fill(s, t % 5 ? TAME : SPIKE, x, a->head_dim);
    K->store_v[a->v_format](x, a->head_dim, (int)(t % 16), v + t / 16 * a->v_stride);
  }
}

/* TOKENS tokens behind OLD others, some of which are evicted; page 4 and what follows are a second partial. Each token alone,
 * then all, on both paths. latent: V's pages are rows that serve as both. */
static void attention(const struct rt_kernels *K, rt_format kf, rt_format vf, bool latent, hash *h) {
  static const int dims[] = {32, 64, 96, 128};
  static float q[ROWS * HEAD_MOST], partial[ROWS * HEAD_MOST], max[ROWS], sum[ROWS * 16], top[ROWS], total[ROWS * 16],
      out[ROWS * HEAD_MOST];
  float *scratch = room(rt_attention_bf16_floats(HEAD_MOST, ROWS) * 4);
  source s = {1000 + (uint64_t)kf * 50 + (uint64_t)vf};
  size_t bytes = 16 * HEAD_MOST * 4;
  uint8_t *k = room(PAGES * bytes), *v = room(PAGES * bytes);
  int32_t positions[PAGES * 16];
  struct rt_block blocks[PAGES];
  struct rt_query queries[TOKENS];
  for (int n = 0; n < 5; n++) {
    int i = n + 3 * ((int)kf + (int)vf), dim = dims[n % 4], share = 1 + below(&s, SHARE_MOST), rows = TOKENS * share;
    struct rt_attention_args a = {.k = k, .v = v, .queries = queries, .max = max, .sum = sum, .out = partial,
                                  .q_stride = (size_t)(share * dim), .k_stride = bytes, .v_stride = bytes, .fresh = OLD,
                                  .share = share, .head_dim = dim, .window = i % 3 ? 0 : 20, .k_format = kf, .v_format = vf,
                                  .scale = i % 5 ? 0.3f : 30.0f, .softcap = i % 2 ? 5.0f : 0.0f};
    fill_pages(&s, K, &a, k, v);
    add_bytes(h, k, PAGES * bytes), add_bytes(h, v, PAGES * bytes);
    if (latent) a.k = v, a.v = NULL, a.k_format = vf;
    for (int t = 0; t < 16 * PAGES; t++) positions[t] = t >= OLD + TOKENS || (t < OLD && below(&s, 6) == 0) ? -1 : t;
    for (int b = 0; b < PAGES; b++) {
      blocks[b] = (struct rt_block){.page = b, .low = INT32_MAX, .high = -1, .positions = positions + b * 16};
      for (int l = 0; l < 16; l++)
        if (positions[b * 16 + l] >= 0) {
          blocks[b].high = positions[b * 16 + l];
          if (blocks[b].low > blocks[b].high) blocks[b].low = blocks[b].high;
        }
    }
    for (int t = 0; t < TOKENS; t++) queries[t] = (struct rt_query){OLD + t, i % 4 == 3 ? bits_of(&s) | 1u << t : 0};
    fill(&s, TAME, q, rows * dim);
    for (int way = 0, tile; tile = way % 2, way < 4; way++) {
      fill(&s, TAME, top, rows);
      memset(total, 0, sizeof total), memset(out, 0, sizeof out);
      for (int r = 0; r < rows; r++) total[r * 16] = i % 2 ? 1 : 0, top[r] = i % 2 ? top[r] : -3e38f;
      for (int part = 0; part < 2; part++) {
        a.blocks = blocks + part * 4, a.n_blocks = part ? PAGES - 4 : 4, a.first_block = part * 4;
        for (int t = 0; t < (tile ? 1 : TOKENS); t++) {
          struct rt_attention_args one = a;
          one.q = q + t * share * dim, one.queries += t, one.tokens = tile ? TOKENS : 1;
          one.out += t * share * dim, one.max += t * share, one.sum += t * share * 16;
          if (way / 2 && !latent) K->attention_bf16(&one, scratch);
          else if (tile || latent) K->attention_tile(&one, scratch);
          else K->attention(&one);
        }
        add_floats(h, partial, (size_t)(rows * dim));
        add_floats(h, max, (size_t)rows);
        add_floats(h, sum, (size_t)rows * 16);
        K->attention_join(rows, dim, partial, max, sum, top, total, out);
      }
      K->attention_end(rows, dim, total, out);
      add_floats(h, out, (size_t)(rows * dim));
    }
  }
  free(k), free(v), free(scratch);
}

/* Arguments: the sets to run, all when there are none. */
int main(int n, char **names) {
  char missing[RT_MISSING_BYTES];
  for (int32_t isa = 0; isa < rt_isa_count(); isa++) {
    bool wanted = n < 2;
    for (int i = 1; i < n; i++) wanted |= strcmp(names[i], rt_isa_name(isa)) == 0;
    if (!wanted || *rt_isa_missing(isa, missing)) continue;
    const struct rt_kernels *K = rt_isa_kernels(isa);
    const char *set = rt_isa_name(isa);
    hash h = {0xcbf29ce484222325};
    quantize(K, RT_PATH_A16, &h), say(set, "quantize", "A16", &h);
    quantize(K, RT_PATH_A16_BF16, &h), say(set, "quantize", "A16_BF16", &h);
    quantize(K, RT_PATH_BF16, &h), say(set, "quantize", "BF16", &h);
    quantize(K, RT_PATH_A8, &h), say(set, "quantize", "A8", &h);
    elementwise(K, &h), say(set, "elementwise", "-", &h);
    rope(K, &h), say(set, "rope", "-", &h);
    recurrences(K, &h), say(set, "recurrences", "-", &h);
    for (int f = 0; f < RT_FORMATS; f++) {
      linear(K, (rt_format)f, RT_PATH_A16, &h), say(set, "linear", rt_format_table[f].name, &h);
      linear(K, (rt_format)f, RT_PATH_A16_BF16, &h), say(set, "linear_a16_bf16", rt_format_table[f].name, &h);
      linear(K, (rt_format)f, RT_PATH_BF16, &h), say(set, "linear_bf16", rt_format_table[f].name, &h);
      linear(K, (rt_format)f, RT_PATH_A8, &h), say(set, "linear_a8", rt_format_table[f].name, &h);
      embed(K, (rt_format)f, &h), say(set, "embed", rt_format_table[f].name, &h);
      for (int g = 0; g < RT_FORMATS && K->store_k[f]; g++) {
        char both[64];
        snprintf(both, sizeof both, "%s+%s", rt_format_table[f].name, rt_format_table[g].name);
        if (K->store_v[g]) attention(K, (rt_format)f, (rt_format)g, false, &h), say(set, "attention", both, &h);
        if (K->store_v[g] && f == g) attention(K, (rt_format)f, (rt_format)g, true, &h), say(set, "latent_attention", both, &h);
      }
    }
  }
  return 0;
}
