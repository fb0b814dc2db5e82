"""The whole table of speed targets, one command: makes the models, measures everything in turns, judges every row.

    python bench/targets.py --peer-python /path/to/venv/bin/python [--quick] [--json FILE] [--markdown FILE]

Models of real shapes with random weights are made once (bench/make_model.py, a few gigabytes in --folder; with --quick fewer);
SmolLM2 is the real one and is pulled. Each model is loaded by this runtime, with its default precision, where they are not the
same with `throughput` and `int8`, and with a q8_0 cache, and by llama.cpp; rounds take every figure in turns, with the read
limit in between (bench/peers.py). Beside these: the linear kernels alone (bench/kernels.py), loading, memory, attention over
32k tokens, and 32 streams over gRPC (bench/serving.py).

A row is met when the measured ratio reaches the target. Targets that are tokens a second stand for two cores with AMX and are
judged only where the engine takes that set; elsewhere they are shown, as is `int8` everywhere.
"""
from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import make_model
import peers
import serving

SMOL = "smollm2:135m"
ONE, EIGHT = "llama-1b", "llama-8b"
EXTRA: dict[str, dict[str, Any]] = {"throughput": {"precision": "throughput"}, "int8": {"precision": "int8", "only": ["prefill"]},
                                    "q8_0 cache": {"kv_format": "q8_0", "only": ["depth"]}}


@dataclass
class Row:
    """One figure beside its target. kind "ratio": of limit or peer; "speed": tokens a second on two cores with AMX; "most": a
    ratio that should stay below; "shown": a ratio that nothing hangs on."""

    regime: str
    what: str
    ours: float | None
    beside: float | None      # the limit, or the peer's figure
    ratio: float | None
    target: float
    kind: str = "ratio"
    amx: bool = False

    @property
    def met(self) -> bool | None:
        """None: not measured here, or not judged."""
        value = self.ours if self.kind == "speed" else self.ratio
        if value is None or self.kind == "shown" or (self.kind == "speed" and not self.amx):
            return None
        return value <= self.target if self.kind == "most" else value >= self.target


def available() -> dict[str, dict[str, Any]]:
    """Name -> options of open_model, and which work they are measured at; without precisions that are here the default, to
    weights in blocks."""
    from pyruntime import machine

    def meant(precision: str) -> list[str]:
        return [path.replace("a16_bf16", "a16") for path in machine.paths(precision, machine.isa())]

    return {"pyruntime": {}} | {name: options for name, options in EXTRA.items()
                                if meant(options.get("precision", "balanced")) != meant("balanced") or "precision" not in options}


def contests(asked: argparse.Namespace) -> Iterator[tuple[str, Path, dict[str, dict[str, Any]], list[str]]]:
    """(label, file, tasks, which of ours) for every model."""
    decode, prompt = {"task": "decode", "count": asked.output}, {"task": "prefill", "tokens": asked.prompt}
    deep = {f"decode at {d}": {"task": "depth", "depth": d, "count": peers.DEPTH_COUNT} for d in asked.depth}
    batch = {f"{n} together": {"task": "batch", "size": n, "count": peers.BATCH_COUNT} for n in (4, 16, 32)}
    prompt_name = f"prompt {asked.prompt}"
    smol = {"decode": decode, prompt_name: prompt, **deep, "32 together": batch["32 together"]}
    yield "SmolLM2", _smol(), smol, ["pyruntime", "throughput", "int8", "q8_0 cache"]
    one = {"decode": decode, prompt_name: prompt, **deep, **batch}
    for format in ("Q4_K_M",) if asked.quick else ("Q4_K_M", "Q8_0", "Q4_0", "BF16"):
        tasks = {"decode": decode, prompt_name: prompt} | (batch if format == "Q4_0" else {})
        tasks = one if format in ("Q4_K_M", "Q8_0") else tasks
        yield f"1.2B {format}", make_model.made(ONE, format, asked.folder), tasks, ["pyruntime", "throughput", "int8"]
    if not asked.quick and not asked.small:
        yield "8B Q4_K_M", make_model.made(EIGHT, "Q4_K_M", asked.folder), {"decode": decode}, ["pyruntime"]


def _smol() -> Path:
    from pyruntime.store import pull, resolve

    try:
        return resolve(SMOL)
    except Exception:
        pull(SMOL)
        return resolve(SMOL)


def figure(result: dict[str, Any], task: str, name: str = "pyruntime") -> float | None:
    """Median tokens a second."""
    return peers.best(result, name, task)


def reading(result: dict[str, Any], stored: float) -> float:
    """Tokens a second that reading allows one sequence that holds `stored` tokens."""
    about = result["contenders"]["pyruntime"]["about"]
    return result["read_bytes_per_second"] / (about["weight_bytes"] + stored * about["kv_bytes"])


