"""Model files and the R16 layout, as numpy sees them: a thin mirror of csrc/load and csrc/quant.

A format is named by its index in `formats()`, the order of csrc/defs/formats.def. Matrices are [rows][k].
"""
from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

class FormatInfo(NamedTuple):
    """One line of csrc/defs/formats.def: `packed_bytes` is one R16 tile of 16 rows x `tile_k`.

    form "float": a float each weight; "scale": scale * (u - offset); "least": scale * (u - offset) + least. The latter two have
    `sub` k under one scale and u of `bits` bits.
    """

    name: str
    ggml_type: int
    block_weights: int
    block_bytes: int
    tile_k: int
    packed_bytes: int
    form: str
    sub: int
    bits: int
    offset: int

class TensorInfo(NamedTuple):
    """A tensor of a file: shape in numpy order (k last), the format's name, place and size in bytes.

    Of a type nobody knows ("type 77") nbytes is 0.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    offset: int
    nbytes: int

def formats() -> tuple[FormatInfo, ...]:
    """All formats that can be computed with."""

def file_bytes(format: int, rows: int, k: int) -> int:
    """Bytes of a matrix in a file's blocks; 0 when it cannot exist (partial blocks, too large)."""

def packed_bytes(format: int, rows: int, k: int) -> int:
    """Bytes of a matrix in R16, padding included; 0 when it cannot exist."""

def pack(format: int, rows: int, k: int, blocks: NDArray[np.uint8], out: NDArray[np.uint8],
         threads: int = 0) -> None:
    """Blocks [file_bytes] into R16 [packed_bytes], in parallel, without the GIL."""

def unpack(format: int, rows: int, k: int, packed: NDArray[np.uint8]) -> NDArray[np.float32]:
    """R16 [packed_bytes] as f32 [rows, k]: the bits `decode` gives for the blocks it was packed from."""

def decode(format: int, rows: int, k: int, blocks: NDArray[np.uint8], threads: int = 1) -> NDArray[np.float32]:
    """Blocks [file_bytes] as f32 [rows, k]."""

def quantize(format: int, values: NDArray[np.float32], threads: int = 0) -> NDArray[np.uint8]:
    """f32 [rows, k] as blocks [file_bytes], in parallel, without the GIL: how near is said in csrc/load/quantize.h.

    ModelInvalid: a value is not finite, or too large for the format's scales. FieldInvalid: k is not whole blocks.
    """

def quantizable(format: int) -> bool:
    """Whether `quantize` knows the format."""

def half_to_f32(bits: NDArray[np.uint16], bfloat: bool = False) -> NDArray[np.float32]:
    """f16 (or bf16) bits widened, exactly."""

def half_of_f32(values: NDArray[np.float32], bfloat: bool = False) -> NDArray[np.uint16]:
    """f32 rounded to f16 (or bf16) bits, to nearest even."""

class Region:
    """One piece of zeroed memory in 2 MB pages, handed out from front to back; freed with its last view."""

    def __init__(self, nbytes: int) -> None: ...
    @property
    def nbytes(self) -> int: ...
    def take(self, nbytes: int) -> NDArray[np.uint8]:
        """The next bytes, aligned to 64, as a view without a copy. FieldInvalid when they are not there."""

class GGUFFile:
    """A GGUF v2 or v3 file, proven whole when it is opened (ModelInvalid, ModelNotFound).

    Views stay good after close(): the mapping goes with the last of them. A file that changes on disk
    is noticed by check(), which raw(), read() and pack() call; read() and pack() survive a
    file cut short while they read, a view does not.
    """

    path: str
    tensors: dict[str, TensorInfo]

    def __init__(self, path: str | bytes | os.PathLike[str]) -> None: ...
    @property
    def version(self) -> int: ...
    @property
    def alignment(self) -> int: ...
    @property
    def metadata(self) -> dict[str, Any]:
        """str, int, float, bool; numeric arrays as numpy arrays, those of strings as Texts, of arrays as lists.

        Bytes that are no UTF-8 come as surrogate escapes.
        """

    @property
    def metadata_types(self) -> dict[str, int]:
        """The GGUF type number of each field."""

    def raw(self, name: str) -> NDArray[np.uint8]:
        """A tensor's bytes, [nbytes], read-only, without a copy."""

    def read(self, name: str) -> NDArray[np.uint8]:
        """A tensor's bytes, [nbytes], copied: no part of the mapping is touched. OSError."""

    def supported(self, name: str) -> int:
        """Index of the tensor's format; ModelInvalid naming tensor, type and what would work."""

    def pack(self, outs: Mapping[str, NDArray[np.uint8]], threads: int = 0) -> None:
        """Tensors by name into their R16 [packed_bytes], in parallel across all of them, without the GIL.

        A tensor of more than two dimensions is packed as [product of the rest][k].
        """

    def check(self) -> None:
        """ModelInvalid when the file changed since it was opened."""

    def close(self) -> None: ...
    def __enter__(self) -> GGUFFile: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None: ...

class SafetensorsFile:
    """A safetensors file, proven whole when it is opened (ModelInvalid, ModelNotFound). Views and changes as in GGUFFile."""

    path: str
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]

    def __init__(self, path: str | bytes | os.PathLike[str]) -> None: ...
    def raw(self, name: str) -> NDArray[np.uint8]:
        """A tensor's bytes, [nbytes], read-only, without a copy."""

    def read(self, name: str, first: int = 0, count: int | None = None) -> NDArray[np.uint8]:
        """A tensor's bytes, or `count` of them from `first` on, copied: no part of the mapping is touched. OSError."""

    def supported(self, name: str) -> int:
        """Index of the tensor's format; ModelInvalid naming tensor, dtype and what would work."""

    def pack(self, jobs: Sequence[tuple[str, int, int, int, NDArray[np.uint8]]], threads: int = 0) -> None:
        """(tensor, first byte in it, rows, k, R16 [packed_bytes]) each, in parallel across all of them, without the GIL."""

    def check(self) -> None:
        """ModelInvalid when the file changed since it was opened."""

    def close(self) -> None: ...
    def __enter__(self) -> SafetensorsFile: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None: ...
