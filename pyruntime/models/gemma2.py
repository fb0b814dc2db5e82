"""Gemma 2: local and global layers in turn, norms on both sides of every block, capped scores and logits, GeGLU
(Gemma Team 2024).

What files say and what the family knows: a norm's weight has its +1 already in GGUF and lacks it in Hugging Face's; head rows
stand in halves in both; GGUF files may leave out the layers' pattern, the query scale, caps and window.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from ..config import CONTEXT_MAX, HEADS_MAX, LAYERS_MAX, VOCAB_MAX, WIDTH_MAX, Metadata, ModelConfig, embedding_rows
from ..errors import ModelInvalid
from ..recipe import ACTIVATIONS, rope
from ._gemma import hf_weights, layer_types, listed, pattern, plan

__all__ = ["hf_weights", "plan"]
ARCHITECTURES = ("gemma2",)
MODEL_TYPES = ("gemma2",)
HF_PREFIXES = ("model.",)
HF_SKIPPED = ("layers.*.self_attn.rotary_emb.inv_freq", "lm_head.weight")    # the head of a tied model is its embedding
CONFIG_TENSORS: tuple[str, ...] = ()
PERIOD = 2       # every second layer is global
LAYERS_27B = 46  # the one size whose scores are scaled by its width, not its heads
WINDOW, SCORE_CAP, FINAL_CAP = 4096, 50.0, 30.0


def from_gguf(meta: Metadata, tensors: Mapping[str, tuple[int, ...]], vector: Callable[[str], Sequence[float]]) -> ModelConfig:
    """Config from GGUF metadata and the tensors' shapes ([rows, k] order)."""
    a = "gemma2"
    width, layers = meta.integer(f"{a}.embedding_length", 1, WIDTH_MAX), meta.integer(f"{a}.block_count", 1, LAYERS_MAX)
    heads = meta.integer(f"{a}.attention.head_count", 1, HEADS_MAX)
    kv_heads = meta.integer(f"{a}.attention.head_count_kv", 1, heads, heads)
    head_dim = meta.integer(f"{a}.attention.key_length", 2, 1024, 256)
    meta.integer(f"{a}.attention.value_length", head_dim, head_dim, head_dim)
    meta.integer(f"{a}.rope.dimension_count", head_dim, head_dim, head_dim)
    _check_heads(heads, kv_heads, head_dim, meta.file)
    if (kind := meta.text(f"{a}.rope.scaling.type", "none")) != "none":
        raise ModelInvalid(f"{meta.file}: rotary scaling '{kind}' is not supported; known: none")
    theta = meta.real(f"{a}.rope.freq_base", 1.0, 1e12, 1e4)
    window = meta.integer(f"{a}.attention.sliding_window", 0, CONTEXT_MAX, WINDOW)
    scale = 1.0 / math.sqrt(width // heads if layers == LAYERS_27B else head_dim)
    return ModelConfig(
        family=a, layers=layers, width=width, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
        hidden=meta.integer(f"{a}.feed_forward_length", 1, WIDTH_MAX * 8), vocab=embedding_rows(tensors, meta.file),
        context=meta.integer(f"{a}.context_length", 1, CONTEXT_MAX),
        eps=meta.real(f"{a}.attention.layer_norm_rms_epsilon", 0.0, 1.0, 1e-6), rope_theta=theta,
        local_rope_theta=meta.real(f"{a}.rope.freq_base_swa", 1.0, 1e12, theta), rope_interleaved=False,
        tied="output.weight" not in tensors, activation="gelu_tanh",
        query_scale=meta.real(f"{a}.attention.scale", 1e-6, 1e6, scale),
        score_softcap=meta.real(f"{a}.attn_logit_softcapping", 0.0, 1e6, SCORE_CAP),
        final_softcap=meta.real(f"{a}.final_logit_softcapping", 0.0, 1e6, FINAL_CAP),
        window=window, local=listed(meta, f"{a}.attention.sliding_window_pattern", layers, PERIOD) if window else (),
    )


def from_hf(meta: Metadata, tensors: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """Config from config.json and the tensors' shapes, by their names there. What it leaves out is as in `transformers`."""
    layers = meta.integer("num_hidden_layers", 1, LAYERS_MAX, 26)
    heads = meta.integer("num_attention_heads", 1, HEADS_MAX, 8)
    kv_heads = meta.integer("num_key_value_heads", 1, heads, min(4, heads))
    head_dim = meta.integer("head_dim", 2, 1024, 256)
    _check_heads(heads, kv_heads, head_dim, meta.file)
    for name in ("attention_bias", "use_bidirectional_attention"):
        if meta.flag(name, False):
            raise ModelInvalid(f"{meta.file}: metadata '{name}' is set; that is not supported")
    theta, scaling = rope(meta, head_dim)
    if scaling.kind != "none":
        raise ModelInvalid(f"{meta.file}: rotary scaling '{scaling.kind}' is not supported; known: default")
    window = meta.integer("sliding_window", 0, CONTEXT_MAX, 0 if _is_null(meta, "sliding_window") else WINDOW)
    return ModelConfig(
        family="gemma2", layers=layers, width=meta.integer("hidden_size", 1, WIDTH_MAX, 2304), heads=heads, kv_heads=kv_heads,
        head_dim=head_dim, hidden=meta.integer("intermediate_size", 1, WIDTH_MAX * 8, 9216),
        vocab=meta.integer("vocab_size", 1, VOCAB_MAX, 256000),
        context=meta.integer("max_position_embeddings", 1, CONTEXT_MAX, 8192), eps=meta.real("rms_norm_eps", 0.0, 1.0, 1e-6),
        rope_theta=theta, local_rope_theta=theta, rope_interleaved=False, tied=meta.flag("tie_word_embeddings", True),
        activation=meta.choice("hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh"),
        query_scale=meta.real("query_pre_attn_scalar", 1e-6, 1e6, 256.0) ** -0.5,
        score_softcap=_cap(meta, "attn_logit_softcapping", SCORE_CAP),
        final_softcap=_cap(meta, "final_logit_softcapping", FINAL_CAP),
        window=window, local=layer_types(meta, layers, PERIOD) if window else (),
    )


def _is_null(meta: Metadata, key: str) -> bool:
    """Whether the file says that there is none, unlike one that leaves the key out."""
    return key in meta.values and meta.values[key] is None


def _cap(meta: Metadata, key: str, default: float) -> float:
    return meta.real(key, 0.0, 1e6, 0.0 if _is_null(meta, key) else default)


def _check_heads(heads: int, kv_heads: int, head_dim: int, file: str) -> None:
    if heads % kv_heads:
        raise ModelInvalid(f"{file}: {heads} query heads do not divide evenly over {kv_heads} key-value heads")
    if head_dim % 2:
        raise ModelInvalid(f"{file}: heads have {head_dim} numbers; they must be even")


def tiny(*, layers: int = 4, width: int = 96, heads: int = 4, kv_heads: int = 2, head_dim: int = 16, hidden: int = 160,
         vocab: int = 211, context: int = 256, **more: object) -> ModelConfig:
    """A config small enough for property tests; any field can be overridden."""
    fields = dict(eps=1e-6, rope_interleaved=False, activation="gelu_tanh", window=7, local=pattern(layers, PERIOD),
                  score_softcap=5.0, final_softcap=4.0) | more
    return ModelConfig("gemma2", layers, width, heads, kv_heads, head_dim, hidden, vocab, context, **fields)  # type: ignore[arg-type]
