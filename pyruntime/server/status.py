"""Errors on their way out: `google.rpc.Status` with ErrorInfo, and BadRequest or RetryInfo where they help."""
from __future__ import annotations

from typing import NoReturn

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2 as details
from google.rpc import status_pb2

from ..errors import REASONS, PyruntimeError

DOMAIN = "pyruntime"
RETRY_SECONDS = 1
#: A message travels three times in at most 8 KiB of trailers, percent-encoded once.
MAX_MESSAGE = 400


def rich_status(error: PyruntimeError) -> status_pb2.Status:
    """The error as a Status: code from the reasons' table, ErrorInfo always, BadRequest naming the field if one is to
    blame, RetryInfo when trying again can help."""
    code = grpc_code(error.reason)
    message = str(error)
    if len(message) > MAX_MESSAGE:
        message = message[: MAX_MESSAGE - 3] + "..."
    status = status_pb2.Status(code=code.value[0], message=message)
    _attach(status, details.ErrorInfo(reason=error.reason, domain=DOMAIN))
    if error.field:
        violation = details.BadRequest.FieldViolation(field=error.field[:200], description=message)
        _attach(status, details.BadRequest(field_violations=[violation]))
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED):
        _attach(status, details.RetryInfo(retry_delay=Duration(seconds=RETRY_SECONDS)))
    return status


def grpc_code(reason: str) -> grpc.StatusCode:
    """A reason's gRPC code."""
    return grpc.StatusCode[REASONS[reason].grpc]


async def abort(context: grpc.aio.ServicerContext, error: PyruntimeError) -> NoReturn:
    """End the call with the error; raises, like every abort."""
    status = rich_status(error)
    await context.abort(grpc_code(error.reason), status.message,
                        (("grpc-status-details-bin", status.SerializeToString()),))
    raise AssertionError("abort raises")


def from_rpc_error(error: grpc.RpcError) -> tuple[str, str, str]:
    """(reason, field, message) of a failed call; reason is the code's name where the server gave none."""
    reason, field = error.code().name, ""
    for key, value in error.trailing_metadata() or ():
        if key != "grpc-status-details-bin":
            continue
        for detail in status_pb2.Status.FromString(value).details:
            if detail.Is(details.ErrorInfo.DESCRIPTOR):
                reason = _unpack(detail, details.ErrorInfo()).reason
            elif detail.Is(details.BadRequest.DESCRIPTOR):
                violations = _unpack(detail, details.BadRequest()).field_violations
                field = violations[0].field if violations else ""
    return reason, field, error.details() or ""


def _attach(status: status_pb2.Status, detail) -> None:
    packed = Any()
    packed.Pack(detail)
    status.details.append(packed)


def _unpack(packed: Any, into):
    packed.Unpack(into)
    return into
