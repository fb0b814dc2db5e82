/* The vocabulary on NEON with dot products (aarch64): four registers of 4 lanes. simd/scalar.h says what each function means. */
#ifndef RT_SIMD_NEON_H
#define RT_SIMD_NEON_H
#ifdef RT_EMULATE_NEON /* a header that gives the intrinsics below on another CPU: how tests run this file */
#include RT_EMULATE_NEON
#else
#include <arm_neon.h>
#endif
#include <stdint.h>
#include <string.h>

#define V_INLINE static inline __attribute__((always_inline, unused))

typedef struct v16f { float32x4_t a, b, c, d; } v16f;
typedef struct v16i { int32x4_t a, b, c, d; } v16i;
typedef struct v16m { uint32x4_t a, b, c, d; } v16m;

#define V_EACH1(type, f, x) (type){f((x).a), f((x).b), f((x).c), f((x).d)}
#define V_EACH(type, f, x, y) (type){f((x).a, (y).a), f((x).b, (y).b), f((x).c, (y).c), f((x).d, (y).d)}

#define V_ROWS 6 /* query rows that share a load in attention_tile: 24 sums, a row of the page, a query */
#define V_SCAN_TOKENS 4 /* tokens of scan_block that share a load of the state */
#define V_SUMS 4 /* sums that attention keeps in registers for one token */

V_INLINE v16f v_set1(float x) { float32x4_t r = vdupq_n_f32(x); return (v16f){r, r, r, r}; }
V_INLINE v16f v_zero(void) { return v_set1(0.0f); }
V_INLINE v16f v_load(const float *p) { return (v16f){vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}; }
V_INLINE void v_store(float *p, v16f x) {
  vst1q_f32(p, x.a);
  vst1q_f32(p + 4, x.b);
  vst1q_f32(p + 8, x.c);
  vst1q_f32(p + 12, x.d);
}
V_INLINE float32x4_t v_widen_f16(const uint16_t *p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
V_INLINE v16f v_load_f16(const uint16_t *p) {
  return (v16f){v_widen_f16(p), v_widen_f16(p + 4), v_widen_f16(p + 8), v_widen_f16(p + 12)};
}
V_INLINE v16f v_set1_f16(const uint16_t *p) {
  float32x4_t r = vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(*p)));
  return (v16f){r, r, r, r};
}
V_INLINE float32x4_t v_widen_bf16(const uint16_t *p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
V_INLINE v16f v_load_bf16(const uint16_t *p) {
  return (v16f){v_widen_bf16(p), v_widen_bf16(p + 4), v_widen_bf16(p + 8), v_widen_bf16(p + 12)};
}
V_INLINE v16f v_load_e5m2(const uint8_t *p) {
  uint16_t half[16];
  for (int l = 0; l < 16; l++) half[l] = (uint16_t)(p[l] << 8);
  return v_load_f16(half);
}
V_INLINE v16f v_load_e4m3(const uint8_t *p) {
  uint16_t half[16];
  for (int l = 0; l < 16; l++)
    half[l] = (uint16_t)((p[l] & 0x7f) == 0x7f ? 0x7e00 : (p[l] & 0x80) << 8 | (p[l] & 0x7f) << 7);
  return V_EACH(v16f, vmulq_f32, v_load_f16(half), v_set1(256.0f));
}
V_INLINE uint16x4_t v_narrow_f16(float32x4_t x) { return vreinterpret_u16_f16(vcvt_f16_f32(x)); }
V_INLINE void v_store_f16(uint16_t *p, v16f x) {
  vst1_u16(p, v_narrow_f16(x.a));
  vst1_u16(p + 4, v_narrow_f16(x.b));
  vst1_u16(p + 8, v_narrow_f16(x.c));
  vst1_u16(p + 12, v_narrow_f16(x.d));
}

/* The second operand when either is NaN or both are zero: neither fmax nor fmaxnm. */
V_INLINE float32x4_t v_max4(float32x4_t x, float32x4_t y) { return vbslq_f32(vcgtq_f32(x, y), x, y); }
V_INLINE float32x4_t v_min4(float32x4_t x, float32x4_t y) { return vbslq_f32(vcltq_f32(x, y), x, y); }

V_INLINE v16f v_add(v16f x, v16f y) { return V_EACH(v16f, vaddq_f32, x, y); }
V_INLINE v16f v_sub(v16f x, v16f y) { return V_EACH(v16f, vsubq_f32, x, y); }
V_INLINE v16f v_mul(v16f x, v16f y) { return V_EACH(v16f, vmulq_f32, x, y); }
V_INLINE v16f v_div(v16f x, v16f y) { return V_EACH(v16f, vdivq_f32, x, y); }
V_INLINE v16f v_max(v16f x, v16f y) { return V_EACH(v16f, v_max4, x, y); }
V_INLINE v16f v_min(v16f x, v16f y) { return V_EACH(v16f, v_min4, x, y); }
V_INLINE v16f v_fma(v16f x, v16f y, v16f z) {
  return (v16f){vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b), vfmaq_f32(z.c, x.c, y.c), vfmaq_f32(z.d, x.d, y.d)};
}
V_INLINE v16f v_abs(v16f x) { return V_EACH1(v16f, vabsq_f32, x); }
V_INLINE v16f v_round(v16f x) { return V_EACH1(v16f, vrndnq_f32, x); }
V_INLINE float32x4_t v_power2(int32x4_t e) { return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(e, vdupq_n_s32(127)), 23)); }
V_INLINE float32x4_t v_scale2_of4(float32x4_t x, float32x4_t n) {
  int32x4_t e = vcvtnq_s32_f32(n), half = vshrq_n_s32(e, 1);
  return vmulq_f32(vmulq_f32(x, v_power2(half)), v_power2(vsubq_s32(e, half)));
}
V_INLINE v16f v_scale2(v16f x, v16f n) { return V_EACH(v16f, v_scale2_of4, x, n); }
V_INLINE float32x4_t v_scale2_normal_of4(float32x4_t x, float32x4_t n) {
  return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(x), vshlq_n_s32(vcvtnq_s32_f32(n), 23)));
}
V_INLINE v16f v_scale2_normal(v16f x, v16f n) { return V_EACH(v16f, v_scale2_normal_of4, x, n); }

