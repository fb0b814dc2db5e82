"""How far one op of the native backend may lie from the reference, derived from the arithmetic of both.

Given the same slots and the same cache, the reference (sums in f64, A16 rounding as ours) and the native backend
(csrc/ops) differ only by the native's f32 roundings. u = 2^-24 is one rounding, |x| below is elementwise:

  norm        n = x * (1 / sqrt(mean(x^2) + eps)) * w. The sum of k squares runs in 16 lanes of k/16 fused steps and four
              folds, all terms >= 0: relative error (k/16 + 5) u; division, + eps and eps in f32 3 u more; the root halves
              it, root and reciprocal add 2 u, the two products 2 u:  e_n = ((k/16 + 8) / 2 + 4) u, and dn = e_n |n|.
              LAYER: the mean is off by o = (k/16 + 6) u mean|x|, which moves every value, o |w| / sqrt(var + eps), and the
              variance by o^2; the bias adds 2 u |b|. Errors below are absolute: dn, of one number each.
  A16         q = round(r), r = n * 32639 / max|n|, is equal on both sides unless r lies within its own error,
              dn / scale + |r| (max dn / max|n| + 4 u), of a half: then q differs by 1. Such elements are found and charged
              |w| * scale each. The scale itself carries max dn / max|n| + 2 u. With no norm before it the input is the same
              bits: q is equal.
  W x, Q*     S is an exact integer; each sub-block converts S (u) and adds one fused term each for its scale and its least
              value: (3 sub-blocks + 2) u of sum |w||q| scale, |w| = |scale (u - offset)| + |least|.
  A8          likewise, r = n * 127 / max|n| of each 32; their scale meets the weights' (u), and the sum of q for a least value
              (2 u). Not in the head, which is A16.
  bf16        on that path, and on a16_bf16 for weights of float formats, x and w are rounded to bf16, equal on both sides but
              for an x within dn + u |x| of the middle of two: it then moves by one step. Products are exact; chains of 16, their
              meeting and k / 32 sums: (18 + k/32) u; on a16_bf16 one chain, k u.
  W x, F*     four fused chains of k/4 steps and two folds: (k/4 + 3) u of sum |w||x|.
  + bias      u (|y| + |b|);  residual: u (|y| + |x|);  a slot of the reference is rounded once: u |y|.
  activation  e^-x within 1 ulp = 2 u, and three roundings; tanh, erf within 2 ulp: 8 u |a||b| in all, plus the errors of
              a (the slope of every activation is below 1.13) and of b, which is 1 where there is no gate.
  rotation    cos and sin within 1 ulp, two products and a sum: 5 u (|a| + |b|), on top of a norm's e_n.
  cache       a value is rounded once more: the f16 neighbour at most, 2^-10 |x| + 2^-24.
  convolution the bias and `taps` fused steps: (taps + 1) u (sum |w||x| + |bias|), then an activation as a gate. The state is equal.
  scan        dt and decay = e^(dt a) are f64 rounded once: u dt, and decay (1 + |dt a|) u. A state takes in three roundings a
              step on top of what it had, decay's error and dt's; out: `numbers` fused steps and D's. In blocks of up to 16:
              15 products of decays, 16 fused steps and two products more, 34 u for a state at a block's end; an output has
              those, the steps of c with b and 4 more.
  gated norm  a gate, a norm of it (whose error the gate's 8 u joins) and one or two products.
  route       both in f64, from the same logits: the ids are equal, a weight is rounded to f32: 2 u.
  routed sum  one fused step a part: (parts + 2) u (|out| + sum |weight||x|).
  attention   scores: head_dim fused steps and the scale, d_s = (head_dim + 2) u scale sum|q||k| (tanh has slope 1 and adds
              4 u cap). p = e^(s - max): s - max rounds, and max may lag by 8: u (|s| + |max| + 16), e^x 2 u; every page
              may shrink what came before (3 u each), partials join by e^(max - top) (4 u). Numerator and denominator add n
              fused terms each: |out| moves by (2 (d_s + that) + (2 n + 8) u) sum p |v|.
              On the BF16 path q, K and V are rounded on both sides; s runs in chains of 16, joined and added up: (20 +
              head_dim / 32) u in d_s. Native rounds p too, for numerator and denominator alike: 2^-8 of each, and those
              below e^-28 to none.
"""
from __future__ import annotations

