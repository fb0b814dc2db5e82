"""The calls that run: each engine's events find their call here, and a call that goes away frees its pages."""
from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any, TypeVar

from ..engine.events import Event, Events
from ..engine.loop import LoopSink
from ..errors import QueueFull

T = TypeVar("T")
MAX_CALLS = 4096
#: Threads that check, tokenize and render. Most of their time they wait: for a template's process, or for each other.
THREADS = 16
Receiver = Callable[[int, Event], None]


class Call:
    """One running call. `writing`: since when it waits for its reader, by the loop's clock; None = it does not."""

    __slots__ = ("id", "receiver", "handle", "task", "writing", "stalled")

    def __init__(self, id: str, receiver: Receiver) -> None:
        self.id = id
        self.receiver = receiver
        self.handle: Any = None
        self.task = asyncio.current_task()
        self.writing: float | None = None
        self.stalled = False


class Calls:
    """Every running call, the `sink` of every engine, and the threads beside the event loop. All methods belong to the loop."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.sink = LoopSink(self.loop, self._deliver)
        self._calls: dict[str, Call] = {}
        self._ids = count(1)
        self._idle = asyncio.Event()
        self._idle.set()
        self._ending = False
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="pyruntime server")

    def __len__(self) -> int:
        return len(self._calls)

    def beside(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Run `work` in a thread."""
        return self.loop.run_in_executor(self._threads, work)

    def open(self, receiver: Receiver) -> Call:
        """A new call of the running task; its events go to `receiver`. Close it whatever happens."""
        if len(self._calls) >= MAX_CALLS:
            raise QueueFull(f"{MAX_CALLS} calls are open; try again later")
        call = Call(f"c{next(self._ids)}", receiver)
        self._calls[call.id] = call
        self._idle.clear()
        return call

    async def start(self, call: Call, submit: Callable[[], Any]) -> Any:
        """Run `submit` in a thread; it returns something with a `handle`. If the call is cancelled meanwhile, what was
        submitted is cancelled as soon as it exists."""
        work = self.beside(submit)
        try:
            job = await asyncio.shield(work)
        except asyncio.CancelledError:
            work.add_done_callback(_cancel_submitted)
            raise
        call.handle = job.handle
        if self._ending:
            call.handle.drain()
        return job

    def close(self, call: Call) -> None:
        """The call is over: what still runs of it is cancelled."""
        if call.handle is not None and not call.handle.done:
            call.handle.cancel()
        self._calls.pop(call.id, None)
        if not self._calls:
            self._idle.set()

    async def idle(self, timeout: float | None) -> bool:
        """Wait until no call runs; False when `timeout` seconds were not enough."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except asyncio.TimeoutError:
            return False
        return True

    def drain(self) -> None:
        """End every call with the answer it has; also those that are just being submitted."""
        self._ending = True
        for call in self._calls.values():
            if call.handle is not None:
                call.handle.drain()

    def end_stalled(self, timeout: float) -> None:
        """End the calls whose reader has not taken a message for `timeout` seconds."""
        now = self.loop.time()
        for call in list(self._calls.values()):
            if call.writing is not None and now - call.writing > timeout and not call.stalled and call.task:
                call.stalled = True
                call.task.cancel()

    def shut_down(self) -> None:
        """End the threads, without waiting for what they do."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _deliver(self, events: Events) -> None:
        for id, candidate, event in events:
            if (call := self._calls.get(id)) is not None:
                call.receiver(candidate, event)


def _cancel_submitted(work: asyncio.Future[Any]) -> None:
    if not work.cancelled() and work.exception() is None:
        work.result().handle.cancel()
