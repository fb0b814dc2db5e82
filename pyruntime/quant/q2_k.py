"""Q2_K: 256 weights of 2 bits in 16 sub-blocks of 16, each with a scale and a minimum of 4 bits: value = (d * sc) * q - dmin * m.

file (84): u8[16], sc low and m high | q u2[256], each 32 bytes hold 128 weights, 32 in every 2 bits | d f16 | dmin f16
"""
from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import r16

NAME, GGML_TYPE, BLOCK_WEIGHTS, BLOCK_BYTES, PACKED_BYTES = "Q2_K", 10, 256, 84, 1344
TILE = r16.Tile(256, (np.float16, np.float16, np.uint8), (2,))


def fields(blocks: NDArray[np.uint8]) -> tuple[NDArray[Any], ...]:
    """d, -dmin, both (sc and m in a byte), q."""
    blocks = blocks.reshape(-1, 84)
    d, low = r16.halves(blocks[:, 80:82]), -r16.halves(blocks[:, 82:84])
    return d, low, blocks[:, :16], r16.split_runs(blocks[:, 16:80], 2, 32)


def value(d: NDArray[Any], low: NDArray[Any], both: NDArray[Any], q: NDArray[Any]) -> NDArray[np.float32]:
    scale = d.astype(np.float32) * (both & 15).astype(np.float32)
    least = low.astype(np.float32) * (both >> 4).astype(np.float32)
    return scale[..., None] * q.reshape(-1, 16, 16).astype(np.float32) + least[..., None]


def quantize(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    d, dmin, sc, m, q = r16.scales_and_least(np.asarray(x, np.float32).reshape(-1, 16, 16), 3, 15)
    return r16.bytes_of(sc | m << 4, r16.join_runs(q.reshape(-1, 256), 2, 32), d, dmin)


def dequantize(blocks: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    return value(*fields(blocks)).reshape(shape)


def pack(blocks: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.uint8]:
    return TILE.pack(fields(blocks), rows, k)


def unpack(packed: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.float32]:
    return value(*TILE.unpack(packed, rows, k, (1, 1, 16, 256))).reshape(rows, k)
