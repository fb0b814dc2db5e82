"""The engine over a backend that hashes its pages: events, stop conditions, cancellation, failure, drain, the queue."""
from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from queue import Queue
from typing import Any

import numpy as np
import pytest
from hash_backend import VOCAB, HashBackend, expected
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import tiny_tokenizer

from pyruntime.engine.engine import Engine, Handle
from pyruntime.engine.events import Delta, Done, Event, Failed, PrefillProgress, Started
from pyruntime.errors import ContextLengthExceeded, EngineFailed, FieldInvalid, PyruntimeError, QueueFull
from pyruntime.types import Completion, FinishReason, SamplingParams

TOKENIZER = tiny_tokenizer()
WAIT = 60.0
assert TOKENIZER.vocab_size <= VOCAB


class Sink:
    """Collects events; `done(id)` waits for all of a request's candidates to end."""

    def __init__(self) -> None:
        self.queue: Queue[list[tuple[str, int, Event]]] = Queue()
        self.events: dict[str, list[tuple[int, Event]]] = defaultdict(list)
        self.puts = 0

    def put(self, events: list[tuple[str, int, Event]]) -> None:
        self.queue.put(events)

    def wait(self, *handles: Handle, n: int = 1) -> None:
        while any(sum(isinstance(e, (Done, Failed)) for _, e in self.events[h.request_id]) < n for h in handles):
            self.puts += 1
            for request_id, candidate, event in self.queue.get(timeout=WAIT):
                self.events[request_id].append((candidate, event))

    def completion(self, handle: Handle, candidate: int = 0) -> Completion:
        """The answer, after checking the events' order and that deltas add up to it."""
        self.wait(handle, n=candidate + 1)
        events = [e for c, e in self.events[handle.request_id] if c == candidate]
        done = events[-1]
        if isinstance(done, Failed):
            raise done.error
        assert isinstance(done, Done)
        order = [(Started, PrefillProgress, Delta, Done).index(type(e)) for e in events]
        assert order == sorted(order) and order.count(3) == 1 and order.count(0) <= 1
        deltas = [e for e in events if isinstance(e, Delta)]
        c = done.completion
        assert "".join(d.text for d in deltas) == c.text
        assert tuple(t for d in deltas for t in d.token_ids) == c.token_ids
        assert c.usage.output_tokens == len(c.token_ids) and c.usage.prompt_tokens == len(c.prompt_token_ids)
        return c


@contextlib.contextmanager
def engine_over(backend: HashBackend | None = None, **options: Any) -> Iterator[Engine]:
    """An engine that must end with every page free and its backend closed."""
    engine = Engine(backend or HashBackend(), TOKENIZER, **options)
    try:
        yield engine
    finally:
        engine.close()
        engine.scheduler.check()
        assert engine.scheduler.pages_used == 0 and engine.backend.closed and not engine._thread.is_alive()


def greedy(**fields: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0.0, "seed": 0, "ignore_end": True, **fields})


@given(st.data())
@settings(max_examples=30)
def test_many_at_once_answer_like_plain_lists(data: st.DataObject) -> None:
    jobs = data.draw(st.lists(st.tuples(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=70), st.integers(1, 40)),
                              min_size=1, max_size=12))
    backend = HashBackend(pages=data.draw(st.integers(8, 20)), context=120)
    sink = Sink()
    with engine_over(backend, max_running=data.draw(st.integers(1, 6)), chunk=data.draw(st.integers(1, 40)),
                     chunk_beside=data.draw(st.integers(1, 40))) as engine:
        handles = [engine.submit(p, greedy(max_tokens=n, seed=i), sink=sink) for i, (p, n) in enumerate(jobs)]
        for i, ((prompt, n), handle) in enumerate(zip(jobs, handles, strict=True)):
            answer = sink.completion(handle)
            room = min(n, 120 - len(prompt))
            assert list(answer.token_ids) == expected(prompt, room, seed=i)
            assert answer.finish_reason == (FinishReason.LENGTH if room == n else FinishReason.CONTEXT)
            assert handle.done