V_INLINE v16m v_less(v16f x, v16f y) { return V_EACH(v16m, vcltq_f32, x, y); }
V_INLINE uint32x4_t v_within4(const int32_t *p, int32x4_t low, int32x4_t high) {
  int32x4_t x = vld1q_s32(p);
  return vandq_u32(vcgeq_s32(x, low), vcleq_s32(x, high));
}
V_INLINE v16m v_within(const int32_t *p, int32_t low, int32_t high) {
  int32x4_t l = vdupq_n_s32(low), h = vdupq_n_s32(high);
  return (v16m){v_within4(p, l, h), v_within4(p + 4, l, h), v_within4(p + 8, l, h), v_within4(p + 12, l, h)};
}
static const uint32_t v_lane_bits[16] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
V_INLINE v16m v_mask(uint32_t bits) {
  const uint32_t *lane = v_lane_bits;
  uint32x4_t all = vdupq_n_u32(bits);
  return (v16m){vtstq_u32(all, vld1q_u32(lane)), vtstq_u32(all, vld1q_u32(lane + 4)), vtstq_u32(all, vld1q_u32(lane + 8)),
                vtstq_u32(all, vld1q_u32(lane + 12))};
}
V_INLINE uint32_t v_bits(v16m m) {
  const uint32_t *lane = v_lane_bits;
  uint32x4_t low = vorrq_u32(vandq_u32(m.a, vld1q_u32(lane)), vandq_u32(m.b, vld1q_u32(lane + 4)));
  uint32x4_t high = vorrq_u32(vandq_u32(m.c, vld1q_u32(lane + 8)), vandq_u32(m.d, vld1q_u32(lane + 12)));
  return vaddvq_u32(vorrq_u32(low, high));
}
V_INLINE v16f v_select(v16m m, v16f x, v16f y) {
  return (v16f){vbslq_f32(m.a, x.a, y.a), vbslq_f32(m.b, x.b, y.b), vbslq_f32(m.c, x.c, y.c), vbslq_f32(m.d, x.d, y.d)};
}

