"""What the native backend refuses: every malformed batch and plan, before anything is computed."""
from __future__ import annotations

import dataclasses

import hypothesis
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference_models import random_values, stored

from pyruntime import errors
from pyruntime._core import _engine
from pyruntime.backends import native
from pyruntime.backends.native import NativeBackend
from pyruntime.config import Experts as Mixture
from pyruntime.models import deepseek_v2, llama
from pyruntime.plan import (
    Attention,
    EachLinear,
    Embed,
    Experts,
    Gated,
    LatentKV,
    Linear,
    LinearAdd,
    Logits,
    NormLinear,
    Rope,
    RopeKV,
    Route,
    RoutedAdd,
    Sample,
    Slot,
)
from pyruntime.types import Batch, greedy_rows
from pyruntime.weights import Stored

PLAN = llama.plan(llama.tiny(qkv_bias=True, qk_norm=True))
WEIGHTS = stored(PLAN, random_values(PLAN, 0), {w.name: "Q8_0" for w in PLAN.weights if w.k})
DEEP = deepseek_v2.plan(deepseek_v2.tiny(vocab=211, experts=Mixture(8, 3, 32, 64, 1, groups=4, groups_kept=2, biased=True)))
DEEP_WEIGHTS = stored(DEEP, random_values(DEEP, 0), {w.name: "Q8_0" for w in DEEP.weights if w.k and w.k % 32 == 0})
SIZES = {"pages": 8, "max_tokens": 32, "max_rows": 16, "max_seqs": 4, "histories": 2, "threads": 2}
ENGINE = NativeBackend(PLAN, WEIGHTS, **SIZES)


def good() -> Batch:
    sampling = greedy_rows(3)
    sampling["bias_count"] = 1
    return Batch.build([([1, 2, -1], 0, 0), ([4], 20, 20)], tables=[[[5], [2, 3]]], rows=[0, 2, 3], sampling=sampling,
                       bias_ids=np.array([7], np.int32), bias_values=np.array([0.5], np.float32),
                       masks=np.full((1, 27), 0xFF, np.uint8), embeddings=np.ones((1, PLAN.width), np.float32),
                       trees=np.array([1, 3, 5, 0], np.uint64))


def put(name: str, index, value):
    def change(batch: Batch) -> Batch:
        array = getattr(batch, name).copy()
        array[index] = value
        return dataclasses.replace(batch, **{name: array})
    return change


def give(name: str, value):
    return lambda batch: dataclasses.replace(batch, **{name: value(getattr(batch, name))})


def row(name: str, value):
    def change(batch: Batch) -> Batch:
        sampling = batch.sampling.copy()
        sampling[name][1] = value
        return dataclasses.replace(batch, sampling=sampling)
    return change


def test_the_batch_they_are_made_from_is_good():
    ENGINE.run(good())
    assert ENGINE.sampled().shape == (3,)


