"""Who may call: one bearer token out of a few, compared in constant time; everything but health is denied without."""
from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
from collections.abc import Iterable
from pathlib import Path

import grpc

from ..errors import FieldInvalid, PyruntimeError
from .status import abort

OPEN = "/grpc.health.v1.Health/"


class BearerAuth(grpc.aio.ServerInterceptor):
    """Refuses calls without `authorization: Bearer KEY`, known methods or not."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key) for key in keys]
        self._refusal = grpc.stream_stream_rpc_method_handler(self._refuse)

    async def intercept_service(self, continuation, handler_call_details):
        if handler_call_details.method.startswith(OPEN) or self._admits(handler_call_details.invocation_metadata):
            return await continuation(handler_call_details)
        return self._refusal

    def _admits(self, metadata) -> bool:
        given = [value for key, value in metadata or () if key == "authorization"]
        scheme, _, token = (given[0] if len(given) == 1 and isinstance(given[0], str) else "").partition(" ")
        digest, found = _digest(token.strip()), False
        for known in self._digests:
            found |= hmac.compare_digest(digest, known)
        return found and scheme.lower() == "bearer"

    async def _refuse(self, requests, context) -> None:
        await abort(context, PyruntimeError("this server needs a key: send the metadata 'authorization: Bearer KEY'",
                                            reason="AUTH_MISSING"))


def read_keys(file: Path | None) -> list[str]:
    """The keys a server asks for: PYRUNTIME_API_KEY, and a file's, one a line. FieldInvalid for a file without any."""
    keys = [key] if (key := os.environ.get("PYRUNTIME_API_KEY", "").strip()) else []
    if file is not None:
        found = [line.strip() for line in file.read_text().splitlines() if line.strip()]
        if not found:
            raise FieldInvalid(f"{file} holds no key; write one on each line", field="api_key_file")
        keys += found
    return keys


def check_exposure(address: str, *, keys: bool, tls: bool, insecure: bool) -> None:
    """FieldInvalid for an address others can reach while nothing guards it, unless that is wanted."""
    if not (keys or tls or insecure or is_loopback(address)):
        raise FieldInvalid(f"address {address} can be reached from outside and neither a key nor TLS guards it: set "
                           "PYRUNTIME_API_KEY or --api-key-file, give a certificate, listen on 127.0.0.1, or say --insecure",
                           field="address")


def is_loopback(address: str) -> bool:
    """Whether only this machine can connect to HOST:PORT or unix:PATH."""
    if address.startswith("unix:"):
        return True
    host = address.rsplit(":", 1)[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
