"""The plan: a flat list of ops over named slots, weights and cache groups. Pure data, the only description of a model.

Two readers interpret it: `csrc/exec` and `backends/torch.py`. An op's fields carry the names of `csrc/defs/ops.def`.
Nothing here knows a backend, a rank or a family. Formulas below use x for one token's row; W is [n_out][k].
"""
from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Union

PAGE_TOKENS = 16  # tokens whose K and V one page holds
KINDS = ("paged", "latent", "state")  # of cache groups, enum rt_group_kind


class NormKind(IntEnum):
    """How NORM_LINEAR and LOGITS normalize: RMS x / sqrt(mean(x^2) + eps) * w, or LAYER (x - mean) / sqrt(var + eps) * w + b."""

    RMS = 0
    LAYER = 1


class Activation(IntEnum):
    """The gate's function in GATED, or NORM_LINEAR's: silu x*sigmoid(x), gelu_tanh (tanh form), gelu (erf form)."""

    NONE = -1
    SILU = 0
    GELU_TANH = 1
    GELU = 2


def _counting(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)


class Scoring(IntEnum):
    """How ROUTE turns logits into scores: softmax over all experts, or each one's own sigmoid."""

    SOFTMAX = 0
    SIGMOID = 1


@dataclass(frozen=True, slots=True)
class Slot:
    """A named f32 activation buffer [tokens][width], or [flagged rows][width] when `per_row`."""

    name: str
    width: int
    per_row: bool = False


@dataclass(frozen=True, slots=True)
class Weight:
    """What an op needs: a matrix [rows][k] in any format, or a vector [rows] (k == 0), which is kept in f32.

    shape: the dimensions a vector may have in a file instead of one. Those of 1 never count."""

    name: str
    rows: int
    k: int = 0
    shape: tuple[int, ...] = ()

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a file's tensor of that shape, slowest dimension first, is this weight."""
        if self.k and len(shape) == 3:     # a stack of matrices
            shape = (shape[0] * shape[1], shape[2])
        wanted = (self.rows, self.k) if self.k else (self.rows,)
        return shape == wanted or (self.k == 0 and _counting(shape) in (_counting(wanted), _counting(self.shape or wanted)))


@dataclass(frozen=True, slots=True)
class CacheGroup:
    """Layers whose K and V share pages of one shape and one block table per sequence.

    kind is one of KINDS. "paged": one page holds, per layer and KV head, K as [head_dim][PAGE_TOKENS] and V as
    [PAGE_TOKENS][head_dim]. "latent": one head, of which a page holds rows [PAGE_TOKENS][head_dim]; a row is K, and its first
    `width` numbers are V too. "state": a page is a slot that holds all a sequence has, `width` f32 a layer, and its table is
    that one slot; each layer belongs to one op, whose state it is. row: of a Scan's states, f32 numbers that a token of an
    unfinished block leaves behind its layer's width; with it prompts run in blocks of PAGE_TOKENS positions, with 0 token by token.
    window > 0: every attention op of the group has a window of at most so many tokens.
    """

    name: str
    layers: int
    kv_heads: int = 0
    head_dim: int = 0
    kind: str = "paged"
    k_format: str = "f16"
    v_format: str = "f16"
    window: int = 0
    width: int = 0
    row: int = 0


@dataclass(frozen=True, slots=True)
class Rope:
    """One rotary table. Pair i of a head turns by position * inv_freq[i]; cos and sin are multiplied by `mscale`.

    Angles are computed in f64 and rounded once to f32. Dimensions past 2*len(inv_freq) stay as they are.
    interleaved: pairs are (2i, 2i+1), as GGUF stores llama; otherwise (i, i + rotary_dims/2), as Hugging Face does.
    """

    inv_freq: tuple[float, ...]
    interleaved: bool
    mscale: float = 1.0


@dataclass(frozen=True, slots=True)
class Embed:
    """out = weight[token] * scale + positions[position]; token -1-i takes row i of the batch's embedding rows (unscaled).

    positions: a matrix of a row for each position, or None; a batch's positions must then lie below its rows."""

    out: str
    weight: str
    positions: str | None = None
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class NormLinear:
    """out = activation(concat_j(W_j norm(x) + b_j)) for up to three matrices (q, k, v). The norm and its rounding are done once."""

    x: str
    out: str
    norm: str
    w0: str
    w1: str | None = None
    w2: str | None = None
    b0: str | None = None
    b1: str | None = None
    b2: str | None = None
    norm_bias: str | None = None
    norm_kind: int = NormKind.RMS
    activation: int = Activation.NONE
    eps: float = 1e-5


