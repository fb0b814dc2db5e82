"""Files that lie: a typed error that names file and place, or a valid read; none crashes, hangs, or takes
memory by what it says. `tests/corpus/gguf` keeps one file a class, and all that ever hurt: bad-* and ok-*."""
from __future__ import annotations

import os
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyruntime._core._weights import FormatInfo, GGUFFile, formats, packed_bytes
from pyruntime.errors import ModelInvalid, ModelNotFound
from pyruntime.plan import Weight
from pyruntime.quant.r16 import NO_GGML_TYPE
from pyruntime.weights import FORMATS, load_weights
from pyruntime.weights.gguf import GGUFModel
from pyruntime.weights.gguf_writer import Tensor, write_gguf

CORPUS = Path(__file__).parent / "corpus" / "gguf"
U32, U64 = struct.Struct("<I").pack, struct.Struct("<Q").pack
MANY = [2**n + d for n in (8, 15, 16, 31, 32, 33, 48, 61, 62, 63) for d in (-1, 0, 1)] + [
    0,
    1,
    2,
    2**64 - 32,
    2**64 - 1,
]


def text(s: str) -> bytes:
    return U64(len(s.encode())) + s.encode()


def field(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + U32(kind) + value


def tensor(name: str, dims: list[int], kind: int, offset: int, n_dims: int | None = None) -> bytes:
    shape = b"".join(map(U64, dims))
    return text(name) + U32(len(dims) if n_dims is None else n_dims) + shape + U32(kind) + U64(offset)


def gguf_file(fields: Sequence[bytes] = (), tensors: Sequence[bytes] = (), data: int = 0, *,
              n_fields: int | None = None, n_tensors: int | None = None, version: int = 3) -> bytes:
    """A file from its parts, with `data` bytes behind the padded header; the two counts may lie."""
    counts = U64(len(tensors) if n_tensors is None else n_tensors) + U64(
        len(fields) if n_fields is None else n_fields
    )
    header = b"GGUF" + U32(version) + counts + b"".join(fields) + b"".join(tensors)
    return header + bytes(-len(header) % 32 + data)


def nested(depth: int) -> bytes:
    """An int32 array inside `depth - 1` arrays of one."""
    return (U32(9) + U64(1)) * (depth - 1) + U32(5) + U64(1) + U32(7)


#: name -> (content, what the error says); None: a good file. The corpus holds each of them.
CASES: dict[str, tuple[bytes, str | None]] = {
    "ok-empty-header": (gguf_file(), None),
    "ok-version-2": (gguf_file([field("a", 8, text("b"))], [tensor("t", [4], 0, 0)], 16, version=2), None),
    "ok-nested-arrays": (gguf_file([field("a", 9, nested(4))]), None),
    "ok-zero-sized-tensor": (gguf_file([], [tensor("t", [0, 7], 0, 0), tensor("u", [4], 0, 0)], 16), None),
    "ok-no-dimensions": (gguf_file([], [tensor("t", [], 0, 0)], 4), None),
    "ok-type-nobody-knows": (gguf_file([], [tensor("t", [2**60, 2**60], 4711, 0)], 16), None),
    "ok-empty-array": (gguf_file([field("a", 9, U32(8) + U64(0))]), None),
    "bad-magic-only": (b"GGUF", "the file ends inside the version"),
    "bad-tensor-count-huge": (gguf_file(n_tensors=2**63), "byte 8: 9223372036854775808 tensors"),
    "bad-tensor-count-wraps": (gguf_file(n_tensors=2**64 // 24 + 1),
        "tensors and 0 metadata fields in a file of 32 bytes"),
    "bad-field-count-huge": (gguf_file(n_fields=2**64 - 1), "18446744073709551615 metadata fields"),
    "bad-counts-beyond-the-file": (gguf_file(n_fields=60000), "60000 metadata fields in a file of 32 bytes"),
    "bad-key-length-wraps": (gguf_file([U64(2**64 - 1) + bytes(16)]), "a key of 18446744073709551615 bytes"),
    "bad-key-too-long": (gguf_file([field("k" * 65536, 4, U32(1))]), "a key of 65536 bytes, at most 65535"),
    "bad-string-length-wraps": (gguf_file([field("a", 8, U64(2**64 - 8))]),
        "a string of 18446744073709551608 bytes"),
    "bad-string-too-long": (gguf_file([field("a", 8, U64(1 << 20))]), "a string of 1048576 bytes"),
    "bad-value-type": (gguf_file([field("a", 13, U64(0))]), "a value of type 13"),
    "bad-array-type": (gguf_file([field("a", 9, U32(99) + U64(1))]), "an array of items of type 99"),
    "bad-array-length-wraps": (gguf_file([field("a", 9, U32(10) + U64(2**61 + 1))]),
        "an array of 2305843009213693953 items"),
    "bad-string-array-length": (gguf_file([field("a", 9, U32(8) + U64(2**62))]),
        "an array of 4611686018427387904 items"),
    "bad-array-of-arrays-length": (gguf_file([field("a", 9, U32(9) + U64(2**63))]),
        "an array of 9223372036854775808 items"),
    "bad-nested-too-deep": (gguf_file([field("a", 9, nested(6))]), "arrays nested deeper than 4"),
    "bad-nested-bomb": (gguf_file([field("a", 9, (U32(9) + U64(1)) * 5000)]), "arrays nested deeper than 4"),
    "bad-duplicate-key": (gguf_file([field("a", 4, U32(1)), field("b", 4, U32(1)), field("a", 4, U32(2))]),
                          "metadata field a is there twice"),
    "bad-alignment-zero": (gguf_file([field("general.alignment", 4, U32(0))]), "general.alignment is 0"),
    "bad-alignment-odd": (gguf_file([field("general.alignment", 4, U32(24))]), "general.alignment is 24"),
    "bad-alignment-huge": (gguf_file([field("general.alignment", 4, U32(2**31))]),
        "general.alignment is 2147483648"),
    "bad-alignment-type": (gguf_file([field("general.alignment", 8, text("32"))]),
        "general.alignment has type 8"),
    "bad-five-dimensions": (gguf_file([], [tensor("t", [1] * 5, 0, 0)], 32), "tensor t has 5 dimensions"),
    "bad-dimension-count-huge": (gguf_file([], [tensor("t", [1], 0, 0, n_dims=2**32 - 1)], 32),
        "has 4294967295 dimensions"),
    "bad-shape-wraps": (gguf_file([], [tensor("t", [2**32, 2**32], 0, 0)], 64),
        "tensor t: its size does not fit in 64 bits"),
    "bad-shape-wraps-to-small": (gguf_file([], [tensor("t", [2**62, 4, 1], 0, 0)], 64),
        "its size does not fit"),
    "bad-blocks-wrap": (gguf_file([], [tensor("t", [2**63], 8, 0)], 64),
        "its size does not fit in 64 bits|but the file has"),
    "bad-partial-block": (gguf_file([], [tensor("t", [33], 8, 0)], 64),
        "tensor t: rows of 33 are not whole blocks of 32"),
    "bad-tensor-beyond-the-end": (gguf_file([], [tensor("t", [9], 0, 0)], 32),
        "tensor t: 36 bytes at byte 64, but the file has 96"),
    "bad-offset-beyond-the-end": (gguf_file([], [tensor("t", [1], 0, 64)], 32),
        "tensor t: 4 bytes at byte 128"),
    "bad-offset-wraps": (gguf_file([], [tensor("t", [1], 0, 2**64 - 32)], 32), "tensor t: 4 bytes at byte"),
    "bad-offset-odd": (gguf_file([], [tensor("t", [1], 0, 4)], 32),
        "offset 4 is not a multiple of the alignment 32"),
    "bad-unknown-type-outside": (gguf_file([], [tensor("t", [1], 4711, 2**40)], 32),
        "tensor t: 0 bytes at byte"),
    "bad-overlap": (gguf_file([], [tensor("t", [16], 0, 0), tensor("u", [1], 0, 32)], 64),
        "tensor u overlaps tensor t"),
    "bad-same-place": (gguf_file([], [tensor("t", [1], 0, 0), tensor("u", [1], 0, 0)], 64), "overlaps"),
    "bad-duplicate-tensor": (gguf_file([], [tensor("t", [1], 0, 0), tensor("t", [1], 0, 32)], 64),
        "tensor t is there twice"),
    "bad-tensor-name-long": (gguf_file([], [tensor("t" * 1025, [1], 0, 0)], 32),
        "a tensor name of 1025 bytes, at most 1024"),
    "bad-name-with-escapes": (gguf_file([], [tensor("t\x1b[2J\n", [33], 8, 0)], 64),
        r"tensor t\\x1b\[2J\\x0a: rows of 33"),
}


def read_everything(path: Path) -> None:
    """Open and touch all there is to touch."""
    with GGUFFile(path) as file:
        _ = file.metadata, file.metadata_types
        for name in file.tensors:
            info = file.tensors[name]
            assert np.array_equal(file.raw(name), file.read(name)) and file.raw(name).nbytes == info.nbytes
            if info.format in FORMATS and info.nbytes:
                rows = int(np.prod(info.shape[:-1], dtype=object))
                k = info.shape[-1] if info.shape else 1
                file.pack({name: np.empty(packed_bytes(FORMATS.index(info.format), rows, k), np.uint8)}, 2)


def refused_or_read(path: Path) -> None:
    try:
        read_everything(path)
    except ModelInvalid as error:
        assert path.name in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("name", CASES)
def test_each_class_of_lie(name: str, tmp_path: Path) -> None:
    content, match = CASES[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    if match is None:
        read_everything(path)
    else:
        with pytest.raises(ModelInvalid, match=match) as caught:
            GGUFFile(path)
        assert "model.gguf: " in str(caught.value)


@pytest.mark.parametrize("path", sorted(CORPUS.iterdir()), ids=lambda p: p.name)
def test_corpus(path: Path) -> None:
    if path.name.startswith("bad-"):
        with pytest.raises(ModelInvalid, match=path.name):
            read_everything(path)
    else:
        read_everything(path)


def test_the_corpus_holds_every_class() -> None:
    held = {p.name: p.read_bytes() for p in CORPUS.iterdir()}
    assert {name: content for name, (content, _) in CASES.items()}.items() <= held.items()


# ---- sizes, in every format ----

def sizes(format: FormatInfo) -> dict[str, tuple[list[int], int, str | None]]:
    """name -> (dims, bytes of data, what the error says; None: readable)."""
    block, bytes_ = format.block_weights, format.block_bytes
    lies: dict[str, tuple[list[int], int, str | None]] = {
        "one block": ([block], bytes_, None),
        "rows of several blocks": ([3 * block, 17], 3 * 17 * bytes_, None),
        "a byte is missing": ([block, 2], 2 * bytes_ - 1, "tensor t: .* but the file has"),
        "its bytes wrap to one block's": ([block, 2**64 // bytes_ + 1], bytes_, "tensor t: .*(does not fit|but the file has)"),
        "its rows wrap": ([block, 2**33, 2**33], 4096, "tensor t: its size does not fit in 64 bits"),
        "its blocks wrap": ([2**64 - block, 2**10], 4096, "tensor t: its size does not fit in 64 bits"),
        "its weights wrap to none": ([block * 2**32, 2**32 // bytes_ * 2**20], 4096, "tensor t: .*(does not fit|but the file has)"),
    }
    if block > 1:
        for k in {1, block - 1, block + 1, 3 * block // 2 + (3 * block // 2 % block == 0), 2**64 - 1}:
            lies[f"rows of {k}"] = ([k, 2], 1 << 16, f"tensor t: rows of {k} are not whole blocks of {block}")
    return lies


IN_FILES = [format for format in formats() if format.ggml_type != NO_GGML_TYPE]


@pytest.mark.parametrize("format", IN_FILES, ids=lambda f: f.name)
def test_sizes_in_every_format(format: FormatInfo, scratch: Any) -> None:
    for what, (dims, data, match) in sizes(format).items():
        path = scratch(gguf_file([], [tensor("t", dims, format.ggml_type, 0)], data))
        if match is None:
            read_everything(path)
        else:
            with pytest.raises(ModelInvalid, match=match):
                GGUFFile(path)
                raise AssertionError(what)


@pytest.mark.parametrize("format", range(len(FORMATS)), ids=FORMATS)
def test_a_packed_size_that_wraps_is_none(format: int) -> None:
    """Padding to 16 rows and whole tiles makes more of what the file holds: that product is checked too."""
    block, tile = formats()[format].block_weights, formats()[format].packed_bytes
    assert packed_bytes(format, 1, block) > 0
    wraps = 2**64 // tile * 16 + 16
    for rows, k in ((2**64 - 1, block), (1, 2**64 - block), (2**33, block * 2**33), (wraps, block), (0, block), (1, 0)):
        assert packed_bytes(format, rows, k) == 0, (rows, k)
    assert block == 1 or packed_bytes(format, 16, block + 1) == 0


def test_a_format_without_a_number_is_no_type(scratch: Any) -> None:
    """Formats that no file holds share a number in our table; a file that says it means nothing by it."""
    file = GGUFFile(scratch(gguf_file([], [tensor("t", [64, 16], NO_GGML_TYPE, 0)], 1024)))
    assert file.tensors["t"].format == f"type {NO_GGML_TYPE}" and file.raw("t").nbytes == 0
    with pytest.raises(ModelInvalid, match="tensor t is stored as type 4294967295"):
        file.supported("t")


# ---- mutations of a valid file ----

def valid_file(path: Path) -> bytes:
    write_gguf(
        path,
        {
            "general.architecture": "llama",
            "general.alignment": np.uint32(32),
            "n": 7,
            "x": 1.5,
            "yes": True,
            "big": 2**40,
            "tokens": ["<s>", "a", "\u00e9", ""],
            "scores": np.arange(5, dtype=np.float32),
            "flags": np.array([True, False]),
            "rows": [[1, 2], [3]],
            "words": [["a"], ["b", "c"]],
        },
        [
            Tensor("m", "Q8_0", (3, 64), np.zeros(204, np.uint8)),
            Tensor("v", "F32", (5,), np.zeros(20, np.uint8)),
            Tensor("h", "F16", (2, 2, 3), np.zeros(24, np.uint8)),
            Tensor("q", "Q4_1", (1, 32), np.zeros(20, np.uint8)),
        ],
    )
    return path.read_bytes()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: Any) -> Callable[[bytes], Path]:
    """Writes content to a fresh file: the one before may still be mapped."""
    path = tmp_path_factory.mktemp("hostile") / "mutated.gguf"

    def write(content: bytes) -> Path:
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        return path
    return write


VALID: list[bytes] = []


@pytest.fixture(scope="module", autouse=True)
def valid(tmp_path_factory: Any) -> bytes:
    VALID[:] = [valid_file(tmp_path_factory.mktemp("valid") / "valid.gguf")]
    return VALID[0]


@settings(max_examples=500, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), min_size=1, max_size=4))
def test_flipped_bytes(scratch: Any, flips: list[tuple[int, int]]) -> None:
    content = bytearray(VALID[0])
    for at, byte in flips:
        content[at % len(content)] = byte
    refused_or_read(scratch(bytes(content)))


@settings(max_examples=500, deadline=None)
@given(at=st.integers(0, 700), value=st.sampled_from(MANY), size=st.sampled_from([4, 8]))
def test_extremes_in_place_of_lengths(scratch: Any, at: int, value: int, size: int) -> None:
    content = bytearray(VALID[0])
    at %= len(content) - size
    content[at:at + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
    refused_or_read(scratch(bytes(content)))


@pytest.mark.timeout(300)
def test_extremes_at_every_number(scratch: Any) -> None:
    """Every offset of the header, not just those that chance picks."""
    for at in range(4, len(VALID[0]) - 8):
        for value in (2**64 - 1, 2**63, 2**32, 0):
            refused_or_read(scratch(VALID[0][:at] + U64(value) + VALID[0][at + 8:]))


@settings(max_examples=300, deadline=None)
@given(
    content=st.binary(max_size=300),
    version=st.sampled_from([2, 3]),
    n_tensors=st.integers(0, 4),
    n_fields=st.integers(0, 4),
)
def test_noise_behind_a_good_start(
    scratch: Any, content: bytes, version: int, n_tensors: int, n_fields: int
) -> None:
    refused_or_read(scratch(b"GGUF" + U32(version) + U64(n_tensors) + U64(n_fields) + content))


# ---- truncation ----

def test_cut_at_every_byte(scratch: Any) -> None:
    last = max(t.offset + t.nbytes for t in GGUFFile(scratch(VALID[0])).tensors.values())
    for size in range(len(VALID[0])):
        path = scratch(VALID[0][:size])
        if size < last:
            with pytest.raises(ModelInvalid, match="mutated.gguf"):
                GGUFFile(path)
        else:
            read_everything(path)


def test_the_real_model_cut_at_100_points(smollm: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    shutil.copyfile(smollm, path)
    with GGUFFile(path) as file:
        end = max(t.offset + t.nbytes for t in file.tensors.values())
        data = min(t.offset for t in file.tensors.values())
    points = np.unique(
        np.concatenate([np.linspace(0, data, 50), np.linspace(data + 1, end - 1, 50)]).astype(int)
    )
    assert len(points) == 100
    for size in points[::-1]:
        os.truncate(path, int(size))
        with pytest.raises(ModelInvalid, match=r"cut\.gguf: "):
            GGUFFile(path)


# ---- the file changes while it is open ----

def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    valid_file(path)
    model = GGUFModel(path)
    low = load_weights([Weight("m", 3, 64)], model, low_memory=True)
    low.check()
    os.truncate(path, 100)
    for use in (
        low.check,
        model.check,
        lambda: model.raw("m"),
        lambda: model.read("m"),
        lambda: load_weights([Weight("m", 3, 64)], model),
    ):
        with pytest.raises(
            ModelInvalid,
            match=r"m\.gguf: changed since it was opened \(\d+ bytes then, 100 now\); load it again",
        ):
            use()


def test_a_file_that_is_written_to_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    content = valid_file(path)
    file = GGUFFile(path)
    os.utime(path, ns=(1, 1))
    with pytest.raises(ModelInvalid, match="changed since"):
        file.check()
    path.write_bytes(content)


def test_a_file_replaced_by_name_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    valid_file(path)
    file = GGUFFile(path)
    valid_file(path)  # written aside, then renamed over
    file.check()
    assert file.raw("m").nbytes == 204


# ---- memory ----

LIMITED = """
import resource, sys
from pyruntime._core._weights import GGUFFile
from pyruntime.errors import ModelInvalid
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)
for path in sys.argv[1:]:
    try:
        GGUFFile(path).metadata
    except ModelInvalid:
        pass
"""


def test_no_memory_by_the_files_say_so() -> None:
    """All of the corpus is read, or refused, by a process that may map 64 MB more."""
    paths = [str(p) for p in sorted(CORPUS.iterdir())]
    done = subprocess.run([sys.executable, "-c", LIMITED, *paths], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.timeout(60)
def test_many_strings_stay_proportionate(tmp_path: Path) -> None:
    """A million empty strings: linear in time and memory."""
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_file([field("a", 9, U32(8) + U64(1_000_000) + bytes(8_000_000))]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with GGUFFile(path) as file:
        assert len(file.metadata["a"]) == 1_000_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


def test_missing_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no such file; check the path"):
        GGUFModel(tmp_path / "nowhere.gguf")
