"""States: what a recurrent layer keeps of a sequence. They live, fork, go back and are given away as pages are, and the answers are
those of the sequence alone."""
from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from backend_compare import some_roles
from hybrid_plans import mamba_and_gemma, mamba_and_llama
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from reference_models import native_backend, random_values, stored
from server_fixture import serving
from test_llm import load
from test_windows import WINDOW
from tiny_model import write_tiny_mamba

from pyruntime import LLM, SamplingParams
from pyruntime import plan as p
from pyruntime.backends.torch import TorchBackend
from pyruntime.client import Client
from pyruntime.engine.scheduler import Scheduler, Sequence
from pyruntime.errors import FieldInvalid, ModelInvalid
from pyruntime.loading import _plan_memory, open_model, page_bytes, state_bytes
from pyruntime.models import mamba2
from pyruntime.plan import PAGE_TOKENS, Plan
from pyruntime.types import Batch, greedy_rows

PLANS = {
    "mamba": mamba2.plan(mamba2.tiny(context=160)),
    "mamba and llama": mamba_and_llama(k_format="f32", v_format="f32"),
    "mamba and gemma": mamba_and_gemma(WINDOW),
}
SLOTS, CONTEXT = 5, 160
SIZES = {"max_tokens": 64, "max_rows": 64, "histories": 4}


pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def weights(name: str):
    plan = PLANS[name]
    return stored(plan, random_values(plan, 7), {w.name: "Q8_0" for w in plan.weights if w.k and w.k % 32 == 0})


def pages(plan: Plan, paged: int = 64, states: int = SLOTS) -> tuple[int, ...]:
    return tuple(states if g.kind == "state" else paged for g in plan.groups)


def native(name: str, **more):
    return native_backend(PLANS[name], weights(name), **{"threads": 2, "pages": pages(PLANS[name]), **SIZES, **more})


def step(plan: Plan, ids: list[int], at: int, slot: int, table: list[int], role: int = 0) -> Batch:
    """One sequence's tokens, in the slot and in pages."""
    tables = [[[slot]] if g.kind == "state" else [table] for g in plan.groups]
    return replace(Batch.build([(ids, at, at)], tables=tables, rows=np.arange(len(ids))), roles=np.full(len(ids), role, np.uint8))


# ---- answers ----

def answer(name: str, prompt: list[int], count: int) -> tuple[list[int], np.ndarray]:
    """Greedy, alone, the prompt in one piece, and the logits each token was taken from."""
    backend, ids, at, rows = native(name, max_tokens=CONTEXT, max_rows=CONTEXT), list(prompt), 0, []
    while len(ids) < len(prompt) + count:
        backend.run(step(backend.plan, ids[at:], at, 2, list(range(10)), role=at > 0))
        rows.append(backend.slot("logits")[-1].copy())
        at = len(ids)
        ids.append(int(backend.sampled()["token"][-1]))
    return ids[len(prompt) :], np.stack(rows)


@pytest.mark.parametrize("name", PLANS)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_answers_do_not_depend_on_batch_chunks_slots_or_preemption(name: str, data: st.DataObject) -> None:
    """Tokens and logits, to the last bit; prompts in chunks beside single tokens, few pages, cancelled neighbours."""
    plan, rng = PLANS[name], np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    jobs = data.draw(st.lists(st.tuples(st.integers(1, 70), st.integers(1, 20), st.booleans()), min_size=1, max_size=5))
    chunk, running = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 4))
    paged = data.draw(st.integers(7, 16))
    backend = native(name, pages=pages(plan, paged, running))
    scheduler = Scheduler(backend.pages, groups=plan.groups, context=CONTEXT, max_running=running, max_tokens=64, max_rows=64,
                          chunk=chunk)
    wanted = {Sequence(rng.integers(0, plan.vocab, n).tolist(), greedy_rows(1)): (count, stays) for n, count, stays in jobs}
    seen: dict[Sequence, list[np.ndarray]] = {s: [] for s in wanted}
    for s in wanted:
        scheduler.add(s)
    while (one := scheduler.schedule()) is not None:
        scheduler.check()
        backend.run(one.batch)
        scheduler.commit(one, backend.sampled()["token"])
        for flagged in one.flagged:
            s = flagged.sequence
            seen[s].append(backend.slot("logits")[flagged.row].copy())
            if s.generated == wanted[s][0] or (s.generated == 3 and not wanted[s][1]):
                scheduler.finish(s)
    assert scheduler.pages_used == 0
    if all(g.kind == "state" for g in plan.groups):
        assert scheduler.preemptions == 0, "a seat has its states"
    for s in wanted:
        want, logits = answer(name, s.tokens[: s.prompt], s.generated)
        assert s.tokens[s.prompt :] == want and np.array_equal(np.stack(seen[s]), logits)


