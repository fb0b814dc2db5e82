"""Every error a user or client can meet: a class per reason, and one table that says how each leaves the house.

An error's text is one line that says what is wrong, where, and what to do.
"""
from __future__ import annotations

from typing import NamedTuple


class Exit(NamedTuple):
    """How a reason looks outside: gRPC status name, HTTP status, exit code of the command line."""

    grpc: str
    http: int
    command: int


REASONS: dict[str, Exit] = {
    "FIELD_INVALID": Exit("INVALID_ARGUMENT", 400, 2),
    "CONTEXT_LENGTH_EXCEEDED": Exit("INVALID_ARGUMENT", 400, 2),
    "CONSTRAINT_UNSUPPORTED": Exit("INVALID_ARGUMENT", 400, 2),
    "MODEL_NOT_FOUND": Exit("NOT_FOUND", 404, 2),
    "MODEL_INVALID": Exit("INVALID_ARGUMENT", 400, 2),
    "MODEL_LOADING": Exit("UNAVAILABLE", 503, 1),
    "DRAINING": Exit("UNAVAILABLE", 503, 1),
    "QUEUE_FULL": Exit("RESOURCE_EXHAUSTED", 429, 1),
    "QUEUE_WAIT_EXCEEDED": Exit("RESOURCE_EXHAUSTED", 429, 1),
    "KV_EXHAUSTED": Exit("RESOURCE_EXHAUSTED", 429, 1),
    "READER_STALLED": Exit("ABORTED", 408, 1),
    "AUTH_MISSING": Exit("UNAUTHENTICATED", 401, 2),
    "ENGINE_FAILED": Exit("INTERNAL", 500, 1),
}


class PyruntimeError(Exception):
    """Base of all. `reason` is a key of REASONS; `field` names the offending request field, if one is to blame."""

    reason = "ENGINE_FAILED"

    def __init__(self, message: str, *, field: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.field = field
        if reason:
            self.reason = reason


class FieldInvalid(PyruntimeError, ValueError):
    """A request or option value outside what is allowed."""

    reason = "FIELD_INVALID"


class ContextLengthExceeded(PyruntimeError, ValueError):
    """The prompt does not fit the model's context."""

    reason = "CONTEXT_LENGTH_EXCEEDED"


class ModelNotFound(PyruntimeError, LookupError):
    """No such model name, file or repository."""

    reason = "MODEL_NOT_FOUND"


class ModelInvalid(PyruntimeError, ValueError):
    """A model file that is damaged, hostile, or of a kind not supported: names the file, offset and tensor."""

    reason = "MODEL_INVALID"


class QueueFull(PyruntimeError):
    """No room for one more waiting request."""

    reason = "QUEUE_FULL"


class EngineFailed(PyruntimeError):
    """The engine could not finish a step; the message says why."""

    reason = "ENGINE_FAILED"
