"""Many streams over gRPC beside the engine's own batch: tokens a second of all, the time to a stream's first token and the time
between two of its tokens.

    python bench/serving.py MODEL [--streams 32] [--prompt 128] [--output 64] [--rounds 3] [--rate R] [--json FILE]

A server in a process of its own and an engine in this one load the model; rounds ask each in turn for the same prompts, all
at once. With --rate the streams begin one after another instead, R a second at random times, the same ones in every run. The
server's clients are threads of this process, so their work is part of what is measured, as it is on one machine.
"""
from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from peers import token_ids


def start(model: str, asked: argparse.Namespace, options: dict[str, Any]) -> tuple[subprocess.Popen[str], str]:
    """A server of the model and its address."""
    tokens = asked.streams * (asked.prompt + asked.output + 16)
    command = [sys.executable, "-m", "pyruntime", "serve", model, "--grpc", "127.0.0.1:0", "--json",
               "--threads", str(asked.threads), "--max-running", str(asked.streams), "--kv-tokens", str(tokens)]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"error: the server ended with code {process.wait()}")
    return process, json.loads(line)["address"]


def stream(client: Any, prompt: list[int], output: int, at: float) -> tuple[float, list[tuple[float, int]]]:
    """(when it was asked, when each message of the answer came and how many tokens it brought). `at`: when to ask."""
    time.sleep(max(0.0, at - time.perf_counter()))
    asked, seen = time.perf_counter(), []
    for delta in client.stream(prompt, max_tokens=output, temperature=0.0, ignore_end=True):
        if delta.output_tokens:
            seen.append((time.perf_counter(), delta.output_tokens))
    return asked, seen


def together(client: Any, prompts: list[list[int]], output: int, starts: list[float]) -> tuple[float, list[float], list[float]]:
    """(seconds until all are answered, seconds to each stream's first token, seconds between two tokens of a stream).
    `starts`: seconds until each stream begins."""
    began = time.perf_counter()
    with ThreadPoolExecutor(len(prompts)) as pool:
        seen = list(pool.map(lambda prompt, start: stream(client, prompt, output, began + start), prompts, starts))
    gaps = []
    for _, messages in seen:
        for (before, _), (at, count) in zip(messages, messages[1:]):  # noqa: B905  one shorter by design
            gaps += [at - before, *[0.0] * (count - 1)]   # tokens that come together wait for nothing
    firsts = [messages[0][0] - asked for asked, messages in seen]
    return max(messages[-1][0] for _, messages in seen) - began, firsts, gaps


def measure(model: str, asked: argparse.Namespace, options: dict[str, Any] | None = None) -> dict[str, Any]:
    """JSON-ready."""
    from pyruntime import LLM, SamplingParams
    from pyruntime.cli.common import progress
    from pyruntime.client import Client

    options = options or {}
    process, address = start(model, asked, options)
    params = SamplingParams(max_tokens=asked.output, temperature=0.0, ignore_end=True)
    served, alone, firsts, gaps = [], [], [], []
    tokens = asked.streams * (asked.prompt + asked.output + 16)
    starts = [0.0] * asked.streams
    if asked.rate:
        starts = np.random.default_rng(0).exponential(1 / asked.rate, asked.streams).cumsum().tolist()
    try:
        with LLM(model, threads=asked.threads, max_running=asked.streams, kv_tokens=tokens, progress=False, **options) as llm, \
                Client(address) as client, progress("serving") as report:
            prompts = [token_ids(asked.prompt, llm.model.plan.vocab, seed) for seed in range(asked.streams)]
            for turn in range(asked.rounds + 1):
                seconds, to_first, between = together(client, prompts, asked.output, starts if turn else [0.0] * asked.streams)
                began = time.perf_counter()
                llm.generate(prompts, params)
                if turn:
                    alone.append(time.perf_counter() - began)
                    served.append(seconds)
                    firsts += to_first
                    gaps += between
                if report:
                    report(turn + 1, asked.rounds + 1)
    finally:
        process.terminate()
        process.wait(30)
    count = asked.streams * asked.output
    p50, p99 = np.percentile(gaps, (50, 99)).tolist()
    seconds, engine = statistics.median(served), statistics.median(alone)
    return {"file": Path(model).name, "streams": asked.streams, "prompt": asked.prompt, "output": asked.output, "rate": asked.rate,
            "rounds": asked.rounds, "served_tokens_per_second": count / seconds, "engine_tokens_per_second": count / engine,
            "ratio": engine / seconds, "between_p50": p50, "between_p99": p99, "p99_over_p50": p99 / p50 if p50 else None,
            "between_most": max(gaps), "first_mean": statistics.mean(firsts), "first_most": max(firsts)}


def markdown(found: dict[str, Any]) -> str:
    """One table."""
    when = f"{found['rate']:g} a second" if found["rate"] else "all at once"
    return (f"{found['file']}: {found['streams']} streams, {when}, {found['prompt']} tokens in, {found['output']} out\n\n"
            "| served out tok/s | engine alone | ratio | between tokens p50 | p99 | most | p99 ÷ p50 | first token mean | most |\n"
            "|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n"
            f"| {found['served_tokens_per_second']:.0f} | {found['engine_tokens_per_second']:.0f} | {found['ratio']:.2f} "
            f"| {found['between_p50'] * 1e3:.1f} ms | {found['between_p99'] * 1e3:.1f} ms | {found['between_most'] * 1e3:.1f} ms "
            f"| {found['p99_over_p50']:.2f} | {found['first_mean']:.2f} s | {found['first_most']:.2f} s |")


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a name or a GGUF file")
    threads = len(os.sched_getaffinity(0))
    for name, default in (("streams", 32), ("prompt", 128), ("output", 64), ("rounds", 3), ("threads", threads)):
        parser.add_argument(f"--{name}", type=int, default=default, help="[%(default)s]")
    parser.add_argument("--rate", type=float, default=0.0, help="streams that begin a second [0: all at once]")
    parser.add_argument("--chunk-beside", type=int, help="prompt tokens a step reads beside answers [the runtime's default]")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the numbers there")
    asked = parser.parse_args()
    found = measure(asked.model, asked, {"chunk_beside": asked.chunk_beside} if asked.chunk_beside else None)
    print(markdown(found))
    if asked.json:
        asked.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