BAD = {
    "token too large": put("tokens", 0, PLAN.vocab),
    "token without an embedding row": put("tokens", 2, -2),
    "least token": put("tokens", 2, -2**31),
    "position below zero": put("positions", 1, -1),
    "role unknown": put("roles", 0, 2),
    "starts not from zero": put("starts", 0, 1),
    "starts going back": put("starts", 1, 5),
    "starts below zero": put("starts", 1, -1),
    "starts past the end": put("starts", 2, 5),
    "starts before the end": put("starts", 2, 3),
    "kv_len below the tokens": put("kv_lens", 0, 2),
    "kv_len past the table": put("kv_lens", 1, 33),
    "kv_len enormous": put("kv_lens", 1, 2**31 - 1),
    "kv_len below zero": put("kv_lens", 1, -5),
    "adapter": put("adapters", 0, 0),
    "row past the end": put("rows", 2, 4),
    "row below zero": put("rows", 0, -1),
    "rows descending": give("rows", lambda r: r[::-1].copy()),
    "bias token": put("bias_ids", 0, PLAN.vocab),
    "page past the arena": give("tables", lambda t: (np.array([[5, 0], [2, 8]], np.int32),)),
    "page below zero": give("tables", lambda t: (np.array([[-1, 0], [2, 3]], np.int32),)),
    "one page, two writers": give("tables", lambda t: (np.array([[3, 0], [2, 3]], np.int32),)),
    "no table": give("tables", lambda t: ()),
    "two tables": give("tables", lambda t: t * 2),
    "table of one row": give("tables", lambda t: (t[0][:1],)),
    "flat table": give("tables", lambda t: (t[0].reshape(-1),)),
    "wide integers": give("tokens", lambda t: t.astype(np.int64)),
    "floats": give("positions", lambda t: t.astype(np.float32)),
    "strided": give("tokens", lambda t: np.repeat(t, 2)[::2]),
    "swapped bytes": give("tokens", lambda t: t.astype(">i4")),
    "list": give("tokens", lambda t: t.tolist()),
    "none": give("rows", lambda t: None),
    "positions short": give("positions", lambda t: t[:-1]),
    "starts short": give("starts", lambda t: t[:-1]),
    "sampling short": give("sampling", lambda t: t[:-1]),
    "sampling of another kind": give("sampling", lambda t: np.zeros(3, np.uint8)),
    "bias values short": give("bias_values", lambda t: t[:0]),
    "masks narrow": give("masks", lambda t: t[:, :-1].copy()),
    "embeddings narrow": give("embeddings", lambda t: t[:, :-1].copy()),
    "trees short": give("trees", lambda t: t[:-1].copy()),
    "trees of another kind": give("trees", lambda t: t.astype(np.int64)),
    "tree without itself": put("trees", 1, 1),
    "tree past its sequence": put("trees", 0, 9),
    "tree of another sequence": put("trees", 3, 2),
    "temperature": row("temperature", np.nan),
    "history": row("history", 2),
    "mask": row("allowed", 1),
    "bias slice": row("bias_first", 1),
    "bias slice wraps": row("bias_count", 2**31 - 1),
    "logprobs": row("logprobs", 21),
}


@pytest.mark.parametrize("what", BAD)
def test_a_malformed_batch_is_refused(what):
    ENGINE.run(good())
    before = ENGINE.slot("logits").copy()
    with pytest.raises(errors.FieldInvalid) as error:
        ENGINE.run(BAD[what](good()))
    assert "\n" not in str(error.value)
    ENGINE.run(good())
    assert np.array_equal(before, ENGINE.slot("logits"))


@pytest.mark.parametrize("sequences, tables, rows", [
    ([], [[]], []),
    ([([1] * 33, 0, 0)], [[[0, 1, 2]]], [0]),
    ([([1], 0, 0)] * 5, [[[i] for i in range(5)]], [0]),
    ([([1], 0, 0)], [[[0]]], [0] * 17),
    ([([1], 0, 128)], [[[0] * 9]], [0]),
])
def test_a_batch_of_the_wrong_size_is_refused(sequences, tables, rows):
    empty = {} if sequences else {"tokens": np.zeros(0, np.int32), "positions": np.zeros(0, np.int32)}
    with pytest.raises(errors.FieldInvalid):
        ENGINE.run(Batch.build(sequences or [([1], 0, 0)], tables=tables if sequences else [[[0]]], rows=rows, **empty))


@pytest.mark.parametrize("first, last", [(-1, 2), (3, 2), (0, 10**6), (0, -1)])
def test_a_range_of_ops_outside_the_plan_is_refused(first, last):
    with pytest.raises(errors.FieldInvalid):
        ENGINE.run(good(), first, last)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_no_batch_of_numbers_crashes(data):
    """Any i32 anywhere: refused with one line, or computed."""
    batch = good()
    odd = st.one_of(st.integers(-3, 40), st.sampled_from([-2**31, 2**31 - 1, 2**16, PLAN.vocab - 1, PLAN.vocab]))
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(["tokens", "positions", "starts", "kv_lens", "rows", "adapters", "bias_ids", "tables"]))
        array = batch.tables[0].copy() if name == "tables" else getattr(batch, name).copy()
        array.reshape(-1)[data.draw(st.integers(0, array.size - 1))] = data.draw(odd)
        batch = dataclasses.replace(batch, **{name: (array,) if name == "tables" else array})
    try:
        ENGINE.run(batch)
    except errors.FieldInvalid as error:
        assert "\n" not in str(error)