def test_events_of_one_request_in_order() -> None:
    sink = Sink()
    with engine_over(chunk=8) as engine:
        handle = engine.submit([5] * 20, greedy(max_tokens=3), sink=sink, request_id="mine")
        sink.completion(handle)
    kinds = [e for _, e in sink.events["mine"]]
    assert kinds[:4] == [Started(20, 0), PrefillProgress(8, 20), PrefillProgress(16, 20), PrefillProgress(20, 20)]
    assert [type(e) for e in kinds[4:]] == [Delta, Delta, Delta, Done]


def test_a_prompt_is_read_in_short_chunks_beside_an_answer() -> None:
    """The second request arrives during step 2, while the first is being answered; when that ends, chunks are long again."""
    backend, sink, handles = HashBackend(), Sink(), []

    def before(step: int) -> None:
        if step == 2:
            handles.append(engine.submit([6] * 60, greedy(max_tokens=2), sink=sink))

    backend.before = before
    with engine_over(backend, chunk=16, chunk_beside=5) as engine:
        first = engine.submit([5] * 20, greedy(max_tokens=8), sink=sink)   # two chunks of the prompt, then seven decodes
        assert list(sink.completion(first).token_ids) == expected([5] * 20, 8)
        assert list(sink.completion(handles[0]).token_ids) == expected([6] * 60, 2)
    done = [e.done for _, e in sink.events[handles[0].request_id] if isinstance(e, PrefillProgress)]
    assert done == [5, 10, 15, 20, 25, 30, 46, 60]


def test_prompt_logprobs_come_with_started() -> None:
    """All logits of this backend are equal: every token has probability 1 / vocabulary, and rank 1."""
    sink, backend = Sink(), HashBackend(max_rows=6)
    with engine_over(backend, max_running=2) as engine:
        other = engine.submit([8] * 3, greedy(max_tokens=30), sink=sink)
        handle = engine.submit(list(range(20, 60)), greedy(max_tokens=3, prompt_logprobs=True), sink=sink)
        c = sink.completion(handle)
        assert list(sink.completion(other).token_ids) == expected([8] * 3, 30)
    kinds = [e for _, e in sink.events[handle.request_id]]
    assert [type(e) for e in kinds] == [Started, Delta, Delta, Delta, Done] and kinds[0].prompt_logprobs == c.prompt_logprobs
    assert [t.token_id for t in c.prompt_logprobs] == list(range(20, 60)) and c.prompt_logprobs[0].logprob is None
    assert all(t.logprob == pytest.approx(-np.log(VOCAB)) and t.rank == 1 for t in c.prompt_logprobs[1:])
    assert list(c.token_ids) == expected(list(range(20, 60)), 3)


def test_one_hand_over_per_step_and_sink() -> None:
    backend, sink = HashBackend(), Sink()
    ready = threading.Event()
    backend.before = lambda step: ready.wait(WAIT) and None
    with engine_over(backend, max_running=4) as engine:
        handles = [engine.submit([i], greedy(max_tokens=6), sink=sink) for i in range(4)]
        ready.set()
        sink.wait(*handles)
        assert backend.steps <= 8 and sink.puts == backend.steps


def test_candidates_differ_by_their_number_only() -> None:
    sink = Sink()
    with engine_over() as engine:
        handle = engine.submit([1, 2, 3], greedy(max_tokens=9, seed=7), sink=sink, n=3)
        sink.wait(handle, n=3)
    for candidate in range(3):
        assert list(sink.completion(handle, candidate).token_ids) == expected([1, 2, 3], 9, seed=7, candidate=candidate)
    assert sum(isinstance(e, Started) for _, e in sink.events[handle.request_id]) == 1


def test_without_a_seed_two_answers_differ() -> None:
    sink = Sink()
    with engine_over() as engine:
        params = SamplingParams(max_tokens=12, ignore_end=True)
        a, b = (sink.completion(engine.submit([1], params, sink=sink)) for _ in range(2))
    assert a.token_ids != b.token_ids


# ---- stopping ----