@dataclass(frozen=True, slots=True)
class Linear:
    """out = W x + bias."""

    x: str
    out: str
    weight: str
    bias: str | None = None


@dataclass(frozen=True, slots=True)
class LinearAdd:
    """out += scale * (W x + bias): the residual connection."""

    x: str
    out: str
    weight: str
    bias: str | None = None
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class NormAdd:
    """out += x / sqrt(mean(x^2) + eps) * norm: a block's output normalized before it joins the residual."""

    x: str
    out: str
    norm: str
    eps: float = 1e-5


@dataclass(frozen=True, slots=True)
class Gated:
    """n = rmsnorm(x) (or x when norm is None); out = activation(gate n) * (up n)."""

    x: str
    out: str
    norm: str | None
    gate: str
    up: str
    activation: int = Activation.SILU
    eps: float = 1e-5


@dataclass(frozen=True, slots=True)
class RopeKV:
    """qkv = [heads | kv_heads | kv_heads] x head_dim: optional per-head RMS norm of q and k, rotate q and k in place,
    then store k and v of every token in the sequence's pages of `group`, `layer`. rope None: no rotation."""

    qkv: str
    group: str
    layer: int
    heads: int
    rope: int | None
    q_norm: str | None = None
    k_norm: str | None = None
    eps: float = 1e-6


@dataclass(frozen=True, slots=True)
class Attention:
    """out[h] = softmax(scale * q_h . K + mask) V over the sequence's pages as stored; head h reads KV head h // (heads / kv_heads).

    A stored token is seen when its stored position p satisfies p <= position and, with window > 0, p > position - window.
    On a latent group qkv holds q alone, [heads] x head_dim, and out [heads] x the group's width.
    softcap > 0: scores become softcap * tanh(scores / softcap). sinks: one logit per head joins the softmax's sum.
    """

    qkv: str
    out: str
    group: str
    layer: int
    heads: int
    scale: float
    window: int = 0
    softcap: float = 0.0
    sinks: str | None = None


@dataclass(frozen=True, slots=True)
class Conv:
    """A causal convolution of each channel with its own `taps` weights [channels * taps], channel-major, the newest input's last:
    out[c] = activation(bias[c] + sum_i weight[c][i] * x_i[first + c]). channels is the width of `out`.

    The last taps - 1 inputs are `layer`'s state in `group`, taps - 1 times channels numbers.
    """

    x: str
    out: str
    group: str
    layer: int
    weight: str
    taps: int
    bias: str | None = None
    first: int = 0
    activation: int = Activation.SILU


@dataclass(frozen=True, slots=True)
class Scan:
    """Mamba-2's recurrence. x = [heads * head_dim | B: groups * numbers | C: groups * numbers], head h reading B and C of group
    h // (heads / groups); dt = softplus(slot dt[first + h] + dt_bias[h]) within [dt_min, dt_max];
    s <- exp(dt a[h]) s + (dt x) B^T, out = s C + d[h] x. head_dim is the width of `out` / heads; a is -exp(A_log).

    The state s, [heads][numbers][head_dim], is `layer`'s in `group`.
    """

    x: str
    dt: str
    out: str
    group: str
    layer: int
    heads: int
    groups: int
    numbers: int
    a: str
    d: str | None = None
    dt_bias: str | None = None
    first: int = 0
    dt_min: float = 0.0
    dt_max: float = math.inf


@dataclass(frozen=True, slots=True)
class GatedNorm:
    """out = rmsnorm(x * silu(z)) * norm, z the numbers of slot `gate` from `first` on and the mean over each of `groups` equal
    parts; with gate_last rmsnorm(x) * norm * silu(z). out may be x."""

    x: str
    gate: str
    out: str
    norm: str
    first: int = 0
    groups: int = 1
    gate_last: bool = False
    eps: float = 1e-5


@dataclass(frozen=True, slots=True)
class LatentKV:
    """kv = [latent | rope] of each token: the latent RMS-normed, the rest rotated, both stored as one row in the pages of `group`,
    `layer`, a latent one. The last `rope` numbers of each head of q, rotated, become those of out; q = [heads] x [.. | rope],
    out = [heads] x [latent | rope], whose latent parts (q carried over, EACH_LINEAR) are another op's."""

    kv: str
    q: str
    out: str
    group: str
    layer: int
    heads: int
    norm: str
    rope: int
    eps: float = 1e-6