# ---- plans ----

def with_op(kind, **fields):
    """PLAN with the first op of a kind changed."""
    def change(plan):
        ops = list(plan.ops)
        at = next(i for i, op in enumerate(ops) if isinstance(op, kind))
        ops[at] = dataclasses.replace(ops[at], **fields)
        return dataclasses.replace(plan, ops=tuple(ops))
    return change


def with_slot(name: str, **fields):
    return lambda plan: dataclasses.replace(
        plan, slots=tuple(dataclasses.replace(s, **fields) if s.name == name else s for s in plan.slots))


def with_group(**fields):
    return lambda plan: dataclasses.replace(plan, groups=(dataclasses.replace(plan.groups[0], **fields),))


BAD_PLANS = {
    "slot unknown": with_op(Embed, out="nowhere"),
    "weight unknown": with_op(NormLinear, w1="nowhere"),
    "group unknown": with_op(RopeKV, group="nowhere"),
    "layer past the group": with_op(RopeKV, layer=2),
    "layer below zero": with_op(Attention, layer=-1),
    "layer enormous": with_op(Attention, layer=2**40),
    "heads uneven": with_op(Attention, heads=5),
    "heads zero": with_op(RopeKV, heads=0),
    "heads too many": with_op(Attention, heads=8),
    "rope unknown": with_op(RopeKV, rope=1),
    "rope below none": with_op(RopeKV, rope=-2),
    "norm of another width": with_op(NormLinear, norm="blk.0.attn_q_norm.weight"),
    "norm that is a matrix": with_op(NormLinear, norm="token_embd.weight"),
    "matrix that is a vector": with_op(NormLinear, w0="blk.0.attn_norm.weight"),
    "bias of another width": with_op(NormLinear, b0="blk.0.attn_k.bias"),
    "k of another width": with_op(LinearAdd, weight="blk.0.ffn_down.weight"),
    "gate and up apart": with_op(Gated, up="blk.0.attn_q.weight"),
    "activation unknown": with_op(Gated, activation=3),
    "activation below none": with_op(NormLinear, activation=-2),
    "activation past the last": with_op(NormLinear, activation=3),
    "gate without an activation": with_op(Gated, activation=-1),
    "norm kind unknown": with_op(NormLinear, norm_kind=2),
    "norm kind of logits unknown": with_op(Logits, norm_kind=-1),
    "norm bias of another width": with_op(NormLinear, norm_bias="blk.0.attn_q_norm.weight"),
    "norm bias of logits of another width": with_op(Logits, norm_bias="blk.0.attn_q_norm.weight"),
    "positions of another width": with_op(Embed, positions="blk.0.ffn_down.weight"),
    "positions that are a vector": with_op(Embed, positions="output_norm.weight"),
    "positions unknown": with_op(Embed, positions="nowhere"),
    "epsilon not finite": with_op(Gated, eps=float("nan")),
    "scale not finite": with_op(Embed, scale=float("inf")),
    "softcap not finite": with_op(Logits, softcap=float("nan")),
    "window below zero": with_op(Attention, window=-1),
    "window of a group that attention sees past": with_group(window=7),
    "group's window below zero": with_group(window=-1),
    "in place": with_op(LinearAdd, x="x"),
    "attention in place": with_op(Attention, out="qkv"),
    "logits for every token": with_op(Logits, out="x"),
    "sample from every token": with_op(Sample, logits="x"),
    "sinks short": with_op(Attention, sinks="blk.0.attn_q_norm.weight"),
    "q norm short": with_op(RopeKV, q_norm="blk.0.attn_norm.weight"),
    "slot narrow": with_slot("qkv", width=159),
    "slot wide": with_slot("hidden", width=161),
    "slot of no width": with_slot("x", width=0),
    "slot below zero": with_slot("mixed", width=-96),
    "logits narrow": with_slot("logits", width=210),
    "logits for tokens": with_slot("logits", per_row=False),
    "residual for rows": with_slot("x", per_row=True),
    "group of one layer": with_group(layers=1),
    "group of other heads": with_group(kv_heads=3),
    "group of other width": with_group(head_dim=15),
    "group of no layers": with_group(layers=0),
    "group of negative width": with_group(head_dim=-16),
    "group enormous": with_group(layers=4096, kv_heads=4096, head_dim=4096),
    "cache format unknown": with_group(k_format="q3"),
    "cache format that stores nothing": with_group(v_format="q4_0"),
    "cache of blocks in a head that has no whole ones": with_group(k_format="q8_0"),
    "group of another kind": with_group(kind="state"),
    "vocabulary larger": lambda plan: dataclasses.replace(plan, vocab=212),
    "width smaller": lambda plan: dataclasses.replace(plan, width=64),
    "frequency not finite": lambda plan: dataclasses.replace(plan, ropes=(Rope((1.0, float("nan")), True),)),
    "rope too long": lambda plan: dataclasses.replace(plan, ropes=(Rope((1.0,) * 9, True),)),
    "rope empty": lambda plan: dataclasses.replace(plan, ropes=(Rope((), True),)),
    "no ops": lambda plan: dataclasses.replace(plan, ops=()),
    "no slots": lambda plan: dataclasses.replace(plan, slots=()),
}


