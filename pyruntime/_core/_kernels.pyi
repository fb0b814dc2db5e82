"""Every kernel of every instruction set on numpy arrays: doors for tests and benchmarks.

csrc/isa/kernels.h and the headers of csrc/ops say what each kernel computes. A format is named by its index in
`_weights.formats()`. Arrays are contiguous; wrong shapes raise FieldInvalid.
"""
from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

class IsaInfo(NamedTuple):
    """One line of csrc/defs/isas.def; `missing` names what this CPU lacks, "" when it can run."""

    name: str
    missing: str

def isas() -> tuple[IsaInfo, ...]: ...
def act_bytes(k: int) -> int:
    """Bytes of one token's activations (csrc/quant/act.h)."""

def aligned(shape: int | tuple[int, ...], dtype: Any = ...) -> NDArray[Any]:
    """Zeros at a multiple of 64 bytes."""

class Kernels:
    """One set's kernels. Calling those of a set the CPU lacks ends the process."""

    def __init__(self, which: str | int) -> None:
        """By a set's name, or by the address of a struct rt_kernels in another library."""
    @property
    def name(self) -> str: ...
    def has_cache_format(self, format: int) -> bool: ...
    def quantize(self, x: F32, norm_kind: int = 0, norm: F32 | None = None, norm_bias: F32 | None = None,
                 eps: float = 0.0, path: int = 0) -> U8:
        """x [k] -> activations [act_bytes(k)] of a path (machine.PATHS)."""
    def linear(self, format: int, packed: U8, k: int, first: int, last: int, acts: U8, out: F32 | None = None,
               path: int = 0) -> F32:
        """acts [m, act_bytes(k)] -> y [m, 16 * (last - first)]."""
    def embed(self, format: int, packed: U8, k: int, row: int, scale: float = 1.0) -> F32: ...
    def norm_add(self, x: F32, norm: F32, eps: float, y: F32) -> F32: ...
    def add_scaled(self, x: F32, bias: F32 | None, scale: float, y: F32) -> F32: ...
    def add_bias(self, x: F32, bias: F32) -> F32: ...
    def gate(self, activation: int, gate: F32, up: F32 | None) -> F32: ...
    def rope_head(self, x: F32, norm: F32 | None, eps: float, cos: F32 | None, sin: F32 | None, interleaved: bool) -> F32: ...
    def store(self, part: str, format: int, x: F32, slot: int, page: U8) -> None:
        """x [head_dim] into a page in place; part "k" or "v"."""
    def attention(self, q: F32, k: U8, v: U8 | None, stored: NDArray[np.int32], positions: NDArray[np.int32], scale: float,
                  window: int = 0, softcap: float = 0.0, k_format: int = 1, v_format: int = 1,
                  trees: NDArray[np.uint64] | None = None, fresh: int = 0, first_block: int = 0,
                  tile: bool = False, path: int = 0) -> tuple[F32, F32, F32]:
        """q [tokens, share, head_dim] at positions [tokens] over k and v [blocks, page bytes] with positions stored
        [blocks, 16] -> partial, max, sum, token by token or as one tile. v None: k holds latent rows, which are both; path 1
        rounds to bf16."""
    def attention_join(self, parts: list[tuple[F32, F32, F32]], head_dim: int, sinks: F32 | None = None) -> F32:
        """Partial results in order -> [tokens, share, head_dim]."""
    def conv(self, x: F32, w: F32, bias: F32 | None, state: F32, activation: int) -> tuple[F32, F32]:
        """x [tokens, channels], w [channels, taps], state [taps - 1, channels] -> out, state after."""
    def scan(self, xbc: F32, dt: F32, decay: F32, d: float, state: F32) -> tuple[F32, F32]:
        """xbc [tokens, head_dim + 2 numbers], dt and decay [tokens], state [numbers, head_dim] -> out, state after."""
    def scan_block(self, xbc: F32, dt: F32, decay: F32, d: float, state: F32, first: int, ends: bool) -> tuple[F32, F32]:
        """Up to 16 tokens of the same; out of those from `first` on, state after them if the block `ends`, else before."""
    def gated_norm(self, x: F32, gate: F32, norm: F32, eps: float, gate_last: bool) -> F32: ...
    def scale_cap(self, x: F32, scale: float, softcap: float) -> F32: ...
    def argmax(self, x: F32) -> tuple[int, float, bool]: ...
    def exp_sum(self, x: F32, largest: float) -> float: ...
