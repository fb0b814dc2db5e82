"""A group whose layers see a window gives pages back behind it: the same answers, from memory that does not grow."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_models import random_values, stored

from pyruntime.backends.native import NativeBackend
from pyruntime.backends.torch import TorchBackend
from pyruntime.cache.pages import GONE, Span
from pyruntime.engine.scheduler import Scheduler, Sequence
from pyruntime.errors import FieldInvalid
from pyruntime.loading import _plan_memory, page_bytes
from pyruntime.models import gemma3
from pyruntime.plan import PAGE_TOKENS, Plan
from pyruntime.types import Batch, greedy_rows

WINDOW, CONTEXT = 19, 256
PLAN = gemma3.plan(gemma3.tiny(layers=3, window=WINDOW, context=CONTEXT, k_format="f32", v_format="f32"))
KEPT = replace(PLAN, groups=tuple(replace(g, window=0) for g in PLAN.groups))   # the same model, every page kept
WEIGHTS = stored(PLAN, random_values(PLAN, 5), {w.name: "Q8_0" for w in PLAN.weights if w.k})
LOCAL = next(i for i, g in enumerate(PLAN.groups) if g.window)
SIZES = {"max_tokens": 64, "max_rows": 8, "histories": 4}


def native(plan: Plan, pages: tuple[int, ...], **options: object) -> NativeBackend:
    return NativeBackend(plan, WEIGHTS, pages=pages, threads=2, **SIZES, **options)   # type: ignore[arg-type]


def answers(backend: NativeBackend | TorchBackend, prompts: list[list[int]], count: int, chunk: int,
            max_running: int = 4) -> tuple[list[list[int]], list[np.ndarray], Scheduler]:
    """Every prompt's tokens and their logits. Pages that come free are overwritten with NaN."""
    scheduler = Scheduler(backend.pages, groups=backend.plan.groups, context=CONTEXT, max_running=max_running, max_tokens=64,
                          max_rows=8, chunk=chunk)
    sequences = [Sequence(list(p), greedy_rows(1)) for p in prompts]
    seen: dict[Sequence, list[np.ndarray]] = {s: [] for s in sequences}
    for s in sequences:
        scheduler.add(s)
    while (step := scheduler.schedule()) is not None:
        if isinstance(backend, NativeBackend):
            for group, pool in enumerate(scheduler.pools):
                for page in range(pool.total):
                    if not pool.holders(page):
                        backend.page(group, page)[:] = 0xFF
        backend.run(step.batch)
        scheduler.commit(step, backend.sampled()["token"])
        scheduler.check()
        for flagged in step.flagged:
            seen[flagged.sequence].append(backend.slot("logits")[flagged.row].copy())
            if flagged.sequence.generated == count:
                scheduler.finish(flagged.sequence)
    return [s.tokens[s.prompt :] for s in sequences], [np.stack(seen[s]) for s in sequences], scheduler


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=4), st.integers(1, 60), st.integers(0, 9))
def test_freeing_changes_nothing(lengths: list[int], chunk: int, spare: int) -> None:
    """Against the same plan with all pages kept; pages of the local group may be few enough for preemption."""
    rng = np.random.default_rng(sum(lengths))
    prompts = [rng.integers(0, PLAN.vocab, n).tolist() for n in lengths]
    need = Span(WINDOW, chunk).most(CONTEXT)
    pages = [64, 64]
    pages[LOCAL] = need + spare
    got, logits, scheduler = answers(native(PLAN, tuple(pages)), prompts, 40, chunk)
    want, wanted, _ = answers(native(KEPT, (64, 64)), prompts, 40, chunk)
    assert scheduler.context == CONTEXT and got == want and scheduler.pages_used == 0
    assert all(np.array_equal(a, b) for a, b in zip(logits, wanted, strict=True))


def test_the_reference_frees_too() -> None:
    prompts = [np.random.default_rng(1).integers(0, PLAN.vocab, n).tolist() for n in (50, 7)]
    sizes = {**SIZES, "act_quant": "none"}
    pages = [64, 64]
    pages[LOCAL] = 2 * Span(WINDOW, 16).most(CONTEXT)
    got, logits, _ = answers(TorchBackend(PLAN, WEIGHTS, pages=tuple(pages), **sizes), prompts, 8, 16)
    want, wanted, _ = answers(TorchBackend(KEPT, WEIGHTS, pages=64, **sizes), prompts, 8, 16)
    assert got == want and all(np.allclose(a, b, atol=1e-5) for a, b in zip(logits, wanted, strict=True))


@pytest.mark.parametrize("backend", [NativeBackend, TorchBackend])
def test_a_page_in_sight_cannot_be_gone(backend: type) -> None:
    """Block 0 holds 0 to 15; token 34 is the first that sees none of them through a window of 19. Only the local group may."""
    made = backend(PLAN, WEIGHTS, pages=4, **SIZES)
    for first in (0, 16, 32):
        made.run(Batch.build([([1] * min(16, 35 - first), first, first)], tables=[[[0, 1, 2]]] * 2))

    def step(at: int, tables: list[list[int]], count: int = 1) -> Batch:
        return Batch.build([([1] * count, at, at)], tables=[[t] for t in tables])

    tables = [[0, 1, 2], [0, 1, 2]]
    tables[LOCAL] = [GONE, 1, 2]
    made.run(step(34, tables))
    for at, count in ((33, 1), (33, 2), (20, 1)):
        with pytest.raises(FieldInvalid, match=r"table|page"):
            made.run(step(at, tables, count))
    with pytest.raises(FieldInvalid, match=r"table|page"):
        made.run(step(34, tables[::-1]))
    tables[LOCAL] = [GONE, 1, GONE]
    with pytest.raises(FieldInvalid, match=r"table|page"):
        made.run(step(34, tables))


def test_the_memory_plan_counts_windows_not_context() -> None:
    memory = _plan_memory(PLAN, WEIGHTS, CONTEXT, None, 3, 32)
    local = 3 * Span(WINDOW, 32).most(CONTEXT)
    assert local == 3 * 5 and memory.kv_tokens == 3 * CONTEXT
    assert memory.pages[LOCAL] == local and memory.pages[1 - LOCAL] == 3 * CONTEXT // PAGE_TOKENS
    assert memory.kv == sum(n * page_bytes(g) for n, g in zip(memory.pages, PLAN.groups, strict=True))
    small = _plan_memory(PLAN, WEIGHTS, CONTEXT, 32, 3, 32)
    assert small.pages == (2, 2)
