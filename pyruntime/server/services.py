"""The servicers: a message comes in, is checked, becomes an engine request, and events go out as messages.

Nothing here computes: checks, tokenizing and templates run in threads, steps on the engine's own thread.
"""
from __future__ import annotations

import asyncio
import functools
import logging
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import Message

from ..engine.events import Done, Event, Failed, PrefillProgress, Started
from ..errors import EngineFailed, FieldInvalid, PyruntimeError
from ..types import Completion, SamplingParams
from . import convert
from .calls import Call, Calls
from .models import Models, Served
from .outbox import Outbox, Piece
from .pb import (
    admin_pb2,
    admin_pb2_grpc,
    chat_pb2,
    chat_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    tokenizer_pb2,
    tokenizer_pb2_grpc,
)
from .status import abort

log = logging.getLogger("pyruntime.server")

MAX_REQUEST_ID = 256
MAX_TEXTS = 4096


def rpc(method):
    """A method whose errors leave as rich statuses. Cancellation passes through: swallowing it leaks."""
    @functools.wraps(method)
    async def call(self, request, context):
        try:
            return await method(self, request, context)
        except PyruntimeError as error:
            await abort(context, error)
        except (grpc.aio.AbortError, asyncio.CancelledError):
            raise
        except Exception:
            log.exception("%s failed", method.__name__)
            await abort(context, EngineFailed(f"{method.__name__} failed inside the server; its log says why"))
    return call


@dataclass(slots=True)
class Job:
    """A checked and submitted request."""

    served: Served
    request_id: str
    candidates: int
    output: generation_pb2.OutputOptions
    handle: Any

    @property
    def text(self) -> bool:
        """Whether the answer's text is wanted."""
        return shows_text(self.output)

    def logprobs(self, positions) -> list:
        """Positions as messages; empty unless asked for."""
        return convert.token_logprobs(positions or (), self.served.token_bytes)


def shows_text(output: generation_pb2.OutputOptions) -> bool:
    """Text is wanted unless it was declined."""
    return output.text or not output.HasField("text")


