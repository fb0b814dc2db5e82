"""R16: the C packing equals the numpy twin byte for byte, loses nothing, and needs only the file it reads."""
from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyruntime import quant
from pyruntime._core import _weights
from pyruntime.errors import FieldInvalid, ModelInvalid
from pyruntime.plan import Weight
from pyruntime.weights import FORMATS, from_blocks, load_weights
from pyruntime.weights.gguf import GGUFModel
from pyruntime.weights.gguf_writer import Tensor, write_gguf

IN_FILES = {name: twin for name, twin in quant.FORMATS.items() if twin.GGML_TYPE != quant.NO_GGML_TYPE}
shapes = st.tuples(st.sampled_from(FORMATS), st.integers(1, 70), st.integers(1, 8), st.integers(0, 31),
                   st.integers(0, 2**32 - 1))


def matrix(name: str, rows: int, blocks: int, ragged: int, seed: int) -> tuple[int, np.ndarray]:
    """k and random bytes; only the unquantized formats may have a k that is not a multiple of 32."""
    k = max(32, quant.FORMATS[name].BLOCK_WEIGHTS) * blocks - (ragged if quant.FORMATS[name].BLOCK_WEIGHTS == 1 else 0)
    return k, np.random.default_rng(seed).integers(
        0, 256, quant.nbytes(quant.FORMATS[name], (rows, k)), np.uint8
    )


def packed_by_c(name: str, rows: int, k: int, blocks: np.ndarray, threads: int = 0) -> np.ndarray:
    format = FORMATS.index(name)
    out = np.full(_weights.packed_bytes(format, rows, k), 0x55, np.uint8)
    _weights.pack(format, rows, k, blocks, out, threads)
    return out


