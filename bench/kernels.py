"""The linear kernels alone, one thread: decode beside a plain read of the same memory, then many tokens at once.

    python bench/kernels.py [--isa avx2] [--k 2048] [--megabytes 192] [--rounds 5]

Decode (one token) streams a buffer far larger than the last cache, in turns with the read; figures are medians, the ratio
is of the two medians. Many tokens reuse a few groups that stay in cache: billions of multiplications a second.
"""
from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from pyruntime import machine
from pyruntime._core import _kernels, _limits, _weights

TOKENS = (4, 16, 64, 256)
GROUPS = 16  # of 16 rows, beside many tokens


def seconds(run: Callable[[], object]) -> float:
    """Processor time of one call, so that a neighbour's turns do not count."""
    began = time.thread_time()
    run()
    return time.thread_time() - began


def measure(kernels: _kernels.Kernels, format: int, k: int, size: int, rounds: int) -> list[str]:
    """One row of the table."""
    info, group, draw = _weights.formats()[format], _weights.packed_bytes(format, 16, k), np.random.default_rng(1)
    groups = max(GROUPS, size // group)
    nbytes = groups * group
    region = _weights.Region(nbytes)  # in 2 MB pages, as a model's weights are
    packed = region.take(nbytes)
    packed.view(np.uint16)[:] = draw.integers(0, 0x3C00, nbytes // 2, np.uint16)  # no scale is infinite
    acts = _kernels.aligned((max(TOKENS), _kernels.act_bytes(k)), np.uint8)
    for act in acts:
        act[:] = kernels.quantize(draw.standard_normal(k).astype(np.float32))
    out = _kernels.aligned((1, 16 * groups))
    times = [(seconds(lambda: kernels.linear(format, packed, k, 0, groups, acts[:1], out)), seconds(lambda: _limits.read(packed)))
             for _ in range(rounds + 1)][1:]
    multiply, read = (nbytes / statistics.median(column) / 1e9 for column in zip(*times, strict=True))
    row = [info.name, f"{multiply:.1f}", f"{read:.1f}", f"{multiply / read:.2f}"]
    for m in TOKENS:
        out = _kernels.aligned((m, 16 * GROUPS))
        run = partial(kernels.linear, format, packed, k, 0, GROUPS, acts[:m], out)
        spent = statistics.median(seconds(run) for _ in range(4 * rounds))
        row.append(f"{16 * GROUPS * k * m / spent / 1e9:.0f}")
    return row


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--isa", default=None, help="an instruction set; the best one here if not given")
    parser.add_argument("--k", type=int, default=2048)
    parser.add_argument("--megabytes", type=int, default=192, help="weights that one decode pass reads")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    kernels = _kernels.Kernels(machine.isa(asked.isa))
    print(f"{kernels.name}, k = {asked.k}, {asked.megabytes} MB, one thread, medians of {asked.rounds}\n")
    print("| format | decode GB/s | read GB/s | ratio | " + " | ".join(f"{m} tokens G/s" for m in TOKENS) + " |")
    print("|---" * (4 + len(TOKENS)) + "|")
    for format in range(len(_weights.formats())):
        print("| " + " | ".join(measure(kernels, format, asked.k, asked.megabytes << 20, asked.rounds)) + " |", flush=True)


if __name__ == "__main__":
    main()
