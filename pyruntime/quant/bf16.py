"""BF16: the upper half of an f32, rounded to nearest even; a NaN stays one, made quiet."""
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import r16

NAME, GGML_TYPE, BLOCK_WEIGHTS, BLOCK_BYTES, PACKED_BYTES = "BF16", 30, 1, 2, 2048


def widen(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bf16 bits -> f32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def dequantize(blocks: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    return widen(np.frombuffer(blocks.tobytes(), np.uint16)).reshape(shape)


def quantize(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    bits = np.ascontiguousarray(x, np.float32).reshape(-1).view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x7FFF + (bits >> 16 & 1)) >> 16
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(nan, bits >> 16 | 0x40, rounded).astype(np.uint16).view(np.uint8)


def pack(blocks: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.uint8]:
    return r16.pack_elements(np.frombuffer(blocks.tobytes(), np.uint16), rows, k)


def unpack(packed: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.float32]:
    return widen(r16.unpack_elements(packed, np.uint16, rows, k))
