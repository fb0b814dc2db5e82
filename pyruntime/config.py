"""A model's hyperparameters: read once from a file's metadata, every number checked against a range, then immutable."""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from .errors import ModelInvalid

LAYERS_MAX, WIDTH_MAX, HEADS_MAX, VOCAB_MAX, CONTEXT_MAX = 1024, 1 << 17, 1024, 1 << 22, 1 << 24


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies stretch beyond the trained context. kind: none, linear (all by `factor`), factors (one each).

    mscale: what cosines and sines are multiplied by."""

    kind: str = "none"
    factor: float = 1.0
    factors: tuple[float, ...] = ()    # a divisor per frequency, as GGUF stores Llama 3's scaling
    mscale: float = 1.0


@dataclass(frozen=True, slots=True)
class Latent:
    """Attention over compressed keys and values: what a token keeps is `rank` numbers and the `rope` rotated ones of a shared key.

    A head's query has `keys` plain numbers and `rope` rotated ones; its result has `values`. q_rank: what queries are made
    from, 0 = the residual. eps: of the norms of the latents."""

    rank: int
    q_rank: int
    keys: int
    rope: int
    values: int
    eps: float = 1e-6


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture: each token meets `used` of `count` feed-forward blocks of `hidden` numbers, and one of `shared` (0: none).

    The first `dense` layers have none of it. The rest is what plan.Route does."""

    count: int
    used: int
    hidden: int
    shared: int = 0
    dense: int = 0
    sigmoid: bool = False
    biased: bool = False               # choices are made by scores plus a bias of each expert
    groups: int = 1
    groups_kept: int = 1
    group_best: int = 1
    normalize: bool = False
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class StateSpace:
    """A Mamba-2 mixer: `heads` of `head_dim` with `numbers` state numbers each element, B and C shared by the heads of a group."""

    heads: int
    head_dim: int
    groups: int
    numbers: int
    taps: int                          # inputs the convolution meets
    dt_min: float = 0.0                # the time step's limits
    dt_max: float = math.inf
    bias: bool = False                 # both projections add one
    conv_bias: bool = True


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What a family's `plan(config)` reads. Widths in elements, `context` in tokens."""

    family: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    context: int
    eps: float = 1e-5
    rope_theta: float = 1e4
    rope_dims: int = 0                 # 0 = head_dim
    rope_interleaved: bool = True
    rope_scaling: RopeScaling = RopeScaling()
    tied: bool = True
    qkv_bias: bool = False
    out_bias: bool = False             # attention's output projection adds one
    qk_norm: bool = False
    activation: str = "silu"
    query_scale: float = 0.0           # what scores are multiplied by; 0 = 1 / sqrt(head_dim)
    score_softcap: float = 0.0         # 0 = none
    final_softcap: float = 0.0         # 0 = none
    window: int = 0                    # tokens a local layer sees
    local: tuple[bool, ...] = ()       # which layers are local; () = none
    local_rope_theta: float = 1e4
    state_space: StateSpace | None = None
    latent: Latent | None = None       # kv_heads is then 1, and head_dim what a token keeps
    experts: Experts | None = None
    k_format: str = "f16"
    v_format: str = "f16"


def embedding_rows(tensors: Mapping[str, tuple[int, ...]], file: str) -> int:
    """Rows of a file's embedding, which is the vocabulary; ModelInvalid when there is none or too many."""
    if (shape := tensors.get("token_embd.weight")) is None:
        raise ModelInvalid(f"{file}: tensor 'token_embd.weight' is missing")
    if not 1 <= shape[0] <= VOCAB_MAX:
        raise ModelInvalid(f"{file}: tensor 'token_embd.weight' has {shape[0]} rows; 1 to {VOCAB_MAX} tokens are supported")
    return shape[0]


class Metadata:
    """Typed, range-checked reading of a file's key-value metadata; errors name the file and the key.

    A value that is None (JSON's null) is as good as absent. `within` is where `values` lie inside a larger object.
    """

    def __init__(self, values: Mapping[str, object], file: str, within: str = "") -> None:
        self.values = values
        self.file = file
        self.within = within

    def _get(self, key: str, default: object, wanted: str) -> object:
        if (value := self.values.get(key)) is not None:
            return value
        if default is None:
            raise ModelInvalid(f"{self._at(key)} is missing; the file needs it as {wanted}")
        return default

    def _at(self, key: str) -> str:
        return f"{self.file}: metadata '{self.within}{key}'"

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """A whole number within [low, high]."""
        value = self._get(key, default, "a whole number")
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ModelInvalid(f"{self._at(key)} is {_short(value)}; it must be a whole number, {low} to {high}")
        return value

    def real(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """A finite number within [low, high]."""
        value = self._get(key, default, "a number")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise ModelInvalid(f"{self._at(key)} is {_short(value)}; it must be a number, {low:g} to {high:g}")
        return float(value)

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._get(key, default, "text")
        if not isinstance(value, str):
            raise ModelInvalid(f"{self._at(key)} is {_short(value)}; it must be text")
        return value

    def flag(self, key: str, default: bool | None = None) -> bool:
        """True or false."""
        value = self._get(key, default, "true or false")
        if not isinstance(value, bool):
            raise ModelInvalid(f"{self._at(key)} is {_short(value)}; it must be true or false")
        return value

    def choice(self, key: str, known: Mapping[str, str], default: str | None = None) -> str:
        """What one of the known words stands for."""
        if (value := self.text(key, default)) not in known:
            raise ModelInvalid(f"{self._at(key)} is {_short(value)}, which is not supported; known: {', '.join(known)}")
        return known[value]

    def choices(self, key: str, known: Mapping[str, str], count: int) -> list[str]:
        """What a list of `count` known words stands for."""
        value = self._get(key, None, f"{count} words")
        if not isinstance(value, list) or len(value) != count or not all(isinstance(v, str) and v in known for v in value):
            raise ModelInvalid(f"{self._at(key)} is {_short(value)}; it must be {count} of {', '.join(known)}")
        return [known[v] for v in value]

    def inside(self, key: str) -> Metadata:
        """An object within this one, empty where there is none."""
        value = self._get(key, {}, "an object")
        if not isinstance(value, Mapping):
            raise ModelInvalid(f"{self._at(key)} is {_short(value)}; it must be an object")
        return Metadata(value, self.file, f"{self.within}{key}.")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