@pytest.mark.parametrize("what", BAD_PLANS)
def test_a_plan_that_does_not_hold_together_is_refused(what):
    with pytest.raises((errors.FieldInvalid, errors.ModelInvalid, MemoryError)) as error:
        NativeBackend(BAD_PLANS[what](PLAN), WEIGHTS, **SIZES)
    assert "\n" not in str(error.value)


DOWN = next(op for op in DEEP.ops if isinstance(op, EachLinear) and op.routes)


def with_down(**fields):
    """The first EACH_LINEAR that follows routes."""
    return lambda plan: dataclasses.replace(
        plan, ops=tuple(dataclasses.replace(op, **fields) if op is DOWN else op for op in plan.ops))


BAD_DEEP = {
    "latent rows in a paged group": with_group(kind="paged", kv_heads=1),
    "K and V apart in a latent group": lambda plan: dataclasses.replace(plan, ops=(
        *plan.ops[:-1], RopeKV("queries", "kv", 0, heads=2, rope=None))),
    "latent group of two heads": with_group(kv_heads=2),
    "latent wider than its row": with_group(width=41),
    "latent of no numbers": with_group(width=0),
    "latent of two formats": with_group(v_format="f32"),
    "latent of another rank": with_group(width=16),
    "row of another width": with_slot("kv", width=41),
    "queries of another width": with_slot("queries", width=161),
    "results of another width": with_slot("mixed", width=4 * 40),
    "latent layer past the group": with_op(LatentKV, layer=3),
    "latent norm of another width": with_op(LatentKV, norm="blk.0.attn_norm.weight"),
    "latent without a rope": with_op(LatentKV, rope=None),
    "latent in place": with_op(LatentKV, q="queries"),
    "rope wider than what is turned": lambda plan: dataclasses.replace(plan, ropes=(Rope((1.0,) * 5, True),)),
    "queries narrower than what is turned": with_op(LatentKV, q="x", heads=16),
    "latent epsilon not finite": with_op(LatentKV, eps=float("inf")),
    "each in place": with_op(EachLinear, out="q"),
    "each with no part": with_op(EachLinear, parts=0, of=0),
    "each of no matrix": with_down(of=0),
    "each with more parts than matrices": with_op(EachLinear, parts=8),
    "each of fewer matrices than parts": with_op(EachLinear, of=8),
    "each of matrices that are no whole groups": with_op(EachLinear, weight="blk.0.attn_q_b.weight"),
    "each of matrices that do not divide": with_down(of=7),
    "each of a vector": with_op(EachLinear, weight="output_norm.weight"),
    "each from a narrow slot": with_op(EachLinear, x="x", weight="blk.0.attn_v_b.weight"),
    "each into a narrow slot": with_op(EachLinear, out="values"),
    "each by routes of another width": with_down(parts=2),
    "each by routes that are none": with_down(routes="router"),
    "each by its own output": with_down(out=DOWN.routes),
    "experts of more than there are": with_op(Experts, parts=9),
    "experts enormous": with_op(Experts, of=2**30),
    "experts below zero": with_op(Experts, parts=-3),
    "experts' gate and up apart": with_op(Experts, up="blk.1.ffn_down_exps.weight"),
    "experts' norm of another width": with_op(Experts, norm="blk.0.attn_kv_a_norm.weight"),
    "experts' activation unknown": with_op(Experts, activation=-1),
    "experts into a narrow slot": with_op(Experts, out="x"),
    "experts without routes": with_op(Experts, routes=None),
    "experts' epsilon not finite": with_op(Experts, eps=float("nan")),
    "more experts chosen than stay": with_op(Route, top_k=5),
    "no expert chosen": with_op(Route, top_k=0),
    "groups that do not divide": with_op(Route, groups=3),
    "no groups": with_op(Route, groups=0),
    "more groups kept than there are": with_op(Route, groups_kept=5),
    "no group kept": with_op(Route, groups_kept=0),
    "groups judged by none": with_op(Route, group_best=0),
    "groups judged by more than they have": with_op(Route, group_best=3),
    "scoring unknown": with_op(Route, scoring=2),
    "normalize unknown": with_op(Route, normalize=2),
    "routing bias of another width": with_op(Route, bias="blk.0.attn_norm.weight"),
    "routes of another width": with_op(Route, out="router"),
    "routes' scale not finite": with_op(Route, scale=float("nan")),
    "more experts than a token may choose from": lambda plan: with_op(Route, groups=1)(with_slot("router", width=4096)(plan)),
    "routed sum of another width": with_op(RoutedAdd, parts=2),
    "routed sum in place": with_op(RoutedAdd, out="results"),
    "routed sum of no parts": with_op(RoutedAdd, parts=0),
    "routed sum by what is no route": with_op(RoutedAdd, routes="router"),
}