@settings(max_examples=150, deadline=None)
@given(shape=shapes, threads=st.integers(0, 4))
def test_c_packs_as_the_twin(shape: tuple, threads: int) -> None:
    name, rows, *_ = shape
    k, blocks = matrix(*shape)
    packed = packed_by_c(name, rows, k, blocks, threads)
    assert packed.tobytes() == quant.FORMATS[name].pack(blocks, rows, k).tobytes()
    tile_k = _weights.formats()[FORMATS.index(name)].tile_k
    assert packed.nbytes == -(-rows // 16) * -(-k // tile_k) * quant.FORMATS[name].PACKED_BYTES


@settings(max_examples=100, deadline=None)
@given(shape=shapes)
def test_packing_loses_nothing(shape: tuple) -> None:
    name, rows, *_ = shape
    k, blocks = matrix(*shape)
    format, packed = FORMATS.index(name), packed_by_c(name, rows, k, blocks)
    with np.errstate(all="ignore"):
        values = quant.FORMATS[name].dequantize(blocks, (rows, k))
        again = quant.FORMATS[name].unpack(packed, rows, k)
    assert np.array_equal(_weights.unpack(format, rows, k, packed), values, equal_nan=True)
    assert np.array_equal(again, values, equal_nan=True)


@pytest.mark.parametrize("name", FORMATS)
def test_padding_multiplies_as_zero(name: str) -> None:
    twin = quant.FORMATS[name]
    k = -(-96 // twin.BLOCK_WEIGHTS) * twin.BLOCK_WEIGHTS
    blocks = twin.quantize(np.random.default_rng(1).standard_normal((17, k)).astype(np.float32))
    packed = packed_by_c(name, 17, k, blocks)
    whole = twin.unpack(packed, 32, -(-k // 64) * 64)
    assert np.array_equal(whole[:17, :k], twin.dequantize(blocks, (17, k)))
    assert not whole[17:].any() and not whole[:, k:].any()


@pytest.mark.parametrize("name, layout", [
    ("Q8_0", lambda t: (t[64 + 512 + 3 * 64 + 5 * 4 + 2] ^ 0x80, (32 + 3 * 4 + 2))),
    ("Q4_0", lambda t: (t[64 + 3 * 64 + 5 * 4 + 2] >> 4, (32 + 3 * 4 + 2))),
    ("Q4_1", lambda t: (t[128 + 3 * 64 + 5 * 4 + 2] >> 4, (32 + 3 * 4 + 2))),
])
def test_the_layout_as_it_is_written_down(name: str, layout) -> None:
    """Half 1, step 3, row 5, byte 2 of a tile is k = 46 of row 5; its scale is d[1][5]."""
    twin = quant.FORMATS[name]
    x = np.random.default_rng(2).standard_normal((16, 64)).astype(np.float32)
    blocks = twin.quantize(x)
    tile = packed_by_c(name, 16, 64, blocks)
    raw, k = layout(tile)
    d = float(tile[32 + 10:32 + 12].view(np.float16)[0])
    value = {"Q8_0": lambda: d * np.int8(raw), "Q4_0": lambda: d * (int(raw) - 8),
             "Q4_1": lambda: d * int(raw) + float(tile[96 + 10:96 + 12].view(np.float16)[0])}[name]()
    assert np.float32(value) == pytest.approx(twin.dequantize(blocks, (16, 64))[5, k], rel=1e-6)


def test_sizes_that_cannot_be_are_zero() -> None:
    big = 2**64 - 1
    q8 = FORMATS.index("Q8_0")
    for rows, k in ((0, 32), (1, 0), (1, 33), (big, 32), (1, big - 31), (2**32, 2**40), (big // 34 + 1, 32)):
        assert _weights.packed_bytes(q8, rows, k) == 0, (rows, k)
    assert _weights.packed_bytes(FORMATS.index("F32"), big // 4, 1) == 0
    with pytest.raises(FieldInvalid, match=f"weight format {len(FORMATS)}"):
        _weights.packed_bytes(len(FORMATS), 1, 1)
    with pytest.raises(FieldInvalid, match="bytes"):
        _weights.pack(q8, 16, 64, np.zeros(5, np.uint8), np.zeros(1088, np.uint8))


def test_region_hands_out_aligned_memory_once() -> None:
    region = _weights.Region(1000)
    assert region.nbytes == 2 << 20
    views = [region.take(n) for n in (1, 100, 64)]
    assert all(v.ctypes.data % 64 == 0 for v in views)
    assert [v.nbytes for v in views] == [1, 100, 64]
    for i, v in enumerate(views):
        v[:] = i + 1
    assert [set(v.tolist()) for v in views] == [{1}, {2}, {3}]
    with pytest.raises(FieldInvalid):
        region.take(2 << 20)
    del region  # the views hold it
    assert views[1][99] == 2
    with pytest.raises(MemoryError, match="low-memory"):
        _weights.Region(2**62)
    with pytest.raises(MemoryError):
        _weights.Region(2**64 - 1)
    assert _weights.Region(0).nbytes == 0


# ---- from a file ----

def tiny_model(path: Path, rows: int = 100) -> list[Weight]:
    """One matrix and one vector of every format."""
    rng, tensors, weights = np.random.default_rng(7), [], []
    for name, twin in IN_FILES.items():
        k = max(96, 2 * twin.BLOCK_WEIGHTS if twin.BLOCK_WEIGHTS > 32 else 0)
        tensors.append(
            Tensor(f"{name}.m", name, (rows, k), twin.quantize(rng.standard_normal((rows, k), np.float32)))
        )
        tensors.append(Tensor(f"{name}.v", name, (k,), twin.quantize(rng.standard_normal(k, np.float32))))
        weights += [Weight(f"{name}.m", rows, k), Weight(f"{name}.v", k)]
    write_gguf(path, {"general.architecture": "none"}, tensors)
    return weights


def test_packed_and_low_memory_hold_the_same_values(tmp_path: Path) -> None:
    plan_weights = tiny_model(tmp_path / "m.gguf")
    reports: list[tuple[int, int]] = []
    with GGUFModel(tmp_path / "m.gguf") as model:
        packed = load_weights(
            plan_weights, model, threads=2, progress=lambda done, total: reports.append((done, total))
        )
        low = load_weights(plan_weights, model, low_memory=True)
        given_blocks = {
            w.name: (model.tensors[w.name].format, np.array(model.raw(w.name))) for w in plan_weights
        }
    total = sum(len(given_blocks[w.name][1]) for w in plan_weights if w.k)
    assert reports[0] == (0, total) and reports[-1] == (total, total)
    memory = from_blocks(plan_weights, given_blocks)
    for a, b, c in zip(packed, low, memory, strict=True):
        name, data = given_blocks[a.name]
        expected = quant.FORMATS[name].dequantize(data, (a.rows, a.k) if a.k else (a.rows,))
        assert (
            np.array_equal(a.f32(), expected)
            and np.array_equal(b.f32(), expected)
            and np.array_equal(c.f32(), expected)
        )
        if a.k:
            assert (
                a.format_name == name and a.packed is not None and b.packed is None and b.blocks is not None
            )
            assert np.array_equal(a.packed, quant.FORMATS[name].pack(data, a.rows, a.k))
            assert np.array_equal(b.blocks, data) and not b.blocks.flags.owndata
        else:
            assert a.format_name == "F32" and a.packed is not None and a.packed.nbytes == 4 * a.rows
    assert packed["F32.m"].nbytes == 7 * 2 * 4096


def test_weights_outlive_the_file(tmp_path: Path) -> None:
    plan_weights = tiny_model(tmp_path / "m.gguf")
    model = GGUFModel(tmp_path / "m.gguf")
    packed, low = load_weights(plan_weights, model), load_weights(plan_weights, model, low_memory=True)
    expected = low["Q4_1.m"].f32()
    model.close()
    (tmp_path / "m.gguf").unlink()
    assert np.array_equal(packed["Q4_1.m"].f32(), expected)
    assert np.array_equal(low["Q4_1.m"].f32(), expected)  # its view keeps the mapping
    with pytest.raises(ValueError, match="closed"):
        model.raw("Q4_1.m")


def test_a_plan_the_file_does_not_fit(tmp_path: Path) -> None:
    tiny_model(tmp_path / "m.gguf")
    model = GGUFModel(tmp_path / "m.gguf")
    with pytest.raises(ModelInvalid, match=r"m\.gguf: tensor nowhere is missing"):
        load_weights([Weight("nowhere", 3, 32)], model)
    with pytest.raises(ModelInvalid, match=r"Q8_0\.m at byte \d+ is 100 x 96, the model needs 96 x 100"):
        load_weights([Weight("Q8_0.m", 96, 100)], model)


@pytest.mark.parametrize("threads", [1, 2, 3, 64])
def test_shares_of_many_pages_make_the_same_tiles(tmp_path: Path, threads: int) -> None:
    """Tensors of several 2 MB pages and several to a page, read in shares by threads that each take a page's: as in one piece."""
    rng, shapes = np.random.default_rng(2), {f"m{i}": shape for i, shape in enumerate(
        [(2050, 2048), (16, 64), (33, 4096), *[(100, 256)] * 40, (5000, 1024), (1, 32), (40, 32768)])}
    blocks = {name: rng.integers(0, 256, quant.nbytes(quant.FORMATS["Q8_0"], shape), np.uint8) for name, shape in shapes.items()}
    write_gguf(tmp_path / "m.gguf", {"general.architecture": "none"},
               [Tensor(name, "Q8_0", shape, blocks[name]) for name, shape in shapes.items()])
    with GGUFModel(tmp_path / "m.gguf") as model:
        ours = load_weights([Weight(name, *shape) for name, shape in shapes.items()], model, threads=threads)
    for weight in ours:
        whole = np.empty(_weights.packed_bytes(weight.format, weight.rows, weight.k), np.uint8)
        _weights.pack(weight.format, weight.rows, weight.k, blocks[weight.name], whole, 1)
        assert np.array_equal(weight.packed, whole), weight.name


def test_a_forked_child_packs_too(tmp_path: Path) -> None:
    plan_weights = tiny_model(tmp_path / "m.gguf", rows=2000)
    model = GGUFModel(tmp_path / "m.gguf")
    here = load_weights(plan_weights, model, threads=4)["Q8_0.m"].packed
    child = os.fork()
    if child == 0:
        there = load_weights(plan_weights, model, threads=4)["Q8_0.m"].packed
        os._exit(0 if np.array_equal(here, there) else 1)
    assert os.waitpid(child, 0)[1] == 0
