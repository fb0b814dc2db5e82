"""Hugging Face folders: config.json and safetensors as a source of weights, carried out by a family's recipes.

A weight whose recipe is a plain piece of a tensor is packed as it stands; others are turned, shifted and quantized in pieces of
some megabytes, so that nothing but a tensor's own bytes is ever held beside the packed weights.
"""
from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from threading import Lock
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._core import _weights
from .._core._weights import SafetensorsFile, TensorInfo
from ..config import Metadata, ModelConfig
from ..errors import FieldInvalid, ModelInvalid, ModelNotFound
from ..machine import cpus
from ..models import hf_family
from ..plan import Plan, Weight
from ..recipe import Recipe, Taken
from ..tokenizer import Tokenizer
from . import FORMATS

Bytes = NDArray[np.uint8]
Bits = NDArray[Any]     # values as they stand, u8, u16 or u32

FILES_MAX, JSON_BYTES = 1024, 64 << 20
#: numbers a thread turns into f32 at a time
PIECE = 1 << 20
#: what --quantize takes, and what stands in where rows are no whole blocks of 256: a format of blocks of 32 no coarser
QUANTIZE = {"q8_0": "Q8_0", "q4_0": "Q4_0", "q4_1": "Q4_1", "q5_0": "Q5_0", "q5_1": "Q5_1", "q4_k": "Q4_K", "q5_k": "Q5_K",
            "q6_k": "Q6_K"}
STAND_INS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
#: matrices that stay as they are: small, and rounding them costs more than it saves
KEPT = re.compile(r"position_embd\.|_gate_inp\.|ssm_conv1d\.")
_INDEXED = re.compile(r"[\w-][\w.-]{0,200}\.safetensors", re.ASCII)


class FolderModel:
    """An open folder. tensors: name, as recipes have it -> where it stands."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.folder = Path(path)
        self.path = os.fspath(path)
        self.metadata = Metadata(read_json(self.folder / "config.json", JSON_BYTES), str(self.folder / "config.json"))
        if self.metadata.inside("quantization_config").values:
            method = self.metadata.inside("quantization_config").values.get("quant_method", "unnamed")
            raise ModelInvalid(f"{self.metadata.file}: weights quantized as {str(method)[:40]!r} are not supported; take the model "
                               "in F32, F16 or BF16, or as GGUF")
        self.model_type = self.metadata.text("model_type")
        self.module: ModuleType = hf_family(self.model_type, self.metadata.file)
        self.files = _files(self.folder)
        self.tensors: dict[str, tuple[SafetensorsFile, TensorInfo]] = {}
        for file in self.files:
            for name, tensor in file.tensors.items():
                short = name
                for prefix in self.module.HF_PREFIXES:
                    short = short.removeprefix(prefix)
                if short in self.tensors:
                    there, same = self.tensors[short]
                    raise ModelInvalid(f"{file.path}: tensor {name} is there twice, also as {same.name} in {there.path}")
                self.tensors[short] = file, tensor

    @property
    def architecture(self) -> str:
        """The model family's name in the folder."""
        return self.model_type

    @property
    def kind(self) -> str:
        """What sort of files they are."""
        return "safetensors"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape, by its name in recipes."""
        return {name: tensor.shape for name, (_, tensor) in self.tensors.items()}

    def config(self) -> ModelConfig:
        """What the family reads in config.json."""
        config: ModelConfig = self.module.from_hf(self.metadata, self.shapes)
        return config

    def source(self, plan: Plan, config: ModelConfig, quantize: str | None = None) -> FolderSource:
        """The plan's weights; ModelInvalid unless every tensor is read or may be skipped."""
        return FolderSource(self, plan.weights, self.module.hf_weights(config), quantize)

    def used(self, recipes: Mapping[str, Recipe]) -> dict[str, TensorInfo]:
        """The tensors that recipes name; ModelInvalid where another one stands that may not be skipped."""
        named = {part.tensor for recipe in recipes.values() for part in _parts(recipe)}
        extra = [t.name for short, (_, t) in self.tensors.items()
                 if short not in named and not any(fnmatchcase(short, pattern) for pattern in self.module.HF_SKIPPED)]
        if extra:
            raise ModelInvalid(f"{self.path}: tensor '{extra[0]}'{f' and {len(extra) - 1} more' * (len(extra) > 1)} is no part of "
                               f"the '{self.model_type}' family as it is read here; answers without it would be wrong")
        return {short: t for short, (_, t) in self.tensors.items() if short in named}

    def tokenizer(self) -> Tokenizer:
        """From whichever file of the known ones is there; of a folder that has none, one that refuses text."""
        try:
            made = Tokenizer.from_folder(self.folder)
        except ModelNotFound:
            return NoTokenizer(self.path, self._end_ids())
        made.end_ids = list(dict.fromkeys([*made.end_ids, *(i for i in self._end_ids() if i < made.vocab_size)]))
        return made

    def sampling(self) -> dict[str, Any]:
        """None of its own: they stand in the generation_config.json beside."""
        return {}

    def _optional(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        return read_json(path, JSON_BYTES) if path.is_file() else {}

    def _end_ids(self) -> list[int]:
        """What ends an answer, by generation_config.json or else config.json: one id or several."""
        beside = "generation_config.json"
        for values, file in ((self._optional(beside), str(self.folder / beside)), (self.metadata.values, self.metadata.file)):
            if (ids := values.get("eos_token_id")) is not None:
                ids = ids if isinstance(ids, list) else [ids]
                if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < 1 << 31 for i in ids):
                    raise ModelInvalid(f"{file}: 'eos_token_id' is {str(ids)[:60]}; it must be a token id or a list of them")
                return list(ids)
        return []

    @property
    def nbytes(self) -> int:
        """Bytes of its safetensors files."""
        return sum(os.stat(file.path).st_size for file in self.files)

    def close(self) -> None:
        """Let go of the files; views that are out keep their mapping."""
        for file in self.files:
            file.close()

    def __enter__(self) -> FolderModel:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