@pytest.mark.parametrize("name", ["mamba and llama", "mamba and gemma"])     # states alone are never short
def test_preempted_sequences_begin_again(name: str) -> None:
    """A state is recomputed from its first token, whatever its new slot held."""
    plan = PLANS[name]
    backend = native(name, pages=pages(plan, 8))
    scheduler = Scheduler(backend.pages, groups=plan.groups, context=CONTEXT, max_running=3, max_tokens=64, max_rows=8, chunk=32)
    sequences = [Sequence([i + 1] * 20, greedy_rows(1)) for i in range(3)]
    for s in sequences:
        scheduler.add(s)
    while (one := scheduler.schedule()) is not None:
        backend.run(one.batch)
        scheduler.commit(one, backend.sampled()["token"])
        for s, _ in one.parts:
            if s.generated == 50:
                scheduler.finish(s)
    assert scheduler.preemptions
    assert all(s.tokens[20:] == answer(name, s.tokens[:20], 50)[0] for s in sequences)


@pytest.mark.parametrize("name", PLANS)
def test_threads_and_sets_and_profiles(name: str) -> None:
    """The same bits on any threads and every instruction set of one path; in every profile chunks do not matter."""
    from pyruntime._core import _engine

    plan, ids = PLANS[name], np.random.default_rng(3).integers(0, 211, 50).tolist()

    def run(chunks: list[int], **options) -> np.ndarray:
        backend, at, rows = native(name, **options), 0, []
        for n in chunks:
            backend.run(step(plan, ids[at : at + n], at, 1, [3, 1, 7, 5]))
            rows.append(backend.slot("logits").copy())
            at += n
        return np.concatenate(rows)

    alike = {precision: run([50], precision=precision, paths=("a16", "a16")) for precision in ("precise", "balanced")}
    assert not np.array_equal(*alike.values()), "the recurrence runs in blocks unless precise"
    for isa in (isa for isa, missing in _engine.isas() if not missing):
        for precision, want in alike.items():
            assert np.array_equal(want, run([50], precision=precision, paths=("a16", "a16"), isa=isa, threads=1))
    for precision in ("precise", "balanced", "throughput"):
        whole = run([50], precision=precision)
        assert np.array_equal(whole, run([9, 1, 1, 20, 19], precision=precision))
        assert np.array_equal(whole, run([1] * 50, precision=precision, threads=1))


@pytest.mark.parametrize("name", PLANS)
@settings(max_examples=12, deadline=None)
@given(st.data())
def test_blocks_stand_at_absolute_positions(name: str, data: st.DataObject) -> None:
    """Prompt and generated tokens in any runs: how they are cut into steps shows in no logit and in no byte of a state."""
    plan, rng = PLANS[name], np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    ids, roles = rng.integers(0, plan.vocab, 60), some_roles(rng, 60)
    cuts = sorted({*data.draw(st.lists(st.integers(1, 59), max_size=12)), 60})
    whole, parts = native(name), native(name)
    table, states = [3, 1, 7, 5], [i for i, g in enumerate(plan.groups) if g.kind == "state"]
    whole.run(replace(step(plan, ids.tolist(), 0, 0, table), roles=roles))
    got = []
    for at, end in zip([0, *cuts], cuts, strict=False):
        parts.run(replace(step(plan, ids[at:end].tolist(), at, 0, table), roles=roles[at:end]))
        got.append(parts.slot("logits").copy())
    assert np.array_equal(whole.slot("logits"), np.concatenate(got))
    assert all(np.array_equal(whole.page(g, 0), parts.page(g, 0)) for g in states)


# ---- memory ----

