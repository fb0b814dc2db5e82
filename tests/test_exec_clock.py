"""The op clock: what each op of a step takes. tests/test_bench.py asks whether ops add up to the step."""
from __future__ import annotations

import numpy as np
from reference_models import random_values, stored

from pyruntime.backends.native import NativeBackend
from pyruntime.models import llama
from pyruntime.types import Batch

PLAN = llama.plan(llama.tiny())
TABLE = [list(range(8))]


def batch(tokens: int, cached: int = 0) -> Batch:
    return Batch.build([(list(range(tokens)), cached, cached)], tables=[TABLE])


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
