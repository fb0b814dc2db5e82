"""From the engine's thread to an event loop, without waiting for it."""
from __future__ import annotations

import asyncio
import ctypes
import os
import weakref
from collections import deque
from collections.abc import Callable

from .events import Events

#: Wakes whoever reads an eventfd. A PyDLL keeps the GIL, which os.eventfd_write and call_soon_threadsafe let go of.
_ring = ctypes.PyDLL(None).eventfd_write
_ring.argtypes = (ctypes.c_int, ctypes.c_uint64)


class LoopSink:
    """A sink whose events `deliver` gets on the event loop; made there, and of as many requests as one likes.

    The hand-over keeps the GIL. An engine that let go of it here would find it taken by the loop, which has all of the
    step's messages to write, and begin its next step only after them; so the loop's turn comes while that step computes.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, deliver: Callable[[Events], None]) -> None:
        self.loop = loop
        self._deliver = deliver
        self._handed: deque[Events] = deque()
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK | os.EFD_SEMAPHORE)    # counts: one reading for each step
        loop.add_reader(self._bell, self._take)
        weakref.finalize(self, os.close, self._bell)    # the loop holds this sink as long as it listens to the bell

    def put(self, events: Events) -> None:
        """A step's events, on the engine's thread. A loop that is closed hears nothing: who asked there is gone."""
        if not self.loop.is_closed():
            self._handed.append(events)
            _ring(self._bell, 1)

    def _take(self) -> None:
        os.eventfd_read(self._bell)
        self._deliver(self._handed.popleft())