class _Generating(ABC):
    """What GenerationService and ChatService share: submit, collect, stream. They differ in prompt and messages."""

    response: type[Message]
    stream_response: type[Message]

    def __init__(self, models: Models, calls: Calls) -> None:
        self.models, self.calls = models, calls

    @abstractmethod
    def prompt(self, request, served: Served) -> list[int]:
        """The request's prompt as token ids; runs in a thread."""

    @abstractmethod
    def prompt_field(self, request) -> str:
        """The field an error about the prompt is about."""

    @abstractmethod
    def candidate(self, job: Job, index: int, completion: Completion) -> Message:
        """One finished answer."""

    @abstractmethod
    def delta(self, job: Job, piece: Piece) -> Message:
        """One message's worth of an answer."""

    async def collect(self, request) -> Message:
        """Run the request and answer when all its candidates are done."""
        finished: asyncio.Future[None] = self.calls.loop.create_future()
        completions: dict[int, Completion] = {}
        wanted = request.candidate_count or 1

        def receive(candidate: int, event: Event) -> None:
            if isinstance(event, Done):
                completions[candidate] = event.completion
                if len(completions) == wanted and not finished.done():
                    finished.set_result(None)
            elif isinstance(event, Failed) and not finished.done():
                finished.set_exception(event.error)

        call = self.calls.open(receive)
        try:
            job: Job = await self.calls.start(call, lambda: self._submit(request, call, ""))
            await finished
        finally:
            self.calls.close(call)
        done = [completions[i] for i in range(wanted)]
        return self.response(
            request_id=job.request_id, model=job.served.name, model_revision=job.served.revision,
            candidates=[self.candidate(job, i, c) for i, c in enumerate(done)],
            usage=convert.usage(done), timings=convert.timings(done) if request.output.timings else None,
            prompt_logprobs=job.logprobs(done[0].prompt_logprobs))

    async def stream(self, request, options: generation_pb2.StreamOptions, context) -> None:
        """Run the request and write its events as they come."""
        output = request.output
        delay = convert.nonnegative_seconds(options, "max_delay", "stream.max_delay")
        outbox = Outbox(options.tokens_per_message, delay, progress=options.prefill_progress,
                        bare=output.token_ids or output.logprobs or not shows_text(output))
        call = self.calls.open(outbox.put)
        try:
            job: Job = await self.calls.start(call, lambda: self._submit(request, call, "request."))
            completions: dict[int, Completion] = {}
            started = False
            while len(completions) < job.candidates:
                item = await outbox.get()
                if not started and isinstance(item, tuple):  # ended while it waited for a place
                    unplaced = Started(item[1].completion.usage.prompt_tokens, 0)
                    await self._write(context, call, self._message(job, unplaced, completions))
                started = True
                await self._write(context, call, self._message(job, item, completions))
            done = list(completions.values())
            await self._write(context, call, self.stream_response(done=generation_pb2.StreamGenerateResponse.Done(
                usage=None if options.omit_usage else convert.usage(done),
                timings=convert.timings(done) if output.timings else None)))
        except asyncio.CancelledError:
            if call.stalled:
                raise PyruntimeError("the reader took no message for too long; read faster, or ask for more tokens per message",
                                     reason="READER_STALLED") from None
            raise
        finally:
            self.calls.close(call)

    async def _write(self, context, call: Call, message: Message) -> None:
        call.writing = self.calls.loop.time()
        await context.write(message)
        call.writing = None

    def _message(self, job: Job, item, completions: dict[int, Completion]) -> Message:
        events = generation_pb2.StreamGenerateResponse
        if isinstance(item, Piece):
            return self.stream_response(delta=self.delta(job, item))
        if isinstance(item, Started):
            return self.stream_response(started=events.Started(
                request_id=job.request_id, model=job.served.name, model_revision=job.served.revision,
                prompt_tokens=item.prompt_tokens, cached_prompt_tokens=item.cached,
                prompt_logprobs=job.logprobs(item.prompt_logprobs)))
        if isinstance(item, PrefillProgress):
            return self.stream_response(prefill_progress=events.PrefillProgress(
                processed_tokens=item.done, total_tokens=item.total))
        if isinstance(item, Failed):
            raise item.error
        candidate, done = item
        completions[candidate] = done.completion
        return self.stream_response(candidate_done=events.CandidateDone(
            index=candidate, finish=convert.finish(done.completion)))

    def _submit(self, request, call: Call, prefix: str) -> Job:
        """Check the request, make its prompt and put it in line; runs in a thread."""
        try:
            served = self.models.ready(request.model)
            if len(request.request_id) > MAX_REQUEST_ID:
                raise FieldInvalid(f"request_id has {len(request.request_id)} characters; at most {MAX_REQUEST_ID}",
                                   field="request_id")
            params: SamplingParams = convert.sampling_params(request)
            candidates = convert.candidates(request)
            wait = convert.nonnegative_seconds(request.scheduling, "max_queue_wait", "scheduling.max_queue_wait")
            prompt = self.prompt(request, served)
            handle = served.engine.submit(prompt, params, sink=self.calls.sink, request_id=call.id, n=candidates,
                                          priority=request.scheduling.priority, max_wait=wait)
        except PyruntimeError as error:
            raise convert.told_of(error, prefix, self.prompt_field(request)) from None
        return Job(served, request.request_id or uuid.uuid4().hex, candidates, request.output, handle)


class GenerationService(_Generating, generation_pb2_grpc.GenerationServiceServicer):
    """Raw completion."""

    response = generation_pb2.GenerateResponse
    stream_response = generation_pb2.StreamGenerateResponse

    @rpc
    async def Generate(self, request, context):
        return await self.collect(request)

    @rpc
    async def StreamGenerate(self, request, context):
        await self.stream(request.request, request.stream, context)

    def prompt(self, request, served: Served) -> list[int]:
        kind = request.WhichOneof("prompt")
        if kind is None or not (request.text if kind == "text" else request.token_ids.ids):
            raise FieldInvalid("prompt is empty; give text or token_ids", field="prompt")
        if kind == "text":
            special = request.add_special_tokens if request.HasField("add_special_tokens") else None
            ids = served.tokenizer.encode(request.text, add_special=special)
        else:
            ids = list(request.token_ids.ids)
        if request.HasField("truncate_prompt_to"):
            if request.truncate_prompt_to < 1:
                raise FieldInvalid("truncate_prompt_to is 0; keep at least one token", field="truncate_prompt_to")
            ids = ids[-request.truncate_prompt_to:]
        return ids

    def prompt_field(self, request) -> str:
        return request.WhichOneof("prompt") or "prompt"

    def candidate(self, job: Job, index: int, completion: Completion) -> Message:
        return generation_pb2.Candidate(
            index=index, text=completion.text if job.text else "",
            token_ids=completion.token_ids if job.output.token_ids else (),
            logprobs=job.logprobs(completion.logprobs), finish=convert.finish(completion))

    def delta(self, job: Job, piece: Piece) -> Message:
        return generation_pb2.StreamGenerateResponse.Delta(
            index=piece.candidate, text=piece.text if job.text else "",
            token_ids=piece.token_ids if job.output.token_ids else (),
            logprobs=job.logprobs(piece.logprobs), output_tokens=len(piece.token_ids))