@pytest.mark.parametrize("what", BAD_DEEP)
def test_a_plan_of_latents_and_experts_that_does_not_hold_together_is_refused(what):
    NativeBackend(DEEP, DEEP_WEIGHTS, **SIZES).close()
    with pytest.raises((errors.FieldInvalid, errors.ModelInvalid)) as error:
        NativeBackend(BAD_DEEP[what](DEEP), DEEP_WEIGHTS, **SIZES)
    assert "\n" not in str(error.value)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), st.booleans())
def test_no_words_of_a_plan_crash(data, deep):
    """The tables C reads, with any words changed: refused with one line, or bound and then run safely."""
    plan, weights = (DEEP, DEEP_WEIGHTS) if deep else (PLAN, WEIGHTS)
    ops, rest = native._words(plan), {k: v for k, v in SIZES.items() if k != "pages"}
    slots = np.array([(s.width, s.per_row) for s in plan.slots], np.int32)
    groups = np.array([native._group(plan.groups[0], 8)], np.int32)
    odd = st.one_of(st.integers(0, 12), st.sampled_from([2**32 - 1, 2**31, 2**31 - 1, 96, 160, 2**24, 0x7FC00000, 0x7F800000]))
    for _ in range(data.draw(st.integers(1, 4))):
        table = data.draw(st.sampled_from([ops, ops, ops, slots.view(np.uint32), groups.view(np.uint32)]))
        row = data.draw(st.integers(0, table.shape[0] - 1))
        table[row, data.draw(st.integers(0, min(table.shape[1], 14) - 1))] = data.draw(odd)
    _, layers, kv_heads, head_dim, _, _, _, width, _, pages = groups[0].tolist()
    hypothesis.assume(layers * max(kv_heads * head_dim, width) * max(pages, 1) < 2**28)
    try:
        engine = _engine.Engine(ops, slots, list(weights), groups, [(np.array(plan.ropes[0].inv_freq), True, 1.0)], plan.vocab,
                                plan.width, isa=0, pool=0, prompt_path=data.draw(st.integers(0, 2)), generated_path=0, **rest)
    except (errors.FieldInvalid, errors.ModelInvalid, MemoryError) as error:
        assert "\n" not in str(error)
        return
    for first in range(len(ops)):
        try:
            engine.run(good(), first, first + 1)
        except errors.FieldInvalid as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("change", [
    {"rows": 1}, {"rows": 2**31 - 1}, {"k": 64}, {"k": 2**30}, {"format": 99}, {"format": -1}, {"format": 0},
    {"packed": np.zeros(64, np.uint8)}, {"packed": np.zeros(0, np.uint8)},
])
def test_weights_that_are_not_their_plan_s_are_refused(change):
    """Rows and k are compared with the plan; bytes with format, rows and k in C, whatever the plan says."""
    name = "blk.0.attn_q.weight"
    lie = dataclasses.replace(WEIGHTS[name], **change)
    weights: list[Stored] = [lie if w.name == name else w for w in WEIGHTS]
    with pytest.raises(errors.ModelInvalid if {"rows", "k"} & set(change) else errors.FieldInvalid):
        NativeBackend(PLAN, weights, **SIZES)
    plan = dataclasses.replace(PLAN, weights=tuple(
        dataclasses.replace(w, rows=lie.rows, k=lie.k) if w.name == name else w for w in PLAN.weights))
    with pytest.raises((errors.ModelInvalid, errors.FieldInvalid)):
        NativeBackend(plan, weights, **SIZES)