def rows(results: dict[str, dict[str, Any]], others: dict[str, Any], asked: argparse.Namespace) -> Iterator[Row]:
    """Every target there is a measurement for."""
    prompt, most = f"prompt {asked.prompt}", max(asked.depth)
    deep = f"decode at {most}"

    def against(regime: str, label: str, task: str, target: float, name: str = "pyruntime", kind: str = "ratio") -> Iterator[Row]:
        if (result := results.get(label)) and (ours := figure(result, task, name)):
            theirs = figure(result, task, "llama.cpp")
            yield Row(regime, f"{label}, {task}{'' if name == 'pyruntime' else ', ' + name}, ÷ llama.cpp", ours, theirs,
                      ours / theirs if theirs else None, target, kind)

    def speed(regime: str, label: str, task: str, target: float, name: str = "pyruntime") -> Iterator[Row]:
        if (result := results.get(label)) and (ours := figure(result, task, name)):
            amx = result["contenders"][name]["about"]["isa"] == "amx" and result["threads"] == 2
            what = f"{label}, {task}{'' if name == 'pyruntime' else ', ' + name}, tok/s"
            yield Row(regime, what, ours, None, None, target, "speed", amx)

    def limit(regime: str, label: str, task: str, stored: float, target: float) -> Iterator[Row]:
        if (result := results.get(label)) and (ours := figure(result, task)):
            bound = reading(result, stored)
            yield Row(regime, f"{label}, {task}, of reading's limit", ours, bound, ours / bound, target)

    middle = peers.START + asked.output / 2
    for name, ratio in others.get("kernels", {}).items():
        yield Row("decode, one sequence", f"GEMV {name}, of reading's limit", None, None, ratio, 0.90)
    for label, target in (("1.2B Q8_0", 1.2), ("1.2B Q4_0", 1.6), ("1.2B Q4_K_M", 2.0), ("1.2B BF16", 1.3), ("8B Q4_K_M", 2.0)):
        yield from limit("decode, one sequence", label, "decode", middle, 0.82)
        yield from against("decode, one sequence", label, "decode", target)
    yield from limit("decode, small model", "SmolLM2", "decode", middle, 0.70)
    yield from against("decode, small model", "SmolLM2", "decode", 1.4)
    yield from against("decode, small model", "SmolLM2", deep, 3.0)
    yield from against("decode, small model", "SmolLM2", deep, 4.0, "q8_0 cache")
    for label, targets in (("1.2B Q4_0", (2.8, 6.5)), ("1.2B Q4_K_M", (2.8, 6.5)), ("1.2B Q8_0", (3.4, 10.0))):
        if label in results and (one := figure(results[label], "decode")):
            for n, target in zip((4, 16), targets, strict=True):
                if ours := figure(results[label], f"{n} together"):
                    yield Row("batched decode", f"{label}, {n} together ÷ one", ours, one, ours / one, target)
    for label, target in (("1.2B Q4_K_M", 2.2), ("1.2B Q8_0", 2.2), ("SmolLM2", 4.0)):
        yield from against("batched decode", label, "32 together", target)
    for label, plain, fast in (("1.2B Q4_K_M", 380, 850), ("1.2B Q8_0", 380, 850), ("SmolLM2", 2500, 4000)):
        yield from speed("batched decode", label, "32 together", plain)
        yield from speed("batched decode", label, "32 together", fast, "throughput")
    for label, target in (("SmolLM2", 8600), *((f"1.2B {f}", 1700) for f in ("Q8_0", "Q4_0", "Q4_K_M", "BF16"))):
        yield from against("prompt", label, prompt, 5.0)
        yield from against("prompt", label, prompt, 5.0, "int8", "shown")
        yield from speed("prompt", label, prompt, target)
    for label in ("1.2B Q4_K_M", "1.2B Q8_0"):
        yield from against("long context", label, deep, 3.0)
        yield from limit("long context", label, deep, most + peers.DEPTH_COUNT / 2, 0.85)
    if found := others.get("attention"):
        yield Row("long context", f"attention over {found['depth']} tokens, of reading's limit", None, None, found["ratio"], 0.85)
    for label, found in others.get("load", {}).items():
        yield Row("load", f"{label}, seconds ÷ reading the file", found["seconds"], found["read_seconds"], found["times_reading"],
                  1.5, "most")
    for label, result in results.items():
        ours = result["contenders"]["pyruntime"]
        yield Row("memory", f"{label}, resident ÷ weights + cache", ours["rss"] / 1e9, ours["about"]["memory"] / 1e9,
                  ours["rss"] / ours["about"]["memory"], 1.10, "most")
    for label, found in others.get("serving", {}).items():
        yield Row("serving, 32 streams", f"{label}, ÷ the engine's own batch", found["served_tokens_per_second"],
                  found["engine_tokens_per_second"], found["ratio"], 0.90)
        yield Row("serving, 32 streams", f"{label}, between tokens p99 ÷ p50, ms", found["between_p99"] * 1e3,
                  found["between_p50"] * 1e3, found["p99_over_p50"], 2.0, "most")


