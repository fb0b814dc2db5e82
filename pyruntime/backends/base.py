"""What the engine asks of a backend. Implementations: `native` (C) and `torch` (reference, CUDA)."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ..plan import Plan, Route
from ..types import Batch


class Backend(Protocol):
    """Binds one plan to its weights and a cache, then runs batches. One caller at a time; `run` releases the GIL."""

    plan: Plan
    max_tokens: int            # most tokens in one batch
    max_rows: int              # most flagged rows in one batch
    pages: tuple[int, ...]     # pages in each cache group's arena
    histories: int             # token histories that exist

    def run(self, batch: Batch, first: int = 0, last: int | None = None) -> None:
        """Compute ops [first, last) for the whole batch; `run(b, 0, k)` then `run(b, k)` equals one `run(b)`.

        Checks the batch at the edge (FieldInvalid) and then cannot fail on it."""

    def sampled(self) -> np.ndarray:
        """SAMPLED [rows] of the last SAMPLE op; a view, valid until the next run."""

    def slot(self, name: str) -> np.ndarray:
        """A slot's f32 [tokens or rows][width] after the last run; a view, no copy."""

    def copy_page(self, group: int, source: int, target: int) -> None:
        """Copy one page (copy-on-write); of a state group a state, with how many tokens it has seen: a fork, a snapshot, a way
        back to one."""

    def state_truncate(self, group: int, slot: int, length: int, snapshots: Sequence[int] = ()) -> int:
        """Take a state back to at most `length` tokens, and return how many it then has.

        A state is what n tokens in order made of zeros, and cannot forget the last of them. So it stays as it is if it has
        seen no more than `length`; else it becomes the longest of `snapshots` (slots of the group holding earlier states of
        the same tokens) that has seen no more, bit for bit; else nothing, 0. The caller computes the rest again."""

    def history_reset(self, history: int) -> None:
        """Forget a token history's content; 0 <= history < histories."""

    def history_extend(self, history: int, tokens: np.ndarray, generated: bool) -> None:
        """Append tokens a penalty should see. Repetition counts all, presence and frequency the generated ones."""

    def history_truncate(self, history: int, length: int) -> None:
        """Drop tokens past `length` (rollback of rejected drafts)."""

    def close(self) -> None:
        """Free weights, cache and threads. Further calls raise EngineFailed."""


def expert_counts(backend: Backend) -> dict[str, np.ndarray]:
    """Out slot of each ROUTE op -> how many of the last run's tokens chose each expert, i64 [experts], tokens * top_k in all.

    The slots themselves hold who chose what, and how much it counts (plan.Route); families give every layer one of its own.
    """
    experts = {slot.name: slot.width for slot in backend.plan.slots}
    return {op.out: np.bincount(backend.slot(op.out)[:, : op.top_k].astype(np.int64).ravel(), minlength=experts[op.logits])
            for op in backend.plan.ops if isinstance(op, Route)}
