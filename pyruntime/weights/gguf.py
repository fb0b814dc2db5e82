"""GGUF models: one file, or the parts of a split one, as a source of weights and checked metadata."""
from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._core import _weights
from .._core._weights import GGUFFile, TensorInfo
from ..config import Metadata, ModelConfig
from ..errors import FieldInvalid, ModelInvalid, ModelNotFound
from ..models import family
from ..plan import Plan
from ..recipe import Taken
from ..tokenizer import Tokenizer
from . import FORMATS

PARTS_MAX = 1024
#: sampling defaults in metadata, and SamplingParams' names for them
_SAMPLING = {
    "general.sampling.temp": "temperature", "general.sampling.top_k": "top_k", "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p", "general.sampling.penalty_repeat": "repetition_penalty",
}
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


class GGUFModel:
    """An open GGUF model: a `weights.Source` with metadata. Name any part of a split model, all are opened.

    metadata: typed, range-checked access (config.Metadata); its `values` is the plain dict.
    tensors: name -> TensorInfo, over all parts. shapes: name -> [rows, k] order.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        first = GGUFFile(self.path)
        self.files = _parts(first)
        self.metadata = Metadata(self.files[0].metadata, self.path)
        self.tensors: dict[str, TensorInfo] = {}
        self._owner: dict[str, GGUFFile] = {}
        for file in self.files:
            for name, tensor in file.tensors.items():
                if name in self.tensors:
                    raise ModelInvalid(
                        f"{file.path}: tensor {name} is there twice, also in {self._owner[name].path}"
                    )
                self.tensors[name], self._owner[name] = tensor, file

    @property
    def architecture(self) -> str:
        """The model family's name in the file."""
        return self.metadata.text("general.architecture")

    @cached_property
    def module(self) -> ModuleType:
        """The family that reads it."""
        return family(self.architecture, self.path)

    def config(self) -> ModelConfig:
        """What the family reads in the metadata."""
        config: ModelConfig = self.module.from_gguf(self.metadata, self.shapes, self.vector)
        return config

    def source(self, plan: Plan, config: ModelConfig, quantize: str | None = None) -> GGUFModel | GGUFPieces:
        """Itself: the plan's weights stand in it under the plan's names, or as `pieces` finds them. A tensor nobody reads would
        mean a model computed otherwise than it was trained: ModelInvalid."""
        if quantize is not None:
            raise FieldInvalid(f"quantize is for folders of safetensors; {self.path} keeps the weights it has", field="quantize")
        source = self.pieces(plan, config)
        used = {weight.name for weight in plan.weights}.union(self.module.CONFIG_TENSORS)
        used.update(taken.tensor for taken in getattr(source, "taken", {}).values())
        if extra := [name for name in self.tensors if name not in used]:
            raise ModelInvalid(f"{self.path}: tensor '{extra[0]}'{f' and {len(extra) - 1} more' * (len(extra) > 1)} is no part of "
                               f"the '{self.architecture}' family as it is read here; answers without it would be wrong")
        return source

    def pieces(self, plan: Plan, config: ModelConfig) -> GGUFModel | GGUFPieces:
        """Itself, or with what older files keep otherwise (the family's `gguf_older`) under the plan's names."""
        older = self.module.gguf_older(config) if hasattr(self.module, "gguf_older") else {}
        lacking = {w.name: older[w.name] for w in plan.weights if w.name not in self.tensors and w.name in older}
        found = {name: taken for name, taken in lacking.items() if taken.tensor in self.tensors}
        return GGUFPieces(self, found) if found else self

    @property
    def stored(self) -> dict[str, TensorInfo]:
        """The tensors that a plan reads: all of them."""
        return self.tensors

    @property
    def kind(self) -> str:
        """What sort of file it is."""
        return f"GGUF v{self.files[0].version}"

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done otherwise than asked: nothing."""
        return ()

    def tokenizer(self) -> Tokenizer:
        """From the metadata."""
        return Tokenizer.from_gguf_metadata(self.metadata.values)

    def sampling(self) -> dict[str, Any]:
        """The file's own sampling defaults, by SamplingParams' names."""
        return {ours: self.metadata.values[key] for key, ours in _SAMPLING.items() if key in self.metadata.values}

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(os.stat(file.path).st_size for file in self.files)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape, k last."""
        return {name: t.shape for name, t in self.tensors.items()}

    def supported(self, name: str) -> int:
        """Index of the tensor's format; ModelInvalid naming it if it is none of ours."""
        return self._owner[name].supported(name)

    def raw(self, name: str) -> NDArray[np.uint8]:
        """A tensor's bytes: read-only, no copy, good after close()."""
        return self._owner[name].raw(name)

    def read(self, name: str) -> NDArray[np.uint8]:
        """A tensor's bytes, copied."""
        return self._owner[name].read(name)

    def vector(self, name: str) -> NDArray[np.float32]:
        """A small f32 tensor of one dimension; ModelInvalid if it is none."""
        tensor = self.tensors[name]
        if len(tensor.shape) != 1 or tensor.format != "F32":
            raise ModelInvalid(f"{self.path}: tensor '{name}' is {tensor.format} {list(tensor.shape)}; it must be one row of F32")
        return self.read(name).view("<f4")

    def pack(self, outs: Mapping[str, NDArray[np.uint8]], threads: int = 0) -> None:
        """Tensors by name into their R16 bytes."""
        for file in self.files:
            mine = {name: out for name, out in outs.items() if self._owner[name] is file}
            if mine:
                file.pack(mine, threads)

    def check(self) -> None:
        """ModelInvalid when a file changed since it was opened."""
        for file in self.files:
            file.check()

    def close(self) -> None:
        """Let go of the files; views that are out keep their mapping."""
        for file in self.files:
            file.close()

    def __enter__(self) -> GGUFModel:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


