"""Inside a step: how long each op takes, by the engine's own clock (csrc/exec/step.c)."""
from __future__ import annotations

import time
from typing import Any

import numpy as np

from ..plan import NAMES, Attention, Conv, Logits, Op, Scan
from ..types import Batch
from ..weights import Weights
from .work import Kind, matrices, op_bytes, op_operations, parts_of

LEAST, MOST = 3, 64   # steps


def label(op: Op) -> str:
    """An op's name and its matrices', without the layer: `norm_linear attn_q attn_k attn_v`."""
    names = (name.removesuffix(".weight").split(".")[-1] for name in matrices(op))
    return " ".join((NAMES[type(op)], *names))


def rewind(backend: Any, step: Batch) -> None:
    """States count as having seen what lies before the step, so that it can run, and run again: what they hold does not matter
    to how long that takes."""
    for group, g in enumerate(backend.plan.groups):
        for slot, before in zip(step.tables[group][:, 0], step.kv_lens - np.diff(step.starts), strict=True):
            if g.kind == "state":
                backend.seen(group, int(slot))[:] = before


def profile(backend: Any, weights: Weights, step: Batch, read: float, rates: dict[Kind, float], seconds: float) -> dict[str, Any]:
    """Run one step again and again for about `seconds` and share its time out among its ops, those of all layers together.

    Each entry: seconds a step, share of the measured step, bytes and operations a step needs, and how far below the limit of
    reading (`read` bytes a second) or multiplying (`rates` operations a second) it stays; `weights_read`: bytes of weights that
    its passes took from memory, as the engine counted them: of a mixture the experts that were chosen, of many tokens every pass.
    `sum` of shares is 1 but for the call itself.
    """
    rewind(backend, step)
    backend.run(step)
    backend.clock(True)
    spent, steps, began = 0.0, 0, time.perf_counter()
    while steps < LEAST or (steps < MOST and time.perf_counter() - began < seconds):
        rewind(backend, step)
        start = time.perf_counter()
        backend.run(step)
        spent += time.perf_counter() - start
        steps += 1
    times, taken = backend.times(), backend.weights_read()
    backend.clock(False)
    entries = _gather(backend.plan, weights, step, times / (steps * 1e9), taken // steps, read, rates)
    for entry in entries:
        entry["share"] = entry["seconds"] * steps / spent
        entry["weights_read_per_second"] = entry["weights_read"] / entry["seconds"] if entry["seconds"] else 0.0
    return {"tokens": len(step.tokens), "stored": int(step.kv_lens[0]), "steps": steps, "step_seconds": spent / steps,
            "sum": sum(entry["share"] for entry in entries), "ops": entries}


def _entry(name: str) -> dict[str, Any]:
    return {"op": name, "count": 0, "seconds": 0.0, "weights_read": 0, "bytes": 0, "operations": 0, "bound": 0.0}


def _gather(plan: Any, weights: Weights, step: Batch, seconds: np.ndarray, taken: np.ndarray, read: float,
            rates: dict[Kind, float]) -> list[dict[str, Any]]:
    tokens, rows, stored = len(step.tokens), len(step.rows), int(step.kv_lens[0])
    head_dim = {group.name: group.head_dim for group in plan.groups}
    width = {slot.name: slot.width for slot in plan.slots}
    found: dict[str, dict[str, Any]] = {}
    for op, spent, weight_bytes in zip(plan.ops, seconds[:-1], taken, strict=True):   # the last of `seconds` is no op's
        entry = found.setdefault(label(op), _entry(label(op)))
        size = op_bytes(op, plan, weights, stored)
        dim = head_dim[op.group] if isinstance(op, Attention) else width[op.out] // op.heads if isinstance(op, Scan) else 0
        work = op_operations(op, weights, tokens, rows, stored, dim)
        times = rows if isinstance(op, Logits) else tokens
        parts, of = parts_of(op)
        multiplying = sum(2 * times * weights[n].rows * weights[n].k * parts / of / rates[weights[n].format, weights[n].k]
                          for n in matrices(op))
        entry["count"] += 1
        entry["seconds"] += float(spent)
        entry["weights_read"] += int(weight_bytes)
        entry["bytes"] += size
        entry["operations"] += work
        if not isinstance(op, (Attention, Conv, Scan)) or tokens == 1:   # what many tokens' attention is bound by is not measured
            entry["bound"] += max(size / read, multiplying)
    found["check"] = _entry("check the batch") | {"count": 1, "seconds": float(seconds[-1])}
    for entry in found.values():
        bound = entry.pop("bound")
        entry["of_limit"] = bound / entry["seconds"] if bound and entry["seconds"] else None
    return list(found.values())
