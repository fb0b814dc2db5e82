from google.protobuf import struct_pb2 as _struct_pb2
from . import common_pb2 as _common_pb2
from . import generation_pb2 as _generation_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_SYSTEM: _ClassVar[Role]
    ROLE_USER: _ClassVar[Role]
    ROLE_ASSISTANT: _ClassVar[Role]
ROLE_UNSPECIFIED: Role
ROLE_SYSTEM: Role
ROLE_USER: Role
ROLE_ASSISTANT: Role

class ChatMessage(_message.Message):
    __slots__ = ("role", "text")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    role: Role
    text: str
    def __init__(self, role: _Optional[_Union[Role, str]] = ..., text: _Optional[str] = ...) -> None: ...

class ChatRequest(_message.Message):
    __slots__ = ("model", "request_id", "messages", "sampling", "stopping", "output", "scheduling", "candidate_count", "template_arguments", "continue_final_message")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    STOPPING_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    SCHEDULING_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_COUNT_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    CONTINUE_FINAL_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    model: str
    request_id: str
    messages: _containers.RepeatedCompositeFieldContainer[ChatMessage]
    sampling: _generation_pb2.Sampling
    stopping: _generation_pb2.Stopping
    output: _generation_pb2.OutputOptions
    scheduling: _generation_pb2.Scheduling
    candidate_count: int
    template_arguments: _struct_pb2.Struct
    continue_final_message: bool
    def __init__(self, model: _Optional[str] = ..., request_id: _Optional[str] = ..., messages: _Optional[_Iterable[_Union[ChatMessage, _Mapping]]] = ..., sampling: _Optional[_Union[_generation_pb2.Sampling, _Mapping]] = ..., stopping: _Optional[_Union[_generation_pb2.Stopping, _Mapping]] = ..., output: _Optional[_Union[_generation_pb2.OutputOptions, _Mapping]] = ..., scheduling: _Optional[_Union[_generation_pb2.Scheduling, _Mapping]] = ..., candidate_count: _Optional[int] = ..., template_arguments: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., continue_final_message: bool = ...) -> None: ...

class ChatResponse(_message.Message):
    __slots__ = ("request_id", "model", "model_revision", "candidates", "usage", "timings", "prompt_logprobs")
    class ChatCandidate(_message.Message):
        __slots__ = ("index", "message", "finish", "logprobs", "token_ids")
        INDEX_FIELD_NUMBER: _ClassVar[int]
        MESSAGE_FIELD_NUMBER: _ClassVar[int]
        FINISH_FIELD_NUMBER: _ClassVar[int]
        LOGPROBS_FIELD_NUMBER: _ClassVar[int]
        TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
        index: int
        message: ChatMessage
        finish: _common_pb2.Finish
        logprobs: _containers.RepeatedCompositeFieldContainer[_common_pb2.TokenLogprob]
        token_ids: _containers.RepeatedScalarFieldContainer[int]
        def __init__(self, index: _Optional[int] = ..., message: _Optional[_Union[ChatMessage, _Mapping]] = ..., finish: _Optional[_Union[_common_pb2.Finish, _Mapping]] = ..., logprobs: _Optional[_Iterable[_Union[_common_pb2.TokenLogprob, _Mapping]]] = ..., token_ids: _Optional[_Iterable[int]] = ...) -> None: ...
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_REVISION_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    model_revision: str
    candidates: _containers.RepeatedCompositeFieldContainer[ChatResponse.ChatCandidate]
    usage: _common_pb2.Usage
    timings: _generation_pb2.Timings
    prompt_logprobs: _containers.RepeatedCompositeFieldContainer[_common_pb2.TokenLogprob]
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., model_revision: _Optional[str] = ..., candidates: _Optional[_Iterable[_Union[ChatResponse.ChatCandidate, _Mapping]]] = ..., usage: _Optional[_Union[_common_pb2.Usage, _Mapping]] = ..., timings: _Optional[_Union[_generation_pb2.Timings, _Mapping]] = ..., prompt_logprobs: _Optional[_Iterable[_Union[_common_pb2.TokenLogprob, _Mapping]]] = ...) -> None: ...

class StreamChatRequest(_message.Message):
    __slots__ = ("request", "stream")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    request: ChatRequest
    stream: _generation_pb2.StreamOptions
    def __init__(self, request: _Optional[_Union[ChatRequest, _Mapping]] = ..., stream: _Optional[_Union[_generation_pb2.StreamOptions, _Mapping]] = ...) -> None: ...

class StreamChatResponse(_message.Message):
    __slots__ = ("started", "prefill_progress", "delta", "candidate_done", "done")
    class ChatDelta(_message.Message):
        __slots__ = ("index", "text", "logprobs", "token_ids", "output_tokens")
        INDEX_FIELD_NUMBER: _ClassVar[int]
        TEXT_FIELD_NUMBER: _ClassVar[int]
        LOGPROBS_FIELD_NUMBER: _ClassVar[int]
        TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
        OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
        index: int
        text: str
        logprobs: _containers.RepeatedCompositeFieldContainer[_common_pb2.TokenLogprob]
        token_ids: _containers.RepeatedScalarFieldContainer[int]
        output_tokens: int
        def __init__(self, index: _Optional[int] = ..., text: _Optional[str] = ..., logprobs: _Optional[_Iterable[_Union[_common_pb2.TokenLogprob, _Mapping]]] = ..., token_ids: _Optional[_Iterable[int]] = ..., output_tokens: _Optional[int] = ...) -> None: ...
    STARTED_FIELD_NUMBER: _ClassVar[int]
    PREFILL_PROGRESS_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_DONE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    started: _generation_pb2.StreamGenerateResponse.Started
    prefill_progress: _generation_pb2.StreamGenerateResponse.PrefillProgress
    delta: StreamChatResponse.ChatDelta
    candidate_done: _generation_pb2.StreamGenerateResponse.CandidateDone
    done: _generation_pb2.StreamGenerateResponse.Done
    def __init__(self, started: _Optional[_Union[_generation_pb2.StreamGenerateResponse.Started, _Mapping]] = ..., prefill_progress: _Optional[_Union[_generation_pb2.StreamGenerateResponse.PrefillProgress, _Mapping]] = ..., delta: _Optional[_Union[StreamChatResponse.ChatDelta, _Mapping]] = ..., candidate_done: _Optional[_Union[_generation_pb2.StreamGenerateResponse.CandidateDone, _Mapping]] = ..., done: _Optional[_Union[_generation_pb2.StreamGenerateResponse.Done, _Mapping]] = ...) -> None: ...
