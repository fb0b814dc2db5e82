"""Weight formats in numpy: one twin for each line of csrc/defs/formats.def and its header in csrc/quant.

The twins say what the C must give, bit for bit; the torch reference and the tests read weights through them.
"""
from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from . import (
    bf16,
    f8_e4m3,
    f8_e5m2,
    f16,
    f32,
    iq4_nl,
    iq4_xs,
    mxfp4,
    nvfp4,
    q2_k,
    q3_k,
    q4_0,
    q4_1,
    q4_k,
    q5_0,
    q5_1,
    q5_k,
    q6_k,
    q8_0,
    tq1_0,
    tq2_0,
)
from .r16 import NO_GGML_TYPE as NO_GGML_TYPE

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


class Format(Protocol):
    """A format: its line of the table and four functions. Arrays are [rows, k]; bytes are flat."""

    NAME: str
    GGML_TYPE: int  # NO_GGML_TYPE of a format that stands in no GGUF file
    BLOCK_WEIGHTS: int
    BLOCK_BYTES: int
    PACKED_BYTES: int  # one R16 tile, 16 rows x 64 or 256 k

    def dequantize(self, blocks: Bytes, shape: tuple[int, ...]) -> Floats:
        """Bytes as they stand in a file -> f32 of `shape`."""

    def quantize(self, x: Floats) -> Bytes:
        """f32 [..., k] -> blocks, rounded to nearest as the `gguf` package does where it can; k must be whole blocks."""

    def pack(self, blocks: Bytes, rows: int, k: int) -> Bytes:
        """Blocks of a matrix -> R16, padding included."""

    def unpack(self, packed: Bytes, rows: int, k: int) -> Floats:
        """R16 -> f32 [rows, k]."""


_TWINS = (f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, q2_k, q3_k, q4_k, q5_k, q6_k, iq4_nl, iq4_xs, mxfp4, nvfp4, tq1_0, tq2_0,
          f8_e4m3, f8_e5m2)

#: name -> format, in the order of csrc/defs/formats.def
FORMATS: dict[str, Format] = {m.NAME: m for m in _TWINS}  # type: ignore[misc]


def nbytes(format: Format, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of `shape` in a file."""
    weights = int(np.prod(shape, dtype=object))
    return weights // format.BLOCK_WEIGHTS * format.BLOCK_BYTES
