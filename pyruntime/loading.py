"""From a name to a model that can answer: file -> config -> plan -> weights -> backend, tokenizer, defaults, memory plan."""
from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from .backends.base import Backend
from .cache.pages import Span, pages_for
from .config import Metadata, ModelConfig
from .engine.engine import Engine
from .errors import FieldInvalid, ModelInvalid
from .plan import PAGE_TOKENS, CacheGroup, EachLinear, Experts, Plan
from .store import recommended, resolve
from .tokenizer import Tokenizer
from .types import SamplingParams
from .weights import Weights, load_weights
from .weights.folder import FolderModel, read_json
from .weights.gguf import GGUFModel

Progress = Callable[[int, int], None]   # (bytes done, bytes in all)
T = TypeVar("T")
BACKENDS = ("native", "torch")
KV_BITS = {"f32": 32.0, "f16": 16.0, "bf16": 16.0, "q8_0": 8.5}    # a number of K or V in the cache
MAX_RUNNING, CHUNK, CHUNK_BESIDE = 8, 512, 8
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "typical_p")    # what generation_config.json may set


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes a model takes: weights (packed, or mapped from the file in low-memory mode), KV cache and states, activations.

    kv_tokens is what the cache holds, in `pages` pages of each cache group: no more of a group with a window than all
    sequences' windows and chunks fill, and a state a sequence. `available` is what this process could still take when it was
    planned."""

    weights: int
    kv: int
    activations: int
    kv_tokens: int
    available: int
    pages: tuple[int, ...]


@dataclass(slots=True)
class Model:
    """An open model: everything but the engine, which `start` makes."""

    name: str
    path: Path
    config: ModelConfig
    plan: Plan
    weights: Weights
    backend: Backend
    tokenizer: Tokenizer
    defaults: dict[str, float]
    context: int
    max_running: int
    chunk: int
    chunk_beside: int
    memory: MemoryPlan
    metadata: Metadata
    notes: tuple[str, ...] = ()    # what was done otherwise than asked, a line each

    def start(self, *, max_waiting: int = 1024) -> Engine:
        """The engine; closing it closes the backend, so a model starts once."""
        return Engine(self.backend, self.tokenizer, defaults=self.defaults, context=self.context, max_running=self.max_running,
                      max_waiting=max_waiting, chunk=self.chunk, chunk_beside=self.chunk_beside, name=self.name)

    def close(self) -> None:
        """For a model that was never started."""
        self.backend.close()


def open_model(path: str | os.PathLike[str], *, backend: str = "native", threads: int | None = None, isa: str | None = None,
               pool: str | None = None, precision: str | None = None, low_memory: bool = False, context: int | None = None,
               kv_tokens: int | None = None, max_running: int = MAX_RUNNING, chunk: int = CHUNK,
               chunk_beside: int = CHUNK_BESIDE, kv_format: str | None = None, quantize: str | None = None,
               progress: bool | Progress | None = None) -> Model:
    """Open a model by name or path: a GGUF file or a Hugging Face folder.

    context: most tokens of prompt and answer, default and at most the model's. kv_tokens: tokens the cache holds for all
    running sequences, default `context` x `max_running`, but no more than half the memory that weights leave.
    max_running: sequences computed at once. chunk: most prompt tokens in one step. chunk_beside: beside running answers; one
    for every request that runs or waits, at most `max_running`, if that is more. Few let answers flow evenly, many have prompts
    answered sooner.
    kv_format: how the cache keeps K and V: f32, f16 (the default), bf16 or q8_0, or "K:V" apart.
    quantize: what a folder's matrices become while they load: q8_0, q4_0, q4_1, q5_0, q5_1, q4_k, q5_k or q6_k; as they stand
    unless told.
    threads, isa, pool, precision: native only, default as PYRUNTIME_THREADS, PYRUNTIME_ISA, PYRUNTIME_POOL and
    PYRUNTIME_PRECISION say. precision: how much rounding products may take for speed (machine.PRECISIONS).
    progress: True, False, None (a bar where stderr is a terminal), or called with (bytes done, bytes in all).
    ModelNotFound, ModelInvalid, FieldInvalid.
    """
    if backend not in BACKENDS:
        raise FieldInvalid(f"backend is {backend!r}; known: {', '.join(BACKENDS)}", field="backend")
    for name, value in (("context", context), ("kv_tokens", kv_tokens), ("max_running", max_running), ("chunk", chunk),
                        ("chunk_beside", chunk_beside)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise FieldInvalid(f"{name} is {value!r}; it must be a whole number above 0", field=name)
    if quantize is not None and low_memory:
        raise FieldInvalid("quantize makes new weights and low_memory leaves them in the file; choose one", field="quantize")
    from .machine import precision as asked

    file = resolve(path)
    with open_file(file) as opened, _Beside(opened.tokenizer) as beside:    # made while the rest is read and packed
        config = _with_cache(opened.config(), kv_format)
        plan = opened.module.plan(config)
        if backend != "native" or asked(precision) == "precise":
            plan = plan.token_by_token()
        source = opened.source(plan, config, quantize)
        defaults = _defaults(opened.sampling(), file)
        context = min(context or plan.context, plan.context)
        with _shown(progress, file.name) as report:
            def told(done: int, total: int) -> None:
                beside.look()
                if report:
                    report(done, total)

            weights = load_weights(plan.weights, source, low_memory=low_memory, threads=threads or 0, progress=told)
        tokenizer = beside.result()
        if tokenizer.vocab_size > plan.vocab:
            raise ModelInvalid(f"{opened.path}: the tokenizer has {tokenizer.vocab_size} tokens, the embedding {plan.vocab} rows")
        memory = _plan_memory(plan, weights, context, kv_tokens, max_running, chunk)
        made = _backend(backend, plan, weights, dict(
            pages=memory.pages, max_tokens=chunk + max_running, max_rows=max(64, max_running), histories=max_running),
            dict(threads=threads, isa=isa, pool=pool, precision=precision))
        return Model(model_name(path, file), file, config, plan, weights, made, tokenizer, defaults, context,
                     max_running, chunk, chunk_beside, memory, opened.metadata, source.notes)


class _Beside(Generic[T]):
    """A call on a thread of its own while the block's work goes on; over when the block is. It must not need the block's."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._done: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="pyruntime loading", daemon=True)

    def _run(self) -> None:
        try:
            self._done.append(self._call())
        except BaseException as error:
            self._error = error

    def look(self) -> None:
        """Raises what the call has raised so far."""
        if self._error is not None:
            raise self._error

    def result(self) -> T:
        """Waits for it."""
        self._thread.join()
        self.look()
        return self._done[0]

    def __enter__(self) -> _Beside[T]:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()