@dataclass(frozen=True, slots=True)
class EachLinear:
    """out_j = W_e x_j for each of a token's `parts`, x = [parts] x [k ..], out = [parts] x [rows ..]; W = [of] x [rows][k].

    e is the j-th expert of `routes`, or j itself without them: heads, each with a matrix of its own (parts == of)."""

    x: str
    out: str
    weight: str
    parts: int
    of: int
    routes: str | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """out = [top_k expert ids, ascending | top_k weights], all f32, from logits = [experts].

    Scores are made by `scoring`; choices are scores + bias. Of `groups` of neighbouring experts the groups_kept with the
    largest sum of their group_best best choices stay, of these the top_k experts by choice; among equals the lower index.
    weight = scale * score, the chosen scores first divided by their sum + 1e-20 when `normalize`."""

    logits: str
    out: str
    top_k: int
    bias: str | None = None
    scoring: int = Scoring.SOFTMAX
    groups: int = 1
    groups_kept: int = 1
    group_best: int = 1
    normalize: bool = False
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Experts:
    """n = rmsnorm(x) (or x when norm is None); out_j = activation(gate_e n) * (up_e n) for the j-th expert e of `routes`.

    gate, up = [of] x [rows][k], out = [parts] x [rows]. An expert's matrices are read once for all of a step's tokens that
    chose it (for 64 of them at a time), and not at all when none did."""

    x: str
    out: str
    routes: str
    norm: str | None
    gate: str
    up: str
    parts: int
    of: int
    activation: int = Activation.SILU
    eps: float = 1e-5


@dataclass(frozen=True, slots=True)
class RoutedAdd:
    """out += sum_j weight_j x_j, in order of j; x = [parts] x [width of out], weights those of `routes`."""

    x: str
    out: str
    routes: str
    parts: int


@dataclass(frozen=True, slots=True)
class Logits:
    """For flagged rows only: out = softcap(scale * W norm(x))."""

    x: str
    out: str
    norm: str
    weight: str
    norm_bias: str | None = None
    norm_kind: int = NormKind.RMS
    eps: float = 1e-5
    scale: float = 1.0
    softcap: float = 0.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One token per flagged row, by that row's sampling parameters (types.SAMPLING)."""

    logits: str


Op = Union[Embed, NormLinear, Linear, LinearAdd, NormAdd, Gated, RopeKV, LatentKV, Attention, EachLinear, Route, Experts,
           RoutedAdd, Conv, Scan, GatedNorm, Logits, Sample]

#: op class -> its name in csrc/defs/ops.def
NAMES: dict[type, str] = {
    Embed: "embed", NormLinear: "norm_linear", Linear: "linear", LinearAdd: "linear_add", NormAdd: "norm_add", Gated: "gated",
    RopeKV: "rope_kv", LatentKV: "latent_kv", Attention: "attention", EachLinear: "each_linear", Route: "route",
    Experts: "experts", RoutedAdd: "routed_add", Conv: "conv", Scan: "scan", GatedNorm: "gated_norm", Logits: "logits",
    Sample: "sample",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole model. `cuts` are the op indices where a stage may begin (0 and every layer's first op)."""

    ops: tuple[Op, ...]
    slots: tuple[Slot, ...]
    weights: tuple[Weight, ...]
    groups: tuple[CacheGroup, ...]
    ropes: tuple[Rope, ...]
    vocab: int
    context: int
    width: int
    cuts: tuple[int, ...] = field(default=(0,))

    def token_by_token(self) -> Plan:
        """The same, its recurrences never in blocks."""
        return replace(self, groups=tuple(replace(g, row=0) for g in self.groups))

    def slot(self, name: str) -> int:
        """Index of a slot by name."""
        return next(i for i, s in enumerate(self.slots) if s.name == name)

    def weight(self, name: str | None) -> int:
        """Index of a weight by name; -1 for None."""
        return -1 if name is None else next(i for i, w in enumerate(self.weights) if w.name == name)

    def group(self, name: str) -> int:
        """Index of a cache group by name."""
        return next(i for i, g in enumerate(self.groups) if g.name == name)
