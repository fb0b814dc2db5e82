"""Q4_0: 32 weights of 4 bits under one f16 scale, value = d * (n - 8)."""
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import r16

NAME, GGML_TYPE, BLOCK_WEIGHTS, BLOCK_BYTES, PACKED_BYTES = "Q4_0", 2, 32, 18, 576


def dequantize(blocks: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    blocks = blocks.reshape(-1, 18)
    d = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    return (d * (r16.split_nibbles(blocks[:, 2:]).astype(np.float32) - 8)).reshape(shape)


def quantize(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    x = np.asarray(x, np.float32).reshape(-1, 32)
    d = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1) / -8
    with np.errstate(divide="ignore", over="ignore"):
        scaled = x * np.where(d == 0, 0, 1 / d)
        halves = d.astype(np.float16)
    n = np.trunc(scaled + np.float32(8.5)).clip(0, 15).astype(np.uint8)
    return np.concatenate([halves.view(np.uint8), r16.join_nibbles(n)], axis=1).reshape(-1)


def pack(blocks: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.uint8]:
    blocks = blocks.reshape(rows, k // 32, 18)
    d = r16.to_tiles(blocks[..., :2].copy().view(np.uint16)[..., 0], 2).swapaxes(2, 3)
    return r16.tile_bytes(d, r16.pack_nibbles(r16.split_nibbles(blocks[..., 2:]).reshape(rows, k)))


def unpack(packed: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.float32]:
    tiles = r16.tiles_of(packed, rows, k)
    values = r16.scales(tiles, 0) * (r16.unpack_nibbles(tiles, 64).astype(np.float32) - 8)
    return r16.from_tiles(values.reshape(*tiles.shape[:2], 16, 64), rows, k)