import numpy as np
import torch
from kernel_cases import FORMATS, NAMES, sizes

from pyruntime import plan as p
from pyruntime import quant
from pyruntime.backends.torch import TorchBackend
from pyruntime.backends.torch_ops import bf16, rounds_weights, way
from pyruntime.plan import PAGE_TOKENS
from pyruntime.types import Batch
from pyruntime.weights import Weights

U = 2.0**-24
TINY = 2.0**-140   # roundings of denormal numbers


def norm_error(k: int) -> float:
    """e_n."""
    return ((k / 16 + 8) / 2 + 4) * U


def magnitudes(weights: Weights, name: str) -> np.ndarray:
    """|scale * (u - offset)| + |least| of every weight, [rows][k] f64."""
    w = weights[name]
    return sizes(NAMES.index(w.format_name), w.rows, w.k, w.blocks)


def product_bound(weights: Weights, name: str, x: np.ndarray, dx: np.ndarray, paths: np.ndarray,
                  rows: slice = slice(None), flagged: bool = False) -> np.ndarray:
    """Of W x [tokens][rows]; x [tokens][k] as the reference has it, dx how far the native's may lie from it (0: the same bits).
    paths: [tokens], of machine.PATHS. rows: only these of W; flagged: for the batch's rows."""
    wide, w = magnitudes(weights, name)[rows], weights[name]
    sub = FORMATS[NAMES.index(w.format_name)].sub
    out = exact_bound(wide, sub, x, dx)
    bytes8 = np.array([way(path, sub > 0, flagged) == "a8" for path in paths], bool)
    if bytes8.any():
        out[bytes8] = exact_bound(wide, sub, x, dx, 127, 32)[bytes8]
    coarse = rounded(weights, name, paths, flagged)
    if coarse.any():
        step = np.exp2(np.floor(np.log2(np.maximum(np.abs(x), 2.0**-126))) - 7)
        r = np.abs(x) / step
        flips = (np.abs(r - np.floor(r) - 0.5) <= dx / step + r * U) * (dx > 0) * step
        held = 1.01 * (np.abs(x) + flips) @ wide.T     # rounded, both are up to 2^-8 larger
        sums = np.where(paths == "bf16", 18 + w.k / 32 + 1, w.k + 1)[:, None]
        out[coarse] = (sums * U * held + 1.01 * flips @ wide.T)[coarse]
    return out


def rounded(weights: Weights, name: str, paths: np.ndarray, flagged: bool = False) -> np.ndarray:
    """Which tokens of these paths meet a weight rounded to bf16."""
    integer = FORMATS[NAMES.index(weights[name].format_name)].sub > 0
    return np.array([rounds_weights(path, integer, flagged) for path in paths], bool)


def exact_bound(wide: np.ndarray, sub: int, x: np.ndarray, dx: np.ndarray, top: int = 32639, block: int = 0) -> np.ndarray:
    """The same where activations are integers up to `top` under a scale for every `block` of them, 0: for all. wide: magnitudes
    of the weights; sub: k under one scale, 0 for a format of floats, which meet x."""
    k = x.shape[1]
    if not sub:
        return ((k / 4 + 3) * U * np.abs(x) + dx) @ wide.T
    most, moved = (largest(np.abs(a), block or k) for a in (x, dx))
    scale = most / top
    r, dr, dmost = (np.divide(a, b, out=np.zeros_like(a), where=b > 0) for a, b in ((x, scale), (dx, scale), (moved, most)))
    near = np.abs(np.abs(r - np.floor(r)) - 0.5) <= dr + np.abs(r) * (dmost + 4 * U)
    flips = (near & (dx > 0)) * scale
    held = np.abs(x) + scale
    return (((3 * k / sub + 7) * U + 2 * dmost) * held) @ wide.T + flips @ wide.T


