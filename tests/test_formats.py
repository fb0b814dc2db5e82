"""Formats: C decode == numpy twin == the `gguf` package, bit for bit; 16-bit floats, every one of them."""
from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyruntime import quant
from pyruntime._core import _weights

NAMES = list(quant.FORMATS)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal floats, NaN where NaN, and zeros of the same sign."""
    nan = np.isnan(a)
    bits = np.where(nan, np.uint32(0), np.ascontiguousarray(a).view(np.uint32))
    return a.shape == b.shape and bool((nan == np.isnan(b)).all()) and bool(
        (bits == np.where(nan, np.uint32(0), np.ascontiguousarray(b).view(np.uint32))).all())


def random_blocks(name: str, rows: int, k: int, seed: int) -> np.ndarray:
    """Any bytes are valid blocks: NaN and infinite scales included."""
    return np.random.default_rng(seed).integers(
        0, 256, quant.nbytes(quant.FORMATS[name], (rows, k)), np.uint8
    )


def test_twins_and_table_agree() -> None:
    for twin, line in zip(quant.FORMATS.values(), _weights.formats(), strict=True):
        assert tuple(line) == (
            twin.NAME,
            twin.GGML_TYPE,
            twin.BLOCK_WEIGHTS,
            twin.BLOCK_BYTES,
            twin.PACKED_BYTES,
        )
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[twin.NAME]] == (
            twin.BLOCK_WEIGHTS,
            twin.BLOCK_BYTES,
        )


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 40), blocks=st.integers(1, 6), seed=st.integers(0, 2**32 - 1))
def test_decode_equals_twin_equals_gguf(name: str, rows: int, blocks: int, seed: int) -> None:
    k = 32 * blocks
    data = random_blocks(name, rows, k, seed)
    with np.errstate(all="ignore"):
        twin = quant.FORMATS[name].dequantize(data, (rows, k))
        reference = gguf.quants.dequantize(data.reshape(rows, -1), gguf.GGMLQuantizationType[name])
    assert same_bits(twin, np.asarray(reference, np.float32).reshape(rows, k))
    assert same_bits(_weights.decode(NAMES.index(name), rows, k, data), twin)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 20),
    blocks=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
    scale=st.integers(-30, 12),
)
def test_quantize_equals_gguf(name: str, rows: int, blocks: int, seed: int, scale: int) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((rows, 32 * blocks)) * 2.0**scale).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = 0
    x[0, :32] = 0  # a block without a scale
    with np.errstate(all="ignore"):
        reference = gguf.quants.quantize(x, gguf.GGMLQuantizationType[name])
    assert quant.FORMATS[name].quantize(x).tobytes() == np.ascontiguousarray(reference).tobytes()


def test_every_half_widens_exactly() -> None:
    bits = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
    assert same_bits(_weights.half_to_f32(bits), bits.view(np.float16).astype(np.float32))
    assert same_bits(_weights.half_to_f32(bits, True), (bits.astype(np.uint32) << 16).view(np.float32))


def halfway_and_around() -> np.ndarray:
    """Every half, the midpoint to the next one, and the f32 neighbours of both."""
    finite = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middles = (finite + np.append(finite[1:], np.float32(65536))) / 2
    points = np.concatenate([finite, middles])
    near = np.concatenate(
        [points, np.nextafter(points, np.float32(np.inf)), np.nextafter(points, np.float32(0))]
    )
    edge = np.array([65519.996, 65520, 1e30, np.inf, np.nan, 1e-45], np.float32)
    return np.concatenate([near, -near, edge, -edge]).astype(np.float32)


def test_halves_round_to_nearest_even() -> None:
    random = np.random.default_rng(0).integers(0, 1 << 32, 200_000, np.uint32).view(np.float32)
    for values in (halfway_and_around(), random):
        with np.errstate(all="ignore"):
            expected = values.astype(np.float16)
        got = _weights.half_of_f32(values).view(np.float16)
        assert (np.isnan(got) == np.isnan(expected)).all()
        assert (got.view(np.uint16) == expected.view(np.uint16))[~np.isnan(expected)].all()
        assert (
            _weights.half_of_f32(values, True).tobytes() == quant.FORMATS["BF16"].quantize(values).tobytes()
        )


def test_half_round_trip_is_the_identity() -> None:
    bits = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
    number = ~np.isnan(bits.view(np.float16))
    assert (_weights.half_of_f32(_weights.half_to_f32(bits)) == bits)[number].all()
    assert (_weights.half_of_f32(_weights.half_to_f32(bits, True), True) == bits)[
        (bits & 0x7FFF) <= 0x7F80
    ].all()
