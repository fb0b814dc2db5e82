/* SAMPLE: one token for one flagged row, by that row's rt_sampling.
 *
 * In this order, each step on what the one before left:
 *   bias         x[id] += value                                              logits as f32, from here on a copy
 *   repetition   x = x > 0 ? x / r : x * r                                   each token of the history, once
 *   frequency    x -= frequency * (times generated)
 *   presence     x -= presence                                               each token generated at least once
 *   mask         tokens not allowed are out
 *   temperature  w = exp((x - max x) / temperature); 0: the largest x wins, the lowest id on ties, and nothing below runs
 *   top-k        the k largest, lower ids first among equals
 *   top-p        the fewest largest whose sum of w reaches top_p * (sum of w)
 *   min-p        those with w >= min_p * (largest w)
 *   typical      p = w / sum, H = -sum p log p: the fewest with the least |log p + H| whose p reach typical_p
 *                (Meister et al. 2022); the larger w, then the lower id, first among equals
 *   draw         walking the kept tokens by id, the first whose running sum of w exceeds u * (sum of w)
 * u has 53 random bits that depend on (seed, candidate, position, draw) alone: Philox4x32-10 (Salmon et al. 2011).
 * The greedy path is one pass over the logits; only kept candidates are ever sorted; w and their sums are f64,
 * the sum over a whole vocabulary comes from `exp_sum` in blocks of RT_SAMPLE_BLOCK.
 * Log-probabilities, rank and the best tokens are those of the raw logits, before any step. */
#ifndef RT_SAMPLE_H
#define RT_SAMPLE_H
#include "rt.h"

#define RT_SAMPLE_BLOCK 1024
#define RT_SAMPLED_NOT_FINITE 1 /* flags: a logit was NaN or infinite, before or after bias and penalties; token is -1 */
#define RT_SAMPLED_NONE_LEFT 2  /* flags: the mask allows no token; token is -1 */

/* Scratch of one rt_sample_row call, in bytes; every row may use the same. */
size_t rt_sample_bytes(int vocab);

/* One row's parameters against their ranges: `row` names it in the message. */
rt_code rt_sample_check(const rt_sampling *p, int row, int n_bias, int n_masks, int histories, rt_status *st);

/* logits [vocab], untouched.  history [n_history]: the tokens penalties see; a generated token t stands as -1 - t.
 * bias_ids, bias_values: the whole batch's (p's slice is used), ids in [0, vocab).  masks [][(vocab + 7) / 8] or NULL.
 * scratch [rt_sample_bytes(vocab)], 64-byte aligned. */
void rt_sample_row(const struct rt_kernels *k, const float *restrict logits, int vocab, const rt_sampling *p,
                   const int32_t *restrict history, int n_history, const int32_t *bias_ids, const float *bias_values,
                   const uint8_t *masks, uint8_t *restrict scratch, rt_sampled *restrict out);

/* out[4] <- Philox4x32-10 of counter[4] under key[2]. */
void rt_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);
#endif
