"""The R16 layout in numpy; csrc/quant/r16.h draws it."""
from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

ROWS, K = 16, 64  # of one tile


def to_tiles(matrix: NDArray[Any], width: int, fill: int = 0) -> NDArray[Any]:
    """[rows, columns] -> [group, tile, 16, width], padded with `fill` to whole groups and tiles."""
    rows, columns = matrix.shape
    padded = np.pad(matrix, ((0, -rows % ROWS), (0, -columns % width)), constant_values=fill)
    return padded.reshape(padded.shape[0] // ROWS, ROWS, -1, width).swapaxes(1, 2)


def from_tiles(tiles: NDArray[Any], rows: int, columns: int) -> NDArray[Any]:
    """[group, tile, 16, width] -> [rows, columns], padding cut off."""
    groups, count, _, width = tiles.shape
    return tiles.swapaxes(1, 2).reshape(groups * ROWS, count * width)[:rows, :columns]


def tile_bytes(*parts: NDArray[Any]) -> NDArray[np.uint8]:
    """Parts [group, tile, ...] of each tile, one behind the other, as flat bytes."""
    flat = [np.ascontiguousarray(p).reshape(*p.shape[:2], -1).view(np.uint8) for p in parts]
    return np.concatenate(flat, axis=2).reshape(-1)


def tiles_of(packed: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.uint8]:
    """Flat bytes -> [group, tile, packed_bytes]."""
    return packed.reshape(-(-rows // ROWS), -(-k // K), -1)


def scales(tiles: NDArray[np.uint8], first: int) -> NDArray[np.float32]:
    """f16 [2 half][16 row] at byte `first` of each tile -> f32 [group, tile, 16, 2, 1]."""
    halves = np.ascontiguousarray(tiles[..., first:first + 64]).view(np.float16).astype(np.float32)
    return halves.reshape(*tiles.shape[:2], 2, ROWS).swapaxes(2, 3)[..., None]


def pack_elements(elements: NDArray[Any], rows: int, k: int) -> NDArray[np.uint8]:
    """Plain elements [rows * k] -> tiles [64 k][16 row]."""
    return tile_bytes(to_tiles(elements.reshape(rows, k), K).swapaxes(2, 3))


def unpack_elements(packed: NDArray[np.uint8], dtype: type, rows: int, k: int) -> NDArray[Any]:
    """Tiles [64 k][16 row] -> [rows, k]."""
    tiles: NDArray[Any] = tiles_of(packed, rows, k).view(dtype)
    return from_tiles(tiles.reshape(*tiles.shape[:2], K, ROWS).swapaxes(2, 3), rows, k)


def split_nibbles(bytes16: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[..., 16] file bytes -> [..., 32] weights: low nibbles are the first 16, high ones the last."""
    return np.concatenate([bytes16 & 15, bytes16 >> 4], axis=-1)


def join_nibbles(weights: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[..., 32] weights -> [..., 16] file bytes."""
    return np.bitwise_or(weights[..., :16], weights[..., 16:] << 4, dtype=np.uint8)


def pack_nibbles(weights: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[rows, k] weights of 4 bits -> [group, tile, 8 step, 16 row, 4]: half 0 low, half 1 high."""
    tiles = to_tiles(weights, K)
    both = tiles[..., :32] | tiles[..., 32:] << 4
    return both.reshape(*both.shape[:3], 8, 4).swapaxes(2, 3)


def unpack_nibbles(tiles: NDArray[np.uint8], first: int) -> NDArray[np.uint8]:
    """The 512 bytes at `first` of each tile -> [group, tile, 16, 2 half, 32]."""
    steps = tiles[..., first:first + 512].reshape(*tiles.shape[:2], 8, ROWS, 4).swapaxes(2, 3)
    both = steps.reshape(*tiles.shape[:2], ROWS, 32)
    return np.stack([both & 15, both >> 4], axis=3)