def largest(x: np.ndarray, block: int) -> np.ndarray:
    """Of its block, for each number of x [tokens][k]."""
    tops = np.maximum.reduceat(x, np.arange(0, x.shape[1], block), -1)
    return np.repeat(tops, block, -1)[:, : x.shape[1]]


def vector(weights: Weights, name: str) -> np.ndarray:
    """A vector weight in f64."""
    return quant.FORMATS["F32"].dequantize(weights[name].packed, (weights[name].rows,)).astype(np.float64)


def normed(op: p.NormLinear | p.Logits, weights: Weights, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, dn): the op's norm of x in f64, and how far the native's may lie from it."""
    w, k = vector(weights, op.norm), x.shape[1]
    if op.norm_kind == p.NormKind.RMS:
        n = rms(x, w, op.eps)
        return n, np.abs(n) * norm_error(k)
    b = vector(weights, op.norm_bias) if op.norm_bias else np.zeros(k)
    centred = x - x.mean(-1, keepdims=True)
    var = (centred**2).mean(-1, keepdims=True) + op.eps
    plain, off = centred / np.sqrt(var) * w, (k / 16 + 6) * U * np.abs(x).mean(-1, keepdims=True)
    dn = np.abs(plain) * (norm_error(k) + off**2 / var + 2 * U) + np.abs(w) * off / np.sqrt(var) + 2 * U * np.abs(b)
    return plain + b, 1.01 * dn


def rms(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """RMS norm in f64."""
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def bound(op: p.Op, weights: Weights, ref: TorchBackend, batch: Batch, before: dict[str, np.ndarray]) -> np.ndarray:
    """Elementwise bound of the slot `op` writes. before: every slot before it, as f64; `ref` has run the op."""
    def after(name: str) -> np.ndarray:
        return np.abs(ref.slot(name).astype(np.float64))

    paths = np.array(ref.paths)[batch.roles]
    if isinstance(op, p.Embed):
        if op.positions:
            row = ref_rows(weights, op.positions)[batch.positions]
            return 3 * U * (after(op.out) + 2 * np.abs(row))     # the product is at most both together
        return 3 * U * after(op.out) if op.scale != 1 else np.zeros_like(before[op.out])  # the scale, the product, the slot
    if isinstance(op, p.NormLinear):
        n, dn = normed(op, weights, before[op.x])
        used = [(w, vector(weights, b) if b else np.zeros(1)) for w, b in ((op.w0, op.b0), (op.w1, op.b1), (op.w2, op.b2)) if w]
        parts = np.concatenate([product_bound(weights, w, n, dn, paths) + U * np.abs(b) for w, b in used], -1) * (1 + U)
        if op.activation == p.Activation.NONE:
            return parts + 3 * U * after(op.out)
        a = np.abs(np.concatenate([ref_product(weights, w, n, paths) + b for w, b in used], -1)) + parts
        return 1.13 * (parts + 3 * U * a) + 8 * U * a + 2 * U * after(op.out)
    if isinstance(op, p.Linear):
        return product_bound(weights, op.weight, before[op.x], 0 * before[op.x], paths) + 3 * U * after(op.out)
    if isinstance(op, p.LinearAdd):
        moved = after(op.out) + np.abs(before[op.out])
        return abs(op.scale) * product_bound(weights, op.weight, before[op.x], 0 * before[op.x], paths) + 4 * U * moved
    if isinstance(op, p.NormAdd):
        n = rms(before[op.x], vector(weights, op.norm), op.eps)
        return np.abs(n) * norm_error(n.shape[1]) + 2 * U * after(op.out)
    if isinstance(op, p.Gated):
        n = rms(before[op.x], vector(weights, op.norm), op.eps)
        dn = np.abs(n) * norm_error(n.shape[1])
        a, b = (ref_product(weights, w, n, paths) for w in (op.gate, op.up))
        da, db = (product_bound(weights, w, n, dn, paths) for w in (op.gate, op.up))
        return gate_bound(a, b, da, db) + 2 * U * after(op.out)
    if isinstance(op, (p.EachLinear, p.Experts)):
        return each_bound(op, weights, before, paths) + 3 * U * after(op.out)
    if isinstance(op, p.Route):
        return np.concatenate((np.zeros((len(paths), op.top_k)), 2 * U * after(op.out)[:, op.top_k:]), 1)
    if isinstance(op, p.RoutedAdd):
        parts = np.abs(before[op.x].reshape(len(paths), op.parts, -1) * before[op.routes][:, op.parts:, None])
        return (op.parts + 2) * U * (np.abs(before[op.out]) + parts.sum(1))
    if isinstance(op, p.LatentKV):
        g = ref.plan.groups[ref.plan.group(op.group)]
        out = np.zeros_like(before[op.out]).reshape(len(paths), op.heads, -1)
        q = before[op.q].reshape(len(paths), op.heads, -1)[..., g.width - g.head_dim:]
        out[..., g.width:] = 6 * U * np.sqrt((q**2).sum(-1, keepdims=True))
        return out.reshape(before[op.out].shape)
    if isinstance(op, p.RopeKV):
        return rope_bound(op, weights, ref, before)
    if isinstance(op, p.GatedNorm):
        e = norm_error(before[op.x].shape[1] // op.groups) + 24 * U
        return e * after(op.out) + TINY
    if isinstance(op, p.Attention):
        return attention_bound(op, ref, batch, before,
                               (paths == "bf16") & (ref.plan.groups[ref.plan.group(op.group)].kind != "latent"))
    if isinstance(op, p.Logits):
        n, dn = normed(op, weights, before[op.x][batch.rows])
        return abs(op.scale) * product_bound(weights, op.weight, n, dn, paths[batch.rows], flagged=True) \
            + 4 * U * after(op.out) + (4 * U * op.softcap)
    raise AssertionError(f"no bound for {op}")


def gate_bound(a: np.ndarray, b: np.ndarray, da: np.ndarray, db: np.ndarray) -> np.ndarray:
    """Of activation(a) b, a and b being off by da and db."""
    return 8 * U * np.abs(a) * np.abs(b) + 1.13 * da * (np.abs(b) + db) + np.abs(a) * db


def each_bound(op: p.EachLinear | p.Experts, weights: Weights, before: dict[str, np.ndarray], paths: np.ndarray) -> np.ndarray:
    """Each matrix with the tokens that meet it, part by part. What else stands in `out` stays."""
    x, tokens = before[op.x], len(paths)
    out = np.zeros_like(before[op.out]).reshape(tokens, op.parts, -1)
    which = before[op.routes][:, :op.parts].astype(int) if op.routes else np.tile(np.arange(op.parts), (tokens, 1))
    names = (op.gate, op.up) if isinstance(op, p.Experts) else (op.weight,)
    stored = weights[names[0]]
    n = stored.rows // op.of
    if isinstance(op, p.Experts):
        x = rms(x, vector(weights, op.norm), op.eps) if op.norm else x
    for e in np.unique(which).tolist():
        rows = slice(e * n, e * n + n)
        t, j = np.nonzero(which == e)
        mine = x[t] if isinstance(op, p.Experts) else x.reshape(tokens, op.parts, -1)[t, j, :stored.k]
        dx = np.abs(mine) * norm_error(stored.k) * (getattr(op, "norm", None) is not None)
        off = [product_bound(weights, w, mine, dx, paths[t], rows) for w in names]
        if isinstance(op, p.Experts):
            a, b = (ref_product(weights, w, mine, paths[t], rows) for w in names)
            out[t, j] = gate_bound(a, b, *off)
        else:
            out[t, j, :n] = off[0]
    return out.reshape(before[op.out].shape)


def latent_row_bound(op: p.LatentKV, weights: Weights, width: int, before: dict[str, np.ndarray]) -> float:
    """Of the largest number of the rows that LATENT_KV stores, before the cache's rounding."""
    latent, turned = before[op.kv][:, :width], before[op.kv][:, width:]
    normed_ = np.abs(rms(latent, vector(weights, op.norm), op.eps)).max() * norm_error(width)
    return float(max(normed_, 6 * U * np.sqrt((turned**2).sum(-1)).max()))


