/* 16-bit floats, exactly: widening loses nothing, narrowing rounds to nearest even. Needs no F16C, gives its bits
 * (a NaN becomes quiet and keeps the top of its payload). */
#ifndef RT_HALF_H
#define RT_HALF_H
#include <stdint.h>
#include <string.h>

static inline float rt_float_of_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

static inline uint32_t rt_bits_of_float(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

static inline float rt_f16_to_f32(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000) << 16, magnitude = h & 0x7fff;
  if (magnitude > 0x7c00) return rt_float_of_bits(sign | 0x7fc00000 | magnitude << 13);
  if (magnitude == 0x7c00) return rt_float_of_bits(sign | 0x7f800000);
  if (magnitude < 0x400) return rt_float_of_bits(sign | rt_bits_of_float((float)magnitude * 0x1p-24f));
  return rt_float_of_bits(sign | ((magnitude << 13) + (112u << 23)));
}

static inline uint16_t rt_f32_to_f16(float x) {
  uint32_t bits = rt_bits_of_float(x), sign = bits >> 16 & 0x8000;
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return (uint16_t)(sign | 0x7e00 | (bits >> 13 & 0x3ff));
  if (bits >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* 65520 and above round to infinity */
  if (bits < 0x38800000)                                    /* below 2^-14: adding 0.5 rounds to steps of 2^-24 */
    return (uint16_t)(sign | (rt_bits_of_float(rt_float_of_bits(bits) + 0.5f) - 0x3f000000));
  return (uint16_t)(sign | (bits - (112u << 23) + 0xfff + (bits >> 13 & 1)) >> 13);
}

/* 4 bits of exponent, 3 of mantissa, no infinities; as an f16 of the same digits it is 2^-8 of itself. */
static inline float rt_e4m3_to_f32(uint8_t x) {
  if ((x & 0x7f) == 0x7f) return rt_f16_to_f32(0x7e00);
  return rt_f16_to_f32((uint16_t)((x & 0x80) << 8 | (x & 0x7f) << 7)) * 256.0f;
}

static inline float rt_bf16_to_f32(uint16_t h) { return rt_float_of_bits((uint32_t)h << 16); }

static inline uint16_t rt_f32_to_bf16(float x) {
  uint32_t bits = rt_bits_of_float(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 0x40);
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
#endif