def test_end_token_stop_token_and_ignoring_the_end() -> None:
    sink = Sink()
    end = TOKENIZER.end_ids[0]
    with engine_over() as engine:
        only_end = SamplingParams(allowed_token_ids=(end,), max_tokens=5)
        c = sink.completion(engine.submit([9], only_end, sink=sink))
        assert (c.finish_reason, c.token_ids, c.text) == (FinishReason.END, (end,), "")
        ignoring = SamplingParams(allowed_token_ids=(end,), max_tokens=5, ignore_end=True)
        c = sink.completion(engine.submit([9], ignoring, sink=sink))
        assert (c.finish_reason, c.token_ids) == (FinishReason.LENGTH, (end,) * 5)
        for include in (False, True):
            stop = SamplingParams(allowed_token_ids=(40,), stop_token_ids=(40,), max_tokens=5, include_stop=include)
            c = sink.completion(engine.submit([9], stop, sink=sink))
            assert (c.finish_reason, c.matched, c.text) == (FinishReason.STOP_TOKEN, 40, TOKENIZER.decode([40]) * include)


def test_min_tokens_holds_back_end_and_stop_tokens() -> None:
    sink = Sink()
    end = TOKENIZER.end_ids[0]
    with engine_over() as engine:
        params = SamplingParams(allowed_token_ids=(end, 50, 60), stop_token_ids=(50,), min_tokens=6, max_tokens=40, seed=3)
        c = sink.completion(engine.submit([9], params, sink=sink))
        assert c.token_ids[:6] == (60,) * 6 and c.token_ids[-1] in (end, 50) and set(c.token_ids[6:-1]) <= {60}
        with pytest.raises(FieldInvalid, match="min_tokens") as e:
            engine.submit([9], SamplingParams(allowed_token_ids=(end,), min_tokens=1), sink=sink)
        assert e.value.field == "min_tokens"


@given(st.integers(0, 50), st.data())
@settings(max_examples=25)
def test_stop_strings_cut_where_plain_text_would(seed: int, data: st.DataObject) -> None:
    letters = tuple(TOKENIZER.encode("abcde"))
    params = greedy(max_tokens=40, seed=seed, allowed_token_ids=letters)
    whole = TOKENIZER.decode(expected([9], 40, seed=seed, allowed=list(letters)))
    at = data.draw(st.integers(0, 39))
    stop = whole[at : at + data.draw(st.integers(1, 4))]
    sink = Sink()
    with engine_over() as engine:
        for include in (False, True):
            stopped = greedy(max_tokens=40, seed=seed, allowed_token_ids=letters, stop=(stop, "zzz"), include_stop=include)
            c = sink.completion(engine.submit([9], stopped, sink=sink))
            assert c.text == whole[: whole.index(stop) + len(stop) * include]
            assert (c.finish_reason, c.matched) == (FinishReason.STOP_STRING, stop)
            assert len(c.token_ids) == whole.index(stop) + len(stop)
        assert sink.completion(engine.submit([9], params, sink=sink)).text == whole


def test_time_budget_ends_with_what_there_is() -> None:
    sink, backend = Sink(), HashBackend()
    backend.before = lambda step: time.sleep(0.02)
    with engine_over(backend) as engine:
        c = sink.completion(engine.submit([1], greedy(time_budget=0.2), sink=sink))
        assert c.finish_reason == FinishReason.TIME and 0 < len(c.token_ids) < 255
        assert list(c.token_ids) == expected([1], len(c.token_ids))
        c = sink.completion(engine.submit([1], greedy(time_budget=0.0), sink=sink))
        assert (c.finish_reason, c.token_ids) == (FinishReason.TIME, ())


def test_penalties_read_a_history_beside_the_backend() -> None:
    backend, sink = HashBackend(), Sink()
    with engine_over(backend, max_running=1) as engine:
        c = sink.completion(engine.submit([4, 5], greedy(max_tokens=6, repetition_penalty=1.3), sink=sink))
        # the last token is entered too: the history is complete when the request ends
        assert backend.history[0] == [(4, False), (5, False), *((t, True) for t in c.token_ids)]
        sink.completion(engine.submit([6], greedy(max_tokens=2), sink=sink))
        assert backend.history[0][0] == (4, False), "no penalties, no history"


