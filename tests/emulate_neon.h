/* The NEON intrinsics of csrc/simd/neon.h on an AVX2 machine: SIMDe, and what it has not or has only roughly. */
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include <simde/arm/neon.h>

/* Half floats stay bits until the processor's own conversion. */
#undef vreinterpret_f16_u16
#undef vreinterpret_u16_f16
#undef vcvt_f32_f16
#undef vcvt_f16_f32
#undef vcvtnq_s32_f32
#define vreinterpret_f16_u16(x) (x)
#define vreinterpret_u16_f16(x) (x)

static inline float32x4_t vcvt_f32_f16(uint16x4_t x) {
  int64_t bits;
  memcpy(&bits, &x, 8);
  __m128 wide = _mm_cvtph_ps(_mm_cvtsi64_si128(bits));
  float32x4_t r;
  memcpy(&r, &wide, 16);
  return r;
}
static inline uint16x4_t vcvt_f16_f32(float32x4_t x) {
  __m128 wide;
  memcpy(&wide, &x, 16);
  int64_t bits = _mm_cvtsi128_si64(_mm_cvtps_ph(wide, _MM_FROUND_TO_NEAREST_INT));
  uint16x4_t r;
  memcpy(&r, &bits, 8);
  return r;
}
/* To even; NaN is 0 and what does not fit is the nearest that does. */
static inline int32x4_t vcvtnq_s32_f32(float32x4_t x) {
  float lanes[4];
  int32_t out[4];
  memcpy(lanes, &x, 16);
  for (int i = 0; i < 4; i++)
    out[i] = lanes[i] != lanes[i] ? 0 : lanes[i] >= 0x1p31f ? INT32_MAX : lanes[i] < -0x1p31f ? INT32_MIN
             : (int32_t)__builtin_rintf(lanes[i]);
  int32x4_t r;
  memcpy(&r, out, 16);
  return r;
}
static inline float32x4_t vdivq_f32(float32x4_t x, float32x4_t y) {
  float a[4], b[4];
  memcpy(a, &x, 16);
  memcpy(b, &y, 16);
  for (int i = 0; i < 4; i++) a[i] /= b[i];
  memcpy(&x, a, 16);
  return x;
}
