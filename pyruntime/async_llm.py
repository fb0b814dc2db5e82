"""`AsyncLLM`: an `LLM` for asyncio. A module of its own, since whoever needs no event loop should not wait for one."""
from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Sequence
from itertools import count
from typing import Any

from .engine.engine import Engine, Handle, Stats
from .engine.events import Done, Events, Failed
from .engine.loop import LoopSink
from .llm import LLM, Ids, Message, Params, Prompt, merge_events
from .loading import Model
from .types import Completion, Delta, SamplingParams


class AsyncLLM:
    """LLM for asyncio: the same methods, awaited; `stream` gives an async iterator. The event loop never computes.

    `await AsyncLLM.load(model, **options)` loads beside the loop; `AsyncLLM(model, **options)` loads at once, and an LLM
    given as `model` is shared."""

    def __init__(self, model: str | os.PathLike[str] | Model | LLM, **options: Any) -> None:
        self.llm = model if isinstance(model, LLM) else LLM(model, **options)
        self.engine, self.tokenizer, self.model = self.llm.engine, self.llm.tokenizer, self.llm.model
        self._sink: _Queues | None = None

    @classmethod
    async def load(cls, model: str | os.PathLike[str] | Model, **options: Any) -> AsyncLLM:
        """Load in a thread."""
        return cls(await asyncio.to_thread(LLM, model, **options))

    async def generate(self, prompts, params: Params = None, *, truncate: bool = False, **fields: Any):
        """As LLM.generate. Cancelling the task cancels the requests."""
        requests, single = self.llm._raw(prompts, params, truncate, fields)
        answers = await self._complete(requests)
        return answers[0] if single else answers

    async def chat(self, messages, params: Params = None, *, truncate: bool = False, **fields: Any):
        """As LLM.chat."""
        requests, single = self.llm._conversations(messages, params, truncate, fields)
        answers = await self._complete(requests)
        return answers[0] if single else answers

    async def stream(self, prompt: Prompt | Sequence[Message], params: SamplingParams | None = None, *, truncate: bool = False,
                     **fields: Any) -> AsyncIterator[Delta]:
        """As LLM.stream. Cancelled by `aclose()`, by cancelling the task, or by leaving the loop and dropping it."""
        ids, made = self.llm._one(prompt, params, truncate, fields)
        ready: deque[Delta] = deque()
        over = False
        with self._listening() as submit:
            queue = submit(ids, made)
            while not over:
                over = merge_events(await queue.get(), ready)
                while ready:
                    yield ready.popleft()

    async def tokenize(self, text: str, *, add_special: bool | None = None, allow_special: bool = False) -> list[int]:
        """As LLM.tokenize."""
        return await asyncio.to_thread(self.llm.tokenize, text, add_special=add_special, allow_special=allow_special)

    async def detokenize(self, ids: Ids, *, skip_special: bool = False) -> str:
        """As LLM.detokenize."""
        return self.llm.detokenize(ids, skip_special=skip_special)

    @property
    def context(self) -> int:
        """Most tokens of prompt and answer together."""
        return self.llm.context

    def stats(self) -> Stats:
        """What the engine is doing."""
        return self.llm.stats()

    async def close(self) -> None:
        """As LLM.close, beside the loop."""
        await asyncio.to_thread(self.llm.close)

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _listening(self) -> _Listening:
        loop = asyncio.get_running_loop()
        if self._sink is None or self._sink.loop is not loop:
            self._sink = _Queues(loop)
        return _Listening(self.engine, self._sink)

    async def _complete(self, requests: list[tuple[list[int], SamplingParams]]) -> list[Completion]:
        with self._listening() as submit:
            room = asyncio.Semaphore(self.engine.max_running + self.engine.max_waiting)

            async def answer(ids: list[int], params: SamplingParams) -> Completion:
                async with room:
                    queue = submit(ids, params)
                    while True:
                        for _, _, event in await queue.get():
                            if isinstance(event, Failed):
                                raise event.error
                            if isinstance(event, Done):
                                return event.completion

            tasks = [asyncio.ensure_future(answer(ids, params)) for ids, params in requests]
            try:
                return list(await asyncio.gather(*tasks))
            finally:
                for task in tasks:
                    task.cancel()


class _Queues(LoopSink):
    """Events of all of a loop's requests: one hand-over per step, then each to the queue of its request."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop, self._part)
        self.queues: dict[str, asyncio.Queue[Events]] = {}

    def _part(self, events: Events) -> None:
        parted: dict[str, Events] = {}
        for event in events:
            parted.setdefault(event[0], []).append(event)
        for request_id, own in parted.items():
            if request_id in self.queues:
                self.queues[request_id].put_nowait(own)


class _Listening:
    """While open, `submit` puts requests in line and gives their queues; at the end those unfinished are cancelled."""

    _ids = count(1)

    def __init__(self, engine: Engine, sink: _Queues) -> None:
        self._engine, self._sink = engine, sink
        self._handles: list[Handle] = []

    def __enter__(self):
        return self._submit

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            del self._sink.queues[handle.request_id]
            handle.cancel()

    def _submit(self, ids: list[int], params: SamplingParams) -> asyncio.Queue[Events]:
        request_id = f"a{next(self._ids)}"
        queue = self._sink.queues[request_id] = asyncio.Queue()
        try:
            self._handles.append(self._engine.submit(ids, params, sink=self._sink, request_id=request_id))
        except BaseException:
            del self._sink.queues[request_id]
            raise
        return queue