def test_logit_bias_and_masks_reach_the_batch() -> None:
    seen: list[Any] = []
    backend, sink = HashBackend(), Sink()
    run = backend.run
    backend.run = lambda batch, *a: (seen.append(batch), run(batch, *a))[1]  # type: ignore[method-assign]
    with engine_over(backend) as engine:
        params = greedy(max_tokens=1, logit_bias={3: -2.0, 7: 4.5}, allowed_token_ids=(3, 7))
        sink.completion(engine.submit([1], params, sink=sink))
    batch = seen[0]
    row = batch.sampling[0]
    assert batch.bias_ids[row["bias_first"] :][: row["bias_count"]].tolist() == [3, 7]
    assert batch.bias_values.tolist() == [-2.0, 4.5]
    assert np.flatnonzero(np.unpackbits(batch.masks[row["allowed"]], bitorder="little")).tolist() == [3, 7]


# ---- cancelling ----


@pytest.mark.parametrize("when", range(12))
def test_cancelled_at_any_step_every_page_is_free(when: int) -> None:
    """Step `when` cancels while it runs; 5 prompt chunks come first, then decodes. The neighbour does not notice."""
    backend, sink = HashBackend(), Sink()
    handles: list[Handle] = []
    ready = threading.Event()

    def before(step: int) -> None:
        ready.wait(WAIT)
        if step == when:
            handles[0].cancel()
            handles[0].cancel()

    backend.before = before
    with engine_over(backend, chunk=8) as engine:
        handles.append(engine.submit([3] * 33, greedy(max_tokens=30), sink=sink))
        handles.append(engine.submit([4] * 5, greedy(max_tokens=30), sink=sink))
        ready.set()
        c = sink.completion(handles[0])
        assert c.finish_reason == FinishReason.CANCELLED
        assert list(c.token_ids) == expected([3] * 33, len(c.token_ids)) and len(c.token_ids) <= when + 1
        assert list(sink.completion(handles[1]).token_ids) == expected([4] * 5, 30)
        handles[0].cancel()
        assert engine.scheduler.pages_used == 0


@given(st.data())
@settings(max_examples=25)
def test_cancelling_some_leaves_the_others_as_they_were(data: st.DataObject) -> None:
    """Any of them, at any step, in a pool so small that preemption goes on all the time."""
    jobs = data.draw(st.lists(st.tuples(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=40), st.integers(1, 30)),
                              min_size=2, max_size=6))
    cancels = data.draw(st.dictionaries(st.integers(0, len(jobs) - 1), st.integers(0, 40), max_size=len(jobs) - 1))
    backend, sink = HashBackend(pages=6, context=80), Sink()
    ready = threading.Event()
    handles: list[Handle] = []

    def before(step: int) -> None:
        ready.wait(WAIT)
        for index, when in cancels.items():
            if step == when:
                handles[index].cancel()

    backend.before = before
    with engine_over(backend, max_running=4, chunk=16) as engine:
        handles += [engine.submit(p, greedy(max_tokens=n, seed=i), sink=sink) for i, (p, n) in enumerate(jobs)]
        ready.set()
        for i, ((prompt, n), handle) in enumerate(zip(jobs, handles, strict=True)):
            answer = sink.completion(handle)
            if answer.finish_reason == FinishReason.CANCELLED:
                assert i in cancels
            else:
                assert len(answer.token_ids) == min(n, 80 - len(prompt))
            assert list(answer.token_ids) == expected(prompt, len(answer.token_ids), seed=i)


def test_cancel_while_waiting_and_by_id() -> None:
    backend, sink = HashBackend(), Sink()
    ready = threading.Event()
    backend.before = lambda step: ready.wait(WAIT) and None
    with engine_over(backend, max_running=1) as engine:
        first = engine.submit([1], greedy(max_tokens=4), sink=sink)
        second = engine.submit([2], greedy(max_tokens=4), sink=sink, request_id="two")
        assert engine.cancel("two") and not engine.cancel("nobody")
        ready.set()
        c = sink.completion(second)
        assert (c.finish_reason, c.token_ids, c.text) == (FinishReason.CANCELLED, (), "")
        assert list(sink.completion(first).token_ids) == expected([1], 4)
        assert not engine.cancel("two")


