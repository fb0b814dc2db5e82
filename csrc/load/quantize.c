#include "load/quantize.h"

#include <math.h>
#include <string.h>

#include "base/half.h"
#include "load/pack.h"

/* Nobody asks for floating-point exceptions here; comparing without them lets the compiler choose by lane. The bits stay. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-trapping-math")
#endif

/* x: [block_weights] -> one block; false when a value or scale does not fit. */
typedef bool (*quantize_block)(const float *restrict x, uint8_t *restrict block);

/* To nearest even; |x| below 2^22. */
static inline float nearest(float x) { return x + 0x1.8p23f - 0x1.8p23f; }
static inline float clamp(float x, float low, float high) { return x < low ? low : x > high ? high : x; }

/* 1 / d; 0 where that is not a number to go on with. */
static inline float inverse(float d) {
  float i = 1.0f / d;
  return isfinite(i) ? i : 0.0f;
}

/* Sums run in lanes of their own, which the compiler makes vectors of, and are joined in one order. */
enum { LANES = 8 };

static inline float total(const float *restrict v /* [LANES] */) {
  return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

static inline bool put_half(uint8_t *at, float x) {
  uint16_t half = rt_f32_to_f16(x);
  memcpy(at, &half, 2);
  return (half & 0x7c00) != 0x7c00;
}

static bool all_finite(const float *x, int n) {
  uint32_t most = 0;
  for (int i = 0; i < n; i++) {
    uint32_t magnitude = rt_bits_of_float(x[i]) & 0x7fffffff;
    most = magnitude > most ? magnitude : most;
  }
  return most < 0x7f800000;
}

/* ---- plain ---- */

static bool quantize_f32(const float *restrict x, uint8_t *restrict block) {
  memcpy(block, x, 4);
  return all_finite(x, 1);
}

static bool quantize_f16(const float *restrict x, uint8_t *restrict block) { return put_half(block, *x) && all_finite(x, 1); }

static bool quantize_bf16(const float *restrict x, uint8_t *restrict block) {
  uint16_t bits = rt_f32_to_bf16(*x);
  memcpy(block, &bits, 2);
  return (bits & 0x7f80) != 0x7f80;
}

static bool quantize_q8_0(const float *restrict x, uint8_t *restrict block) {
  float most = 0;
  if (!all_finite(x, 32)) return false;
  for (int i = 0; i < 32; i++) most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
  float d = most / 127, id = inverse(d);
  for (int i = 0; i < 32; i++) { /* halves away from zero */
    float a = fabsf(x[i] * id), whole = (float)(int)a, rounded = whole + (float)(int)(2 * (a - whole));
    block[2 + i] = (uint8_t)(int8_t)(x[i] < 0 ? -rounded : rounded);
  }
  return put_half(block, d);
}

static void put_nibbles(uint8_t *at, const uint8_t *restrict n /* [32] */) {
  for (int i = 0; i < 16; i++) at[i] = (uint8_t)((n[i] & 15) | n[16 + i] << 4);
}

static void put_fifths(uint8_t *at, const uint8_t *restrict n /* [32] */) {
  uint32_t bits = 0;
  for (int i = 0; i < 32; i++) bits |= (uint32_t)(n[i] >> 4) << i;
  memcpy(at, &bits, 4);
}

/* Around zero: the value furthest from it becomes 0 of 0..2 * half - 1. */
static float round_signed(const float *restrict x, int half, uint8_t *restrict n) {
  float furthest = x[0];
  for (int i = 1; i < 32; i++)
    if (fabsf(x[i]) > fabsf(furthest)) furthest = x[i];
  float d = furthest / (float)-half, id = inverse(d);
  for (int i = 0; i < 32; i++) {
    int q = (int)(x[i] * id + ((float)half + 0.5f));
    n[i] = (uint8_t)(q > 2 * half - 1 ? 2 * half - 1 : q);
  }
  return d;
}

/* From the least value up: 0..top; n stays as it was when the range is beyond a float. */
static float round_from_least(const float *restrict x, int top, uint8_t *restrict n, float *least) {
  float low = x[0], high = x[0];
  for (int i = 1; i < 32; i++) low = x[i] < low ? x[i] : low, high = x[i] > high ? x[i] : high;
  float d = (high - low) / (float)top, id = inverse(d);
  *least = low;
  if (!isfinite(d)) return d;
  for (int i = 0; i < 32; i++) {
    int q = (int)((x[i] - low) * id + 0.5f);
    n[i] = (uint8_t)(q > top ? top : q);
  }
  return d;
}

static bool quantize_q4_0(const float *restrict x, uint8_t *restrict block) {
  uint8_t n[32];
  if (!all_finite(x, 32)) return false;
  float d = round_signed(x, 8, n);
  put_nibbles(block + 2, n);
  return put_half(block, d);
}

static bool quantize_q5_0(const float *restrict x, uint8_t *restrict block) {
  uint8_t n[32];
  if (!all_finite(x, 32)) return false;
  float d = round_signed(x, 16, n);
  put_fifths(block + 2, n);
  put_nibbles(block + 6, n);
  return put_half(block, d);
}

static bool quantize_q4_1(const float *restrict x, uint8_t *restrict block) {
  uint8_t n[32];
  float least;
  if (!all_finite(x, 32)) return false;
  float d = round_from_least(x, 15, n, &least);
  put_nibbles(block + 4, n);
  return put_half(block, d) && put_half(block + 2, least);
}

static bool quantize_q5_1(const float *restrict x, uint8_t *restrict block) {
  uint8_t n[32];
  float least;
  if (!all_finite(x, 32)) return false;
  float d = round_from_least(x, 31, n, &least);
  put_fifths(block + 4, n);
  put_nibbles(block + 8, n);
  return put_half(block, d) && put_half(block + 2, least);
}

/* ---- searched for: a scale and a least value a sub-block ---- */

/* How a block of Q4_K or Q5_K will stand: x is near d scale[s] q - dmin min[s]. */
typedef struct ranged {
  float d, dmin; /* as f16 gives them back */
  uint8_t scale[8], min[8], q[256];
} ranged;

/* The nearest q of a sub-block and its squared error, in the very numbers that decoding gives. q: [32] */
static float round_ranged(const float *restrict x, float step, float below, int top, uint8_t *restrict q) {
  float i_step = inverse(step), error[LANES] = {0}, n[32];
  for (int i = 0; i < 32; i += LANES)
    for (int l = i; l < i + LANES; l++) {
      n[l] = clamp(nearest(clamp((x[l] + below) * i_step, -1.0f, 32.0f)), 0.0f, (float)top);
      float off = step * n[l] - below - x[l];
      error[l - i] += off * off;
    }
  for (int i = 0; i < 32; i++) q[i] = (uint8_t)(int)n[i];
  return total(error);
}

static double error_of_ranged(const float *restrict x, const ranged *r) {
  double error = 0;
  for (int i = 0; i < 256; i++) {
    double off = r->d * (float)r->scale[i / 32] * (float)r->q[i] - r->dmin * (float)r->min[i / 32] - x[i];
    error += off * off;
  }
  return error;
}

static float through_half(float x) { return rt_f16_to_f32(rt_f32_to_f16(x)); }

/* Each sub-block by its own range, the scales by the largest: the twin's bits (pyruntime/quant/r16.py). Nothing but the two
 * scales when they are beyond an f16. */
static void range_plainly(const float *restrict x, int top, ranged *r) {
  float least[8], span[8], most = 0, lowest = 0;
  for (int s = 0; s < 8; s++) {
    float low = 0, high = x[s * 32];
    for (int i = 0; i < 32; i++) {
      float v = x[s * 32 + i];
      low = v < low ? v : low, high = v > high ? v : high;
    }
    least[s] = low, span[s] = (high - low) / (float)top;
    most = span[s] > most ? span[s] : most, lowest = low < lowest ? low : lowest;
  }
  r->d = through_half(most / 63), r->dmin = through_half(-lowest / 63);
  if (!isfinite(r->d) || !isfinite(r->dmin)) return;
  float id = inverse(r->d), idmin = inverse(r->dmin);
  for (int s = 0; s < 8; s++) {
    r->scale[s] = (uint8_t)clamp(nearest(clamp(span[s] * id, 0, 64)), 0, 63);
    r->min[s] = (uint8_t)clamp(nearest(clamp(-least[s] * idmin, 0, 64)), 0, 63);
    round_ranged(x + s * 32, r->d * (float)r->scale[s], r->dmin * (float)r->min[s], top, r->q + s * 32);
  }
}

/* x near scale * q - below, below >= 0: least squares over the q that several ranges give. */
static void fit_ranged(const float *restrict x, int top, float *restrict scale, float *restrict below) {
  float low = 0, high = x[0], best = INFINITY;
  for (int i = 0; i < 32; i++) low = x[i] < low ? x[i] : low, high = x[i] > high ? x[i] : high;
  *scale = 0, *below = -low;
  if (high <= low) return;
  for (int t = -8; t <= 4; t += 3) {
    float grid = ((float)top + 0.125f * (float)t) / (high - low), q[32];
    float s1[LANES] = {0}, s2[LANES] = {0}, s3[LANES] = {0}, s4[LANES] = {0}, errors[LANES] = {0};
    for (int i = 0; i < 32; i += LANES)
      for (int l = 0; l < LANES; l++) {
        float v = x[i + l], n = clamp(nearest(clamp((v - low) * grid, 0, 32)), 0, (float)top);
        q[i + l] = n;
        s1[l] += n, s2[l] += n * n, s3[l] += v, s4[l] += v * n;
      }
    float sq = total(s1), sqq = total(s2), sx = total(s3), sxq = total(s4), det = 32 * sqq - sq * sq;
    if (!(det > 0)) continue;
    float a = (32 * sxq - sq * sx) / det, b = (sq * sxq - sqq * sx) / det;
    if (b < 0) a = sxq / sqq, b = 0;
    for (int i = 0; i < 32; i += LANES)
      for (int l = 0; l < LANES; l++) {
        float off = a * q[i + l] - b - x[i + l];
        errors[l] += off * off;
      }
    float error = total(errors);
    if (error < best && a > 0) best = error, *scale = a, *below = b;
  }
}

/* The rounded scale and least value, and their neighbours: which is nearest? */
static void settle_ranged(const float *restrict x, int top, ranged *r, int s, float scale, float below) {
  int a = (int)nearest(clamp(scale * inverse(r->d), 0, 63)), b = (int)nearest(clamp(below * inverse(r->dmin), 0, 63));
  float best = INFINITY;
  for (int i = a > 0 ? a - 1 : 0; i <= a + 1 && i < 64; i++)
    for (int j = b > 0 ? b - 1 : 0; j <= b + 1 && j < 64; j++) {
      uint8_t q[32];
      float error = round_ranged(x, r->d * (float)i, r->dmin * (float)j, top, q);
      if (error >= best) continue;
      best = error;
      r->scale[s] = (uint8_t)i, r->min[s] = (uint8_t)j;
      memcpy(r->q + s * 32, q, 32);
    }
}

/* False when a scale does not fit. */
static bool range(const float *restrict x, int top, ranged *r) {
  float scale[8], below[8], most = 0, lowest = 0;
  ranged plain;
  if (!all_finite(x, 256)) return false;
  range_plainly(x, top, &plain);
  if (!isfinite(plain.d) || !isfinite(plain.dmin)) return false;
  for (int s = 0; s < 8; s++) {
    fit_ranged(x + s * 32, top, &scale[s], &below[s]);
    most = scale[s] > most ? scale[s] : most, lowest = below[s] > lowest ? below[s] : lowest;
  }
  r->d = through_half(most / 63), r->dmin = through_half(lowest / 63);
  if (!isfinite(r->d) || !isfinite(r->dmin)) return *r = plain, true;
  memset(r->q, 0, sizeof r->q);
  for (int s = 0; s < 8; s++) settle_ranged(x + s * 32, top, r, s, scale[s], below[s]);
  if (!(error_of_ranged(x, r) < error_of_ranged(x, &plain))) *r = plain;
  return true;
}

/* d, dmin and 6 bits for each of the 8 scales and mins: 16 bytes. */
static void put_ranges(uint8_t *block, const ranged *r) {
  put_half(block, r->d);
  put_half(block + 2, r->dmin);
  for (int s = 0; s < 4; s++) {
    block[4 + s] = (uint8_t)(r->scale[s] | r->scale[4 + s] >> 4 << 6);
    block[8 + s] = (uint8_t)(r->min[s] | r->min[4 + s] >> 4 << 6);
    block[12 + s] = (uint8_t)((r->scale[4 + s] & 15) | r->min[4 + s] << 4);
  }
}

static void put_runs_of_32(uint8_t *at, const uint8_t *restrict q /* [256] */) {
  for (int i = 0; i < 128; i++) at[i] = (uint8_t)((q[i / 32 * 64 + i % 32] & 15) | q[i / 32 * 64 + 32 + i % 32] << 4);
}

static bool quantize_q4_k(const float *restrict x, uint8_t *restrict block) {
  ranged r;
  if (!range(x, 15, &r)) return false;
  put_ranges(block, &r);
  put_runs_of_32(block + 16, r.q);
  return true;
}

static bool quantize_q5_k(const float *restrict x, uint8_t *restrict block) {
  ranged r;
  if (!range(x, 31, &r)) return false;
  put_ranges(block, &r);
  memset(block + 16, 0, 32);
  for (int i = 0; i < 256; i++) block[16 + i % 32] |= (uint8_t)(r.q[i] >> 4 << i / 32);
  put_runs_of_32(block + 48, r.q);
  return true;
}

/* ---- searched for: a signed scale a sub-block ---- */

/* How a block of Q6_K will stand: x is near d scale[s] (q - 32). */
typedef struct scaled {
  float d; /* as f16 gives it back */
  int8_t scale[16];
  uint8_t q[256]; /* 0..63 */
} scaled;

/* The nearest q of a sub-block and its squared error. q: [16] */
static float round_scaled(const float *restrict x, float step, uint8_t *restrict q) {
  float i_step = inverse(step), error[LANES] = {0}, n[16];
  for (int i = 0; i < 16; i += LANES)
    for (int l = i; l < i + LANES; l++) {
      n[l] = nearest(clamp(x[l] * i_step, -32, 31));
      float off = step * n[l] - x[l];
      error[l - i] += off * off;
    }
  for (int i = 0; i < 16; i++) q[i] = (uint8_t)(int)(n[i] + 32);
  return total(error);
}

static double error_of_scaled(const float *restrict x, const scaled *r) {
  double error = 0;
  for (int i = 0; i < 256; i++) {
    double off = r->d * (float)r->scale[i / 16] * (float)(r->q[i] - 32) - x[i];
    error += off * off;
  }
  return error;
}

static float furthest_of(const float *restrict x, int n) {
  float furthest = x[0];
  for (int i = 1; i < n; i++)
    if (fabsf(x[i]) > fabsf(furthest)) furthest = x[i];
  return furthest;
}

/* Scales rounded over the one furthest from zero, which becomes -128; then the neighbours of each, where asked for. Nothing but
 * the scale over all when that is beyond an f16. */
static void settle_scaled(const float *restrict x, const float *restrict wanted /* [16] */, int neighbours, scaled *r) {
  r->d = through_half(furthest_of(wanted, 16) / -128);
  if (!isfinite(r->d)) return;
  float id = inverse(r->d);
  for (int s = 0; s < 16; s++) {
    int a = (int)clamp(nearest(clamp(wanted[s] * id, -200, 200)), -128, 127);
    float best = INFINITY;
    for (int i = a - neighbours; i <= a + neighbours; i++) {
      uint8_t q[16];
      if (i < -128 || i > 127) continue;
      float error = round_scaled(x + s * 16, r->d * (float)i, q);
      if (error >= best) continue;
      best = error;
      r->scale[s] = (int8_t)i;
      memcpy(r->q + s * 16, q, 16);
    }
  }
}

/* x near scale * q, q -32..31: least squares over the q that several scales give. */
static float fit_scaled(const float *restrict x) {
  float furthest = furthest_of(x, 16), best = -1, scale = 0;
  if (!isfinite(1 / furthest)) return 0;
  for (int t = -8; t <= 8; t += 4) {
    float grid = (-32 + 0.125f * (float)t) / furthest, s1[LANES] = {0}, s2[LANES] = {0};
    for (int i = 0; i < 16; i += LANES)
      for (int l = 0; l < LANES; l++) {
        float q = nearest(clamp(x[i + l] * grid, -32, 31));
        s1[l] += q * q, s2[l] += x[i + l] * q;
      }
    float sqq = total(s1), sxq = total(s2);
    if (sqq > 0 && sxq * sxq > best * sqq) best = sxq * sxq / sqq, scale = sxq / sqq;
  }
  return scale;
}

static bool quantize_q6_k(const float *restrict x, uint8_t *restrict block) {
  float wanted[16];
  scaled plain, r;
  if (!all_finite(x, 256)) return false;
  for (int s = 0; s < 16; s++) wanted[s] = furthest_of(x + s * 16, 16) / -32;
  settle_scaled(x, wanted, 0, &plain);
  if (!isfinite(plain.d)) return false;
  for (int s = 0; s < 16; s++) wanted[s] = fit_scaled(x + s * 16);
  settle_scaled(x, wanted, 1, &r);
  if (!isfinite(r.d) || !(error_of_scaled(x, &r) < error_of_scaled(x, &plain))) r = plain;
  for (int i = 0; i < 128; i++) block[i] = (uint8_t)((r.q[i / 64 * 128 + i % 64] & 15) | r.q[i / 64 * 128 + 64 + i % 64] << 4);
  for (int i = 0; i < 64; i++) {
    const uint8_t *q = r.q + i / 32 * 128 + i % 32;
    block[128 + i] = (uint8_t)(q[0] >> 4 | q[32] >> 4 << 2 | q[64] >> 4 << 4 | q[96] >> 4 << 6);
  }
  memcpy(block + 192, r.scale, 16);
  return put_half(block + 208, r.d);
}

/* ---- all of them ---- */

static const quantize_block quantizers[RT_FORMATS] = {
  [RT_F32] = quantize_f32, [RT_F16] = quantize_f16, [RT_BF16] = quantize_bf16, [RT_Q8_0] = quantize_q8_0,
  [RT_Q4_0] = quantize_q4_0, [RT_Q4_1] = quantize_q4_1, [RT_Q5_0] = quantize_q5_0, [RT_Q5_1] = quantize_q5_1,
  [RT_Q4_K] = quantize_q4_k, [RT_Q5_K] = quantize_q5_k, [RT_Q6_K] = quantize_q6_k,
};

bool rt_can_quantize(rt_format format) { return format < RT_FORMATS && quantizers[format]; }

rt_code rt_quantize(rt_format format, uint64_t rows, uint64_t k, const float *restrict x, uint8_t *restrict blocks, int threads,
                    rt_status *st) {
  const rt_format_info *f = &rt_format_table[format];
  uint64_t stride = rt_file_bytes(format, 1, k);
  int unfit = 0;
  if (!rt_can_quantize(format) || stride == 0)
    return rt_fail(st, RT_INVALID, "rows of %llu numbers cannot become %s weights", (unsigned long long)k, f->name);
#pragma omp parallel for schedule(dynamic, 8) num_threads(rt_pack_threads(threads, rows / 8))
  for (uint64_t r = 0; r < rows; r++)
    for (uint64_t b = 0; b < k / f->block_weights; b++)
      if (!quantizers[format](x + r * k + b * f->block_weights, blocks + r * stride + b * f->block_bytes)) {
#pragma omp atomic write
        unfit = 1;
      }
  rt_pack_threads_done();
  st->code = RT_OK;
  return unfit ? rt_fail(st, RT_BAD_FILE, "a value that is not finite, or too large for %s weights", f->name) : RT_OK;
}
