"""Llama and SmolLM: RMSNorm, rotary positions, grouped-query attention, SwiGLU, optional biases (Touvron et al. 2023)."""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from ..config import CONTEXT_MAX, HEADS_MAX, LAYERS_MAX, WIDTH_MAX, Metadata, ModelConfig, RopeScaling, embedding_rows
from ..errors import ModelInvalid
from ..plan import Attention, CacheGroup, Embed, Gated, LinearAdd, Logits, NormLinear, Plan, Rope, RopeKV, Sample, Slot, Weight

ARCHITECTURES = ("llama",)
FACTORS = "rope_freqs.weight"    # Llama 3.1 and later: what each rotary frequency is divided by
CONFIG_TENSORS = (FACTORS,)      # read into the config, not by an op


def from_gguf(meta: Metadata, tensors: Mapping[str, tuple[int, ...]], vector: Callable[[str], Sequence[float]]) -> ModelConfig:
    """Config from GGUF metadata and the tensors' shapes ([rows, k] order); `vector` reads a small f32 tensor."""
    a = "llama"
    if meta.integer(f"{a}.expert_count", 0, 1 << 16, 0):
        raise ModelInvalid(f"{meta.file}: a mixture-of-experts llama; only dense ones are supported")
    width = meta.integer(f"{a}.embedding_length", 1, WIDTH_MAX)
    heads = meta.integer(f"{a}.attention.head_count", 1, HEADS_MAX)
    kv_heads = meta.integer(f"{a}.attention.head_count_kv", 1, heads, heads)
    head_dim = meta.integer(f"{a}.attention.key_length", 2, 1024, max(width // heads, 2))
    if heads % kv_heads:
        raise ModelInvalid(f"{meta.file}: {heads} query heads do not divide evenly over {kv_heads} key-value heads")
    rope_dims = meta.integer(f"{a}.rope.dimension_count", 2, head_dim, head_dim)
    if rope_dims % 2:
        raise ModelInvalid(f"{meta.file}: metadata '{a}.rope.dimension_count' is {rope_dims}; it must be even")
    scaling = RopeScaling()
    kind = meta.text(f"{a}.rope.scaling.type", "none")
    if kind == "linear":
        scaling = RopeScaling("linear", meta.real(f"{a}.rope.scaling.factor", 1e-3, 1e4, 1.0))
    elif kind == "none" and FACTORS in tensors:
        scaling = RopeScaling("factors", factors=_factors(vector(FACTORS), rope_dims // 2, meta))
    elif kind != "none":
        raise ModelInvalid(f"{meta.file}: rotary scaling '{kind}' is not supported; known: none, linear")
    return ModelConfig(
        family="llama", layers=meta.integer(f"{a}.block_count", 1, LAYERS_MAX), width=width, heads=heads,
        kv_heads=kv_heads, head_dim=head_dim, hidden=meta.integer(f"{a}.feed_forward_length", 1, WIDTH_MAX * 8),
        vocab=embedding_rows(tensors, meta.file), context=meta.integer(f"{a}.context_length", 1, CONTEXT_MAX),
        eps=meta.real(f"{a}.attention.layer_norm_rms_epsilon", 0.0, 1.0, 1e-5),
        rope_theta=meta.real(f"{a}.rope.freq_base", 1.0, 1e12, 1e4), rope_dims=rope_dims, rope_interleaved=True,
        rope_scaling=scaling, tied="output.weight" not in tensors, qkv_bias="blk.0.attn_q.bias" in tensors,
    )


def _factors(values: Sequence[float], pairs: int, meta: Metadata) -> tuple[float, ...]:
    if len(values) != pairs or not all(math.isfinite(v) and v > 0 for v in values):
        raise ModelInvalid(f"{meta.file}: tensor '{FACTORS}' must hold {pairs} positive numbers, one per rotated pair")
    return tuple(float(v) for v in values)


def inverse_frequencies(config: ModelConfig) -> tuple[float, ...]:
    """theta^(-2i/d) for each rotated pair, stretched as config.rope_scaling says."""
    dims, scaling = config.rope_dims or config.head_dim, config.rope_scaling
    freqs = [config.rope_theta ** (-2.0 * i / dims) for i in range(dims // 2)]
    if scaling.factors:
        freqs = [f / d for f, d in zip(freqs, scaling.factors, strict=True)]
    return tuple(f / scaling.factor for f in freqs) if scaling.kind == "linear" else tuple(freqs)


def plan(config: ModelConfig) -> Plan:
    """The op list: five ops a layer around one residual slot `x`."""
    c = config
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    weights = [Weight("token_embd.weight", c.vocab, c.width)]
    ops: list = [Embed("x", "token_embd.weight")]
    cuts = [0]

    def need(name: str, rows: int, k: int = 0) -> str:
        weights.append(Weight(name, rows, k))
        return name

    for i in range(c.layers):
        b = f"blk.{i}."
        if i:
            cuts.append(len(ops))
        bias = [need(f"{b}attn_{n}.bias", rows) if c.qkv_bias else None for n, rows in (("q", q), ("k", kv), ("v", kv))]
        ops += [
            NormLinear("x", "qkv", norm=need(b + "attn_norm.weight", c.width), w0=need(b + "attn_q.weight", q, c.width),
                       w1=need(b + "attn_k.weight", kv, c.width), w2=need(b + "attn_v.weight", kv, c.width),
                       b0=bias[0], b1=bias[1], b2=bias[2], eps=c.eps),
            RopeKV("qkv", "kv", layer=i, heads=c.heads, rope=0,
                   q_norm=need(b + "attn_q_norm.weight", c.head_dim) if c.qk_norm else None,
                   k_norm=need(b + "attn_k_norm.weight", c.head_dim) if c.qk_norm else None, eps=c.eps),
            Attention("qkv", "mixed", "kv", layer=i, heads=c.heads, scale=1.0 / math.sqrt(c.head_dim)),
            LinearAdd("mixed", "x", need(b + "attn_output.weight", c.width, q)),
            Gated("x", "hidden", norm=need(b + "ffn_norm.weight", c.width), gate=need(b + "ffn_gate.weight", c.hidden, c.width),
                  up=need(b + "ffn_up.weight", c.hidden, c.width), eps=c.eps),
            LinearAdd("hidden", "x", need(b + "ffn_down.weight", c.width, c.hidden)),
        ]
    head = "token_embd.weight" if c.tied else need("output.weight", c.vocab, c.width)
    ops += [Logits("x", "logits", norm=need("output_norm.weight", c.width), weight=head, eps=c.eps), Sample("logits")]
    return Plan(
        ops=tuple(ops),
        slots=(Slot("x", c.width), Slot("qkv", q + 2 * kv), Slot("mixed", q), Slot("hidden", c.hidden),
               Slot("logits", c.vocab, per_row=True)),
        weights=tuple(weights),
        groups=(CacheGroup("kv", c.layers, c.kv_heads, c.head_dim, k_format=c.k_format, v_format=c.v_format),),
        ropes=(Rope(inverse_frequencies(c), c.rope_interleaved),),
        vocab=c.vocab, context=c.context, width=c.width, cuts=tuple(cuts),
    )


def tiny(*, layers: int = 2, width: int = 96, heads: int = 6, kv_heads: int = 2, head_dim: int = 16, hidden: int = 160,
         vocab: int = 211, context: int = 256, **more: object) -> ModelConfig:
    """A config small enough for property tests; any field can be overridden."""
    return ModelConfig("llama", layers, width, heads, kv_heads, head_dim, hidden, vocab, context, **more)  # type: ignore[arg-type]