def test_closing_ends_everything_once() -> None:
    sink = Sink()
    with engine_over() as engine:
        handles = [engine.submit([i], greedy(), sink=sink) for i in range(20)]
        engine.close()
        engine.close()
        assert {sink.completion(h).finish_reason for h in handles} <= {FinishReason.CANCELLED, FinishReason.CONTEXT}
        with pytest.raises(EngineFailed, match="closed"):
            engine.submit([1], sink=sink)
        assert not engine.healthy


# ---- the queue, drain, failure ----


def test_a_full_queue_refuses_and_recovers() -> None:
    backend, sink = HashBackend(), Sink()
    ready = threading.Event()
    backend.before = lambda step: ready.wait(WAIT) and None
    with engine_over(backend, max_running=2, max_waiting=3) as engine:
        handles = [engine.submit([i], greedy(max_tokens=3), sink=sink) for i in range(5)]
        with pytest.raises(QueueFull, match="try again"):
            engine.submit([9], sink=sink)
        with pytest.raises(QueueFull):
            engine.submit([9], sink=sink, n=2)
        stats = engine.stats()
        assert stats.running + stats.waiting == 5 and stats.requests <= 5
        ready.set()
        sink.wait(*handles)
        assert list(sink.completion(engine.submit([9], greedy(max_tokens=2), sink=sink)).token_ids) == expected([9], 2)


def test_who_waits_too_long_fails_alone() -> None:
    backend, sink = HashBackend(), Sink()
    backend.before = lambda step: time.sleep(0.01)
    with engine_over(backend, max_running=1) as engine:
        first = engine.submit([1], greedy(max_tokens=20), sink=sink)
        second = engine.submit([2], greedy(max_tokens=1), sink=sink, max_wait=0.02)
        with pytest.raises(PyruntimeError, match="without getting a place") as e:
            sink.completion(second)
        assert e.value.reason == "QUEUE_WAIT_EXCEEDED"
        assert list(sink.completion(first).token_ids) == expected([1], 20)


def test_draining_refuses_and_finishes() -> None:
    sink = Sink()
    with engine_over() as engine:
        handle = engine.submit([1], greedy(max_tokens=20), sink=sink)
        assert engine.drain(WAIT)
        assert list(sink.completion(handle).token_ids) == expected([1], 20)
        with pytest.raises(PyruntimeError, match="draining") as e:
            engine.submit([1], sink=sink)
        assert e.value.reason == "DRAINING"


def test_draining_cuts_at_the_deadline() -> None:
    backend, sink = HashBackend(), Sink()
    backend.before = lambda step: time.sleep(0.01)
    with engine_over(backend, max_running=1) as engine:
        handles = [engine.submit([1], greedy(max_tokens=200), sink=sink) for _ in range(2)]
        assert not engine.drain(0.1)
        a, b = (sink.completion(h) for h in handles)
        assert a.finish_reason == b.finish_reason == FinishReason.DRAINED
        assert list(a.token_ids) == expected([1], len(a.token_ids)) and a.token_ids and not b.token_ids


def test_logits_that_are_not_finite_end_their_request_only() -> None:
    backend, sink = HashBackend(), Sink()
    backend.poison = {13}
    with engine_over(backend) as engine:
        good, bad = (engine.submit([i], greedy(max_tokens=9), sink=sink) for i in (12, 13))
        with pytest.raises(EngineFailed, match="not finite"):
            sink.completion(bad)
        assert list(sink.completion(good).token_ids) == expected([12], 9) and engine.healthy


def test_a_failing_step_fails_its_requests_and_the_engine_recovers() -> None:
    backend, sink = HashBackend(), Sink()

    def before(step: int) -> None:
        if step == 2:
            raise MemoryError("no more")

    backend.before = before
    ready = threading.Event()
    with engine_over(backend, max_running=1) as engine:
        first = engine.submit([1], greedy(max_tokens=9), sink=sink)
        with pytest.raises(EngineFailed, match="MemoryError: no more"):
            sink.completion(first)
        assert not engine.healthy and "no more" in str(engine.failure)
        backend.before = lambda step: ready.wait(WAIT) and None
        second = engine.submit([2], greedy(max_tokens=9), sink=sink)
        ready.set()
        assert list(sink.completion(second).token_ids) == expected([2], 9) and engine.healthy


