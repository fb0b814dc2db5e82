/* Rounding activations to integers, what AVX2 and AVX-512 share. */
#ifndef RT_SIMD_PLANES_H
#define RT_SIMD_PLANES_H

/* v_store_planes of sixteen s32, the first eight in a. */
V_INLINE int32_t v_split_planes(__m256i a, __m256i b, int16_t *q, int8_t *high, int8_t *low) {
  __m256i x = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8); /* packs takes 128-bit lanes in turn */
  __m256i upper = _mm256_srai_epi16(_mm256_add_epi16(x, _mm256_set1_epi16(128)), 8);
  __m256i lower = _mm256_and_si256(x, _mm256_set1_epi16(255)); /* q modulo 256 is q - 256 * high */
  __m256i pairs = _mm256_madd_epi16(x, _mm256_set1_epi16(1));
  _mm256_storeu_si256((__m256i *)q, x);
  if (high)
    _mm_storeu_si128((__m128i *)high, _mm_packs_epi16(_mm256_castsi256_si128(upper), _mm256_extracti128_si256(upper, 1)));
  _mm_storeu_si128((__m128i *)low, _mm_packus_epi16(_mm256_castsi256_si128(lower), _mm256_extracti128_si256(lower, 1)));
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
  __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}
#endif