# ---- the files of a folder ----


def _files(folder: Path) -> list[SafetensorsFile]:
    """model.safetensors, or those that model.safetensors.index.json names."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [SafetensorsFile(single)]
    if not index.is_file():
        raise ModelNotFound(f"{folder}: neither model.safetensors nor model.safetensors.index.json is there"
                            + "; pickled weights are not read, save them as safetensors"
                            * any((folder / f"pytorch_model.bin{end}").is_file() for end in ("", ".index.json")), field="model")
    where = read_json(index, JSON_BYTES).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(name, str) for name in where.values()):
        raise ModelInvalid(f"{index}: 'weight_map' must tell each tensor's file")
    names = sorted(set(where.values()))
    for name in names:
        if not _INDEXED.fullmatch(name):
            raise ModelInvalid(f"{index}: {name[:80]!r} is no name of a .safetensors file beside it")
    if len(names) > FILES_MAX:
        raise ModelInvalid(f"{index}: {len(names)} files; at most {FILES_MAX} are read")
    files = {}
    for name in names:
        try:
            files[name] = SafetensorsFile(folder / name)
        except ModelNotFound:
            raise ModelNotFound(f"{folder / name}: no such file; {index.name} names it, get all files", field="model") from None
    if lost := next((tensor for tensor, name in where.items() if tensor not in files[name].tensors), None):
        raise ModelInvalid(f"{index}: tensor {lost[:80]!r} is not in {where[lost]}")
    return list(files.values())


def _read(path: Path, most: int) -> bytes:
    with open(path, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ModelInvalid(f"{path}: longer than {most >> 20} MiB; that is no such file")
    return data


def read_json(path: Path, most: int) -> dict[str, Any]:
    """An object from a JSON file; ModelInvalid for anything else, ModelNotFound. Infinities, which some configs have as Python
    writes them or as {"__float__": "Infinity"}, are numbers."""
    try:
        values = json.loads(_read(path, most), object_hook=_infinity)
    except FileNotFoundError:
        raise ModelNotFound(f"{path}: no such file; a model's folder has it (a GGUF file is named itself)", field="model") from None
    except OSError as error:
        raise ModelInvalid(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, ModelInvalid):
            raise
        raise ModelInvalid(f"{path}: not readable as JSON ({' '.join(str(error).split())[:120]}); get it again") from None
    if not isinstance(values, dict):
        raise ModelInvalid(f"{path}: it must hold a JSON object; get it again")
    return values


def _infinity(value: dict[str, Any]) -> Any:
    return {"Infinity": math.inf, "-Infinity": -math.inf}.get(str(value.get("__float__")), value) if len(value) == 1 else value


class NoTokenizer(Tokenizer):
    """Of a folder without tokenizer: token ids go in and come out; whoever gives text is told so."""

    def __init__(self, where: str, end_ids: Sequence[int]) -> None:
        self.vocab_size = 0
        self.bos_id = self.eos_id = self.bos_token = self.eos_token = self.chat_template = None
        self.end_ids, self.specials, self.special_ids = list(end_ids), {}, frozenset()
        self._where, self._prefix, self._suffix = where, [], []

    def _none(self, *_: Any, **__: Any) -> Any:
        raise FieldInvalid(f"{self._where} has no tokenizer (tokenizer.json, tokenizer.model, vocab.json with merges.txt or "
                           "another); give token ids, not text", field="prompt")

    encode = encode_array = offsets = decode = decode_bytes = token_bytes = encode_chat = _none    # type: ignore[assignment]
    chat = property(_none)    # type: ignore[assignment]


# ---- recipes carried out ----


def _parts(recipe: Recipe) -> tuple[Taken, ...]:
    return recipe if isinstance(recipe, tuple) else (recipe,)


@dataclass(slots=True)
class Part:
    """One tensor's share of a weight: rows [rows][k] of what its recipe makes of it."""

    taken: Taken
    file: SafetensorsFile
    tensor: TensorInfo
    format: int
    rows: int
    k: int
    whole: Bits | None = None    # the tensor turned, while its weight is made
    lock: Lock = field(default_factory=Lock)    # of `whole`

    @classmethod
    def of(cls, taken: Taken, model: FolderModel) -> Part:
        """Proven against the tensor's shape."""
        if taken.tensor not in model.tensors:
            raise ModelInvalid(f"{model.path}: tensor {taken.tensor} is missing; the folder is incomplete, get it again")
        file, tensor = model.tensors[taken.tensor]
        part = cls(taken, file, tensor, file.supported(tensor.name), 0, 0)
        dims = tensor.shape[1:] if taken.at is not None else tensor.shape
        dims = (*dims[:-2], *dims[:-3:-1]) if taken.transpose and len(dims) > 1 else dims
        rows, k = (math.prod(dims[:-1]), dims[-1]) if len(dims) > 1 else (math.prod(dims), 1)
        every = taken.every or rows
        first, last = taken.rows or (0, every)
        if (taken.at is not None and not (len(tensor.shape) > 1 and 0 <= taken.at < tensor.shape[0])) or rows < 1 or k < 1 or \
                rows % every or not 0 <= first < last <= every:
            raise part.unlike(f"rows {first} to {last} of each {every}")
        part.rows, part.k = rows // every * (last - first), k
        if taken.turn:
            part.rows, part.k = rows // every * k, last - first
        return part

    def unlike(self, wanted: str) -> ModelInvalid:
        return ModelInvalid(f"{self.file.path}: tensor {self.tensor.name} at byte {self.tensor.offset} is "
                            f"{' x '.join(map(str, self.tensor.shape))}, the model needs {wanted}")

    @property
    def size(self) -> int:
        """Bytes of a value."""
        return _weights.formats()[self.format].block_bytes

    @property
    def first(self) -> int:
        """The first byte of what is taken, where `plain`."""
        return self._stack[0] + (self.taken.rows[0] if self.taken.rows else 0) * self.k * self.size

    @property
    def _stack(self) -> tuple[int, int, tuple[int, ...]]:
        """First byte, bytes and shape of the tensor, or of the one that is taken from a stack."""
        if self.taken.at is None:
            return 0, self.tensor.nbytes, self.tensor.shape
        size = self.tensor.nbytes // self.tensor.shape[0]
        return self.taken.at * size, size, self.tensor.shape[1:]

    @property
    def plain(self) -> bool:
        """One piece of the file, as it stands."""
        t = self.taken
        return not (t.transpose or t.every or t.turn or self.changed)

    @property
    def changed(self) -> bool:
        """Its values are."""
        return self.taken.neg_exp or self.taken.plus != 0

    def bits(self, first: int, last: int) -> Bits:
        """Rows as they stand, [last - first][k]."""
        kind = {1: np.uint8, 2: np.uint16, 4: np.uint32}[self.size]
        if not (self.taken.transpose or self.taken.every or self.taken.turn):
            row = self.k * self.size
            data = self.file.read(self.tensor.name, self.first + first * row, (last - first) * row)
            return data.view(kind).reshape(last - first, self.k)
        with self.lock:
            if self.whole is None:
                at, size, shape = self._stack
                self.whole = self._turned(self.file.read(self.tensor.name, at, size).view(kind).reshape(shape))
            return self.whole[first:last]

    def _turned(self, x: Bits) -> Bits:
        t = self.taken
        x = x.swapaxes(-1, -2) if t.transpose else x
        if x.ndim > 2:
            x = x.reshape(-1, x.shape[-1])
        if t.rows is not None or t.turn:
            x = x.reshape(-1, t.every or len(x), self.k if not t.turn else x.shape[-1])
            x = x[:, slice(*(t.rows or (0, None)))]
            x = (x.swapaxes(1, 2) if t.turn else x).reshape(self.rows, self.k)
        return x

    def values(self, bits: Bits) -> NDArray[np.float32]:
        """Rows in f32, changed as the recipe says."""
        flat = np.ascontiguousarray(bits).reshape(-1).view(np.uint8)
        x = _weights.decode(self.format, len(bits), self.k, flat)
        if self.taken.neg_exp:
            np.negative(np.exp(x, out=x), out=x)
        if self.taken.plus:
            x += np.float32(self.taken.plus)
        return x