def ref_rows(weights: Weights, name: str) -> np.ndarray:
    """A matrix in f64."""
    stored = weights[name]
    return quant.FORMATS[stored.format_name].dequantize(stored.blocks, (stored.rows, stored.k)).astype(np.float64)


def conv_bound(op: p.Conv, weights: Weights, batch: Batch, before: dict[str, np.ndarray], out: np.ndarray,
               states: list[np.ndarray]) -> np.ndarray:
    """By the sizes of each channel's inputs, here and in the states before; `out` is the reference's."""
    channels = before[op.out].shape[1]
    x, w = np.abs(before[op.x][:, op.first : op.first + channels]), np.abs(weights[op.weight].f32()).reshape(channels, op.taps)
    sizes = np.zeros_like(before[op.out])
    for s, state in enumerate(states):
        inputs = np.concatenate([state.reshape(op.taps - 1, channels), x[batch.starts[s] : batch.starts[s + 1]]])
        for i in range(op.taps):
            sizes[batch.starts[s] : batch.starts[s + 1]] += inputs[i : len(inputs) - op.taps + 1 + i] * w[:, i]
    sizes += np.abs(weights[op.bias].f32()) if op.bias else 0
    return (1.13 * (op.taps + 1) + 8) * U * sizes + U * np.abs(out) + TINY


