"""Every kernel x format x instruction set: the scalar one against numpy in f64, every other set against scalar with ==.

AVX-512 and NEON also run on CPUs without them: csrc/isa/<set>.c is compiled over SIMDe (tests/emulate_<set>.h) and must give
the same bits.
"""
from __future__ import annotations

import ctypes
import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from kernel_cases import (
    CACHE_FORMATS,
    FORMATS,
    HALVES,
    NAMES,
    activations,
    blocks,
    kinds,
    lengths,
    packed,
    same,
    seeds,
    sizes,
    values,
)

from pyruntime._core import _kernels, _weights
from pyruntime._core._kernels import Kernels
from pyruntime.errors import FieldInvalid

ROOT = Path(__file__).parents[1]
SCALAR = Kernels("scalar")
U = 2.0**-24  # half the distance of 1 to the next f32: one rounding is off by at most U * |result|
TINY = 2.0**-149 * 64  # what roundings of denormal numbers can add to a sum of ours
formats = st.integers(0, len(FORMATS) - 1)
block_kinds = st.sampled_from(["tame", "wild", "full"])
A16, A16_BF16, BF16, A8 = PATHS = range(4)  # csrc/quant/act.h, enum rt_path
paths = st.sampled_from(PATHS)
few = settings(max_examples=30, deadline=None)


EMULATED = {"avx512 emulated": "simde/x86/avx512.h", "avx512bf16 emulated": "simde/x86/avx512.h",
            "amx emulated": "simde/x86/avx512.h", "neon emulated": "simde/arm/neon.h"}
#: whose headers csrc/simd/<isa>.h includes
UNDER = {"avx512bf16": ["avx512", "avx512bf16"], "amx": ["avx512", "avx512bf16", "amx"]}


def emulated(isa: str, header: str, folder: Path) -> Kernels:
    """csrc/isa/<isa>.c over SIMDe."""
    if missing := dict(_kernels.isas()).get("avx2", "its architecture"):
        pytest.skip(f"the emulation of {isa} needs AVX2; this CPU lacks {missing}")
    if not (compiler := shutil.which("gcc")):
        pytest.skip(f"the emulation of {isa} needs gcc")
    if not (Path("/usr/include") / header).exists():
        pytest.skip(f"the emulation of {isa} needs the headers of SIMDe (Debian: libsimde-dev)")
    out = folder / f"{isa}.so"
    subprocess.run(
        [compiler, "-std=gnu11", "-O0", "-fPIC", "-shared", "-ffp-contract=off", "-mavx2", "-mfma", "-mf16c",
         f"-I{ROOT}/csrc", f"-I{ROOT}/tests", *(f'-DRT_EMULATE_{n.upper()}="emulate_{n}.h"' for n in UNDER.get(isa, [isa])),
         f"{ROOT}/csrc/isa/{isa}.c", "-o", out], check=True)
    assert b"zmm" not in subprocess.run(["objdump", "-d", out], capture_output=True, check=True).stdout
    library = ctypes.CDLL(str(out))
    return Kernels(ctypes.addressof(ctypes.c_char.in_dll(library, f"rt_kernels_{isa}")))


@pytest.fixture(scope="module", params=[*(i.name for i in _kernels.isas()[1:]), *EMULATED])
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    """Each set but scalar, where it can run."""
    if request.param in EMULATED:
        return emulated(request.param.split()[0], EMULATED[request.param], tmp_path_factory.mktemp("emulated"))
    missing = next(i.missing for i in _kernels.isas() if i.name == request.param)
    if missing:
        pytest.skip(f"this CPU lacks {missing}")
    return Kernels(request.param)


