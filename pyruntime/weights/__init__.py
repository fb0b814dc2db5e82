"""Weights of a plan: packed into R16, or left in the file, and handed to a backend as views.

A *source* is an open model file (`weights/gguf.py`); `from_blocks` makes weights from arrays.
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
REPORT_BYTES = 128 << 20

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

    def read(self, name: str) -> Bytes:
        """A tensor's bytes, copied."""

    def pack(self, outs: Mapping[str, Bytes], threads: int = 0) -> None:
        """Tensors by name into their R16 bytes."""

    def check(self) -> None:
        """ModelInvalid when the file changed since it was opened."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One weight as a backend binds it (struct rt_weight): a matrix [rows][k]; when k is 0, `rows` f32.

    packed: R16 bytes, or the vector's; None in low-memory mode, where `blocks` are the file's bytes.
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

    def __init__(self, stored: Sequence[Stored], *, low_memory: bool = False,
                 source: Source | None = None) -> None:
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


def load_weights(plan_weights: Sequence[Weight], source: Source, *, low_memory: bool = False,
                 threads: int = 0, progress: Progress | None = None) -> Weights:
    """Read what a plan names. Everything is proven before anything is allocated.

    low_memory keeps matrices in the file. Otherwise they are packed into one piece of memory by `threads`
    (0: all there are), and the file may be closed. ModelInvalid: a tensor is missing, or of another shape,
    or of a format that cannot be computed with.
    """
    formats = [_proven(w, source) for w in plan_weights]
    outs = {} if low_memory else _room(plan_weights, formats)
    if outs:
        _pack_all(outs, source, threads, progress or (lambda done, total: None))
    stored = []
    for weight, format in zip(plan_weights, formats, strict=True):
        if weight.k == 0:
            stored.append(_vector(weight, format, source.read(weight.name)))
        else:
            blocks = source.raw(weight.name) if low_memory else None
            stored.append(Stored(weight.name, format, weight.rows, weight.k, outs.get(weight.name), blocks))
    return Weights(stored, low_memory=low_memory, source=source)


def from_blocks(plan_weights: Sequence[Weight], blocks: Mapping[str, tuple[str, Bytes]], *,
                low_memory: bool = False, threads: int = 0) -> Weights:
    """Weights from arrays: name -> (format name, bytes as they would stand in a file)."""
    formats = [FORMATS.index(blocks[w.name][0]) for w in plan_weights]
    outs = {} if low_memory else _room(plan_weights, formats)
    stored = []
    for weight, format in zip(plan_weights, formats, strict=True):
        name, rows, k = weight.name, weight.rows, weight.k
        data = np.ascontiguousarray(blocks[name][1]).reshape(-1)
        if data.nbytes != _weights.file_bytes(format, rows if k else 1, k or rows):
            raise ModelInvalid(
                f"tensor {name}: {data.nbytes} bytes are not {rows} x {k} {FORMATS[format]} weights"
            )
        if k == 0:
            stored.append(_vector(weight, format, data))
            continue
        if not low_memory:
            _weights.pack(format, rows, k, data, outs[name], threads)
        stored.append(Stored(name, format, rows, k, outs.get(name), data if low_memory else None))
    return Weights(stored, low_memory=low_memory)


def _vector(weight: Weight, format: int, data: Bytes) -> Stored:
    values = _weights.decode(format, 1, weight.rows, data)
    return Stored(weight.name, FORMATS.index("F32"), weight.rows, 0, values.reshape(-1).view(np.uint8), None)


def _proven(weight: Weight, source: Source) -> int:
    """The format of the plan's weight in the file, its shape compared."""
    tensor = source.tensors.get(weight.name)
    if tensor is None:
        raise ModelInvalid(
            f"{source.path}: tensor {weight.name} is missing; the file is incomplete, get it again"
        )
    wanted = (weight.rows, weight.k) if weight.k else (weight.rows,)
    if not weight.fits(tensor.shape):
        raise ModelInvalid(f"{source.path}: tensor {weight.name} at byte {tensor.offset} is "
                           f"{_times(tensor.shape)}, the model needs {_times(wanted)}")
    return source.supported(weight.name)


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _room(plan_weights: Sequence[Weight], formats: Sequence[int]) -> dict[str, Bytes]:
    """Where each matrix will be packed: all in one region."""
    sizes = {
        w.name: _weights.packed_bytes(f, w.rows, w.k)
        for w, f in zip(plan_weights, formats, strict=True)
        if w.k
    }
    region = _weights.Region(sum(-(-size // 64) * 64 for size in sizes.values()))
    return {name: region.take(size) for name, size in sizes.items()}


def _pack_all(outs: Mapping[str, Bytes], source: Source, threads: int, progress: Progress) -> None:
    """In pieces large enough to keep all threads busy and small enough to watch."""
    total, done, pending = sum(source.tensors[name].nbytes for name in outs), 0, 0
    piece: dict[str, Bytes] = {}
    progress(0, total)
    for i, (name, out) in enumerate(outs.items(), 1):
        piece[name] = out
        pending += source.tensors[name].nbytes
        if pending >= REPORT_BYTES or i == len(outs):
            source.pack(piece, threads)
            done, pending, piece = done + pending, 0, {}
            progress(done, total)
