"""pyruntime bench MODEL"""
from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import click

from .common import MODEL_OPTIONS, as_json, open_llm, options, progress, say_json, say_table

if TYPE_CHECKING:
    from ..llm import LLM
    from ..plan import Plan

DEPTH = 16            # tokens before those that are timed
PIECE = 1 << 18       # bytes; threads share the weights in such pieces
READ = 2 << 30        # bytes read for one figure, without coming back to Python in between
MOMENT = 0.05         # seconds a limit is measured for in each round
CACHED = 96 << 10     # bytes of weights that stay in the caches nearest the core
TOKENS = 32           # activations beside them


@click.command("bench", short_help="Decode and prefill speed beside this machine's limits.")
@click.argument("model")
@click.option("--prompt", type=click.IntRange(2), default=512, show_default=True, help="Tokens of prompt to read.")
@click.option("--generate", type=click.IntRange(2), default=128, show_default=True, help="Tokens to generate.")
@click.option("--rounds", type=click.IntRange(1, 1000), default=5, show_default=True, help="Medians are over so many.")
@options(MODEL_OPTIONS)
@as_json
def command(model: str, prompt: int, generate: int, rounds: int, as_json: bool, **given: Any) -> None:
    """Decode and prefill speed, each beside this machine's limit measured in the same rounds.

    Decode, one sequence: its limit is reading the weights and the KV cache of one token, at the rate at which the same
    threads can read the very same memory. Prefill: its limit is multiplying, at the rate the same kernels reach on the
    same number of threads when weights and activations lie in the nearest caches. Medians over interleaved rounds.

    \b
      pyruntime bench smollm2:135m
      pyruntime bench smollm2:135m --threads 1 --json | jq '.decode.tokens_per_second, .decode.limit'
    """
    if given["backend"] != "native":
        raise click.UsageError("bench measures the native backend; the others have no limits to stand beside")
    with open_llm(model, given) as llm, progress("measuring") as report:
        facts = measure(llm, prompt, generate, rounds, report)
    facts = {"model": model, **facts}
    if as_json:
        say_json(facts)
        return
    click.echo(f"{model}: {facts['isa']}, {facts['threads']} threads, median of {rounds} rounds")
    say_table([("", "TOKENS/S", "LIMIT", "RATIO", "THE LIMIT IS"), *(
        (name, f"{f['tokens_per_second']:.1f}", f"{f['limit']:.1f}", f"{f['ratio']:.2f}", f["limit_is"])
        for name, f in (("decode", facts["decode"]), ("prefill", facts["prefill"])))], right="123")


def measure(llm: LLM, prompt: int, generate: int, rounds: int, report: Any) -> dict[str, Any]:
    """Every figure once a round, in turn; the first round only warms up."""
    import random
    import statistics

    from ..types import SamplingParams

    backend: Any = llm.model.backend
    threads, isa = backend.threads, backend.isa
    plan, draw = llm.model.plan, random.Random(1)
    prompt = min(prompt, llm.context - 1)
    generate = max(2, min(generate, llm.context - DEPTH))
    names = multiplied(plan)
    weight_bytes = sum(llm.model.weights[name].nbytes for name in names)
    token_bytes = weight_bytes + int(kv_bytes(plan) * (DEPTH + generate / 2))
    work = operations(llm, names)
    limits = Limits(llm, isa, threads, names)
    decode, prefill, read, seconds = [], [], [], []
    with limits:
        for number in range(rounds + 1):
            read.append(limits.read_rate())
            ids = [draw.randrange(plan.vocab) for _ in range(DEPTH)]
            done = llm.generate(ids, SamplingParams(max_tokens=generate, temperature=0.0, ignore_end=True))
            decode.append((done.usage.output_tokens - 1) / done.timings.decode)
            seconds.append(sum(count / limits.multiply_rate(kind) for kind, count in work.items()))
            ids = [draw.randrange(plan.vocab) for _ in range(prompt)]
            done = llm.generate(ids, SamplingParams(max_tokens=1, temperature=0.0))
            prefill.append(prompt / done.timings.prefill)
            if report:
                report(number + 1, rounds + 1)
    middle = {name: statistics.median(values[1:]) for name, values in
              (("decode", decode), ("prefill", prefill), ("read", read), ("seconds", seconds))}
    bound = middle["read"] / token_bytes
    peak = sum(work.values()) / middle["seconds"]
    return {
        "isa": isa, "threads": threads, "rounds": rounds,
        "decode": {"tokens_per_second": middle["decode"], "limit": bound, "ratio": middle["decode"] / bound,
                   "limit_is": f"{token_bytes / 1e6:.0f} MB a token at {middle['read'] / 1e9:.1f} GB/s read",
                   "bytes_per_token": token_bytes, "read_bytes_per_second": middle["read"], "generated": generate,
                   "each": decode[1:]},
        "prefill": {"tokens_per_second": middle["prefill"], "limit": 1 / middle["seconds"],
                    "ratio": middle["prefill"] * middle["seconds"],
                    "limit_is": f"{sum(work.values()) / 1e6:.0f} million operations a token at {peak / 1e9:.0f} G/s",
                    "operations_per_token": sum(work.values()), "operations_per_second": peak, "prompt": prompt,
                    "each": prefill[1:]},
    }


