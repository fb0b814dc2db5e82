"""One short function per op of a plan, in plain torch: the arithmetic the native backend is held to.

x is [tokens][width] of a slot, W is [n_out][k] dequantized. Every function reads and writes only what `Step` offers.
`sample` is the twin of csrc/exec/sample.c, in numpy: the same rules, each by the book (sort everything, f64).
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import plan as p
from ..types import MAX_TOP_LOGPROBS, SAMPLED, Batch

A16_MAX = 32639  # 127 * 256 + 127: the largest integer two int8 planes hold
A8_MAX, A8_BLOCK = 127, 32   # likewise, and k under one scale
F16_MAX = 65504.0
NOT_FINITE, NONE_LEFT = 1, 2  # SAMPLED flags


@dataclass(frozen=True, slots=True)
class Matrix:
    """A weight as the ops see it: values [rows][k] or [rows]; `integer` formats read activations rounded to A16.

    coarse: the values rounded to bf16, where a path wants them."""

    values: Tensor
    integer: bool = False
    coarse: Tensor | None = None

    def part(self, index: int, of: int) -> Matrix:
        """One of the `of` matrices that lie one behind the other."""
        n = len(self.values) // of
        rows = slice(index * n, (index + 1) * n)
        return Matrix(self.values[rows], self.integer, None if self.coarse is None else self.coarse[rows])


@dataclass(slots=True)
class Cache:
    """One group's pages: k, v [layers][pages * PAGE_TOKENS][kv_heads][head_dim]; positions [layers][slots], -1 = empty."""

    k: Tensor
    v: Tensor
    positions: Tensor


@dataclass(slots=True)
class States:
    """One state group's slots: values f32 [layers][slots][width]; seen [layers][slots], tokens each has taken in."""

    values: Tensor
    seen: np.ndarray


