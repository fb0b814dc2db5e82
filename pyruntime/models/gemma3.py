"""Gemma 3, text: local and global layers, norms on both sides of every block, QK-norm, GeGLU (Gemma Team 2025).

What files say and what the family knows: a norm's weight has its +1 already in GGUF and lacks it in Hugging Face's; head rows
stand in halves in both; rotary scaling is the global layers' alone; the layers' pattern and the query scale may be left out.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from ..config import CONTEXT_MAX, HEADS_MAX, LAYERS_MAX, VOCAB_MAX, WIDTH_MAX, Metadata, ModelConfig, RopeScaling, embedding_rows
from ..errors import ModelInvalid
from ..recipe import ACTIVATIONS, rope
from ._gemma import hf_weights, layer_types, listed, pattern, plan

__all__ = ["hf_weights", "pattern", "plan"]
ARCHITECTURES = ("gemma3",)
MODEL_TYPES = ("gemma3_text", "gemma3")    # the second with a picture's tower beside the text, of which nothing is read
HF_PREFIXES = ("model.", "language_model.", "model.")
HF_SKIPPED = ("lm_head.weight", "vision_tower.*", "multi_modal_projector.*")    # the head of a tied model is its embedding
CONFIG_TENSORS: tuple[str, ...] = ()
PERIOD = 6       # every sixth layer is global where the file names no pattern
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
        local=listed(meta, f"{a}.attention.sliding_window_pattern", layers, PERIOD) if window else (),
        local_rope_theta=meta.real(f"{a}.rope.freq_base_swa", 1.0, 1e12, 1e4),
    )


def from_hf(meta: Metadata, tensors: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """Config from config.json and the tensors' shapes, by their names there. What it leaves out is as in `transformers`."""
    if meta.text("model_type") == "gemma3":
        meta = meta.inside("text_config")
    layers = meta.integer("num_hidden_layers", 1, LAYERS_MAX, 26)
    heads = meta.integer("num_attention_heads", 1, HEADS_MAX, 8)
    kv_heads = meta.integer("num_key_value_heads", 1, heads, min(4, heads))
    head_dim = meta.integer("head_dim", 2, 1024, 256)
    if heads % kv_heads:
        raise ModelInvalid(f"{meta.file}: {heads} query heads do not divide evenly over {kv_heads} key-value heads")
    if head_dim % 2:
        raise ModelInvalid(f"{meta.file}: metadata 'head_dim' is {head_dim}; it must be even")
    if meta.real("attn_logit_softcapping", 0.0, 1e4, 0.0):
        raise ModelInvalid(f"{meta.file}: metadata 'attn_logit_softcapping' is set; Gemma 3 caps no scores")
    for name in ("attention_bias", "use_bidirectional_attention"):
        if meta.flag(name, False):
            raise ModelInvalid(f"{meta.file}: metadata '{name}' is set; that is not supported")
    theta, scaling = rope(meta, head_dim, 1e6, "full_attention")
    local_theta = meta.real("rope_local_base_freq", 1.0, 1e12, 1e4)
    if "rope_parameters" in meta.values:
        local_theta, none = rope(meta, head_dim, local_theta, "sliding_attention")
        if none.kind != "none":
            raise ModelInvalid(f"{meta.file}: rotary scaling of local layers is not supported")
    if scaling.kind not in ("none", "linear"):
        raise ModelInvalid(f"{meta.file}: rotary scaling '{scaling.kind}' is not supported; known: default, linear")
    window = meta.integer("sliding_window", 0, CONTEXT_MAX, 4096)
    key = "sliding_window_pattern" if "sliding_window_pattern" in meta.values else "_sliding_window_pattern"
    period = meta.integer(key, 1, LAYERS_MAX, PERIOD)
    return ModelConfig(
        family="gemma3", layers=layers, width=meta.integer("hidden_size", 1, WIDTH_MAX, 2304), heads=heads, kv_heads=kv_heads,
        head_dim=head_dim, hidden=meta.integer("intermediate_size", 1, WIDTH_MAX * 8, 9216),
        vocab=meta.integer("vocab_size", 1, VOCAB_MAX, 262208),
        context=meta.integer("max_position_embeddings", 1, CONTEXT_MAX, 131072), eps=meta.real("rms_norm_eps", 0.0, 1.0, 1e-6),
        rope_theta=theta, rope_interleaved=False, rope_scaling=scaling, tied=meta.flag("tie_word_embeddings", True), qk_norm=True,
        activation=meta.choice("hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh"),
        query_scale=meta.real("query_pre_attn_scalar", 1e-6, 1e6, 256.0) ** -0.5,
        final_softcap=meta.real("final_logit_softcapping", 0.0, 1e6, 0.0), window=window,
        local=layer_types(meta, layers, period) if window else (), local_rope_theta=local_theta,
    )


def tiny(*, layers: int = 4, width: int = 96, heads: int = 4, kv_heads: int = 2, head_dim: int = 16, hidden: int = 160,
         vocab: int = 211, context: int = 256, period: int = 3, **more: object) -> ModelConfig:
    """A config small enough for property tests; any field can be overridden."""
    fields = dict(eps=1e-6, rope_theta=1e6, rope_interleaved=False, qk_norm=True, activation="gelu_tanh", window=7,
                  local=pattern(layers, period)) | more
    return ModelConfig("gemma3", layers, width, heads, kv_heads, head_dim, hidden, vocab, context, **fields)  # type: ignore[arg-type]
