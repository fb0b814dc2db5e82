"""How far answers are from f32 arithmetic on the same weights: KL divergence and how often the best token is the same.

    python bench/quality.py smollm2:135m [MORE ...] [--tokens 4096] [--kv f16 q8_0] [--precision balanced precise] [--json FILE]

The reference reads the same dequantized weights in f32 with an f32 cache (backends/torch.py without rounding). A text is cut
into windows that begin cold; at every position both give the distribution of the next token. Each precision is measured with
the paths its table names, whichever this machine would take: their bits are the same on every instruction set. With --here
those that the instruction set takes.

    prompt      every token is a prompt's
    generated   every token but the first is a generated one, as when a model answers from nothing
    behind      the first half of each window is a prompt, the second half generated and measured
"""
from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

TEXT = Path(__file__).parent.parent / "tests" / "data" / "alice.txt"
CHUNK = 128   # tokens of one step; how a window is cut does not show in the numbers
ROLES: dict[str, Callable[[int], np.ndarray]] = {   # role of each token of a window
    "prompt": lambda n: np.zeros(n, np.uint8), "generated": lambda n: (np.arange(n) > 0).astype(np.uint8),
    "behind": lambda n: (np.arange(n) >= n // 2).astype(np.uint8),
}


class Reader:
    """A backend that is asked for every position's logits."""

    def __init__(self, backend: Any) -> None:
        self.backend, self.last = backend, len(backend.plan.ops) - 1

    def logits(self, ids: list[int], roles: np.ndarray, first: int) -> Iterator[tuple[int, np.ndarray]]:
        """(position, logits [rows][vocab]) of a window in chunks, from position `first` on; a view, valid until the next."""
        from pyruntime.types import Batch

        tables = [[list(range(-(-len(ids) // 16)))] for _ in self.backend.plan.groups]
        for at in range(0, len(ids), CHUNK):
            part = ids[at : at + CHUNK]
            rows = np.arange(max(0, first - at), len(part), dtype=np.int32)
            batch = Batch.build([(part, at, at)], tables=tables, rows=rows, roles=roles[at : at + len(part)])
            self.backend.run(batch, 0, self.last)
            if len(rows):
                yield at + int(rows[0]), self.backend.slot("logits")


@dataclasses.dataclass
class Candidate:
    """What is measured: a precision's paths and a cache format."""

    precision: str
    paths: tuple[str, str]
    kv: str
    reader: Reader


class Distance:
    """KL(reference || candidate) and same best token, over positions."""

    def __init__(self) -> None:
        self.kl: list[float] = []
        self.same: list[bool] = []

    def add(self, want: np.ndarray, got: np.ndarray) -> None:
        """Log-probabilities of the reference, logits of the candidate, [n][vocab]."""
        ours = log_softmax(got)
        self.kl += (np.exp(want) * (want - ours)).sum(-1).tolist()
        self.same += (want.argmax(-1) == ours.argmax(-1)).tolist()

    def result(self) -> dict[str, float]:
        """Means, and how bad it gets."""
        kl = np.array(self.kl)
        return {"positions": len(kl), "mean_kl": float(kl.mean()), "p99_kl": float(np.quantile(kl, 0.99)),
                "max_kl": float(kl.max()), "same_best": float(np.mean(self.same))}


def log_softmax(x: np.ndarray) -> np.ndarray:
    """In f64."""
    wide = x.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))


def with_cache(plan: Any, kv: str) -> Any:
    """The plan with its cache kept in another format."""
    groups = tuple(dataclasses.replace(g, k_format=kv, v_format=kv) for g in plan.groups)
    return dataclasses.replace(plan, groups=groups)


def precisions() -> dict[str, tuple[str, str]]:
    """Name -> paths of (prompt, generated) tokens."""
    from pyruntime import machine

    return dict(machine.PRECISIONS)


def candidates(plan: Any, weights: Any, window: int, asked: argparse.Namespace) -> list[Candidate]:
    """Each precision with the first cache format, and the closest one with the others."""
    from pyruntime import machine
    from pyruntime.backends.native import NativeBackend

    known = precisions()
    wanted = [(name, asked.kv[0]) for name in asked.precision or known]
    wanted += [("precise", kv) for kv in asked.kv[1:]]
    made = []
    for name, kv in wanted:
        paths = machine.paths(name, machine.isa(asked.isa), None if asked.here else known[name])
        backend = NativeBackend(with_cache(plan, kv), weights, pages=-(-window // 16), max_tokens=CHUNK, max_rows=CHUNK,
                                histories=1, threads=asked.threads, isa=asked.isa, precision=name, paths=paths)
        made.append(Candidate(name, paths, kv, Reader(backend)))
    return made


def measure(name: str, asked: argparse.Namespace) -> dict[str, Any]:
    """One model, JSON-ready."""
    import torch

    from pyruntime.backends.torch import TorchBackend
    from pyruntime.cli.common import progress, read_text
    from pyruntime.models import family
    from pyruntime.store import resolve
    from pyruntime.tokenizer import Tokenizer
    from pyruntime.weights import load_weights
    from pyruntime.weights.gguf import GGUFModel

    torch.set_num_threads(asked.threads)
    with GGUFModel(resolve(name)) as file:
        module = family(file.architecture, file.path)
        plan = module.plan(module.from_gguf(file.metadata, file.shapes, file.vector))
        tokenizer = Tokenizer.from_gguf_metadata(file.metadata.values)
        weights = load_weights(plan.weights, file)
    start = tokenizer.encode("")   # each window begins as the model's texts do
    ids, body = tokenizer.encode(read_text(asked.text), add_special=False), asked.window - len(start)
    count = -(-asked.tokens // asked.window)
    if len(ids) < count * body:
        raise SystemExit(f"error: {asked.text} has {len(ids)} tokens and {count * body} are needed; give a longer --text or fewer "
                         "--tokens")
    windows = [start + ids[i * body : (i + 1) * body] for i in range(count)]
    reference = Reader(TorchBackend(with_cache(plan, "f32"), weights, pages=-(-asked.window // 16), max_tokens=CHUNK,
                                    max_rows=CHUNK, histories=1, act_quant="none"))
    made = candidates(plan, weights, asked.window, asked)
    found = {(i, role): Distance() for i in range(len(made)) for role in asked.role}
    began = time.perf_counter()
    with progress(f"reading with {name}") as report:
        for number, window in enumerate(windows):
            want = {at: log_softmax(logits) for at, logits in reference.logits(window, ROLES["prompt"](len(window)), 0)}
            for (i, role), distance in found.items():
                first = len(window) // 2 if role == "behind" else 1 if role == "generated" else 0
                for at, logits in made[i].reader.logits(window, ROLES[role](len(window)), first):
                    distance.add(row_range(want, at, len(logits)), logits)
            if report:
                report(number + 1, len(windows))
    for one in (reference, *(c.reader for c in made)):
        one.backend.close()
    return {"model": name, "text": asked.text.name, "window": asked.window, "windows": count, "isa": made[0].reader.backend.isa,
            "seconds": time.perf_counter() - began, "found": [
                {"precision": made[i].precision, "paths": made[i].paths, "kv": made[i].kv, "role": role, **distance.result()}
                for (i, role), distance in found.items()]}


def row_range(want: dict[int, np.ndarray], at: int, count: int) -> np.ndarray:
    """The reference's rows of positions [at, at + count), all of one chunk."""
    chunk = at // CHUNK * CHUNK
    return want[chunk][at - chunk : at - chunk + count]


def markdown(result: dict[str, Any]) -> str:
    """A table."""
    lines = [f"{result['model']}: KL from f32 on the same weights, {result['windows']} windows of {result['window']} tokens of "
             f"{result['text']}, {result['isa']}", "",
             "| precision | paths | cache | tokens | positions | mean KL | 99 % | most | same best token |",
             "|---|---|---|---|---:|---:|---:|---:|---:|"]
    for f in result["found"]:
        paths = ", ".join(f["paths"])
        lines.append(f"| {f['precision']} | {paths} | {f['kv']} | {f['role']} | {f['positions']} | {f['mean_kl']:.1e} "
                     f"| {f['p99_kl']:.1e} | {f['max_kl']:.1e} | {f['same_best']:.2%} |")
    return "\n".join(lines)


def main() -> None:
    """Print a table for each model."""
    import os

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="names or GGUF files")
    parser.add_argument("--tokens", type=int, default=4096, help="positions, in whole windows [%(default)s]")
    parser.add_argument("--window", type=int, default=1024, help="tokens that are read together [%(default)s]")
    parser.add_argument("--text", type=Path, default=TEXT, help="a UTF-8 text [%(default)s]")
    parser.add_argument("--precision", nargs="+", choices=list(precisions()), help="[all]")
    parser.add_argument("--kv", nargs="+", default=["f16"], help="cache formats; the first for all precisions [f16]")
    parser.add_argument("--role", nargs="+", choices=list(ROLES), default=list(ROLES), help="[all]")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="[%(default)s]")
    parser.add_argument("--isa", default=None, help="instruction set [the best here]")
    parser.add_argument("--here", action="store_true", help="the paths that --isa takes, not those the table names")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the numbers there")
    asked = parser.parse_args()
    results = []
    for model in asked.models:
        results.append(measure(model, asked))
        print(markdown(results[-1]) + "\n", flush=True)
        if asked.json:
            asked.json.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
