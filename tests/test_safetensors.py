"""safetensors files: what the `safetensors` package writes is read back equal; a file that lies gets one line that names file and
tensor, in bounded time and memory. `tests/corpus/safetensors` keeps one file a class: bad-* and ok-*."""
from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyruntime._core._weights import SafetensorsFile, packed_bytes, unpack
from pyruntime.errors import FieldInvalid, ModelInvalid, ModelNotFound
from pyruntime.weights import FORMATS

safetensors = pytest.importorskip("safetensors")
CORPUS = Path(__file__).parent / "corpus" / "safetensors"
BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32,
        "F32": 32, "F64": 64, "I64": 64, "U64": 64, "C64": 64}
RUST = {"BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn", "I16": "int16",
        "U16": "uint16", "F16": "float16", "BF16": "bfloat16", "I32": "int32", "U32": "uint32", "F32": "float32", "F64": "float64",
        "I64": "int64", "U64": "uint64", "C64": "complex64"}


def entry(dtype: str = "F32", shape: Any = (1,), first: Any = 0, last: Any = 4) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [first, last]}


def file_of(header: dict[str, Any] | str | bytes, data: int = 0, length: int | None = None) -> bytes:
    """A file from its header, as objects or as text, with `data` bytes behind it; the length may lie."""
    raw = json.dumps(header).encode() if isinstance(header, dict) else header.encode() if isinstance(header, str) else header
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + bytes(data)


