"""Q5_0: 32 weights of 5 bits under one f16 scale, value = d * (n - 16).

file (22): d f16 | u8[4], bit i is the fifth bit of n[i] | u4[32], byte i holds n[i] low and n[i + 16] high
"""
from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import r16

NAME, GGML_TYPE, BLOCK_WEIGHTS, BLOCK_BYTES, PACKED_BYTES = "Q5_0", 6, 32, 22, 704
TILE = r16.Tile(64, (np.float16,), (4, 1))


def fields(blocks: NDArray[np.uint8]) -> tuple[NDArray[Any], ...]:
    """d, n."""
    blocks = blocks.reshape(-1, 22)
    return r16.halves(blocks[:, :2]), r16.split_nibbles(blocks[:, 6:]) | r16.split_bits(blocks[:, 2:6]) << 4


def value(d: NDArray[Any], n: NDArray[Any]) -> NDArray[np.float32]:
    return d.astype(np.float32) * (n.astype(np.float32) - 16)


def quantize(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    x = np.asarray(x, np.float32).reshape(-1, 32)
    d = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1) / -16
    with np.errstate(divide="ignore", over="ignore"):
        scaled = x * np.where(d == 0, 0, 1 / d)
        half = d.astype(np.float16)
    n = np.trunc(scaled + np.float32(16.5)).clip(0, 31).astype(np.uint8)
    return r16.bytes_of(half, r16.join_bits(n >> 4), r16.join_nibbles(n & 15))


def dequantize(blocks: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    return value(*fields(blocks)).reshape(shape)


def pack(blocks: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.uint8]:
    return TILE.pack(fields(blocks), rows, k)


def unpack(packed: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.float32]:
    return value(*TILE.unpack(packed, rows, k, (1, 32))).reshape(rows, k)
