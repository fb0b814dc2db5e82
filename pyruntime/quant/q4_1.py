"""Q4_1: 32 weights of 4 bits under an f16 scale and an f16 minimum, value = d * n + m."""
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import r16

NAME, GGML_TYPE, BLOCK_WEIGHTS, BLOCK_BYTES, PACKED_BYTES = "Q4_1", 3, 32, 20, 640


def dequantize(blocks: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    blocks = blocks.reshape(-1, 20)
    d, m = np.hsplit(blocks[:, :4].copy().view(np.float16).astype(np.float32), 2)
    return (d * r16.split_nibbles(blocks[:, 4:]).astype(np.float32) + m).reshape(shape)


def quantize(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    x = np.asarray(x, np.float32).reshape(-1, 32)
    low = x.min(axis=1, keepdims=True)
    d = (x.max(axis=1, keepdims=True) - low) / 15
    with np.errstate(divide="ignore", over="ignore"):
        scaled = (x - low) * np.where(d == 0, 0, 1 / d)
        halves = np.concatenate([d, low], axis=1).astype(np.float16)
    n = np.trunc(scaled + np.float32(0.5)).clip(0, 15).astype(np.uint8)
    return np.concatenate([halves.view(np.uint8), r16.join_nibbles(n)], axis=1).reshape(-1)


def pack(blocks: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.uint8]:
    blocks = blocks.reshape(rows, k // 32, 20)
    d, m = (
        r16.to_tiles(s, 2).swapaxes(2, 3) for s in np.moveaxis(blocks[..., :4].copy().view(np.uint16), 2, 0)
    )
    return r16.tile_bytes(d, m, r16.pack_nibbles(r16.split_nibbles(blocks[..., 4:]).reshape(rows, k)))


def unpack(packed: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.float32]:
    tiles = r16.tiles_of(packed, rows, k)
    values = r16.scales(tiles, 0) * r16.unpack_nibbles(tiles, 128).astype(np.float32) + r16.scales(tiles, 64)
    return r16.from_tiles(values.reshape(*tiles.shape[:2], 16, 64), rows, k)
