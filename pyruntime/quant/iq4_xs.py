"""IQ4_XS: 256 weights of 4 bits in 8 sub-blocks of 32, each with a scale of 6 bits: value = (d * sc) * VALUES[n] of IQ4_NL.

file (136): d f16 | u16, bits 2 i.. are the high bits of sc[i] + 32 | u4[8], its low bits, two neighbours a byte
            | n u4[256], each 16 bytes hold 32 weights, 16 low and 16 high
"""
from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import r16
from .iq4_nl import VALUES

NAME, GGML_TYPE, BLOCK_WEIGHTS, BLOCK_BYTES, PACKED_BYTES = "IQ4_XS", 23, 256, 136, 2208
TILE = r16.Tile(256, (np.float16, np.int8), (4,))


def fields(blocks: NDArray[np.uint8]) -> tuple[NDArray[Any], ...]:
    """d, sc, n."""
    blocks = blocks.reshape(-1, 136)
    sc = r16.split_runs(blocks[:, 4:8], 4, 1) | r16.split_runs(blocks[:, 2:4], 2, 1) << 4
    return r16.halves(blocks[:, :2]), sc.astype(np.int8) - np.int8(32), r16.split_runs(blocks[:, 8:], 4, 16)


def value(d: NDArray[Any], sc: NDArray[Any], n: NDArray[Any]) -> NDArray[np.float32]:
    scale = d.astype(np.float32) * sc.astype(np.float32)
    return scale[..., None] * np.array(VALUES, np.float32)[n].reshape(-1, 8, 32)


def quantize(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    x = np.asarray(x, np.float32).reshape(-1, 8, 32)
    d, sc, _ = r16.signed_scales(x, -VALUES[0], 32)
    steps, up = d.astype(np.float32) * sc.astype(np.float32), (sc + 32).astype(np.uint8)
    n = r16.nearest(x * r16.inverse(steps)[..., None], VALUES).reshape(-1, 256)
    return r16.bytes_of(d, r16.join_runs(up >> 4, 2, 1), r16.join_runs(up & 15, 4, 1), r16.join_runs(n, 4, 16))


def dequantize(blocks: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    return value(*fields(blocks)).reshape(shape)


def pack(blocks: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.uint8]:
    return TILE.pack(fields(blocks), rows, k)


def unpack(packed: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.float32]:
    return value(*TILE.unpack(packed, rows, k, (1, 8, 256))).reshape(rows, k)