class FolderSource:
    """A plan's weights out of a folder: a `weights.Source` under the plan's names.

    quantize: what matrices become (QUANTIZE); where a matrix cannot, it takes a stand-in or stays, and `notes` says so.
    """

    def __init__(self, model: FolderModel, weights: Sequence[Weight], recipes: Mapping[str, Recipe],
                 quantize: str | None = None) -> None:
        if quantize is not None and quantize not in QUANTIZE:
            raise FieldInvalid(f"quantize is {quantize!r}; known: {', '.join(QUANTIZE)}", field="quantize")
        self.path, self._model = model.path, model
        self.tensors: dict[str, TensorInfo] = {}
        self.stored = model.used(recipes)
        self._parts: dict[str, list[Part]] = {}
        self._formats: dict[str, int] = {}
        stood_in: dict[tuple[str, int], int] = {}
        for weight in weights:
            parts = [Part.of(taken, model) for taken in _parts(recipes[weight.name])]
            self._check(weight, parts)
            format = self._natural(weight, parts)
            if quantize is not None and weight.k and not KEPT.search(weight.name):
                wanted, format = QUANTIZE[quantize], _standing_in(QUANTIZE[quantize], weight.k, format)
                if FORMATS[format] != wanted:
                    stood_in[FORMATS[format], weight.k] = stood_in.get((FORMATS[format], weight.k), 0) + 1
            self._parts[weight.name], self._formats[weight.name] = parts, format
            shape = (weight.rows, weight.k) if weight.k else (weight.rows,)
            self.tensors[weight.name] = TensorInfo(weight.name, shape, FORMATS[format], parts[0].tensor.offset,
                                                   sum(p.rows * p.k * p.size for p in parts))
        self.notes = tuple(
            f"{n} {'matrices have' if n > 1 else 'matrix has'} rows of {k}, no whole blocks for {QUANTIZE[quantize or 'q8_0']}: "
            f"stored as {name}" for (name, k), n in stood_in.items())

    def _check(self, weight: Weight, parts: list[Part]) -> None:
        rows = sum(p.rows * (1 if weight.k else p.k) for p in parts)
        for part in parts:
            if weight.k and part.k != weight.k or rows != weight.rows:
                raise part.unlike(f"{weight.rows} x {weight.k}" if weight.k else f"{weight.rows} numbers")

    @staticmethod
    def _natural(weight: Weight, parts: list[Part]) -> int:
        """As it stands; F32 for vectors, for what is changed, and for parts that differ."""
        formats = {part.format for part in parts}
        if weight.k == 0 or len(formats) > 1 or any(part.changed for part in parts):
            return FORMATS.index("F32")
        return formats.pop()

    def supported(self, name: str) -> int:
        """Index of the format a weight will have."""
        return self._formats[name]

    def raw(self, name: str) -> Bytes:
        """A weight's blocks: a view of the file where it is a plain piece of one, else made."""
        part = self._plain(name)
        if part is None:
            return self.read(name)
        return part.file.raw(part.tensor.name)[part.first:part.first + part.rows * part.k * part.size]

    def read(self, name: str) -> Bytes:
        """A weight's blocks."""
        try:
            if len(self.tensors[name].shape) == 1:
                return np.concatenate([p.values(p.bits(0, p.rows)).reshape(-1) for p in self._parts[name]]).view(np.uint8)
            return np.concatenate([self._piece(name, first, last) for first, last in self._steps(name)])
        finally:
            self._let_go(name)

    def pack(self, outs: Mapping[str, Bytes], threads: int = 0) -> None:
        """Weights by name into their R16 bytes: plain ones by C's threads, the others in pieces by ours. Those call C with one
        thread each: a piece is too short a time for C's to come and go."""
        jobs: dict[int, list[tuple[str, int, int, int, Bytes]]] = {}
        pieces: list[tuple[str, Bytes, int, int]] = []
        for name, out in outs.items():
            part = self._plain(name)
            if part is not None:
                jobs.setdefault(id(part.file), []).append((part.tensor.name, part.first, part.rows, part.k, out))
            else:
                pieces += [(name, out, first, last) for first, last in self._steps(name)]
        for file in self._model.files:
            if id(file) in jobs:
                file.pack(jobs[id(file)], threads)
        if pieces:
            self._pack_pieces(pieces, threads or cpus())

    def _pack_pieces(self, pieces: list[tuple[str, Bytes, int, int]], threads: int) -> None:
        with ThreadPoolExecutor(min(threads, len(pieces))) as pool:
            try:
                futures = [pool.submit(self._pack_piece, *piece) for piece in pieces]
                for (name, _, _, last), future in zip(pieces, futures, strict=True):
                    future.result()
                    if last == self.tensors[name].shape[0]:
                        self._let_go(name)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _pack_piece(self, name: str, out: Bytes, first: int, last: int) -> None:
        format, k = self._formats[name], self.tensors[name].shape[-1]
        at, size = first // 16 * _weights.packed_bytes(format, 16, k), _weights.packed_bytes(format, last - first, k)
        _weights.pack(format, last - first, k, self._piece(name, first, last), out[at:at + size], 1)

    def check(self) -> None:
        """ModelInvalid when a file changed since it was opened."""
        for file in self._model.files:
            file.check()

    def _plain(self, name: str) -> Part | None:
        parts = self._parts[name]
        if len(parts) == 1 and parts[0].plain and parts[0].format == self._formats[name] and len(self.tensors[name].shape) == 2:
            return parts[0]
        return None

    def _steps(self, name: str) -> list[tuple[int, int]]:
        """A matrix's rows in pieces of whole groups of 16."""
        rows, k = self.tensors[name].shape
        step = max(16, PIECE // k // 16 * 16)
        return [(first, min(first + step, rows)) for first in range(0, rows, step)]

    def _let_go(self, name: str) -> None:
        """Of tensors that were turned for a weight."""
        for part in self._parts[name]:
            part.whole = None

    def _piece(self, name: str, first: int, last: int) -> Bytes:
        """Rows [first, last) of a matrix as blocks."""
        taken, at, format = [], 0, self._formats[name]
        for part in self._parts[name]:
            low, high = max(first, at), min(last, at + part.rows)
            if low < high:
                taken.append((part, part.bits(low - at, high - at)))
            at += part.rows
        if all(part.format == format and not part.changed for part, _ in taken):
            return np.concatenate([bits for _, bits in taken]).reshape(-1).view(np.uint8)
        values = [part.values(bits) for part, bits in taken]
        try:
            return _weights.quantize(format, np.concatenate(values) if len(values) > 1 else values[0], 1)
        except ModelInvalid as error:
            raise ModelInvalid(f"{taken[0][0].file.path}: tensor {taken[0][0].tensor.name} holds {error}") from None


def _standing_in(wanted: str, k: int, natural: int) -> int:
    """The format itself, its stand-in of smaller blocks, or what the tensor has."""
    for name in (wanted, STAND_INS.get(wanted)):
        if name is not None and _weights.file_bytes(FORMATS.index(name), 1, k):
            return FORMATS.index(name)
    return natural
