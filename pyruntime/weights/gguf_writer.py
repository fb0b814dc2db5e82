"""Writes GGUF v3 files, atomically: a reader sees the old file or the whole new one."""
from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .. import quant

Bytes = NDArray[np.uint8]

UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64, FLOAT64 = range(13)
_CODES = dict(
    zip(
        (UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, UINT64, INT64, FLOAT64),
        "BbHhIif?Qqd",
        strict=True,
    )
)
_DTYPES = {"uint8": UINT8, "int8": INT8, "uint16": UINT16, "int16": INT16, "uint32": UINT32, "int32": INT32,
           "float32": FLOAT32, "bool": BOOL, "uint64": UINT64, "int64": INT64, "float64": FLOAT64}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor to write: `shape` with k last; `data` its blocks, or what makes them when their turn comes."""

    name: str
    format: str
    shape: tuple[int, ...]
    data: Bytes | Callable[[], Bytes]

    @property
    def nbytes(self) -> int:
        """Bytes in the file, from shape and format."""
        return quant.nbytes(quant.FORMATS[self.format], self.shape)


def write_gguf(path: str | os.PathLike[str], metadata: Mapping[str, Any], tensors: Iterable[Tensor], *,
               alignment: int = 32, types: Mapping[str, int] | None = None,
               progress: Callable[[int, int], None] | None = None) -> None:
    """Write a file whole or not at all.

    Values: bool, int (32 bits where it fits), float (32 bits), str, numpy scalars and arrays by their dtype,
    sequences of one kind. `types` names the GGUF type of scalars that should keep
    theirs (GGUFFile.metadata_types).
    """
    target, listed = Path(path), list(tensors)
    if alignment != 32:
        metadata = {**metadata, "general.alignment": np.uint32(alignment)}
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name[:100]}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(_header(metadata, listed, alignment, types or {}))
            _write_tensors(file, listed, alignment, progress or (lambda done, total: None))
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def _write_tensors(
    file: IO[bytes], tensors: list[Tensor], alignment: int, progress: Callable[[int, int], None]
) -> None:
    total, done = sum(t.nbytes for t in tensors), 0
    for tensor in tensors:
        file.write(bytes(-file.tell() % alignment))
        data = tensor.data() if callable(tensor.data) else tensor.data
        if data.nbytes != tensor.nbytes:
            raise ValueError(
                f"tensor {tensor.name}: {data.nbytes} bytes, its shape and format take {tensor.nbytes}"
            )
        file.write(np.ascontiguousarray(data).tobytes())
        progress(done := done + tensor.nbytes, total)
    file.write(bytes(-file.tell() % alignment))


def _header(
    metadata: Mapping[str, Any], tensors: list[Tensor], alignment: int, types: Mapping[str, int]
) -> bytes:
    out = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        kind = types.get(key, _kind(value))
        out += [_string(key), struct.pack("<I", kind), _value(value, kind)]
    offset = 0
    for t in tensors:
        out += [
            _string(t.name),
            struct.pack("<I", len(t.shape)),
            struct.pack(f"<{len(t.shape)}Q", *t.shape[::-1]),
        ]
        if quant.FORMATS[t.format].GGML_TYPE == quant.NO_GGML_TYPE:
            raise ValueError(f"tensor {t.name}: {t.format} has no number in GGUF files")
        out += [struct.pack("<IQ", quant.FORMATS[t.format].GGML_TYPE, offset)]
        offset += -(-t.nbytes // alignment) * alignment
    return b"".join(out)


def _kind(value: Any) -> int:
    """The GGUF type of a value."""
    if isinstance(value, np.generic):
        return _DTYPES[value.dtype.name]
    if isinstance(value, bool):
        return BOOL
    if isinstance(value, int):
        small, large = (INT32, INT64) if value < 0 else (UINT32, UINT64)
        return small if -(1 << 31) <= value < 1 << 32 else large
    if isinstance(value, float):
        return FLOAT32
    if isinstance(value, (str, bytes)):
        return STRING
    if isinstance(value, (np.ndarray, Sequence)):
        return ARRAY
    raise TypeError(f"{type(value).__name__} has no place in GGUF metadata")


def _value(value: Any, kind: int) -> bytes:
    if kind == STRING:
        return _string(value)
    if kind == ARRAY:
        return _array(value)
    return struct.pack("<" + _CODES[kind], value)


def _array(values: Any) -> bytes:
    if isinstance(values, np.ndarray):
        return (
            struct.pack("<IQ", _DTYPES[values.dtype.name], values.size)
            + np.ascontiguousarray(values).tobytes()
        )
    kinds = {_kind(v) for v in values}
    if kinds <= {UINT32, INT32, UINT64, INT64} and kinds:
        kinds = {INT32 if all(-(1 << 31) <= v < 1 << 31 for v in values) else INT64}
    if len(kinds) > 1:
        raise TypeError("an array in GGUF metadata holds values of one kind")
    kind = kinds.pop() if kinds else INT32
    return struct.pack("<IQ", kind, len(values)) + b"".join(_value(v, kind) for v in values)


def _string(text: str | bytes) -> bytes:
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data