def test_a_sink_that_raises_loses_its_own_requests_only() -> None:
    class Broken:
        def put(self, events: list[tuple[str, int, Event]]) -> None:
            raise RuntimeError("the loop is closed")

    sink = Sink()
    with engine_over() as engine:
        lost = engine.submit([1], greedy(), sink=Broken())
        assert list(sink.completion(engine.submit([2], greedy(max_tokens=30), sink=sink)).token_ids) == expected([2], 30)
        assert engine.drain(WAIT) and lost.done


def test_idle_it_sleeps_and_its_figures_are_calm() -> None:
    sink = Sink()
    with engine_over() as engine:
        sink.completion(engine.submit([1] * 10, greedy(max_tokens=20), sink=sink))
        before = time.process_time()
        time.sleep(0.3)
        assert time.process_time() - before < 0.15 and engine.last_step_age == 0.0
        stats = engine.stats()
        assert (stats.running, stats.waiting, stats.pages_used, stats.pages_total) == (0, 0, 0, 64)
        assert (stats.prompt_tokens, stats.generated_tokens, stats.requests, stats.steps) == (10, 20, 1, 20)


# ---- bad input ----


@pytest.mark.parametrize(("prompt", "fields", "options", "error", "field"), [
    ([], {}, {}, FieldInvalid, "prompt"),
    ("text", {}, {}, FieldInvalid, "prompt"),
    ([VOCAB], {}, {}, FieldInvalid, "prompt"),
    ([-1], {}, {}, FieldInvalid, "prompt"),
    ([1.5], {}, {}, FieldInvalid, "prompt"),
    ([1, [2]], {}, {}, FieldInvalid, "prompt"),
    ([True], {}, {}, FieldInvalid, "prompt"),
    ([1 << 80], {}, {}, FieldInvalid, "prompt"),
    (np.zeros((2, 2), int), {}, {}, FieldInvalid, "prompt"),
    ([1] * 256, {}, {}, ContextLengthExceeded, "prompt"),
    ([1], {"logit_bias": {VOCAB: 1.0}}, {}, FieldInvalid, "logit_bias"),
    ([1], {"stop_token_ids": (VOCAB,)}, {}, FieldInvalid, "stop_token_ids"),
    ([1], {"allowed_token_ids": (1 << 30,)}, {}, FieldInvalid, "allowed_token_ids"),
    ([1], {}, {"n": 0}, FieldInvalid, "n"),
    ([1], {}, {"n": 17}, FieldInvalid, "n"),
])
def test_bad_requests_are_refused_at_once(prompt: Any, fields: dict, options: dict, error: type, field: str) -> None:
    with engine_over() as engine:
        with pytest.raises(error) as e:
            engine.submit(prompt, SamplingParams(**fields), sink=Sink(), **options)
        assert e.value.field == field and "\n" not in str(e.value)
        assert engine.stats().waiting == 0


def test_one_id_one_request() -> None:
    backend, sink = HashBackend(), Sink()
    ready = threading.Event()
    backend.before = lambda step: ready.wait(WAIT) and None
    with engine_over(backend) as engine:
        engine.submit([1], greedy(max_tokens=2), sink=sink, request_id="a")
        with pytest.raises(FieldInvalid, match="already") as e:
            engine.submit([1], sink=sink, request_id="a")
        assert e.value.field == "request_id"
        ready.set()


def test_the_models_defaults_fill_what_a_request_leaves_open() -> None:
    seen: list[Any] = []
    backend, sink = HashBackend(), Sink()
    run = backend.run
    backend.run = lambda batch, *a: (seen.append(batch.sampling[0].copy()), run(batch, *a))[1]  # type: ignore[method-assign]
    with engine_over(backend, defaults={"temperature": 0.5, "top_k": 40}) as engine:
        sink.completion(engine.submit([1], SamplingParams(max_tokens=1), sink=sink))
        sink.completion(engine.submit([1], SamplingParams(max_tokens=1, temperature=0.0, top_k=0), sink=sink))
    assert [(r["temperature"], r["top_k"], r["top_p"]) for r in seen] == [(0.5, 40, 1.0), (0.0, 0, 1.0)]
    with pytest.raises(FieldInvalid, match="temperature"):
        Engine(HashBackend(), TOKENIZER, defaults={"temperature": -1})
