"""The gRPC server: ports, health, reflection, watching and draining around the services.

One event loop that never computes; each engine has its own thread.
"""
from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from ..errors import FieldInvalid, PyruntimeError
from ..plan import PAGE_TOKENS
from ..version import VERSION
from . import services
from .auth import BearerAuth, check_exposure
from .calls import Calls
from .facts import cache_bytes, cpu_of, facts_of
from .models import Models, Progress, Served
from .pb import admin_pb2, admin_pb2_grpc, chat_pb2_grpc, generation_pb2_grpc, model_pb2_grpc, tokenizer_pb2_grpc
from .wire import WellFormed

log = logging.getLogger("pyruntime.server")

MAX_MESSAGE_BYTES = 16 << 20
MAX_METADATA_BYTES = 16 << 10
OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 60000),
    ("grpc.keepalive_timeout_ms", 20000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10000),
    ("grpc.http2.max_ping_strikes", 0),
)

#: Services that need a loaded model, and those that answer as long as the process lives.
MODEL_SERVICES = tuple(f"pyruntime.v1.{name}" for name in ("GenerationService", "ChatService", "TokenizerService"))
PROCESS_SERVICES = tuple(f"pyruntime.v1.{name}" for name in ("ModelService", "ServerService"))
REFLECTION = ("grpc.reflection.v1.ServerReflection", reflection.SERVICE_NAME)

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

#: A loaded model (an engine, or what has one as `.engine`), or a function that loads one.
Source = Any


class Server:
    """Serves models over gRPC. `models`: name -> loaded model, or a function that loads it in a thread once the server
    runs (and whose model the server closes).

    api_keys: any of these bearer tokens is asked for; tls: (certificate chain, private key), PEM. Without either, only
    addresses of this machine are taken unless `insecure`. reader_stall_timeout: seconds a message may wait for its reader;
    step_timeout: seconds without a finished step, while there is work, after which a model counts as not serving.
    """

    def __init__(self, models: Mapping[str, Source], *, address: str = "127.0.0.1:0", api_keys: Iterable[str] = (),
                 insecure: bool = False, tls: tuple[bytes, bytes] | None = None, reader_stall_timeout: float = 30.0,
                 step_timeout: float = 120.0) -> None:
        keys = list(api_keys)
        if not all(key.strip() for key in keys):
            raise FieldInvalid("api_keys has an empty key; leave it out or give a real one", field="api_keys")
        check_exposure(address, keys=bool(keys), tls=tls is not None, insecure=insecure)
        self.address = address
        self.models = Models(models)
        self.failures: list[PyruntimeError] = []
        self._sources = dict(models)
        self._own: list[Any] = []
        self._keys, self._tls = keys, tls
        self._stall_timeout, self._step_timeout = reader_stall_timeout, step_timeout
        self._progress = {name: Progress(step_timeout) for name in models}
        self._health = health.aio.HealthServicer()
        self._reported: dict[str, int] = {}
        self._started = Timestamp()
        self._instance = uuid.uuid4().hex
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    async def start(self) -> str:
        """Listen, then load what is to be loaded; returns the bound address (a port of 0 becomes a real one)."""
        self._started.GetCurrentTime()
        self._calls = Calls()
        interceptors = (*((BearerAuth(self._keys),) if self._keys else ()), WellFormed())
        self._grpc = grpc.aio.server(options=OPTIONS, interceptors=interceptors)
        self._register()
        self.address = self._bind()
        for name, source in self._sources.items():
            if not is_loader(source):
                self._loaded(self.models.find(name), source)
        await self._report_health()
        await self._grpc.start()
        self._tasks = [asyncio.create_task(work) for work in (self._load(), self._watch_readers(), self._watch_health())]
        return self.address

    async def stop(self, timeout: float = 30.0, delay: float = 0.0) -> None:
        """Drain and stop: report NOT_SERVING, after `delay` refuse new requests, give the running ones `timeout` seconds,
        end the rest as DRAINED. Called again meanwhile: end them now."""
        if self._stopping:
            self._calls.drain()
            return
        self._stopping = True
        with contextlib.suppress(asyncio.TimeoutError):  # somebody who watches and does not read
            await asyncio.wait_for(self._health.enter_graceful_shutdown(), 1.0)
        if delay:
            await asyncio.sleep(delay)
        self.models.draining = True
        if not await self._calls.idle(timeout):
            self._calls.drain()
            await self._calls.idle(5.0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._grpc.stop(1.0)
        self._calls.shut_down()
        for model in self._own:
            await asyncio.to_thread(model.close)

    async def loaded(self) -> None:
        """Wait until every model is loaded or has failed; `failures` says which."""
        await asyncio.shield(self._tasks[0])

    def _register(self) -> None:
        server = self._grpc
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(
            services.GenerationService(self.models, self._calls), server)
        chat_pb2_grpc.add_ChatServiceServicer_to_server(services.ChatService(self.models, self._calls), server)
        tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server(services.TokenizerService(self.models, self._calls), server)
        model_pb2_grpc.add_ModelServiceServicer_to_server(services.ModelService(self.models), server)
        admin_pb2_grpc.add_ServerServiceServicer_to_server(services.ServerService(self._info), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        mirror = reflection.aio.ReflectionServicer((*MODEL_SERVICES, *PROCESS_SERVICES, health.SERVICE_NAME, *REFLECTION))
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(mirror, server)
        # v1 has the same messages as v1alpha under another name.
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(REFLECTION[0], {
            "ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(
                mirror.ServerReflectionInfo, reflection_pb2.ServerReflectionRequest.FromString,
                reflection_pb2.ServerReflectionResponse.SerializeToString)}),))

    def _bind(self) -> str:
        try:
            if self._tls is None:
                port = self._grpc.add_insecure_port(self.address)
            else:
                chain, key = self._tls
                port = self._grpc.add_secure_port(self.address, grpc.ssl_server_credentials([(key, chain)]))
        except RuntimeError:
            blame = "" if self._tls is None else ", or certificate and key are not PEM or do not belong together"
            raise FieldInvalid(f"address {self.address} cannot be listened on{blame}; choose another host or port "
                               "(0 = any free one)", field="address") from None
        if self.address.startswith("unix:"):
            return self.address
        return f"{self.address.rsplit(':', 1)[0]}:{port}"

    async def _load(self) -> None:
        for name, source in self._sources.items():
            if not is_loader(source):
                continue
            served = self.models.find(name)
            try:
                model = await asyncio.to_thread(source)
            except Exception as error:
                log.error("model '%s' could not be loaded: %s", name, error)
                known = error if isinstance(error, PyruntimeError) else PyruntimeError(f"{type(error).__name__}: {error}")
                self.failures.append(known)
                served.failed(str(known))
            else:
                self._own.append(model)
                self._loaded(served, model)
            await self._report_health()

    def _loaded(self, served: Served, model: Any) -> None:
        served.ready(getattr(model, "engine", model), facts_of(model))

    async def _watch_readers(self) -> None:
        """Once a moment: end the calls whose reader is gone to sleep."""
        while True:
            await asyncio.sleep(min(1.0, self._stall_timeout / 4))
            self._calls.end_stalled(self._stall_timeout)

    async def _watch_health(self) -> None:
        """Once a moment: tell health what changed. A task of its own, for a watcher that does not read can hold it up."""
        while True:
            await asyncio.sleep(min(1.0, self._step_timeout / 4))
            await self._report_health()

    async def _report_health(self) -> None:
        states = {"": True, **dict.fromkeys(PROCESS_SERVICES, True)}
        for served in self.models:
            states[f"model/{served.name}"] = served.is_ready and served.engine.healthy \
                and not self._progress[served.name].stopped(served.engine)
        ready = any(states[f"model/{served.name}"] for served in self.models)
        states.update(dict.fromkeys(MODEL_SERVICES, ready))
        for name, serving in states.items():
            status = _SERVING if serving else _NOT_SERVING
            if self._reported.get(name) != status:
                self._reported[name] = status
                await self._health.set(name, status)

    def _info(self) -> admin_pb2.GetServerInfoResponse:
        engines = [served.engine for served in self.models if served.is_ready]
        cpu, threads = cpu_of(engines)
        return admin_pb2.GetServerInfoResponse(
            version=VERSION, instance_id=self._instance, start_time=self._started, cpu=cpu, compute_threads=threads,
            kv_cache_bytes=cache_bytes(engines), kv_block_tokens=PAGE_TOKENS,
            max_running_requests=sum(e.max_running for e in engines), max_queued_requests=sum(e.max_waiting for e in engines))