def test_memory_per_sequence_is_constant() -> None:
    """One slot of each group from the first token to the last; the plan counts seats, not tokens."""
    plan = PLANS["mamba"]
    backend = native("mamba", pages=2)
    scheduler = Scheduler((2, 2), groups=plan.groups, context=1 << 20, max_running=2, max_tokens=64, max_rows=8, chunk=16)
    assert scheduler.context == 1 << 20
    s = Sequence([5] * 40, greedy_rows(1))
    scheduler.add(s)
    used = set()
    while s.generated < 600:
        one = scheduler.schedule()
        backend.run(one.batch)
        scheduler.commit(one, backend.sampled()["token"])
        used.add(scheduler.pages_used)
    assert used == {2} and scheduler.preemptions == 0
    for context in (160, 1 << 20):
        memory = _plan_memory(replace(plan, context=context), weights("mamba"), context, None, 3, 32)
        assert memory.pages == (3, 3) and memory.kv == 3 * state_bytes(plan) == 3 * sum(
            4 * g.layers * (g.width + PAGE_TOKENS * g.row) for g in plan.groups)
        assert state_bytes(plan.token_by_token()) == sum(4 * g.layers * g.width for g in plan.groups)
    mixed = PLANS["mamba and llama"]
    memory = _plan_memory(mixed, weights("mamba and llama"), CONTEXT, 160, 3, 32)
    assert memory.pages == (3, 3, 160 // PAGE_TOKENS) and memory.kv == 3 * state_bytes(mixed) + 10 * page_bytes(mixed.groups[2])


# ---- going on, forking, going back ----

def backends(name: str):
    plan = PLANS[name]
    return [native(name), TorchBackend(plan, weights(name), pages=pages(plan), act_quant="none", **SIZES)]


@pytest.mark.parametrize("kind", [0, 1], ids=["native", "torch"])
@pytest.mark.parametrize("name", PLANS)
def test_a_state_goes_on_only_from_where_it_is(name: str, kind: int) -> None:
    backend, plan, table = backends(name)[kind], PLANS[name], [0, 1, 2, 3]
    backend.run(step(plan, [1] * 20, 0, 0, table))
    for at in (19, 21, 1):
        with pytest.raises(FieldInvalid, match="seen"):
            backend.run(step(plan, [1], at, 0, table))
    with pytest.raises(FieldInvalid, match="seen"):
        backend.run(step(plan, [1], 20, 1, table))       # a slot that saw nothing
    backend.run(step(plan, [1], 20, 0, table))
    with pytest.raises(FieldInvalid, match="seen"):
        backend.run(step(plan, [1], 20, 0, table))       # the same step again
    backend.run(step(plan, [1] * 5, 0, 0, table))        # from nothing: always
    first, last = 3, len(plan.ops)
    batch = step(plan, [1] * 2, 5, 0, table)
    backend.run(batch, 0, first)
    backend.run(batch, first, last)
    with pytest.raises(FieldInvalid, match="seen"):
        backend.run(batch, first, last)


@pytest.mark.parametrize("kind", [0, 1], ids=["native", "torch"])
def test_bad_slots_are_refused(kind: int) -> None:
    backend = backends("mamba")[kind]
    two = [([1], 0, 0), ([2], 0, 0)]
    for tables in ([[[0], [0]]] * 2, [[[0], [SLOTS]]] * 2, [[[-1], [1]]] * 2, [[[], []]] * 2):
        with pytest.raises(FieldInvalid):
            backend.run(Batch.build(two, tables=tables))
    with pytest.raises(FieldInvalid, match="trees"):
        backend.run(Batch.build(two, tables=[[[0], [1]]] * 2, trees=np.array([1, 1], np.uint64)))
    for group, slot, length, snapshots in ((2, 0, 0, ()), (-1, 0, 0, ()), (0, SLOTS, 0, ()), (0, 0, -1, ()), (0, 0, 1, (SLOTS,))):
        with pytest.raises(FieldInvalid):
            backend.state_truncate(group, slot, length, snapshots)
    backend.run(Batch.build(two, tables=[[[0], [1]]] * 2))


@pytest.mark.parametrize("kind", [0, 1], ids=["native", "torch"])
def test_a_fork_goes_its_own_way(kind: int) -> None:
    """Both go on from the same state, each with tokens of its own, as two sequences that were read apart."""
    backend, plan, ids = backends("mamba")[kind], PLANS["mamba"], list(range(30))

    def rows(tokens: list[int], at: int, slot: int) -> np.ndarray:
        backend.run(step(plan, tokens, at, slot, []))
        return backend.slot("logits").copy()

    rows(ids, 0, 0)
    for group in range(2):
        backend.copy_page(group, 0, 3)
    forked, own = rows([7, 8], 30, 3), rows([9, 10, 11], 30, 0)
    for got, tail in ((forked, [7, 8]), (own, [9, 10, 11])):
        want = rows([*ids, *tail], 0, 1)[30:]
        assert np.array_equal(got, want) if kind == 0 else np.abs(got - want).max() <= 1e-4 * np.abs(want).max()


class Rollback(RuleBasedStateMachine):
    """Read, keep snapshots, go back: after anything a state is bit for bit what its tokens make it."""

    SNAPSHOTS = (1, 2, 3)

    def __init__(self) -> None:
        super().__init__()
        self.plan = PLANS["mamba"]
        self.backend, self.fresh = native("mamba"), native("mamba")
        self.tokens: list[int] = []
        self.kept: dict[int, list[int]] = {}

    @rule(tokens=st.lists(st.integers(0, 210), min_size=1, max_size=12))
    def read(self, tokens: list[int]) -> None:
        if len(self.tokens) + len(tokens) <= 60:
            self.backend.run(step(self.plan, tokens, len(self.tokens), 0, []))
            self.tokens += tokens

    @precondition(lambda self: self.tokens)
    @rule(slot=st.sampled_from(SNAPSHOTS))
    def keep(self, slot: int) -> None:
        for group in range(2):
            self.backend.copy_page(group, 0, slot)
        self.kept[slot] = list(self.tokens)

    @rule(length=st.integers(0, 60))
    def go_back(self, length: int) -> None:
        """Rejected drafts, or an answer taken up again from earlier on: snapshots of other tokens are forgotten first."""
        usable = [slot for slot, tokens in self.kept.items() if tokens == self.tokens[: len(tokens)]]
        left = {self.backend.state_truncate(group, 0, length, usable) for group in range(2)}
        now = len(self.tokens)
        want = now if now <= length else max([len(self.kept[s]) for s in usable if len(self.kept[s]) <= length], default=0)
        assert left == {want}
        self.tokens = self.tokens[:want]

    @rule(slot=st.sampled_from(SNAPSHOTS))
    def check(self, slot: int) -> None:
        for where, tokens in ((0, self.tokens), (slot, self.kept.get(slot, []))):
            if tokens:
                self.fresh.run(step(self.plan, tokens, 0, 4, []))
                for group in range(2):
                    assert np.array_equal(self.backend.page(group, where), self.fresh.page(group, 4))
                    assert (self.backend.seen(group, where) == len(tokens)).all()

    def teardown(self) -> None:
        self.check(1)


TestRollback = Rollback.TestCase
TestRollback.settings = settings(max_examples=25, stateful_step_count=14, deadline=None)


def test_both_backends_go_back_alike() -> None:
    plan, rng = PLANS["mamba"], np.random.default_rng(0)
    both = backends("mamba")
    for _ in range(40):
        at, slots = int(rng.integers(1, 20)), rng.permutation(4)[:3]
        tokens, length = rng.integers(0, 211, at).tolist(), int(rng.integers(0, 25))
        for backend in both:
            backend.run(step(plan, tokens, 0, int(slots[0]), []))
        assert len({backend.state_truncate(0, int(slots[1]), length, slots[1:].tolist()) for backend in both}) == 1


def test_rejected_tokens_roll_back() -> None:
    """As speculation does it: a snapshot before the guesses, all of them wrong; the answer is that without guesses."""
    backend, plan, prompt = native("mamba"), PLANS["mamba"], list(range(11))
    want, _ = answer("mamba", prompt, 8)
    ids, at = list(prompt), 0
    while len(ids) < len(prompt) + 8:
        backend.run(step(plan, ids[at:], at, 0, [], role=at > 0))
        best = int(backend.slot("logits")[-1].argmax())
        for group in range(2):
            backend.copy_page(group, 0, 1)
        backend.run(step(plan, [(best + k) % 211 for k in range(1, 5)], len(ids), 0, [], role=1))
        at = len(ids)
        assert {backend.state_truncate(group, 0, at, (1,)) for group in range(2)} == {at}
        ids.append(best)
    assert ids[len(prompt) :] == want


# ---- the whole stack on a model of states alone ----

@pytest.fixture(scope="module")
def tiny_mamba(tmp_path_factory) -> Path:
    return write_tiny_mamba(tmp_path_factory.mktemp("mamba") / "mamba.gguf")


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_an_engine_of_states(tiny_mamba: Path, backend: str) -> None:
    greedy = SamplingParams(max_tokens=12, temperature=0.0, ignore_end=True)
    with load(tiny_mamba, backend, chunk=8) as llm:
        prompts = [[5, 6, 7] * n for n in (1, 9, 4, 30, 2)]
        together = llm.generate(prompts, greedy)
        assert [d.token_ids for d in together] == [llm.generate(p, greedy).token_ids for p in prompts]
        assert llm.stats().pages_used == 0 and llm.stats().pages_total == 8 and llm.stats().preemptions == 0


def test_a_server_of_states(tiny_mamba: Path) -> None:
    """It says what it is, and streams what the library gives."""
    with LLM(tiny_mamba, max_running=2, progress=False) as llm, serving({"tiny": llm}) as server, Client(server.address) as client:
        (model,) = client.models()
        assert model.architecture == "mamba2" and model.quantization.kv_cache_type == ""
        assert client.info().kv_cache_bytes == llm.model.memory.kv
        want = llm.generate("hello", SamplingParams(max_tokens=8, temperature=0.0)).text
        got = client.stream("hello", max_tokens=8, temperature=0.0)
        assert "".join(delta.text for delta in got) == want


def test_inspect_and_options(tiny_mamba: Path, capsys) -> None:
    from pyruntime.cli import main

    assert main(["inspect", str(tiny_mamba), "--json"]) == 0
    got = json.loads(capsys.readouterr().out)
    model = open_model(tiny_mamba, progress=False)
    assert got["memory"]["kv_bytes_per_token"] == got["memory"]["kv_bytes_at_full_context"] == 0
    assert got["memory"]["state_bytes_per_sequence"] == state_bytes(model.plan) == model.memory.kv // model.max_running
    model.close()
    assert main(["inspect", str(tiny_mamba)]) == 0
    shown = capsys.readouterr().out
    assert "state space of 8 heads of 16" in shown and "a sequence, however long" in shown and "KV cache" not in shown
    with pytest.raises(FieldInvalid, match="no K and V"):
        open_model(tiny_mamba, kv_format="q8_0", progress=False)


def test_bench_measures_states(tiny_mamba: Path) -> None:
    from pyruntime.bench import measure

    wanted = measure.Wanted(parts=("decode", "prefill", "batch", "depth", "profile"), generate=4, rounds=1, prompts=(16,),
                            batches=(2,), depths=(40,))
    facts = measure.measure(str(tiny_mamba), {"threads": 1}, wanted)
    assert facts["kv_bytes_per_token"] == 0 and len(facts["decode"]["each"]) >= 1


# ---- plans that do not hold together ----

def with_op(kind: type, **fields: object):
    return lambda plan: replace(plan, ops=tuple(replace(op, **fields) if isinstance(op, kind) else op for op in plan.ops))


def with_group(index: int, **fields: object):
    return lambda plan: replace(plan, groups=tuple(replace(g, **fields) if i == index else g for i, g in enumerate(plan.groups)))


def with_slot(name: str, width: int):
    return lambda plan: replace(plan, slots=tuple(replace(s, width=width) if s.name == name else s for s in plan.slots))


BAD_PLANS = {
    "one tap": with_op(p.Conv, taps=1), "seventeen taps": with_op(p.Conv, taps=17), "three taps": with_op(p.Conv, taps=3),
    "activation unknown": with_op(p.Conv, activation=3), "activation below none": with_op(p.Conv, activation=-2),
    "convolved in place": with_op(p.Conv, out="zxbcdt"), "channels past the row": with_op(p.Conv, first=103),
    "channels before the row": with_op(p.Conv, first=-1), "channels of another kernel": with_op(p.Conv, weight="blk.0.ssm_a"),
    "bias of another width": with_op(p.Conv, bias="blk.0.ssm_d"), "convolved in a scan's state": with_op(p.Conv, group="scan"),
    "state past the group": with_op(p.Conv, layer=2), "state before the group": with_op(p.Scan, layer=-1),
    "one state for two convolutions": with_op(p.Conv, layer=0), "one state for two scans": with_op(p.Scan, layer=1),
    "scan in a convolution's state": with_op(p.Scan, group="conv"), "no heads": with_op(p.Scan, heads=0),
    "uneven heads": with_op(p.Scan, heads=5), "other heads": with_op(p.Scan, heads=3), "no groups": with_op(p.Scan, groups=0),
    "uneven groups": with_op(p.Scan, groups=4), "other groups": with_op(p.Scan, groups=3), "no numbers": with_op(p.Scan, numbers=0),
    "other numbers": with_op(p.Scan, numbers=15), "numbers enormous": with_op(p.Scan, numbers=2**31 - 1),
    "scanned in place": with_op(p.Scan, out="xbc"), "steps past the row": with_op(p.Scan, first=257),
    "steps enormous": with_op(p.Scan, first=2**31 - 1), "limits crossed": with_op(p.Scan, dt_min=1.0, dt_max=0.5),
    "limit not a number": with_op(p.Scan, dt_max=float("nan")), "limit below zero": with_op(p.Scan, dt_min=-1.0),
    "a of another width": with_op(p.Scan, a="output_norm.weight"), "d a matrix": with_op(p.Scan, d="token_embd.weight"),
    "no parts": with_op(p.GatedNorm, groups=0), "uneven parts": with_op(p.GatedNorm, groups=7),
    "gate past the row": with_op(p.GatedNorm, first=200), "gate written": with_op(p.GatedNorm, gate="y"),
    "gate neither first nor last": with_op(p.GatedNorm, gate_last=2),
    "norm of another width": with_op(p.GatedNorm, norm="blk.0.ssm_d"),
    "epsilon not finite": with_op(p.GatedNorm, eps=float("inf")), "normed into another width": with_op(p.GatedNorm, out="x"),
    "states of one layer": with_group(0, layers=1), "states of no layers": with_group(1, layers=0),
    "states narrow": with_group(0, width=479), "states wide": with_group(1, width=1537),
    "states of no width": with_group(1, width=0),
    "rows narrow": with_group(1, row=139), "rows wide": with_group(1, row=141), "rows below zero": with_group(1, row=-1),
    "rows of a convolution": with_group(0, row=480),
    "states enormous": with_group(1, layers=4096, width=2**28), "states that are pages": with_group(0, kind="paged"),
    "pages of no heads": with_group(1, kind="paged", head_dim=16), "channels narrow": with_slot("xbc", 159),
    "inner width narrow": with_slot("y", 95), "projection narrow": with_slot("zxbcdt", 261),
}


@pytest.mark.parametrize("what", BAD_PLANS)
def test_a_plan_that_does_not_hold_together_is_refused(what: str) -> None:
    with pytest.raises((FieldInvalid, ModelInvalid, MemoryError)) as error:
        native_backend(BAD_PLANS[what](PLANS["mamba"]), weights("mamba"), pages=2, **SIZES)
    assert "\n" not in str(error.value)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_words_of_a_recurrent_plan_crash(data: st.DataObject) -> None:
    """Any words of its ops, slots or groups changed: plan or batch refused with one line, or run safely."""
    from pyruntime._core import _engine
    from pyruntime.backends import native as words

    plan = PLANS["mamba"]
    tables = {"ops": words._words(plan), "slots": np.array([(s.width, s.per_row) for s in plan.slots], np.int32),
              "groups": np.array([words._group(g, 2) for g in plan.groups], np.int32)}
    odd = st.one_of(st.integers(0, 20), st.sampled_from([2**32 - 1, 2**31, 2**31 - 1, 48, 96, 160, 480, 1536, 2**24, 0x7FC00000]))
    recurrent = [i for i, op in enumerate(plan.ops) if isinstance(op, (p.Conv, p.Scan, p.GatedNorm))]
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(["ops", "ops", "ops", "slots", "groups"]))
        table = tables[name].view(np.uint32)
        row = data.draw(st.sampled_from(recurrent)) if name == "ops" else data.draw(st.integers(0, len(table) - 1))
        table[row, data.draw(st.integers(0, min(table.shape[1], 16) - 1))] = data.draw(odd)
    assume(all(g[1] * max(g[2] * g[3], g[7] + 16 * g[8]) * max(g[9], 1) < 2**26 for g in tables["groups"].tolist()))
    try:
        engine = _engine.Engine(
            tables["ops"], tables["slots"], list(weights("mamba")), tables["groups"], [], plan.vocab, plan.width, max_tokens=16,
            max_rows=4, max_seqs=4, histories=1, threads=1, isa=0, pool=0, prompt_path=0, generated_path=0)
        for at, n in ((0, 5), (5, 1)):
            engine.run(Batch.build([(list(range(n)), at, at), ([1], 0, 0)], tables=[[[0], [1]]] * 2), 0, len(plan.ops))
    except (FieldInvalid, ModelInvalid, MemoryError) as error:
        assert "\n" not in str(error)
