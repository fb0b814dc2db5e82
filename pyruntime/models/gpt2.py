"""GPT-2: learned positions, LayerNorm with biases, one matrix for q, k and v, a feed-forward block without a gate
(Radford et al. 2019).

Hugging Face's checkpoints hold every matrix of a layer as [k][rows] (their Conv1D) and a buffer or two with attention's mask.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from ..config import CONTEXT_MAX, HEADS_MAX, LAYERS_MAX, VOCAB_MAX, WIDTH_MAX, Metadata, ModelConfig, embedding_rows
from ..errors import ModelInvalid
from ..plan import (
    Activation,
    Attention,
    CacheGroup,
    Embed,
    LinearAdd,
    Logits,
    NormKind,
    NormLinear,
    Plan,
    RopeKV,
    Sample,
    Slot,
    Weight,
)
from ..recipe import ACTIVATIONS, Recipe, Taken

ARCHITECTURES = ("gpt2",)
MODEL_TYPES = ("gpt2",)
HF_PREFIXES = ("transformer.",)
HF_SKIPPED = ("h.*.attn.bias", "h.*.attn.masked_bias", "lm_head.weight")    # masks; the head of a tied model is its embedding
CONFIG_TENSORS: tuple[str, ...] = ()


def from_gguf(meta: Metadata, tensors: Mapping[str, tuple[int, ...]], vector: Callable[[str], Sequence[float]]) -> ModelConfig:
    """Config from GGUF metadata and the tensors' shapes ([rows, k] order)."""
    a = "gpt2"
    width, heads = meta.integer(f"{a}.embedding_length", 1, WIDTH_MAX), meta.integer(f"{a}.attention.head_count", 1, HEADS_MAX)
    return ModelConfig(
        family=a, layers=meta.integer(f"{a}.block_count", 1, LAYERS_MAX), width=width, heads=heads, kv_heads=heads,
        head_dim=_head_dim(width, heads, meta.file), hidden=meta.integer(f"{a}.feed_forward_length", 1, WIDTH_MAX * 8),
        vocab=embedding_rows(tensors, meta.file), context=meta.integer(f"{a}.context_length", 1, CONTEXT_MAX),
        eps=meta.real(f"{a}.attention.layer_norm_epsilon", 0.0, 1.0, 1e-5), tied="output.weight" not in tensors,
        activation="gelu_tanh",
    )


def from_hf(meta: Metadata, tensors: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """Config from config.json and the tensors' shapes, by their names there. What it leaves out is as in `transformers`."""
    for name in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        if meta.flag(name, False):
            raise ModelInvalid(f"{meta.file}: metadata '{name}' is set; that is not supported")
    width, heads = meta.integer("n_embd", 1, WIDTH_MAX, 768), meta.integer("n_head", 1, HEADS_MAX, 12)
    return ModelConfig(
        family="gpt2", layers=meta.integer("n_layer", 1, LAYERS_MAX, 12), width=width, heads=heads, kv_heads=heads,
        head_dim=_head_dim(width, heads, meta.file), hidden=meta.integer("n_inner", 1, WIDTH_MAX * 8, 4 * width),
        vocab=meta.integer("vocab_size", 1, VOCAB_MAX, 50257), context=meta.integer("n_positions", 1, CONTEXT_MAX, 1024),
        eps=meta.real("layer_norm_epsilon", 0.0, 1.0, 1e-5), tied=meta.flag("tie_word_embeddings", True),
        activation=meta.choice("activation_function", ACTIVATIONS, "gelu_new"),
        query_scale=0.0 if meta.flag("scale_attn_weights", True) else 1.0,
    )


def _head_dim(width: int, heads: int, file: str) -> int:
    if width % heads:
        raise ModelInvalid(f"{file}: a width of {width} does not divide evenly over {heads} heads")
    return width // heads


def hf_weights(config: ModelConfig) -> dict[str, Recipe]:
    """Where each of the plan's weights stands in a checkpoint."""
    outside = {"token_embd": "wte", "position_embd": "wpe", "output_norm": "ln_f", "output": "lm_head"}
    parts = {"attn_norm": "ln_1", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj", "ffn_norm": "ln_2",
             "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}

    def there(weight: Weight) -> Taken:
        *layer, part, kind = weight.name.removeprefix("blk.").split(".")
        if not layer:
            return Taken(f"{outside[part]}.{kind}")
        return Taken(f"h.{layer[0]}.{parts[part]}.{kind}", transpose=weight.k > 0)

    return {weight.name: there(weight) for weight in plan(config).weights}


def plan(config: ModelConfig) -> Plan:
    """The op list: six ops a layer around one residual slot `x`."""
    c = config
    q = c.heads * c.head_dim
    weights: list[Weight] = []
    cuts = [0]

    def need(name: str, rows: int, k: int = 0) -> str:
        weights.append(Weight(name, rows, k))
        return name

    def norm(name: str) -> dict:
        return dict(norm=need(name + ".weight", c.width), norm_bias=need(name + ".bias", c.width), norm_kind=NormKind.LAYER,
                    eps=c.eps)

    ops: list = [Embed("x", need("token_embd.weight", c.vocab, c.width), need("position_embd.weight", c.context, c.width))]
    for i in range(c.layers):
        b = f"blk.{i}."
        if i:
            cuts.append(len(ops))
        ops += [
            NormLinear("x", "qkv", **norm(b + "attn_norm"), w0=need(b + "attn_qkv.weight", 3 * q, c.width),
                       b0=need(b + "attn_qkv.bias", 3 * q)),
            RopeKV("qkv", "kv", layer=i, heads=c.heads, rope=None),
            Attention("qkv", "mixed", "kv", layer=i, heads=c.heads, scale=c.query_scale or 1.0 / math.sqrt(c.head_dim)),
            LinearAdd("mixed", "x", need(b + "attn_output.weight", c.width, q), need(b + "attn_output.bias", c.width)),
            NormLinear("x", "hidden", **norm(b + "ffn_norm"), w0=need(b + "ffn_up.weight", c.hidden, c.width),
                       b0=need(b + "ffn_up.bias", c.hidden), activation=Activation[c.activation.upper()]),
            LinearAdd("hidden", "x", need(b + "ffn_down.weight", c.width, c.hidden), need(b + "ffn_down.bias", c.width)),
        ]
    head = "token_embd.weight" if c.tied else need("output.weight", c.vocab, c.width)
    ops += [Logits("x", "logits", weight=head, **norm("output_norm")), Sample("logits")]
    return Plan(
        ops=tuple(ops),
        slots=(Slot("x", c.width), Slot("qkv", 3 * q), Slot("mixed", q), Slot("hidden", c.hidden),
               Slot("logits", c.vocab, per_row=True)),
        weights=tuple(weights),
        groups=(CacheGroup("kv", c.layers, c.heads, c.head_dim, k_format=c.k_format, v_format=c.v_format),),
        ropes=(), vocab=c.vocab, context=c.context, width=c.width, cuts=tuple(cuts),
    )


def tiny(*, layers: int = 2, width: int = 96, heads: int = 6, kv_heads: int = 6, head_dim: int = 16, hidden: int = 160,
         vocab: int = 211, context: int = 256, **more: object) -> ModelConfig:
    """A config small enough for property tests; any field can be overridden."""
    fields = dict(activation="gelu_tanh") | more
    return ModelConfig("gpt2", layers, width, heads, kv_heads, head_dim, hidden, vocab, context, **fields)  # type: ignore[arg-type]
