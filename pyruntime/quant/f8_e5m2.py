"""F8_E5M2: 8-bit floats of 5 bits of exponent and 2 of mantissa, the upper half of an f16: up to 57344, infinities and NaN."""
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import r16
from .f8_e4m3 import narrow

NAME, GGML_TYPE, BLOCK_WEIGHTS, BLOCK_BYTES, PACKED_BYTES = "F8_E5M2", r16.NO_GGML_TYPE, 1, 1, 1024


def widen(bits: NDArray[np.uint8]) -> NDArray[np.float32]:
    """E5M2 -> f32."""
    return (bits.astype(np.uint16) << 8).view(np.float16).astype(np.float32)


def dequantize(blocks: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    return widen(np.asarray(blocks, np.uint8)).reshape(shape)


def quantize(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    finite = widen(np.arange(0x7C, dtype=np.uint8))
    return narrow(np.asarray(x, np.float32).reshape(-1), np.append(finite, np.float32(65536)), 0x7E)


def pack(blocks: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.uint8]:
    return r16.pack_elements(np.asarray(blocks, np.uint8), rows, k)


def unpack(packed: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.float32]:
    return widen(r16.unpack_elements(packed, np.uint8, rows, k))
