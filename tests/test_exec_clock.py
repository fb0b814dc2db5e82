"""The op clock: what each op of a step takes."""
from __future__ import annotations

import time

import numpy as np
from reference_models import random_values, stored

from pyruntime.backends.native import NativeBackend
from pyruntime.models import llama
from pyruntime.types import Batch

CONFIG = llama.tiny(layers=4, width=512, heads=8, kv_heads=4, head_dim=64, hidden=1024, vocab=4096)
PLAN = llama.plan(CONFIG)
TABLE = [list(range(8))]


def batch(tokens: int, cached: int = 0) -> Batch:
    return Batch.build([(list(range(tokens)), cached, cached)], tables=[TABLE])


def test_ops_add_up_to_the_step():
    """Shares of a step of one token and of many add up to 100 ± 2 % of what the caller measures, whatever the threads."""
    for threads in (1, 2):
        backend = NativeBackend(PLAN, stored(PLAN, random_values(PLAN, 0)), pages=8, threads=threads)
        for step in (batch(64), batch(1, 64)):
            shares = []
            for _ in range(20):
                backend.clock(True)
                began = time.perf_counter_ns()
                backend.run(step)
                spent = time.perf_counter_ns() - began
                shares.append(backend.times().sum() / spent)
            assert 0.98 <= np.median(shares) <= 1.0
            assert (backend.times() > 0).all()
        backend.close()


def test_off_unless_asked_for_and_only_what_ran():
    backend = NativeBackend(PLAN, stored(PLAN, random_values(PLAN, 0)), pages=8, threads=1)
    backend.run(batch(2))
    assert not backend.times().any() and backend.times().shape == (len(PLAN.ops) + 1,)
    backend.clock(True)
    backend.run(batch(2), 3, 5)
    assert np.flatnonzero(backend.times()).tolist() == [3, 4, len(PLAN.ops)]
    before = backend.times()
    backend.run(batch(2), 3, 5)
    assert (backend.times()[3:5] > before[3:5]).all()
    backend.clock(False)
    kept = backend.times()
    backend.run(batch(2))
    assert (backend.times() == kept).all()
    backend.clock(True)
    assert not backend.times().any()
    backend.close()


def test_the_clock_changes_no_bit():
    values = stored(PLAN, random_values(PLAN, 0))
    plain, timed = (NativeBackend(PLAN, values, pages=8, threads=2) for _ in range(2))
    timed.clock(True)
    for backend in (plain, timed):
        backend.run(batch(20))
    assert (plain.slot("logits") == timed.slot("logits")).all()
    plain.close(), timed.close()
