"""Mamba-2: a convolution and a selective state space in the place of attention, and no feed-forward block (Dao and Gu 2024).

What a layer keeps of a sequence is a state of constant size: the convolution's last inputs and the recurrence's numbers. The
time step's limits hold for every token; `transformers` applies them to prompts alone.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from ..config import CONTEXT_MAX, HEADS_MAX, LAYERS_MAX, VOCAB_MAX, WIDTH_MAX, Metadata, ModelConfig, StateSpace, embedding_rows
from ..errors import ModelInvalid
from ..plan import (
    Activation,
    CacheGroup,
    Conv,
    Embed,
    GatedNorm,
    LinearAdd,
    Logits,
    NormLinear,
    Plan,
    Sample,
    Scan,
    Slot,
    Weight,
)
from ..recipe import ACTIVATIONS, Recipe, Taken

ARCHITECTURES = ("mamba2",)
MODEL_TYPES = ("mamba2",)
HF_PREFIXES = ("backbone.",)
HF_SKIPPED = ("lm_head.weight",)    # the head of a tied model is its embedding
CONFIG_TENSORS: tuple[str, ...] = ()
NUMBERS_MAX, TAPS_MAX = 4096, 16
NO_LIMIT = 1 << 20                  # tokens, where a file names no context: the state does not grow


def from_gguf(meta: Metadata, tensors: Mapping[str, tuple[int, ...]], vector: Callable[[str], Sequence[float]]) -> ModelConfig:
    """Config from GGUF metadata and the tensors' shapes ([rows, k] order)."""
    a = "mamba2"
    inner, heads = meta.integer(f"{a}.ssm.inner_size", 1, WIDTH_MAX), meta.integer(f"{a}.ssm.time_step_rank", 1, HEADS_MAX)
    space = StateSpace(
        heads=heads, head_dim=_parts(inner, heads, meta.file), groups=meta.integer(f"{a}.ssm.group_count", 1, heads, 1),
        numbers=meta.integer(f"{a}.ssm.state_size", 1, NUMBERS_MAX), taps=meta.integer(f"{a}.ssm.conv_kernel", 2, TAPS_MAX),
        conv_bias="blk.0.ssm_conv1d.bias" in tensors)
    return _config(
        meta, space, layers=meta.integer(f"{a}.block_count", 1, LAYERS_MAX),
        width=meta.integer(f"{a}.embedding_length", 1, WIDTH_MAX), vocab=embedding_rows(tensors, meta.file),
        context=meta.integer(f"{a}.context_length", 1, CONTEXT_MAX, NO_LIMIT),
        eps=meta.real(f"{a}.attention.layer_norm_rms_epsilon", 0.0, 1.0, 1e-5), tied="output.weight" not in tensors)


def from_hf(meta: Metadata, tensors: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """Config from config.json and the tensors' shapes, by their names there. What it leaves out is as in `transformers`."""
    width, expand = meta.integer("hidden_size", 1, WIDTH_MAX, 4096), meta.integer("expand", 1, 64, 2)
    heads, head_dim = meta.integer("num_heads", 1, HEADS_MAX, 128), meta.integer("head_dim", 1, WIDTH_MAX, 64)
    if heads * head_dim != width * expand:
        raise ModelInvalid(f"{meta.file}: {heads} heads of {head_dim} are not hidden_size {width} times expand {expand}")
    dt_min, dt_max = _limits(meta)
    space = StateSpace(
        heads=heads, head_dim=head_dim, groups=meta.integer("n_groups", 1, heads, 8),
        numbers=meta.integer("state_size", 1, NUMBERS_MAX, 128), taps=meta.integer("conv_kernel", 2, TAPS_MAX, 4),
        dt_min=dt_min, dt_max=dt_max, bias=meta.flag("use_bias", False), conv_bias=meta.flag("use_conv_bias", True))
    return _config(
        meta, space, layers=meta.integer("num_hidden_layers", 1, LAYERS_MAX, 64), width=width,
        vocab=meta.integer("vocab_size", 1, VOCAB_MAX, 32768), context=NO_LIMIT,
        eps=meta.real("layer_norm_epsilon", 0.0, 1.0, 1e-5), tied=meta.flag("tie_word_embeddings", False),
        activation=meta.choice("hidden_act", ACTIVATIONS, "silu"))


def _limits(meta: Metadata) -> tuple[float, float]:
    """The least and the largest time step; the largest may be infinite."""
    found = meta.values.get("time_step_limit")
    limits = [0.0, math.inf] if found is None else found
    if not isinstance(limits, (list, tuple)) or len(limits) != 2 \
            or not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in limits) \
            or not 0 <= limits[0] <= limits[1] or limits[0] == math.inf:
        raise ModelInvalid(f"{meta.file}: metadata 'time_step_limit' must be two numbers, 0 or more and no less than that")
    return float(limits[0]), float(limits[1])


def _parts(whole: int, parts: int, file: str) -> int:
    if whole % parts:
        raise ModelInvalid(f"{file}: an inner width of {whole} does not divide evenly over {parts} heads")
    return whole // parts