def open_file(path: Path) -> GGUFModel | FolderModel:
    """A model's file or folder, its header read and nothing else."""
    if path.is_dir():
        return FolderModel(path)
    if path.suffix in (".safetensors", ".json"):
        raise ModelInvalid(f"{path}: a part of a model; name the folder, {path.parent}")
    return GGUFModel(path)


def _with_cache(config: ModelConfig, kv_format: str | None) -> ModelConfig:
    """The config with K and V kept as `kv_format` says: one format, or K's:V's."""
    if kv_format is None:
        return config
    parts = str(kv_format).split(":")
    k, v = parts[0], parts[-1]
    if not config.kv_heads:
        raise FieldInvalid(f"kv_format is {kv_format!r}; this model keeps no K and V but states in f32: leave it out",
                           field="kv_format")
    if len(parts) > 2 or k not in KV_BITS or v not in KV_BITS:
        raise FieldInvalid(f"kv_format is {kv_format!r}; it must be {', '.join(KV_BITS)}, or two of them as K:V", field="kv_format")
    if config.latent and k != v:
        raise FieldInvalid(f"kv_format is {kv_format!r}; this model keeps one row for both, so that K and V have one format",
                           field="kv_format")
    if "q8_0" in (k, v) and config.head_dim % 32:
        raise FieldInvalid(f"kv_format is {kv_format!r}; q8_0 needs heads of whole blocks of 32 numbers and this model's have "
                           f"{config.head_dim}: take f16", field="kv_format")
    return replace(config, k_format=k, v_format=v)


def _backend(name: str, plan: Plan, weights: Weights, sizes: dict[str, Any], machine: dict[str, Any]) -> Backend:
    if name == "native":
        from .backends.native import NativeBackend

        return NativeBackend(plan, weights, **sizes, **machine)
    for option, value in machine.items():
        if value is not None and option != "threads":
            raise FieldInvalid(f"{option} is for the native backend; leave it out with torch", field=option)
    try:
        from .backends.torch import TorchBackend
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise FieldInvalid("backend is 'torch' and torch is not installed; pip install 'pyruntime-llm[torch]'",
                           field="backend") from None
    return TorchBackend(plan, weights, **sizes)


def available_memory() -> int:
    """Bytes this process may still take: what the system has free, or what its control group leaves if that is less."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError, IndexError):
        pass  # no Linux, or a very old one: the pages free now
    try:
        group = Path("/sys/fs/cgroup")
        limit, used = (group / "memory.max").read_text().strip(), int((group / "memory.current").read_text())
        free = min(free, max(0, int(limit) - used)) if limit != "max" else free
    except (OSError, ValueError):
        pass  # not in a control group with a limit
    return free


def page_bytes(group: CacheGroup) -> int:
    """Bytes of one page of a cache group in all its layers, or of one sequence's state."""
    if group.kind == "state":
        return 4 * group.layers * (group.width + PAGE_TOKENS * group.row)
    bits = KV_BITS[group.k_format] + (0 if group.kind == "latent" else KV_BITS[group.v_format])   # a latent row is both
    return PAGE_TOKENS * int(group.layers * group.kv_heads * group.head_dim * bits / 8)


