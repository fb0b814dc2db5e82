"""The hand-over from an engine's thread to an event loop: everything, in order, and without waiting for the loop."""
from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from pyruntime.engine.events import Delta, Events
from pyruntime.engine.loop import LoopSink


def step(i: int) -> Events:
    return [("r", 0, Delta("", (i,)))]


@contextmanager
def listening(deliver: Callable[[Events], None]) -> Iterator[LoopSink]:
    """A sink of an event loop in a thread of its own."""
    loop, made = asyncio.new_event_loop(), []
    ready = threading.Event()
    loop.call_soon(lambda: (made.append(LoopSink(loop, deliver)), ready.set()))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    ready.wait()
    try:
        yield made[0]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def until(held: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not held():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.001)


def test_every_step_arrives_once_and_in_order() -> None:
    seen: list[int] = []
    with listening(lambda events: seen.extend(event.token_ids[0] for _, _, event in events)) as sink:
        for i in range(5000):
            sink.put(step(i))
            if i % 700 == 0:
                time.sleep(0.002)   # the loop falls asleep in between
        until(lambda: len(seen) == 5000)
    assert seen == list(range(5000))


def test_the_engine_keeps_the_gil() -> None:
    """Where nobody is made to let go of the GIL, the loop runs only after the thread that hands over has slept. On one
    processor the loop, once woken, would take its turn in the midst of a hand-over."""
    seen: list[Events] = []
    before, processors = sys.getswitchinterval(), os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(processors)})      # this thread's, and those of threads it starts
    try:
        with listening(seen.append) as sink:
            time.sleep(0.05)                        # the loop waits for the bell
            sys.setswitchinterval(60.0)
            for i in range(20000):
                sink.put(step(i))
                assert not seen, "the loop ran while the engine handed over"
            sys.setswitchinterval(before)
            until(lambda: len(seen) == 20000)
    finally:
        sys.setswitchinterval(before)
        os.sched_setaffinity(0, processors)


def test_a_closed_loop_hears_nothing_and_keeps_no_file() -> None:
    def once() -> None:
        with listening(lambda events: None) as sink:
            pass
        sink.put(step(0))

    once()
    gc.collect()
    files = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        once()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == files


def test_what_a_receiver_raises_stays_on_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Events] = []

    def deliver(events: Events) -> None:
        seen.append(events)
        if len(seen) == 1:
            raise ZeroDivisionError

    with listening(deliver) as sink:
        sink.put(step(0))
        sink.put(step(1))
        sink.put(step(2))
        until(lambda: len(seen) == 3)
    assert "ZeroDivisionError" in caplog.text
