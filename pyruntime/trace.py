"""Two backends, one batch, op by op: which slot differs first, and where. The first tool to reach for when they disagree."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .backends.base import Backend
from .errors import FieldInvalid
from .plan import NAMES, Embed, Logits, Op, Plan, Sample
from .types import Batch


@dataclass(frozen=True, slots=True)
class Difference:
    """The worst element of the first slot whose values are further apart than the tolerance.

    op, kind, layer: the op just run (layer -1 where it has none). token: row of the slot, a token of the batch or a
    flagged row. magnitude: the largest finite |reference| in the slot, which the tolerance is relative to.
    """

    op: int
    kind: str
    layer: int
    slot: str
    token: int
    element: int
    reference: float
    candidate: float
    magnitude: float

    def __str__(self) -> str:
        where = f"op {self.op} ({self.kind}" + (f", layer {self.layer})" if self.layer >= 0 else ")")
        return (f"{where}: slot {self.slot}[{self.token}][{self.element}] is {self.candidate:.9g}, the reference says "
                f"{self.reference:.9g} (largest value {self.magnitude:.3g})")


def written(op: Op) -> tuple[str, ...]:
    """The slots an op writes."""
    if hasattr(op, "out"):
        return (op.out,)
    return (op.qkv,) if hasattr(op, "qkv") else ()


def trace(reference: Backend, candidate: Backend, batch: Batch, tolerance: float = 1e-4, *,
          follow: bool = False) -> Difference | None:
    """The first difference above `tolerance` times the slot's largest magnitude; None when there is none.

    Both backends run the batch one op at a time and keep what it stores in their caches. `follow` gives the candidate
    the reference's slots after each op, so that each op is judged on the same inputs rather than on what came before.
    Tolerance 0 asks for equality; NaN equals NaN. FieldInvalid: the backends were made from different plans.
    """
    if reference.plan.ops != candidate.plan.ops:
        raise FieldInvalid("the two backends were made from different plans; trace compares one plan's ops", field="plan")
    for index, op in enumerate(reference.plan.ops):
        reference.run(batch, index, index + 1)
        candidate.run(batch, index, index + 1)
        for found in _compare(index, op, reference, candidate, tolerance):
            return found
        if follow:
            for name in written(op):
                candidate.slot(name)[:] = reference.slot(name)
    return None


def _compare(index: int, op: Op, reference: Backend, candidate: Backend, tolerance: float) -> Iterator[Difference]:
    for name in written(op):
        want, have = np.asarray(reference.slot(name), np.float64), np.asarray(candidate.slot(name), np.float64)
        if want.size == 0:
            continue
        magnitude = float(np.abs(want[np.isfinite(want)]).max(initial=0.0))
        with np.errstate(invalid="ignore"):
            apart = np.abs(want - have)
        apart = np.where((want == have) | (np.isnan(want) & np.isnan(have)), 0.0, np.where(np.isnan(apart), np.inf, apart))
        token, element = (int(i) for i in np.unravel_index(int(apart.argmax()), apart.shape))
        if apart[token, element] > tolerance * magnitude:
            yield Difference(index, NAMES[type(op)], _layer(index, reference.plan), name, token, element,
                             float(want[token, element]), float(have[token, element]), magnitude)


def _layer(index: int, plan: Plan) -> int:
    """By the cuts that stand at or before the op."""
    outside = isinstance(plan.ops[index], (Embed, Logits, Sample))
    return -1 if outside else sum(cut <= index for cut in plan.cuts) - 1
