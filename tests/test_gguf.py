"""GGUF: what the `gguf` package writes reads back equal; what we write, it reads back equal."""
from __future__ import annotations

import gc
import os
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyruntime import quant
from pyruntime._core._weights import GGUFFile
from pyruntime.errors import ModelInvalid, ModelNotFound
from pyruntime.texts import Texts
from pyruntime.weights.gguf import GGUFModel
from pyruntime.weights.gguf_writer import Tensor, write_gguf

T = gguf.GGUFValueType
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
floats32 = st.floats(width=32)
SCALARS: dict[T, st.SearchStrategy[Any]] = {
    T.UINT8: st.integers(0, 2**8 - 1), T.INT8: st.integers(-2**7, 2**7 - 1),
    T.UINT16: st.integers(0, 2**16 - 1), T.INT16: st.integers(-2**15, 2**15 - 1),
    T.UINT32: st.integers(0, 2**32 - 1), T.INT32: st.integers(-2**31, 2**31 - 1),
    T.UINT64: st.integers(0, 2**64 - 1), T.INT64: st.integers(-2**63, 2**63 - 1),
    T.FLOAT32: floats32, T.FLOAT64: st.floats(), T.BOOL: st.booleans(), T.STRING: text,
}
scalars = st.sampled_from(list(SCALARS)).flatmap(lambda t: st.tuples(st.just(t), st.none(), SCALARS[t]))
arrays = st.sampled_from(list(SCALARS)).flatmap(
    lambda t: st.tuples(st.just(T.ARRAY), st.just(t), st.lists(SCALARS[t], min_size=1, max_size=6)))
nested = st.lists(st.lists(st.integers(-2**31, 2**31 - 1), min_size=1, max_size=3), min_size=1, max_size=3)
fields = st.dictionaries(
    st.from_regex(r"[a-z]{1,8}(\.[a-z_]{1,8}){0,2}", fullmatch=True),
    scalars | arrays | st.tuples(st.just(T.ARRAY), st.just(T.ARRAY), nested),
    max_size=8,
)
IN_FILES = [name for name, twin in quant.FORMATS.items() if twin.GGML_TYPE != quant.NO_GGML_TYPE]
tensors = st.dictionaries(
    text.filter(bool),
    st.tuples(
        st.sampled_from(IN_FILES), st.lists(st.integers(1, 5), max_size=3), st.integers(1, 3)
    ),
    max_size=5,
)


def plain(value: Any) -> Any:
    """numpy arrays as lists, so that == compares everything."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [plain(v) for v in value] if isinstance(value, (list, Texts)) else value


def written(kind: T, item: T | None, value: Any) -> Any:
    """A value as 32-bit floats keep it."""
    if T.FLOAT32 in (kind, item):
        return np.array(value, np.float32).tolist()
    return value


def equal(a: Any, b: Any) -> bool:
    """== that takes NaN for equal to itself, and tells True from 1."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


def write_with_gguf(path: Path, fields: dict, tensors: dict, alignment: int) -> dict[str, np.ndarray]:
    path.unlink(missing_ok=True)
    writer = gguf.GGUFWriter(path, "test")
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    for key, (kind, item, value) in fields.items():
        writer.add_key_value(key, value, kind, sub_type=item if item != T.ARRAY else None)
    data = {}
    for i, (name, (format, dims, blocks)) in enumerate(tensors.items()):
        twin = quant.FORMATS[format]
        shape = (*dims, blocks * twin.BLOCK_WEIGHTS)
        raw = np.random.default_rng(i).integers(0, 256, quant.nbytes(twin, shape), np.uint8)
        rows = raw.reshape(*dims, blocks * twin.BLOCK_BYTES)
        writer.add_tensor(name, rows, raw_dtype=gguf.GGMLQuantizationType[format])
        data[name] = raw
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return data


