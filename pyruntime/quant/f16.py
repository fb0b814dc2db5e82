"""F16: IEEE half precision."""
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import r16

NAME, GGML_TYPE, BLOCK_WEIGHTS, BLOCK_BYTES, PACKED_BYTES = "F16", 1, 1, 2, 2048


def dequantize(blocks: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.frombuffer(blocks.tobytes(), np.float16).astype(np.float32).reshape(shape)


def quantize(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    with np.errstate(over="ignore"):
        return np.frombuffer(np.asarray(x, np.float32).astype(np.float16).tobytes(), np.uint8)


def pack(blocks: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.uint8]:
    return r16.pack_elements(np.frombuffer(blocks.tobytes(), np.uint16), rows, k)


def unpack(packed: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.float32]:
    return r16.unpack_elements(packed, np.uint16, rows, k).view(np.float16).astype(np.float32)
