"""Random inputs for the kernels, from a seed: ordinary values and the corners arithmetic breaks at."""
from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from pyruntime._core import _kernels, _weights

FORMATS = _kernels.formats()
NAMES = [f.name for f in FORMATS]
CACHE_FORMATS = [NAMES.index(n) for n in ("F32", "F16", "BF16")]
KINDS = ("normal", "zeros", "level", "huge", "tiny", "denormal", "nan", "inf", "spike")

seeds = st.integers(0, 2**32 - 1)
kinds = st.sampled_from(KINDS)
lengths = st.one_of(st.integers(1, 80), st.sampled_from([127, 128, 255, 256, 576, 1000]))


def values(rng: np.random.Generator, kind: str, shape: int | tuple[int, ...]) -> np.ndarray:
    """f32 `shape` of a kind."""
    x = rng.standard_normal(shape).astype(np.float32)
    flat = x.reshape(-1)
    at = rng.integers(0, flat.size, max(1, flat.size // 50))
    if kind == "zeros":
        flat[:] = 0
    elif kind == "level":  # every activation at the end of its range
        flat[:] = np.where(flat > 0, 1, -1) * np.float32(3.0)
    elif kind == "huge":
        flat *= np.float32(1e37)
    elif kind == "tiny":
        flat *= np.float32(1e-33)
    elif kind == "denormal":
        flat *= np.float32(1e-40)
    elif kind == "nan":
        flat[at] = np.nan
    elif kind == "inf":
        flat[at] = np.inf * np.where(flat[at] > 0, 1, -1)
    elif kind == "spike":
        flat[at] *= np.float32(1e4)
    return x


def blocks(rng: np.random.Generator, format: int, rows: int, k: int, kind: str) -> np.ndarray:
    """File blocks of a matrix [rows, k]. kind "wild": any bytes, NaN and infinite scales too; "full": every weight's bits
    set; else ordinary scales and any weights."""
    f = FORMATS[format]
    n = rows * (k // f.block_weights)
    raw = rng.integers(0, 256, (n, f.block_bytes), dtype=np.uint8)
    if kind == "full":
        raw[:] = 255
    scales = {"Q8_0": 1, "Q4_0": 1, "Q4_1": 2}.get(f.name, 0)
    if scales and kind != "wild":
        raw[:, : 2 * scales] = (rng.standard_normal((n, scales)) * 0.1).astype(np.float16).view(np.uint8)
    elif not scales and kind != "wild":
        x = rng.standard_normal((n, 1)).astype(np.float32)
        if f.name == "F32":
            raw = x.view(np.uint8)
        elif f.name == "F16":
            raw = x.astype(np.float16).view(np.uint8)
        else:
            raw = _weights.half_of_f32(x.reshape(-1), True).view(np.uint8)
    return np.ascontiguousarray(raw.reshape(-1))


def packed(format: int, rows: int, k: int, raw: np.ndarray) -> np.ndarray:
    """R16 bytes of file blocks."""
    out = _kernels.aligned(_weights.packed_bytes(format, rows, k), np.uint8)
    _weights.pack(format, rows, k, raw, out, 1)
    return out


def activations(kernels: _kernels.Kernels, x: np.ndarray) -> np.ndarray:
    """x [m, k] -> [m, act bytes]."""
    out = _kernels.aligned((len(x), _kernels.act_bytes(x.shape[1])), np.uint8)
    for row, one in zip(out, x, strict=True):
        row[:] = kernels.quantize(one)
    return out


def same(a: object, b: object) -> bool:
    """Equal bit for bit; a NaN equals every NaN."""
    x, y = np.asarray(a), np.asarray(b)
    if x.dtype.kind != "f":
        return x.shape == y.shape and bool((x == y).all())
    bits = f"u{x.dtype.itemsize}"
    return x.shape == y.shape and bool(((x.view(bits) == y.view(bits)) | (np.isnan(x) & np.isnan(y))).all())
