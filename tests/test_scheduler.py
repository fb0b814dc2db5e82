"""Pages and scheduler: the counts always add up, and what pages hold gives the answers plain lists give."""
from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hash_backend import VOCAB, HashBackend, expected
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pyruntime.cache.pages import PagePool, Span, pages_for, slot_of
from pyruntime.engine.scheduler import Scheduler, Sequence, Step
from pyruntime.errors import ContextLengthExceeded
from pyruntime.types import greedy_rows

TOKENS = st.integers(0, VOCAB - 1)


# ---- pages ----


def test_pages_of_sixteen() -> None:
    pages = pages_for(37)
    assert pages == 3 and pages * 16 - 37 == 11
    assert [slot_of([4, 1, 7], t) for t in (0, 8, 16, 24, 32, 36)] == [64, 72, 16, 24, 112, 116]


class Pool(RuleBasedStateMachine):
    """Allocate, grow, share and release; after each rule every page has the holders the tables say."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(23)
        self.tables: list[list[int]] = []

    @rule(count=st.integers(0, 8), grow=st.booleans(), which=st.integers(0, 99))
    def allocate(self, count: int, grow: bool, which: int) -> None:
        if count > self.pool.free:
            with pytest.raises(ValueError, match="free"):
                self.pool.allocate(count)
        elif grow and self.tables:
            table = self.tables[which % len(self.tables)]
            table += self.pool.allocate(count, table[-1] if table else -1)
        else:
            self.tables.append(self.pool.allocate(count))

    @precondition(lambda self: self.tables)
    @rule(which=st.integers(0, 99), part=st.integers(0, 9))
    def share(self, which: int, part: int) -> None:
        shared = self.tables[which % len(self.tables)][:part]
        self.pool.share(shared)
        self.tables.append(list(shared))

    @precondition(lambda self: self.tables)
    @rule(which=st.integers(0, 99))
    def release(self, which: int) -> None:
        self.pool.release(self.tables.pop(which % len(self.tables)))

    @invariant()
    def adds_up(self) -> None:
        self.pool.check(self.tables)

    def teardown(self) -> None:
        for table in self.tables:
            self.pool.release(table)
        self.pool.check([])
        assert self.pool.allocate(23) == list(range(23))


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40)


def test_a_hundred_thousand_operations_leak_nothing() -> None:
    rng = np.random.default_rng(0)
    pool, tables = PagePool(256), []
    for op in rng.integers(0, 4, 100_000).tolist():
        if op == 0 and pool.free:
            tables.append(pool.allocate(int(rng.integers(1, min(pool.free, 9) + 1))))
        elif op == 1 and tables and pool.free:
            table = tables[int(rng.integers(len(tables)))]
            table += pool.allocate(1, table[-1])
        elif op == 2 and tables:
            tables.append(list(tables[int(rng.integers(len(tables)))]))
            pool.share(tables[-1])
        elif tables:
            pool.release(tables.pop(int(rng.integers(len(tables)))))
    pool.check(tables)
    for table in tables:
        pool.release(table)
    assert pool.free == 256
    pool.check([])


def test_growing_sequences_stay_in_one_piece() -> None:
    pool = PagePool(64)
    tables = [pool.allocate(2) for _ in range(4)]
    for _ in range(6):
        for table in tables:
            table += pool.allocate(1, table[-1])
    assert all(np.diff(table).tolist() == [1] * 7 for table in tables)


def test_a_free_page_cannot_be_shared_or_freed() -> None:
    pool = PagePool(2)
    with pytest.raises(ValueError, match="free"):
        pool.share([0])
    with pytest.raises(ValueError, match="free"):
        pool.release([1])


# ---- scheduler ----


def sequence(prompt: list[int], *, seed: int = 0, priority: int = 0, scored: int = -1) -> Sequence:
    row = greedy_rows(1)
    row["seed"] = seed
    return Sequence(list(prompt), row, priority=priority, scored=scored)


def steps(scheduler: Scheduler, backend: HashBackend) -> Iterator[Step]:
    """Run until nothing is left; the caller finishes sequences between steps."""
    while (step := scheduler.schedule()) is not None:
        scheduler.check()
        backend.run(step.batch)
        scheduler.commit(step, backend.sampled()["token"])
        yield step
        scheduler.check()


def run_all(scheduler: Scheduler, backend: HashBackend, wanted: dict[Sequence, int]) -> list[Step]:
    """Every sequence to its wanted number of tokens."""
    for s in wanted:
        scheduler.add(s)
    seen = []
    for step in steps(scheduler, backend):
        seen.append(step)
        for s, _ in step.parts:
            if s.generated == wanted[s]:
                scheduler.finish(s)
    assert scheduler.pages_used == 0 and not scheduler.waiting
    return seen


@given(st.data(), st.sampled_from([(0,), (0,), (9,), (0, 21), (40, 1), (16, 0, 17)]))
@settings(max_examples=120)
def test_answers_do_not_depend_on_batch_pages_chunks_or_preemption(data: st.DataObject, windows: tuple[int, ...]) -> None:
    jobs = data.draw(st.lists(st.tuples(st.lists(TOKENS, min_size=1, max_size=60), st.integers(1, 30), st.integers(-1, 1),
                                        st.booleans()), min_size=1, max_size=8), label="prompt, answer, priority, scored")
    pages = tuple(data.draw(st.integers(6, 24), label="pages") for _ in windows)
    chunk = data.draw(st.integers(1, 40), label="chunk")
    beside = data.draw(st.none() | st.integers(1, 40), label="beside")
    running = data.draw(st.integers(1, 6), label="running")
    rows = data.draw(st.integers(running, 12), label="rows")
    tokens = data.draw(st.integers(running, 48), label="tokens")
    backend = HashBackend(pages=pages, max_tokens=tokens, max_rows=rows, windows=windows)
    scheduler = Scheduler(pages, groups=backend.plan.groups, context=96, max_running=running, max_tokens=tokens, max_rows=rows,
                          chunk=chunk, beside=beside)
    wanted = {sequence(p, seed=i, priority=priority, scored=0 if scored else -1): min(n, 96 - len(p))
              for i, (p, n, priority, scored) in enumerate(jobs)}
    seen = run_all(scheduler, backend, wanted)
    for i, (s, n) in enumerate(wanted.items()):
        assert s.tokens[s.prompt :] == expected(s.tokens[: s.prompt], n, seed=i, windows=windows)
        if s.scored >= 0:
            rows_of = [f.first + k for step in seen for f in step.flagged if f.sequence is s for k in range(f.scores)]
            assert rows_of == list(range(s.prompt - 1))


class Machine(RuleBasedStateMachine):
    """Add, step, cancel in any order; small pools, so that preemption is daily business."""

    windows: tuple[int, ...] = (0,)
    pages: tuple[int, ...] = (9,)

    def __init__(self) -> None:
        super().__init__()
        self.backend = HashBackend(pages=self.pages, max_tokens=24, max_rows=6, windows=self.windows)
        self.scheduler = Scheduler(self.pages, groups=self.backend.plan.groups, context=80, max_running=4, max_tokens=24,
                                   max_rows=6, chunk=16, beside=5)
        self.wanted: dict[Sequence, tuple[int, int]] = {}
        self.count = 0

    @rule(prompt=st.lists(TOKENS, min_size=1, max_size=70), answer=st.integers(1, 40), priority=st.integers(-1, 1))
    def add(self, prompt: list[int], answer: int, priority: int) -> None:
        self.count += 1
        s = sequence(prompt, seed=self.count, priority=priority)
        self.scheduler.add(s)
        self.wanted[s] = self.count, min(answer, 80 - len(prompt))

    @rule(count=st.integers(1, 6))
    def step(self, count: int) -> None:
        for _ in range(count):
            if (step := self.scheduler.schedule()) is None:
                assert not self.wanted
                return
            assert len(step.batch.tokens) > 0
            self.backend.run(step.batch)
            self.scheduler.commit(step, self.backend.sampled()["token"])
            for s, _ in step.parts:
                if s.generated == self.wanted[s][1]:
                    self.finish(s)

    def finish(self, s: Sequence) -> None:
        seed, answer = self.wanted.pop(s)
        assert s.tokens[s.prompt :] == expected(s.tokens[: s.prompt], answer, seed=seed, windows=self.windows)
        self.scheduler.finish(s)

    @precondition(lambda self: self.wanted)
    @rule(which=st.integers(0, 99))
    def cancel(self, which: int) -> None:
        s = list(self.wanted)[which % len(self.wanted)]
        del self.wanted[s]
        self.scheduler.finish(s)
        self.scheduler.finish(s)
        assert s.seat < 0 and not s.tables

    @invariant()
    def holds_together(self) -> None:
        self.scheduler.check()
        assert len(self.scheduler.running) + len(self.scheduler.waiting) == len(self.wanted)

    def teardown(self) -> None:
        for _ in range(2000):
            if not self.wanted:
                break
            self.step(1)
        assert not self.wanted and self.scheduler.pages_used == 0


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=40, stateful_step_count=25)


class WindowedMachine(Machine):
    """The same with a group whose pages are given back behind a window, and too few of them for everybody."""

    windows, pages = (0, 19), (12, 7)


TestWindowedMachine = WindowedMachine.TestCase
TestWindowedMachine.settings = settings(max_examples=40, stateful_step_count=25)


@pytest.mark.parametrize("window, chunk", [(1, 1), (1, 40), (16, 1), (17, 16), (64, 5), (100, 64)])
def test_a_window_holds_no_more_pages_however_long_the_answer(window: int, chunk: int) -> None:
    """And no fewer than it may come to need: a pool of exactly that many is never short, and all of it is used."""
    span = Span(window, chunk)
    backend = HashBackend(pages=2 * span.most(4096), max_rows=4, max_tokens=64, windows=(window,))
    scheduler = Scheduler(backend.pages, groups=backend.plan.groups, context=4096, max_running=2, max_tokens=64, max_rows=4,
                          chunk=chunk)
    assert scheduler.context == 4096
    wanted = {sequence([3] * 333, seed=1): 400, sequence([5] * 37, seed=2): 300}
    for s in wanted:
        scheduler.add(s)
    most = 0
    for step in steps(scheduler, backend):
        most = max(most, *(sum(page >= 0 for page in s.tables[0]) for s, _ in step.parts))
        for s, _ in step.parts:
            if s.generated == wanted[s]:
                scheduler.finish(s)
    assert scheduler.preemptions == 0 and scheduler.pages_used == 0 and span.most(4096) - 1 <= most <= span.most(4096)
    assert all(s.tokens[s.prompt :] == expected(s.tokens[: s.prompt], n, seed=i, windows=(window,))
               for i, (s, n) in enumerate(wanted.items(), 1))


def test_continuous_batching_takes_fifteen_iterations() -> None:
    lengths = [3, 8, 2, 10, 4, 6, 5, 7]
    scheduler = Scheduler((64,), context=64, max_running=4, max_tokens=64, max_rows=4)
    sequences = [sequence([i]) for i in range(8)]
    seen = run_all(scheduler, HashBackend(), dict(zip(sequences, lengths, strict=True)))
    assert len(seen) == 15 and sum(lengths) / (4 * 15) == 0.75
    entered = {sequences.index(s): i for i, step in enumerate(seen, 1) for s in step.admitted}
    assert entered == {0: 1, 1: 1, 2: 1, 3: 1, 4: 3, 5: 4, 6: 7, 7: 9}


def test_a_long_prompt_in_chunks_beside_decodes() -> None:
    scheduler = Scheduler((400,), context=5000, max_running=8, max_tokens=520, max_rows=8, chunk=512)
    backend = HashBackend(pages=400, max_tokens=520, max_rows=8)
    short = [sequence([i]) for i in range(3)]
    wanted = dict.fromkeys(short, 12)
    for s in short:
        scheduler.add(s)
    long = sequence([7] * 4096)
    wanted[long] = 1
    chunks = []
    for i, step in enumerate(steps(scheduler, backend)):
        if i == 1:
            scheduler.add(long)
        parts = dict(step.parts)
        if long in parts:
            chunks.append(parts[long])
            assert all(parts[s] == 1 for s in short if s.seat >= 0), "every running sequence gets a token each step"
        for s in parts:
            if s.generated == wanted[s]:
                scheduler.finish(s)
    assert chunks == [512] * 8


@given(st.data())
@settings(max_examples=60)
def test_every_step_serves_answers_and_prompts(data: st.DataObject) -> None:
    """Prompts arrive at any steps. Each step gives every decoding sequence its token and those with seats their whole budget,
    first come first: so where there are seats for all, a prompt is read within as many steps as budgets fit into it and those
    before it, however long answers are."""
    jobs = data.draw(st.lists(st.tuples(st.integers(0, 30), st.integers(2, 90), st.integers(1, 40)), min_size=1, max_size=8),
                     label="arrival, prompt, answer")
    chunk, beside = data.draw(st.integers(1, 60), label="chunk"), data.draw(st.integers(1, 60), label="beside")
    tokens, seats = data.draw(st.integers(8, 80), label="tokens"), data.draw(st.integers(1, 8), label="seats")
    scheduler = Scheduler((80,), context=160, max_running=seats, max_tokens=tokens, max_rows=8, chunk=chunk, beside=beside)
    backend = HashBackend(pages=80, max_tokens=tokens, max_rows=8)
    least = min(chunk, beside, tokens - 7)
    due: dict[Sequence, int] = {}
    wanted = {sequence([i] * prompt, seed=i): answer for i, (_, prompt, answer) in enumerate(jobs)}
    left = sorted(zip((at for at, _, _ in jobs), wanted, strict=True), key=lambda job: job[0])
    for now in range(2000):
        while left and left[0][0] <= now:
            scheduler.add(s := left.pop(0)[1])
            unread = sum(other.prompt - other.computed for other in (*scheduler.running, *scheduler.waiting) if not other.generated)
            due[s] = now - -unread // least
        decoding = [s for s in scheduler.running if len(s.tokens) - s.computed == 1]
        if (step := scheduler.schedule()) is None:
            if not left:
                break
            continue
        scheduler.check()
        parts = dict(step.parts)
        assert all(parts.pop(s) == 1 for s in decoding), "every running sequence gets a token each step"
        budget = min(chunk, tokens - len(decoding))
        if decoding:
            budget = min(budget, max(beside, min(seats, len(scheduler.running) + len(scheduler.waiting))))
        missing = sum(s.prompt - s.computed for s in scheduler.running if s not in decoding)
        assert sum(parts.values()) == min(budget, missing), "a budget is kept, and used"
        backend.run(step.batch)
        scheduler.commit(step, backend.sampled()["token"])
        assert seats < len(jobs) or all(s.generated or now + 1 < end for s, end in due.items()), "a prompt starves"
        for s in list(scheduler.running):
            if s.generated == wanted[s]:
                scheduler.finish(s)
    assert not scheduler.running and not scheduler.waiting and not scheduler.preemptions
    for i, (s, answer) in enumerate(wanted.items()):
        assert s.tokens[s.prompt :] == expected(s.tokens[: s.prompt], answer, seed=i)


@pytest.mark.parametrize("decodes, beside, chunk", [(0, 8, 512), (1, 8, 512), (7, 8, 512), (8, 8, 512), (31, 8, 512),
                                                    (31, 64, 512), (3, 512, 512), (20, 16, 10), (5, 600, 512)])
def test_a_long_prompt_beside_so_many_answers(decodes: int, beside: int, chunk: int) -> None:
    """Alone a prompt is read by `chunk`, beside answers by `beside` or as many tokens as there are sequences: twice the step."""
    scheduler = Scheduler((600,), context=5000, max_running=32, max_tokens=544, max_rows=32, chunk=chunk, beside=beside)
    backend = HashBackend(pages=600, max_tokens=544, max_rows=32)
    for i in range(decodes):
        scheduler.add(sequence([i]))
    if decodes:
        next(steps(scheduler, backend))
    scheduler.add(long := sequence([7] * 4096))
    chunks = [dict(step.parts)[long] for _, step in zip(range(8), steps(scheduler, backend), strict=False)]
    assert chunks == [min(chunk, max(beside, decodes + 1) if decodes else chunk)] * 8
    assert long.generated == int(sum(chunks) == 4096)
    scheduler.check()


def test_prompts_are_read_faster_as_a_line_forms() -> None:
    """One answers, and one after another gets in line: a token more a step for each, until they are as many as seats."""
    scheduler = Scheduler((600,), context=5000, max_running=12, max_tokens=100, max_rows=12, beside=4)
    backend = HashBackend(pages=600, max_tokens=100, max_rows=12)
    scheduler.add(first := sequence([0]))
    seen = []
    for now, step in zip(range(16), steps(scheduler, backend), strict=False):
        scheduler.add(sequence([now] * 400))
        seen.append(sum(n for s, n in step.parts if s is not first))
    assert first.generated == 16 and seen == [0, 4, 4, 4, 5, 6, 7, 8, 9, 10, 11, 12, 12, 12, 12, 12]


def test_preemption_takes_the_youngest_and_changes_nothing() -> None:
    scheduler = Scheduler((4,), context=64, max_running=2, max_tokens=64, max_rows=4)
    old, young = sequence([1] * 20, seed=1), sequence([2] * 10, seed=2)
    seen = run_all(scheduler, HashBackend(pages=4), {old: 40, young: 30})
    assert scheduler.preemptions and {s for step in seen for s in step.preempted} == {young} and young.preemptions
    assert old.tokens[20:] == expected([1] * 20, 40, seed=1) and young.tokens[10:] == expected([2] * 10, 30, seed=2)
    again = next(step for step in seen for s in step.admitted if s is young and s.preemptions)
    i = [s for s, _ in again.parts].index(young)
    roles = again.batch.roles[again.batch.starts[i] : again.batch.starts[i + 1]]
    assert roles.tolist() == [0] * 10 + [1] * (len(roles) - 10), "recomputed tokens keep their roles"


def test_pages_exhausted_with_every_sequence_growing() -> None:
    scheduler = Scheduler((5,), context=80, max_running=4, max_tokens=64, max_rows=4)
    wanted = {sequence([i], seed=i): 79 for i in range(4)}
    run_all(scheduler, HashBackend(pages=5), wanted)
    assert all(s.tokens[1:] == expected([i], 79, seed=i) for i, s in enumerate(wanted))


def test_a_prompt_larger_than_the_pool_is_refused() -> None:
    scheduler = Scheduler((2,), context=4096, max_running=4, max_tokens=64, max_rows=4)
    assert scheduler.context == 32
    with pytest.raises(ContextLengthExceeded, match="32 tokens.*hold 32.*31 or fewer"):
        scheduler.add(sequence([1] * 32))
    run_all(scheduler, HashBackend(pages=2), {sequence([1] * 31): 1})


def test_higher_priority_goes_first() -> None:
    scheduler = Scheduler((64,), context=64, max_running=1, max_tokens=64, max_rows=4)
    low, high, low2 = sequence([1]), sequence([2], priority=1), sequence([3])
    seen = run_all(scheduler, HashBackend(), {low: 2, high: 2, low2: 2})
    assert [s for step in seen for s in step.admitted] == [high, low, low2]
