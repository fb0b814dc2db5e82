"""F32: one float a weight."""
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import r16

NAME, GGML_TYPE, BLOCK_WEIGHTS, BLOCK_BYTES, PACKED_BYTES = "F32", 0, 1, 4, 4096


def dequantize(blocks: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.frombuffer(blocks.tobytes(), np.float32).reshape(shape)


def quantize(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.frombuffer(np.asarray(x, np.float32).tobytes(), np.uint8)


def pack(blocks: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.uint8]:
    return r16.pack_elements(np.frombuffer(blocks.tobytes(), np.uint32), rows, k)


def unpack(packed: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.float32]:
    return r16.unpack_elements(packed, np.uint32, rows, k).view(np.float32)
