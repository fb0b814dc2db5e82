"""What this machine can do with the same memory and the same kernels, on the same number of threads."""
from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from .._core import _kernels, _limits, _weights
from ..machine import PATHS
from ..weights import Stored
from .work import Kind

PIECE = 1 << 18       # bytes; threads share the weights in such pieces
READ = 1 << 30        # bytes read for one figure at least, without coming back to Python in between
MOMENT = 0.04         # seconds one kind of multiplication is measured for
CACHED = 256 << 10    # bytes of weights that stay in the caches nearest the core
TOKENS = 32           # activations beside them


class Limits:
    """Reading: every byte of the weights where they lie, as often as it takes. Multiplying: the linear kernels themselves on
    a few of the model's rows and random activations, which stay in the nearest caches. path: of machine.PATHS."""

    def __init__(self, weights: list[Stored], isa: str, threads: int, path: str) -> None:
        self.weights, self.path = weights, PATHS.index(path)
        held = [w.blocks if w.packed is None else w.packed for w in weights]
        self.pieces = [view[at : at + PIECE] for view in held if view is not None for at in range(0, view.nbytes, PIECE)]
        self.kernels, self.threads = _kernels.Kernels(isa), threads
        self._cached: dict[Kind, list[tuple[Callable[[], Any], int]]] = {}

    def __enter__(self) -> Limits:
        self.pool = ThreadPoolExecutor(self.threads)
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def read_rate(self) -> float:
        """Bytes a second, each thread a contiguous share of the weights."""
        total = sum(piece.nbytes for piece in self.pieces)
        bounds = [len(self.pieces) * i // self.threads for i in range(self.threads + 1)]
        shares = [self.pieces[a:b] for a, b in zip(bounds, bounds[1:])]  # noqa: B905  one shorter by design
        passes = max(1, READ // total)
        began = time.perf_counter()
        list(self.pool.map(_limits.read_all, shares, [passes] * self.threads))
        return total * passes / (time.perf_counter() - began)

    def multiply_rate(self, kind: Kind) -> float:
        """Operations a second of one format's kernel at one k."""
        jobs = self._cached.get(kind) or self._cached.setdefault(kind, [self._job(*kind) for _ in range(self.threads)])

        def spin(job: tuple[Callable[[], Any], int]) -> float:
            run, operations = job
            began, count = time.perf_counter(), 0
            while (spent := time.perf_counter() - began) < MOMENT:
                run()
                count += 1
            return operations * count / spent

        return sum(self.pool.map(spin, jobs))

    def seconds(self, operations: dict[Kind, int], rates: dict[Kind, float]) -> float:
        """How long so many operations take at `rates`."""
        return sum(count / rates[kind] for kind, count in operations.items())

    def _job(self, format: int, k: int) -> tuple[Callable[[], Any], int]:
        """A call of the kernel on one thread's own copy of a few rows, and how many operations it does."""
        weight = next(w for w in self.weights if (w.format, w.k) == (format, k))
        groups = max(1, min(weight.rows // 16, CACHED // _weights.packed_bytes(format, 16, k)))
        packed = _kernels.aligned(_weights.packed_bytes(format, 16 * groups, k), np.uint8)
        if weight.packed is not None:
            packed[:] = weight.packed[: packed.nbytes]
        elif weight.blocks is not None:
            rows = min(weight.rows, 16 * groups)
            _weights.pack(format, rows, k, weight.blocks[: _weights.file_bytes(format, rows, k)], packed, 1)
        draw = np.random.default_rng(1)
        acts = _kernels.aligned((TOKENS, _kernels.act_bytes(k)), np.uint8)
        for row in acts:
            row[:] = self.kernels.quantize(draw.standard_normal(k).astype(np.float32), path=self.path)
        out = _kernels.aligned((TOKENS, 16 * groups), np.float32)
        return (lambda: self.kernels.linear(format, packed, k, 0, groups, acts, out, self.path)), 2 * 16 * groups * k * TOKENS
