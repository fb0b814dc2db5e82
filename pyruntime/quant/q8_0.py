"""Q8_0: 32 weights of 8 bits under one f16 scale, value = d * q."""
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import r16

NAME, GGML_TYPE, BLOCK_WEIGHTS, BLOCK_BYTES, PACKED_BYTES = "Q8_0", 8, 32, 34, 1088


def dequantize(blocks: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    blocks = blocks.reshape(-1, 34)
    d = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    return (d * blocks[:, 2:].view(np.int8).astype(np.float32)).reshape(shape)


def quantize(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    x = np.asarray(x, np.float32).reshape(-1, 32)
    d = np.abs(x).max(axis=1, keepdims=True) / 127
    with np.errstate(divide="ignore", over="ignore"):
        scaled = x * np.where(d == 0, 0, 1 / d)
        halves = d.astype(np.float16)
    q = np.copysign(np.floor(np.abs(scaled) + np.float32(0.5)), scaled).astype(np.int8)
    return np.concatenate([halves.view(np.uint8), q.view(np.uint8)], axis=1).reshape(-1)


def pack(blocks: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.uint8]:
    blocks = blocks.reshape(rows, k // 32, 34)
    d = r16.to_tiles(blocks[..., :2].copy().view(np.uint16)[..., 0], 2).swapaxes(2, 3)
    q = r16.to_tiles(blocks[..., 2:].reshape(rows, k) ^ 0x80, r16.K, fill=0x80)
    return r16.tile_bytes(d, q.reshape(*q.shape[:3], 2, 8, 4).transpose(0, 1, 3, 4, 2, 5))


def unpack(packed: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.float32]:
    tiles = r16.tiles_of(packed, rows, k)
    q = (tiles[..., 64:].reshape(*tiles.shape[:2], 2, 8, 16, 4) ^ 0x80).view(np.int8)
    q = q.transpose(0, 1, 4, 2, 3, 5).reshape(*tiles.shape[:2], 16, 2, 32)
    values = r16.scales(tiles, 0) * q.astype(np.float32)
    return r16.from_tiles(values.reshape(*tiles.shape[:2], 16, 64), rows, k)
