"""Bytes that are no message: refused like any other bad input, before a servicer sees them."""
from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.message import DecodeError

from ..errors import FieldInvalid
from .status import abort


class WellFormed(grpc.aio.ServerInterceptor):
    """Parses the request of a method itself, so that a malformed one is INVALID_ARGUMENT and no line in the log."""

    def __init__(self) -> None:
        self._wrapped: dict[str, Any] = {}

    async def intercept_service(self, continuation, handler_call_details):
        method = handler_call_details.method
        if method not in self._wrapped:
            handler = await continuation(handler_call_details)
            if handler is None or handler.request_streaming:
                return handler
            self._wrapped[method] = _parsing(handler, method.rpartition("/")[2])
        return self._wrapped[method]


def _parsing(handler, name: str):
    """The handler of one request, taking bytes."""
    parse = handler.request_deserializer
    behaviour = handler.unary_stream if handler.response_streaming else handler.unary_unary

    async def call(data: bytes, context):
        try:
            request = parse(data)
        except DecodeError:
            await abort(context, FieldInvalid(f"the bytes sent are no {name}Request; generate the client from this server's "
                                              "proto files or reflection"))
        return await behaviour(request, context)

    make = grpc.unary_stream_rpc_method_handler if handler.response_streaming else grpc.unary_unary_rpc_method_handler
    return make(call, request_deserializer=None, response_serializer=handler.response_serializer)
