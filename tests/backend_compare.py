"""Two backends side by side, op by op: random ragged steps, and the comparison within op_bounds."""
from __future__ import annotations

import numpy as np
import torch
from op_bounds import bound, conv_bound, latent_row_bound, scan_bound
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


def some_roles(rng: np.random.Generator, n: int) -> np.ndarray:
    """Of n tokens, any or in runs."""
    longest = int(rng.choice([1, 4, 40]))
    return np.concatenate([np.full(rng.integers(1, longest + 1), rng.integers(0, 2)) for _ in range(n)])[:n].astype(np.uint8)


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
        states = sizes_before(op, native, batch)
        native.run(batch, at, at + 1)
        ref.run(batch, at, at + 1)
        name = next(getattr(op, f) for f in ("out", "qkv") if hasattr(op, f))
        got, want = native.slot(name).astype(np.float64), ref.slot(name).astype(np.float64)
        if isinstance(op, p.Scan):
            blocks = native.plan.groups[native.plan.group(op.group)].row > 0
            limit, after = scan_bound(op, weights, batch, before, states, blocks)
        elif isinstance(op, p.Conv):
            limit, after = conv_bound(op, weights, batch, before, want, states), list(map(np.zeros_like, states))
        else:
            limit, after = bound(op, weights, ref, batch, before), []
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


def sizes_before(op: p.Op, native, batch: Batch) -> list[np.ndarray]:
    """How large each sequence's state is before a recurrent op, f64, in its parts: zeros before the first token."""
    if not isinstance(op, (p.Conv, p.Scan)):
        return []
    slots = batch.tables[native.plan.group(op.group)][:, 0]
    old = batch.kv_lens > np.diff(batch.starts)
    return [np.where(was, state_now(native, op, slot, sizes=True), 0.0) for slot, was in zip(slots, old, strict=True)]


def compare_states(plan: p.Plan, op: p.Conv | p.Scan, native, ref: TorchBackend, batch: Batch, limits: list) -> None:
    """What a recurrent op left, within limits; then the reference takes native's."""
    group = plan.group(op.group)
    for slot, limit in zip(batch.tables[group][:, 0], limits, strict=True):
        mine = state_now(native, op, slot)
        theirs = ref.states[op.group].values[op.layer, slot]
        over = np.abs(mine - theirs.double().numpy()) > limit
        assert not over.any(), f"op {op}: the state of slot {slot}, {np.abs(mine - theirs.double().numpy())[over].max()} apart, " \
                               f"{limit[over].max()} allowed"
        theirs[:] = torch.from_numpy(mine.astype(np.float32))


def state_now(native, op: p.Conv | p.Scan, slot: int, sizes: bool = False) -> np.ndarray:
    """A layer's state, f64: a Scan's with what its unfinished block keeps taken in. sizes: of the parts, where they may cancel."""
    group = native.plan.groups[native.plan.group(op.group)]
    state, rows = np.split(native.page(native.plan.group(op.group), slot).view(np.float32).reshape(group.layers, -1)[op.layer]
                           .astype(np.float64), [group.width])
    state, rows = (np.abs(state), np.abs(rows)) if sizes else (state, rows)
    if not group.row:
        return state
    *rows, last = rows.reshape(p.PAGE_TOKENS, group.row)
    assert not last[1:].any() and not np.any(rows[int(last[0]) :])
    span = op.groups * op.numbers
    state = state.reshape(op.heads, op.numbers, -1)
    for row in rows[: int(last[0])]:
        x, b, dt, decay = np.split(row, np.cumsum([group.row - span - 2 * op.heads, span, op.heads]))
        b = b.reshape(op.groups, op.numbers, 1).repeat(op.heads // op.groups, 0)
        state = decay[:, None, None] * state + b * (dt[:, None] * x.reshape(op.heads, -1))[:, None]
    return state.ravel()


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