V_INLINE float v_sum(v16f x) {
  float32x4_t four = vaddq_f32(vaddq_f32(x.a, x.c), vaddq_f32(x.b, x.d));
  float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
V_INLINE float v_most(v16f x) {
  float32x4_t four = v_max4(v_max4(x.a, x.c), v_max4(x.b, x.d));
  float32x4_t two = v_max4(four, vextq_f32(four, four, 2));
  return vgetq_lane_f32(v_max4(two, vextq_f32(two, two, 1)), 0);
}
V_INLINE float v_first(v16f x) { return vgetq_lane_f32(x.a, 0); }

V_INLINE void v_store_s32(int32_t *p, v16f x) {
  vst1q_s32(p, vcvtnq_s32_f32(x.a));
  vst1q_s32(p + 4, vcvtnq_s32_f32(x.b));
  vst1q_s32(p + 8, vcvtnq_s32_f32(x.c));
  vst1q_s32(p + 12, vcvtnq_s32_f32(x.d));
}
V_INLINE int32_t v_store_planes(v16f x, int16_t *q, int8_t *high, int8_t *low) {
  int16x8_t a = vcombine_s16(vmovn_s32(vcvtnq_s32_f32(x.a)), vmovn_s32(vcvtnq_s32_f32(x.b)));
  int16x8_t b = vcombine_s16(vmovn_s32(vcvtnq_s32_f32(x.c)), vmovn_s32(vcvtnq_s32_f32(x.d)));
  vst1q_s16(q, a), vst1q_s16(q + 8, b);
  if (high) vst1q_s8(high, vcombine_s8(vrshrn_n_s16(a, 8), vrshrn_n_s16(b, 8)));
  vst1q_s8(low, vcombine_s8(vmovn_s16(a), vmovn_s16(b)));
  return vaddlvq_s16(a) + vaddlvq_s16(b);
}
V_INLINE v16f v_of_s32(v16i x) { return V_EACH1(v16f, vcvtq_f32_s32, x); }
V_INLINE v16i v_minus(v16i x, int32_t y) {
  int32x4_t all = vdupq_n_s32(y);
  return (v16i){vsubq_s32(x.a, all), vsubq_s32(x.b, all), vsubq_s32(x.c, all), vsubq_s32(x.d, all)};
}

/* ---- steps ---- */
typedef struct v64b { uint8x16_t a, b, c, d; } v64b;

V_INLINE v64b v_bytes(const uint8_t *p) { return (v64b){vld1q_u8(p), vld1q_u8(p + 16), vld1q_u8(p + 32), vld1q_u8(p + 48)}; }
V_INLINE void v_store_bytes(uint8_t *p, v64b x) {
  vst1q_u8(p, x.a);
  vst1q_u8(p + 16, x.b);
  vst1q_u8(p + 32, x.c);
  vst1q_u8(p + 48, x.d);
}
V_INLINE v64b v_field(v64b x, int right, int mask) {
  int8x16_t left = vdupq_n_s8((int8_t)-right);
  uint8x16_t m = vdupq_n_u8((uint8_t)mask);
  if (right != 0) x = (v64b){vshlq_u8(x.a, left), vshlq_u8(x.b, left), vshlq_u8(x.c, left), vshlq_u8(x.d, left)};
  return (v64b){vandq_u8(x.a, m), vandq_u8(x.b, m), vandq_u8(x.c, m), vandq_u8(x.d, m)};
}
V_INLINE v64b v_or(v64b x, v64b y) { return V_EACH(v64b, vorrq_u8, x, y); }
V_INLINE v64b v_lookup(const uint8_t *table, v64b x) {
  uint8x16_t t = vld1q_u8(table);
  return (v64b){vqtbl1q_u8(t, x.a), vqtbl1q_u8(t, x.b), vqtbl1q_u8(t, x.c), vqtbl1q_u8(t, x.d)};
}
V_INLINE v16f v_of_s16(int16x8_t low, int16x8_t high) {
  v16i x = {vmovl_s16(vget_low_s16(low)), vmovl_s16(vget_high_s16(low)), vmovl_s16(vget_low_s16(high)),
            vmovl_s16(vget_high_s16(high))};
  return v_of_s32(x);
}
V_INLINE v16f v_of_u8(const uint8_t *p) {
  return v_of_s16(vreinterpretq_s16_u16(vmovl_u8(vld1_u8(p))), vreinterpretq_s16_u16(vmovl_u8(vld1_u8(p + 8))));
}
V_INLINE v16f v_of_s8(const uint8_t *p) {
  return v_of_s16(vmovl_s8(vreinterpret_s8_u8(vld1_u8(p))), vmovl_s8(vreinterpret_s8_u8(vld1_u8(p + 8))));
}

/* ---- sums of a sub-block: four operands of sdot a step and plane. sdot has no unsigned side: u of 8 bits is taken as u - 128,
 * and 128 * (sum of q) comes on top at the end; that sum takes an instruction for every second step ---- */
#define V_DOT_TOKENS 2

typedef struct v_sums {
  v16i high[V_DOT_TOKENS], low[V_DOT_TOKENS];
  int32x4_t q[V_DOT_TOKENS];
} v_sums;

V_INLINE int8x16_t v_four(const int8_t *p) { /* 4 bytes, repeated */
  int32_t x;
  memcpy(&x, p, 4);
  return vreinterpretq_s8_s32(vdupq_n_s32(x));
}
V_INLINE int8x16_t v_signed(uint8x16_t u, int bits) {
  return vreinterpretq_s8_u8(bits == 8 ? veorq_u8(u, vdupq_n_u8(128)) : u);
}
V_INLINE void v_sums_begin(v_sums *restrict s, int m) {
  int32x4_t none = vdupq_n_s32(0);
  for (int t = 0; t < m; t++) s->high[t] = s->low[t] = (v16i){none, none, none, none}, s->q[t] = none;
}
V_INLINE void v_sums_step(v_sums *restrict s, v64b u, int bits, int j, const int16_t *const *q, const int8_t *const *high,
                          const int8_t *const *low, int at, int m) {
  int8x16_t a = v_signed(u.a, bits), b = v_signed(u.b, bits), c = v_signed(u.c, bits), d = v_signed(u.d, bits);
  for (int t = 0; t < m; t++) {
    int8x16_t h = v_four(high[t] + at), l = v_four(low[t] + at);
    v16i *sh = &s->high[t], *sl = &s->low[t];
    *sh = (v16i){vdotq_s32(sh->a, a, h), vdotq_s32(sh->b, b, h), vdotq_s32(sh->c, c, h), vdotq_s32(sh->d, d, h)};
    *sl = (v16i){vdotq_s32(sl->a, a, l), vdotq_s32(sl->b, b, l), vdotq_s32(sl->c, c, l), vdotq_s32(sl->d, d, l)};
    if (bits == 8 && j % 2 == 0) s->q[t] = vpadalq_s16(s->q[t], vld1q_s16(q[t] + at)); /* of this step and the next */
  }
}
V_INLINE const uint8_t *v_after(const uint8_t *p, const v_sums *s, int bits) {
  (void)s, (void)bits;
#ifndef RT_EMULATE_NEON
  __asm__("" : "+r"(p) : "w"(s->low[0].d));
#endif
  return p;
}
V_INLINE int32x4_t v_planes(int32x4_t high, int32x4_t low, int32x4_t more) {
  return vaddq_s32(vaddq_s32(vshlq_n_s32(high, 8), low), more);
}
V_INLINE void v_sums_end(v_sums *restrict s, int bits, int steps, int m, v16i *restrict sum) {
  (void)steps;
  for (int t = 0; t < m; t++) {
    int32x4_t more = vdupq_n_s32(bits == 8 ? 128 * vaddvq_s32(s->q[t]) : 0);
    v16i h = s->high[t], l = s->low[t];
    sum[t] = (v16i){v_planes(h.a, l.a, more), v_planes(h.b, l.b, more), v_planes(h.c, l.c, more), v_planes(h.d, l.d, more)};
  }
}

/* ---- sums of one plane: u of 8 bits is taken as u - 128 ---- */
#define V_BYTE_TOKENS 4
#define V_DOTS_LESS(bits) ((bits) == 8 ? 128 : 0)

typedef struct v_dots { v16i s[V_BYTE_TOKENS]; } v_dots;

V_INLINE void v_dots_begin(v_dots *restrict d, int m) {
  int32x4_t none = vdupq_n_s32(0);
  for (int t = 0; t < m; t++) d->s[t] = (v16i){none, none, none, none};
}
V_INLINE void v_dots_step(v_dots *restrict d, v64b u, int bits, int j, const uint8_t *x, size_t stride, int m) {
  int8x16_t a = v_signed(u.a, bits), b = v_signed(u.b, bits), c = v_signed(u.c, bits), e = v_signed(u.d, bits);
  (void)j;
  for (int t = 0; t < m; t++) {
    int8x16_t four = v_four((const int8_t *)x + t * stride);
    v16i *s = &d->s[t];
    *s = (v16i){vdotq_s32(s->a, a, four), vdotq_s32(s->b, b, four), vdotq_s32(s->c, c, four), vdotq_s32(s->d, e, four)};
  }
}
V_INLINE void v_dots_end(v_dots *restrict d, int bits, int m, v16i *restrict sum) {
  (void)bits;
  for (int t = 0; t < m; t++) sum[t] = d->s[t];
}

/* ---- the BF16 path ---- */
#define V_BF16_TOKENS 4

V_INLINE float32x4_t v_number4(uint8x16_t x, int i) {
  uint32x4_t moved = vshlq_u32(vreinterpretq_u32_u8(x), vdupq_n_s32(-8 * i));
  return vcvtq_f32_u32(vandq_u32(moved, vdupq_n_u32(255)));
}
V_INLINE v16f v_number(v64b x, int i) {
  return (v16f){v_number4(x.a, i), v_number4(x.b, i), v_number4(x.c, i), v_number4(x.d, i)};
}
V_INLINE float32x4_t v_round_bf16_4(float32x4_t x) {
  uint32x4_t bits = vreinterpretq_u32_f32(x), odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff))), quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
  return vreinterpretq_f32_u32(vandq_u32(vbslq_u32(vceqq_f32(x, x), rounded, quiet), vdupq_n_u32(0xffff0000)));
}
V_INLINE v16f v_round_bf16(v16f x) { return V_EACH1(v16f, v_round_bf16_4, x); }
#endif
