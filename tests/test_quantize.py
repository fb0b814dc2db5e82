"""Quantizers: bit-equal to the `gguf` package where it rounds plainly; never further off than plain rounding where ours search."""
from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pyruntime import quant
from pyruntime._core import _weights
from pyruntime._core._weights import GGUFFile
from pyruntime.errors import FieldInvalid, ModelInvalid
from pyruntime.weights import FORMATS

PLAIN = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
SEARCHED = ("Q4_K", "Q5_K", "Q6_K")
Floats = NDArray[np.float32]


def ours(name: str, x: Floats, threads: int = 0) -> NDArray[np.uint8]:
    return _weights.quantize(FORMATS.index(name), np.ascontiguousarray(x), threads)


def shapes_of_values(seed: int, rows: int, k: int) -> Floats:
    """Rows of different character: normal, heavy tails, one sign, far from zero, small integers, mostly zero."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, k))
    for i in range(rows):
        kind = (seed + i) % 7
        x[i] = (x[i], x[i] ** 3, np.abs(x[i]), -np.abs(x[i]) - 3, np.round(x[i] * 2), x[i] * (np.abs(x[i]) > 2.2), x[i] + 40)[kind]
    return (x * 10.0 ** rng.integers(-4, 3, (rows, 1))).astype(np.float32) + np.float32(0)   # which zero is the least is chance


def test_what_can_be_made() -> None:
    assert {f for i, f in enumerate(FORMATS) if _weights.quantizable(i)} == {*PLAIN, *SEARCHED}


@pytest.mark.parametrize("name", PLAIN)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), rows=st.integers(1, 20), blocks=st.integers(1, 5))
def test_plain_ones_equal_the_gguf_package(name: str, seed: int, rows: int, blocks: int) -> None:
    x = shapes_of_values(seed, rows, 32 * blocks)
    theirs = gguf.quants.quantize(x, gguf.GGMLQuantizationType[name])
    assert np.array_equal(ours(name, x), theirs.reshape(-1).view(np.uint8))


@pytest.mark.parametrize("name", PLAIN)
@settings(max_examples=40, deadline=None)
@given(values=st.lists(st.floats(-60000, 60000, width=32).filter(lambda v: v == 0 or abs(v) > 1e-30), min_size=32, max_size=32))
def test_plain_ones_equal_the_gguf_package_on_anything(name: str, values: list[float]) -> None:
    x = np.array([values], np.float32) + np.float32(0)
    with np.errstate(over="ignore", invalid="ignore"):
        theirs = gguf.quants.quantize(x, gguf.GGMLQuantizationType[name])
    assert np.array_equal(ours(name, x), theirs.reshape(-1).view(np.uint8))


def errors_of(name: str, blocks: NDArray[np.uint8], x: Floats) -> NDArray[np.float64]:
    """Squared error of each block of 256."""
    back = _weights.decode(FORMATS.index(name), *x.shape, blocks)
    return ((back.astype(np.float64) - x) ** 2).reshape(-1, 256).sum(axis=1)


@pytest.mark.parametrize("name", SEARCHED)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), rows=st.integers(1, 9), blocks=st.integers(1, 3))
def test_searched_ones_are_never_further_off(name: str, seed: int, rows: int, blocks: int) -> None:
    x = shapes_of_values(seed, rows, 256 * blocks)
    mine, plain = errors_of(name, ours(name, x), x), errors_of(name, quant.FORMATS[name].quantize(x), x)
    assert (mine <= plain * (1 + 1e-6) + 1e-30).all()


@pytest.mark.parametrize("name, gain", [("Q4_K", 0.85), ("Q5_K", 0.85), ("Q6_K", 0.95)])
def test_the_search_is_worth_it(name: str, gain: float) -> None:
    x = np.random.default_rng(3).standard_normal((64, 1024)).astype(np.float32)
    mine, plain = errors_of(name, ours(name, x), x).sum(), errors_of(name, quant.FORMATS[name].quantize(x), x).sum()
    assert mine < gain * plain


@pytest.mark.parametrize("name", [*PLAIN, *SEARCHED])
def test_threads_do_not_show(name: str) -> None:
    x = shapes_of_values(5, 50, 512)
    one = ours(name, x, 1)
    assert all(np.array_equal(one, ours(name, x, n)) for n in (2, 5, 0))


@pytest.mark.parametrize("name", [*PLAIN, *SEARCHED])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused(name: str, value: float) -> None:
    x = np.ones((3, 256), np.float32)
    x[1, 77] = value
    with pytest.raises(ModelInvalid, match=f"not finite, or too large for {name}"):
        ours(name, x)


@pytest.mark.parametrize("name", [n for n in (*PLAIN, *SEARCHED) if n not in ("F32", "BF16")])
def test_what_no_scale_reaches_is_refused(name: str) -> None:
    x = np.full((2, 256), 3e38, np.float32)
    x[:, ::2] *= -1
    with pytest.raises(ModelInvalid, match="too large"):
        ours(name, x)


@pytest.mark.parametrize("name", [*PLAIN, *SEARCHED])
def test_zeros_and_the_smallest_numbers(name: str) -> None:
    for tiny in (0.0, -0.0, 1e-45, 1e-38, -1e-30, 6e-8):
        x = np.full((1, 256), tiny, np.float32)
        back = _weights.decode(FORMATS.index(name), 1, 256, ours(name, x))
        assert np.isfinite(back).all() and np.abs(back - x).max() <= 6.1e-8


def test_partial_blocks_are_refused() -> None:
    for name, k in (("Q8_0", 33), ("Q4_K", 128), ("Q2_K", 256)):
        with pytest.raises(FieldInvalid):
            ours(name, np.ones((2, k), np.float32))


@pytest.mark.parametrize("name", SEARCHED)
def test_on_a_real_model_s_weights(name: str, smollm: Path) -> None:
    """Some of SmolLM2's matrices: nearer than plain rounding, block by block no further, and our decoder's values."""
    with GGUFFile(smollm) as file:
        for tensor in ("blk.0.ffn_down.weight", "blk.13.ffn_down.weight"):
            info = file.tensors[tensor]
            x = _weights.decode(file.supported(tensor), *info.shape, file.read(tensor))[:64, :1536]
            x = np.ascontiguousarray(x)
            blocks = ours(name, x)
            mine, plain = errors_of(name, blocks, x), errors_of(name, quant.FORMATS[name].quantize(x), x)
            assert (mine <= plain * (1 + 1e-6)).all() and mine.sum() < 0.99 * plain.sum()
            theirs = gguf.quants.dequantize(blocks.reshape(64, -1), gguf.GGMLQuantizationType[name])
            assert np.array_equal(theirs, _weights.decode(FORMATS.index(name), *x.shape, blocks))
