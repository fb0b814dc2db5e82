"""This runtime beside others: same model, same threads, in turns, medians of the rounds, the machine's read rate in between.

    python bench/peers.py MODEL.gguf [MORE.gguf ...] --peer-python /path/to/venv/bin/python [--peer llama.cpp] [--json FILE]

Peers, each in a process and, with --peer-python, a venv of its own, so that they need not share ours:

    llama.cpp     llama-cpp-python, the same GGUF file, flash attention on and off (its better setting counts)
    transformers  torch, the same GGUF file in f32, or a Hugging Face folder in bf16 (--folder)
    openvino      openvino-genai, the same GGUF file where it reads the format, or a converted folder (--folder)
    ctranslate2   a converted folder (--folder)

Every contender loads the model once and then waits. A round asks each in turn for the same work: `decode` one sequence behind
16 tokens, `prefill` a prompt, `depth` one sequence behind many tokens, `batch` several sequences side by side. The work of
making those many tokens is not counted. llama.cpp's fair build for this machine is made by

    CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary llama-cpp-python llama-cpp-python

(with gcc 12 on a processor with AMX, also CXXFLAGS="-fno-dse -fno-tree-dse"). Prints a Markdown table for each model.
"""
from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

START = 16          # tokens before those that are timed
BATCH_COUNT = 16    # tokens each of several sequences generates
DEPTH_COUNT = 16    # tokens generated behind many
Measured = tuple[int, float]   # tokens, seconds


def token_ids(count: int, vocab: int, seed: int = 12345) -> list[int]:
    """The same arbitrary token ids for everybody."""
    state, out = seed, []
    for _ in range(count):
        state = (state * 1103515245 + 12345) % 2**31
        out.append(100 + state % (vocab - 400))
    return out


# ---- contenders, each in its own process: a line of JSON in, a line of JSON out ----

class Ours:
    """This runtime: through its engine, and for depth straight on its backend."""

    variants = ("",)

    def __init__(self, asked: argparse.Namespace) -> None:
        from pyruntime import LLM
        from pyruntime.bench import measure

        wanted = measure.Wanted(parts=measure.PARTS, prompts=(asked.prompt,), batches=(asked.batch,), depths=tuple(asked.depth),
                                generate=asked.output)
        options = {"threads": asked.threads, "progress": False, **json.loads(asked.options)}
        self.llm = LLM(measure.open_bench(asked.models[0], options, wanted))
        self.bench = measure.Bench(self.llm, wanted)
        self.deep = measure.Deep(self.llm, max(asked.depth, default=0))

    def about(self) -> dict[str, Any]:
        """What is measured, and bytes and operations a token."""
        work, backend, memory = self.bench.work, self.llm.model.backend, self.llm.model.memory
        return {"isa": backend.isa, "weight_bytes": work.weight_bytes, "body_bytes": work.body_bytes, "kv_bytes": work.kv_bytes,
                "operations": sum(work.operations(1, 0).values()), "memory": memory.weights + memory.kv}

    def decode(self, variant: str, count: int) -> Measured:
        """One sequence."""
        return self.bench.decode(1, count)

    def prefill(self, variant: str, tokens: int) -> Measured:
        """One prompt."""
        return self.bench.prefill(tokens)

    def batch(self, variant: str, size: int, count: int) -> Measured:
        """Several sequences."""
        return self.bench.decode(size, count)

    def depth(self, variant: str, depth: int, count: int) -> Measured:
        """One sequence behind `depth` tokens."""
        return self.deep.decode(depth, count)


