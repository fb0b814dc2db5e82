"""F8_E4M3: 8-bit floats of 4 bits of exponent (bias 7) and 3 of mantissa, without infinities: up to 448; 0x7f and 0xff are NaN."""
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import r16

NAME, GGML_TYPE, BLOCK_WEIGHTS, BLOCK_BYTES, PACKED_BYTES = "F8_E4M3", r16.NO_GGML_TYPE, 1, 1, 1024


def widen(bits: NDArray[np.uint8]) -> NDArray[np.float32]:
    """E4M3 -> f32: as an f16 of the same digits it is 2^-8 of itself."""
    digits = (bits.astype(np.uint16) & 0x80) << 8 | (bits.astype(np.uint16) & 0x7F) << 7
    values = digits.view(np.float16).astype(np.float32) * np.float32(256)
    return np.where((bits & 0x7F) == 0x7F, np.float32(np.nan), values)


def narrow(x: NDArray[np.float32], sizes: NDArray[np.float32], nan: int) -> NDArray[np.uint8]:
    """f32 -> codes, to nearest even. sizes: the numbers of codes 0, 1, .. and what would follow, which everything above is."""
    size = np.abs(x)
    middles = (sizes[1:] + sizes[:-1]) / 2
    code = np.searchsorted(middles, size)
    code += (code % 2 == 1) & (code < len(middles)) & (size == middles[np.minimum(code, len(middles) - 1)])
    code = np.where(np.isnan(x), nan, code)
    return (code | np.where(np.signbit(x), 0x80, 0)).astype(np.uint8)


def dequantize(blocks: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    return widen(np.asarray(blocks, np.uint8)).reshape(shape)


def quantize(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    finite = widen(np.arange(0x7F, dtype=np.uint8))
    return narrow(np.asarray(x, np.float32).reshape(-1), np.append(finite, np.float32(480)), 0x7F)


def pack(blocks: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.uint8]:
    return r16.pack_elements(np.asarray(blocks, np.uint8), rows, k)


def unpack(packed: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.float32]:
    return widen(r16.unpack_elements(packed, np.uint8, rows, k))