def kv_bytes_per_token(plan: Plan) -> int:
    """Bytes one token's K and V take in all layers of all groups, states left out."""
    return sum(page_bytes(g) for g in plan.groups if g.kind != "state") // PAGE_TOKENS


def state_bytes(plan: Plan) -> int:
    """Bytes a sequence's states take, however long it is."""
    return sum(page_bytes(g) for g in plan.groups if g.kind == "state")


def _pages(plan: Plan, context: int, kv_tokens: int, max_running: int, chunk: int) -> tuple[int, ...]:
    """Pages of each group that hold kv_tokens tokens of up to max_running sequences."""
    most = [max_running * Span.of(g, chunk).most(context) for g in plan.groups]
    return tuple(n if g.kind == "state" else min(n, pages_for(kv_tokens)) if g.window else pages_for(kv_tokens)
                 for g, n in zip(plan.groups, most, strict=True))


def _activations(plan: Plan, tokens: int, rows: int) -> int:
    """Bytes of slots, and of what the widest op whose tokens meet several matrices rounds for each: about 9 a number."""
    k = {w.name: w.k for w in plan.weights}
    pairs = [op.parts * k[op.weight if isinstance(op, EachLinear) else op.gate] for op in plan.ops
             if isinstance(op, (EachLinear, Experts))]
    return sum(4 * s.width * (rows if s.per_row else tokens) for s in plan.slots) + 9 * tokens * max(pairs, default=0)


def _plan_memory(plan: Plan, weights: Weights, context: int, kv_tokens: int | None, max_running: int, chunk: int) -> MemoryPlan:
    """How much cache there is room for; FieldInvalid when what was asked for does not fit."""
    available, all_tokens = available_memory(), context * max_running

    def cache(tokens: int, some: Callable[[CacheGroup], bool] = lambda group: True) -> int:
        pages = _pages(plan, context, tokens, max_running, chunk)
        return sum(n * page_bytes(g) for g, n in zip(plan.groups, pages, strict=True) if some(g))

    if kv_tokens is None:
        growing = sum(page_bytes(g) for g in plan.groups if g.kind != "state" and not g.window)
        left = max(0, available // 2 - cache(all_tokens, lambda g: g.kind == "state" or g.window > 0))
        kv_tokens = max(PAGE_TOKENS, min(all_tokens, left // growing * PAGE_TOKENS if growing else all_tokens))
    kv_tokens = pages_for(kv_tokens) * PAGE_TOKENS
    activations = _activations(plan, chunk + max_running, max(64, max_running))
    if cache(kv_tokens) + activations > available:
        raise FieldInvalid(
            f"a cache of {kv_tokens} tokens takes {cache(kv_tokens) >> 20} MiB and activations {activations >> 20} MiB; "
            f"{available >> 20} MiB are free: lower kv_tokens, context or max_running", field="kv_tokens")
    return MemoryPlan(weights.nbytes, cache(kv_tokens), activations, kv_tokens, available,
                      _pages(plan, context, kv_tokens, max_running, chunk))


def _defaults(own: Mapping[str, Any], file: Path) -> dict[str, float]:
    """The model's own sampling parameters: the file's, else those of a generation_config.json beside it or in the folder, else
    the catalogue's."""
    found, source = dict(own), str(file)
    beside = (file if file.is_dir() else file.parent) / "generation_config.json"
    if not found and beside.is_file():
        source, config = str(beside), read_json(beside, 1 << 20)
        found = {name: config[name] for name in SAMPLING if config.get(name) is not None}
        if config.get("do_sample") is False:
            found["temperature"] = 0.0
    found = found or recommended(file)
    try:
        checked = SamplingParams(**found)  # type: ignore[arg-type]
    except FieldInvalid as error:
        raise ModelInvalid(f"{source}: its sampling defaults are not usable: {error}") from None
    return {name: getattr(checked, name) for name in found}


def model_name(asked: str | os.PathLike[str], file: Path) -> str:
    """What the model is called: the name it was asked for by, or a file's or folder's own name."""
    text = os.fspath(asked)
    if Path(text).expanduser() != file:
        return text
    return file.resolve().name if file.is_dir() else file.stem


@contextmanager
def _shown(progress: bool | Progress | None, label: str) -> Iterator[Progress | None]:
    """The callable that load_weights reports to."""
    if callable(progress):
        yield progress
    elif progress or (progress is None and sys.stderr.isatty()):
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        console = Console(stderr=True)
        bar = Bar(TextColumn(f"loading {label}"), BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=console,
                  transient=console.is_terminal)
        with bar:
            task = bar.add_task("load")
            yield lambda done, total: bar.update(task, completed=done, total=total)
    else:
        yield None