class LlamaCpp:
    """llama.cpp through its C interface: nothing of Python but a call a step."""

    variants = ("flash on", "flash off")

    def __init__(self, asked: argparse.Namespace) -> None:
        import llama_cpp as L

        self.L, self.threads = L, asked.threads
        L.llama_backend_init()
        self.quiet = L.llama_log_callback(lambda level, text, data: None)
        L.llama_log_set(self.quiet, None)
        self.model = L.llama_model_load_from_file(asked.models[0].encode(), L.llama_model_default_params())
        if not self.model:
            raise RuntimeError("llama.cpp does not load this file")
        self.vocab = L.llama_vocab_n_tokens(L.llama_model_get_vocab(self.model))
        self.greedy = L.llama_sampler_init_greedy()
        self.contexts: dict[tuple[Any, ...], Any] = {}

    def about(self) -> dict[str, Any]:
        """Its version and what it was built with."""
        return {"system": self.L.llama_print_system_info().decode(), "version": getattr(self.L, "__version__", "?")}

    def context(self, variant: str, kind: str, tokens: int, sequences: int = 1) -> Any:
        """Its own for each kind of work, so that one's cache does not slow the other's attention."""
        L, key = self.L, (variant, kind, tokens, sequences)
        if key not in self.contexts:
            p = L.llama_context_default_params()
            p.n_ctx, p.n_batch, p.n_ubatch, p.n_seq_max = tokens, 512, 512, sequences
            p.n_threads = p.n_threads_batch = self.threads
            p.flash_attn_type = L.LLAMA_FLASH_ATTN_TYPE_ENABLED if variant.endswith("on") else L.LLAMA_FLASH_ATTN_TYPE_DISABLED
            self.contexts[key] = L.llama_init_from_model(self.model, p)
            if not self.contexts[key]:
                raise RuntimeError("llama.cpp makes no context of this size")
        return self.contexts[key]

    def read(self, ctx: Any, ids: list[int]) -> int:
        """A prompt of one sequence; the token it predicts."""
        for at in range(0, len(ids), 512):
            part = ids[at : at + 512]
            array = (self.L.llama_token * len(part))(*part)   # a batch only points at it
            if self.L.llama_decode(ctx, self.L.llama_batch_get_one(array, len(part))):
                raise RuntimeError("llama_decode failed")
        return self.L.llama_sampler_sample(self.greedy, ctx, -1)

    def go_on(self, ctx: Any, token: int, count: int) -> Measured:
        """`count` tokens, one at a time."""
        L, one = self.L, (self.L.llama_token * 1)()
        began = time.perf_counter()
        for _ in range(count):
            one[0] = token
            if L.llama_decode(ctx, L.llama_batch_get_one(one, 1)):
                raise RuntimeError("llama_decode failed")
            token = L.llama_sampler_sample(self.greedy, ctx, -1)
        return count, time.perf_counter() - began

    def decode(self, variant: str, count: int) -> Measured:
        """One sequence."""
        ctx = self.context(variant, "one", 1024)
        self.L.llama_memory_clear(self.L.llama_get_memory(ctx), True)
        return self.go_on(ctx, self.read(ctx, token_ids(START, self.vocab)), count)

    def prefill(self, variant: str, tokens: int) -> Measured:
        """One prompt."""
        ctx = self.context(variant, "one", max(1024, tokens + 64))
        self.L.llama_memory_clear(self.L.llama_get_memory(ctx), True)
        ids, began = token_ids(tokens, self.vocab), time.perf_counter()
        self.read(ctx, ids)
        return tokens, time.perf_counter() - began

    def depth(self, variant: str, depth: int, count: int) -> Measured:
        """One sequence behind `depth` tokens, which are read once and kept."""
        new = (variant, "deep", depth + 128, 1) not in self.contexts
        ctx = self.context(variant, "deep", depth + 128)
        if new:
            self.read(ctx, token_ids(depth, self.vocab))
        done = self.go_on(ctx, 1000, count)
        self.L.llama_memory_seq_rm(self.L.llama_get_memory(ctx), 0, depth, -1)
        return done

    def batch(self, variant: str, size: int, count: int) -> Measured:
        """Several sequences, a token of each a step."""
        ctx = self.context(variant, "batch", size * 256, size)
        self.L.llama_memory_clear(self.L.llama_get_memory(ctx), True)
        start = max(1, min(START, 512 // size))
        prompts = [token_ids(start, self.vocab, seed) for seed in range(size)]
        tokens = self._step(ctx, [(s, i, prompts[s][i], i == start - 1) for s in range(size) for i in range(start)])
        began = time.perf_counter()
        for n in range(count):
            tokens = self._step(ctx, [(s, start + n, tokens[s], True) for s in range(size)])
        return size * count, time.perf_counter() - began

    def _step(self, ctx: Any, rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """(sequence, position, token, wants an answer) -> the answers in order."""
        L, batch = self.L, self.L.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for i, (sequence, position, token, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted
            batch.seq_id[i][0] = sequence
        failed = L.llama_decode(ctx, batch)
        L.llama_batch_free(batch)
        if failed:
            raise RuntimeError("llama_decode failed")
        return [L.llama_sampler_sample(self.greedy, ctx, i) for i, row in enumerate(rows) if row[3]]


class Transformers:
    """torch on the CPU, one forward call a step: a folder in bf16; a GGUF file's packed weights in f32, as it advises."""

    variants = ("",)

    def __init__(self, asked: argparse.Namespace) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(asked.threads)
        self.torch, path = torch, Path(asked.folder or asked.models[0])
        where = {"pretrained_model_name_or_path": path} if path.is_dir() else \
            {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
        self.model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16 if path.is_dir() else torch.float32).eval()
        self.vocab, self.kept = self.model.config.vocab_size, {}

    def about(self) -> dict[str, Any]:
        """Versions."""
        import transformers

        return {"version": f"torch {self.torch.__version__}, transformers {transformers.__version__}"}

    def _forward(self, ids: Any, cache: Any) -> tuple[Any, Any]:
        with self.torch.inference_mode():
            out = self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values

    def _go_on(self, token: Any, cache: Any, count: int) -> Measured:
        began = time.perf_counter()
        for _ in range(count):
            token, cache = self._forward(token, cache)
        return count * len(token), time.perf_counter() - began

    def _ids(self, size: int, count: int) -> Any:
        return self.torch.tensor([token_ids(count, self.vocab, s) for s in range(size)])

    def decode(self, variant: str, count: int) -> Measured:
        """One sequence."""
        return self._go_on(*self._forward(self._ids(1, START), None), count)

    def prefill(self, variant: str, tokens: int) -> Measured:
        """One prompt."""
        began = time.perf_counter()
        self._forward(self._ids(1, tokens), None)
        return tokens, time.perf_counter() - began

    def batch(self, variant: str, size: int, count: int) -> Measured:
        """Several sequences of one length."""
        return self._go_on(*self._forward(self._ids(size, START), None), count)

    def depth(self, variant: str, depth: int, count: int) -> Measured:
        """One sequence behind `depth` tokens, which are read once and kept."""
        if depth not in self.kept:
            self.kept[depth] = self._forward(self._ids(1, depth), None)
        token, cache = self.kept[depth]
        done = self._go_on(token, cache, count)
        cache.crop(-count)   # takes off what was added
        return done


class OpenVino:
    """openvino-genai: its own measurements of the first token and of those after it."""

    variants = ("",)

    def __init__(self, asked: argparse.Namespace) -> None:
        import openvino
        import openvino_genai

        self.ov, self.genai = openvino, openvino_genai
        self.pipe = openvino_genai.LLMPipeline(asked.folder or asked.models[0], "CPU", INFERENCE_NUM_THREADS=asked.threads)

    def about(self) -> dict[str, Any]:
        """Its version."""
        return {"version": f"openvino {self.ov.__version__}"}

    def _run(self, size: int, prompt: int, count: int) -> Any:
        import numpy as np

        ids = np.array([token_ids(prompt, 30000, s) for s in range(size)], np.int64)
        inputs = self.genai.TokenizedInputs(self.ov.Tensor(ids), self.ov.Tensor(np.ones_like(ids)))
        config = self.genai.GenerationConfig()
        config.max_new_tokens, config.min_new_tokens, config.ignore_eos, config.do_sample = count, count, True, False
        return self.pipe.generate(inputs, config).perf_metrics

    def decode(self, variant: str, count: int) -> Measured:
        """One sequence."""
        return 1, self._run(1, START, count + 1).get_tpot().mean / 1e3

    def prefill(self, variant: str, tokens: int) -> Measured:
        """One prompt."""
        return tokens, self._run(1, tokens, 1).get_ttft().mean / 1e3

    def batch(self, variant: str, size: int, count: int) -> Measured:
        """Several sequences of one length."""
        return size, self._run(size, START, count + 1).get_tpot().mean / 1e3

    def depth(self, variant: str, depth: int, count: int) -> Measured:
        """One sequence behind `depth` tokens, which it reads again every time."""
        return 1, self._run(1, depth, count + 1).get_tpot().mean / 1e3


class CTranslate2:
    """CTranslate2 on a converted folder in int8; what a prompt alone takes is taken off."""

    variants = ("int8",)

    def __init__(self, asked: argparse.Namespace) -> None:
        import ctranslate2

        if not asked.folder:
            raise RuntimeError("it reads converted folders only; give one with --folder")
        self.version = ctranslate2.__version__
        self.generator = ctranslate2.Generator(asked.folder, device="cpu", compute_type="int8", intra_threads=asked.threads,
                                               inter_threads=1)
        vocabulary = json.loads((Path(asked.folder) / "vocabulary.json").read_text())
        self.words = [vocabulary[i] for i in token_ids(8192, len(vocabulary))]

    def about(self) -> dict[str, Any]:
        """Its version."""
        return {"version": f"ctranslate2 {self.version}"}

    def _run(self, size: int, prompt: int, count: int) -> float:
        began = time.perf_counter()
        self.generator.generate_batch([self.words[:prompt]] * size, max_length=count, min_length=count, sampling_topk=1,
                                      include_prompt_in_result=False)
        return time.perf_counter() - began

    def decode(self, variant: str, count: int) -> Measured:
        """One sequence."""
        first = self._run(1, START, 1)
        return count, self._run(1, START, count + 1) - first

    def prefill(self, variant: str, tokens: int) -> Measured:
        """One prompt."""
        return tokens, self._run(1, tokens, 1)

    def batch(self, variant: str, size: int, count: int) -> Measured:
        """Several sequences of one length."""
        first = self._run(size, START, 1)
        return size * count, self._run(size, START, count + 1) - first

    def depth(self, variant: str, depth: int, count: int) -> Measured:
        """One sequence behind `depth` tokens, which it reads again every time."""
        first = self._run(1, depth, 1)
        return count, self._run(1, depth, count + 1) - first


class ReadRate:
    """The machine's limit: so many threads read as many bytes as the file has, over and over as decoding does."""

    variants = ("",)

    def __init__(self, asked: argparse.Namespace) -> None:
        from concurrent.futures import ThreadPoolExecutor

        import numpy as np

        from pyruntime._core import _limits, _weights

        self.limits, self.threads = _limits, asked.threads
        size = Path(asked.models[0]).stat().st_size // asked.threads // 256 * 256
        region, draw = _weights.Region(asked.threads * (size + 64)), np.random.default_rng(1)   # in 2 MB pages
        self.parts = [region.take(size) for _ in range(asked.threads)]
        for part in self.parts:
            part[:] = np.resize(draw.integers(0, 256, min(size, 32 << 20), np.uint8), size)
        self.pool, self.size = ThreadPoolExecutor(asked.threads), size * asked.threads

    def about(self) -> dict[str, Any]:
        """How many bytes."""
        return {"bytes": self.size}

    def read(self, variant: str) -> Measured:
        """At least a gigabyte."""
        passes, began = max(1, (1 << 30) // self.size), time.perf_counter()
        list(self.pool.map(self.limits.read_all, [[part] for part in self.parts], [passes] * self.threads))
        return self.size * passes, time.perf_counter() - began


KINDS: dict[str, Any] = {"limit": ReadRate, "pyruntime": Ours, "llama.cpp": LlamaCpp, "transformers": Transformers,
                         "openvino": OpenVino, "ctranslate2": CTranslate2}


def serve(asked: argparse.Namespace) -> None:
    """A contender's process."""
    answers, sys.stdout = sys.stdout, sys.stderr   # what libraries print does not come between the lines
    try:
        made = KINDS[asked.serve](asked)
        print(json.dumps({"variants": made.variants, "about": made.about()}), file=answers, flush=True)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers, flush=True)
        return
    for line in sys.stdin:
        task = json.loads(line)
        try:
            tokens, seconds = getattr(made, task.pop("task"))(**task)
            print(json.dumps({"tokens": tokens, "seconds": seconds, "rss": rss()}), file=answers, flush=True)
        except Exception as error:
            print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers, flush=True)


def rss() -> int:
    """Bytes of memory this process holds, its own or mapped."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ---- the field ----

class Contender:
    """A running process and what it measured: runs[task name, variant] = tokens a second of each round."""

    def __init__(self, name: str, kind: str, python: str, model: str, asked: argparse.Namespace,
                 options: dict[str, Any] | None = None, folder: str | None = None) -> None:
        """options of open_model; `only` among them: the kinds of work it takes part in."""
        options = dict(options or {})
        self.name, self.rss, self.only = name, 0, options.pop("only", None)
        self.runs: dict[tuple[str, str], list[float]] = {}
        self.errors: dict[str, str] = {}
        command = [python, str(Path(__file__).resolve()), model, "--serve", kind, "--threads", str(asked.threads), "--batch",
                   str(asked.batch), "--prompt", str(asked.prompt), "--output", str(asked.output), "--depth",
                   *map(str, asked.depth), "--options", json.dumps(options)]
        if folder:
            command += ["--folder", folder]
        quiet = {"TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        env={**os.environ, **quiet})
        first = self._answer()
        if "error" in first:
            self.close()
            raise RuntimeError(f"{name}: {first['error']}")
        self.variants, self.about = [str(v) for v in first["variants"]], first["about"]

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        if line := self.process.stdout.readline():
            return json.loads(line)
        return {"error": f"ended with code {self.process.wait()}"}

    def take(self, name: str, task: dict[str, Any], counted: bool) -> None:
        """One round of one task, every variant. A task that failed once is left out."""
        assert self.process.stdin is not None
        if self.only and task["task"] not in self.only:
            return
        for variant in self.variants:
            if name in self.errors:
                return
            try:
                self.process.stdin.write(json.dumps({**task, "variant": variant}) + "\n")
                self.process.stdin.flush()
                got = self._answer()
            except BrokenPipeError:
                got = {"error": f"ended with code {self.process.wait()}"}
            if "error" in got:
                self.errors[name] = got["error"]
                return
            self.rss = max(self.rss, got["rss"])
            if counted:
                self.runs.setdefault((name, variant), []).append(got["tokens"] / got["seconds"])

    def best(self, name: str) -> float | None:
        """Median of the better variant."""
        return max((statistics.median(runs) for (task, _), runs in self.runs.items() if task == name), default=None)

    def result(self) -> dict[str, Any]:
        """For JSON."""
        return {"about": self.about, "rss": self.rss, "errors": self.errors, "runs": [
            {"task": task, "variant": variant, "tokens_per_second": statistics.median(runs), "each": runs}
            for (task, variant), runs in self.runs.items()]}

    def close(self) -> None:
        """End the process."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def tasks(asked: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """By name, in the order of a round."""
    out: dict[str, dict[str, Any]] = {"decode": {"task": "decode", "count": asked.output},
                                      f"prompt {asked.prompt}": {"task": "prefill", "tokens": asked.prompt}}
    out |= {f"decode at {d}": {"task": "depth", "depth": d, "count": DEPTH_COUNT} for d in asked.depth}
    out |= {f"{n} together": {"task": "batch", "size": n, "count": BATCH_COUNT} for n in asked.sizes}
    return {name: task for name, task in out.items() if not asked.only or task["task"] in asked.only}


def contest(field: list[Contender], limit: Contender, listed: dict[str, dict[str, Any]], rounds: int, label: str) -> None:
    """Rounds over every task and contender; the first warms up and is not counted."""
    from pyruntime.cli.common import progress

    total, done = (rounds + 1) * len(listed), 0
    with progress(label) as report:
        for turn in range(rounds + 1):
            for name, task in listed.items():
                for contender in field:
                    limit.take("read", {"task": "read"}, turn > 0)
                    contender.take(name, task, turn > 0)
                done += 1
                if report:
                    report(done, total)


def field_for(model: str, asked: argparse.Namespace,
              ours: dict[str, dict[str, Any]]) -> tuple[Contender, list[Contender], list[str]]:
    """(the limit, everyone that loads the model, why others do not). ours: name -> options of open_model."""
    limit = Contender("limit", "limit", sys.executable, model, asked)
    field: list[Contender] = []
    absent: list[str] = []
    wanted: list[tuple[Any, ...]] = [(name, "pyruntime", sys.executable, options, None) for name, options in ours.items()]
    wanted += [(peer, peer, asked.peer_python or sys.executable, None, asked.folder) for peer in asked.peer]
    for name, kind, python, options, folder in wanted:
        try:
            field.append(Contender(name, kind, python, model, asked, options, folder))
        except RuntimeError as error:
            absent.append(str(error))
    if not any(c.name in ours for c in field):
        for contender in (limit, *field):
            contender.close()
        raise SystemExit(f"error: {'; '.join(absent)}")
    return limit, field, absent


def run(model: str, asked: argparse.Namespace, ours: dict[str, dict[str, Any]] | None = None,
        listed: dict[str, dict[str, Any]] | None = None) -> dict[str, Any]:
    """One model's contest, JSON-ready."""
    limit, field, absent = field_for(model, asked, ours or {"pyruntime": json.loads(asked.options)})
    try:
        listed = listed or tasks(asked)
        contest(field, limit, listed, asked.rounds, Path(model).name)
        return {"file": Path(model).name, "bytes": Path(model).stat().st_size, "threads": asked.threads, "rounds": asked.rounds,
                "tasks": list(listed), "read_bytes_per_second": limit.best("read"), "absent": absent,
                "contenders": {c.name: c.result() for c in field}}
    finally:
        for contender in (limit, *field):
            contender.close()


def speeds(result: dict[str, Any], name: str, task: str) -> dict[str, list[float]]:
    """Variant -> tokens a second of each round."""
    found = result["contenders"].get(name, {"runs": []})
    return {run["variant"]: run["each"] for run in found["runs"] if run["task"] == task}


def best(result: dict[str, Any], name: str, task: str) -> float | None:
    """Median of the better variant, None when it was not measured."""
    return max((statistics.median(each) for each in speeds(result, name, task).values()), default=None)


def markdown(result: dict[str, Any]) -> str:
    """A table: a row a contender and variant, a column a task, and under each peer what ours is to its better variant."""
    names = result["tasks"]
    lines = [f"{result['file']}, {result['threads']} threads, medians of {result['rounds']} interleaved rounds, tokens a second; "
             f"reading as many bytes in between: {result['read_bytes_per_second'] / 1e9:.1f} GB/s", "",
             "| | " + " | ".join(names) + " |", "|---" + "|---:" * len(names) + "|"]
    first = next(iter(result["contenders"]))
    for name, found in result["contenders"].items():
        for variant in dict.fromkeys(run["variant"] for run in found["runs"]):
            cells = [_cell(speeds(result, name, task).get(variant)) for task in names]
            lines.append(f"| {name} {variant} ".rstrip() + " | " + " | ".join(cells) + " |")
        if name != first:
            cells = [_ratio(best(result, first, task), best(result, name, task)) for task in names]
            lines.append(f"| {first} ÷ {name} | " + " | ".join(cells) + " |")
    lines += [f"\nnot here: {why}" for why in result["absent"]]
    lines += [f"\n{name}, {task}: {why}" for name, found in result["contenders"].items() for task, why in found["errors"].items()]
    return "\n".join(lines)


def _ratio(ours: float | None, theirs: float | None) -> str:
    return f"**{ours / theirs:.2f}**" if ours and theirs else ""


def _cell(each: list[float] | None) -> str:
    if not each:
        return ""
    digits = 1 if statistics.median(each) < 1000 else 0
    return f"{statistics.median(each):.{digits}f} ({min(each):.{digits}f}-{max(each):.{digits}f})"


def arguments() -> argparse.ArgumentParser:
    """What peers.py and targets.py both take."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--peer-python", metavar="PYTHON", help="interpreter of the venv that has the peers [this one]")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="[%(default)s]")
    parser.add_argument("--rounds", type=int, default=5, help="medians are over so many [%(default)s]")
    parser.add_argument("--output", type=int, default=64, help="tokens generated by `decode` [%(default)s]")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of `prefill` [%(default)s]")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the numbers there")
    parser.add_argument("--batch", type=int, default=32, help=argparse.SUPPRESS)
    parser.add_argument("--options", default="{}", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Print a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     parents=[arguments()])
    parser.add_argument("models", nargs="+", metavar="MODEL.gguf")
    parser.add_argument("--peer", nargs="+", choices=[k for k in KINDS if k not in ("limit", "pyruntime")], default=["llama.cpp"])
    parser.add_argument("--folder", help="the model as a folder, for peers that read those")
    parser.add_argument("--depth", type=int, nargs="*", default=[1024, 4096], help="tokens before those timed [1024 4096]")
    parser.add_argument("--sizes", type=int, nargs="*", default=[32], help="sequences side by side [32]")
    parser.add_argument("--only", nargs="+", choices=["decode", "prefill", "depth", "batch"], help="only these kinds of work")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        return serve(asked)
    asked.batch = max([1, *asked.sizes])
    results = []
    for model in asked.models:
        if not Path(model).is_file():
            parser.error(f"{model}: no such file")
        results.append(run(model, asked))
        print(markdown(results[-1]) + "\n", flush=True)
        if asked.json:
            asked.json.write_text(json.dumps(results))
    return None


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
