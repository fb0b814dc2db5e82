"""Gemma 3, text: local and global layers, norms on both sides of every block, QK-norm, GeGLU (Gemma Team 2025).

What GGUF files say and what the family knows: a norm's weight has its +1 already; head rows stand in halves, as Hugging Face
has them; rotary scaling is the global layers' alone; the layers' pattern and the query scale may be left out.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from ..config import CONTEXT_MAX, HEADS_MAX, LAYERS_MAX, WIDTH_MAX, Metadata, ModelConfig, RopeScaling, embedding_rows
from ..errors import ModelInvalid
from ..plan import (
    Activation,
    Attention,
    CacheGroup,
    Embed,
    Gated,
    Linear,
    Logits,
    NormAdd,
    NormLinear,
    Plan,
    Rope,
    RopeKV,
    Sample,
    Slot,
    Weight,
)

ARCHITECTURES = ("gemma3",)
CONFIG_TENSORS: tuple[str, ...] = ()
PERIOD = 6       # every sixth layer is global where the file names no pattern
GROUPS = {True: "local", False: "global"}
LAYERS_27B = 62  # the one size whose scores are scaled by its width, not its heads


def from_gguf(meta: Metadata, tensors: Mapping[str, tuple[int, ...]], vector: Callable[[str], Sequence[float]]) -> ModelConfig:
    """Config from GGUF metadata and the tensors' shapes ([rows, k] order)."""
    a = "gemma3"
    width = meta.integer(f"{a}.embedding_length", 1, WIDTH_MAX)
    layers = meta.integer(f"{a}.block_count", 1, LAYERS_MAX)
    heads = meta.integer(f"{a}.attention.head_count", 1, HEADS_MAX)
    kv_heads = meta.integer(f"{a}.attention.head_count_kv", 1, heads, heads)
    head_dim = meta.integer(f"{a}.attention.key_length", 2, 1024, 256)
    meta.integer(f"{a}.attention.value_length", head_dim, head_dim, head_dim)
    meta.integer(f"{a}.rope.dimension_count", head_dim, head_dim, head_dim)
    if heads % kv_heads:
        raise ModelInvalid(f"{meta.file}: {heads} query heads do not divide evenly over {kv_heads} key-value heads")
    if head_dim % 2:
        raise ModelInvalid(f"{meta.file}: metadata '{a}.attention.key_length' is {head_dim}; it must be even")
    if meta.real(f"{a}.attn_logit_softcapping", 0.0, 1e4, 0.0):
        raise ModelInvalid(f"{meta.file}: metadata '{a}.attn_logit_softcapping' is set; Gemma 3 caps no scores")
    scaling = RopeScaling()
    kind = meta.text(f"{a}.rope.scaling.type", "none")
    if kind == "linear":
        scaling = RopeScaling("linear", meta.real(f"{a}.rope.scaling.factor", 1e-3, 1e4, 1.0))
    elif kind != "none":
        raise ModelInvalid(f"{meta.file}: rotary scaling '{kind}' is not supported; known: none, linear")
    window = meta.integer(f"{a}.attention.sliding_window", 0, CONTEXT_MAX, 0)
    scale = 1.0 / math.sqrt(width // heads if layers == LAYERS_27B else head_dim)
    return ModelConfig(
        family="gemma3", layers=layers, width=width, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
        hidden=meta.integer(f"{a}.feed_forward_length", 1, WIDTH_MAX * 8), vocab=embedding_rows(tensors, meta.file),
        context=meta.integer(f"{a}.context_length", 1, CONTEXT_MAX),
        eps=meta.real(f"{a}.attention.layer_norm_rms_epsilon", 0.0, 1.0, 1e-6),
        rope_theta=meta.real(f"{a}.rope.freq_base", 1.0, 1e12, 1e6), rope_interleaved=False, rope_scaling=scaling,
        tied="output.weight" not in tensors, qk_norm=True, activation="gelu_tanh",
        query_scale=meta.real(f"{a}.attention.scale", 1e-6, 1e6, scale),
        final_softcap=meta.real(f"{a}.final_logit_softcapping", 0.0, 1e6, 0.0), window=window,
        local=_pattern(meta, f"{a}.attention.sliding_window_pattern", layers) if window else (),
        local_rope_theta=meta.real(f"{a}.rope.freq_base_swa", 1.0, 1e12, 1e4),
    )


def pattern(layers: int, period: int) -> tuple[bool, ...]:
    """Which layers are local: all but every `period`-th."""
    return tuple(bool((i + 1) % period) for i in range(layers))


def _pattern(meta: Metadata, key: str, layers: int) -> tuple[bool, ...]:
    """The file's: one truth value a layer, or the period as a number."""
    value = meta.values.get(key, PERIOD)
    if isinstance(value, int) and not isinstance(value, bool):
        return pattern(layers, meta.integer(key, 1, LAYERS_MAX, PERIOD))
    flags = list(value) if hasattr(value, "__len__") and not isinstance(value, str) else []  # type: ignore[call-overload]
    if len(flags) != layers or not {bool(f) == f for f in flags} <= {True}:
        raise ModelInvalid(f"{meta.file}: metadata '{key}' must be a number or {layers} truth values, one a layer")
    return tuple(bool(f) for f in flags)


def plan(config: ModelConfig) -> Plan:
    """The op list: eight ops a layer around the residual slot `x`; `y` is a block's output before its norm.

    Local and global layers are two cache groups, so that pages behind the window can be given back apart."""
    c = config
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    weights = [Weight("token_embd.weight", c.vocab, c.width)]
    ops: list = [Embed("x", "token_embd.weight", scale=math.sqrt(c.width))]
    cuts = [0]
    local = c.local or (False,) * c.layers
    at = {True: 0, False: 0}           # layers each group has so far
    turns = {True: _frequencies(c.local_rope_theta, c.head_dim, 1.0),
             False: _frequencies(c.rope_theta, c.head_dim, c.rope_scaling.factor)}
    kinds = [kind for kind in (True, False) if kind in local]

    def need(name: str, rows: int, k: int = 0) -> str:
        weights.append(Weight(name, rows, k))
        return name

    for i, is_local in enumerate(local):
        b, group, layer = f"blk.{i}.", GROUPS[is_local], at[is_local]
        at[is_local] += 1
        if i:
            cuts.append(len(ops))
        ops += [
            NormLinear("x", "qkv", norm=need(b + "attn_norm.weight", c.width), w0=need(b + "attn_q.weight", q, c.width),
                       w1=need(b + "attn_k.weight", kv, c.width), w2=need(b + "attn_v.weight", kv, c.width), eps=c.eps),
            RopeKV("qkv", group, layer=layer, heads=c.heads, rope=kinds.index(is_local), eps=c.eps,
                   q_norm=need(b + "attn_q_norm.weight", c.head_dim), k_norm=need(b + "attn_k_norm.weight", c.head_dim)),
            Attention("qkv", "mixed", group, layer=layer, heads=c.heads, scale=c.query_scale or 1.0 / math.sqrt(c.head_dim),
                      window=c.window if is_local else 0),
            Linear("mixed", "y", need(b + "attn_output.weight", c.width, q)),
            NormAdd("y", "x", need(b + "post_attention_norm.weight", c.width), eps=c.eps),
            Gated("x", "hidden", norm=need(b + "ffn_norm.weight", c.width), gate=need(b + "ffn_gate.weight", c.hidden, c.width),
                  up=need(b + "ffn_up.weight", c.hidden, c.width), activation=Activation[c.activation.upper()], eps=c.eps),
            Linear("hidden", "y", need(b + "ffn_down.weight", c.width, c.hidden)),
            NormAdd("y", "x", need(b + "post_ffw_norm.weight", c.width), eps=c.eps),
        ]
    head = "token_embd.weight" if c.tied else need("output.weight", c.vocab, c.width)
    ops += [Logits("x", "logits", norm=need("output_norm.weight", c.width), weight=head, eps=c.eps, softcap=c.final_softcap),
            Sample("logits")]
    return Plan(
        ops=tuple(ops),
        slots=(Slot("x", c.width), Slot("qkv", q + 2 * kv), Slot("mixed", q), Slot("y", c.width), Slot("hidden", c.hidden),
               Slot("logits", c.vocab, per_row=True)),
        weights=tuple(weights),
        groups=tuple(CacheGroup(GROUPS[kind], at[kind], c.kv_heads, c.head_dim, k_format=c.k_format, v_format=c.v_format)
                     for kind in kinds),
        ropes=tuple(Rope(turns[kind], c.rope_interleaved) for kind in kinds),
        vocab=c.vocab, context=c.context, width=c.width, cuts=tuple(cuts),
    )


def _frequencies(theta: float, dims: int, factor: float) -> tuple[float, ...]:
    """theta^(-2i/d) / factor for each pair."""
    return tuple(theta ** (-2.0 * i / dims) / factor for i in range(dims // 2))


def tiny(*, layers: int = 4, width: int = 96, heads: int = 4, kv_heads: int = 2, head_dim: int = 16, hidden: int = 160,
         vocab: int = 211, context: int = 256, period: int = 3, **more: object) -> ModelConfig:
    """A config small enough for property tests; any field can be overridden."""
    fields = dict(eps=1e-6, rope_theta=1e6, rope_interleaved=False, qk_norm=True, activation="gelu_tanh", window=7,
                  local=pattern(layers, period)) | more
    return ModelConfig("gemma3", layers, width, heads, kv_heads, head_dim, hidden, vocab, context, **fields)  # type: ignore[arg-type]
