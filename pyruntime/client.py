"""A small client of the gRPC service.

    with Client("127.0.0.1:50051") as client:
        for delta in client.stream_chat([{"role": "user", "content": "Hi"}], max_tokens=64):
            print(delta.text, end="", flush=True)

Answers and deltas are the messages of protos/pyruntime/v1. Errors are PyruntimeError with the server's reason and field.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grpc
from grpc.experimental import ChannelOptions

from .errors import (
    REASONS,
    ContextLengthExceeded,
    EngineFailed,
    FieldInvalid,
    ModelInvalid,
    ModelNotFound,
    PyruntimeError,
    QueueFull,
)
from .server.convert import ROLES, duration
from .server.pb import (
    admin_pb2,
    admin_pb2_grpc,
    chat_pb2,
    chat_pb2_grpc,
    common_pb2,
    generation_pb2,
    generation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    tokenizer_pb2,
    tokenizer_pb2_grpc,
)
from .server.status import from_rpc_error

Prompt = str | Sequence[int]
Message = Mapping[str, str] | chat_pb2.ChatMessage

_ERRORS: dict[str, type[PyruntimeError]] = {
    kind.reason: kind for kind in (FieldInvalid, ContextLengthExceeded, ModelNotFound, ModelInvalid, QueueFull, EngineFailed)}
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "presence_penalty",
             "frequency_penalty", "logit_bias", "allowed_token_ids", "seed")
_STOPPING = {"max_tokens": "max_output_tokens", "min_tokens": "min_output_tokens", "stop": "stop_sequences",
             "stop_token_ids": "stop_token_ids", "include_stop": "include_stop_sequence", "ignore_end": "ignore_end_tokens"}
_OUTPUT = {"text": "text", "token_ids": "token_ids", "prompt_logprobs": "prompt_logprobs",
           "skip_special": "skip_special_tokens", "timings": "timings"}


class ServerError(PyruntimeError):
    """The call failed before or outside the service: no connection, a deadline, a refusal. `code` is gRPC's name for it."""

    def __init__(self, message: str, *, code: str, field: str = "", reason: str = "") -> None:
        super().__init__(message, field=field, reason=reason)
        self.code = code


