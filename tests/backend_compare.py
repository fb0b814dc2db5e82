"""Two backends side by side, op by op: random ragged steps, and the comparison within op_bounds."""
from __future__ import annotations

import numpy as np
import torch
from op_bounds import bound, latent_row_bound, scan_bound
from reference_models import Pages, tables_of

from pyruntime import plan as p
from pyruntime.backends.torch import TorchBackend
from pyruntime.types import Batch

PAGES, ROWS = 24, 64


def schedule(plan: p.Plan, rng: np.random.Generator, *, lengths: tuple[int, ...]) -> list[Batch]:
    """Ragged steps: prompts in random chunks beside single tokens, through random pages."""
    sequences = [rng.integers(0, plan.vocab, n) for n in lengths]
    groups, done, steps = [tables_of(list(lengths), PAGES, rng) for _ in plan.groups], [0] * len(lengths), []
    while any(d < n for d, n in zip(done, lengths, strict=True)):
        live = [i for i, n in enumerate(lengths) if done[i] < n and (rng.random() < 0.8 or len(steps) > 6)]
        if not live:
            continue
        take = {i: int(rng.integers(1, min(lengths[i] - done[i], 20) + 1)) for i in live}
        take = {i: 1 if rng.random() < 0.3 else n for i, n in take.items()}
        flagged = np.flatnonzero(rng.random(sum(take.values())) < 0.5)[:ROWS].astype(np.int32)
        batch = Batch.build([(sequences[i][done[i]:done[i] + n], done[i], done[i]) for i, n in take.items()],
                            tables=[[tables[i] for i in take] for tables in groups], rows=flagged)
        if rng.random() < 0.3 and all(g.kind != "state" for g in plan.groups):
            grow_trees(batch, rng)
        steps.append(batch)
        for i, n in take.items():
            done[i] += n
    return steps


def grow_trees(batch: Batch, rng: np.random.Generator) -> None:
    """Some sequences' new tokens become trees: each sees its ancestors, and its position is how many they are."""
    batch.trees = np.zeros(len(batch.tokens), np.uint64)
    for start, end in zip(batch.starts[:-1].tolist(), batch.starts[1:].tolist(), strict=True):
        if rng.random() < 0.3:
            continue
        for i in range(start, end):
            parent = int(rng.integers(max(start - 1, i - 4), i))
            batch.trees[i] = np.uint64(1 << i - start) | (batch.trees[parent] if parent >= start else np.uint64(0))
            batch.positions[i] = batch.positions[parent] + 1 if parent >= start else batch.positions[start]


def compare(plan: p.Plan, weights, native, ref: TorchBackend, batch: Batch) -> None:
    """Run a batch op by op: before each the reference gets native's slots and pages, after it the slot it wrote is compared."""
    pages = Pages(native)
    native.run(batch, 0, 0)
    ref.run(batch, 0, 0)
    for at, op in enumerate(plan.ops[:-1]):
        before = {}
        for slot in plan.slots:
            before[slot.name] = native.slot(slot.name).astype(np.float64)
            ref.slot(slot.name)[:] = native.slot(slot.name)
        states = states_before(plan, op, ref, batch)
        native.run(batch, at, at + 1)
        ref.run(batch, at, at + 1)
        name = next(getattr(op, f) for f in ("out", "qkv") if hasattr(op, f))
        got, want = native.slot(name).astype(np.float64), ref.slot(name).astype(np.float64)
        if isinstance(op, p.Scan):
            limit, after = scan_bound(op, weights, batch, before, states)
        else:
            limit, after = bound(op, weights, ref, batch, before), [0.0] * len(states)
        over = np.abs(got - want) > limit
        assert not over.any(), f"op {at} {op}: {np.abs(got - want)[over].max()} apart, {limit[over].max()} allowed"
        if isinstance(op, p.RopeKV):
            g = plan.groups[plan.group(op.group)]
            fine = limit.reshape(len(limit), -1, g.head_dim)[:, op.heads:op.heads + g.kv_heads].max(initial=0)
            compare_pages(plan, op, pages, ref, batch, fine)
        if isinstance(op, p.LatentKV):
            fine = latent_row_bound(op, weights, plan.groups[plan.group(op.group)].width, before)
            compare_pages(plan, op, pages, ref, batch, fine)
        if isinstance(op, (p.Conv, p.Scan)):
            compare_states(plan, op, native, ref, batch, after)


def states_before(plan: p.Plan, op: p.Op, ref: TorchBackend, batch: Batch) -> list[np.ndarray]:
    """What each sequence's state is before a recurrent op, f64: zeros before the first token."""
    if not isinstance(op, (p.Conv, p.Scan)):
        return []
    slots = batch.tables[plan.group(op.group)][:, 0]
    old = batch.kv_lens > np.diff(batch.starts)
    return [ref.states[op.group].values[op.layer, slot].double().numpy() * was for slot, was in zip(slots, old, strict=True)]


def compare_states(plan: p.Plan, op: p.Conv | p.Scan, native, ref: TorchBackend, batch: Batch, limits: list) -> None:
    """What a recurrent op left, within limits; then the reference takes native's."""
    group = plan.group(op.group)
    for slot, limit in zip(batch.tables[group][:, 0], limits, strict=True):
        mine = native.page(group, slot).view(np.float32).reshape(plan.groups[group].layers, -1)[op.layer]
        theirs = ref.states[op.group].values[op.layer, slot]
        over = np.abs(mine.astype(np.float64) - theirs.double().numpy()) > limit
        assert not over.any(), f"op {op}: the state of slot {slot} is further apart than allowed"
        theirs[:] = torch.from_numpy(mine.copy())


def compare_pages(plan: p.Plan, op: p.RopeKV | p.LatentKV, pages: Pages, ref: TorchBackend, batch: Batch, fine: float) -> None:
    """What an op stored, to the neighbouring number of the cache's format; then the reference takes native's. fine: how far K
    may lie off before it is rounded."""
    group, cache = plan.group(op.group), ref.caches[op.group]
    g = plan.groups[group]
    v_slack = fine if g.kind == "latent" else 0.0     # V is part of the same rows
    for s, total in enumerate(batch.kv_lens):
        for page in batch.tables[group][s][: -(-total // p.PAGE_TOKENS)]:
            slots = slice(page * p.PAGE_TOKENS, (page + 1) * p.PAGE_TOKENS)
            k, v = pages.read(group, page, op.layer)
            written = cache.positions[op.layer, slots].numpy() >= 0
            for mine, theirs, slack, format in ((k, cache.k, fine, g.k_format), (v, cache.v, v_slack, g.v_format)):
                want = theirs[op.layer, slots].double().numpy()
                step = {"f32": 2.0**-23, "f16": 2.0**-10, "bf16": 2.0**-7, "q8_0": 2.0**-10}[format] * np.abs(want) * (slack > 0)
                if format == "q8_0" and slack > 0:   # q may be the neighbour too: a scale
                    most = np.abs(want).reshape(*want.shape[:-1], -1, 32).max(-1, keepdims=True)
                    step += np.broadcast_to(most / 126, (*most.shape[:-1], 32)).reshape(want.shape)
                assert (np.abs(mine - want) <= step + slack + 2.0**-24 * (slack > 0))[written].all()
                theirs[op.layer, slots] = torch.from_numpy(np.where(written[:, None, None], mine, want)).to(theirs.dtype)
