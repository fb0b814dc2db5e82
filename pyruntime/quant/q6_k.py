"""Q6_K: 256 weights of 6 bits in 16 sub-blocks of 16, each with a scale of 8 bits: value = (d * sc) * (n - 32).

file (210): n's low bits u4[256], each 64 bytes hold 128 weights, 64 low and 64 high
            | n's high bits u2[256], each 32 bytes hold 128 weights, 32 in every 2 bits | sc s8[16] | d f16
"""
from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import r16

NAME, GGML_TYPE, BLOCK_WEIGHTS, BLOCK_BYTES, PACKED_BYTES = "Q6_K", 14, 256, 210, 3360
TILE = r16.Tile(256, (np.float16, np.int8), (4, 2))


def fields(blocks: NDArray[np.uint8]) -> tuple[NDArray[Any], ...]:
    """d, sc, n."""
    blocks = blocks.reshape(-1, 210)
    n = r16.split_runs(blocks[:, :128], 4, 64) | r16.split_runs(blocks[:, 128:192], 2, 32) << 4
    return r16.halves(blocks[:, 208:]), blocks[:, 192:208].view(np.int8), n


def value(d: NDArray[Any], sc: NDArray[Any], n: NDArray[Any]) -> NDArray[np.float32]:
    scale = d.astype(np.float32) * sc.astype(np.float32)
    return scale[..., None] * (n.reshape(-1, 16, 16).astype(np.float32) - 32)


def quantize(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    d, sc, q = r16.signed_scales(np.asarray(x, np.float32).reshape(-1, 16, 16), 32, 128)
    n = (q.clip(-32, 31) + 32).astype(np.uint8).reshape(-1, 256)
    return r16.bytes_of(r16.join_runs(n & 15, 4, 64), r16.join_runs(n >> 4, 2, 32), sc.astype(np.int8), d)


def dequantize(blocks: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    return value(*fields(blocks)).reshape(shape)


def pack(blocks: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.uint8]:
    return TILE.pack(fields(blocks), rows, k)


def unpack(packed: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.float32]:
    return value(*TILE.unpack(packed, rows, k, (1, 16, 256))).reshape(rows, k)
