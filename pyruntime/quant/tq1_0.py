"""TQ1_0: 256 weights of three values under one f16 scale, value = d * (n - 1).

file (54): u8[48], five weights a byte, then u8[4], four a byte | d f16. Byte b holds trits as a fraction: n = (b * 3^i mod 256) * 3
           >> 8 is its i-th. The first 32 bytes hold weights 32 i + byte, the next 16 160 + 16 i + byte, the last 240 + 4 i + byte.
"""
from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import r16

NAME, GGML_TYPE, BLOCK_WEIGHTS, BLOCK_BYTES, PACKED_BYTES = "TQ1_0", 34, 256, 54, 1088
TILE = r16.Tile(256, (np.float16,), (2,), pad=32)
RUNS = ((0, 32, 5), (32, 48, 5), (48, 52, 4))  # bytes first to last, weights in each


def fields(blocks: NDArray[np.uint8]) -> tuple[NDArray[Any], ...]:
    """d, n."""
    blocks = blocks.reshape(-1, 54)
    powers = np.array([1, 3, 9, 27, 81], np.uint8).reshape(5, 1)
    n = [(blocks[:, None, a:b] * powers[:count]).reshape(len(blocks), -1).astype(np.uint16) * 3 >> 8 for a, b, count in RUNS]
    return r16.halves(blocks[:, 52:]), np.hstack(n).astype(np.uint8)


def value(d: NDArray[Any], n: NDArray[Any]) -> NDArray[np.float32]:
    return d.astype(np.float32) * (n.astype(np.float32) - 1)


def ternary(x: NDArray[np.float32]) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
    """x [blocks][256] -> d, n: d the largest magnitude, each x to the nearest of -d, 0, d, halves away from zero."""
    d = np.abs(x).max(axis=1, keepdims=True)
    with np.errstate(divide="ignore", over="ignore"):
        scaled = x * np.where(d == 0, 0, 1 / d)
        half = d.astype(np.float16)
    return half, (np.sign(scaled) * np.floor(np.abs(scaled) + np.float32(0.5)) + 1).astype(np.uint8)


def quantize(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    d, n = ternary(np.asarray(x, np.float32).reshape(-1, 256))
    powers, at, parts = np.array([81, 27, 9, 3, 1], np.uint16).reshape(5, 1), 0, []
    for a, b, count in RUNS:
        trits = n[:, at:at + (b - a) * count].reshape(len(n), count, b - a)
        parts.append((trits * powers[:count]).sum(axis=1))
        at += (b - a) * count
    return r16.bytes_of(((np.hstack(parts) * 256 + 242) // 243).astype(np.uint8), d)


def dequantize(blocks: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    return value(*fields(blocks)).reshape(shape)


def pack(blocks: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.uint8]:
    return TILE.pack(fields(blocks), rows, k)


def unpack(packed: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.float32]:
    return value(*TILE.unpack(packed, rows, k, (1, 256))).reshape(rows, k)
