"""NVFP4: 64 weights of FP4 (E2M1) in 4 sub-blocks of 16 under a scale of unsigned E4M3 each, value = (s / 2) * VALUES[n] of MXFP4.

file (36): s u8[4], exponent above 3 bits of mantissa, bias 7; the eighth bit is not looked at, and 0x7f is 0
           | n u4[64], each 8 bytes hold 16 weights, 8 low and 8 high. The tile holds s / 2 as f16, which has all of them.
"""
from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import r16
from .mxfp4 import VALUES

NAME, GGML_TYPE, BLOCK_WEIGHTS, BLOCK_BYTES, PACKED_BYTES = "NVFP4", 40, 64, 36, 640
TILE = r16.Tile(64, (np.float16,), (4,))


def half_scale(s: NDArray[np.uint8]) -> NDArray[np.float16]:
    """s / 2."""
    exponent, mantissa = (s >> 3 & 15).astype(np.float32), (s & 7).astype(np.float32)
    small, large = mantissa * 2.0**-9, (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return np.where(s == 0x7F, 0, np.where(exponent == 0, small, large) / 2).astype(np.float16)


def fields(blocks: NDArray[np.uint8]) -> tuple[NDArray[Any], ...]:
    """s / 2, n."""
    blocks = blocks.reshape(-1, 36)
    return half_scale(blocks[:, :4]), r16.split_runs(blocks[:, 4:], 4, 8)


def value(scale: NDArray[Any], n: NDArray[Any]) -> NDArray[np.float32]:
    return scale.astype(np.float32)[..., None] * np.array(VALUES, np.float32)[n].reshape(-1, 4, 16)


def quantize(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    x = np.asarray(x, np.float32).reshape(-1, 4, 16)
    known = half_scale(np.arange(0x7F, dtype=np.uint8)).astype(np.float32)  # ascending
    wanted = np.abs(x).max(axis=2) / np.float32(VALUES[7])
    s = np.searchsorted((known[1:] + known[:-1]) / 2, wanted).astype(np.uint8)
    n = r16.nearest(x * r16.inverse(known[s])[..., None], VALUES)
    return r16.bytes_of(s, r16.join_runs(n.reshape(-1, 64), 4, 8))


def dequantize(blocks: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    return value(*fields(blocks)).reshape(shape)


def pack(blocks: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.uint8]:
    return TILE.pack(fields(blocks), rows, k)


def unpack(packed: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.float32]:
    return value(*TILE.unpack(packed, rows, k, (4, 64))).reshape(rows, k)
