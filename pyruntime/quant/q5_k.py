"""Q5_K: 256 weights of 5 bits in 8 sub-blocks of 32, each with a scale and a minimum of 6 bits: value = (d * sc) * q - dmin * m.

file (176): d f16 | dmin f16 | sc, m u8[12] as in Q4_K | q's fifth bit u1[256], byte i bit b is q[32 b + i]
            | q's low bits u4[256] as in Q4_K
"""
from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import r16
from .q4_k import join_scales, split_scales, value

NAME, GGML_TYPE, BLOCK_WEIGHTS, BLOCK_BYTES, PACKED_BYTES = "Q5_K", 13, 256, 176, 2880
TILE = r16.Tile(256, (np.float16, np.float16, np.uint8, np.uint8), (4, 1))


def fields(blocks: NDArray[np.uint8]) -> tuple[NDArray[Any], ...]:
    """d, -dmin, sc, m, q."""
    blocks = blocks.reshape(-1, 176)
    sc, m = split_scales(blocks[:, 4:16])
    q = r16.split_runs(blocks[:, 48:], 4, 32) | r16.split_runs(blocks[:, 16:48], 1, 32) << 4
    return r16.halves(blocks[:, :2]), -r16.halves(blocks[:, 2:4]), sc, m, q


def quantize(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    d, dmin, sc, m, q = r16.scales_and_least(np.asarray(x, np.float32).reshape(-1, 8, 32), 31, 63)
    q = q.reshape(-1, 256)
    return r16.bytes_of(d, dmin, join_scales(sc, m), r16.join_runs(q >> 4, 1, 32), r16.join_runs(q & 15, 4, 32))


def dequantize(blocks: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    return value(*fields(blocks)).reshape(shape)


def pack(blocks: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.uint8]:
    return TILE.pack(fields(blocks), rows, k)


def unpack(packed: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.float32]:
    return value(*TILE.unpack(packed, rows, k, (1, 1, 8, 8, 256))).reshape(rows, k)
