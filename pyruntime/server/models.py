"""The models a server has, by name, in whatever state: what requests and health checks look up."""
from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp

from ..errors import ModelNotFound, PyruntimeError
from .pb import model_pb2

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..plan import CacheGroup
    from ..tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Facts:
    """What a model's file says about it. revision: fingerprint of the weights' file."""

    architecture: str = ""
    revision: str = ""
    scheme: str = ""
    parameters: int = 0
    weight_bytes: int = 0


@dataclass(slots=True, eq=False)
class Served:
    """One name and the engine behind it, once it is loaded."""

    name: str
    state: model_pb2.ModelState = model_pb2.MODEL_STATE_LOADING
    detail: str = ""
    facts: Facts = field(default_factory=Facts)
    loaded: Timestamp = field(default_factory=Timestamp)
    _engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        """The engine of a loaded model."""
        if self._engine is None:
            raise PyruntimeError(f"model '{self.name}' is not loaded", reason="MODEL_LOADING")
        return self._engine

    @property
    def tokenizer(self) -> Tokenizer:
        return self.engine.tokenizer

    def token_bytes(self, id: int) -> bytes:
        """A token's exact bytes; none of those that only pad the embedding."""
        return self.tokenizer.token_bytes(id) if id < self.tokenizer.vocab_size else b""

    @property
    def revision(self) -> str:
        return self.facts.revision

    @property
    def is_ready(self) -> bool:
        return self.state == model_pb2.MODEL_STATE_READY

    def ready(self, engine: Engine, facts: Facts) -> None:
        """The model is loaded: requests may come."""
        self._engine, self.facts = engine, facts
        self.loaded.GetCurrentTime()
        self.state = model_pb2.MODEL_STATE_READY

    def failed(self, detail: str) -> None:
        """Loading did not work out; `detail` says why."""
        self.detail = detail
        self.state = model_pb2.MODEL_STATE_FAILED


class Models:
    """The names a server knows, in order; the first is the default."""

    def __init__(self, names) -> None:
        self._served = {name: Served(name) for name in names}
        self.draining = False

    def __iter__(self) -> Iterator[Served]:
        return iter(self._served.values())

    def find(self, name: str, field: str = "model") -> Served:
        """The named model, the default for ""; ModelNotFound names what there is."""
        served = self._served.get(name) if name else next(iter(self), None)
        if served is None:
            there = ", ".join(self._served) or "none"
            raise ModelNotFound(f"{field} is {name[:100]!r}, which this server does not have; it has: {there}", field=field)
        return served

    def ready(self, name: str) -> Served:
        """The named model if requests can go to it, else an error with the reason."""
        if self.draining:
            raise PyruntimeError("the server is shutting down and takes no new requests; ask another server or later",
                                 reason="DRAINING")
        served = self.find(name)
        if served.state == model_pb2.MODEL_STATE_FAILED:
            raise PyruntimeError(f"model '{served.name}' could not be loaded: {served.detail}", reason="ENGINE_FAILED")
        if not served.is_ready:
            raise PyruntimeError(f"model '{served.name}' is being loaded; try again in a moment", reason="MODEL_LOADING")
        return served

    def describe(self, served: Served) -> model_pb2.Model:
        """Everything there is to say about a model."""
        state = model_pb2.MODEL_STATE_DRAINING if self.draining and served.is_ready else served.state
        out = model_pb2.Model(name=served.name, state=state, state_detail=served.detail)
        if not served.is_ready:
            return out
        engine, tokenizer, facts = served.engine, served.tokenizer, served.facts
        groups = engine.backend.plan.groups
        template = tokenizer.chat_template or ""
        out.MergeFrom(model_pb2.Model(
            revision=facts.revision, architecture=facts.architecture, parameter_count=facts.parameters,
            weight_bytes=facts.weight_bytes, max_context_tokens=engine.context, vocabulary_size=engine.vocab,
            end_token_ids=sorted(tokenizer.end_ids), default_sampling_json=json.dumps(engine.defaults),
            chat_template_sha256=hashlib.sha256(template.encode()).hexdigest() if template else "", load_time=served.loaded,
            capabilities=model_pb2.Capabilities(generate=True, chat=bool(template), prompt_logprobs=True),
            quantization=model_pb2.Quantization(
                scheme=facts.scheme, kv_cache_type=_cache_type(groups),
                bits_per_weight=8 * facts.weight_bytes / facts.parameters if facts.parameters else 0)))
        return out


def _cache_type(groups: tuple[CacheGroup, ...]) -> str:
    """One format, or K's:V's, of the first group that has them; "" where there are only states."""
    group = next((g for g in groups if g.kind != "state"), None)
    if group is None:
        return ""
    return group.k_format if group.k_format == group.v_format else f"{group.k_format}:{group.v_format}"


@dataclass(slots=True)
class Progress:
    """Notices an engine that has work but no longer finishes steps."""

    timeout: float
    steps: int = -1
    since: float = 0.0

    def stopped(self, engine: Engine) -> bool:
        """Whether no step has finished for `timeout` seconds although there is work; ask every second or so."""
        now, stats = time.monotonic(), engine.stats()
        if stats.steps != self.steps or not stats.running + stats.waiting:
            self.steps, self.since = stats.steps, now
        return now - self.since > self.timeout
