"""MXFP4: 32 weights of FP4 (E2M1) under one E8M0 scale, value = 2^(e - 128) * VALUES[n], VALUES being twice the numbers of E2M1.

file (17): e u8 | n u4[32], byte i holds n[i] low and n[i + 16] high. An e of 255, "not a number" in the OCP standard, is
2^127 here as in every GGUF reader. The tile holds the scale as bf16, which has all of them.
"""
from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import bf16, r16

NAME, GGML_TYPE, BLOCK_WEIGHTS, BLOCK_BYTES, PACKED_BYTES = "MXFP4", 39, 32, 17, 576
TILE = r16.Tile(64, (np.uint16,), (4,))
VALUES = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


def fields(blocks: NDArray[np.uint8]) -> tuple[NDArray[Any], ...]:
    """The scale as bf16 bits, n."""
    blocks = blocks.reshape(-1, 17)
    e = blocks[:, :1].astype(np.uint16)
    return np.where(e < 2, np.uint16(0x20) << e, e - np.minimum(e, 1) << 7).astype(np.uint16), r16.split_nibbles(blocks[:, 1:])


def value(scale: NDArray[Any], n: NDArray[Any]) -> NDArray[np.float32]:
    return bf16.widen(scale) * np.array(VALUES, np.float32)[n]


def quantize(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    x = np.asarray(x, np.float32).reshape(-1, 32)
    most = np.abs(x).max(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        e = np.where(most > 0, np.floor(np.log2(most)) - 2 + 127, 0).astype(np.uint8)
    scale, _ = fields(np.pad(e, ((0, 0), (0, 16))))
    errors = np.abs(bf16.widen(scale)[..., None] * np.array(VALUES, np.float32) - x[..., None])
    return r16.bytes_of(e, r16.join_nibbles(errors.argmin(axis=-1).astype(np.uint8)))


def dequantize(blocks: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    return value(*fields(blocks)).reshape(shape)


def pack(blocks: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.uint8]:
    return TILE.pack(fields(blocks), rows, k)


def unpack(packed: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.float32]:
    return value(*TILE.unpack(packed, rows, k, (1, 32))).reshape(rows, k)