ONE = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
#: name -> (content, what the error says; None: a good file). The corpus holds each of them.
CASES: dict[str, tuple[bytes, str | None]] = {
    "ok-empty": (file_of({}), None),
    "ok-blanks-around-everything": (
        file_of('{ "t" :\t{ "shape" : [ 1 ,\n1 ] , "data_offsets":[0, 4],"dtype" : "F32" } }   ', 4), None),
    "ok-metadata": (file_of({"__metadata__": {"format": "pt", "é": ""}, "t": entry()}, 4), None),
    "ok-scalar-and-empty": (file_of({"a": entry(shape=()), "b": entry(shape=(0, 7), first=4, last=4)}, 4), None),
    "ok-empty-ones-anywhere": (file_of({"b": entry(shape=(0,), first=0, last=0), "a": entry(), "c": entry(shape=(0,), first=4)}, 4),
                               None),
    "ok-escapes": (file_of('{"\\u0041\\n\\ud83d\\ude00\\/":' + ONE + "}", 4), None),
    "ok-six-bits": (file_of({"t": entry("F6_E2M3", (4,), 0, 3)}, 3), None),
    "bad-nothing": (b"", "0 bytes are no safetensors file"),
    "bad-seven-bytes": (bytes(7), "7 bytes are no safetensors file"),
    "bad-header-length-beyond-the-file": (file_of({}, length=3), "a header of 3 bytes in a file of 10"),
    "bad-header-length-wraps": (file_of({}, length=2**64 - 1), "a header of 18446744073709551615 bytes"),
    "bad-header-length-above-the-limit": (file_of({}, length=100_000_001), "at most 100000000 can be"),
    "bad-header-empty": (file_of(b""), "does not begin with {"),
    "bad-header-begins-with-a-blank": (file_of(" {}"), "does not begin with {"),
    "bad-header-is-a-list": (file_of("[]"), "does not begin with {"),
    "bad-header-ends-early": (file_of('{"t":{"dtype":"F32"'), "the header ends where"),
    "bad-header-ends-in-a-string": (file_of('{"t'), "the header ends inside a string"),
    "bad-header-goes-on": (file_of("{}{}"), "where its end should be"),
    "bad-comma-at-the-end": (file_of('{"t":' + ONE + ",}", 4), "where a tensor's name should be"),
    "bad-no-colon": (file_of('{"t" ' + ONE + "}", 4), "where : should be"),
    "bad-single-quotes": (file_of("{'t':" + ONE + "}", 4), "where a tensor's name should be"),
    "bad-nesting-bomb": (file_of('{"t":' + "[" * 3000 + "]" * 3000 + "}"), "where { should be"),
    "bad-nesting-bomb-in-the-shape": (file_of('{"t":{"shape":' + "[" * 3000), "where a whole number should be"),
    "bad-number-bomb": (file_of('{"t":{"shape":[' + "9" * 3000 + "]"), "a number that does not fit in 64 bits"),
    "bad-negative": (file_of({"t": entry(shape=(-1,))}, 4), "where a whole number should be"),
    "bad-fraction": (file_of({"t": entry(shape=(1.0,))}, 4), "where a , or . should be"),
    "bad-exponent": (file_of('{"t":{"dtype":"F32","shape":[1e0],"data_offsets":[0,4]}}', 4), "where a , or . should be"),
    "bad-leading-zero": (file_of('{"t":{"dtype":"F32","shape":[01],"data_offsets":[0,4]}}', 4), "a number that begins with 0"),
    "bad-null": (file_of('{"t":null}'), "where { should be"),
    "bad-missing-dtype": (file_of('{"t":{"shape":[1],"data_offsets":[0,4]}}', 4), "tensor t needs a dtype"),
    "bad-one-offset": (file_of('{"t":{"dtype":"F32","shape":[1],"data_offsets":[4]}}', 4), "tensor t needs a dtype"),
    "bad-three-offsets": (file_of('{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4,4]}}', 4), "tensor t: more than 2 numbers"),
    "bad-nine-dimensions": (file_of({"t": entry(shape=(1,) * 9)}, 4), "tensor t: more than 8 numbers"),
    "bad-key-nobody-knows": (file_of('{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}}', 4), "tensor t: x is nothing"),
    "bad-key-twice": (
        file_of('{"t":{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}}', 4), "tensor t: shape is there twice"),
    "bad-dtype": (file_of({"t": entry("Q4_K")}, 4), "tensor t has the dtype Q4_K"),
    "bad-tensor-twice": (file_of('{"t":' + ONE + ',"u":' + ONE + ',"t":' + ONE + "}", 4), "tensor t is there twice"),
    "bad-tensor-twice-by-an-escape": (file_of('{"t":' + ONE + ',"\\u0074":' + ONE + "}", 4), "tensor t is there twice"),
    "bad-metadata-twice": (file_of('{"__metadata__":{},"__metadata__":{}}'), "__metadata__ is there twice"),
    "bad-metadata-key-twice": (file_of('{"__metadata__":{"a":"1","a":"2"}}'), "metadata a is there twice"),
    "bad-metadata-number": (file_of('{"__metadata__":{"a":1}}'), "where a text should be"),
    "bad-shape-wraps": (file_of({"t": entry(shape=(2**32, 2**32))}, 4), "tensor t: its size does not fit in 64 bits"),
    "bad-shape-wraps-to-none": (file_of({"t": entry(shape=(2**62, 4), last=0)}), "tensor t: its size does not fit in 64 bits"),
    "bad-bits-wrap": (file_of({"t": entry(shape=(2**59 + 1,), last=4)}, 4), "tensor t: its size does not fit in 64 bits"),
    "bad-size": (
        file_of({"t": entry(shape=(2,))}, 4), "tensor t: its shape and dtype F32 take 64 bits, its data_offsets are 0 to 4"),
    "bad-offsets-turned": (file_of({"t": entry(first=4, last=0)}, 4), "tensor t: its shape and dtype"),
    "bad-half-a-byte": (file_of({"t": entry("F4", (1,), 0, 1)}, 1), "tensor t: its shape and dtype F4 take 4 bits"),
    "bad-beyond-the-end": (file_of({"t": entry()}, 3), "tensor t: 4 bytes at byte 0 of the data, which has 3"),
    "bad-offset-huge": (file_of({"t": entry(first=2**64 - 4, last=2**64 - 1, dtype="U8", shape=(3,))}, 4), "behind a hole"),
    "bad-hole-in-front": (file_of({"t": entry(first=4, last=8)}, 8), "tensor t begins at byte 4 of the data, behind a hole"),
    "bad-hole": (file_of({"t": entry(), "u": entry(first=8, last=12)}, 12), "tensor u begins at byte 8 of the data, behind a hole"),
    "bad-overlap": (file_of({"t": entry(shape=(2,), last=8), "u": entry(first=4, last=8)}, 8), "tensor u begins at byte 4.*inside"),
    "bad-same-place": (file_of({"t": entry(), "u": entry()}, 4), "begins at byte 0 of the data, inside one that ends at byte 4"),
    "bad-bytes-behind": (file_of({"t": entry()}, 5), "1 bytes behind the last tensor belong to none"),
    "bad-bytes-behind-nothing": (file_of({}, 8), "8 bytes behind the last tensor"),
    "bad-name-long": (file_of({"t" * 1025: entry()}, 4), "a name of 1025 bytes"),
    "bad-name-with-escapes": (file_of('{"t\\u001b[2J\\n":{"dtype":"?"}}'), r"tensor t\\x1b\[2J\\x0a has the dtype"),
    "bad-control-character": (file_of('{"a\nb":' + ONE + "}", 4), "a control character inside a string"),
    "bad-escape": (file_of('{"\\x41":' + ONE + "}", 4), "an escape that JSON does not have"),
    "bad-hex-digit": (file_of('{"\\u00<1":' + ONE + "}", 4), "an escape that JSON does not have"),
    "bad-hex-letter": (file_of('{"\\u00`1":' + ONE + "}", 4), "an escape that JSON does not have"),
    "bad-half-a-pair": (file_of('{"\\ud83d":' + ONE + "}", 4), "an escape that JSON does not have"),
    "bad-other-half": (file_of('{"\\ude00":' + ONE + "}", 4), "an escape that JSON does not have"),
    "bad-utf8-cut": (file_of(b'{"\xe2\x82":' + ONE.encode() + b"}", 4), "not UTF-8"),
    "bad-utf8-too-long": (file_of(b'{"\xc0\xaf":' + ONE.encode() + b"}", 4), "not UTF-8"),
    "bad-utf8-surrogate": (file_of(b'{"\xed\xa0\x80":' + ONE.encode() + b"}", 4), "not UTF-8"),
    "bad-utf8-beyond": (file_of(b'{"\xf4\x90\x80\x80":' + ONE.encode() + b"}", 4), "not UTF-8"),
    "bad-byte-order-mark": (file_of(b"\xef\xbb\xbf{}"), "does not begin with {"),
}


