"""A stream's outbox: nothing lost, nothing reordered, bounded, and a message only when there is something to say."""
import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from pyruntime.engine.events import Delta, Done, PrefillProgress, Started
from pyruntime.server.outbox import MAX_PIECE_BYTES, Outbox, Piece
from pyruntime.types import Completion, FinishReason, Timings, TokenLogprob, Usage

TEXTS = st.sampled_from(["", "a", "bc", "é", "日本", "🦜", " word", "\n"])


def done(text="", ids=()):
    return Done(Completion(text, tuple(ids), FinishReason.END, None, Usage(1, len(ids)), Timings()))


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@st.composite
def histories(draw):
    """A few candidates' deltas interleaved, with reads and passing time in between."""
    n = draw(st.integers(1, 4))
    acts = []
    alive = set(range(n))
    for _ in range(draw(st.integers(0, 60))):
        if not alive:
            break
        candidate = draw(st.sampled_from(sorted(alive)))
        kind = draw(st.integers(0, 9))
        if kind <= 5:
            ids = tuple(draw(st.lists(st.integers(0, 9), max_size=3)))
            acts.append(("delta", candidate, Delta(draw(TEXTS), ids, tuple(TokenLogprob(i, -1.0, 1, ((i, -1.0),)) for i in ids))))
        elif kind <= 7:
            acts.append(("read", draw(st.integers(1, 5)), None))
        elif kind == 8:
            acts.append(("wait", draw(st.floats(0, 2)), None))
        else:
            alive.discard(candidate)
            acts.append(("done", candidate, done()))
    return n, acts + [("done", c, done()) for c in sorted(alive)]


@settings(max_examples=150, deadline=None)
@given(histories(), st.integers(0, 20), st.sampled_from([None, 0.0, 0.5]), st.booleans(), st.integers(1, 6), st.integers(1, 80))
def test_messages_joined_are_the_deltas_joined(history, tokens, delay, bare, max_events, max_bytes):
    n, acts = history
    clock = Clock()
    box = Outbox(tokens, delay, bare=bare, max_events=max_events, max_bytes=max_bytes, clock=clock)
    sent, out = [], []
    for kind, a, b in acts:
        if kind == "read":
            for _ in range(a):
                out.append(box.pop())
        elif kind == "wait":
            clock.now += a
        else:
            box.put(a, b)
            if kind == "delta":
                sent.append((a, b))
    while (item := box.pop()) is not None:
        out.append(item)
    out = [item for item in out if item is not None]
    assert box.bytes == 0
    for c in range(n):
        pieces = [x for x in out if isinstance(x, Piece) and x.candidate == c]
        deltas = [d for who, d in sent if who == c]
        assert "".join(p.text for p in pieces) == "".join(d.text for d in deltas)
        assert [i for p in pieces for i in p.token_ids] == [i for d in deltas for i in d.token_ids]
        assert [i for p in pieces for i in p.logprobs] == [i for d in deltas for i in d.logprobs]
        places = [i for i, x in enumerate(out) if x == (c, done())]
        assert len(places) == 1
        assert all(i < places[0] for i, x in enumerate(out) if isinstance(x, Piece) and x.candidate == c)
        for piece in pieces[:-1]:
            assert bare or piece.text
            if delay is None:
                assert len(piece.token_ids) >= min(tokens, 1)


@given(st.integers(1, 8), st.integers(1, 400))
def test_an_unread_stream_of_short_deltas_stays_bounded(candidates, steps):
    box = Outbox(max_events=16)
    for i in range(steps):
        for c in range(candidates):
            box.put(c, Delta("x", (i,)))
    assert len(box.queue) <= 16 + candidates


def test_a_long_unread_answer_merges_into_few_bounded_messages():
    box = Outbox()
    for i in range(100_000):
        box.put(0, Delta("word ", (i,)))
    assert len(box.queue) <= 256 + 100_000 * 10 // MAX_PIECE_BYTES + 1
    pieces = list(iter(box.pop, None))
    assert all(p.size <= MAX_PIECE_BYTES for p in pieces)
    assert "".join(p.text for p in pieces) == "word " * 100_000


def test_the_reader_that_keeps_up_gets_every_step():
    box = Outbox()
    for i in range(1000):
        box.put(0, Delta("x", (i,)))
        assert box.pop().token_ids == [i]


def test_tokens_per_message_counts_tokens_and_the_last_message_is_the_rest():
    box = Outbox(4)
    for i in range(10):
        box.put(0, Delta("x", (i,)))
    box.put(0, done())
    assert [len(p.token_ids) for p in iter(box.pop, None) if isinstance(p, Piece)] == [4, 4, 2]


def test_progress_is_told_only_if_wanted_and_merges_when_nobody_reads():
    for wanted in (False, True):
        box = Outbox(progress=wanted, max_events=4)
        box.put(0, Started(9, 0))
        for i in range(9):
            box.put(0, PrefillProgress(i + 1, 9))
        items = list(iter(box.pop, None))
        assert items[0] == Started(9, 0) and items[1:] == items[1:4] * wanted
        assert not wanted or items[-1] == PrefillProgress(9, 9)


def test_a_held_delta_goes_out_when_its_delay_is_over():
    async def check():
        box = Outbox(1000, 0.01)
        box.put(0, Delta("x", (1,)))
        assert box.pop() is None
        assert (await asyncio.wait_for(box.get(), 5)).text == "x"
        reader = asyncio.create_task(box.get())
        await asyncio.sleep(0)
        box.put(0, Delta("y", (2,)))
        assert (await asyncio.wait_for(reader, 5)).text == "y"
        reader = asyncio.create_task(box.get())
        await asyncio.sleep(0)
        reader.cancel()
        await asyncio.wait([reader])
        box.put(0, done())
        assert await asyncio.wait_for(box.get(), 5) == (0, done())

    asyncio.run(check())