class ChatService(_Generating, chat_pb2_grpc.ChatServiceServicer):
    """Conversations through the model's own template."""

    response = chat_pb2.ChatResponse
    stream_response = chat_pb2.StreamChatResponse

    @rpc
    async def Chat(self, request, context):
        return await self.collect(request)

    @rpc
    async def StreamChat(self, request, context):
        await self.stream(request.request, request.stream, context)

    def prompt(self, request, served: Served) -> list[int]:
        return render_chat(request, served)[1]

    def prompt_field(self, request) -> str:
        return "messages"

    def candidate(self, job: Job, index: int, completion: Completion) -> Message:
        return chat_pb2.ChatResponse.ChatCandidate(
            index=index,
            message=chat_pb2.ChatMessage(role=chat_pb2.ROLE_ASSISTANT, text=completion.text if job.text else ""),
            token_ids=completion.token_ids if job.output.token_ids else (),
            logprobs=job.logprobs(completion.logprobs), finish=convert.finish(completion))

    def delta(self, job: Job, piece: Piece) -> Message:
        return chat_pb2.StreamChatResponse.ChatDelta(
            index=piece.candidate, text=piece.text if job.text else None,
            token_ids=piece.token_ids if job.output.token_ids else (),
            logprobs=job.logprobs(piece.logprobs), output_tokens=len(piece.token_ids))


def render_chat(request, served: Served) -> tuple[str, list[int]]:
    """The prompt a conversation makes, and its token ids: what the model sees."""
    return served.tokenizer.encode_chat(
        convert.messages(request.messages), continue_final_message=request.continue_final_message,
        **convert.template_arguments(request))


class TokenizerService(tokenizer_pb2_grpc.TokenizerServiceServicer):
    """Text to tokens and back, in threads."""

    def __init__(self, models: Models, calls: Calls) -> None:
        self.models, self.calls = models, calls

    @rpc
    async def Tokenize(self, request, context):
        return await self.calls.beside(lambda: self._tokenize(request))

    @rpc
    async def Detokenize(self, request, context):
        return await self.calls.beside(lambda: self._detokenize(request))

    @rpc
    async def RenderChat(self, request, context):
        return await self.calls.beside(lambda: self._render(request))

    def _tokenize(self, request) -> Message:
        served = self.models.ready(request.model)
        tokenizer = served.tokenizer
        special = request.add_special_tokens if request.HasField("add_special_tokens") else None
        _check_count("texts", len(request.texts))
        out = tokenizer_pb2.TokenizeResponse(max_context_tokens=served.engine.context)
        for text in request.texts:
            ids = tokenizer.encode(text, add_special=special)
            result = out.results.add(token_ids=ids)
            if request.pieces:
                result.pieces.extend(tokenizer.token_bytes(i) for i in ids)
            if request.offsets:
                places = tokenizer.offsets(text, add_special=special)
                result.start_bytes.extend(places[:, 0].tolist())
                result.end_bytes.extend(places[:, 1].tolist())
        return out

    def _detokenize(self, request) -> Message:
        tokenizer = self.models.ready(request.model).tokenizer
        _check_count("sequences", len(request.sequences))
        out = tokenizer_pb2.DetokenizeResponse()
        for n, sequence in enumerate(request.sequences):
            try:
                raw = tokenizer.decode_bytes(sequence.ids, request.skip_special_tokens)
            except FieldInvalid as error:
                raise FieldInvalid(str(error), field=f"sequences[{n}].ids") from None
            out.raw.append(raw)
            out.texts.append(raw.decode("utf-8", "replace"))
        return out

    def _render(self, request) -> Message:
        prompt, ids = render_chat(request, self.models.ready(request.model))
        return tokenizer_pb2.RenderChatResponse(prompt=prompt, token_ids=ids)


def _check_count(field: str, count: int) -> None:
    if not 1 <= count <= MAX_TEXTS:
        raise FieldInvalid(f"{field} has {count} entries; it must have 1 to {MAX_TEXTS}", field=field)


class ModelService(model_pb2_grpc.ModelServiceServicer):
    """The models this server has, loaded or not."""

    def __init__(self, models: Models) -> None:
        self.models = models

    @rpc
    async def ListModels(self, request, context):
        return model_pb2.ListModelsResponse(models=[self.models.describe(served) for served in self.models])

    @rpc
    async def GetModel(self, request, context):
        return model_pb2.GetModelResponse(model=self.models.describe(self.models.find(request.name, field="name")))


class ServerService(admin_pb2_grpc.ServerServiceServicer):
    """Facts about the process."""

    def __init__(self, info: Callable[[], admin_pb2.GetServerInfoResponse]) -> None:
        self.info = info

    @rpc
    async def GetServerInfo(self, request, context):
        return self.info()