def read_everything(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Open, touch all there is to touch, and give it: name -> dtype, shape, bytes."""
    with SafetensorsFile(path) as file:
        found = {}
        for name, info in file.tensors.items():
            data = file.read(name)
            assert np.array_equal(data, file.raw(name)) and data.nbytes == info.nbytes and path.stat().st_size >= info.offset
            if info.format in FORMATS and info.nbytes:
                k = info.shape[-1] if info.shape else 1
                rows = int(np.prod(info.shape, dtype=object)) // k
                out = np.empty(packed_bytes(file.supported(name), rows, k), np.uint8)
                file.pack([(name, 0, rows, k, out)], 2)
            found[name] = (info.format, info.shape, data.tobytes())
        return found


def written(tensors: dict[str, tuple[str, tuple[int, ...], bytes]], metadata: dict[str, str] | None = None) -> bytes:
    """What the `safetensors` package writes."""
    arrays = {name: np.frombuffer(data, np.uint8) for name, (_, _, data) in tensors.items()}
    specs = {name: safetensors.TensorSpec(dtype=RUST[dtype], shape=list(shape), data_ptr=arrays[name].ctypes.data,
                                          data_len=len(data))
             for name, (dtype, shape, data) in tensors.items()}
    return bytes(safetensors.serialize(specs, metadata))


def theirs(content: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """What the `safetensors` package reads."""
    return {name: (t["dtype"], tuple(t["shape"]), bytes(t["data"])) for name, t in safetensors.deserialize(content)}


def refused_or_read(path: Path, content: bytes) -> None:
    """What we accept, the `safetensors` package accepts, and it is the same."""
    try:
        found = read_everything(path)
    except ModelInvalid as error:
        assert path.name in str(error) and "\n" not in str(error) and len(str(error)) < 480
        return
    assert found == theirs(content)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: Any) -> Callable[[bytes], Path]:
    """Writes content to a fresh file: the one before may still be mapped."""
    path = tmp_path_factory.mktemp("hostile") / "mutated.safetensors"

    def write(content: bytes) -> Path:
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        return path
    return write


# ---- what is right ----

shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda n: n != "__metadata__")


@settings(max_examples=150, deadline=None)
@given(tensors=st.dictionaries(names, st.tuples(st.sampled_from(sorted(BITS)), shapes, st.integers(0, 255)), max_size=6),
       metadata=st.none() | st.dictionaries(names, st.text(st.characters(exclude_categories=["Cs"]), max_size=9), min_size=1,
                                            max_size=3))
def test_round_trip_is_bit_equal(scratch: Any, tensors: dict[str, Any], metadata: dict[str, str] | None) -> None:
    wanted = {}
    for name, (dtype, shape, seed) in tensors.items():
        data = np.random.default_rng(seed).integers(0, 256, int(np.prod(shape)) * BITS[dtype] // 8, np.uint8).tobytes()
        wanted[name] = (dtype, shape, data)
    path = scratch(written(wanted, metadata))
    assert read_everything(path) == wanted
    with SafetensorsFile(path) as file:
        assert file.metadata == (metadata or {})


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_packed_is_what_was_written(dtype: str, scratch: Any) -> None:
    rng = np.random.default_rng(7)
    data = rng.standard_normal((37, 130)).astype(np.float32).view(np.uint8 if dtype == "F32" else np.uint16)
    data = data.reshape(37, -1)[:, :130 * BITS[dtype] // 8 // data.itemsize]
    shape, raw = (37, 130), np.ascontiguousarray(data).tobytes()
    with SafetensorsFile(scratch(written({"m": (dtype, shape, raw)}))) as file:
        format, row = FORMATS.index(dtype), 130 * BITS[dtype] // 8
        out, part = (np.empty(packed_bytes(format, n, 130), np.uint8) for n in (37, 20))
        file.pack([("m", 0, 37, 130, out), ("m", 5 * row, 20, 130, part)], 2)
        bits = np.uint32 if dtype == "F32" else np.uint16
        wanted = np.frombuffer(raw, bits).reshape(shape)
        back = unpack(format, 37, 130, out)
        exact = wanted.view(np.float32) if dtype == "F32" else wanted.view(np.float16).astype(np.float32) if dtype == "F16" else \
            (wanted.astype(np.uint32) << 16).view(np.float32)
        assert np.array_equal(back, exact, equal_nan=True)
        assert np.array_equal(unpack(format, 20, 130, part), exact[5:25], equal_nan=True)
        assert file.read("m", row, row).tobytes() == raw[row:2 * row]
        for first, count in ((len(raw), 1), (2**40, 0), (0, len(raw) + 1)):
            with pytest.raises(FieldInvalid):
                file.read("m", first, count)
        with pytest.raises(FieldInvalid, match="fewer than 37 x 130"):
            file.pack([("m", row, 37, 130, out)])


def test_a_dtype_that_cannot_be_computed_with(scratch: Any) -> None:
    path = scratch(file_of({"t": entry("I32")}, 4))
    with SafetensorsFile(path) as file, pytest.raises(ModelInvalid, match="tensor t is stored as I32, which is not supported"):
        file.supported("t")


# ---- what lies ----

@pytest.mark.parametrize("name", CASES)
def test_each_class_of_lie(name: str, tmp_path: Path) -> None:
    content, match = CASES[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    if match is None:
        assert read_everything(path) == theirs(content)
    else:
        with pytest.raises(ModelInvalid, match=match) as caught:
            SafetensorsFile(path)
        assert "model.safetensors: " in str(caught.value)


def test_the_corpus_holds_every_class() -> None:
    held = {p.name: p.read_bytes() for p in CORPUS.iterdir()}
    assert {name: content for name, (content, _) in CASES.items()}.items() <= held.items()


@pytest.mark.parametrize("path", sorted(CORPUS.iterdir()), ids=lambda p: p.name)
def test_corpus(path: Path) -> None:
    if path.name.startswith("bad-"):
        with pytest.raises(ModelInvalid, match=path.name):
            read_everything(path)
    else:
        read_everything(path)


VALID = file_of({"__metadata__": {"format": "pt"}, "m": entry("BF16", (3, 4), 0, 24), "é": entry("F32", (), 24, 28),
                 "z": entry("I64", (0,), 28, 28), "q": entry("U8", (2, 2), 28, 32)}, 32)


@settings(max_examples=600, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_flipped_bytes(scratch: Any, flips: list[tuple[int, int]]) -> None:
    content = bytearray(VALID)
    for at, byte in flips:
        content[at] = byte
    refused_or_read(scratch(bytes(content)), bytes(content))


@settings(max_examples=600, deadline=None)
@given(at=st.integers(8, len(VALID) - 40), n=st.integers(0, 6),
       piece=st.sampled_from(["", "0", "1", "-", "9" * 25, "18446744073709551615", '"', "{", "}", "[", "]", ",", ":", " ", "\\",
                              "\x00", "\\u0041", "\\ud800", "null", "1.5", '"m":', "é"]))
def test_pieces_of_json_anywhere(scratch: Any, at: int, n: int, piece: str) -> None:
    header = VALID[8:-32]
    content = file_of(header[:at - 8] + piece.encode() + header[at - 8 + n:], 32)
    refused_or_read(scratch(content), content)


def test_cut_at_every_byte(scratch: Any) -> None:
    for size in range(len(VALID)):
        with pytest.raises(ModelInvalid, match="mutated.safetensors"):
            SafetensorsFile(scratch(VALID[:size]))


# ---- time, memory, change ----

LIMITED = """
import resource, sys
from pyruntime._core._weights import SafetensorsFile
from pyruntime.errors import ModelInvalid
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)
for path in sys.argv[1:]:
    try:
        SafetensorsFile(path)
    except ModelInvalid:
        pass
