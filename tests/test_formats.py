"""Formats: C decode == numpy twin == the `gguf` package or ml_dtypes, bit for bit; 8- and 16-bit floats, every one of them."""
from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

import gguf
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyruntime import quant
from pyruntime._core import _weights

NAMES = list(quant.FORMATS)
TWINS: dict[str, ModuleType] = {
    twin.NAME: twin for m in pkgutil.iter_modules(quant.__path__)
    if hasattr(twin := importlib.import_module(f"pyruntime.quant.{m.name}"), "NAME")
}
#: Formats no GGUF file has, and what numpy calls them.
F8 = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}
#: Formats the `gguf` package rounds to.
ROUNDED_BY_GGUF = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "MXFP4", "TQ1_0", "TQ2_0"]


def reference(name: str, data: np.ndarray, rows: int, k: int) -> np.ndarray:
    """The values by a package that is not ours."""
    with np.errstate(all="ignore"):
        if name in F8:
            return data.view(F8[name]).astype(np.float32).reshape(rows, k)
        values = gguf.quants.dequantize(data.reshape(rows, -1), gguf.GGMLQuantizationType[name])
        return np.asarray(values, np.float32).reshape(rows, k)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal floats, NaN where NaN, and zeros of the same sign."""
    nan = np.isnan(a)
    bits = np.where(nan, np.uint32(0), np.ascontiguousarray(a).view(np.uint32))
    return a.shape == b.shape and bool((nan == np.isnan(b)).all()) and bool(
        (bits == np.where(nan, np.uint32(0), np.ascontiguousarray(b).view(np.uint32))).all())


def random_blocks(name: str, rows: int, k: int, seed: int) -> np.ndarray:
    """Any bytes are valid blocks: NaN and infinite scales included."""
    return np.random.default_rng(seed).integers(
        0, 256, quant.nbytes(TWINS[name], (rows, k)), np.uint8  # type: ignore[arg-type]
    )


def test_twins_and_table_agree() -> None:
    for twin, line in zip(quant.FORMATS.values(), _weights.formats(), strict=True):
        assert (line.name, line.ggml_type, line.block_weights, line.block_bytes, line.packed_bytes) == (
            twin.NAME,
            twin.GGML_TYPE,
            twin.BLOCK_WEIGHTS,
            twin.BLOCK_BYTES,
            twin.PACKED_BYTES,
        )
        if twin.NAME not in F8:
            assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[twin.NAME]] == (
                twin.BLOCK_WEIGHTS,
                twin.BLOCK_BYTES,
            )


def test_a_block_has_the_bytes_it_has_everywhere() -> None:
    """Bytes of a block as every reader of such files knows them."""
    sizes = {"Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24, "Q8_0": 34, "Q2_K": 84, "Q3_K": 110, "Q4_K": 144, "Q5_K": 176,
             "Q6_K": 210, "IQ4_NL": 18, "IQ4_XS": 136, "MXFP4": 17, "NVFP4": 36, "TQ1_0": 54, "TQ2_0": 66, "F8_E4M3": 1,
             "F8_E5M2": 1, "F16": 2, "BF16": 2, "F32": 4}
    assert {name: twin.BLOCK_BYTES for name, twin in TWINS.items()} == sizes
    bits = {name: 8 * twin.BLOCK_BYTES / twin.BLOCK_WEIGHTS for name, twin in TWINS.items()}
    assert [bits[n] for n in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")] == [2.625, 3.4375, 4.5, 5.5, 6.5625]
    assert [bits[n] for n in ("IQ4_XS", "MXFP4", "NVFP4", "TQ1_0", "TQ2_0")] == [4.25, 4.25, 4.5, 1.6875, 2.0625]


@pytest.mark.parametrize("name", TWINS)
@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 40), blocks=st.integers(1, 6), seed=st.integers(0, 2**32 - 1))
def test_decode_equals_twin_equals_reference(name: str, rows: int, blocks: int, seed: int) -> None:
    k = max(32, TWINS[name].BLOCK_WEIGHTS) * blocks
    data = random_blocks(name, rows, k, seed)
    with np.errstate(all="ignore"):
        twin = TWINS[name].dequantize(data, (rows, k))
    assert same_bits(twin, reference(name, data, rows, k))
    if name in NAMES:
        assert same_bits(_weights.decode(NAMES.index(name), rows, k, data), twin)


@pytest.mark.parametrize("name", TWINS)
@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 40), blocks=st.integers(1, 6), seed=st.integers(0, 2**32 - 1))
def test_a_tile_loses_nothing(name: str, rows: int, blocks: int, seed: int) -> None:
    twin = TWINS[name]
    k = max(32, twin.BLOCK_WEIGHTS) * blocks
    data = random_blocks(name, rows, k, seed)
    packed = twin.pack(data, rows, k)
    with np.errstate(all="ignore"):
        assert same_bits(twin.unpack(packed, rows, k), twin.dequantize(data, (rows, k)))


@pytest.mark.parametrize("name", F8)
def test_every_eight_bit_float(name: str) -> None:
    every = np.arange(256, dtype=np.uint8)
    values = TWINS[name].dequantize(every, (256,))
    assert same_bits(values, every.view(F8[name]).astype(np.float32))
    assert values[np.isfinite(values)].max() == {"F8_E4M3": 448, "F8_E5M2": 57344}[name]
    if name == "F8_E4M3":
        assert values[0x4F] == 7.5 and np.isnan(values[[0x7F, 0xFF]]).all() and not np.isinf(values).any()
    with np.errstate(invalid="ignore"):
        middles = (values[:-1] + values[1:]) / 2
    near = np.concatenate([values, middles, np.nextafter(middles, np.float32(np.inf)), np.nextafter(middles, np.float32(-np.inf)),
                           np.random.default_rng(0).integers(0, 1 << 32, 100_000, np.uint32).view(np.float32)])
    with np.errstate(all="ignore"):
        assert (TWINS[name].quantize(near) == near.astype(F8[name]).view(np.uint8)).all()


def test_numbers_of_four_bits_are_twice_e2m1() -> None:
    codes = np.arange(16, dtype=np.uint8)
    assert [2 * float(v) for v in codes.view(ml_dtypes.float4_e2m1fn)] == list(TWINS["MXFP4"].VALUES)
    e = np.arange(255, dtype=np.uint8)
    with np.errstate(over="ignore"):
        blocks = np.pad(e[:, None], ((0, 0), (0, 16)), constant_values=0x22)  # every weight is code 2: the number 1
        assert (TWINS["MXFP4"].dequantize(blocks, (255, 32))[:, 5] == e.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)).all()
    s = np.arange(0x7F, dtype=np.uint8)
    assert (TWINS["NVFP4"].half_scale(s).astype(np.float32) * 2 == s.view(ml_dtypes.float8_e4m3fn).astype(np.float32)).all()


@pytest.mark.parametrize("name", ROUNDED_BY_GGUF)
@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 20),
    blocks=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
    scale=st.integers(-30, 12),
)
def test_quantize_equals_gguf(name: str, rows: int, blocks: int, seed: int, scale: int) -> None:
    rng = np.random.default_rng(seed)
    block = max(32, TWINS[name].BLOCK_WEIGHTS)
    x = (rng.standard_normal((rows, block * blocks)) * 2.0**scale).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = 0
    x[0, :block] = 0  # a block without a scale
    with np.errstate(all="ignore"):
        expected = gguf.quants.quantize(x, gguf.GGMLQuantizationType[name])
    assert TWINS[name].quantize(x).tobytes() == np.ascontiguousarray(expected).tobytes()


#: Root mean square error on unit Gaussians, relative: a little above what plain rounding gives.
ERRORS = {"Q2_K": 0.36, "Q3_K": 0.18, "Q4_K": 0.09, "Q5_K": 0.045, "Q6_K": 0.021, "IQ4_NL": 0.1, "IQ4_XS": 0.09, "NVFP4": 0.11}


@pytest.mark.parametrize("name", ERRORS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.integers(-2, 8), shift=st.sampled_from([0.0, 2.0, -2.0]))
def test_plain_rounding_is_near(name: str, seed: int, scale: int, shift: float) -> None:
    twin = TWINS[name]
    x = ((np.random.default_rng(seed).standard_normal((9, 1024)) + shift) * 2.0**scale).astype(np.float32)
    x[0, :256] = 0
    near = twin.dequantize(twin.quantize(x), x.shape)
    assert not near[0, :256].any()
    assert np.sqrt(((near - x) ** 2).mean() / (x**2).mean()) < ERRORS[name]


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