@settings(max_examples=200, deadline=None)
@given(fields=fields, tensors=tensors, alignment=st.sampled_from([8, 32, 256]))
def test_reads_back_what_gguf_writes(
    tmp_path_factory: Any, fields: dict, tensors: dict, alignment: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "written.gguf"
    data = write_with_gguf(path, fields, tensors, alignment)
    with GGUFFile(path) as file:
        assert (file.version, file.alignment, file.path) == (3, alignment, str(path))
        assert file.metadata["general.architecture"] == "test"
        for key, field in fields.items():
            assert equal(plain(file.metadata[key]), written(*field)), key
            assert file.metadata_types[key] == field[0]
        assert list(file.tensors) == list(data)
        for name, (format, dims, blocks) in tensors.items():
            info = file.tensors[name]
            assert (info.name, info.format) == (name, format)
            assert info.shape == (*dims, blocks * quant.FORMATS[format].BLOCK_WEIGHTS)
            assert info.offset % alignment == 0 and info.nbytes == data[name].nbytes
            assert np.array_equal(file.raw(name), data[name])


@settings(max_examples=60, deadline=None)
@given(fields=fields, tensors=tensors, alignment=st.sampled_from([8, 32, 4096]))
def test_gguf_reads_what_we_write(tmp_path_factory: Any, fields: dict, tensors: dict, alignment: int) -> None:
    path = tmp_path_factory.getbasetemp() / "ours.gguf"
    made = []
    for i, (name, (format, dims, blocks)) in enumerate(tensors.items()):
        shape = (*dims, blocks * quant.FORMATS[format].BLOCK_WEIGHTS)
        size = quant.nbytes(quant.FORMATS[format], shape)
        made.append(Tensor(name, format, shape, np.random.default_rng(i).integers(0, 256, size, np.uint8)))
    values = {
        k: np.array(v, item.name.lower()) if item in NUMERIC else v for k, (_, item, v) in fields.items()
    }
    types = {k: kind for k, (kind, _, _) in fields.items()}
    write_gguf(path, values, made, alignment=alignment, types=types)
    with GGUFFile(path) as file:
        for key, field in fields.items():
            assert equal(plain(file.metadata[key]), written(*field)), key
    reader = gguf.GGUFReader(path)
    for key, (kind, item, value) in fields.items():
        if item != T.ARRAY:  # its reader flattens arrays of arrays
            assert reader.fields[key].types[0] == kind
            assert equal(reader.fields[key].contents(), written(kind, item, value)), key
    for mine, theirs in zip(made, reader.tensors, strict=True):
        assert (theirs.name, theirs.tensor_type.name) == (mine.name, mine.format)
        assert tuple(theirs.shape[::-1].tolist()) == mine.shape
        assert np.array_equal(theirs.data.reshape(-1).view(np.uint8), mine.data)


NUMERIC = set(SCALARS) - {T.STRING}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Two tensors and a few fields."""
    made = [
        Tensor("a", "F32", (3, 5), np.arange(60, dtype=np.uint8)),
        Tensor("b", "Q8_0", (2, 32), np.zeros(68, np.uint8)),
    ]
    write_gguf(tmp_path / "small.gguf", {"general.architecture": "test", "n": 3, "list": ["x", "y"]}, made)
    return tmp_path / "small.gguf"


def test_raw_is_a_view_that_outlives_the_file(small: Path) -> None:
    file = GGUFFile(small)
    view = file.raw("a")
    assert not view.flags.writeable and not view.flags.owndata
    assert view.ctypes.data == file.raw("a").ctypes.data
    with pytest.raises(ValueError):
        view[0] = 1
    with pytest.raises(ValueError):
        view.setflags(write=True)
    file.close()
    file.close()
    del file
    gc.collect()
    small.unlink()
    assert view.tolist() == list(range(60))


def test_nothing_stays_open(small: Path) -> None:
    def held() -> tuple[int, int]:
        gc.collect()
        return len(os.listdir("/proc/self/fd")), Path("/proc/self/maps").read_text().count("small.gguf")
    before = held()
    for _ in range(5):
        GGUFFile(small).raw("a")
        with pytest.raises(ModelInvalid):
            GGUFFile("/dev/zero")
    assert held() == before


def test_closed(small: Path) -> None:
    file = GGUFFile(small)
    file.close()
    for use in (lambda: file.raw("a"), lambda: file.metadata, file.check, lambda: file.version):
        with pytest.raises(ValueError, match="closed"):
            use()
    assert "a" in file.tensors


def test_unknown_names(small: Path) -> None:
    with GGUFFile(small) as file, pytest.raises(KeyError):
        file.raw("c")
    with GGUFFile(small) as file, pytest.raises(KeyError):
        file.pack({"c": np.zeros(4, np.uint8)})


def test_bytes_that_are_no_utf8_survive(tmp_path: Path) -> None:
    odd = "a\udcff\udc80b"
    write_gguf(
        tmp_path / "odd.gguf",
        {odd: odd, "tokens": [odd, "\u00e9"]},
        [Tensor(odd, "F32", (1,), np.zeros(4, np.uint8))],
    )
    with GGUFFile(tmp_path / "odd.gguf") as file:
        assert file.metadata == {odd: odd, "tokens": [odd, "\u00e9"]}
        assert list(file.tensors) == [odd] and file.raw(odd).nbytes == 4


@pytest.mark.parametrize(
    "make, error, match",
    [
        (lambda p: None, ModelNotFound, "no such file"),
        (lambda p: p.mkdir(), ModelInvalid, "a folder, not a GGUF file"),
        (lambda p: p.write_bytes(b""), ModelInvalid, "the file is empty"),
        (lambda p: p.write_bytes(b"PK"), ModelInvalid, 'starts with "PK"'),
        (
            lambda p: p.write_bytes(b"\x80\x02}q" * 9),
            ModelInvalid,
            r'not a GGUF file: it starts with "\\x80\\x02}q", not "GGUF"',
        ),
        (lambda p: p.write_bytes(b"GGUF\1\0\0\0" + bytes(64)), ModelInvalid, "version 1 is no longer read"),
        (lambda p: p.write_bytes(b"GGUF\0\0\0\3" + bytes(64)), ModelInvalid, "big-endian"),
        (
            lambda p: p.write_bytes(b"GGUF\4\0\0\0" + bytes(64)),
            ModelInvalid,
            "GGUF version 4; versions 2 and 3 are read",
        ),
        (lambda p: os.mkfifo(p), ModelInvalid, "not a regular file"),
    ],
    ids=["missing", "folder", "empty", "zip", "pickle", "v1", "big-endian", "v4", "pipe"],
)
def test_files_that_are_none(tmp_path: Path, make: Any, error: type[Exception], match: str) -> None:
    path = tmp_path / "mod\u00e8le.gguf"
    make(path)
    with pytest.raises(error, match=match) as caught:
        GGUFFile(path)
    assert str(path)[-40:] in str(caught.value) and "\n" not in str(caught.value)
    for other in (str(path), os.fsencode(path)):
        with pytest.raises(error):
            GGUFFile(other)


def test_paths_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="zero byte"):
        GGUFFile("a\0b")
    with pytest.raises(ModelNotFound) as caught:
        GGUFFile(tmp_path / "two\nlines\x1b[31m")
    assert "\\x0a" in str(caught.value) and "\x1b" not in str(caught.value)
    with pytest.raises(OSError, match="cannot be opened"):
        GGUFFile("x" * 5000)


def test_an_unknown_format_is_an_error_only_when_asked_for(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "k.gguf", "test")
    writer.add_tensor("weights", np.zeros((2, 66), np.uint8), raw_dtype=gguf.GGMLQuantizationType.IQ2_XXS)
    writer.add_tensor("fine", np.zeros((2, 34), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GGUFFile(tmp_path / "k.gguf") as file:
        assert file.tensors["weights"].format == "IQ2_XXS" and file.tensors["weights"].shape == (2, 256)
        assert file.raw("weights").nbytes == 132
        assert file.supported("fine") == list(quant.FORMATS).index("Q8_0")
        wanted = r"k\.gguf: tensor weights is stored as IQ2_XXS \(ggml type 16\), .* " + " ".join(IN_FILES) + " weights"
        with pytest.raises(ModelInvalid, match=wanted):
            file.supported("weights")
        with pytest.raises(ModelInvalid, match=wanted):
            file.pack({"weights": np.zeros(640, np.uint8)})


def test_formats_without_a_number_are_in_no_file(tmp_path: Path) -> None:
    path = tmp_path / "f8.gguf"
    write_gguf(path, {}, [Tensor("weights", "F32", (1, 4), np.zeros(16, np.uint8))])
    before = path.read_bytes()
    at = before.index(b"weights") + len(b"weights") + 4 + 2 * 8
    path.write_bytes(before[:at] + struct.pack("<I", quant.NO_GGML_TYPE) + before[at + 4:])
    with GGUFFile(path) as file, pytest.raises(ModelInvalid, match=r"ggml type 4294967295\), which is not supported"):
        file.supported("weights")


@pytest.mark.parametrize("name", [n for n in IN_FILES if quant.FORMATS[n].BLOCK_WEIGHTS == 256])
def test_rows_that_are_not_whole_blocks(tmp_path: Path, name: str) -> None:
    path = tmp_path / "k.gguf"
    write_gguf(path, {}, [Tensor("weights", name, (4, 256), np.zeros(4 * quant.FORMATS[name].BLOCK_BYTES, np.uint8))])
    before = path.read_bytes()
    at = before.index(b"weights") + len(b"weights") + 4
    path.write_bytes(before[:at] + struct.pack("<Q", 320) + before[at + 8:])
    with pytest.raises(ModelInvalid, match=rf"tensor weights: rows of 320 are not whole blocks of 256 \({name}\)"):
        GGUFFile(path)


def test_a_failed_write_leaves_the_old_file(small: Path) -> None:
    before = small.read_bytes()

    def broken() -> np.ndarray:
        raise RuntimeError("no more")
    with pytest.raises(RuntimeError):
        write_gguf(small, {}, [Tensor("a", "F32", (1,), broken)])
    with pytest.raises(ValueError, match="3 bytes, its shape and format take 4"):
        write_gguf(small, {}, [Tensor("a", "F32", (1,), np.zeros(3, np.uint8))])
    with pytest.raises(ValueError, match="F8_E4M3 has no number in GGUF files"):
        write_gguf(small, {}, [Tensor("a", "F8_E4M3", (1,), np.zeros(1, np.uint8))])
    assert small.read_bytes() == before and os.listdir(small.parent) == [small.name]


# ---- split models ----

def split_model(folder: Path) -> list[Path]:
    writer = gguf.GGUFWriter(folder / "m.gguf", "test", split_max_tensors=2)
    for i in range(5):
        writer.add_tensor(f"t{i}", np.full((2, 3), i, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob("*.gguf"))


def test_any_part_opens_the_split_model(tmp_path: Path) -> None:
    parts = split_model(tmp_path)
    assert [p.name for p in parts] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for part in parts:
        with GGUFModel(part) as model:
            assert model.architecture == "test" and list(model.tensors) == [f"t{i}" for i in range(5)]
            assert model.shapes["t3"] == (2, 3)
            assert [model.raw(f"t{i}").view(np.float32)[0] for i in range(5)] == list(range(5))
            outs = {f"t{i}": np.empty(4096, np.uint8) for i in range(5)}
            model.pack(outs)
            assert [outs[f"t{i}"].view(np.float32)[0] for i in range(5)] == list(range(5))


def test_a_split_model_with_a_part_missing_or_misplaced(tmp_path: Path) -> None:
    first, second, third = split_model(tmp_path)
    second.rename(tmp_path / "aside")
    with pytest.raises(ModelNotFound, match=r"m-00002-of-00003\.gguf: no such file; it is a part of"):
        GGUFModel(first)
    second.write_bytes(third.read_bytes())
    with pytest.raises(ModelInvalid, match=r"m-00002-of-00003\.gguf: metadata 'split.no' is 2"):
        GGUFModel(first)
    first.rename(tmp_path / "renamed.gguf")
    with pytest.raises(ModelInvalid, match="it must be named NAME-00001-of-00003.gguf"):
        GGUFModel(tmp_path / "renamed.gguf")