class GGUFPieces:
    """A file some of whose weights are pieces of other tensors: a `weights.Source`.

    A recipe takes rows of each block of `every` rows. Turned, formats of blocks become F32, whose values are the file's."""

    def __init__(self, model: GGUFModel, taken: Mapping[str, Taken]) -> None:
        self.path, self.taken, self._model = model.path, taken, model
        self.tensors = dict(model.tensors)
        for name, recipe in taken.items():
            self.tensors[name] = self._proven(name, recipe)
        turned = sum(1 for name, t in taken.items() if self.tensors[name].format != model.tensors[t.tensor].format)
        self.notes = (f"{turned} matrices turned, which their blocks do not allow: stored as F32",) if turned else ()

    @property
    def stored(self) -> dict[str, TensorInfo]:
        """The tensors that a plan reads, as they stand in the file."""
        return self._model.stored

    def _proven(self, name: str, recipe: Taken) -> TensorInfo:
        """Shape and format of a piece; ModelInvalid when its tensor has no such rows."""
        whole, (first, last) = self._model.tensors[recipe.tensor], recipe.rows or (0, recipe.every)
        format = self._model.supported(recipe.tensor)
        if len(whole.shape) != 2 or not recipe.every or whole.shape[0] % recipe.every:
            raise ModelInvalid(f"{self.path}: tensor {whole.name} is {' x '.join(map(str, whole.shape))}, the model needs blocks "
                               f"of {recipe.every} rows")
        blocks, k = whole.shape[0] // recipe.every, whole.shape[1]
        shape = (blocks * k, last - first) if recipe.turn else (blocks * (last - first), k)
        if recipe.turn and _weights.formats()[format].block_weights > 1:
            format = FORMATS.index("F32")
        return TensorInfo(name, shape, FORMATS[format], whole.offset, _weights.file_bytes(format, *shape))

    def supported(self, name: str) -> int:
        """Index of the format a weight has."""
        return FORMATS.index(self.tensors[name].format) if name in self.taken else self._model.supported(name)

    def raw(self, name: str) -> NDArray[np.uint8]:
        """A weight's bytes: a view, or made."""
        return self._made(name) if name in self.taken else self._model.raw(name)

    def read(self, name: str) -> NDArray[np.uint8]:
        """A weight's bytes."""
        return self._made(name) if name in self.taken else self._model.read(name)

    def _made(self, name: str) -> NDArray[np.uint8]:
        recipe = self.taken[name]
        whole, (first, last) = self._model.tensors[recipe.tensor], recipe.rows or (0, recipe.every)
        rows = self._model.read(recipe.tensor).reshape(whole.shape[0] // recipe.every, recipe.every, -1)[:, first:last]
        if not recipe.turn:
            return np.ascontiguousarray(rows).reshape(-1)
        format, k = self._model.supported(recipe.tensor), whole.shape[1]
        if self.tensors[name].format != FORMATS[format]:
            flat = np.ascontiguousarray(rows).reshape(-1)
            values = _weights.decode(format, len(rows) * (last - first), k, flat)
        else:
            values = np.ascontiguousarray(rows).view({1: np.uint8, 2: np.uint16, 4: np.uint32}[rows.shape[-1] // k])
        return np.ascontiguousarray(values.reshape(len(rows), last - first, k).swapaxes(1, 2)).reshape(-1).view(np.uint8)

    def pack(self, outs: Mapping[str, NDArray[np.uint8]], threads: int = 0) -> None:
        """Weights by name into their R16 bytes."""
        self._model.pack({name: out for name, out in outs.items() if name not in self.taken}, threads)
        for name in self.taken.keys() & outs.keys():
            rows, k = self.tensors[name].shape
            _weights.pack(self.supported(name), rows, k, self._made(name), outs[name], threads)

    def check(self) -> None:
        """ModelInvalid when a file changed since it was opened."""
        self._model.check()


def _parts(first: GGUFFile) -> tuple[GGUFFile, ...]:
    """All files of the model that `first` is a part of, part 1 in front."""
    count = Metadata(first.metadata, first.path).integer("split.count", 0, PARTS_MAX, 0)
    if count <= 1:
        return (first,)
    path = Path(first.path)
    named = _PART.fullmatch(path.name)
    if named is None or int(named["count"]) != count:
        raise ModelInvalid(f"{first.path}: a part of a model in {count} files; it must be named "
                           f"NAME-00001-of-{count:05}.gguf and lie beside the others")
    files = []
    for i in range(count):
        name = path.with_name(f"{named['stem']}-{i + 1:05}-of-{count:05}.gguf")
        file = first if name == path else _open_part(name, first.path)
        meta = Metadata(file.metadata, file.path)
        meta.integer("split.count", count, count)
        meta.integer("split.no", i, i)
        files.append(file)
    total = sum(len(f.tensors) for f in files)
    Metadata(files[0].metadata, files[0].path).integer("split.tensors.count", total, total, total)
    return tuple(files)


def _open_part(name: Path, wanted_by: str) -> GGUFFile:
    try:
        return GGUFFile(name)
    except ModelNotFound:
        raise ModelNotFound(f"{name}: no such file; it is a part of {wanted_by}, get all parts") from None
