"""The R16 layout in numpy; csrc/quant/r16.h draws it."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROWS, K = 16, 64  # of one tile
NO_GGML_TYPE = 0xFFFFFFFF  # of a format that stands in no GGUF file


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


# ---- tiles of any block format ----


@dataclass(frozen=True, slots=True)
class Tile:
    """How a block format stands in a tile of `k` k: its columns of scales one behind the other, then its weights' bits.

    columns: the type of each array of scales; it stands as [of a tile's k][16 row].
    bits: how the weights' bits are split, low ones first. A span is 64 k = 16 steps of [16 row][4 k]. Its planes stand one behind
    the other; the plane of b bits is 2 b lines of 64 bytes, and line l holds steps l, l + 2 b, l + 4 b.., low bits first.
    pad: zero bytes between columns and weights.
    """

    k: int
    columns: tuple[Any, ...]
    bits: tuple[int, ...]
    pad: int = 0

    def pack(self, fields: Sequence[NDArray[Any]], rows: int, k: int) -> NDArray[np.uint8]:
        """fields: the columns, [rows * blocks][of a block], then the weights [rows * blocks][k of a block] u8."""
        parts = []
        for dtype, field in zip(self.columns, fields, strict=False):
            matrix = np.ascontiguousarray(field, dtype).reshape(rows, -1)
            parts.append(to_tiles(matrix, matrix.shape[1] * self.k // k).swapaxes(2, 3))
        weights = to_tiles(np.ascontiguousarray(fields[-1], np.uint8).reshape(rows, k), self.k)
        if self.pad:
            parts.append(np.zeros((*weights.shape[:2], self.pad), np.uint8))
        steps = weights.reshape(*weights.shape[:3], -1, 16, 4).transpose(0, 1, 3, 4, 2, 5)  # [group, tile, span, step, row, 4]
        planes, below = [], 0
        for bits in self.bits:
            chunks = (steps >> below & (1 << bits) - 1).reshape(*steps.shape[:3], 8 // bits, 2 * bits, 64)
            planes.append(np.bitwise_or.reduce(chunks << self._shifts(bits), axis=3))
            below += bits
        return tile_bytes(*parts, np.concatenate(planes, axis=3))

    def unpack(self, packed: NDArray[np.uint8], rows: int, k: int, blocks: Sequence[int]) -> list[NDArray[Any]]:
        """What pack took. blocks: how many entries of each column belong to a block of the file, then its weights."""
        tiles = packed.reshape(-(-rows // ROWS), -(-k // self.k), -1)
        fields, at = [], 0
        for dtype, count in zip(self.columns, blocks, strict=False):
            width = count * self.k // blocks[-1]
            size = width * ROWS * np.dtype(dtype).itemsize
            column = np.ascontiguousarray(tiles[..., at:at + size]).view(dtype).reshape(*tiles.shape[:2], width, ROWS)
            fields.append(from_tiles(column.swapaxes(2, 3), rows, k // blocks[-1] * count).reshape(-1, count))
            at += size
        lines = tiles[..., at + self.pad:].reshape(*tiles.shape[:2], self.k // 64, -1, 64)
        steps, line, below = np.uint8(0), 0, 0
        for bits in self.bits:
            chunks = lines[..., None, line:line + 2 * bits, :] >> self._shifts(bits) & (1 << bits) - 1
            steps = steps | chunks.reshape(*lines.shape[:3], 16, ROWS, 4) << below
            line, below = line + 2 * bits, below + bits
        weights = np.asarray(steps, np.uint8).transpose(0, 1, 4, 2, 3, 5).reshape(*tiles.shape[:2], ROWS, self.k)
        return [*fields, from_tiles(weights, rows, k).reshape(-1, blocks[-1])]

    @staticmethod
    def _shifts(bits: int) -> NDArray[np.uint8]:
        return (np.arange(8 // bits, dtype=np.uint8) * bits).reshape(-1, 1, 1)


# ---- bits of a block in a file ----


def split_runs(data: NDArray[np.uint8], bits: int, run: int) -> NDArray[Any]:
    """[n][bytes] -> [n][bytes * 8 / bits]: each `run` bytes hold weights 0..run-1 in their low bits, the next run above."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8).reshape(-1, 1)
    runs = data.reshape(len(data), -1, 1, run) >> shifts & ((1 << bits) - 1)
    return runs.reshape(len(data), -1)


def join_runs(weights: NDArray[Any], bits: int, run: int) -> NDArray[np.uint8]:
    """split_runs undone."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8).reshape(-1, 1)
    runs = weights.astype(np.uint8).reshape(len(weights), -1, 8 // bits, run) << shifts
    joined: NDArray[np.uint8] = np.bitwise_or.reduce(runs, axis=2)
    return joined.reshape(len(weights), -1)


def split_bits(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[n][4] bytes -> [n][32]: bit i is weight i."""
    return np.unpackbits(data, axis=1, bitorder="little")


def join_bits(weights: NDArray[Any]) -> NDArray[np.uint8]:
    """split_bits undone."""
    return np.packbits(weights & 1, axis=1, bitorder="little")


def halves(data: NDArray[np.uint8]) -> NDArray[np.float16]:
    """[n][2 m] bytes -> [n][m] f16."""
    return np.ascontiguousarray(data).view(np.float16)


def bytes_of(*parts: NDArray[Any]) -> NDArray[np.uint8]:
    """[n][..] arrays of any type, one behind the other in each block, as flat bytes."""
    flat = [np.ascontiguousarray(p).reshape(len(p), -1).view(np.uint8) for p in parts]
    return np.concatenate(flat, axis=1).reshape(-1)


# ---- rounding to a format, plainly: each sub-block by its own range, then its scale to the scales' range ----


def inverse(d: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 / d, 0 for 0."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        return np.where(d == 0, np.float32(0), np.float32(1) / d).astype(np.float32)


def signed_scales(x: NDArray[np.float32], largest: int, scales: int) -> tuple[NDArray[np.float16], NDArray[Any], NDArray[Any]]:
    """x [n][sub][k] -> d [n][1] f16, scale [n][sub] of -scales..scales - 1, round(x / (d * scale)) as integers.

    The value furthest from zero of a sub-block becomes -largest, which signed integers reach on that side alone.
    """
    at = np.abs(x).argmax(axis=2)[..., None]
    wanted = np.take_along_axis(x, at, axis=2)[..., 0] / np.float32(-largest)
    most = np.take_along_axis(wanted, np.abs(wanted).argmax(axis=1)[:, None], axis=1)
    with np.errstate(over="ignore"):
        d = (most / np.float32(-scales)).astype(np.float16)
    scale = np.rint(wanted * inverse(d.astype(np.float32))).clip(-scales, scales - 1)
    steps = d.astype(np.float32) * scale.astype(np.float32)
    return d, scale.astype(np.int64), np.rint(x * inverse(steps)[..., None]).astype(np.int64)


def scales_and_least(x: NDArray[np.float32], largest: int, scales: int) -> tuple[NDArray[Any], ...]:
    """x [n][sub][k] -> d, dmin [n][1] f16; sc, m [n][sub] and q [n][sub][k] integers: x is near d sc q - dmin m."""
    least = np.minimum(x.min(axis=2), 0)
    span = (x.max(axis=2) - least) / np.float32(largest)
    with np.errstate(over="ignore"):
        d = (span.max(axis=1, keepdims=True) / np.float32(scales)).astype(np.float16)
        dmin = (-least.min(axis=1, keepdims=True) / np.float32(scales)).astype(np.float16)
    sc = np.rint(span * inverse(d.astype(np.float32))).clip(0, scales)
    m = np.rint(-least * inverse(dmin.astype(np.float32))).clip(0, scales)
    steps, below = d.astype(np.float32) * sc.astype(np.float32), dmin.astype(np.float32) * m.astype(np.float32)
    q = np.rint((x + below[..., None]) * inverse(steps)[..., None]).clip(0, largest)
    return d, dmin, sc.astype(np.uint8), m.astype(np.uint8), q.astype(np.uint8)


def nearest(x: NDArray[np.float32], values: Sequence[int]) -> NDArray[np.uint8]:
    """Index of the value nearest to each x, the first of equals."""
    distance = np.abs(x[..., None] - np.array(values, np.float32))
    return distance.argmin(axis=-1).astype(np.uint8)
