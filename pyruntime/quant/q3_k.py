"""Q3_K: 256 weights of 3 bits in 16 sub-blocks of 16, each with a scale of 6 bits: value = (d * sc) * (n - 4), sc in -32..31.

file (110): n's third bit u1[256], byte i bit b is n[32 b + i] | n's low bits u2[256] as in Q2_K
            | sc + 32 u6[16]: low nibbles of 0..7, low nibbles of 8..15, then 2 bits above of 0..3, 4..7, 8..11, 12..15 | d f16
"""
from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import r16

NAME, GGML_TYPE, BLOCK_WEIGHTS, BLOCK_BYTES, PACKED_BYTES = "Q3_K", 11, 256, 110, 1824
TILE = r16.Tile(256, (np.float16, np.int8), (2, 1))


def fields(blocks: NDArray[np.uint8]) -> tuple[NDArray[Any], ...]:
    """d, sc, n."""
    blocks = blocks.reshape(-1, 110)
    sc = r16.split_runs(blocks[:, 96:104], 4, 8) | r16.split_runs(blocks[:, 104:108], 2, 4) << 4
    n = r16.split_runs(blocks[:, 32:96], 2, 32) | r16.split_runs(blocks[:, :32], 1, 32) << 2
    return r16.halves(blocks[:, 108:]), sc.astype(np.int8) - np.int8(32), n


def value(d: NDArray[Any], sc: NDArray[Any], n: NDArray[Any]) -> NDArray[np.float32]:
    scale = d.astype(np.float32) * sc.astype(np.float32)
    return scale[..., None] * (n.reshape(-1, 16, 16).astype(np.float32) - 4)


def quantize(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    d, sc, q = r16.signed_scales(np.asarray(x, np.float32).reshape(-1, 16, 16), 4, 32)
    n, up = (q.clip(-4, 3) + 4).astype(np.uint8).reshape(-1, 256), (sc + 32).astype(np.uint8)
    return r16.bytes_of(r16.join_runs(n >> 2, 1, 32), r16.join_runs(n & 3, 2, 32), r16.join_runs(up & 15, 4, 8),
                        r16.join_runs(up >> 4, 2, 4), d)


def dequantize(blocks: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    return value(*fields(blocks)).reshape(shape)


def pack(blocks: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.uint8]:
    return TILE.pack(fields(blocks), rows, k)


def unpack(packed: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.float32]:
    return value(*TILE.unpack(packed, rows, k, (1, 16, 256))).reshape(rows, k)