def is_loader(source: Source) -> bool:
    """Whether a source is a function that loads a model, not a model."""
    return callable(source) and not hasattr(source, "engine") and not hasattr(source, "submit")


async def serve(models: Mapping[str, Source], *, ready: Callable[[str], None] | None = None, drain_timeout: float = 30.0,
                drain_delay: float = 0.0, **options: Any) -> None:
    """Run a Server until SIGTERM or SIGINT, then drain; a second signal ends now. `ready` gets the bound address once every
    model is loaded. If none can be loaded, the first failure is raised. options: Server's."""
    server = Server(models, **options)
    address = await server.start()
    stop, again = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: (again if stop.is_set() else stop).set())
    loading, stopped = asyncio.create_task(server.loaded()), asyncio.create_task(stop.wait())
    await asyncio.wait((loading, stopped), return_when=asyncio.FIRST_COMPLETED)
    broken = bool(server.failures) and not any(served.is_ready for served in server.models)
    if not broken and not stop.is_set():
        if ready is not None:
            ready(address)
        await stopped
    draining = asyncio.create_task(server.stop(0.0 if broken else drain_timeout, drain_delay))
    hurry = asyncio.create_task(again.wait())
    await asyncio.wait((draining, hurry), return_when=asyncio.FIRST_COMPLETED)
    if not draining.done():
        await server.stop()
    await draining
    for task in (hurry, stopped, loading):
        task.cancel()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)
    if broken:
        raise server.failures[0]


def run_server(models: Mapping[str, Source], **options: Any) -> None:
    """`serve` in an event loop of its own; blocks until the server has stopped."""
    asyncio.run(serve(models, **options))
