"""TQ2_0: 256 weights of 2 bits under one f16 scale, value = d * (n - 1).

file (66): n u2[256], each 32 bytes hold 128 weights, 32 in every 2 bits | d f16
"""
from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import r16
from .tq1_0 import ternary, value

NAME, GGML_TYPE, BLOCK_WEIGHTS, BLOCK_BYTES, PACKED_BYTES = "TQ2_0", 35, 256, 66, 1088
TILE = r16.Tile(256, (np.float16,), (2,), pad=32)


def fields(blocks: NDArray[np.uint8]) -> tuple[NDArray[Any], ...]:
    """d, n."""
    blocks = blocks.reshape(-1, 66)
    return r16.halves(blocks[:, 64:]), r16.split_runs(blocks[:, :64], 2, 32)


def quantize(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    d, n = ternary(np.asarray(x, np.float32).reshape(-1, 256))
    return r16.bytes_of(r16.join_runs(n, 2, 32), d)


def dequantize(blocks: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    return value(*fields(blocks)).reshape(shape)


def pack(blocks: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.uint8]:
    return TILE.pack(fields(blocks), rows, k)


def unpack(packed: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.float32]:
    return value(*TILE.unpack(packed, rows, k, (1, 256))).reshape(rows, k)
