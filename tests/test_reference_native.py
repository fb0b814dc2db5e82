"""The native backend against the reference, op by op within bounds derived from the arithmetic (op_bounds), on random
small models, formats, ragged batches, chunkings, page tables and instruction sets."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_bounds import bound
from reference_models import Pages, native_backend, random_values, stored, tables_of

from pyruntime import plan as p
from pyruntime.backends.torch import TorchBackend
from pyruntime.config import RopeScaling
from pyruntime.models import llama
from pyruntime.types import Batch

FLOATS, BLOCKS = ("F32", "F16", "BF16"), ("Q8_0", "Q4_0", "Q4_1")
PAGES, ROWS = 24, 64


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny products gain nothing from torch's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@st.composite
def models(draw) -> tuple[p.Plan, dict[str, str], int]:
    """(plan, format of each matrix, seed) of a random small llama."""
    kv_heads, share = draw(st.integers(1, 3)), draw(st.sampled_from([1, 1, 2, 3, 5]))
    head_dim = 2 * draw(st.integers(1, 20)) if draw(st.booleans()) else draw(st.sampled_from([16, 32, 64]))
    width, hidden = (draw(st.sampled_from([32, 64, 96, 160])) if draw(st.booleans()) else draw(st.integers(3, 90)) for _ in "ab")
    config = llama.tiny(
        layers=draw(st.integers(1, 2)), width=width, heads=kv_heads * share, kv_heads=kv_heads, head_dim=head_dim,
        hidden=hidden, vocab=draw(st.integers(17, 70)), tied=draw(st.booleans()), qkv_bias=draw(st.booleans()),
        qk_norm=draw(st.booleans()), rope_interleaved=draw(st.booleans()), rope_dims=2 * draw(st.integers(1, head_dim // 2)),
        rope_scaling=RopeScaling("linear", 2.5) if draw(st.booleans()) else RopeScaling(),
        k_format=draw(st.sampled_from(["f16", "f16", "f32", "bf16"])), v_format=draw(st.sampled_from(["f16", "f16", "f32", "bf16"])))
    plan = llama.plan(config)
    if draw(st.booleans()):      # what other families use of the same ops
        window, softcap = draw(st.sampled_from([0, 1, 5, 20])), draw(st.sampled_from([0.0, 3.0]))
        kind = draw(st.sampled_from(list(p.Activation)))
        plan = replace(plan, ops=tuple(
            replace(op, window=window, softcap=softcap) if isinstance(op, p.Attention) else
            replace(op, activation=kind) if isinstance(op, p.Gated) else
            replace(op, softcap=softcap, scale=1.5) if isinstance(op, p.Logits) else
            replace(op, scale=0.75) if isinstance(op, p.LinearAdd) else op for op in plan.ops))
    formats = {w.name: draw(st.sampled_from(BLOCKS + FLOATS if w.k % 32 == 0 else FLOATS)) for w in plan.weights if w.k}
    return plan, formats, draw(st.integers(0, 2**32 - 1))


def schedule(plan: p.Plan, rng: np.random.Generator, *, lengths: tuple[int, ...]) -> list[Batch]:
    """Ragged steps: prompts in random chunks beside single tokens, through random pages."""
    sequences = [rng.integers(0, plan.vocab, n) for n in lengths]
    tables, done, steps = tables_of(list(lengths), PAGES, rng), [0] * len(lengths), []
    while any(d < n for d, n in zip(done, lengths, strict=True)):
        live = [i for i, n in enumerate(lengths) if done[i] < n and (rng.random() < 0.8 or len(steps) > 6)]
        if not live:
            continue
        take = {i: int(rng.integers(1, min(lengths[i] - done[i], 20) + 1)) for i in live}
        take = {i: 1 if rng.random() < 0.3 else n for i, n in take.items()}
        flagged = np.flatnonzero(rng.random(sum(take.values())) < 0.5)[:ROWS].astype(np.int32)
        steps.append(Batch.build([(sequences[i][done[i]:done[i] + n], done[i], done[i]) for i, n in take.items()],
                                 tables=[[tables[i] for i in take]], rows=flagged))
        for i, n in take.items():
            done[i] += n
    return steps


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
        native.run(batch, at, at + 1)
        ref.run(batch, at, at + 1)
        name = next(getattr(op, f) for f in ("out", "qkv") if hasattr(op, f))
        got, want = native.slot(name).astype(np.float64), ref.slot(name).astype(np.float64)
        limit = bound(op, weights, ref, batch, before)
        over = np.abs(got - want) > limit
        assert not over.any(), f"op {at} {op}: {np.abs(got - want)[over].max()} apart, {limit[over].max()} allowed"
        if isinstance(op, p.RopeKV):
            compare_pages(plan, op, pages, ref, batch, limit)


def compare_pages(plan: p.Plan, op: p.RopeKV, pages: Pages, ref: TorchBackend, batch: Batch, limit: np.ndarray) -> None:
    """What ROPE_KV stored, to the neighbouring number of the cache's format; then the reference takes native's."""
    group, cache = plan.group(op.group), ref.caches[op.group]
    g = plan.groups[group]
    fine = limit.reshape(len(limit), -1, g.head_dim)[:, op.heads:op.heads + g.kv_heads].max(initial=0)
    for s, total in enumerate(batch.kv_lens):
        for page in batch.tables[group][s][: -(-total // p.PAGE_TOKENS)]:
            slots = slice(page * p.PAGE_TOKENS, (page + 1) * p.PAGE_TOKENS)
            k, v = pages.read(group, page, op.layer)
            written = cache.positions[op.layer, slots].numpy() >= 0
            for mine, theirs, slack, format in ((k, cache.k, fine, g.k_format), (v, cache.v, 0.0, g.v_format)):
                want = theirs[op.layer, slots].double().numpy()
                step = {"f32": 2.0**-23, "f16": 2.0**-10, "bf16": 2.0**-7}[format] * np.abs(want) * (slack > 0)
                assert (np.abs(mine - want) <= step + slack + 2.0**-24 * (slack > 0))[written].all()
                theirs[op.layer, slots] = torch.from_numpy(np.where(written[:, None, None], mine, want)).to(theirs.dtype)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(models(), st.data())
def test_every_op_stays_within_its_bound(model, data):
    """Every op of every step."""
    plan, formats, seed = model
    rng = np.random.default_rng(seed)
    values = random_values(plan, seed)
    low_memory = data.draw(st.booleans())
    blocks = stored(plan, values, formats, low_memory=True)
    native = native_backend(plan, blocks if low_memory else stored(plan, values, formats), pages=PAGES, max_tokens=64,
                            max_rows=ROWS, threads=data.draw(st.integers(1, 2)))
    ref = TorchBackend(plan, blocks, pages=PAGES, max_tokens=64, max_rows=ROWS, dtype=torch.float64)
    lengths = tuple(int(n) for n in rng.integers(1, 45, data.draw(st.integers(1, 3))))
    for batch in schedule(plan, rng, lengths=lengths):
        compare(plan, blocks, native, ref, batch)
    native.close()


@pytest.mark.parametrize("format", BLOCKS + FLOATS)
def test_whole_model_stays_close(format):
    """End to end, errors allowed to travel: 20 decode steps after a chunked prompt, logits of spread >= 1.

    One flipped A16 step is 2^-15 of a token's largest activation, one flipped f16 step 2^-11 of one stored number; through
    two layers both stay below 2^-9 of the largest logit.
    """
    config = llama.tiny(width=96, hidden=160, heads=6, kv_heads=2, head_dim=32)
    plan = llama.plan(config)
    formats = {w.name: format for w in plan.weights if w.k}
    values = random_values(plan, 11)
    native = native_backend(plan, stored(plan, values, formats), pages=PAGES)
    ref = TorchBackend(plan, stored(plan, values, formats, low_memory=True), pages=PAGES)
    ids, rng = np.random.default_rng(2).integers(0, config.vocab, 60), np.random.default_rng(3)
    at, table = 0, rng.permutation(PAGES).tolist()
    for n in [23, 17] + [1] * 20:
        batch = Batch.build([(ids[at:at + n], at, at)], tables=[[table]])
        native.run(batch)
        ref.run(batch)
        got, want = native.slot("logits"), ref.slot("logits")
        assert want.std() >= 0.8
        assert np.abs(got - want).max() <= 2.0**-9 * np.abs(want).max()
        assert np.array_equal(native.sampled()["token"], ref.sampled()["token"])
        at += n
