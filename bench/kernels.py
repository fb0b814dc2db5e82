"""The linear kernels alone, one thread, every weight format: one token beside a plain read of the same memory, then many at once.

    python bench/kernels.py [--isa avx2] [--k 2048] [--megabytes 192] [--rounds 5] [--formats Q8_0 Q4_K] [--json FILE]

One token (decode) streams a buffer far larger than the last cache, in turns with the read; figures are medians, the ratio
is of the two medians. Many tokens reuse a few groups that stay in cache: billions of operations a second, two for each weight
and token. Weights and activations are random.
"""
from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pyruntime import machine
from pyruntime._core import _kernels, _limits, _weights

TOKENS = (1, 4, 16, 64)
GROUPS = 16  # of 16 rows, beside many tokens


def seconds(run: Callable[[], object]) -> float:
    """Processor time of one call, so that a neighbour's turns do not count."""
    began = time.thread_time()
    run()
    return time.thread_time() - began


def again(run: Callable[[], object], times: int) -> None:
    """Several calls."""
    for _ in range(times):
        run()


def measure(kernels: _kernels.Kernels, format: int, k: int, size: int, rounds: int, tokens: Sequence[int]) -> dict[str, Any]:
    """One format's figures: bytes and operations a second."""
    one = _weights.packed_bytes(format, 16, k)
    groups = max(GROUPS, size // one)
    region = _weights.Region(groups * one)  # in 2 MB pages, as a model's weights are
    packed = region.take(groups * one)
    packed.view(np.uint16)[:] = np.random.default_rng(1).integers(0, 0x3C00, packed.nbytes // 2, np.uint16)  # no scale is infinite
    draw = np.random.default_rng(2)
    acts = _kernels.aligned((max((1, *tokens)), _kernels.act_bytes(k)), np.uint8)
    for act in acts:
        act[:] = kernels.quantize(draw.standard_normal(k).astype(np.float32))
    out = _kernels.aligned((1, 16 * groups))
    stream, plain = partial(kernels.linear, format, packed, k, 0, groups, acts[:1], out), partial(_limits.read, packed)
    times = [(seconds(stream), seconds(plain)) for _ in range(rounds + 1)][1:]
    multiply, read = (packed.nbytes / statistics.median(column) for column in zip(*times, strict=True))
    found: dict[str, Any] = {"format": _weights.formats()[format].name, "bytes_per_second": multiply, "read_bytes_per_second": read,
                             "ratio": multiply / read, "operations_per_second": {}}
    for m in tokens:
        out = _kernels.aligned((m, 16 * GROUPS))
        run = partial(kernels.linear, format, packed, k, 0, GROUPS, acts[:m], out)
        repeat = max(1, 64 // m)
        spent = statistics.median(seconds(partial(again, run, repeat)) for _ in range(4 * rounds)) / repeat
        found["operations_per_second"][m] = 2 * 16 * GROUPS * k * m / spent
    return found


def all_formats(isa: str | None, k: int, megabytes: int, rounds: int, wanted: Sequence[str] | None = None,
                tokens: Sequence[int] = TOKENS) -> Iterator[dict[str, Any]]:
    """Each format's figures in turn; `wanted` names some."""
    kernels = _kernels.Kernels(machine.isa(isa))
    for format, info in enumerate(_weights.formats()):
        if wanted is None or info.name in wanted:
            yield measure(kernels, format, k, megabytes << 20, rounds, tokens)


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", default=None, help="an instruction set; the best one here if not given")
    parser.add_argument("--k", type=int, default=2048, help="length of a row; K-quants take whole blocks of 256 [%(default)s]")
    parser.add_argument("--megabytes", type=int, default=192, help="weights that one pass over one token reads [%(default)s]")
    parser.add_argument("--rounds", type=int, default=5, help="[%(default)s]")
    parser.add_argument("--formats", nargs="+", choices=[info.name for info in _weights.formats()], metavar="FORMAT",
                        help="some of " + " ".join(info.name for info in _weights.formats()))
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the numbers there")
    asked = parser.parse_args()
    print(f"{machine.isa(asked.isa)}, k = {asked.k}, {asked.megabytes} MB, one thread, medians of {asked.rounds}\n")
    print("| format | one token GB/s | read GB/s | ratio | " + " | ".join(f"{m} tokens Gop/s" for m in TOKENS) + " |")
    print("|---" + "|---:" * (3 + len(TOKENS)) + "|")
    results = []
    for found in all_formats(asked.isa, asked.k, asked.megabytes, asked.rounds, asked.formats):
        results.append(found)
        many = " | ".join(f"{rate / 1e9:.0f}" for rate in found["operations_per_second"].values())
        print(f"| {found['format']} | {found['bytes_per_second'] / 1e9:.1f} | {found['read_bytes_per_second'] / 1e9:.1f} "
              f"| {found['ratio']:.2f} | {many} |", flush=True)
    if asked.json:
        asked.json.write_text(json.dumps({"isa": machine.isa(asked.isa), "k": asked.k, "formats": results}))


if __name__ == "__main__":
    main()
