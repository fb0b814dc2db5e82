from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("version", "instance_id", "start_time", "cpu", "compute_threads", "kv_cache_bytes", "kv_block_tokens", "max_running_requests", "max_queued_requests")
    class Cpu(_message.Message):
        __slots__ = ("vendor", "model", "isa_detected", "isa_selected", "isa_reason")
        VENDOR_FIELD_NUMBER: _ClassVar[int]
        MODEL_FIELD_NUMBER: _ClassVar[int]
        ISA_DETECTED_FIELD_NUMBER: _ClassVar[int]
        ISA_SELECTED_FIELD_NUMBER: _ClassVar[int]
        ISA_REASON_FIELD_NUMBER: _ClassVar[int]
        vendor: str
        model: str
        isa_detected: _containers.RepeatedScalarFieldContainer[str]
        isa_selected: str
        isa_reason: str
        def __init__(self, vendor: _Optional[str] = ..., model: _Optional[str] = ..., isa_detected: _Optional[_Iterable[str]] = ..., isa_selected: _Optional[str] = ..., isa_reason: _Optional[str] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    CPU_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_THREADS_FIELD_NUMBER: _ClassVar[int]
    KV_CACHE_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_RUNNING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    version: str
    instance_id: str
    start_time: _timestamp_pb2.Timestamp
    cpu: GetServerInfoResponse.Cpu
    compute_threads: int
    kv_cache_bytes: int
    kv_block_tokens: int
    max_running_requests: int
    max_queued_requests: int
    def __init__(self, version: _Optional[str] = ..., instance_id: _Optional[str] = ..., start_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., cpu: _Optional[_Union[GetServerInfoResponse.Cpu, _Mapping]] = ..., compute_threads: _Optional[int] = ..., kv_cache_bytes: _Optional[int] = ..., kv_block_tokens: _Optional[int] = ..., max_running_requests: _Optional[int] = ..., max_queued_requests: _Optional[int] = ...) -> None: ...
