"""One stream's events on their way to its reader: bounded, in order, deltas merged when the reader is slow.

Lives on the event loop. Nothing of a delta is ever dropped: what merges is the number of messages, not their content.
"""
from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ..engine.events import Delta, Done, Event, Failed, PrefillProgress, Started
from ..types import TokenLogprob

MAX_EVENTS = 256
MAX_BYTES = 256 << 10
MAX_PIECE_BYTES = 256 << 10


@dataclass(slots=True)
class Piece:
    """Consecutive deltas of one candidate, joined into what becomes one message."""

    candidate: int
    born: float
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    size: int = 0

    def add(self, text: str, token_ids, logprobs) -> None:
        """Append; `size` estimates the message's bytes."""
        self.text += text
        self.token_ids += token_ids
        self.logprobs += logprobs
        self.size += len(text.encode()) + 5 * len(token_ids) + sum(32 + 24 * len(p.top) for p in logprobs)


Item = Started | PrefillProgress | Piece | tuple[int, Done] | Failed


class Outbox:
    """Events in, messages out.

    tokens_per_message: a delta waits until it stands for this many tokens; max_delay seconds at most, None = no limit.
    bare: a delta is worth a message without text too (token ids or logprobs were asked for, or text was not).
    Over `max_events` or `max_bytes` waiting, a delta joins the last waiting one of its candidate.
    """

    def __init__(self, tokens_per_message: int = 1, max_delay: float | None = None, *, bare: bool = False,
                 progress: bool = False, max_events: int = MAX_EVENTS, max_bytes: int = MAX_BYTES,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self.tokens_per_message = max(1, tokens_per_message)
        self.max_delay = max_delay
        self.bare = bare
        self.progress = progress
        self.max_events, self.max_bytes = max_events, max_bytes
        self.clock = clock
        self.queue: deque[Item] = deque()
        self.bytes = 0
        self._held: dict[int, Piece] = {}   # per candidate: not yet worth a message
        self._last: dict[int, Piece] = {}   # per candidate: its last piece in the queue
        self._reader: asyncio.Future[None] | None = None

    def put(self, candidate: int, event: Event) -> None:
        """Take one event of the engine."""
        if isinstance(event, Delta):
            self._put_delta(candidate, event)
        elif isinstance(event, Done):
            self._release(candidate)
            self.queue.append((candidate, event))
        elif isinstance(event, PrefillProgress):
            self._put_progress(event)
        else:
            self.queue.append(event)
        self._wake()

    def pop(self) -> Item | None:
        """The next message's content, or None when nothing is due."""
        if not self.queue and (due := self.due()) is not None and due <= self.clock():
            for candidate in [c for c, piece in self._held.items() if self._due(piece) <= self.clock()]:
                self._release(candidate)
        if not self.queue:
            return None
        item = self.queue.popleft()
        if isinstance(item, Piece):
            self.bytes -= item.size
            if self._last.get(item.candidate) is item:
                del self._last[item.candidate]
        return item

    def due(self) -> float | None:
        """When a held delta must go out, by `clock`; None when none must."""
        return min((self._due(p) for p in self._held.values() if self._shows(p)), default=None) \
            if self.max_delay is not None else None

    async def get(self) -> Item:
        """The next message's content, as soon as there is one. One reader only."""
        loop = asyncio.get_running_loop()
        while (item := self.pop()) is None:
            self._reader = loop.create_future()
            due = self.due()
            timer = None if due is None else loop.call_later(max(0.0, due - self.clock()), self._wake)
            try:
                await self._reader
            finally:
                self._reader = None
                if timer is not None:
                    timer.cancel()
        return item

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _put_delta(self, candidate: int, delta: Delta) -> None:
        if not (delta.text or delta.token_ids):
            return
        piece = self._held.get(candidate)
        if piece is None:
            piece = self._held[candidate] = Piece(candidate, self.clock())
        piece.add(delta.text, delta.token_ids, delta.logprobs)
        full = len(piece.token_ids) >= self.tokens_per_message or self._due(piece) <= self.clock()
        if piece.size >= MAX_PIECE_BYTES or (full and self._shows(piece)):
            self._release(candidate)

    def _put_progress(self, event: PrefillProgress) -> None:
        if not self.progress:
            return
        if len(self.queue) >= self.max_events and isinstance(self.queue[-1], PrefillProgress):
            self.queue[-1] = event
        else:
            self.queue.append(event)

    def _release(self, candidate: int) -> None:
        """Move a candidate's held delta into the queue, or into its last one there when there is too much."""
        piece = self._held.pop(candidate, None)
        if piece is None:
            return
        self.bytes += piece.size
        last = self._last.get(candidate)
        crowded = len(self.queue) >= self.max_events or self.bytes > self.max_bytes
        if crowded and last is not None and last.size + piece.size <= MAX_PIECE_BYTES:
            last.add(piece.text, piece.token_ids, piece.logprobs)
        else:
            self.queue.append(piece)
            self._last[candidate] = piece

    def _due(self, piece: Piece) -> float:
        return float("inf") if self.max_delay is None else piece.born + self.max_delay

    def _shows(self, piece: Piece) -> bool:
        return self.bare or bool(piece.text)