def scan_bound(op: p.Scan, weights: Weights, batch: Batch, before: dict[str, np.ndarray],
               states: list[np.ndarray], blocks: bool) -> tuple[np.ndarray, list[np.ndarray]]:
    """Bounds of the slot and of each sequence's state, by its own f64 recurrence from the sizes of those before. blocks: a
    prompt's tokens run in blocks."""
    def values(name: str | None) -> np.ndarray:
        return 0.0 if name is None else weights[name].f32().astype(np.float64)

    out, left = np.zeros_like(before[op.out]), []
    width = out.shape[1]
    dim, span = width // op.heads, op.groups * op.numbers
    dt = np.logaddexp(0, before[op.dt][:, op.first : op.first + op.heads] + values(op.dt_bias)).clip(op.dt_min, op.dt_max)
    a, d = values(op.a), np.broadcast_to(values(op.d), op.heads)
    share = op.heads // op.groups
    for s, state in enumerate(states):
        held = state.reshape(op.heads, op.numbers, dim)
        wrong = np.zeros_like(held)
        at, end = batch.kv_lens[s] - batch.starts[s + 1], batch.starts[s + 1]
        for t in range(batch.starts[s], end):
            ends = blocks and ((at + t + 1) % PAGE_TOKENS == 0 or t + 1 == end or batch.roles[t] != batch.roles[t + 1])
            x = np.abs(before[op.x][t, :width]).reshape(op.heads, 1, dim) * dt[t][:, None, None]
            b, c = (np.abs(before[op.x][t, first : first + span]).reshape(op.groups, op.numbers, 1).repeat(share, 0)
                    for first in (width, width + span))
            decay, slope = np.exp(dt[t] * a)[:, None, None], np.abs(dt[t] * a)[:, None, None]
            wrong = decay * wrong + decay * held * (2 + slope) * U + 4 * U * (b * x)
            held = decay * held + b * x
            wrong += (36 if ends else 2) * U * held
            skip = np.abs(d[:, None] * before[op.x][t, :width].reshape(op.heads, dim))
            out[t] = ((c * wrong).sum(1) + (op.numbers + (38 if blocks else 3)) * U * ((c * held).sum(1) + skip)).ravel()
        left.append(wrong.ravel() + U * held.ravel() + TINY)
    return 1.01 * out + TINY, [1.01 * w for w in left]


