"""Weights of a plan: read from a file, packed into R16 (or left in the file), and handed to a backend as views.

A *source* is an open model file; `weights/gguf.py` is the one for GGUF. `from_blocks` makes weights from arrays.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .. import quant
from .._core import _weights
from .._core._weights import TensorInfo
from ..errors import ModelInvalid
from ..plan import Weight

Bytes = NDArray[np.uint8]
Progress = Callable[[int, int], None]  # (bytes of the file done, bytes in all)

#: Bytes of the file packed between two reports of progress.
REPORT_BYTES = 32 << 20

FORMATS: tuple[str, ...] = tuple(quant.FORMATS)  # index = enum rt_format


class Source(Protocol):
    """An open model file."""

    @property
    def path(self) -> str:
        """What errors call it."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """By name, in the file's order."""

    def supported(self, name: str) -> int:
        """Index of the tensor's format; ModelInvalid if it is none of ours."""

    def raw(self, name: str) -> Bytes:
        """A tensor's bytes as they stand in the file: read-only, no copy."""

    def pack(self, outs: Mapping[str, Bytes], threads: int = 0) -> None:
        """Tensors by name into their R16 bytes."""

    def check(self) -> None:
        """ModelInvalid when the file changed since it was opened."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One weight as a backend binds it (struct rt_weight): a matrix [rows][k], or a vector of `rows` f32 when k is 0.

    packed: R16 bytes, or the vector's; None in low-memory mode. blocks: the file's bytes, read where packed is None.
    """

    name: str
    format: int
    rows: int
    k: int
    packed: Bytes | None
    blocks: Bytes | None

    @property
    def format_name(self) -> str:
        """As in csrc/defs/formats.def."""
        return FORMATS[self.format]

    @property
    def nbytes(self) -> int:
        """Bytes of memory, or of the file in low-memory mode."""
        held = self.blocks if self.packed is None else self.packed
        return 0 if held is None else held.nbytes

    def f32(self) -> NDArray[np.float32]:
        """The values, [rows, k] or [rows]: the same bits from the file, from R16, and from a kernel."""
        if self.k == 0 and self.packed is not None:
            return self.packed.view(np.float32)
        if self.packed is not None:
            return _weights.unpack(self.format, self.rows, self.k, self.packed)
        assert self.blocks is not None
        return _weights.decode(self.format, self.rows, self.k, self.blocks)


class Weights(Sequence[Stored]):
    """A plan's weights, in the plan's order. Immutable; views keep the memory and the mapping alive.

    low_memory: matrices are views of the file, which must stay as it is; `check()` asks.
    """

    def __init__(self, stored: Sequence[Stored], *, low_memory: bool = False, source: Source | None = None) -> None:
        self._stored = tuple(stored)
        self._index = {w.name: i for i, w in enumerate(self._stored)}
        self._source = source if low_memory else None
        self.low_memory = low_memory

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, which: int | str) -> Stored:  # type: ignore[override]
        return self._stored[self._index[which] if isinstance(which, str) else which]

    def __iter__(self) -> Iterator[Stored]:
        return iter(self._stored)

    @property
    def nbytes(self) -> int:
        """Bytes of all weights, in memory or, in low-memory mode, in the file."""
        return sum(w.nbytes for w in self._stored)

    def check(self) -> None:
        """ModelInvalid when weights still live in a file that changed since it was opened."""
        if self._source is not None:
            self._source.check()


def load_weights(plan_weights: Sequence[Weight], source: Source, *, low_memory: bool = False, threads: int = 0,
                 progress: Progress | None = None) -> Weights:
    """Read what a plan names. Everything is proven before anything is allocated.

    low_memory keeps matrices in the file. Otherwise they are packed into one piece of memory, `threads` at a time
    (0: all), and the file may be closed. ModelInvalid: a tensor is missing, of another shape, or of a format unknown.
    """
    formats = [_proven(w, source) for w in plan_weights]
    matrices = [(w, f) for w, f in zip(plan_weights, formats, strict=True) if w.k]
    packed = {} if low_memory else _pack_all(matrices, source, threads, progress or (lambda done, total: None))
    stored = []
    for weight, format in zip(plan_weights, formats, strict=True):
        name, rows, k = weight.name, weight.rows, weight.k
        if k == 0:
            vector = _weights.decode(format, 1, rows, source.raw(name))
            stored.append(Stored(name, FORMATS.index("F32"), rows, 0, vector.reshape(-1).view(np.uint8), None))
        else:
            blocks = source.raw(name) if low_memory else None
            stored.append(Stored(name, format, rows, k, packed.get(name), blocks))
    return Weights(stored, low_memory=low_memory, source=source)


def from_blocks(plan_weights: Sequence[Weight], blocks: Mapping[str, tuple[str, Bytes]], *, low_memory: bool = False,
                threads: int = 0) -> Weights:
    """Weights from arrays: name -> (format name, bytes as they would stand in a file)."""
    stored = []
    for weight in plan_weights:
        name, rows, k = weight.name, weight.rows, weight.k
        format_name, data = blocks[name]
        format, data = FORMATS.index(format_name), np.ascontiguousarray(data).reshape(-1)
        if k == 0:
            vector = _weights.decode(format, 1, rows, data)
            stored.append(Stored(name, FORMATS.index("F32"), rows, 0, vector.reshape(-1).view(np.uint8), None))
        elif low_memory:
            if data.nbytes != _weights.file_bytes(format, rows, k):
                raise ModelInvalid(f"tensor {name}: {data.nbytes} bytes are not {rows} x {k} {format_name} weights")
            stored.append(Stored(name, format, rows, k, None, data))
        else:
            out = _weights.Region(_weights.packed_bytes(format, rows, k)).take(_weights.packed_bytes(format, rows, k))
            _weights.pack(format, rows, k, data, out, threads)
            stored.append(Stored(name, format, rows, k, out, None))
    return Weights(stored, low_memory=low_memory)


def _proven(weight: Weight, source: Source) -> int:
    """The format of the plan's weight in the file, its shape compared."""
    tensor = source.tensors.get(weight.name)
    if tensor is None:
        raise ModelInvalid(f"{source.path}: tensor {weight.name} is missing; the file is incomplete, get it again")
    wanted = (weight.rows, weight.k) if weight.k else (weight.rows,)
    if tensor.shape != wanted:
        raise ModelInvalid(f"{source.path}: tensor {weight.name} at byte {tensor.offset} is "
                           f"{_times(tensor.shape)}, the model needs {_times(wanted)}")
    return source.supported(weight.name)


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _pack_all(matrices: Sequence[tuple[Weight, int]], source: Source, threads: int, progress: Progress) -> dict[str, Bytes]:
    """Every matrix into one region, in pieces large enough to keep all threads busy."""
    sizes = {w.name: _weights.packed_bytes(f, w.rows, w.k) for w, f in matrices}
    total = sum(source.tensors[name].nbytes for name in sizes)
    region = _weights.Region(sum(-(-size // 64) * 64 for size in sizes.values()))
    packed = {name: region.take(size) for name, size in sizes.items()}
    done, piece = 0, {}
    progress(0, total)
    for i, name in enumerate(packed, 1):
        piece[name] = packed[name]
        pending = sum(source.tensors[n].nbytes for n in piece)
        if pending >= REPORT_BYTES or i == len(packed):
            source.pack(piece, threads)
            done, piece = done + pending, {}
            progress(done, total)
    return packed
