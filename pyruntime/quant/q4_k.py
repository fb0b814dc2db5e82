"""Q4_K: 256 weights of 4 bits in 8 sub-blocks of 32, each with a scale and a minimum of 6 bits: value = (d * sc) * q - dmin * m.

file (144): d f16 | dmin f16 | u8[12]: bytes 0..3 hold sc[0..3], 4..7 m[0..3] in their low 6 bits; bytes 8..11 the low nibbles of
            sc[4..7] low and of m[4..7] high, whose upper 2 bits stand above the 6 of bytes 0..3 and 4..7
            | q u4[256], each 32 bytes hold 64 weights, 32 low and 32 high
"""
from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import r16

NAME, GGML_TYPE, BLOCK_WEIGHTS, BLOCK_BYTES, PACKED_BYTES = "Q4_K", 12, 256, 144, 2368
TILE = r16.Tile(256, (np.float16, np.float16, np.uint8, np.uint8), (4,))


def split_scales(data: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """[n][12] -> sc, m [n][8]."""
    a, b, c = data[:, :4], data[:, 4:8], data[:, 8:]
    return np.hstack([a & 63, c & 15 | a >> 2 & 48]), np.hstack([b & 63, c >> 4 | b >> 2 & 48])


def join_scales(sc: NDArray[np.uint8], m: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """split_scales undone."""
    a, b = sc[:, :4] | sc[:, 4:] >> 4 << 6, m[:, :4] | m[:, 4:] >> 4 << 6
    return np.hstack([a, b, sc[:, 4:] & 15 | m[:, 4:] << 4])


def fields(blocks: NDArray[np.uint8]) -> tuple[NDArray[Any], ...]:
    """d, -dmin, sc, m, q."""
    blocks = blocks.reshape(-1, 144)
    sc, m = split_scales(blocks[:, 4:16])
    return r16.halves(blocks[:, :2]), -r16.halves(blocks[:, 2:4]), sc, m, r16.split_runs(blocks[:, 16:], 4, 32)


def value(d: NDArray[Any], low: NDArray[Any], sc: NDArray[Any], m: NDArray[Any], q: NDArray[Any]) -> NDArray[np.float32]:
    scale, least = d.astype(np.float32) * sc.astype(np.float32), low.astype(np.float32) * m.astype(np.float32)
    return scale[..., None] * q.reshape(-1, 8, 32).astype(np.float32) + least[..., None]


def quantize(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    d, dmin, sc, m, q = r16.scales_and_least(np.asarray(x, np.float32).reshape(-1, 8, 32), 15, 63)
    return r16.bytes_of(d, dmin, join_scales(sc, m), r16.join_runs(q.reshape(-1, 256), 4, 32))


def dequantize(blocks: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    return value(*fields(blocks)).reshape(shape)


def pack(blocks: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.uint8]:
    return TILE.pack(fields(blocks), rows, k)


def unpack(packed: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.float32]:
    return value(*TILE.unpack(packed, rows, k, (1, 1, 8, 8, 256))).reshape(rows, k)
