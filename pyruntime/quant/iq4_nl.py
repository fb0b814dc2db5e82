"""IQ4_NL: 32 weights of 4 bits under one f16 scale, value = d * VALUES[n]: the values lie closer together around zero.

file (18): d f16 | n u4[32], byte i holds n[i] low and n[i + 16] high
"""
from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import r16

NAME, GGML_TYPE, BLOCK_WEIGHTS, BLOCK_BYTES, PACKED_BYTES = "IQ4_NL", 20, 32, 18, 576
TILE = r16.Tile(64, (np.float16,), (4,))
VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def fields(blocks: NDArray[np.uint8]) -> tuple[NDArray[Any], ...]:
    """d, n."""
    blocks = blocks.reshape(-1, 18)
    return r16.halves(blocks[:, :2]), r16.split_nibbles(blocks[:, 2:])


def value(d: NDArray[Any], n: NDArray[Any]) -> NDArray[np.float32]:
    return d.astype(np.float32) * np.array(VALUES, np.float32)[n]


def quantize(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    x = np.asarray(x, np.float32).reshape(-1, 32)
    with np.errstate(over="ignore"):
        d = (np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1) / np.float32(VALUES[0])).astype(np.float16)
    return r16.bytes_of(d, r16.join_nibbles(r16.nearest(x * r16.inverse(d.astype(np.float32)), VALUES)))


def dequantize(blocks: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    return value(*fields(blocks)).reshape(shape)


def pack(blocks: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.uint8]:
    return TILE.pack(fields(blocks), rows, k)


def unpack(packed: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.float32]:
    return value(*TILE.unpack(packed, rows, k, (1, 32))).reshape(rows, k)