def test_a_missing_weight_is_named():
    with pytest.raises(errors.ModelInvalid, match=r"blk\.1\.ffn_up\.weight"):
        NativeBackend(PLAN, [w for w in WEIGHTS if w.name != "blk.1.ffn_up.weight"], **SIZES)


@pytest.mark.parametrize("option", [
    {"max_tokens": 0}, {"max_tokens": 2**20}, {"max_rows": 0}, {"max_seqs": -1}, {"histories": -1}, {"threads": 0},
    {"threads": 5000},
    {"pages": 0}, {"pages": (1, 2)}, {"pages": 2**30}, {"isa": "sse9"}, {"pool": "tbb"},
])
def test_sizes_outside_their_range_are_refused(option):
    with pytest.raises(errors.FieldInvalid):
        NativeBackend(PLAN, WEIGHTS, **{**SIZES, **option})


def test_a_cache_larger_than_memory_is_a_memory_error():
    with pytest.raises(MemoryError, match="pages"):
        NativeBackend(dataclasses.replace(PLAN, groups=(dataclasses.replace(PLAN.groups[0], layers=4096),)), WEIGHTS,
                      **{**SIZES, "pages": 1 << 24})


def test_linear_stands_alone_too():
    """The op no family uses yet: out = W x + bias, from a slot no norm touches."""
    ops = (PLAN.ops[0], Linear("x", "q", "blk.0.attn_q.weight", "blk.0.attn_q.bias"))
    plan = dataclasses.replace(PLAN, ops=ops, slots=PLAN.slots + (Slot("q", 96),))
    engine = NativeBackend(plan, WEIGHTS, **SIZES)
    engine.run(Batch.build([([3, 9], 0, 0)], tables=[[[0]]]))
    x = engine.slot("x").astype(np.float64)
    want = x @ WEIGHTS["blk.0.attn_q.weight"].f32().T.astype(np.float64) + WEIGHTS["blk.0.attn_q.bias"].f32()
    assert np.abs(engine.slot("q") - want).max() <= 1e-4 * np.abs(want).max()