class Client:
    """Calls one server. `model` "" is the server's default. Parameters of an answer are named as in SamplingParams, plus
    `n`, `token_ids`, `timings`, `request_id` and, for streams, `tokens_per_message`, `max_delay` and `prefill_progress`."""

    def __init__(self, address: str, *, model: str = "", api_key: str = "", root_certificates: bytes | None = None,
                 timeout: float | None = None) -> None:
        """root_certificates: PEM; given, the connection is TLS. timeout: seconds a call may take, None = any."""
        # the thread that reads a stream takes it from the connection itself: half the work of a thread between the two
        options = [("grpc.max_receive_message_length", -1), (ChannelOptions.SingleThreadedUnaryStream, 1)]
        if root_certificates is None:
            self.channel = grpc.insecure_channel(address, options)
        else:
            self.channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(root_certificates), options)
        self.model, self.timeout = model, timeout
        self._metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()
        self._generation = generation_pb2_grpc.GenerationServiceStub(self.channel)
        self._chat = chat_pb2_grpc.ChatServiceStub(self.channel)
        self._tokenizer = tokenizer_pb2_grpc.TokenizerServiceStub(self.channel)
        self._models = model_pb2_grpc.ModelServiceStub(self.channel)
        self._server = admin_pb2_grpc.ServerServiceStub(self.channel)

    def generate(self, prompt: Prompt, **params: Any) -> generation_pb2.GenerateResponse:
        """Complete a raw prompt, text or token ids."""
        return self._call(self._generation.Generate, self._completion(prompt, params))

    def chat(self, messages: Sequence[Message], **params: Any) -> chat_pb2.ChatResponse:
        """Answer a conversation."""
        return self._call(self._chat.Chat, self._conversation(messages, params))

    def stream_generate(self, prompt: Prompt, **params: Any) -> Iterator[generation_pb2.StreamGenerateResponse]:
        """Every event of a completion. Leaving the iterator cancels the call."""
        stream = _stream_options(params)
        return self._events(self._generation.StreamGenerate, generation_pb2.StreamGenerateRequest(
            request=self._completion(prompt, params), stream=stream))

    def stream_chat_events(self, messages: Sequence[Message], **params: Any) -> Iterator[chat_pb2.StreamChatResponse]:
        """Every event of an answer. Leaving the iterator cancels the call."""
        stream = _stream_options(params)
        return self._events(self._chat.StreamChat, chat_pb2.StreamChatRequest(
            request=self._conversation(messages, params), stream=stream))

    def stream(self, prompt: Prompt, **params: Any) -> Iterator[generation_pb2.StreamGenerateResponse.Delta]:
        """Only the deltas of a completion."""
        return (event.delta for event in self.stream_generate(prompt, **params) if event.HasField("delta"))

    def stream_chat(self, messages: Sequence[Message], **params: Any) -> Iterator[chat_pb2.StreamChatResponse.ChatDelta]:
        """Only the deltas of an answer."""
        return (event.delta for event in self.stream_chat_events(messages, **params) if event.HasField("delta"))

    def tokenize(self, text: str, *, add_special: bool | None = None) -> list[int]:
        """Token ids of a text."""
        request = tokenizer_pb2.TokenizeRequest(model=self.model, texts=[text])
        if add_special is not None:
            request.add_special_tokens = add_special
        return list(self._call(self._tokenizer.Tokenize, request).results[0].token_ids)

    def detokenize(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """The text of token ids."""
        request = tokenizer_pb2.DetokenizeRequest(
            model=self.model, sequences=[common_pb2.TokenIds(ids=ids)], skip_special_tokens=skip_special)
        return self._call(self._tokenizer.Detokenize, request).texts[0]

    def render_chat(self, messages: Sequence[Message]) -> tuple[str, list[int]]:
        """The prompt a conversation makes, and its token ids."""
        request = tokenizer_pb2.RenderChatRequest(model=self.model, messages=map(_message, messages))
        answer = self._call(self._tokenizer.RenderChat, request)
        return answer.prompt, list(answer.token_ids)

    def models(self) -> list[model_pb2.Model]:
        """The server's models."""
        return list(self._call(self._models.ListModels, model_pb2.ListModelsRequest()).models)

    def info(self) -> admin_pb2.GetServerInfoResponse:
        """Facts about the server."""
        return self._call(self._server.GetServerInfo, admin_pb2.GetServerInfoRequest())

    def close(self) -> None:
        """Close the connection; what runs is cancelled."""
        self.channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _completion(self, prompt: Prompt, params: dict[str, Any]) -> generation_pb2.GenerateRequest:
        request = generation_pb2.GenerateRequest(model=self.model)
        if isinstance(prompt, str):
            request.text = prompt
        else:
            request.token_ids.ids.extend(prompt)
            request.token_ids.SetInParent()
        return _filled(request, params)

    def _conversation(self, messages: Sequence[Message], params: dict[str, Any]) -> chat_pb2.ChatRequest:
        return _filled(chat_pb2.ChatRequest(model=self.model, messages=map(_message, messages)), params)

    def _call(self, method, request):
        try:
            return method(request, timeout=self.timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise _typed(error) from None

    def _events(self, method, request):
        call = method(request, timeout=self.timeout, metadata=self._metadata)
        try:
            yield from call
        except grpc.RpcError as error:
            raise _typed(error) from None
        finally:
            call.cancel()


def _message(message: Message) -> chat_pb2.ChatMessage:
    if isinstance(message, chat_pb2.ChatMessage):
        return message
    roles = {name: role for role, name in ROLES.items()}
    if message["role"] not in roles:
        raise FieldInvalid(f"role is {message['role']!r}; it must be one of {', '.join(roles)}", field="messages")
    return chat_pb2.ChatMessage(role=roles[message["role"]], text=message["content"])


def _filled(request, params: dict[str, Any]):
    """The request with parameters by their names in SamplingParams; None = unset."""
    for name, value in params.items():
        if value is None:
            continue
        if name in _SAMPLING:
            _set(request.sampling, name, value)
        elif name in _STOPPING:
            _set(request.stopping, _STOPPING[name], [value] if name == "stop" and isinstance(value, str) else value)
        elif name == "time_budget":
            request.stopping.time_budget.CopyFrom(duration(value))
        elif name in _OUTPUT:
            _set(request.output, _OUTPUT[name], value)
        elif name == "logprobs":
            request.output.logprobs, request.output.top_logprobs = True, value
        elif name == "n":
            request.candidate_count = value
        elif name == "priority":
            request.scheduling.priority = value
        elif name == "request_id":
            request.request_id = value
        else:
            raise FieldInvalid(f"{name} is no parameter of an answer", field=name)
    return request


def _set(message, name: str, value: Any) -> None:
    try:
        if isinstance(value, Mapping):
            getattr(message, name).update(value)
        elif isinstance(value, (list, tuple)):
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)
    except (TypeError, ValueError) as error:
        raise FieldInvalid(f"{name} is {value!r:.60}: {error}", field=name) from None


def _stream_options(params: dict[str, Any]) -> generation_pb2.StreamOptions:
    delay = params.pop("max_delay", None)
    return generation_pb2.StreamOptions(
        tokens_per_message=params.pop("tokens_per_message", 0), prefill_progress=params.pop("prefill_progress", False),
        max_delay=None if delay is None else duration(delay))


def _typed(error: grpc.RpcError) -> PyruntimeError:
    """The failed call as our own error, typed by the server's reason where it gave one."""
    reason, field, message = from_rpc_error(error)
    if reason in _ERRORS:
        return _ERRORS[reason](message, field=field)
    return ServerError(message, code=error.code().name, field=field, reason=reason if reason in REASONS else "")
