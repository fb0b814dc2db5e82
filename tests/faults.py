"""Deliberate faults: what the native backend's source could plausibly say wrong, one small change each.

A fault is planted in a copy of the source: in `line` (which must occur once in the file) the expression `good` becomes
`rt_fault == n ? bad : good`, so that one build holds all of them and a global picks one. The product knows nothing of it.
`isa` names the instruction set a fault is only visible on.
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Fault:
    """One change. `file` is relative to csrc."""

    name: str
    file: str
    line: str
    good: str
    bad: str
    isa: str = ""


FAULTS = [
    # norm and A16
    Fault("eps left out", "ops/norm.h", "rt_sum_squares(x, k, shift) / (float)k + eps", "eps", "0.0f"),
    Fault("mean over one too many", "ops/norm.h", "rt_sum_squares(x, k, shift) / (float)k + eps", "(float)k", "(float)(k + 1)"),
    Fault("norm weight off by one", "ops/norm.h", "v_mul(v_mul(v, inverse), v_load_n(norm + i, lanes, 0.0f))", "norm + i",
          "norm + (i > 0 ? i - 1 : i)"),
    Fault("A16 scale of 32640", "quant/act.h", "*a.scale = usable ? most / (float)MOST : broken", "(float)MOST", "32640.0f"),
    Fault("activations truncated, not rounded", "quant/act.h", "v_mul(v_load(a.x + b * 16), inverse)",
          "v_mul(v_load(a.x + b * 16), inverse)", "v_sub(v_mul(v_load(a.x + b * 16), inverse), v_set1(0.25f))"),
    Fault("low plane unsigned", "simd/planes.h", "_mm256_and_si256(x, _mm256_set1_epi16(255))", "255", "127", isa="avx2"),
    Fault("planes swapped", "simd/avx2.h", "_mm256_add_epi32(_mm256_madd_epi16(s->high[t][c], plane)",
          "s->high[t][c]", "s->low[t][c]", isa="avx2"),
    Fault("eps of a joining norm left out", "ops/norm.h", "rt_sum_squares(x, n, 0.0f) / (float)n + eps", "eps", "0.0f"),
    Fault("joining norm without its weight", "ops/norm.h",
          "v_fma(v, v_load_n(norm + i, lanes, 0.0f), v_load_n(y + i, lanes, 0.0f))", "v_load_n(norm + i, lanes, 0.0f)",
          "v_set1(1.0f)"),
    # products
    Fault("last of a tail dropped", "ops/norm.h", "int lanes = k - i < 16 ? k - i : 16;", "k - i < 16 ? k - i : 16",
          "k - i >= 16 ? 16 : k - i > 1 ? k - i - 1 : 1"),
    Fault("offset left out", "ops/linear.h", "offset ? v_minus(s[t], offset * sum) : s[t]", "offset * sum", "0 * sum"),
    Fault("offset of the other block", "ops/linear.h", "int32_t sum = rt_sum_at(x, t, at + c * sub, sub);", "at + c * sub",
          "at + (SUBS - 1 - c) * sub"),
    Fault("half of a sub-block's sum", "ops/linear.h", "return sub == 16 ? sum[0] : sum[0] + sum[1]", "sum[0] + sum[1]",
          "2 * sum[0]"),
    Fault("minimum negative", "ops/linear.h", "#define RT_FOLD_LEAST(acc, least, sum) v_fma(least, v_set1((float)(sum)), acc)",
          "(float)(sum)", "-(float)(sum)"),
    Fault("scale of the first block", "ops/linear.h", "v16f scale = rt_scale_##name(tile, span * SUBS + c), least",
          "span * SUBS + c", "span * SUBS"),
    Fault("sums left in 16 bits too long", "simd/avx2.h", "32767 / (2 * 128 * ((1 << bits) - 1))", "128", "64", isa="avx2"),
    Fault("Q5_K fifth bits of the next step", "quant/q5_k.h", "v_field(v_bytes(lines + 512 + j % 2 * 64), j / 2 - 4, 16)",
          "j % 2 * 64", "(j + 1) % 2 * 64"),
    Fault("Q6_K scale unsigned", "quant/q6_k.h", "v_of_s8(tile + 32 + s * 16)", "v_of_s8(tile + 32 + s * 16)",
          "v_of_u8(tile + 32 + s * 16)"),
    Fault("Q4_K minimum of the first span", "quant/q4_k.h", "v_of_u8(tile + 192 + s * 16)", "s * 16", "s % 2 * 16"),
    Fault("Q2_K minimum of its scale", "quant/q2_k.h", "v_mul(v_load_f16((const uint16_t *)tile + 16), rt_fours_Q2_K(tile + 64 + "
          "s * 16, 4))", "rt_fours_Q2_K(tile + 64 + s * 16, 4)", "rt_fours_Q2_K(tile + 64 + s * 16, 0)"),
    Fault("Q3_K third bits of the first line", "quant/q3_k.h", "v_field(v_bytes(third + j % 2 * 64), j / 2 - 2, 4)", "j % 2 * 64",
          "0"),
    Fault("IQ4_XS values in a row", "quant/iq4_xs.h", "v_lookup(rt_iq4_codes, v_field(v_bytes(tile + 160", "rt_iq4_codes",
          "(const uint8_t *)\"\\0\\x10\\x20\\x30\\x40\\x50\\x60\\x70\\x80\\x90\\xa0\\xb0\\xc0\\xd0\\xe0\\xf0\""),
    Fault("MXFP4 scale as f16", "quant/mxfp4.h", "return v_load_bf16((const uint16_t *)tile + s * 16);",
          "v_load_bf16((const uint16_t *)tile + s * 16)", "v_load_f16((const uint16_t *)tile + s * 16)"),
    Fault("NVFP4 scale of 32", "quant/nvfp4.h", "return v_load_f16((const uint16_t *)tile + s * 16);", "s * 16", "s / 2 * 32"),
    Fault("E4M3 doubled", "simd/avx2.h", "_mm256_mul_ps(x.a, _mm256_set1_ps(256.0f))", "256.0f", "512.0f", isa="avx2"),
    Fault("E5M2 row of the next k", "quant/f8_e5m2.h", "v_load_e5m2(tile + i * 16)", "i * 16", "(i ^ 1) * 16"),
    Fault("bias dropped", "exec/step.c", "part->bias ? part->bias + first * RT_GROUP : NULL",
          "part->bias ? part->bias + first * RT_GROUP : NULL", "(const float *)NULL"),
    Fault("every token takes the prompt's path", "exec/batch.c", "b->roles[token] ? e->limits.generated_path", "b->roles[token]",
          "0"),
    Fault("products not brought back to their rows", "exec/step.c", "row_of(e, l->out, lines_of(e, l)->at[i]) + part->offset",
          "lines_of(e, l)->at[i]", "i"),
    Fault("every token rounded as the prompt's", "exec/step.c", "l->ways[line >= lines->prompts].path", "line >= lines->prompts",
          "0"),
    Fault("odd chain of bf16 left out", "ops/linear_bf16.h", "v_add(acc[t], v_add(even[t], odd[t]))", "odd[t]", "v_zero()"),
    Fault("pairs of even k alone", "ops/linear_pairs.h", "v_fma(w.even, x.even, v_fma(w.odd, x.odd, acc))", "w.odd", "w.even"),
    Fault("pairs of the last tiles alone", "ops/linear_pairs.h", "fresh ? v_zero() : v_load(y + t * ldy + g * 16)", "fresh", "1"),
    Fault("scale of the first 32 for all", "ops/linear.h", "((const float *)(x->act + t * x->stride + x->scales))[k / 32]",
          "k / 32", "0"),
    Fault("scaled sum of 32 for 16", "ops/linear.h", "if (sub == 32) return ((const float *)(x->act", "sub == 32", "1"),
    Fault("scaled sum of the first half", "quant/act.h", "a.totals[b] = a.scales[b] * (float)(first + second)", "first + second",
          "first"),
    Fault("offset without the second half", "ops/linear_a8.h", "offset * (sub == 32 ? sum[0] + sum[1] : sum[0])", "sum[0] + sum[1]",
          "sum[0]"),
    Fault("tokens are drawn from activations of 8 bits", "exec/plan.c", "path == RT_PATH_A8 && (flagged || all)", "flagged || all",
          "all"),
    Fault("sign of a large weight lost", "simd/avx2.h", "_mm256_sign_epi8(four, w[c])", "_mm256_sign_epi8(four, w[c])", "four",
          isa="avx2"),
    Fault("pairs of one plane left in 16 bits", "simd/avx2.h", "j > 0 && j % v_steps_in_s16(bits) == 0) {",
          "j % v_steps_in_s16(bits) == 0", "0", isa="avx2"),
    Fault("residual dropped", "ops/linear.h", "v_fma(v_set1(scale), v, v_load_n(y + i, lanes, 0.0f))",
          "v_load_n(y + i, lanes, 0.0f)", "v_zero()"),
    Fault("residual scale ignored", "ops/linear.h", "v_fma(v_set1(scale), v, v_load_n(y + i, lanes, 0.0f))", "v_set1(scale)",
          "v_set1(1.0f)"),
    Fault("gate taken for up", "exec/step.c", "e->k->gate[l->activation](y, y2, n, out)", "y2", "y"),
    Fault("silu of -x", "ops/gated.h", "v_add(v_set1(1.0f), v_exp(v_sub(v_zero(), x)))", "v_sub(v_zero(), x)", "x"),
    Fault("embedding row of its group's first", "exec/step.c", "m->k, row % RT_GROUP, scale, out", "row % RT_GROUP", "0"),
    Fault("embedding of the position before", "exec/step.c", "matrix_row(e, f->positions, token->position, 1.0f", "token->position",
          "(token->position > 0 ? token->position - 1 : 0)"),
    Fault("norm's bias forgotten", "ops/norm.h", "if (layer && norm_bias != NULL)", "norm_bias != NULL", "0"),
    Fault("activation before its bias", "exec/step.c", "if (bias) e->k->add", "bias", "0"),
    Fault("activation of another name", "exec/step.c", "e->k->gate[l->activation](y, NULL, n, out)", "l->activation",
          "(l->activation + 1) % 3"),
    Fault("rows not followed", "exec/step.c", "l->flagged ? e->step.batch->rows[row] : row", "e->step.batch->rows[row]", "row"),
    # rotation and pages
    Fault("rotation the wrong way", "ops/rope_kv.h", "x[i * step + apart] = b * cos[i] + a * sin[i]", "a * sin[i]",
          "-a * sin[i]"),
    Fault("pairs of the other kind", "ops/rope_kv.h", "int step = interleaved ? 2 : 1", "interleaved ? 2 : 1", "1"),
    Fault("position off by one", "exec/step.c", "double angle = position * r->inv_freq[i]", "position", "position + 1"),
    Fault("f16 not clamped", "ops/rope_kv.h", "v_min(v_set1(65504.0f), v_max(v_set1(-65504.0f), x))",
          "v_min(v_set1(65504.0f), v_max(v_set1(-65504.0f), x))", "x"),
    Fault("stored to the next slot", "exec/step.c", "c->head_dim, run->slot + i, head + c->k_bytes)", "run->slot + i",
          "(run->slot + i + 1) % RT_PAGE"),
    Fault("stored position off by one", "exec/batch.c",
          "memcpy(c->positions + (size_t)blocks[r->block].page * RT_PAGE + r->slot, "
          "b->positions + r->token", "b->positions + r->token", "b->positions + (r->token > 0 ? r->token - 1 : 0)"),
    Fault("slots past the end seen", "exec/batch.c", "tail[j] = j < left ? stored[j] : -1", "j < left", "1"),
    Fault("page of the sequence's first block", "ops/attention.h", "sight->k[i] = args->k + page * args->k_stride",
          "page", "(size_t)args->blocks[0].page"),
    Fault("page of a tile's first block", "ops/attention.h", "rt_widen_v[args->v_format](args->v + page * args->v_stride",
          "page", "(size_t)args->blocks[0].page"),
    Fault("q8_0 scale of the neighbour", "ops/rope_kv.h", "v_set1((scales + at / 32)[c / 2])", "at / 32", "at / 64 * 2"),
    Fault("copied page keeps old positions", "exec/plan.c", "memcpy(c->positions + (size_t)to * RT_PAGE", "(size_t)to",
          "(size_t)from"),
    # attention
    Fault("mask off by one", "ops/attention.h", "v_within(args->blocks[b].positions, low > 0 ? low : 0, query.position)",
          "query.position", "query.position + 1"),
    Fault("window off by one", "ops/attention.h", "args->window > 0 ? query.position - args->window + 1 : 0",
          "query.position - args->window + 1", "query.position - args->window"),
    Fault("a tile's rows see what its last does", "ops/attention.h", "rt_seen_slots(args, b, args->queries[t])", "args->queries[t]",
          "args->queries[args->tokens - 1]"),
    Fault("a tile's maximum moves over pages not yet mixed", "ops/attention.h",
          "rt_tile_mix_row(t, first + r, p, mixed[r], i, mine)", "mixed[r]", "i"),
    Fault("a maximum moves over pages not yet mixed", "ops/attention.h", "rt_mix_pages(args, sight, s[0], mixed, i, heads, out)",
          "mixed", "i"),
    Fault("a page in sight may be gone", "exec/batch.c", "(int64_t)block * RT_PAGE + RT_PAGE - 1 <= (int64_t)low - c->window",
          "(int64_t)low - c->window", "(int64_t)low - c->window + 1"),
    Fault("tree bits off by one", "ops/attention.h", "seen & (uint32_t)(query.tree >> at) : 0", "query.tree >> at",
          "query.tree >> at >> 1"),
    Fault("query heads of another group", "exec/step.c", ".q = row_of(e, q->f->qkv, tile->token) + (size_t)q->head * ",
          "(size_t)q->head", "(size_t)(q->c->kv_heads - 1 - q->head)"),
    Fault("maximum moves, sums do not", "ops/attention.h", "shrink = v_exp1(*max - most)", "v_exp1(*max - most)",
          "(*sum > 0.0f ? 1.0f : 0.0f)"),
    Fault("splits joined unweighted", "ops/attention.h", "weight = v_exp1(max[r] - top[r])",
          "v_exp1(max[r] - top[r])", "1.0f"),
    Fault("a bf16 tile's rows see what its first does", "ops/attention_bf16.h", "uint32_t seen = n->seen[b][row / args->share];",
          "row / args->share", "0"),
    Fault("V of the pair's other page", "ops/attention_bf16.h", "* RT_WIDE_PART, b % 2 * 16 + t,", "b % 2", "(1 - b % 2)"),
    Fault("every second V left out", "ops/attention_bf16.h", "v_load(n->page + (t + 1) * width + d)", "(t + 1)", "t"),
    Fault("query of the group's first head", "ops/attention_bf16.h", "(size_t)((first + r) % args->share) * (size_t)args->head_dim",
          "(first + r) % args->share", "0"),
    Fault("small weights none", "ops/attention_bf16.h", "v_less(x, v_set1(-28.0f))", "-28.0f", "-2.0f"),
    Fault("a tile takes its first token's path", "exec/batch.c", "rt_path_of(e, b, t + n) == rt_path_of(e, b, t)", "t + n", "t"),
    Fault("soft cap left out", "ops/attention.h", "if (softcap > 0.0f) x = v_mul(v_set1(softcap)", "softcap > 0.0f", "0"),
    # latents and experts
    Fault("latent page of a tile's first block", "ops/attention.h",
          "rt_widen_v[args->k_format](args->k + page * args->k_stride, args->k + next", "page",
          "(size_t)args->blocks[0].page"),
    Fault("latent score without its last number", "ops/attention.h", "acc[r] = v_fma(v_load_n(q[r] + d, head_dim - d, 0.0f)",
          "head_dim - d", "head_dim - d - 1"),
    Fault("latent stored unnormed", "exec/step.c", "e->k->rope_head(row, c->value_dim, values_of(e, f->norm), f->eps",
          "values_of(e, f->norm)", "NULL"),
    Fault("shared key of the latent's numbers", "exec/step.c", "turn(e, f->rope, row + c->value_dim, turned, t)", "c->value_dim",
          "0"),
    Fault("heads of the first unit again", "exec/step.c",
          "float *out = row_of(e, q->f->out, q->tile->token + i / q->share) + (size_t)q->head", "(size_t)q->head",
          "(size_t)(q->values == q->floats ? q->head : 0)"),
    Fault("an expert's neighbour", "exec/each.c", "from = b->matrix * l->groups", "b->matrix", "((b->matrix + 1) % l->of)"),
    Fault("sorted pairs not brought back", "exec/each.c", "int32_t pair = e->pairs.at[row + i]", "e->pairs.at[row + i]",
          "(row + i)"),
    Fault("an expert read anew for every portion", "exec/each.c", "rows = least(end - row, l->ways[way].rows);",
          "least(end - row, l->ways[way].rows)",
          "(gates = take_groups(m, from, last - first, s->group, s), least(end - row, l->ways[way].rows))"),
    Fault("an expert's first rows again", "exec/each.c", "const uint8_t *acts = e->acts + (size_t)row * rt_act_bytes(l->k)",
          "(size_t)row", "(size_t)b->first"),
    Fault("weights read anew for the other path", "exec/step.c", "multiply(e, m, groups, n, acts + (size_t)b->first", "groups",
          "(b > p->blocks ? take_groups(m, g, n, s->group, s) : groups)"),
    Fault("a pass over two groups counted as one", "exec/work.h", "*s->read += (int64_t)n * (int64_t)m->group_bytes", "(int64_t)n",
          "(int64_t)(n > 1 ? n - 1 : n)"),
    Fault("shared input rounded for its first part alone", "exec/each.c", "for (int32_t j = 1; j < l->parts; j++) memcpy",
          "l->parts", "(l->parts - 1)"),
    Fault("routed weights of the neighbour", "exec/step.c", "e->k->add_scaled(x, NULL, weights[j], width", "weights[j]",
          "weights[f->parts - 1 - j]"),
    Fault("routing bias in the weights", "exec/each.c", "if (taken[i]) out[j++] = (float)i, sum += scores[i]", "scores[i]",
          "choices[i]"),
    Fault("groups judged by one too few", "exec/each.c", "for (int32_t i = 0; i < f->group_best; i++)", "f->group_best",
          "(f->group_best > 1 ? f->group_best - 1 : 1)"),
    Fault("later of equal experts", "exec/each.c", "if (!taken[i] && (at < 0 || x[i] > x[at])) at = i", "x[i] > x[at]",
          "x[i] >= x[at]"),
    # recurrences
    Fault("kernel the wrong way round", "ops/conv.h", "rt_conv_input(a, t - a->taps + 1 + i, c + v * 16, lanes), acc)",
          "t - a->taps + 1 + i", "t - i"),
    Fault("convolution keeps too early inputs", "ops/conv.h", "rt_conv_input(a, a->tokens - a->taps + 1 + i, c, lanes), lanes)",
          "a->tokens - a->taps + 1 + i", "a->tokens - a->taps + (i > 0 ? i : 1)"),
    Fault("no D", "ops/scan.h", "v16f y = v_fma(v_set1(a->d), ", "a->d", "0.0f"),
    Fault("heads in turn over groups", "exec/recur.c", "f->heads, group = head / (f->heads / f->groups);",
          "head / (f->heads / f->groups)", "head % f->groups"),
    Fault("heads of a block in turn over groups", "exec/recur.c", "group = head / (f->heads / f->groups), all",
          "head / (f->heads / f->groups)", "head % f->groups"),
    Fault("a block without its own token", "ops/scan_block.h", "for (int j = 0; j <= i + t; j++) y = v_fma", "j <= i + t",
          "j < i + t"),
    Fault("a token decays its own input", "ops/scan_block.h", "to_last[i] = 1.0f;", "1.0f", "a->decay[i]"),
    Fault("blocks begin with the chunk", "exec/recur.c", "return i == 0 && a->before % RT_PAGE ? -a->kept : i;",
          "-a->kept", "0"),
    Fault("blocks go on past their page", "exec/recur.c", "while (i < a->count && (a->before + i) % RT_PAGE && is_prompt",
          "(a->before + i) % RT_PAGE", "(a->before + i) % RT_PAGE != 1"),
    Fault("a generated token before the block's end", "exec/recur.c", "if (i == 0 && a.kept) run_block", "a.kept", "0"),
    Fault("kept rows in the place of others", "exec/recur.c", "float *row = a.rows + (size_t)(i - first) * a.row;", "(i - first)",
          "(i - (first < 0 ? 0 : first))"),
    Fault("time step without its limits", "exec/recur.c", "step > f->dt_max ? f->dt_max : step", "step > f->dt_max", "0"),
    Fault("a new sequence goes on from an old state", "exec/recur.c", "if (a.count && a.before == 0) memset(a.state",
          "a.before == 0", "0"),
    Fault("gate left out of the mean", "ops/gated_norm.h", "    acc = v_fma(v, v, acc);", "v_fma(v, v, acc)",
          "v_fma(v_load_n(x + i, lanes, 0.0f), v_load_n(x + i, lanes, 0.0f), acc)"),
    Fault("a state goes on from anywhere", "exec/batch.c", "else if (before != 0 && *seen != before)", "*seen != before", "0"),
    Fault("a snapshot past the length", "exec/plan.c", "if (here > most && here <= length)", "here <= length",
          "here <= length + 1"),
    # sampling
    Fault("prompt tokens counted as generated", "exec/history.c", "generated ? -1 - tokens[i] : tokens[i]", "generated", "1"),
    Fault("repetition once an occurrence", "exec/sample.c", "times[t] = -1;", "-1", "times[t]"),
    Fault("top-p one token short", "exec/sample.c", "if ((sum += r->w[r->ids[i]]) >= wanted) return i + 1", "i + 1",
          "(i > 0 ? i : 1)"),
    Fault("random number without the position", "exec/sample.c", "(uint32_t)p->candidate, (uint32_t)p->position, draw, 0",
          "(uint32_t)p->position", "0"),
    Fault("random number of half the seed", "exec/sample.c", "(uint32_t)p->seed, (uint32_t)(p->seed >> 32)",
          "(uint32_t)(p->seed >> 32)", "0"),
    Fault("later of equals first", "exec/sample.c", "return a < b;", "a < b", "a > b"),
    Fault("typical by surprise alone", "exec/sample.c", "fabs(exponent(r, r->ids[i]) - log_sum + entropy)", "entropy", "0.0"),
]


def plant(csrc: Path) -> None:
    """Every fault into a copy of the source. An excerpt that is not there exactly once is an error of this list."""
    edits: dict[str, list[tuple[int, int, str]]] = {}
    for n, fault in enumerate(FAULTS, 1):
        text = (csrc / fault.file).read_text()
        assert text.count(fault.line) == 1 and fault.line.count(fault.good) == 1, \
            f"fault '{fault.name}': {fault.file} must hold {fault.line!r}, and that {fault.good!r}, exactly once"
        start = text.index(fault.line) + fault.line.index(fault.good)
        edits.setdefault(fault.file, []).append(
            (start, start + len(fault.good), f"(rt_fault == {n} ? ({fault.bad}) : ({fault.good}))"))
    for file, places in edits.items():
        text = (csrc / file).read_text()
        for start, end, planted in sorted(places, reverse=True):
            text = text[:start] + planted + text[end:]
        (csrc / file).write_text(text)
