"""Takes the figures in turns, round by round, with the machine's limits measured in between."""
from __future__ import annotations

import contextlib
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..cache.pages import GONE, Span, pages_for
from ..llm import LLM
from ..loading import Model, kv_bytes_per_token, open_model
from ..plan import PAGE_TOKENS
from ..types import Batch, SamplingParams
from ..version import VERSION
from .limits import Limits
from .profile import profile, rewind
from .work import Work, matrices

PARTS = ("decode", "prefill", "batch", "depth", "load", "profile")
START = 16            # tokens before those that are timed
LEAST = 3             # rounds that are measured however long they take
LONGEST = 128         # tokens one figure generates
BATCHED = 32          # tokens each sequence of a batch generates
BEYOND = 128          # tokens there is room for behind a depth
LONG = 1.0            # seconds one figure of a round may take, where it can be cut short
Report = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to measure. generate 0: as many tokens as take about a second, 16 to 128."""

    parts: tuple[str, ...] = PARTS[:5]
    prompts: tuple[int, ...] = (512,)
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    depths: tuple[int, ...] = (0, 1024, 4096)
    generate: int = 0
    rounds: int = 5
    seconds: float = 60.0

    def within(self, context: int) -> Wanted:
        """The same, as far as a context of so many tokens has room."""
        return Wanted(self.parts, tuple(dict.fromkeys(min(n, context - 1) for n in self.prompts)), self.batches,
                      tuple(d for d in self.depths if d + START < context), self.generate, self.rounds, self.seconds)

    def cache_tokens(self) -> int:
        """Tokens the KV cache must hold at once."""
        most = [START + max(LONGEST, self.generate), *self.prompts]
        most += [n * (START + BATCHED + PAGE_TOKENS) for n in self.batches] if "batch" in self.parts else []
        most += [d + BEYOND for d in self.depths] if "depth" in self.parts else []
        return max(most) + BEYOND


@dataclass(slots=True)
class Figure:
    """One figure: what a run of it does, and tokens a second in each round. `steps` run one after another a round."""

    name: str
    run: Callable[[], tuple[int, float]]       # () -> tokens, seconds
    tokens: int                                # of one step
    bytes: int                                 # a step must read
    operations: dict[tuple[int, int], int]     # a step must do
    facts: dict[str, Any]
    each: list[float] = field(default_factory=list)

    def take(self) -> None:
        """One round."""
        tokens, seconds = self.run()
        self.each.append(tokens / seconds)

    def result(self, read: float, multiply: float) -> dict[str, Any]:
        """Beside the limits: bytes a second, operations a second. MBU and MFU are shares of each; the limit is the later one."""
        speed, operations = statistics.median(self.each), sum(self.operations.values())
        limit = self.tokens / max(self.bytes / read, operations / multiply)
        steps = speed / self.tokens
        return {**self.facts, "tokens_per_second": speed, "limit": limit, "ratio": speed / limit,
                "bound_by": "reading" if self.bytes / read > operations / multiply else "multiplying",
                "mbu": steps * self.bytes / read, "mfu": steps * operations / multiply, "bytes_per_step": self.bytes,
                "operations_per_step": operations, "tokens_per_step": self.tokens, "each": list(self.each)}


def measure(path: str, options: dict[str, Any], wanted: Wanted, report: Report | None = None) -> dict[str, Any]:
    """Everything that was asked for, as one JSON-ready dict. `options` as for open_model; `report` is told (done, in all)."""
    loads: dict[str, Any] | None = None
    if "load" in wanted.parts:
        loads = load(path, options, min(LEAST, wanted.rounds))
    model = open_bench(path, options, wanted)
    wanted = wanted.within(model.context)
    with LLM(model) as llm:
        facts = {**about(llm, path), **Bench(llm, wanted).all(report)}
    return facts | ({"load": loads} if loads else {})


def open_bench(path: str, options: dict[str, Any], wanted: Wanted) -> Model:
    """The model with seats and cache for all figures, and no more."""
    given = {name: value for name, value in options.items() if value is not None}
    seats = max(wanted.batches) if "batch" in wanted.parts else 1
    return open_model(path, **{"max_running": seats, "kv_tokens": wanted.cache_tokens(), **given})


def about(llm: LLM, path: str) -> dict[str, Any]:
    """What was measured, with what."""
    backend: Any = llm.model.backend
    return {"model": path, "file": str(llm.model.path), "version": VERSION, "commit": commit(), "isa": backend.isa,
            "threads": backend.threads, "pool": backend.pool, "cpu": cpu_name(), "context": llm.context,
            "kv_bytes_per_token": kv_bytes_per_token(llm.model.plan)}


def commit() -> str | None:
    """The source tree's commit, with + when it has changes; None for an installed package."""
    here = Path(__file__).resolve().parent

    def ask(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, timeout=5)

    try:
        if ask("ls-files", "--error-unmatch", __file__).returncode:
            return None
        changed = bool(ask("status", "--porcelain", "--untracked-files=no").stdout.strip())
        return ask("rev-parse", "--short", "HEAD").stdout.strip() + "+" * changed
    except (OSError, subprocess.TimeoutExpired):
        return None


