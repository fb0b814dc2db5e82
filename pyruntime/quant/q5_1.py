"""Q5_1: 32 weights of 5 bits under an f16 scale and an f16 minimum, value = d * n + m.

file (24): d f16 | m f16 | u8[4], bit i is the fifth bit of n[i] | u4[32], byte i holds n[i] low and n[i + 16] high
"""
from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import r16

NAME, GGML_TYPE, BLOCK_WEIGHTS, BLOCK_BYTES, PACKED_BYTES = "Q5_1", 7, 32, 24, 768
TILE = r16.Tile(64, (np.float16, np.float16), (4, 1))


def fields(blocks: NDArray[np.uint8]) -> tuple[NDArray[Any], ...]:
    """d, m, n."""
    blocks = blocks.reshape(-1, 24)
    n = r16.split_nibbles(blocks[:, 8:]) | r16.split_bits(blocks[:, 4:8]) << 4
    return r16.halves(blocks[:, :2]), r16.halves(blocks[:, 2:4]), n


def value(d: NDArray[Any], m: NDArray[Any], n: NDArray[Any]) -> NDArray[np.float32]:
    return d.astype(np.float32) * n.astype(np.float32) + m.astype(np.float32)


def quantize(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    x = np.asarray(x, np.float32).reshape(-1, 32)
    low = x.min(axis=1, keepdims=True)
    d = (x.max(axis=1, keepdims=True) - low) / 31
    with np.errstate(divide="ignore", over="ignore"):
        scaled = (x - low) * np.where(d == 0, 0, 1 / d)
        half = np.concatenate([d, low], axis=1).astype(np.float16)
    n = np.trunc(scaled + np.float32(0.5)).clip(0, 31).astype(np.uint8)
    return r16.bytes_of(half, r16.join_bits(n >> 4), r16.join_nibbles(n & 15))


def dequantize(blocks: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    return value(*fields(blocks)).reshape(shape)


def pack(blocks: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.uint8]:
    return TILE.pack(fields(blocks), rows, k)


def unpack(packed: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.float32]:
    return value(*TILE.unpack(packed, rows, k, (1, 1, 32))).reshape(rows, k)