def multiplied(plan: Plan) -> list[str]:
    """Names of the matrices that every generated token reads whole, once each."""
    from ..plan import Gated, Linear, LinearAdd, Logits, NormLinear

    names: dict[str, None] = {}
    for op in plan.ops:
        if isinstance(op, NormLinear):
            names.update(dict.fromkeys(w for w in (op.w0, op.w1, op.w2) if w))
        elif isinstance(op, Gated):
            names.update(dict.fromkeys((op.gate, op.up)))
        elif isinstance(op, (Linear, LinearAdd, Logits)):
            names[op.weight] = None
    return list(names)


def kv_bytes(plan: Plan) -> int:
    """Bytes of K and V that one stored token adds to what a step reads."""
    from ..loading import kv_bytes_per_token

    return kv_bytes_per_token(plan)


def operations(llm: LLM, names: list[str]) -> dict[tuple[int, int], int]:
    """Multiplications and additions of one prompt token, by (format, k); logits are for the last token only."""
    from ..plan import Logits

    head = {op.weight for op in llm.model.plan.ops if isinstance(op, Logits)}
    work: dict[tuple[int, int], int] = {}
    for name in names:
        weight = llm.model.weights[name]
        if name not in head:
            work[weight.format, weight.k] = work.get((weight.format, weight.k), 0) + 2 * weight.rows * weight.k
    return work


class Limits:
    """What this machine can do with the same memory and the same kernels, on the same number of threads."""

    def __init__(self, llm: LLM, isa: str, threads: int, names: list[str]) -> None:
        from .._core._kernels import Kernels

        weights = [llm.model.weights[name] for name in names]
        held = [w.blocks if w.packed is None else w.packed for w in weights]
        self.pieces = [view[at : at + PIECE] for view in held if view is not None for at in range(0, view.nbytes, PIECE)]
        self.kernels, self.threads = Kernels(isa), threads
        self.cached: dict[tuple[int, int], list[Any]] = {}

    def __enter__(self) -> Limits:
        self.pool = ThreadPoolExecutor(self.threads)
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown()

    def read_rate(self) -> float:
        """Bytes a second: every byte of the weights, each thread a contiguous share."""
        from .._core import _limits

        total = sum(piece.nbytes for piece in self.pieces)
        bounds = [len(self.pieces) * i // self.threads for i in range(self.threads + 1)]
        shares = [self.pieces[a:b] for a, b in zip(bounds, bounds[1:])]  # noqa: B905  one shorter by design

        passes = max(1, READ // total)
        began = time.perf_counter()
        list(self.pool.map(_limits.read_all, shares, [passes] * self.threads))
        return total * passes / (time.perf_counter() - began)

    def multiply_rate(self, kind: tuple[int, int]) -> float:
        """Operations a second of one format's kernel at one k, weights and activations in cache."""
        jobs = self.cached.get(kind) or self.cached.setdefault(kind, [self._job(*kind) for _ in range(self.threads)])

        def spin(job: Any) -> float:
            run, operations = job
            began, count = time.perf_counter(), 0
            while (spent := time.perf_counter() - began) < MOMENT:
                run()
                count += 1
            return operations * count / spent

        return sum(self.pool.map(spin, jobs))

    def _job(self, format: int, k: int) -> tuple[Any, int]:
        """A call of the kernel on one thread's own random data, and how many operations it does."""
        import numpy as np

        from .. import quant
        from .._core import _kernels, _weights

        twin = quant.FORMATS[_weights.formats()[format].name]
        groups = max(1, CACHED // _weights.packed_bytes(format, 16, k))
        draw = np.random.default_rng(1)
        values = draw.standard_normal((16 * groups, k)).astype(np.float32)
        packed = _kernels.aligned(_weights.packed_bytes(format, 16 * groups, k), np.uint8)
        packed[:] = twin.pack(twin.quantize(values), 16 * groups, k)
        acts = _kernels.aligned((TOKENS, _kernels.act_bytes(k)), np.uint8)
        for row in acts:
            row[:] = self.kernels.quantize(draw.standard_normal(k).astype(np.float32))
        out = _kernels.aligned((TOKENS, 16 * groups), np.float32)
        return (lambda: self.kernels.linear(format, packed, k, 0, groups, acts, out)), 2 * 16 * groups * k * TOKENS

