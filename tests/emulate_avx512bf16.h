/* The bf16 instructions of csrc/simd/avx512bf16.h in plain C, as Intel's manual states them. Denormal numbers are zero. */
#include <math.h>
#include <stdint.h>
#include <string.h>

static inline float bf16_flush(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0.0f, x) : x; }

/* vcvtne2ps2bf16: to even, NaN quiet. */
static inline uint16_t narrow_bf16(float x) {
  uint32_t bits;
  x = bf16_flush(x);
  memcpy(&bits, &x, 4);
  if (x != x) return (uint16_t)(bits >> 16 | 0x40);
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
static inline __m512i v_narrow_bf16(__m512 odd, __m512 even) {
  float lanes[32];
  uint16_t out[32];
  _mm512_storeu_ps(lanes, even);
  _mm512_storeu_ps(lanes + 16, odd);
  for (int i = 0; i < 32; i++) out[i] = narrow_bf16(lanes[i]);
  return _mm512_loadu_si512(out);
}

static inline float widen_bf16(uint16_t x) {
  uint32_t bits = (uint32_t)x << 16;
  float wide;
  memcpy(&wide, &bits, 4);
  return bf16_flush(wide);
}
/* vdpbf16ps: the odd product, then the even one. */
static inline __m512 v_dot_bf16(__m512 acc, __m512i w, __m512i x) {
  float sum[16];
  uint16_t a[32], b[32];
  _mm512_storeu_ps(sum, acc);
  _mm512_storeu_si512(a, w);
  _mm512_storeu_si512(b, x);
  for (int l = 0; l < 16; l++)
    for (int i = 1; i >= 0; i--) sum[l] = bf16_flush(fmaf(widen_bf16(a[2 * l + i]), widen_bf16(b[2 * l + i]), bf16_flush(sum[l])));
  return _mm512_loadu_ps(sum);
}