@dataclass(slots=True)
class Step:
    """What ops may touch while one batch runs."""

    plan: p.Plan
    batch: Batch
    weights: dict[str, Matrix]
    slots: dict[str, Tensor]          # f32 [tokens or rows][width], this batch's part
    caches: dict[str, Cache]
    histories: list[list[int]]        # a generated token t stands as -1 - t
    sampled: np.ndarray               # SAMPLED [rows]
    act_quant: str = "none"
    dtype: torch.dtype = torch.float32
    paths: tuple[str, str] = ("a16", "a16")   # of prompt and generated tokens
    states: dict[str, States] = field(default_factory=dict)

    def coarse(self) -> np.ndarray:
        """Which tokens are on the BF16 path, bool [tokens]."""
        return np.array([path == "bf16" and self.act_quant == "exact" for path in self.paths])[self.batch.roles]

    def x(self, name: str) -> Tensor:
        """A slot's values in the computing type."""
        return self.slots[name].to(self.dtype)

    def vector(self, name: str | None) -> Tensor | None:
        """A vector weight, None for none."""
        return None if name is None else self.weights[name].values

    def state(self, op: p.Conv | p.Scan, sequence: int, shape: tuple[int, ...]) -> tuple[slice, Tensor, Tensor]:
        """(the sequence's tokens here, where its state is kept, the state they go on from: zeros before the first token)."""
        new = slice(int(self.batch.starts[sequence]), int(self.batch.starts[sequence + 1]))
        kept = self.states[op.group].values[op.layer, int(self.batch.tables[self.plan.group(op.group)][sequence, 0])].view(shape)
        old = self.batch.kv_lens[sequence] > new.stop - new.start
        return new, kept, kept.to(self.dtype) if old else torch.zeros_like(kept, dtype=self.dtype)

    def tokens_at(self, group: int, sequence: int, first: int, last: int) -> Tensor:
        """Cache slots of a sequence's stored tokens [first, last); below zero where a page behind the window was given back."""
        logical = np.arange(first, last)
        pages = self.batch.tables[group][sequence][logical // p.PAGE_TOKENS].astype(np.int64)
        slots = pages * p.PAGE_TOKENS + logical % p.PAGE_TOKENS
        return torch.from_numpy(slots).to(next(iter(self.slots.values())).device)


# ---- arithmetic shared by ops ----

def a16(x: Tensor) -> Tensor:
    """x rounded as the native backend does: q = round(x * 32639 / max|x|) with one scale per token; returns q * scale.

    A token below 2^-100 everywhere is zero.
    """
    x32 = x.to(torch.float32)
    largest = x32.abs().amax(-1, keepdim=True)
    inverse = torch.full_like(largest, A16_MAX) / largest     # a scalar over a tensor would round the reciprocal too
    q = torch.where(largest >= 2.0**-100, torch.round(x32 * inverse), torch.zeros_like(x32))
    return q.to(x.dtype) * (largest / A16_MAX).to(x.dtype)


def a8(x: Tensor) -> Tensor:
    """x rounded likewise to q = round(x * 127 / max|x|), every 32 under a scale of their own."""
    k = x.shape[-1]
    blocks = torch.nn.functional.pad(x.to(torch.float32), (0, -k % A8_BLOCK)).unflatten(-1, (-1, A8_BLOCK))
    largest = blocks.abs().amax(-1, keepdim=True)
    usable = largest >= 2.0**-100
    inverse = torch.full_like(largest, A8_MAX) / torch.where(usable, largest, torch.ones_like(largest))
    q = torch.where(usable, torch.round(blocks * inverse), torch.zeros_like(blocks))
    return (q.to(x.dtype) * (largest / A8_MAX).to(x.dtype)).flatten(-2)[..., :k]


def bf16(x: Tensor) -> Tensor:
    """x rounded to bf16, in x's type."""
    return x.to(torch.float32).to(torch.bfloat16).to(x.dtype)


def way(path: str, integer: bool, flagged: bool = False) -> str:
    """What a path is to weights of an integer format, or of a float one; flagged rows, from which tokens are drawn, never meet
    activations of 8 bits."""
    if path == "a8" and (flagged or not integer):
        path = "a16_bf16"
    return "a16" if path == "a16_bf16" and integer else path


def rounds_weights(path: str, integer: bool, flagged: bool = False) -> bool:
    """Whether it rounds them to bf16, and what they multiply."""
    return way(path, integer, flagged) in ("a16_bf16", "bf16")


def product(step: Step, x: Tensor, name: str, bias: str | None = None, rows: np.ndarray | None = None) -> Tensor:
    """W x + bias, x [tokens][k] -> [tokens][rows]; x is of the tokens `rows`, None: of all. Each rounds as its path says."""
    roles = step.batch.roles if rows is None else step.batch.roles[rows]
    y = multiplied(step, x, step.weights[name], roles, rows is not None)
    return y if bias is None else y + step.weights[bias].values


def multiplied(step: Step, x: Tensor, w: Matrix, roles: np.ndarray, flagged: bool = False) -> Tensor:
    """W x of rows of these roles."""
    y = x.new_empty(len(x), len(w.values))
    for role, path in enumerate(step.paths):
        mine = torch.from_numpy(roles == role).to(x.device)
        if w.coarse is not None and rounds_weights(path, w.integer, flagged):
            y[mine] = bf16(x[mine]) @ w.coarse.T
            continue
        integers = a8 if way(path, w.integer, flagged) == "a8" else a16
        y[mine] = (integers(x[mine]) if w.integer and step.act_quant == "exact" else x[mine]) @ w.values.T
    return y


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight, the mean in f64. x [...][n], weight [n] or None (left out)."""
    scale = torch.rsqrt(x.to(torch.float64).square().mean(-1, keepdim=True) + eps).to(x.dtype)
    return x * scale if weight is None else x * scale * weight


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias."""
    wide = x.to(torch.float64)
    centred = wide - wide.mean(-1, keepdim=True)
    y = (centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight
    return y if bias is None else y + bias


def normed(step: Step, op: p.NormLinear | p.Logits, x: Tensor) -> Tensor:
    """x as the op's norm leaves it."""
    norm = step.weights[op.norm].values
    return rms_norm(x, norm, op.eps) if op.norm_kind == p.NormKind.RMS else layer_norm(x, norm, step.vector(op.norm_bias), op.eps)


def activation(kind: int, x: Tensor) -> Tensor:
    """plan.Activation applied to x."""
    if kind == p.Activation.NONE:
        return x
    if kind == p.Activation.SILU:
        return x * torch.sigmoid(x)
    return torch.nn.functional.gelu(x, approximate="tanh" if kind == p.Activation.GELU_TANH else "none")


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """cap * tanh(x / cap); 0 leaves x."""
    return cap * torch.tanh(x / cap) if cap > 0 else x


def rope_table(rope: p.Rope, positions: np.ndarray) -> tuple[Tensor, Tensor]:
    """cos and sin [tokens][pairs]: angles in f64, rounded once to f32."""
    angles = positions.astype(np.float64)[:, None] * np.asarray(rope.inv_freq, np.float64)
    cos, sin = (torch.from_numpy((f(angles) * rope.mscale).astype(np.float32)) for f in (np.cos, np.sin))
    return cos, sin


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """x [tokens][heads][head_dim] with its first 2 * pairs dimensions turned; cos, sin [tokens][pairs]."""
    pairs = cos.shape[-1]
    cos, sin = cos[:, None].to(x), sin[:, None].to(x)
    out = x.clone()
    one, two = (slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)) if interleaved else (slice(pairs), slice(pairs, 2 * pairs))
    a, b = x[..., one], x[..., two]
    out[..., one], out[..., two] = a * cos - b * sin, b * cos + a * sin
    return out


# ---- the ops ----

def embed(step: Step, op: p.Embed) -> None:
    """out = weight[token] * scale, or a given row; positions[position] is added to it."""
    tokens = torch.from_numpy(step.batch.tokens.astype(np.int64)).to(step.slots[op.out].device)
    out = step.weights[op.weight].values[tokens.clamp(min=0)] * op.scale
    if step.batch.embeddings is not None:
        rows = torch.from_numpy(step.batch.embeddings).to(out)
        out = torch.where(tokens[:, None] < 0, rows[(-1 - tokens).clamp(min=0)], out)
    if op.positions is not None:
        out = out + step.weights[op.positions].values[torch.from_numpy(step.batch.positions.astype(np.int64)).to(out.device)]
    step.slots[op.out][:] = out


def norm_linear(step: Step, op: p.NormLinear) -> None:
    """out = activation(concat_j(W_j norm(x) + b_j))."""
    n = normed(step, op, step.x(op.x))
    parts = [product(step, n, w, b) for w, b in ((op.w0, op.b0), (op.w1, op.b1), (op.w2, op.b2)) if w is not None]
    step.slots[op.out][:] = activation(op.activation, torch.cat(parts, -1))


def linear(step: Step, op: p.Linear) -> None:
    """out = W x + bias."""
    step.slots[op.out][:] = product(step, step.x(op.x), op.weight, op.bias)


def linear_add(step: Step, op: p.LinearAdd) -> None:
    """out += scale * (W x + bias)."""
    step.slots[op.out][:] = step.x(op.out) + op.scale * product(step, step.x(op.x), op.weight, op.bias)


def norm_add(step: Step, op: p.NormAdd) -> None:
    """out += rmsnorm(x)."""
    step.slots[op.out][:] = step.x(op.out) + rms_norm(step.x(op.x), step.weights[op.norm].values, op.eps)


def gated(step: Step, op: p.Gated) -> None:
    """out = activation(gate n) * (up n)."""
    x = step.x(op.x)
    n = x if op.norm is None else rms_norm(x, step.weights[op.norm].values, op.eps)
    step.slots[op.out][:] = activation(op.activation, product(step, n, op.gate)) * product(step, n, op.up)


def rope_kv(step: Step, op: p.RopeKV) -> None:
    """Normalize and rotate q and k in place, store k and v."""
    group, g = step.plan.group(op.group), step.plan.groups[step.plan.group(op.group)]
    qkv = step.x(op.qkv).unflatten(-1, (-1, g.head_dim))
    q, k, v = qkv.split((op.heads, g.kv_heads, g.kv_heads), 1)
    if op.q_norm is not None:
        q = rms_norm(q, step.weights[op.q_norm].values, op.eps)
    if op.k_norm is not None:
        k = rms_norm(k, step.weights[op.k_norm].values, op.eps)
    if op.rope is not None:
        rope = step.plan.ropes[op.rope]
        cos, sin = rope_table(rope, step.batch.positions)
        q, k = rotate(q, cos, sin, rope.interleaved), rotate(k, cos, sin, rope.interleaved)
    step.slots[op.qkv][:] = torch.cat((q, k, v), 1).flatten(1)
    cache, starts = step.caches[op.group], step.batch.starts
    for s, total in enumerate(step.batch.kv_lens):
        new = slice(starts[s], starts[s + 1])
        at = step.tokens_at(group, s, total - (new.stop - new.start), total)
        cache.k[op.layer, at], cache.v[op.layer, at] = stored(k[new], g.k_format), stored(v[new], g.v_format)
        cache.positions[op.layer, at] = torch.from_numpy(step.batch.positions[new]).to(at.device, torch.int32)


def latent_kv(step: Step, op: p.LatentKV) -> None:
    """Norm the latent, rotate the shared key and the queries' last part, store rows."""
    group, g = step.plan.group(op.group), step.plan.groups[step.plan.group(op.group)]
    turned, rope = g.head_dim - g.width, step.plan.ropes[op.rope]
    cos, sin = rope_table(rope, step.batch.positions)
    kv, q = step.x(op.kv), step.x(op.q).unflatten(-1, (op.heads, -1))
    rows = torch.cat((rms_norm(kv[:, : g.width], step.weights[op.norm].values, op.eps),
                      rotate(kv[:, None, g.width :], cos, sin, rope.interleaved)[:, 0]), -1)
    out = step.slots[op.out].unflatten(-1, (op.heads, -1))
    out[..., g.width :] = rotate(q[..., q.shape[-1] - turned :], cos, sin, rope.interleaved)
    cache, starts = step.caches[op.group], step.batch.starts
    for s, total in enumerate(step.batch.kv_lens):
        new = slice(starts[s], starts[s + 1])
        at = step.tokens_at(group, s, total - (new.stop - new.start), total)
        cache.k[op.layer, at, 0] = stored(rows[new], g.k_format)
        cache.positions[op.layer, at] = torch.from_numpy(step.batch.positions[new]).to(at.device, torch.int32)


def stored(x: Tensor, format: str) -> Tensor:
    """x [...][head_dim] as the cache keeps it: rounded once through f32, f16 clamped to its finite range, NaN kept.

    q8_0 (f32 values): blocks of 32 along head_dim, scale = max|x| / 127 as f16, at most its largest, q = round(x / scale)
    within -127..127; a NaN makes its block NaN."""
    x = x.to(torch.float32)
    if format == "f16":
        return x.clamp(-F16_MAX, F16_MAX).to(torch.float16)
    if format != "q8_0":
        return x.to({"f32": torch.float32, "bf16": torch.bfloat16}[format])
    blocks = x.clamp(-3e38, 3e38).unflatten(-1, (-1, 32))
    scale = (blocks.abs().amax(-1, keepdim=True) / 127).clamp(max=F16_MAX).to(torch.float16).to(torch.float32)
    q = (blocks / torch.where(scale > 0, scale, torch.ones_like(scale))).clamp(-127, 127).round()
    return (q * scale).flatten(-2)


def attention(step: Step, op: p.Attention) -> None:
    """out[h] = softmax(softcap(scale * q_h . K) + mask) V, head h reading KV head h // share; q, K and V rounded as the token's
    path says, but for latent rows."""
    group, g = step.plan.group(op.group), step.plan.groups[step.plan.group(op.group)]
    queries = step.x(op.qkv).unflatten(-1, (-1, g.head_dim))[:, : op.heads]
    cache, sinks, starts = step.caches[op.group], step.vector(op.sinks), step.batch.starts
    share, coarse = op.heads // g.kv_heads, step.coarse() & (g.kind != "latent")
    for s, total in enumerate(step.batch.kv_lens):
        new, at = slice(starts[s], starts[s + 1]), step.tokens_at(group, s, 0, total)
        k = cache.k[op.layer, at].to(step.dtype).repeat_interleave(share, 1)
        v = cache.v[op.layer, at].to(step.dtype).repeat_interleave(share, 1)
        held = cache.positions[op.layer, at][None]
        here = torch.from_numpy(step.batch.positions[new]).to(at.device)[:, None]
        seen = (at >= 0) & (held >= 0) & (held <= here)
        if op.window > 0:
            seen &= held > here - op.window
        if step.batch.trees is not None:
            trees = step.batch.trees[new, None]
            bits = trees >> np.arange(new.stop - new.start, dtype=np.uint64) % np.uint64(64) & np.uint64(1)
            seen[:, total - bits.shape[1]:] &= torch.from_numpy((bits != 0) | (trees == 0)).to(at.device)
        for rounded in (False, True):
            mine = np.flatnonzero(coarse[new] == rounded)
            if not len(mine):
                continue
            q, keys, values = (bf16(x) if rounded else x for x in (queries[new][mine], k, v))
            scores = soft_cap(op.scale * torch.einsum("thd,khd->htk", q, keys), op.softcap)
            scores = scores.masked_fill(~seen[mine], -math.inf)
            if sinks is not None:
                scores = torch.cat((scores, sinks.to(scores)[:, None, None].expand(-1, scores.shape[1], 1)), -1)
            weights = torch.softmax(scores, -1)[..., : k.shape[0]]
            step.slots[op.out][starts[s] + mine] = torch.einsum("htk,khd->thd", weights, values).flatten(1).to(torch.float32)


def conv(step: Step, op: p.Conv) -> None:
    """out[c] = activation(bias[c] + sum_i weight[c][i] * the channel's last inputs)."""
    channels = step.slots[op.out].shape[1]
    x = step.x(op.x)[:, op.first : op.first + channels]
    weight, bias = step.weights[op.weight].values.view(channels, op.taps), step.vector(op.bias)
    for s in range(len(step.batch.kv_lens)):
        new, kept, state = step.state(op, s, (op.taps - 1, channels))
        inputs = torch.cat((state, x[new]))
        y = torch.zeros_like(x[new]) if bias is None else bias.expand_as(x[new])
        for i in range(op.taps):
            y = y + inputs[i : i + new.stop - new.start] * weight[:, i]
        step.slots[op.out][new] = activation(op.activation, y).to(torch.float32)
        kept[:] = inputs[1 - op.taps :]


def scan(step: Step, op: p.Scan) -> None:
    """s <- exp(dt a) s + (dt x) B^T, out = s C + d x: one token after another."""
    width = step.slots[op.out].shape[1]
    x, b, c = step.x(op.x).split((width, op.groups * op.numbers, op.groups * op.numbers), -1)
    x = x.unflatten(-1, (op.heads, -1))
    b, c = (v.unflatten(-1, (op.groups, -1)).repeat_interleave(op.heads // op.groups, 1) for v in (b, c))
    dt = step.x(op.dt)[:, op.first : op.first + op.heads]
    if (bias := step.vector(op.dt_bias)) is not None:
        dt = dt + bias
    dt = torch.nn.functional.softplus(dt).clamp(op.dt_min, op.dt_max)
    decay, d = torch.exp(dt * step.weights[op.a].values), step.vector(op.d)
    for s in range(len(step.batch.kv_lens)):
        new, kept, state = step.state(op, s, (op.heads, op.numbers, width // op.heads))
        for t in range(new.start, new.stop):
            state = decay[t, :, None, None] * state + b[t, :, :, None] * (dt[t, :, None] * x[t])[:, None]
            y = (c[t, :, :, None] * state).sum(1)
            step.slots[op.out][t] = (y if d is None else y + d[:, None] * x[t]).flatten().to(torch.float32)
        kept[:] = state


def gated_norm(step: Step, op: p.GatedNorm) -> None:
    """out = rmsnorm(x * silu(gate)) * norm by groups, or rmsnorm(x) * norm * silu(gate)."""
    x, norm = step.x(op.x), step.weights[op.norm].values
    gate = activation(p.Activation.SILU, step.x(op.gate)[:, op.first : op.first + x.shape[1]])
    v = (x if op.gate_last else x * gate).unflatten(-1, (op.groups, -1))
    n = rms_norm(v, None, op.eps).flatten(1) * norm
    step.slots[op.out][:] = n * gate if op.gate_last else n


def each_linear(step: Step, op: p.EachLinear) -> None:
    """out_j = W_e x_j."""
    w = step.weights[op.weight]
    x, out = step.x(op.x).unflatten(-1, (op.parts, -1)), step.slots[op.out].unflatten(-1, (op.parts, -1))
    rows, k = len(w.values) // op.of, w.values.shape[1]
    for expert, token, part in chosen(step, op):
        out[token, part, :rows] = multiplied(step, x[token, part, :k], w.part(expert, op.of), step.batch.roles[token]).to(out)


def experts(step: Step, op: p.Experts) -> None:
    """out_j = activation(gate_e n) * (up_e n)."""
    x, gate, up = step.x(op.x), step.weights[op.gate], step.weights[op.up]
    n = x if op.norm is None else rms_norm(x, step.weights[op.norm].values, op.eps)
    out = step.slots[op.out].unflatten(-1, (op.parts, -1))
    for expert, token, part in chosen(step, op):
        a, b = (multiplied(step, n[token], w.part(expert, op.of), step.batch.roles[token]) for w in (gate, up))
        out[token, part] = (activation(op.activation, a) * b).to(out)


def chosen(step: Step, op: p.EachLinear | p.Experts) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Each matrix some token meets, with those tokens and the parts as which they do. No matrix's name is the first's."""
    tokens = len(step.batch.tokens)
    if op.routes is None:
        which = np.broadcast_to(np.arange(op.parts), (tokens, op.parts))
    else:
        said = step.slots[op.routes][:, : op.parts].cpu().numpy()
        which = np.where((said >= 0) & (said < op.of), said, 0).astype(np.int64)
    for expert in np.unique(which).tolist():
        token, part = np.nonzero(which == expert)
        yield expert, token, part


def route(step: Step, op: p.Route) -> None:
    """Scores, groups, the best of what stays."""
    wide = step.slots[op.logits].to(torch.float64)
    scores = torch.sigmoid(wide) if op.scoring == p.Scoring.SIGMOID else torch.softmax(wide, -1)
    bias = step.vector(op.bias)
    choices = scores if bias is None else scores + bias.to(scores)
    if op.groups > 1:
        grouped = choices.unflatten(-1, (op.groups, -1))
        best = grouped.sort(-1, descending=True).values[..., : op.group_best].sum(-1)
        away = torch.ones_like(best, dtype=torch.bool).scatter(-1, largest(best, op.groups_kept), False)
        choices = grouped.masked_fill(away[..., None], -math.inf).flatten(-2)
    ids = largest(choices, op.top_k).sort(-1).values
    weights = scores.gather(-1, ids)
    if op.normalize:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    step.slots[op.out][:] = torch.cat((ids.to(weights), op.scale * weights), -1)


def largest(x: Tensor, n: int) -> Tensor:
    """Indices of the n largest along the last axis, lower indices first among equals."""
    return x.sort(dim=-1, descending=True, stable=True).indices[..., :n]


def routed_add(step: Step, op: p.RoutedAdd) -> None:
    """out += sum_j weight_j x_j."""
    weights = step.x(op.routes)[:, op.parts :, None]
    step.slots[op.out][:] = step.x(op.out) + (step.x(op.x).unflatten(-1, (op.parts, -1)) * weights).sum(1)


def logits(step: Step, op: p.Logits) -> None:
    """out = softcap(scale * W norm(x)) of the flagged rows."""
    rows = torch.from_numpy(step.batch.rows.astype(np.int64)).to(step.slots[op.x].device)
    n = normed(step, op, step.x(op.x)[rows])
    step.slots[op.out][:] = soft_cap(op.scale * product(step, n, op.weight, rows=step.batch.rows), op.softcap)


def sample(step: Step, op: p.Sample) -> None:
    """One token per flagged row."""
    batch, rows = step.batch, step.slots[op.logits].cpu().numpy()
    for i, row in enumerate(rows):
        at = batch.sampling[i]
        bias = slice(at["bias_first"], at["bias_first"] + at["bias_count"])
        mask = None
        if at["allowed"] >= 0 and batch.masks is not None:
            mask = np.unpackbits(batch.masks[at["allowed"]], bitorder="little")[: row.size].astype(bool)
        history = step.histories[at["history"]] if at["history"] >= 0 else []
        step.sampled[i] = sample_row(row, at, np.asarray(history, np.int64), batch.bias_ids[bias], batch.bias_values[bias], mask)


OPS: dict[type, Callable[[Step, Any], None]] = {
    p.Embed: embed, p.NormLinear: norm_linear, p.Linear: linear, p.LinearAdd: linear_add, p.NormAdd: norm_add, p.Gated: gated,
    p.RopeKV: rope_kv, p.LatentKV: latent_kv, p.Attention: attention, p.EachLinear: each_linear, p.Route: route,
    p.Experts: experts, p.RoutedAdd: routed_add, p.Conv: conv, p.Scan: scan, p.GatedNorm: gated_norm, p.Logits: logits,
    p.Sample: sample}


# ---- sampling, rule by rule (csrc/exec/sample.h says each) ----

def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10: four random u32 that depend on counter and key alone (Salmon et al., SC 2011)."""
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        first, second = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = second >> 32 ^ b ^ k0, second & 0xFFFFFFFF, first >> 32 ^ d ^ k1, first & 0xFFFFFFFF
        k0, k1 = k0 + 0x9E3779B9 & 0xFFFFFFFF, k1 + 0xBB67AE85 & 0xFFFFFFFF
    return a, b, c, d


def uniform(seed: int, candidate: int, position: int, draw: int) -> float:
    """The draw's random number in [0, 1): 53 bits."""
    high, low, _, _ = philox((candidate, position, draw, 0), (seed & 0xFFFFFFFF, seed >> 32))
    return ((high << 32 | low) >> 11) * 2.0**-53


def adjusted(x: np.ndarray, at: np.void, history: np.ndarray, bias_ids: np.ndarray, bias_values: np.ndarray) -> np.ndarray:
    """Bias and penalties on f32 logits [vocab]; history holds token t as t, or -1 - t when it was generated."""
    x = x.astype(np.float32, copy=True)
    np.add.at(x, bias_ids, bias_values)
    tokens, generated = np.where(history < 0, -1 - history, history), history < 0
    if at["repetition"] != 1:
        seen = np.unique(tokens)
        x[seen] = np.where(x[seen] > 0, x[seen] / at["repetition"], x[seen] * at["repetition"])
    own, times = np.unique(tokens[generated], return_counts=True)
    x[own] = x[own] - at["frequency"] * times.astype(np.float32)
    x[own] = x[own] - at["presence"]
    return x


def kept(x: np.ndarray, allowed: np.ndarray, at: np.void) -> tuple[np.ndarray, np.ndarray]:
    """(ids ascending, weights f64) that survive temperature > 0, top-k, top-p, min-p and typical."""
    ids = np.flatnonzero(allowed)
    ids = ids[np.lexsort((ids, -x[ids].astype(np.float64)))]        # largest first, lower ids first among equals
    if at["top_k"] > 0:
        ids = ids[: at["top_k"]]
    e = (x[ids].astype(np.float64) - float(x[ids[0]])) * (1 / float(at["temperature"]))
    if at["top_p"] < 1:
        n = _fewest(np.exp(e), float(at["top_p"]))
        ids, e = ids[:n], e[:n]
    if at["min_p"] > 0:
        inside = np.exp(e) >= float(at["min_p"])
        ids, e = ids[inside], e[inside]
    if at["typical_p"] < 1:
        log = e - np.log(np.exp(e).sum())
        entropy = -np.sum(np.exp(log) * log)
        order = np.argsort(np.abs(log + entropy), kind="stable")
        order = order[: _fewest(np.exp(log[order]), float(at["typical_p"]))]
        ids, e = ids[order], e[order]
    by_id = np.argsort(ids)
    return ids[by_id], np.exp(e[by_id])


def _fewest(mass: np.ndarray, share: float) -> int:
    """Length of the shortest prefix that reaches share * (sum of mass)."""
    return int(np.searchsorted(np.cumsum(mass), share * mass.sum())) + 1


def sample_row(raw: np.ndarray, at: np.void, history: np.ndarray, bias_ids: np.ndarray, bias_values: np.ndarray,
               mask: np.ndarray | None = None) -> np.ndarray:
    """SAMPLED of one row: raw logits f32 [vocab], `at` its SAMPLING, mask bool [vocab] or None."""
    out = np.zeros((), SAMPLED)
    out["token"], out["top_ids"] = -1, -1
    with np.errstate(over="ignore", invalid="ignore"):
        x = adjusted(raw, at, history, bias_ids, bias_values)
    allowed = np.ones(x.size, bool) if mask is None else mask
    if not (np.isfinite(raw).all() and np.isfinite(x[allowed]).all()):
        out["flags"] = NOT_FINITE
        return out
    if not allowed.any():
        out["flags"] = NONE_LEFT
        return out
    if at["temperature"] == 0:
        out["token"] = int(np.argmax(np.where(allowed, x, -np.inf)))
    else:
        ids, w = kept(x, allowed, at)
        running = np.cumsum(w)
        u = uniform(int(at["seed"]), int(at["candidate"]), int(at["position"]), 0)
        out["token"] = ids[min(int(np.searchsorted(running, u * running[-1], side="right")), ids.size - 1)]
    if at["logprobs"] >= 0:
        _report(out, raw, int(at["logprobs"]))
    return out


def _report(out: np.ndarray, raw: np.ndarray, best: int) -> None:
    """Log-probability and rank of the token, and the `best` most likely, all from the raw logits."""
    wide, token = raw.astype(np.float64), int(out["token"])
    logprobs = wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())
    ahead = (raw > raw[token]) | ((raw == raw[token]) & (np.arange(raw.size) < token))
    out["logprob"], out["rank"] = logprobs[token], 1 + int(ahead.sum())
    top = np.argsort(-wide, kind="stable")[: min(best, MAX_TOP_LOGPROBS)]
    out["top_count"], out["top_ids"][: top.size], out["top_logprobs"][: top.size] = top.size, top, logprobs[top]
