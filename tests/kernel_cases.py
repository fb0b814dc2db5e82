"""Random inputs for the kernels, from a seed: ordinary values and the corners arithmetic breaks at."""
from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from pyruntime import quant
from pyruntime._core import _kernels, _weights

FORMATS = _weights.formats()
NAMES = [f.name for f in FORMATS]
# Where the f16 scales and where the weights' bits stand in a file's block; scales of 8 bits, with ordinary values of theirs.
HALVES = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2],
          "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0], "TQ1_0": [52], "TQ2_0": [64], "MXFP4": [], "NVFP4": []}
WEIGHTS = {"Q8_0": (2, 34), "Q4_0": (2, 18), "Q4_1": (4, 20), "Q5_0": (2, 22), "Q5_1": (4, 24), "Q2_K": (16, 80), "Q3_K": (0, 96),
           "Q4_K": (16, 144), "Q5_K": (16, 176), "Q6_K": (0, 192), "IQ4_NL": (2, 18), "IQ4_XS": (8, 136), "TQ1_0": (0, 52),
           "TQ2_0": (0, 64), "MXFP4": (1, 17), "NVFP4": (4, 36)}
EIGHTHS = {"MXFP4": (slice(0, 1), 118, 124), "NVFP4": (slice(0, 4), 0x20, 0x40)}
CACHE_FORMATS = [NAMES.index(n) for n in ("F32", "F16", "BF16", "Q8_0")]
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
    if kind != "wild":
        tame(rng, format, raw)
    if kind == "full":
        raw[:, slice(*WEIGHTS[f.name]) if f.form != "float" else slice(None)] = 255
    return np.ascontiguousarray(raw.reshape(-1))


def tame(rng: np.random.Generator, format: int, raw: np.ndarray) -> None:
    """Ordinary scales, or ordinary floats, into blocks [n, block_bytes]."""
    f = FORMATS[format]
    if f.form == "float":
        x = rng.standard_normal(len(raw)).astype(np.float32)
        raw[:] = quant.FORMATS[f.name].quantize(x).reshape(len(raw), -1)
        return
    for at in HALVES[f.name]:
        raw[:, at:at + 2] = (rng.standard_normal((len(raw), 1)) * 0.1).astype(np.float16).view(np.uint8)
    if f.name in EIGHTHS:
        at, low, high = EIGHTHS[f.name]
        raw[:, at] = rng.integers(low, high, raw[:, at].shape, dtype=np.uint8)


def sizes(format: int, rows: int, k: int, raw: np.ndarray) -> np.ndarray:
    """|scale * (u - offset)| + |least| of every weight at most, f64 [rows, k]; raw: the file's blocks."""
    values = abs(_weights.decode(format, rows, k, raw).astype(np.float64))
    f = FORMATS[format]
    if f.form != "least":
        return values
    lowest = raw.reshape(-1, f.block_bytes).copy()
    lowest[:, slice(*WEIGHTS[f.name])] = 0  # u = 0: what is left is the least value
    return values + 2 * abs(_weights.decode(format, rows, k, lowest.reshape(-1)).astype(np.float64))


def packed(format: int, rows: int, k: int, raw: np.ndarray) -> np.ndarray:
    """R16 bytes of file blocks."""
    out = _kernels.aligned(_weights.packed_bytes(format, rows, k), np.uint8)
    _weights.pack(format, rows, k, raw, out, 1)
    return out


def activations(kernels: _kernels.Kernels, x: np.ndarray, path: int = 0) -> np.ndarray:
    """x [m, k] -> [m, act bytes] of a path."""
    out = _kernels.aligned((len(x), _kernels.act_bytes(x.shape[1])), np.uint8)
    for row, one in zip(out, x, strict=True):
        row[:] = kernels.quantize(one, path=path)
    return out


def same(a: object, b: object) -> bool:
    """Equal bit for bit; a NaN equals every NaN."""
    x, y = np.asarray(a), np.asarray(b)
    if x.dtype.kind != "f":
        return x.shape == y.shape and bool((x == y).all())
    bits = f"u{x.dtype.itemsize}"
    return x.shape == y.shape and bool(((x.view(bits) == y.view(bits)) | (np.isnan(x) & np.isnan(y))).all())