"""


def test_no_memory_by_the_files_say_so() -> None:
    """All of the corpus is read, or refused, by a process that may map 64 MB more."""
    paths = [str(p) for p in sorted(CORPUS.iterdir())]
    done = subprocess.run([sys.executable, "-c", LIMITED, *paths], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("what", ["tensors", "twins", "metadata", "escapes", "blanks"])
def test_long_headers_take_linear_time(what: str, scratch: Any) -> None:
    """Ten megabytes of each: well below a second, whatever they say."""
    n = 100_000
    empty = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = {
        "tensors": "{" + ",".join(f'"{"n" * 40}{i}":{empty}' for i in range(n)) + "}",
        "twins": "{" + ",".join(f'"n":{empty}' for i in range(n)) + "}",
        "metadata": '{"__metadata__":{' + ",".join(f'"{"k" * 60}{i}":"{"v" * 20}"' for i in range(n)) + "}}",
        "escapes": '{"__metadata__":{"a":"' + "\\u00e9" * (n * 16) + '"}}',
        "blanks": "{" + " " * (n * 100) + "}",
    }[what]
    path = scratch(file_of(header))
    start = time.process_time()
    try:
        SafetensorsFile(path)
    except ModelInvalid:
        assert what == "twins"
    assert time.process_time() - start < 3


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(VALID)
    file = SafetensorsFile(path)
    os.truncate(path, 100)
    out = np.empty(packed_bytes(FORMATS.index("BF16"), 3, 4), np.uint8)
    for use in (file.check, lambda: file.raw("m"), lambda: file.read("m"), lambda: file.pack([("m", 0, 3, 4, out)])):
        with pytest.raises(ModelInvalid, match=r"m\.safetensors: changed since it was opened \(\d+ bytes then, 100 now\)"):
            use()


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no such file"):
        SafetensorsFile(tmp_path / "nowhere.safetensors")
    with pytest.raises(ModelInvalid, match="a folder, not a safetensors file"):
        SafetensorsFile(tmp_path)