def cpu_name() -> str:
    """The processor's own name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def load(path: str, options: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Opening the model beside reading its file from the page cache, in turns; the first round is not counted."""
    from ..store import resolve

    file = resolve(path)
    given = {name: value for name, value in options.items() if value is not None} | {"max_running": 1, "kv_tokens": 64}
    read, opened, buffer = [], [], bytearray(8 << 20)
    for _ in range(rounds + 1):
        began = time.perf_counter()
        with open(file, "rb", buffering=0) as handle:
            while handle.readinto(buffer):
                pass
        read.append(time.perf_counter() - began)
        began = time.perf_counter()
        model = open_model(path, **given)
        opened.append(time.perf_counter() - began)
        model.close()
        del model
    size, reading, opening = file.stat().st_size, statistics.median(read[1:]), statistics.median(opened[1:])
    return {"seconds": opening, "read_seconds": reading, "bytes": size, "bytes_per_second": size / opening,
            "read_bytes_per_second": size / reading, "times_reading": opening / reading, "each": opened[1:], "first": opened[0]}


class Bench:
    """The figures of one open model."""

    def __init__(self, llm: LLM, wanted: Wanted) -> None:
        self.llm, self.wanted = llm, wanted
        self.plan, self.weights = llm.model.plan, llm.model.weights
        self.backend: Any = llm.model.backend
        self.work = Work.of(self.plan, self.weights)
        self.draw = random.Random(1)
        self.generate = wanted.generate
        self.steps: dict[int, list[tuple[float, float]]] = {}   # sequences -> seconds (in a step, between it and the one before)

    def all(self, shown: Report | None) -> dict[str, Any]:
        """Rounds over every figure; a limit before each. The first round warms up."""
        self._choose_length()
        figures = list(self.figures())
        steps = (self.wanted.rounds + 1) * (len(figures) + 1)

        def report(before: int, done: int) -> None:
            if shown:
                shown(before + done, steps)

        names = dict.fromkeys(name for op in self.plan.ops for name in matrices(op))
        rates: dict[tuple[int, int], list[float]] = {kind: [] for kind in self.work.operations(1, 1)}
        read: list[float] = []
        began = time.perf_counter()
        back = self.backend
        with Limits([self.weights[name] for name in names], back.isa, back.threads, back.paths[0]) as limits:
            for number in range(self.wanted.rounds + 1):
                told = partial(report, number * (len(figures) + 1))
                self._round(figures, limits, read, rates, told)
                if number >= LEAST and time.perf_counter() - began > self.wanted.seconds:
                    break
        middle = {kind: statistics.median(values[1:]) for kind, values in rates.items()}
        bandwidth = statistics.median(read[1:])
        out: dict[str, Any] = {"rounds": number, "limits": self._limits(bandwidth, middle)}
        for figure in figures:
            figure.each = figure.each[1:]
            count = sum(figure.operations.values())
            result = figure.result(bandwidth, count / sum(n / middle[kind] for kind, n in figure.operations.items()))
            if figure.name in ("decode", "batch"):
                result |= self._steps(figure.tokens)
            if figure.name == "decode":
                out["decode"] = result
            else:
                out.setdefault(figure.name, []).append(result)
        if "profile" in self.wanted.parts:
            out["profile"] = self._profiles(bandwidth, middle)
        return out

    def _round(self, figures: Sequence[Figure], limits: Limits, read: list[float], rates: dict[tuple[int, int], list[float]],
               done: Callable[[int], None]) -> None:
        for i, figure in enumerate(figures):
            read.append(limits.read_rate())
            figure.take()
            done(i + 1)
        if not figures:
            read.append(limits.read_rate())
        for kind, values in rates.items():
            values.append(limits.multiply_rate(kind))
        done(len(figures) + 1)

    def _limits(self, bandwidth: float, rates: dict[tuple[int, int], float]) -> dict[str, Any]:
        from ..weights import FORMATS

        token = self.work.operations(1, 0) or self.work.operations(1, 1)
        return {"read_bytes_per_second": bandwidth, "read_bytes": self.work.weight_bytes,
                "operations_per_second": sum(token.values()) / sum(n / rates[kind] for kind, n in token.items()),
                "kinds": [{"format": FORMATS[kind[0]], "k": kind[1], "operations_per_second": rate}
                          for kind, rate in rates.items()]}

    # ---- figures ----

    def figures(self) -> Iterator[Figure]:
        """In the order a round takes them."""
        parts, n = self.wanted.parts, self.generate
        if "decode" in parts:
            yield Figure("decode", partial(self.decode, 1, n), 1, self.work.step_bytes(START + n / 2),
                         self.work.operations(1, 1), {"generated": n})
        if "prefill" in parts:
            for tokens in self.wanted.prompts:
                size = self.work.prompt_bytes(tokens, self.llm.model.chunk)
                yield Figure("prefill", partial(self.prefill, tokens), tokens, size, self.work.operations(tokens, 1),
                             {"prompt": tokens})
        if "batch" in parts:
            for size in self.wanted.batches:
                count = max(2, min(n, BATCHED, LONGEST // size + 8))
                yield Figure("batch", partial(self.decode, size, count), size,
                             self.work.step_bytes(START + count / 2, size), self.work.operations(size, size),
                             {"sequences": size, "generated": count})
        if "depth" in parts:
            deep = Deep(self.llm, max(self.wanted.depths, default=0))
            for depth in self.wanted.depths:
                count = max(4, min(n // 4, BEYOND // 2))
                yield Figure("depth", partial(deep.decode, depth, count), 1,
                             self.work.step_bytes(depth + count / 2), self.work.operations(1, 1), {"depth": depth})

    def _ids(self, count: int) -> list[int]:
        return [self.draw.randrange(self.plan.vocab) for _ in range(count)]

    def _choose_length(self) -> None:
        if not self.generate:
            tokens, seconds = self.decode(1, 4)
            self.generate = max(16, min(LONGEST, int(LONG * tokens / seconds)))
        self.generate = max(2, min(self.generate, self.llm.context - START))

    def decode(self, sequences: int, count: int) -> tuple[int, float]:
        """Tokens after the first of each sequence, and seconds; through the engine, as a caller gets them."""
        start = max(1, min(START, self.llm.model.chunk // sequences))
        params = SamplingParams(max_tokens=count, temperature=0.0, ignore_end=True)
        with self._watched(sequences):
            done = self.llm.generate([self._ids(start) for _ in range(sequences)], params)
        return sum(d.usage.output_tokens - 1 for d in done), max(d.timings.decode for d in done)

    @contextlib.contextmanager
    def _watched(self, sequences: int) -> Iterator[None]:
        """Notes how long the backend takes for steps in which all sequences get a token, and what lies between two of them."""
        run, calls = self.backend.run, []

        def timed(batch: Batch) -> None:
            began = time.perf_counter()
            run(batch)
            calls.append((len(batch.tokens), began, time.perf_counter()))

        self.backend.run = timed
        try:
            yield
        finally:
            del self.backend.run    # the method shows again
        self.steps.setdefault(sequences, []).extend(
            (ended - began, began - before) for (held, _, before), (holds, began, ended) in pairwise(calls)
            if held == holds == sequences)

    def _steps(self, sequences: int) -> dict[str, float | None]:
        """Medians: seconds of a step in the backend, and those of everything else until the next."""
        inside, between = ([pair[i] for pair in self.steps[sequences]] for i in (0, 1))
        return {"step_seconds": statistics.median(inside) if inside else None,
                "between_seconds": statistics.median(between) if between else None}

    def prefill(self, tokens: int) -> tuple[int, float]:
        done = self.llm.generate(self._ids(tokens), SamplingParams(max_tokens=1, temperature=0.0))
        return tokens, done.timings.prefill

    def _profiles(self, bandwidth: float, rates: dict[tuple[int, int], float]) -> dict[str, Any]:
        """One token at the smallest and, when depths were asked for, the largest depth; and the first prompt."""
        depths = sorted({d for d in (0, *self.wanted.depths) if "depth" in self.wanted.parts or not d})
        prompt = min(self.wanted.prompts[0], self.llm.model.chunk)
        deep = Deep(self.llm, max(depths[-1], prompt))
        steps = {"decode": deep.step(START)} | ({f"decode at {depths[-1]}": deep.step(depths[-1])} if depths[-1] > START else {})
        steps["prefill"] = deep.prompt(self._ids(prompt))
        return {name: profile(self.backend, self.weights, step, bandwidth, rates, LONG) for name, step in steps.items()}


class Deep:
    """Steps straight on the backend while the engine rests: sequences that hold many tokens without reading them all. Their K
    and V are those of a short prompt, over and over, in memory of their own."""

    def __init__(self, llm: LLM, depth: int) -> None:
        self.backend: Any = llm.model.backend
        self.chunk = llm.model.chunk
        groups = self.backend.plan.groups
        self.spans = [Span.of(g, self.chunk) for g in groups]
        self.pages = min([pages_for(depth + BEYOND),
                          *(n for g, n in zip(groups, self.backend.pages, strict=True) if not g.window and g.kind != "state")])
        ids = [int(i) for i in np.random.default_rng(1).integers(0, llm.model.plan.vocab, self.pages * PAGE_TOKENS)]
        self.ids = ids
        self.backend.run(self._batch(0, PAGE_TOKENS))   # K and V to copy
        for group, pages in enumerate(self.backend.pages):
            for page in range(1, min(self.pages, pages) if groups[group].kind != "state" else 0):
                self.backend.copy_page(group, 0, page)
        self._store_positions(len(ids))

    def _store_positions(self, count: int) -> None:
        """Of the first tokens, as if they had been computed: a run of no ops."""
        for first in range(0, count, self.chunk):
            self.backend.run(self._batch(first, min(self.chunk, count - first)), 0, 0)

    def _batch(self, first: int, count: int, generated: bool = False) -> Batch:
        roles = np.full(count, generated, np.uint8)
        tables = [[self._table(span, pages, first, count)] for span, pages in zip(self.spans, self.backend.pages, strict=True)]
        batch = Batch.build([(self.ids[first : first + count], first, first)], tables=tables, roles=roles)
        rewind(self.backend, batch)
        return batch

    def _table(self, span: Span, pages: int, first: int, count: int) -> list[int]:
        """Block i in page i, or where a window passes over few pages, in their i-th, over and over."""
        start, end = span.blocks(first, first + count)
        return [GONE] * start + [i % pages for i in range(start, end)]

    def step(self, depth: int) -> Batch:
        """One generated token of a sequence that holds `depth`."""
        self._store_positions(depth)
        return self._batch(depth, 1, True)

    def prompt(self, ids: list[int]) -> Batch:
        """A whole prompt of at most a chunk."""
        self.ids[: len(ids)] = ids
        return self._batch(0, len(ids))

    def decode(self, depth: int, count: int) -> tuple[int, float]:
        """`count` tokens one after another behind `depth` others."""
        self._store_positions(depth)   # other sequences have been there since
        began = time.perf_counter()
        for i in range(count):
            self.backend.run(self._batch(depth + i, 1, True))
            self.ids[depth + i + 1] = int(self.backend.sampled()["token"][0])
        return count, time.perf_counter() - began
