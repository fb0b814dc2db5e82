"""What a request's sink receives. Order: Started, PrefillProgress*, then per candidate Delta* and one Done or Failed.

Deltas' texts concatenated equal the completion's text, their token ids its token ids, whatever the batch.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..errors import PyruntimeError
from ..types import Completion, Delta, TokenLogprob

__all__ = ["Delta", "Done", "Event", "Events", "Failed", "PrefillProgress", "Sink", "Started"]


@dataclass(frozen=True, slots=True)
class Started:
    """The request got a place; once per request, as candidate 0. `cached` prompt tokens need no computing.

    With prompt_logprobs it comes when the prompt is computed and carries them; no PrefillProgress then."""

    prompt_tokens: int
    cached: int
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True, slots=True)
class PrefillProgress:
    """`done` of `total` prompt tokens are computed; after each chunk, as candidate 0."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Done:
    """A candidate is finished, for whatever reason (also cancelled, drained, out of time): its pages are free."""

    completion: Completion


@dataclass(frozen=True, slots=True)
class Failed:
    """A candidate ends with an error and without an answer: its pages are free."""

    error: PyruntimeError


Event = Started | PrefillProgress | Delta | Done | Failed
Events = list[tuple[str, int, Event]]    # (request id, candidate index, event), in order


class Sink(Protocol):
    """Where the engine hands over. Called on the engine's thread, once per step with all of that step's events:
    hand them on and return (to an event loop: `loop.LoopSink`). Several requests may share one sink."""

    def put(self, events: Events) -> None:
        """Take a step's events."""