class Act:
    """A view of one token's activations (csrc/quant/act.h)."""

    def __init__(self, raw: np.ndarray, k: int) -> None:
        kp = -(-k // 64) * 64
        at = 64 + -(-kp // 16 * 4 // 64) * 64
        self.scale = raw[:4].view(np.float32)[0]
        self.sum = raw[64:64 + kp // 16 * 4].view(np.int32)
        self.high, self.low = raw[at:at + kp].view(np.int8), raw[at + kp:at + 2 * kp].view(np.int8)
        self.q, self.x = raw[at + 2 * kp:at + 4 * kp].view(np.int16), raw[at + 4 * kp:at + 8 * kp].view(np.float32)
        self.scales, self.totals = raw[at:at + kp // 4].view(np.float32).reshape(2, -1)   # of A8
        self.pairs = (raw[at + 4 * kp:at + 6 * kp].view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        assert at + 8 * kp == len(raw)


# ---- activations ----


@given(seeds, kinds, lengths)
@few
def test_activations_are_round_to_even_of_x_over_scale(seed: int, kind: str, k: int) -> None:
    x = values(np.random.default_rng(seed), kind, k)
    a = Act(SCALAR.quantize(x), k)
    assert same(a.x[:k], x) and not a.x[k:].any() and not a.q[k:].any()
    assert (a.q == 256 * a.high.astype(int) + a.low).all() and abs(a.q.astype(int)).max() <= 32639
    assert (a.sum == a.q.astype(int).reshape(-1, 16).sum(1)).all()
    if not np.isfinite(x).all():
        assert np.isnan(a.scale)
    elif abs(x).max() < 2.0**-100:
        assert a.scale == 0 and not a.q.any()
    else:
        # x * inverse is off by two roundings of at most 32639 * U each, scale by one more: 0.006 of a step.
        assert abs(a.x - float(a.scale) * a.q[: len(a.x)]).max() <= 0.506 * float(a.scale)


@given(seeds, kinds, lengths)
@few
def test_bytes_are_round_to_even_of_x_over_a_scale_of_32(seed: int, kind: str, k: int) -> None:
    x = values(np.random.default_rng(seed), kind, k)
    x[: min(k, 40)] *= np.float32(2.0**-30)      # scales are of one block each
    a = Act(SCALAR.quantize(x, path=A8), k)
    q, blocks = a.q.astype(int), np.concatenate([x, np.zeros(len(a.q) - k, np.float32)]).reshape(-1, 32)
    assert (q == a.low).all() and abs(q).max() <= 127 and a.scale == 1
    assert (a.sum == q.reshape(-1, 16).sum(1)).all()
    if not np.isfinite(x).all():
        assert np.isnan(a.scales).all() and np.isnan(a.totals).all() and not q.any()
        return
    most = abs(blocks).max(1)
    assert same(a.scales, np.where(most >= 2.0**-100, most / np.float32(127), 0).astype(np.float32))
    assert same(a.totals, a.scales * q.reshape(-1, 32).sum(1).astype(np.float32))
    # x * inverse is off by two roundings of at most 127 * U each, scale by one more.
    small, scale = most < 2.0**-100, a.scales.astype(float)[:, None]
    assert (abs(blocks - scale * q.reshape(-1, 32)) <= 0.5001 * scale)[~small].all() and not q.reshape(-1, 32)[small].any()
    assert same(a.pairs[:k], to_bf16(x)) and not a.pairs[k:].any()


@given(seeds, kinds, lengths, st.integers(0, 1), st.sampled_from([0.0, 1e-6, 1e-5]))
@few
def test_norms_follow_f64(seed: int, kind: str, k: int, norm_kind: int, eps: float) -> None:
    rng = np.random.default_rng(seed)
    x, w, b = values(rng, kind, k), values(rng, "normal", k), values(rng, "normal", k)
    got = Act(SCALAR.quantize(x, norm_kind, w, b if norm_kind else None, eps), k).x[:k].astype(float)
    if kind in ("nan", "inf"):
        assert not np.isfinite(got).all()
    if kind not in ("normal", "level", "spike"):
        return
    x, w, b = x.astype(float), w.astype(float), b.astype(float)
    mean = x.mean() if norm_kind else 0.0
    var = ((x - mean) ** 2).mean()
    if var + eps < 1e-3:
        return  # a single value: the variance is rounding itself
    plain = (x - mean) / math.sqrt(var + eps) * w
    # A sum of k values in 16 lanes and a tree of 4 is off by k/16 + 5 roundings of the sum of magnitudes. The mean's error
    # moves every value and, squared, the variance; the variance's is halved by the root. Six more roundings follow.
    off = (k / 16 + 6) * U * abs(x).mean() * norm_kind
    bound = abs(plain) * ((k / 16 + 8) * U / 2 + off**2 / var + 6 * U) + abs(w) * off / math.sqrt(var + eps) + 2 * U * abs(b)
    want = plain + b * norm_kind
    assert (abs(got - want) <= 1.01 * bound + TINY).all()


@given(seeds, kinds, lengths, st.sampled_from([0.0, 1e-6, 0.5]))
@few
def test_a_normalized_sum_follows_f64(seed: int, kind: str, n: int, eps: float) -> None:
    rng = np.random.default_rng(seed)
    x, w, y = values(rng, kind, n), values(rng, "normal", n), values(rng, "normal", n)
    got = SCALAR.norm_add(x, w, eps, y).astype(float)
    if kind in ("nan", "inf"):
        assert not np.isfinite(got).all()
    if kind not in ("normal", "level", "spike"):
        return
    mean = (x.astype(float) ** 2).mean()
    if mean + eps < 1e-3:
        return
    added = x / math.sqrt(mean + eps) * w.astype(float)
    # as a norm above; the sum is rounded once more
    assert (abs(got - (y + added)) <= 1.01 * (abs(added) * ((n / 16 + 8) / 2 + 4) * U + abs(y + added) * U) + TINY).all()


@given(seeds, kinds, lengths, st.sampled_from([0.0, 1e-5]))
@few
def test_a_normalized_sum_equals_scalar(kernels: Kernels, seed: int, kind: str, n: int, eps: float) -> None:
    rng = np.random.default_rng(seed)
    x, w, y = values(rng, kind, n), values(rng, "normal", n), values(rng, kind, n)
    assert same(SCALAR.norm_add(x, w, eps, y), kernels.norm_add(x, w, eps, y))


@given(seeds, kinds, lengths, st.sampled_from([None, 0, 1]), paths)
@few
def test_quantize_equals_scalar(kernels: Kernels, seed: int, kind: str, k: int, norm: int | None, path: int) -> None:
    rng = np.random.default_rng(seed)
    x, w, b = values(rng, kind, k), values(rng, "normal", k), values(rng, "normal", k)
    given_ = (x,) if norm is None else (x, norm, w, b if norm else None, 1e-5)
    one, other = (Act(k_.quantize(*given_, path=path), k) for k_ in (SCALAR, kernels))
    parts = ("scale", "sum", "scales", "totals", "low", "q", "pairs") if path == A8 else ("scale", "sum", "high", "low", "q", "x")
    assert all(same(getattr(one, n), getattr(other, n)) for n in parts)


# ---- linear ----


def matrix(seed: int, format: int, rows: int, k: int, kind: str) -> tuple[np.random.Generator, int, np.ndarray, np.ndarray]:
    """Generator, k in whole blocks, packed weights, the file's blocks."""
    rng = np.random.default_rng(seed)
    k = -(-k // FORMATS[format].block_weights) * FORMATS[format].block_weights
    raw = blocks(rng, format, rows, k, kind)
    return rng, k, packed(format, rows, k, raw), raw


@given(seeds, formats, kinds, st.integers(1, 40), lengths)
@settings(max_examples=60, deadline=None)
def test_linear_follows_f64(seed: int, format: int, kind: str, rows: int, k: int) -> None:
    rng, k, w, raw = matrix(seed, format, rows, k, "tame")
    x = values(rng, kind, (2, k))
    acts = activations(SCALAR, x)
    got = SCALAR.linear(format, w, k, 0, -(-rows // 16), acts)[:, :rows].astype(float)
    dense, parts = _weights.unpack(format, rows, k, w).astype(float), sizes(format, rows, k, raw)
    for row, act, y in zip(x, acts, got, strict=True):
        a = Act(act, k)
        if not np.isfinite(row).all():
            assert not np.isfinite(y).any()
            continue
        if FORMATS[format].form == "float":
            # Four chains of k/4 fused steps and two sums: each a rounding of at most the sum of magnitudes.
            want, size = dense @ row.astype(float), abs(dense) @ abs(row.astype(float))
            bound = (k / 4 + 3) * U * size
        else:
            # A sub-block enters with its sum rounded once, in at most two fused steps; then scale is multiplied.
            q = a.q[:k].astype(float) * float(a.scale)
            want, size = dense @ q, parts @ abs(q)
            bound = (2 * k / FORMATS[format].sub + 4) * U * size
        fits = size < 3e38  # else a sum on the way may be infinite
        assert (abs(y - want) <= 1.01 * bound + TINY * k)[fits].all()


@given(seeds, formats, kinds, st.integers(1, 40), lengths)
@settings(max_examples=60, deadline=None)
def test_linear_bf16_follows_f64(seed: int, format: int, kind: str, rows: int, k: int) -> None:
    rng, k, w, _ = matrix(seed, format, rows, k, "tame")
    x = values(rng, kind, (2, k))
    acts = activations(SCALAR, x, BF16)
    got = SCALAR.linear(format, w, k, 0, -(-rows // 16), acts, path=BF16)[:, :rows].astype(float)
    dense = to_bf16(_weights.unpack(format, rows, k, w)).astype(float)
    for row, act, y in zip(x, acts, got, strict=True):
        coarse = to_bf16(row)
        assert same(Act(act, k).x[:k], coarse) and not Act(act, k).x[k:].any()
        if not np.isfinite(coarse).all():
            assert not np.isfinite(y).any()
            continue
        # Products of two bf16 are exact. A chain adds 16 of them, two chains meet, and k / 32 such sums are added.
        want, size = dense @ coarse.astype(float), abs(dense) @ abs(coarse.astype(float))
        assert (abs(y - want) <= 1.01 * (17 + k / 32 + 1) * U * size + TINY * k)[size < 3e38].all()


@given(seeds, formats, kinds, st.integers(1, 40), lengths)
@settings(max_examples=60, deadline=None)
def test_linear_a16_bf16_follows_f64(seed: int, format: int, kind: str, rows: int, k: int) -> None:
    """Float formats are rounded and add up in one chain; the others are A16's, bit for bit."""
    rng, k, w, _ = matrix(seed, format, rows, k, "tame")
    x, groups = values(rng, kind, (2, k)), -(-rows // 16)
    acts = activations(SCALAR, x, A16_BF16)
    got = SCALAR.linear(format, w, k, 0, groups, acts, path=A16_BF16)
    if FORMATS[format].sub:
        assert same(got, SCALAR.linear(format, w, k, 0, groups, activations(SCALAR, x)))
        return
    dense = to_bf16(_weights.unpack(format, rows, k, w)).astype(float)
    for row, act, y in zip(x, acts, got[:, :rows].astype(float), strict=True):
        coarse = to_bf16(row)
        assert same(Act(act, k).pairs[:k], coarse) and not Act(act, k).pairs[k:].any()
        if not np.isfinite(coarse).all():
            assert not np.isfinite(y).any()
            continue
        want, size = dense @ coarse.astype(float), abs(dense) @ abs(coarse.astype(float))
        assert (abs(y - want) <= 1.01 * (k + 1) * U * size + TINY * k)[size < 3e38].all()


@given(seeds, formats, kinds, st.integers(1, 40), lengths)
@settings(max_examples=60, deadline=None)
def test_linear_a8_follows_f64(seed: int, format: int, kind: str, rows: int, k: int) -> None:
    """Blocks meet what A8 made of the activations; floats are A16_BF16's, bit for bit."""
    rng, k, w, raw = matrix(seed, format, rows, k, "tame")
    x, groups = values(rng, kind, (2, k)), -(-rows // 16)
    acts = activations(SCALAR, x, A8)
    got = SCALAR.linear(format, w, k, 0, groups, acts, path=A8)
    if not FORMATS[format].sub:
        assert same(got, SCALAR.linear(format, w, k, 0, groups, activations(SCALAR, x, A16_BF16), path=A16_BF16))
        return
    dense, parts = _weights.unpack(format, rows, k, w).astype(float), sizes(format, rows, k, raw)
    for row, act, y in zip(x, acts, got[:, :rows].astype(float), strict=True):
        a = Act(act, k)
        if not np.isfinite(row).all():
            assert np.isnan(y).all()
            continue
        q = a.q[:k].astype(float) * np.repeat(a.scales.astype(float), 32)[:k]
        want, size = dense @ q, parts @ abs(q)
        # A sub-block's sum, the product of scales and the scaled sum of q are rounded; it enters in at most two fused steps.
        bound = (2 * k / FORMATS[format].sub + 6) * U * size
        assert (abs(y - want) <= 1.01 * bound + TINY * k)[size < 3e38].all()


def to_bf16(x: np.ndarray) -> np.ndarray:
    """f32 rounded to the nearest bf16, to even, as f32."""
    half = _weights.half_of_f32(np.ascontiguousarray(x, np.float32).reshape(-1), True)
    return (half.astype(np.uint32) << 16).view(np.float32).reshape(x.shape)


@given(seeds, paths, formats, block_kinds, kinds, st.integers(1, 50), lengths, st.integers(1, 19))
@settings(max_examples=120, deadline=None)
def test_linear_equals_scalar(kernels: Kernels, seed: int, path: int, format: int, weights: str, kind: str, rows: int, k: int,
                              m: int) -> None:
    rng, k, w, _ = matrix(seed, format, rows, k, weights)
    pairs = path in (A16_BF16, A8) and not FORMATS[format].sub
    if {"amx": path == BF16 or pairs, "avx512bf16": pairs}.get(kernels.name):  # to these instructions a number below 2^-126 is zero
        small = FORMATS[format].name == "MXFP4" and weights == "wild"    # whose scales go down to 2^-127
        assume(kind not in ("tiny", "denormal") and (FORMATS[format].sub or weights == "tame") and not small)
    acts = activations(SCALAR, values(rng, kind, (m, k)), path)
    groups = -(-rows // 16)
    assert same(SCALAR.linear(format, w, k, 0, groups, acts, path=path), kernels.linear(format, w, k, 0, groups, acts, path=path))


@pytest.mark.parametrize("format, path", [(f, path) for f in range(len(FORMATS)) for path in PATHS
                                          if path not in (A16_BF16, A8) or (path == A16_BF16) != bool(FORMATS[f].sub)])
@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 7, 8, 33, 70])
def test_a_row_knows_no_neighbour(kernels: Kernels, format: int, m: int, path: int) -> None:
    rng, k, w, _ = matrix(m, format, 120, 160, "tame")
    acts = activations(SCALAR, values(rng, "spike", (m, k)), path)
    whole = kernels.linear(format, w, k, 0, 7, acts, path=path)
    for t in range(m):
        assert same(kernels.linear(format, w, k, 0, 7, acts[t:t + 1], path=path), whole[t:t + 1])
    assert same(kernels.linear(format, w, k, 1, 7, acts, path=path), whole[:, 16:])
    wide = np.full((m, 100), 7, np.float32)
    kernels.linear(format, w, k, 0, 5, acts, wide, path=path)
    assert same(wide[:, :80], whole[:, :80]) and (wide[:, 80:] == 7).all()


@pytest.mark.parametrize("format", range(len(FORMATS)), ids=NAMES)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("m, path", [(5, A16), (25, A16), (5, A8), (25, A8)])
def test_the_largest_weights_meet_the_largest_activations(kernels: Kernels, format: int, sign: int, m: int, path: int) -> None:
    k = 2048
    raw = np.full((16, k // FORMATS[format].block_weights, FORMATS[format].block_bytes), 255, np.uint8)
    for at in HALVES.get(FORMATS[format].name, ()):
        raw[..., at:at + 2] = np.array([1.0], np.float16).view(np.uint8)
    w = packed(format, 16, k, raw.reshape(-1))
    acts = activations(SCALAR, np.full((m, k), sign * 3.0, np.float32), path)
    assert same(SCALAR.linear(format, w, k, 0, 1, acts, path=path), kernels.linear(format, w, k, 0, 1, acts, path=path))


@given(seeds, formats, block_kinds, st.integers(1, 40), lengths, st.sampled_from([1.0, 0.5, 27.7]))
@few
def test_embed_is_the_row_times_scale(kernels: Kernels, seed: int, format: int, kind: str, rows: int, k: int,
                                      scale: float) -> None:
    rng, k, w, _ = matrix(seed, format, rows, k, kind)
    row = int(rng.integers(rows))
    with np.errstate(all="ignore"):
        want = _weights.unpack(format, rows, k, w)[row] * np.float32(scale)
    assert same(SCALAR.embed(format, w, k, row, scale), want)
    assert same(kernels.embed(format, w, k, row, scale), want)


# ---- elementwise ----


@given(seeds, kinds, lengths, st.booleans())
@few
def test_sums_and_gates_equal_scalar(kernels: Kernels, seed: int, kind: str, n: int, biased: bool) -> None:
    rng = np.random.default_rng(seed)
    x, y, b = values(rng, kind, n), values(rng, kind, n), values(rng, kind, n)
    bias = b if biased else None
    assert same(SCALAR.add_scaled(x, bias, 0.7, y), kernels.add_scaled(x, bias, 0.7, y))
    assert same(SCALAR.add_bias(x, b), kernels.add_bias(x, b))
    with np.errstate(all="ignore"):
        assert same(SCALAR.add_scaled(x, bias, 1.0, y), y + (x + b if biased else x))
        assert same(SCALAR.add_bias(x, b), x + b)
    for activation in range(3):
        assert same(SCALAR.gate(activation, 4 * y, x), kernels.gate(activation, 4 * y, x))
        alone = SCALAR.gate(activation, 4 * y, None)
        assert same(alone, kernels.gate(activation, 4 * y, None)) and same(alone, SCALAR.gate(activation, 4 * y, np.ones_like(y)))
    for softcap in (0.0, 30.0):
        assert same(SCALAR.scale_cap(x, 0.3, softcap), kernels.scale_cap(x, 0.3, softcap))


def ulps(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Distance in units of the last place of `want` (f64)."""
    return abs(got.astype(float) - want) / np.spacing(np.maximum(abs(want), 2.0**-126).astype(np.float32)).astype(float)


def test_exp_and_tanh_are_close_over_all_floats() -> None:
    x = np.concatenate([np.linspace(-104, 88.7, 20011), np.geomspace(1e-30, 80, 5003), -np.geomspace(1e-30, 80, 5003)])
    x = x.astype(np.float32)
    got = np.array([SCALAR.exp_sum(x[i:i + 1], 0.0) for i in range(len(x))])
    with np.errstate(under="ignore"):
        assert ulps(got, np.exp(x.astype(float))).max() <= 1.1
    assert ulps(SCALAR.scale_cap(x, 1.0, 1.0), np.tanh(x.astype(float))).max() <= 1.4


def test_exp_and_tanh_at_the_ends() -> None:
    def exp(x: float) -> float:
        return SCALAR.exp_sum(np.array([x], np.float32), 0.0)

    assert exp(0.0) == 1.0 and exp(-math.inf) == 0.0 and exp(-104.0) == 0.0
    assert exp(89.0) == math.inf and exp(math.inf) == math.inf and math.isnan(exp(math.nan))
    assert 0.0 < exp(-103.9) < 2.0**-148
    ends = SCALAR.scale_cap(np.array([math.inf, -math.inf, 0.0, -0.0, 20.0, math.nan], np.float32), 1.0, 1.0)
    assert np.array_equal(ends, [1, -1, 0, 0, 1, math.nan], equal_nan=True)


def test_gates_follow_f64() -> None:
    x = np.concatenate([np.linspace(-12, 12, 40001), np.geomspace(1e-20, 1, 999), -np.geomspace(1e-20, 1, 999)])
    x = x.astype(np.float32)
    wide, one = x.astype(float), np.ones_like(x)
    silu = wide / (1 + np.exp(-wide))
    assert ulps(SCALAR.gate(0, x, one), silu).max() <= 3
    # 1 + f is off by the 2 ulp of f and a rounding, and times x / 2 by one more: 4 U of x. Where the argument of tanh is
    # off by 3 roundings its slope is at most 1/argument.
    inner = math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)
    assert (abs(SCALAR.gate(1, x, one) - wide / 2 * (1 + np.tanh(inner))) <= 8 * U * abs(wide)).all()
    gelu = wide / 2 * (1 + np.array([math.erf(v / math.sqrt(2)) for v in wide]))
    assert (abs(SCALAR.gate(2, x, one) - gelu) <= 5 * U * abs(wide)).all()


# ---- heads and pages ----


@given(seeds, kinds, st.integers(1, 100), st.booleans(), st.booleans(), st.booleans())
@few
def test_rope(kernels: Kernels, seed: int, kind: str, half: int, interleaved: bool, normed: bool, partial: bool) -> None:
    rng = np.random.default_rng(seed)
    x, w = values(rng, kind, 2 * half), values(rng, "normal", 2 * half)
    pairs = half // 2 if partial else half
    angle = rng.standard_normal(pairs) * 100
    cos, sin = (np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)) if pairs else (None, None)
    norm = w if normed else None
    got = SCALAR.rope_head(x, norm, 1e-6, cos, sin, interleaved)
    assert same(got, kernels.rope_head(x, norm, 1e-6, cos, sin, interleaved))
    with np.errstate(all="ignore"):
        y = SCALAR.rope_head(x, norm, 1e-6, None, None, False)  # the norm alone, proved by test_norms_follow_f64's twin
        a, b = (y[:2 * pairs:2], y[1:2 * pairs:2]) if interleaved else (y[:pairs], y[pairs:2 * pairs])
        if cos is not None and sin is not None:
            first, second = a * cos - b * sin, b * cos + a * sin
            turned = np.stack([first, second], 1).reshape(-1) if interleaved else np.concatenate([first, second])
            assert same(got, np.concatenate([turned, y[2 * pairs:]]))
    if normed and kind == "normal":
        wide = x.astype(float)
        want = wide / np.sqrt((wide**2).mean() + 1e-6) * w
        assert (abs(y - want) <= (2 * half / 32 + 10) * U * abs(want)).all()


def page_bytes(format: int, head_dim: int) -> int:
    """Of a page's K or V of one head."""
    return head_dim // FORMATS[format].block_weights * 16 * FORMATS[format].block_bytes


def pages_of(kernels: Kernels, format: int, part: str, rows: np.ndarray, blocks_: int) -> np.ndarray:
    """Pages [blocks, bytes] that hold rows [tokens, head_dim]; what is not stored is NaN."""
    out = np.full((blocks_, page_bytes(format, rows.shape[1])), 255, np.uint8)
    for t, row in enumerate(rows):
        kernels.store(part, format, np.ascontiguousarray(row), t % 16, out[t // 16])
    return out


def read_page(format: int, part: str, page: np.ndarray, head_dim: int) -> np.ndarray:
    """f32 [16][head_dim] of a page of K or V."""
    name, shape = FORMATS[format].name, (head_dim, 16) if part == "k" else (16, head_dim)
    if name == "Q8_0":
        scales = page[:head_dim].view(np.float16).astype(np.float32)
        q = page[head_dim:].view(np.int8).astype(np.float32).reshape(shape)
        wide = scales.reshape(-1, 16).repeat(32, 0) if part == "k" else scales.reshape(16, -1).repeat(32, 1)
        with np.errstate(invalid="ignore"):
            x = q * wide
    elif name == "F32":
        x = page.view(np.float32).reshape(shape)
    else:
        x = _weights.half_to_f32(page.view(np.uint16), name == "BF16").reshape(shape)
    return x.T if part == "k" else x


def stored(format: int, x: np.ndarray) -> np.ndarray:
    """f32 [..., head_dim] as a page keeps it."""
    name = FORMATS[format].name
    if name == "F32":
        return x
    if name == "Q8_0":
        x = np.where(np.isnan(x), x, np.clip(x, -3e38, 3e38)).astype(np.float32)
        blocks_ = x.reshape(*x.shape[:-1], -1, 32)
        with np.errstate(all="ignore"):
            scale = np.minimum(abs(blocks_).max(-1, keepdims=True) / np.float32(127), np.float32(65504)).astype(np.float16)
            scale = scale.astype(np.float32)
            q = np.clip(blocks_ / np.where(scale > 0, scale, np.float32(1)), -127, 127)
            return (np.round(q) * scale).astype(np.float32).reshape(x.shape)
    bfloat = name == "BF16"
    clamped = x if bfloat else np.where(np.isnan(x), x, np.clip(x, -65504, 65504)).astype(np.float32)
    return _weights.half_to_f32(_weights.half_of_f32(clamped.reshape(-1), bfloat), bfloat).reshape(x.shape)


@given(seeds, st.sampled_from(CACHE_FORMATS), kinds, st.integers(1, 100), st.integers(0, 15))
@few
def test_store(kernels: Kernels, seed: int, format: int, kind: str, half: int, slot: int) -> None:
    block = FORMATS[format].block_weights
    head_dim = -(-2 * half // block) * block
    x = values(np.random.default_rng(seed), kind, head_dim)
    for part in "kv":
        page, other = np.full((2, page_bytes(format, head_dim)), 255, np.uint8)
        kernels.store(part, format, x, slot, page)
        assert np.array_equal(read_page(format, part, page, head_dim)[slot], stored(format, x), equal_nan=True)
        kernels.store(part, format, x, (slot + 1) % 16, other)
        kept = other.copy()
        kernels.store(part, format, -x, slot, other)
        neighbour = (slot + 1) % 16
        assert same(read_page(format, part, other, head_dim)[neighbour], read_page(format, part, kept, head_dim)[neighbour])


@st.composite
def caches(draw: st.DrawFn) -> tuple[int, int, int]:
    """K's format, V's, and a head_dim both can hold."""
    k, v = draw(st.sampled_from(CACHE_FORMATS)), draw(st.sampled_from(CACHE_FORMATS))
    blocked = FORMATS[k].block_weights > 1 or FORMATS[v].block_weights > 1
    return k, v, draw(st.sampled_from([32, 64, 96] if blocked else [2, 6, 16, 30, 64, 128]))


@given(seeds, caches(), st.integers(1, 7), st.integers(1, 40), st.integers(0, 120), st.sampled_from([0, 0, 1, 5, 40]),
       st.sampled_from([0.0, 0.0, 5.0]), st.booleans(), st.booleans(), st.sampled_from(["normal", "spike"]), st.booleans(),
       st.booleans(), st.sampled_from([A16, BF16]))
@example(seed=4, cache=(0, 3, 64), share=4, new=24, old=32, window=5, softcap=0.0, sunk=False, treed=False, kind="spike",
         evicted=False, latent=False, path=0)
@settings(max_examples=80, deadline=None)
def test_attention(kernels: Kernels, seed: int, cache: tuple[int, int, int], share: int, new: int, old: int, window: int,
                   softcap: float, sunk: bool, treed: bool, kind: str, evicted: bool, latent: bool, path: int) -> None:
    """`new` tokens of a step behind `old` ones: tile == one by one == scalar, and scalar beside f64 with a naive mask.

    latent: V's pages serve as K's too."""
    rng = np.random.default_rng(seed)
    k_format, v_format, head_dim = cache
    k_format, kind = (v_format, "normal") if latent else (k_format, kind)
    path = A16 if latent else path  # latent rows are read alike on both
    new = min(new, 96 // share)
    tokens = old + new
    count = -(-tokens // 16) + 1  # the last page is empty
    k, v = values(rng, "normal", (tokens, head_dim)), values(rng, kind, (tokens, head_dim))
    k = v if latent else k
    q, scale = values(rng, "normal", (new, share, head_dim)), float(np.float32(head_dim**-0.5 * rng.choice([1, 3, 20])))
    held = np.full((count, 16), -1, np.int32)
    flat = held.reshape(-1)
    flat[:tokens] = np.arange(tokens)
    trees = None
    if treed:  # parents before children; a token sees its ancestors and itself
        parents = [int(rng.integers(-1, i)) if i else -1 for i in range(new)]
        trees = np.zeros(new, np.uint64)
        for i, parent in enumerate(parents):
            trees[i] = np.uint64(1 << i) | (trees[parent] if parent >= 0 else np.uint64(0))
            flat[old + i] = old if parent < 0 else flat[old + parent] + 1
    positions = flat[old:tokens].copy()
    hidden = rng.random(tokens) < (0.2 if evicted else 0)
    hidden[old:] &= rng.random() < 0.5
    flat[:tokens][hidden] = -1
    at, here = flat[:tokens][None], positions[:, None]
    seen = (at >= 0) & (at <= here) & ((window == 0) | (at > here - window))
    if trees is not None:
        seen[:, old:] &= (trees[:, None] >> np.arange(new, dtype=np.uint64) & np.uint64(1)).astype(bool)
    kp, vp = pages_of(SCALAR, k_format, "v" if latent else "k", k, count), pages_of(SCALAR, v_format, "v", v, count)
    split = int(rng.integers(1, count))
    if path == BF16:  # where a split may begin
        split = max(2, split // 2 * 2)
    sinks = values(rng, "normal", share) if sunk else None

    def whole(which: Kernels, tile: bool) -> list[np.ndarray]:
        parts = [which.attention(q, kp[a:b], None if latent else vp[a:b], held[a:b], positions, scale, window, softcap, k_format,
                                 v_format, trees, old, a, tile, path) for a, b in ((0, split), (split, count)) if a < b]
        return [which.attention_join(parts, head_dim, sinks), *(x for part in parts for x in part)]

    first = whole(SCALAR, False)
    for which, tile in ((SCALAR, True), (kernels, False), (kernels, True)):
        assert all(same(a, b) for a, b in zip(first, whole(which, tile), strict=True))
    got = first[0]
    k, v, wide = stored(k_format, k), stored(v_format, v), q
    if path == BF16:
        k, v, wide = to_bf16(k), to_bf16(v), to_bf16(wide)
    k, v, wide = k.astype(float), v.astype(float), wide.astype(float)
    s = np.einsum("thd,kd->thk", wide, k) * scale
    # A score is off by head_dim + 1 roundings of its magnitudes (the cap does not widen that, and adds 4); a weight by that,
    # its exponential's ulp and the roundings of shifts; numerator and denominator both carry it, and their own sums.
    off = (head_dim + 2) * U * (np.einsum("thd,kd->thk", abs(wide), abs(k)) * scale).max(where=seen[:, None], initial=0)
    if softcap:
        s = softcap * np.tanh(s / softcap)
        off += 5 * U * softcap
    s = np.where(seen[:, None], s, -np.inf)
    blind = ~seen.any(1)
    assert not got[blind].any()
    top = np.where(blind[:, None, None], 0, s.max(2, keepdims=True))
    p = np.exp(s - top)
    total = p.sum(2, keepdims=True) + (0 if sinks is None else np.exp(sinks.astype(float)[:, None] - top)) + blind[:, None, None]
    span = 100 * U  # arguments of exp up to 100 in magnitude before they cease to matter, each rounded once
    # On the BF16 path a weight is rounded to eight bits, in numerator and denominator alike, and none below e^-28.
    bound = (2 * off + 4 * span + (tokens + 40) * U + 2.02 * 2.0**-8 * (path == BF16)) * (p / total @ abs(v))
    bound += (path == BF16) * math.exp(-28) * (seen[:, None] @ abs(v))
    bound += np.exp(-87.0) * (seen[:, None].astype(float) / total @ abs(v))  # what v_exp_low takes for nothing
    assert (abs(got - p / total @ v) <= 1.01 * bound + TINY).all()


@pytest.mark.parametrize("path", [A16, BF16], ids=["a16", "bf16"])
@pytest.mark.parametrize("tile", [False, True])
def test_a_nan_that_is_seen_is_not_hidden(kernels: Kernels, tile: bool, path: int) -> None:
    v, k = np.ones((20, 16), np.float32), np.zeros((20, 16), np.float32)
    held = np.full((2, 16), -1, np.int32)
    held.reshape(-1)[:20] = np.arange(20)
    q = np.ones((2, 3, 16), np.float32)
    for which, at in ((k, 3), (k, 19), (v, 3), (v, 19)):
        kept, which[at, 5] = which[at, 5], np.nan
        pages = pages_of(SCALAR, 1, "k", k, 2), pages_of(SCALAR, 1, "v", v, 2)
        partial = kernels.attention(q, *pages, held, np.array([at - 1, 19], np.int32), 0.25, tile=tile, path=path)
        before, after = kernels.attention_join([partial], 16)
        assert np.isnan(after[:, 5]).all() and (which is v or np.isnan(after).all())
        assert (before == 1).all()
        which[at, 5] = kept


# ---- logits ----


@given(seeds, kinds, st.one_of(lengths, st.sampled_from([4095, 4096, 4097, 10000])))
@few
def test_argmax_and_exp_sum(kernels: Kernels, seed: int, kind: str, n: int) -> None:
    x = values(np.random.default_rng(seed), kind, n)
    at, largest, finite = SCALAR.argmax(x)
    assert finite == bool(np.isfinite(x).all())
    other = kernels.argmax(x)
    assert other[0] == at and other[2] == finite and same(np.float32(other[1]), np.float32(largest))
    assert same(np.float64(SCALAR.exp_sum(x, largest)), np.float64(kernels.exp_sum(x, largest)))
    if finite:
        assert at == x.argmax() and largest == x.max()
        want = np.exp(x.astype(float) - float(largest)).sum()
        # An argument is rounded once, at most U * 104 where it matters; e^x is within 1.1 ulp; a lane adds 256 values.
        assert abs(SCALAR.exp_sum(x, largest) - want) <= (104 + 3 + 256 + 5) * U * want


def test_the_first_of_equals_is_the_largest(kernels: Kernels) -> None:
    x = np.zeros(1000, np.float32)
    for first in (999, 517, 16, 15, 0):
        x[first] = 3.0
        assert kernels.argmax(x) == (first, 3.0, True)


# ---- recurrences ----


def recurrent(rng: np.random.Generator, kind: str, *shape: int) -> np.ndarray:
    return values(rng, kind, int(np.prod(shape))).reshape(shape)


@given(seeds, kinds, lengths, st.integers(1, 9), st.integers(2, 16), st.booleans(), st.integers(-1, 2))
@few
def test_convolutions_equal_scalar_in_any_chunks(kernels: Kernels, seed: int, kind: str, channels: int, tokens: int, taps: int,
                                                 biased: bool, activation: int) -> None:
    rng = np.random.default_rng(seed)
    x, w = recurrent(rng, kind, tokens, channels), recurrent(rng, "tame", channels, taps)
    state = recurrent(rng, kind, taps - 1, channels)
    bias = values(rng, "tame", channels) if biased else None
    want, after = SCALAR.conv(x, w, bias, state, activation)
    got = kernels.conv(x, w, bias, state, activation)
    assert same(want, got[0]) and same(after, got[1])
    outs = []
    for t in range(tokens):
        out, state = kernels.conv(x[t : t + 1], w, bias, state, activation)
        outs.append(out)
    assert same(want, np.concatenate(outs)) and same(after, state)


@given(seeds, lengths, st.integers(1, 9), st.integers(2, 16))
@few
def test_a_convolution_follows_f64(seed: int, channels: int, tokens: int, taps: int) -> None:
    """taps fused steps after the bias; the state is the last inputs as they came."""
    rng = np.random.default_rng(seed)
    x, w = recurrent(rng, "tame", tokens, channels), recurrent(rng, "tame", channels, taps)
    state = recurrent(rng, "tame", taps - 1, channels)
    bias = values(rng, "tame", channels)
    out, after = SCALAR.conv(x, w, bias, state, -1)
    inputs = np.concatenate([state, x]).astype(np.float64)
    assert np.array_equal(after, inputs[tokens:].astype(np.float32))
    each = np.stack([inputs[i : i + tokens] * w[:, i] for i in range(taps)])
    size = np.abs(each).sum(0) + np.abs(bias)
    assert (np.abs(out - (each.sum(0) + bias)) <= (taps + 1) * U * size).all()
    silu = SCALAR.conv(x, w, bias, state, 0)[0]
    assert same(silu, SCALAR.gate(0, out.ravel(), None).reshape(out.shape))


@given(seeds, kinds, st.integers(1, 100), st.integers(1, 40), st.integers(1, 11))
@few
def test_scans_equal_scalar_in_any_chunks(kernels: Kernels, seed: int, kind: str, head_dim: int, numbers: int, tokens: int) -> None:
    rng = np.random.default_rng(seed)
    xbc, state = recurrent(rng, kind, tokens, head_dim + 2 * numbers), recurrent(rng, kind, numbers, head_dim)
    dt, decay = rng.uniform(0, 2, tokens).astype(np.float32), rng.uniform(0, 1, tokens).astype(np.float32)
    want, after = SCALAR.scan(xbc, dt, decay, 0.7, state)
    got = kernels.scan(xbc, dt, decay, 0.7, state)
    assert same(want, got[0]) and same(after, got[1])
    outs, at = [], 0
    while at < tokens:
        end = at + int(rng.integers(1, 6))
        out, state = kernels.scan(xbc[at:end], dt[at:end], decay[at:end], 0.7, state)
        outs.append(out)
        at = end
    assert same(want, np.concatenate(outs)) and same(after, state)


@given(seeds, st.integers(1, 100), st.integers(1, 40), st.integers(1, 11))
@few
def test_a_scan_follows_f64(seed: int, head_dim: int, numbers: int, tokens: int) -> None:
    """Three roundings a step in a state that forgets, numbers fused steps and D in an output."""
    rng = np.random.default_rng(seed)
    xbc, state = recurrent(rng, "tame", tokens, head_dim + 2 * numbers), recurrent(rng, "tame", numbers, head_dim)
    dt, decay = rng.uniform(0, 2, tokens).astype(np.float32), rng.uniform(0, 1, tokens).astype(np.float32)
    out, after = SCALAR.scan(xbc, dt, decay, 0.7, state)
    s, size = state.astype(np.float64), np.abs(state).astype(np.float64)
    for t, row in enumerate(xbc.astype(np.float64)):
        x, b, c = np.split(row, [head_dim, head_dim + numbers])
        s = decay[t] * s + np.outer(b, dt[t] * x)
        size = decay[t] * size + np.abs(np.outer(b, dt[t] * x))
        slack = (3 * (t + 1) + numbers + 2) * U * (np.abs(c) @ size + abs(0.7 * x))
        assert (np.abs(out[t] - (c @ s + np.float32(0.7) * x)) <= slack).all()
    assert (np.abs(after - s) <= 3 * tokens * U * size).all()


@given(seeds, kinds, st.integers(1, 100), st.integers(1, 40), st.integers(1, 16), st.data())
@few
def test_blocks_equal_scalar_answered_in_any_parts(kernels: Kernels, seed: int, kind: str, head_dim: int, numbers: int,
                                                   tokens: int, data: st.DataObject) -> None:
    """The whole block at once, by scalar; then its tokens bit by bit, the state left alone until its end."""
    rng = np.random.default_rng(seed)
    xbc, state = recurrent(rng, kind, tokens, head_dim + 2 * numbers), recurrent(rng, kind, numbers, head_dim)
    dt, decay = rng.uniform(0, 2, tokens).astype(np.float32), rng.uniform(0, 1, tokens).astype(np.float32)
    want, after = SCALAR.scan_block(xbc, dt, decay, 0.7, state, 0, True)
    assert all(same(*two) for two in zip((want, after), kernels.scan_block(xbc, dt, decay, 0.7, state, 0, True), strict=True))
    ends = sorted({*data.draw(st.lists(st.integers(1, tokens), max_size=4)), tokens})
    for first, end in zip([0, *ends], ends, strict=False):
        out, left = kernels.scan_block(xbc[:end], dt[:end], decay[:end], 0.7, state, first, False)
        assert same(out, want[first:end]) and same(left, state)
    out, left = kernels.scan_block(xbc, dt, decay, 0.7, state, tokens, True)
    assert len(out) == 0 and same(left, after)


@given(seeds, st.integers(1, 100), st.integers(1, 40), st.integers(1, 16))
@few
def test_a_block_follows_f64(seed: int, head_dim: int, numbers: int, tokens: int) -> None:
    """Up to 15 products of decays, 16 fused steps, and the numbers c and b have."""
    rng = np.random.default_rng(seed)
    xbc, state = recurrent(rng, "tame", tokens, head_dim + 2 * numbers), recurrent(rng, "tame", numbers, head_dim)
    dt, decay = rng.uniform(0, 2, tokens).astype(np.float32), rng.uniform(0, 1, tokens).astype(np.float32)
    out, after = SCALAR.scan_block(xbc, dt, decay, 0.7, state, 0, True)
    s, size = state.astype(np.float64), np.abs(state).astype(np.float64)
    for t, row in enumerate(xbc.astype(np.float64)):
        x, b, c = np.split(row, [head_dim, head_dim + numbers])
        s = decay[t] * s + np.outer(b, dt[t] * x)
        size = decay[t] * size + np.abs(np.outer(b, dt[t] * x))
        slack = (numbers + 38) * U * (np.abs(c) @ size + abs(0.7 * x)) + TINY
        assert (np.abs(out[t] - (c @ s + np.float32(0.7) * x)) <= slack).all()
    assert (np.abs(after - s) <= 34 * U * size + TINY).all()


@given(seeds, kinds, lengths, st.booleans())
@few
def test_a_gated_norm_equals_scalar(kernels: Kernels, seed: int, kind: str, n: int, gate_last: bool) -> None:
    rng = np.random.default_rng(seed)
    x, gate, norm = values(rng, kind, n), values(rng, kind, n), values(rng, "tame", n)
    assert same(SCALAR.gated_norm(x, gate, norm, 1e-5, gate_last), kernels.gated_norm(x, gate, norm, 1e-5, gate_last))


@given(seeds, lengths, st.booleans())
@few
def test_a_gated_norm_follows_f64(seed: int, n: int, gate_last: bool) -> None:
    """A norm's error, a gate's and two products'."""
    rng = np.random.default_rng(seed)
    x, gate, norm = values(rng, "tame", n), values(rng, "tame", n), values(rng, "tame", n)
    wide, silu = x.astype(np.float64), gate / (1 + np.exp(-gate.astype(np.float64)))
    v = wide if gate_last else wide * silu
    want = v / np.sqrt((v**2).mean() + 1e-5) * norm * (silu if gate_last else 1)
    got = SCALAR.gated_norm(x, gate, norm, 1e-5, gate_last)
    assert (np.abs(got - want) <= ((n / 16 + 8) / 2 + 20) * U * np.abs(want) + TINY).all()


# ---- doors ----


def test_doors_refuse_wrong_shapes() -> None:
    with pytest.raises(FieldInvalid, match="none of scalar"):
        Kernels("avx1024")
    with pytest.raises(FieldInvalid):
        SCALAR.linear(0, np.zeros(10, np.uint8), 64, 0, 1, activations(SCALAR, np.ones((1, 64), np.float32)))
    with pytest.raises(FieldInvalid):
        SCALAR.add_bias(np.ones(4, np.float32), np.ones(3, np.float32))
    assert not SCALAR.has_cache_format(NAMES.index("Q4_0"))
    with pytest.raises(FieldInvalid):
        SCALAR.conv(np.ones((1, 4), np.float32), np.ones((4, 1), np.float32), None, np.ones((0, 4), np.float32), 0)
    with pytest.raises(FieldInvalid):
        SCALAR.scan(np.ones((1, 4), np.float32), np.ones(1, np.float32), np.ones(1, np.float32), 0.0, np.ones((2, 2), np.float32))
    ones = np.ones((17, 3), np.float32), np.ones(17, np.float32), np.ones(17, np.float32)
    for tokens, first in ((17, 0), (3, 4), (3, -1)):
        with pytest.raises(FieldInvalid):
            SCALAR.scan_block(*(x[:tokens] for x in ones), 0.0, np.ones((1, 1), np.float32), first, True)


@pytest.mark.parametrize("isa", [i.name for i in _kernels.isas()])
def test_a_set_keeps_its_code_to_itself(isa: str, tmp_path: Path) -> None:
    """No function of a set can be linked into another, and scalar uses the baseline's registers alone."""
    if not (compiler := shutil.which("gcc")) or not shutil.which("objdump"):
        pytest.skip("needs gcc and objdump")
    out = tmp_path / "set.o"
    subprocess.run([compiler, "-std=gnu11", "-O0", "-ffp-contract=off", f"-I{ROOT}/csrc", "-c", f"{ROOT}/csrc/isa/{isa}.c",
                    "-o", out], check=True)
    shown = [line for line in subprocess.run(["nm", "-g", "--defined-only", out], capture_output=True, check=True,
                                             text=True).stdout.split("\n") if line]
    assert [line.split()[-1] for line in shown] == [f"rt_kernels_{isa}"]
    code = subprocess.run(["objdump", "-d", out], capture_output=True, check=True, text=True).stdout
    wide = {"scalar": ("ymm", "zmm"), "avx2": ("zmm",)}.get(isa, ())
    assert not any(register in code for register in wide)