def beside(label: str, file: Path, asked: argparse.Namespace, others: dict[str, Any]) -> None:
    """What contests do not measure: loading, attention at 32k, serving."""
    from pyruntime.bench import measure

    options = {"threads": asked.threads, "progress": False}
    others.setdefault("load", {})[label] = measure.load(str(file), options, 1 if asked.quick else 3)
    if label in ("SmolLM2", "1.2B Q4_K_M"):
        given = argparse.Namespace(streams=32, prompt=128, output=16 if asked.quick else 64, rounds=1 if asked.quick else 3,
                                   rate=0.0, threads=asked.threads)
        others.setdefault("serving", {})[label] = serving.measure(str(file), given)
    if label == "1.2B Q4_K_M":
        others["attention"] = attention(file, asked)


def attention(file: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """The ATTENTION ops of one token behind 32k others, by the engine's clock, beside reading's limit in turns."""
    from pyruntime import LLM
    from pyruntime.bench import measure, profile
    from pyruntime.bench.limits import Limits
    from pyruntime.bench.work import Work, matrices

    depth = 4096 if asked.quick else 32768
    wanted = measure.Wanted(parts=("depth",), depths=(depth,), prompts=(16,))
    with LLM(measure.open_bench(str(file), {"threads": asked.threads, "progress": False}, wanted)) as llm:
        weights, backend = llm.model.weights, llm.model.backend
        names = dict.fromkeys(name for op in llm.model.plan.ops for name in matrices(op))
        rates = {kind: 1.0 for kind in Work.of(llm.model.plan, weights).operations(1, 1)}
        step, found = measure.Deep(llm, depth).step(depth), []
        with Limits([weights[name] for name in names], backend.isa, asked.threads, backend.paths[0]) as limits:
            for _ in range(1 if asked.quick else 5):
                ops = profile.profile(backend, weights, step, 1.0, rates, 0.3)["ops"]
                entry = next(entry for entry in ops if entry["op"] == "attention")
                found.append((entry["bytes"] / entry["seconds"], limits.read_rate()))
    ours, read = (statistics.median(column) for column in zip(*found, strict=True))
    return {"depth": depth, "bytes_per_second": ours, "read_bytes_per_second": read, "ratio": ours / read}


def kernels(asked: argparse.Namespace) -> dict[str, float]:
    """Format -> its GEMV's share of the read rate."""
    import kernels as micro

    wanted = ("Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")
    size, rounds = (64, 2) if asked.quick else (192, 5)
    return {found["format"]: found["ratio"] for found in micro.all_formats(None, 2048, size, rounds, wanted, tokens=())}


def markdown(listed: list[Row], results: dict[str, dict[str, Any]]) -> str:
    """The table, then what llama.cpp is, then each contest."""
    lines = ["| regime | figure | measured | limit or peer | ratio | target | |", "|---|---|---:|---:|---:|---:|---|"]
    for row in listed:
        sign = "≤" if row.kind == "most" else "≥"
        unjudged = "not judged here" if row.kind in ("speed", "shown") else "not measured"
        told = {True: "met", False: "**missed**", None: unjudged}[row.met]
        lines.append(f"| {row.regime} | {row.what} | {_number(row.ours)} | {_number(row.beside)} | "
                     f"{'' if row.ratio is None else f'{row.ratio:.2f}'} | {sign} {row.target:g} | {told} |")
    judged = [row.met for row in listed if row.met is not None]
    lines.append(f"\n{sum(judged)} of {len(judged)} judged rows met.\n")
    for label, result in results.items():
        lines += [f"**{label}**: " + peers.markdown(result), ""]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     parents=[peers.arguments()])
    parser.add_argument("--folder", type=Path, default=make_model.FOLDER, help="where made models are kept [%(default)s]")
    parser.add_argument("--quick", action="store_true", help="one round, SmolLM2 and one 1.2B model, short contexts: minutes")
    parser.add_argument("--small", action="store_true", help="without the 8B model")
    parser.add_argument("--only", nargs="+", help="only models whose label holds one of these, such as SmolLM2 Q8_0 8B")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write the table there too")
    asked = parser.parse_args()
    if asked.quick:
        asked.rounds, asked.output = 1, 16
    cache, asked.folder = asked.folder, None
    asked.peer, asked.depth = ["llama.cpp"], [512] if asked.quick else [1024, 4096]
    results: dict[str, dict[str, Any]] = {}
    others: dict[str, Any] = {"kernels": kernels(asked)}
    ours, began = available(), time.time()
    listing = argparse.Namespace(**{**vars(asked), "folder": cache})
    for label, file, tasks, names in contests(listing):
        if asked.only and not any(part in label for part in asked.only):
            continue
        print(f"{label} ({time.time() - began:.0f} s so far)", file=sys.stderr, flush=True)
        wanted = {name: options for name, options in ours.items() if name in names}
        results[label] = peers.run(str(file), asked, wanted, tasks)
        beside(label, file, asked, others)
        listed = list(rows(results, others, asked))
        text = markdown(listed, results)
        if asked.json:
            told = [{**asdict(row), "met": row.met} for row in listed]
            asked.json.write_text(json.dumps({"rows": told, "contests": results, **others}))
        if asked.markdown:
            asked.markdown.write_text(text + "\n")
    if not results:
        parser.error("no model's label holds any of these")
    print(text)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
