"""Decode and prefill speed beside llama.cpp, fairly: same file, same threads, in turns, medians of the rounds.

    python bench/peers.py MODEL.gguf --peer-python /path/to/venv/bin/python

Every contender is a process of its own that loads the model once and then waits. A round asks each in turn for the same
work, so that a machine whose speed drifts treats all alike, with the machine's read rate measured in between. llama.cpp
runs with flash attention on and off; its better setting counts. Its fair build for this machine is made by

    CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary llama-cpp-python llama-cpp-python

(with gcc 12 and AMX, also CXXFLAGS="-fno-dse -fno-tree-dse"). Prints a Markdown table; --json prints the numbers.
"""
from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

PROMPT_SEED = 12345


def prompt_ids(count: int, vocab: int) -> list[int]:
    """The same arbitrary token ids for everybody."""
    state, out = PROMPT_SEED, []
    for _ in range(count):
        state = (state * 1103515245 + 12345) % 2**31
        out.append(100 + state % (vocab - 200))
    return out


# ---- contenders, each in its own process: a line of JSON in, a line of JSON out ----

def ours(model: str, threads: int, context: int):
    """This runtime, through its engine."""
    from pyruntime import LLM, SamplingParams

    llm = LLM(model, threads=threads, context=context, max_running=1)
    vocab = llm.model.plan.vocab

    def work(prompt: int, output: int) -> tuple[float, float]:
        params = SamplingParams(max_tokens=output, temperature=0, ignore_end=True)
        done = llm.generate(prompt_ids(prompt, vocab), params)
        return done.timings.prefill, done.timings.decode

    return work


def llama_cpp(model: str, threads: int, context: int, flash: bool):
    """llama.cpp through its C interface: nothing of Python but a call per token."""
    import ctypes

    import llama_cpp as L

    L.llama_backend_init()
    quiet = L.llama_log_callback(lambda level, text, data: None)
    L.llama_log_set(quiet, None)
    loaded = L.llama_model_load_from_file(model.encode(), L.llama_model_default_params())
    params = L.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = context, 512, 512
    params.n_threads = params.n_threads_batch = threads
    params.flash_attn_type = L.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else L.LLAMA_FLASH_ATTN_TYPE_DISABLED
    ctx = L.llama_init_from_model(loaded, params)
    vocab = L.llama_vocab_n_tokens(L.llama_model_get_vocab(loaded))
    greedy = L.llama_sampler_init_greedy()
    keep = (quiet, loaded)

    def decode(ids: list[int]) -> None:
        array = (L.llama_token * len(ids))(*ids)
        if L.llama_decode(ctx, L.llama_batch_get_one(array, len(ids))):
            raise RuntimeError("llama_decode failed")

    def work(prompt: int, output: int) -> tuple[float, float]:
        assert keep
        L.llama_memory_clear(L.llama_get_memory(ctx), True)
        ids = prompt_ids(prompt, vocab)
        start = time.perf_counter()
        for at in range(0, prompt, 512):
            decode(ids[at : at + 512])
        token = L.llama_sampler_sample(greedy, ctx, -1)
        middle = time.perf_counter()
        for _ in range(output - 1):
            decode([token])
            token = L.llama_sampler_sample(greedy, ctx, ctypes.c_int32(-1))
        return middle - start, time.perf_counter() - middle

    return work


def read_rate(model: str, threads: int):
    """GB/s so many threads read as many bytes as the file has, over and over as decoding does, each its own part."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    from pyruntime._core import _limits

    size = Path(model).stat().st_size // threads // 256 * 256
    parts = np.split(np.random.default_rng(1).integers(0, 256, threads * size, np.uint8), threads)
    pool, passes = ThreadPoolExecutor(threads), max(1, (2 << 30) // (threads * size))

    def work(prompt: int, output: int) -> tuple[float, float]:
        start = time.perf_counter()
        list(pool.map(_limits.read_all, [[part] for part in parts], [passes] * threads))
        return threads * size * passes / (time.perf_counter() - start) / 1e9, 0.0

    return work


def serve(kind: str, model: str, threads: int, context: int) -> None:
    """A contender's process."""
    if kind == "limit":
        work = read_rate(model, threads)
    elif kind == "pyruntime":
        work = ours(model, threads, context)
    else:
        work = llama_cpp(model, threads, context, flash=kind.endswith("on"))
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps(work(*json.loads(line))), flush=True)


class Contender:
    """A running process and what it measured."""

    def __init__(self, name: str, python: str, args: argparse.Namespace) -> None:
        self.name = name
        command = [python, __file__, args.model, "--serve", name, "--threads", str(args.threads), "--context", str(args.context)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.runs: dict[tuple[int, int], list[tuple[float, float]]] = {}
        self._answer()

    def _answer(self):
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            if line.startswith(("[", '"')):
                return json.loads(line)
        raise SystemExit(f"error: {self.name} ended with code {self.process.wait()}; its messages are above")

    def work(self, prompt: int, output: int) -> None:
        """One round."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([prompt, output]) + "\n")
        self.process.stdin.flush()
        self.runs.setdefault((prompt, output), []).append(tuple(self._answer()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a GGUF file")
    parser.add_argument("--peer-python", default=sys.executable, help="the interpreter that has llama-cpp-python")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=int, default=128, help="tokens generated per round")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prefill measurement")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve, args.model, args.threads, args.context)

    kinds = {"limit": sys.executable, "pyruntime": sys.executable,
             "llama.cpp flash on": args.peer_python, "llama.cpp flash off": args.peer_python}
    field = [Contender(name, python, args) for name, python in kinds.items()]
    decode, prefill = (16, args.output), (args.prompt, 2)
    for turn in range(args.rounds + 1):
        for contender in field:
            contender.work(*decode)
            contender.work(*prefill)
        if not args.json:
            print(f"round {turn} of {args.rounds}{' (warm-up, not counted)' * (not turn)}", file=sys.stderr, flush=True)

    result = {}
    for c in field:
        if c.name == "limit":
            rates = [r[0] for r in c.runs[decode][1:] + c.runs[prefill][1:]]
            result[c.name] = {"read_gb_per_s": statistics.median(rates)}
            continue
        speeds = [(args.output - 1) / r[1] for r in c.runs[decode][1:]]
        prompts = [args.prompt / r[0] for r in c.runs[prefill][1:]]
        result[c.name] = {"decode": statistics.median(speeds), "decode_all": speeds,
                          "prefill": statistics.median(prompts), "prefill_all": prompts}
    best = max(result[n]["decode"] for n in result if n.startswith("llama"))
    best_prefill = max(result[n]["prefill"] for n in result if n.startswith("llama"))
    if args.json:
        print(json.dumps({"file": Path(args.model).name, "threads": args.threads, "rounds": args.rounds, **result}))
        return None
    limit = result["limit"]["read_gb_per_s"]
    print(f"{Path(args.model).name}, {args.threads} threads, medians of {args.rounds} interleaved rounds; "
          f"reading as many bytes meanwhile: {limit:.1f} GB/s\n")
    print("| | decode tok/s (min-max) | against llama.cpp's better | prompt tok/s | against llama.cpp's better |\n"
          "|---|---|---|---|---|")
    for name, r in result.items():
        if "decode" in r:
            low, high = min(r["decode_all"]), max(r["decode_all"])
            print(f"| {name} | {r['decode']:.1f} ({low:.1f}-{high:.1f}) | {r['decode'] / best:.2f} "
                  f"| {r['prefill']:.0f} | {r['prefill'] / best_prefill:.2f} |")
    return None


if __name__ == "__main__":
    main()
