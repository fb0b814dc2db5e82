"""Llama and kin (SmolLM, Mistral, Qwen2): RMSNorm, rotary positions, grouped-query attention, SwiGLU, optional biases and windows
(Touvron et al. 2023).

GGUF files store a head's rows as interleaved pairs, Hugging Face's as halves.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from ..config import CONTEXT_MAX, HEADS_MAX, LAYERS_MAX, VOCAB_MAX, WIDTH_MAX, Metadata, ModelConfig, RopeScaling, embedding_rows
from ..errors import ModelInvalid
from ..plan import (
    Activation,
    Attention,
    CacheGroup,
    Embed,
    Gated,
    LinearAdd,
    Logits,
    NormLinear,
    Plan,
    Rope,
    RopeKV,
    Sample,
    Slot,
    Weight,
)
from ..recipe import ACTIVATIONS, Recipe, Taken, rope

ARCHITECTURES = ("llama",)
MODEL_TYPES = ("llama", "mistral", "qwen2")
HF_PREFIXES = ("model.",)
HF_SKIPPED = ("layers.*.self_attn.rotary_emb.inv_freq", "lm_head.weight")    # the head of a tied model is its embedding
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


def from_hf(meta: Metadata, tensors: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """Config from config.json and the tensors' shapes, by their names there. What it leaves out is as in `transformers`."""
    kind = meta.text("model_type")
    width = meta.integer("hidden_size", 1, WIDTH_MAX)
    layers = meta.integer("num_hidden_layers", 1, LAYERS_MAX)
    heads = meta.integer("num_attention_heads", 1, HEADS_MAX)
    kv_heads = meta.integer("num_key_value_heads", 1, heads, min(8, heads) if kind == "mistral" else heads)
    if heads % kv_heads:
        raise ModelInvalid(f"{meta.file}: {heads} query heads do not divide evenly over {kv_heads} key-value heads")
    head_dim = meta.integer("head_dim", 2, 1024, max(width // heads, 2))
    if head_dim % 2:
        raise ModelInvalid(f"{meta.file}: metadata 'head_dim' is {head_dim}; it must be even")
    biased = kind == "llama" and meta.flag("attention_bias", False)
    if kind == "llama" and meta.flag("mlp_bias", False):
        raise ModelInvalid(f"{meta.file}: metadata 'mlp_bias' is set; biases in the feed-forward block are not supported")
    theta, scaling = rope(meta, head_dim)
    window, local = _windows(meta, kind, layers)
    return ModelConfig(
        family="llama", layers=layers, width=width, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
        hidden=meta.integer("intermediate_size", 1, WIDTH_MAX * 8), vocab=meta.integer("vocab_size", 1, VOCAB_MAX),
        context=meta.integer("max_position_embeddings", 1, CONTEXT_MAX, 2048), eps=meta.real("rms_norm_eps", 0.0, 1.0, 1e-6),
        rope_theta=theta, rope_interleaved=False, rope_scaling=scaling, tied=meta.flag("tie_word_embeddings", False),
        qkv_bias=biased or kind == "qwen2", out_bias=biased, activation=meta.choice("hidden_act", ACTIVATIONS, "silu"),
        window=window, local=local,
    )


def _windows(meta: Metadata, kind: str, layers: int) -> tuple[int, tuple[bool, ...]]:
    """Mistral's layers all see a window, if any; Qwen2's from `max_window_layers` on, where its config turns that on."""
    if kind == "llama" or (kind == "qwen2" and not meta.flag("use_sliding_window", False)):
        return 0, ()
    if "sliding_window" in meta.values and meta.values["sliding_window"] is None:    # said to be none, unlike one left out
        return 0, ()
    first = meta.integer("max_window_layers", 0, LAYERS_MAX, 28) if kind == "qwen2" else 0
    return meta.integer("sliding_window", 1, CONTEXT_MAX, 4096), tuple(i >= first for i in range(layers))


def hf_weights(config: ModelConfig) -> dict[str, Recipe]:
    """Where each of the plan's weights stands in a checkpoint."""
    outside = {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight", "output.weight": "lm_head.weight"}
    parts = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
             "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
             "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj",
             "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}

    def there(name: str) -> str:
        if name in outside:
            return outside[name]
        _, layer, part, kind = name.split(".")
        return f"layers.{layer}.{parts[part]}.{kind}"

    return {weight.name: Taken(there(weight.name)) for weight in plan(config).weights}


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
            Attention("qkv", "mixed", "kv", layer=i, heads=c.heads, scale=1.0 / math.sqrt(c.head_dim),
                      window=c.window if c.local and c.local[i] else 0),
            LinearAdd("mixed", "x", need(b + "attn_output.weight", c.width, q),
                      need(b + "attn_output.bias", c.width) if c.out_bias else None),
            Gated("x", "hidden", norm=need(b + "ffn_norm.weight", c.width), gate=need(b + "ffn_gate.weight", c.hidden, c.width),
                  up=need(b + "ffn_up.weight", c.hidden, c.width), activation=Activation[c.activation.upper()], eps=c.eps),
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
        ropes=(Rope(inverse_frequencies(c), c.rope_interleaved, c.rope_scaling.mscale),),
        vocab=c.vocab, context=c.context, width=c.width, cuts=tuple(cuts),
    )


def tiny(*, layers: int = 2, width: int = 96, heads: int = 6, kv_heads: int = 2, head_dim: int = 16, hidden: int = 160,
         vocab: int = 211, context: int = 256, **more: object) -> ModelConfig:
    """A config small enough for property tests; any field can be overridden."""
    return ModelConfig("llama", layers, width, heads, kv_heads, head_dim, hidden, vocab, context, **more)  # type: ignore[arg-type]