def _config(meta: Metadata, space: StateSpace, **fields: object) -> ModelConfig:
    if space.heads % space.groups:
        raise ModelInvalid(f"{meta.file}: {space.heads} heads do not divide evenly over {space.groups} groups")
    return ModelConfig("mamba2", heads=0, kv_heads=0, head_dim=0, hidden=0, state_space=space, **fields)  # type: ignore[arg-type]


def hf_weights(config: ModelConfig) -> dict[str, Recipe]:
    """Where each of the plan's weights stands in a checkpoint."""
    outside = {"token_embd.weight": "embeddings.weight", "output_norm.weight": "norm_f.weight", "output.weight": "lm_head.weight"}
    parts = {"attn_norm": "norm", "ssm_in": "mixer.in_proj", "ssm_conv1d": "mixer.conv1d", "ssm_norm": "mixer.norm",
             "ssm_out": "mixer.out_proj"}
    single = {"ssm_a": "A_log", "ssm_d": "D", "ssm_dt.bias": "dt_bias"}

    def there(name: str) -> Taken:
        if name in outside:
            return Taken(outside[name])
        _, layer, rest = name.split(".", 2)
        if rest in single:
            return Taken(f"layers.{layer}.mixer.{single[rest]}", neg_exp=rest == "ssm_a")
        part, kind = rest.split(".")
        return Taken(f"layers.{layer}.{parts[part]}.{kind}")

    return {weight.name: there(weight.name) for weight in plan(config).weights}


def plan(config: ModelConfig) -> Plan:
    """The op list: five ops a layer around one residual slot `x`. `zxbcdt` is what a layer makes of it: the gate z, the
    convolution's inputs x, B and C, and the time steps dt."""
    c, s = config, config.state_space
    assert s is not None
    inner = s.heads * s.head_dim
    channels = inner + 2 * s.groups * s.numbers
    weights = [Weight("token_embd.weight", c.vocab, c.width)]
    ops: list = [Embed("x", "token_embd.weight")]
    cuts = [0]

    def need(name: str, rows: int, k: int = 0, shape: tuple[int, ...] = ()) -> str:
        weights.append(Weight(name, rows, k, shape))
        return name

    for i in range(c.layers):
        b = f"blk.{i}."
        if i:
            cuts.append(len(ops))
        wide = inner + channels + s.heads
        ops += [
            NormLinear("x", "zxbcdt", norm=need(b + "attn_norm.weight", c.width), w0=need(b + "ssm_in.weight", wide, c.width),
                       b0=need(b + "ssm_in.bias", wide) if s.bias else None, eps=c.eps),
            Conv("zxbcdt", "xbc", "conv", layer=i, taps=s.taps, first=inner, activation=Activation[c.activation.upper()],
                 weight=need(b + "ssm_conv1d.weight", channels * s.taps, shape=(channels, s.taps)),
                 bias=need(b + "ssm_conv1d.bias", channels) if s.conv_bias else None),
            Scan("xbc", "zxbcdt", "y", "scan", layer=i, heads=s.heads, groups=s.groups, numbers=s.numbers, first=inner + channels,
                 a=need(b + "ssm_a", s.heads), d=need(b + "ssm_d", s.heads), dt_bias=need(b + "ssm_dt.bias", s.heads),
                 dt_min=s.dt_min, dt_max=s.dt_max),
            GatedNorm("y", "zxbcdt", "y", groups=s.groups, eps=c.eps,
                      norm=need(b + "ssm_norm.weight", inner, shape=(s.groups, inner // s.groups))),
            LinearAdd("y", "x", need(b + "ssm_out.weight", c.width, inner), need(b + "ssm_out.bias", c.width) if s.bias else None),
        ]
    head = "token_embd.weight" if c.tied else need("output.weight", c.vocab, c.width)
    ops += [Logits("x", "logits", norm=need("output_norm.weight", c.width), weight=head, eps=c.eps), Sample("logits")]
    return Plan(
        ops=tuple(ops),
        slots=(Slot("x", c.width), Slot("zxbcdt", inner + channels + s.heads), Slot("xbc", channels), Slot("y", inner),
               Slot("logits", c.vocab, per_row=True)),
        weights=tuple(weights),
        groups=(CacheGroup("conv", c.layers, kind="state", width=(s.taps - 1) * channels),
                CacheGroup("scan", c.layers, kind="state", width=inner * s.numbers,
                           row=inner + s.groups * s.numbers + 2 * s.heads)),
        ropes=(), vocab=c.vocab, context=c.context, width=c.width, cuts=tuple(cuts),
    )


def tiny(*, layers: int = 2, width: int = 48, vocab: int = 211, context: int = 256, heads: int = 6, head_dim: int = 16,
         groups: int = 2, numbers: int = 16, taps: int = 4, bias: bool = False, conv_bias: bool = True, dt_min: float = 0.0,
         dt_max: float = math.inf, **more: object) -> ModelConfig:
    """A config small enough for property tests; any field can be overridden."""
    space = StateSpace(heads, head_dim, groups, numbers, taps, dt_min, dt_max, bias, conv_bias)
    return ModelConfig("mamba2", layers, width, 0, 0, 0, 0, vocab, context, state_space=space, **more)  # type: ignore[arg-type]
