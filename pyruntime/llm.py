"""`LLM`: a model in this process."""
from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from .engine.engine import Engine, Handle, Stats
from .engine.events import Done, Events, Failed
from .errors import FieldInvalid, QueueFull
from .loading import Model, Progress, open_model
from .types import Completion, Delta, SamplingParams

if TYPE_CHECKING:
    from .async_llm import AsyncLLM

Ids = Sequence[int]
Prompt = str | Ids
Message = Mapping[str, Any]
Params = SamplingParams | Sequence[SamplingParams] | None


class LLM:
    """A loaded model that answers in this process.

    model: a name (`smollm2:135m`), a GGUF file, a Hugging Face folder, or an open Model. Options are those of `loading.open_model`
    and, for the engine, `max_waiting`. Threads may share one LLM; a forked child must make its own.
    """

    def __init__(self, model: str | os.PathLike[str] | Model, *, max_waiting: int = 1024,
                 progress: bool | Progress | None = None, **options: Any) -> None:
        """progress: True shows a bar while loading, False none, None one where stderr is a terminal; or a callable."""
        if not isinstance(model, Model):
            model = open_model(model, progress=progress, **options)
        elif options:
            raise FieldInvalid(f"{', '.join(options)}: this model is open already; give them to open_model")
        self.model = model
        self.tokenizer = model.tokenizer
        self.engine: Engine = model.start(max_waiting=max_waiting)
        self._close = weakref.finalize(self, Engine.close, self.engine)   # also at exit, before threads are torn down

    # ---- answers ----

    @overload
    def generate(self, prompts: str | Sequence[int], params: SamplingParams | None = None, *, truncate: bool = False,
                 **fields: Any) -> Completion: ...
    @overload
    def generate(self, prompts: Sequence[Prompt], params: Params = None, *, truncate: bool = False,
                 **fields: Any) -> list[Completion]: ...

    def generate(self, prompts, params=None, *, truncate=False, **fields):
        """Complete raw prompts: a string or a list of token ids gives a Completion, a list of them a list in order.

        params: one for all or one for each; `fields` are SamplingParams fields set on top (`generate("Hi", max_tokens=8)`).
        A prompt longer than the context is ContextLengthExceeded; with truncate its last tokens are kept, leaving room for
        max_tokens of answer (but no more than half the context)."""
        requests, single = self._raw(prompts, params, truncate, fields)
        answers = self._complete(requests)
        return answers[0] if single else answers

    def chat(self, messages, params: Params = None, *, truncate: bool = False, **fields: Any):
        """Answer a conversation, a list of {"role", "content"}, through the model's chat template; a list of conversations
        gives a list of Completions."""
        requests, single = self._conversations(messages, params, truncate, fields)
        answers = self._complete(requests)
        return answers[0] if single else answers

    def stream(self, prompt: Prompt | Sequence[Message], params: SamplingParams | None = None, *, truncate: bool = False,
               **fields: Any) -> Stream:
        """The answer as it comes: an iterator of Delta whose last one carries the `completion`. Messages go through the chat
        template, a string or ids do not. Closing the iterator, or losing it, cancels."""
        ids, made = self._one(prompt, params, truncate, fields)
        return Stream(self.engine, ids, made)

    # ---- text and tokens ----

    def tokenize(self, text: str, *, add_special: bool | None = None, allow_special: bool = False) -> list[int]:
        """Token ids of `text`. add_special: None = as the model wants it. allow_special: special tokens' texts become them."""
        return self.tokenizer.encode(text, add_special=add_special, allow_special=allow_special)

    def detokenize(self, ids: Ids, *, skip_special: bool = False) -> str:
        """The text of token ids."""
        return self.tokenizer.decode(ids, skip_special=skip_special)

    # ---- the rest ----

    @property
    def context(self) -> int:
        """Most tokens of prompt and answer together."""
        return self.engine.context

    @property
    def aio(self) -> AsyncLLM:
        """The asyncio twin, over the same engine."""
        from .async_llm import AsyncLLM

        return AsyncLLM(self)

    def stats(self) -> Stats:
        """What the engine is doing."""
        return self.engine.stats()

    def close(self) -> None:
        """Cancel what is running, free weights, cache and threads. Again is no error."""
        self._close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _complete(self, requests: list[tuple[list[int], SamplingParams]]) -> list[Completion]:
        """Answers in the order of requests; as many at once as the engine takes."""
        queue: SimpleQueue[Events] = SimpleQueue()
        sink = _QueueSink(queue, ends_only=True)
        answers: list[Completion | None] = [None] * len(requests)
        handles: dict[str, tuple[Handle, int]] = {}
        todo = deque(enumerate(requests))
        try:
            while todo or handles:
                while todo:
                    index, (ids, params) = todo[0]
                    try:
                        handle = self.engine.submit(ids, params, sink=sink)
                    except QueueFull:
                        if not handles:
                            raise
                        break
                    handles[handle.request_id] = handle, index
                    todo.popleft()
                for request_id, _, event in queue.get():
                    if isinstance(event, Failed):
                        raise event.error
                    if isinstance(event, Done):
                        answers[handles.pop(request_id)[1]] = event.completion
        finally:
            for handle, _ in handles.values():
                handle.cancel()
        return answers  # type: ignore[return-value]  # every one is filled when nothing is left to do

    def _raw(self, prompts, params: Params, truncate: bool, fields: dict[str, Any]):
        single = isinstance(prompts, str) or _is_ids(prompts)
        several = [prompts] if single else _listed(prompts, "prompts")
        texts = [self._prompt_ids(p) for p in several]
        return self._paired(texts, params, truncate, fields), single

    def _conversations(self, messages, params: Params, truncate: bool, fields: dict[str, Any]):
        listed = _listed(messages, "messages")
        single = isinstance(listed[0], Mapping)
        texts = [self._chat_ids(m) for m in ([listed] if single else listed)]
        return self._paired(texts, params, truncate, fields), single

    def _one(self, prompt, params: SamplingParams | None, truncate: bool, fields: dict[str, Any]):
        if isinstance(prompt, str) or _is_ids(prompt):
            (one,), _ = self._raw(prompt, params, truncate, fields)
        else:
            (one,), _ = self._conversations(_listed(prompt, "prompt"), params, truncate, fields)
        return one

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            if not prompt:
                raise FieldInvalid("prompt is empty; give some text", field="prompt")
            return self.tokenizer.encode(prompt)
        if not _is_ids(prompt):
            raise FieldInvalid(f"a prompt is text or a list of token ids, not {type(prompt).__name__}", field="prompt")
        return list(prompt)

    def _chat_ids(self, messages: Sequence[Message]) -> list[int]:
        return list(self.tokenizer.encode_chat(_listed(messages, "messages"))[1])

    def _paired(self, prompts: list[list[int]], params: Params, truncate: bool,
                fields: dict[str, Any]) -> list[tuple[list[int], SamplingParams]]:
        if params is None or isinstance(params, SamplingParams):
            each = [params or SamplingParams()] * len(prompts)
        else:
            each = list(params)
        if len(each) != len(prompts):
            raise FieldInvalid(f"{len(each)} params for {len(prompts)} prompts; give one for all or one for each", field="params")
        if fields:
            unknown = [name for name in fields if name not in SamplingParams.__dataclass_fields__]
            if unknown:
                raise FieldInvalid(f"unknown: {', '.join(unknown)}; SamplingParams has "
                                   f"{', '.join(SamplingParams.__dataclass_fields__)}", field=unknown[0])
            each = [replace(p, **fields) for p in each]
        if truncate:
            prompts = [ids[-self._room(p) :] for ids, p in zip(prompts, each, strict=True)]
        return list(zip(prompts, each, strict=True))

    def _room(self, params: SamplingParams) -> int:
        """Prompt tokens that stay when truncation was asked for."""
        return max(self.context - (params.max_tokens or 1), self.context // 2, 1)


class Stream(Iterator[Delta]):
    """One answer as it comes. `close()` or leaving its `with` block cancels; so does dropping it."""

    def __init__(self, engine: Engine, ids: list[int], params: SamplingParams) -> None:
        self._queue: SimpleQueue[Events] = SimpleQueue()
        self._ready: deque[Delta] = deque()
        self._over = False
        self._handle = engine.submit(ids, params, sink=_QueueSink(self._queue))

    def __next__(self) -> Delta:
        while not self._ready and not self._over:
            self._over = merge_events(self._queue.get(), self._ready)
        if not self._ready:
            raise StopIteration
        return self._ready.popleft()

    def close(self) -> None:
        """Cancel; the iterator ends."""
        self._over = True
        self._ready.clear()
        self._handle.cancel()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            self._handle.cancel()


class _QueueSink:
    """Events into a queue that a thread reads. ends_only: just Done and Failed, so that the thread sleeps until then."""

    __slots__ = ("_queue", "_ends_only")

    def __init__(self, queue: SimpleQueue[Events], *, ends_only: bool = False) -> None:
        self._queue, self._ends_only = queue, ends_only

    def put(self, events: Events) -> None:
        if self._ends_only:
            events = [e for e in events if isinstance(e[2], (Done, Failed))]
        if events:
            self._queue.put(events)


def merge_events(events: Events, ready: deque[Delta]) -> bool:
    """Deltas of one request's events onto `ready`, the completion onto the last of them. True at the end."""
    for _, _, event in events:
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Delta):
            ready.append(event)
        elif isinstance(event, Done):
            ready.append(replace(ready.pop() if ready else Delta(""), completion=event.completion))
            return True
    return False


def _is_ids(value: object) -> bool:
    """Whether it looks like token ids: a sequence that begins with a number."""
    if isinstance(value, np.ndarray):
        return value.ndim == 1 and value.dtype.kind in "iu"
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes)) and len(value) > 0 \
        and isinstance(value[0], (int, np.integer))


def _listed(value: object, name: str) -> list:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence) or not value:
        raise FieldInvalid(f"{name} must be a list with something in it", field=name)
    return list(value)