def ref_product(weights: Weights, name: str, x: np.ndarray, paths: np.ndarray, rows: slice = slice(None)) -> np.ndarray:
    """W x in f64, of numbers rounded to bf16 for tokens whose path does."""
    w, wide, coarse = torch.tensor(ref_rows(weights, name)[rows]), torch.tensor(x), rounded(weights, name, paths)
    return np.where(coarse[:, None], bf16(wide) @ bf16(w).T, wide @ w.T)


def rope_bound(op: p.RopeKV, weights: Weights, ref: TorchBackend, before: dict[str, np.ndarray]) -> np.ndarray:
    """Pairs move together, so that each of a pair gets the size of both."""
    group = ref.plan.groups[ref.plan.group(op.group)]
    heads = before[op.qkv].reshape(len(before[op.qkv]), -1, group.head_dim)
    size = np.sqrt((heads**2).sum(-1, keepdims=True)) if op.rope is not None else np.abs(heads)
    e = np.full((heads.shape[1], 1), 6 * U)
    for name, which in ((op.q_norm, slice(op.heads)), (op.k_norm, slice(op.heads, op.heads + group.kv_heads))):
        if name:
            n = rms(heads[:, which], vector(weights, name), op.eps)
            size[:, which] = np.sqrt((n**2).sum(-1, keepdims=True))
            e[which] += norm_error(group.head_dim)
    out = np.broadcast_to(size * e, heads.shape).copy()
    out[:, op.heads + group.kv_heads:] = 0
    return out.reshape(before[op.qkv].shape)


def coarse_values(x: np.ndarray) -> np.ndarray:
    """x rounded to bf16, f64."""
    return bf16(torch.from_numpy(np.ascontiguousarray(x))).numpy()


def attention_bound(op: p.Attention, ref: TorchBackend, batch: Batch, before: dict[str, np.ndarray],
                    coarse: np.ndarray) -> np.ndarray:
    """By its own f64 attention over the reference's cache."""
    group, g = ref.plan.group(op.group), ref.plan.groups[ref.plan.group(op.group)]
    cache, share, out = ref.caches[op.group], op.heads // g.kv_heads, np.zeros_like(before[op.out])
    q = before[op.qkv].reshape(len(out), -1, g.head_dim)[:, : op.heads]
    for s, total in enumerate(batch.kv_lens):
        at = np.arange(total)
        at = batch.tables[group][s][at // p.PAGE_TOKENS] * p.PAGE_TOKENS + at % p.PAGE_TOKENS
        k, v = (c[op.layer, at].double().numpy().repeat(share, 1) for c in (cache.k, cache.v))
        held = cache.positions[op.layer, at].numpy()
        for t in range(batch.starts[s], batch.starts[s + 1]):
            seen = (held <= batch.positions[t]) & ((op.window <= 0) | (held > batch.positions[t] - op.window))
            if batch.trees is not None and (tree := int(batch.trees[t])):
                new = batch.starts[s + 1] - batch.starts[s]
                seen[total - new:] &= np.array([tree >> i & 1 for i in range(new)], bool)
            here, keys, values = (coarse_values(x) if coarse[t] else x for x in (q[t], k[seen], v[seen]))
            scores = op.scale * np.einsum("hd,khd->hk", here, keys)
            size = abs(op.scale) * np.einsum("hd,khd->hk", np.abs(here), np.abs(keys))
            d_s = (20 + g.head_dim / 32 if coarse[t] else g.head_dim + 2) * U * size + 4 * U * op.softcap
            if op.softcap > 0:
                scores = op.softcap * np.tanh(scores / op.softcap)
            most = scores.max(-1, keepdims=True)
            e = np.exp(scores - most)
            weight = e / e.sum(-1, keepdims=True)
            n = seen.sum()
            each = d_s + U * (np.abs(scores) + np.abs(most) + 16) + (2 + 3 * -(-n // 16) + 4) * U
            factor = 2 * each.max(-1, keepdims=True) + (2 * n + 8) * U + 2.02 * 2.0**-8 * coarse[t]
            out[t] = (factor * np.einsum("hk,khd->hd", weight, np.abs(values))
                      + np.exp(-28) * coarse[t] * np.abs(values).sum(0)).reshape(-1)
    return out
