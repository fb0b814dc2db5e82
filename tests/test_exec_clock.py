"""The op clock: what each op of a step takes, time and bytes of weights. tests/test_bench.py asks whether ops add up to the step,
tests/test_moe.py how often experts are read."""
from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from reference_models import random_values, stored

from pyruntime.backends.native import NativeBackend
from pyruntime.bench.work import matrices
from pyruntime.models import llama
from pyruntime.plan import Logits
from pyruntime.types import Batch

PLAN = llama.plan(llama.tiny())


def batch(tokens: int, cached: int = 0, pages: int = 8) -> Batch:
    return Batch.build([(np.arange(tokens) % PLAN.vocab, cached, cached)], tables=[[list(range(pages))]])


def test_off_unless_asked_for_and_only_what_ran():
    backend = NativeBackend(PLAN, stored(PLAN, random_values(PLAN, 0)), pages=8, threads=1)
    backend.run(batch(2))
    assert not backend.times().any() and backend.times().shape == (len(PLAN.ops) + 1,)
    assert not backend.weights_read().any() and backend.weights_read().shape == (len(PLAN.ops),)
    backend.clock(True)
    backend.run(batch(2), 3, 5)
    assert np.flatnonzero(backend.times()).tolist() == [3, 4, len(PLAN.ops)]
    before, read = backend.times(), backend.weights_read()
    assert np.flatnonzero(read).tolist() == [i for i in (3, 4) if matrices(PLAN.ops[i])]
    backend.run(batch(2), 3, 5)
    assert (backend.times()[3:5] > before[3:5]).all() and (backend.weights_read() == 2 * read).all()
    backend.clock(False)
    kept, read = backend.times(), backend.weights_read()
    backend.run(batch(2))
    assert (backend.times() == kept).all() and (backend.weights_read() == read).all()
    backend.clock(True)
    assert not backend.times().any() and not backend.weights_read().any()
    backend.close()


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("paths, at_once", [(("a16", "a16"), 64), (("bf16", "bf16"), 256)])
def test_weights_are_counted_by_passes(paths: tuple[str, str], at_once: int, threads: int, low_memory: bool) -> None:
    """One token reads every matrix once, NORM_LINEAR's three and GATED's two together; many tokens once for as many of them as a
    unit takes, LOGITS by flagged rows. Whatever the threads: what is counted is what ran."""
    formats = {w.name: "Q8_0" for w in PLAN.weights if w.k}
    weights = stored(PLAN, random_values(PLAN, 0), formats, low_memory=low_memory)
    backend = NativeBackend(PLAN, weights, pages=40, threads=threads, paths=paths, max_rows=100)
    size = np.array([sum(weights[name].nbytes for name in matrices(op)) for op in PLAN.ops])
    head = np.array([isinstance(op, Logits) for op in PLAN.ops])
    assert (size > 0).sum() == 4 * 2 + 1
    for tokens, rows in ((1, 1), (2, 0), (64, 64), (65, 1), (256, 100), (257, 65)):
        backend.clock(True)
        step = Batch.build([(np.arange(tokens) % PLAN.vocab, 0, 0)], tables=[[list(range(40))]], rows=range(tokens - rows, tokens))
        backend.run(step)
        passes = np.where(head, -(-rows // at_once), -(-tokens // at_once))
        assert (backend.weights_read() == passes * size).all()
    backend.close()


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("format", ["F16", "Q8_0"])
@pytest.mark.parametrize("paths", [("bf16", "a16"), ("a16", "bf16"), ("a16_bf16", "a16"), ("a8", "a16")])
def test_paths_pass_over_the_weights_together(paths: tuple[str, str], format: str, low_memory: bool) -> None:
    """Tokens of two paths in one step: as often as those of one of them ask for, who has more; two that are one to the format
    as one."""
    weights = stored(PLAN, random_values(PLAN, 0), {w.name: format for w in PLAN.weights if w.k}, low_memory=low_memory)
    backend = NativeBackend(PLAN, weights, pages=40, threads=2, paths=paths)
    size = np.array([sum(weights[name].nbytes for name in matrices(op)) for op in PLAN.ops])
    fast = ("a8",) if format == "Q8_0" else ("a8", "a16_bf16")
    at_once = [256 if path == "bf16" else 128 if path in fast else 64 for path in paths]
    for prompt, generated in ((10, 10), (1, 1), (64, 64), (65, 1), (257, 60), (60, 257)):
        step = dataclasses.replace(batch(prompt + generated, pages=40), roles=np.repeat(np.uint8([0, 1]), [prompt, generated]))
        backend.clock(True)
        backend.run(step, 0, len(PLAN.ops) - 2)
        passes = max(-(-prompt // at_once[0]), -(-generated // at_once[1]))
        if paths == ("a16_bf16", "a16") and format == "Q8_0":
            passes = -(-(prompt + generated) // 64)
        assert (backend.weights_read()[:-2] == passes * size[:-2]).all()
    backend.close()


def test_the_clock_changes_no_bit():
    values = stored(PLAN, random_values(PLAN, 0))
    plain, timed = (NativeBackend(PLAN, values, pages=8, threads=2) for _ in range(2))
    timed.clock(True)
    for backend in (plain, timed):
        backend.run(batch(20))
    assert (plain.slot("logits") == timed.slot("logits")).all()
    plain.close(), timed.close()
