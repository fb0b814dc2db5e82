"""What a family says about Hugging Face folders: where each of a plan's weights stands, and what config.json's words mean.

Recipes are data, a closed set: a source (`weights/folder.py`) carries them out, piece by piece, and no family touches a tensor.
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Union

from .config import CONTEXT_MAX, Metadata, RopeScaling
from .errors import ModelInvalid


@dataclass(frozen=True, slots=True)
class Taken:
    """Where one of a plan's weights comes from in a checkpoint. Steps are taken in the order of the fields.

    A matrix is [rows][k], a vector [rows]; dimensions of 1 that the plan's weight lacks do not count ([d][1][4] is [d][4]).
    """

    tensor: str                          # its name there, without the family's optional HF_PREFIXES
    at: int | None = None                # of a stack [n][...], this one: experts in one tensor
    transpose: bool = False              # the checkpoint has [k][rows], as GPT-2's Conv1D
    rows: tuple[int, int] | None = None  # only these, counted after transposing: parts of a fused QKV
    every: int = 0                       # `rows` counts anew in each block of so many rows: q, k, v of a head side by side
    turn: bool = False                   # what is taken of each block is transposed, block by block: [k][rows] of each head
    neg_exp: bool = False                # -exp(x) of every value: Mamba's A_log
    plus: float = 0.0                    # added to every value: Gemma's norms hold w and mean 1 + w


#: One weight's source; several are concatenated along rows.
Recipe = Union[Taken, tuple[Taken, ...]]

#: config.json's names for activations, and plan.Activation's. `gelu` is the erf form; the rest of GPT-2's kin use tanh's.
ACTIVATIONS: Mapping[str, str] = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}


def rope(meta: Metadata, dims: int, theta: float = 1e4, kind: str = "") -> tuple[float, RopeScaling]:
    """(theta, scaling) of `dims` rotated dimensions, from `rope_parameters` or from `rope_theta` and `rope_scaling`.

    theta: where the file names none. kind: the layers' kind, where `rope_parameters` tells several apart.
    """
    parameters = meta.inside("rope_parameters")
    if kind and kind in parameters.values:
        parameters = parameters.inside(kind)
    theta = parameters.real("rope_theta", 1.0, 1e12, meta.real("rope_theta", 1.0, 1e12, theta))
    scaling = parameters if parameters.values else meta.inside("rope_scaling")
    return theta, _scaling(scaling, dims, theta)


def _scaling(meta: Metadata, dims: int, theta: float) -> RopeScaling:
    name = meta.text("rope_type", meta.text("type", "default"))
    if name == "default":
        return RopeScaling()
    if name == "linear":
        return RopeScaling("linear", meta.real("factor", 1e-3, 1e4))
    if name == "llama3":
        return RopeScaling("factors", factors=_llama3(meta, dims, theta))
    if name == "yarn":
        return _yarn(meta, dims, theta)
    raise ModelInvalid(f"{meta.file}: rotary scaling '{name}' is not supported; known: default, linear, llama3, yarn")


def _llama3(meta: Metadata, dims: int, theta: float) -> tuple[float, ...]:
    """A divisor per pair: 1 for short waves, `factor` for those longer than the trained context, between them a ramp."""
    factor = meta.real("factor", 1e-3, 1e4)
    low, high = meta.real("low_freq_factor", 1e-3, 1e6), meta.real("high_freq_factor", 1e-3, 1e6)
    trained = meta.integer("original_max_position_embeddings", 1, CONTEXT_MAX)
    if high <= low:
        raise ModelInvalid(f"{meta.file}: rotary scaling's high_freq_factor {high:g} must be above its low_freq_factor {low:g}")
    divisors = []
    for i in range(dims // 2):
        turns = trained * theta ** (-2.0 * i / dims) / (2 * math.pi)    # of this pair, within the trained context
        share = min(max((turns - low) / (high - low), 0.0), 1.0)
        divisors.append(1.0 / ((1 - share) / factor + share))
    return tuple(divisors)


def _yarn(meta: Metadata, dims: int, theta: float) -> RopeScaling:
    factor = meta.real("factor", 1.0, 1e4)
    scale, all_dim = meta.real("mscale", 0.0, 1e2, 0.0), meta.real("mscale_all_dim", 0.0, 1e2, 0.0)
    grown = yarn_mscale(factor, scale) / yarn_mscale(factor, all_dim) if scale and all_dim else yarn_mscale(factor, 1.0)
    factors = yarn_factors(dims, theta, factor, meta.integer("original_max_position_embeddings", 1, CONTEXT_MAX),
                           meta.real("beta_fast", 1e-3, 1e6, 32.0), meta.real("beta_slow", 1e-3, 1e6, 1.0),
                           meta.flag("truncate", True))
    return RopeScaling("factors", factor, factors, meta.real("attention_factor", 1e-3, 1e3, grown))


def yarn_mscale(factor: float, weight: float) -> float:
    """1 + weight ln(factor) / 10: how much sharper attention gets over a context `factor` times the trained one."""
    return 1.0 + 0.1 * weight * math.log(factor) if factor > 1 else 1.0


def yarn_factors(dims: int, theta: float, factor: float, trained: int, fast: float = 32.0, slow: float = 1.0,
                 whole: bool = True) -> tuple[float, ...]:
    """YaRN's divisor per pair (Peng et al. 2023): 1 for pairs that turn more than `fast` times within the trained context,
    `factor` for those that turn less than `slow` times, between them a ramp over the pair's index. whole: its ends are
    rounded to whole indices."""
    low, high = (dims * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta)) for turns in (fast, slow))
    if whole:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    if low == high:
        high += 0.001
    shares = [min(max((i - low) / (high - low), 0.0), 1.0) for i in range(dims // 2)]
    return tuple(1.0 / (share / factor + 1 - share) for share in shares)
