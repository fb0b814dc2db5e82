"""The native backend: whatever a batch looks like and however it is computed, a row's bits are the same."""
from __future__ import annotations

import os
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference_models import random_values, stored, tables_of

from pyruntime import errors, machine
from pyruntime._core import _engine
from pyruntime.backends.native import NativeBackend
from pyruntime.config import Experts, Latent, ModelConfig
from pyruntime.models import deepseek_v2, gpt2, llama
from pyruntime.plan import Plan
from pyruntime.quant import FORMATS
from pyruntime.types import Batch, greedy_rows

ISAS = [name for name, missing in _engine.isas() if not missing]
PAGES = 40
#: paths of prompt and generated tokens
MIXTURES = [("bf16", "a16"), ("bf16", "bf16"), ("a16", "bf16"), ("a16_bf16", "a16"), ("a16_bf16", "bf16"), ("a8", "a16"),
            ("a8", "bf16"), ("a16", "a8")]
FEW = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@lru_cache(maxsize=16)
def model(seed: int, low_memory: bool = False):
    """A small model whose every number follows from the seed: plan and weights. Every fourth has latents and experts."""
    rng = np.random.default_rng(seed)
    if seed % 4 == 3:
        plan = deepseek_v2.plan(deepseek(rng))
        return plan, stored(plan, random_values(plan, seed), random_formats(plan, rng), low_memory=low_memory)
    kv_heads = int(rng.integers(1, 4))
    share = int(rng.integers(1, 6))
    head_dim = int(rng.choice([4, 16, 32, 40]))
    unit = 32 // np.gcd(32, kv_heads * share * head_dim)  # quantized matrices need a k of whole blocks
    heads = kv_heads * share * int(unit)
    cached = ["f16", "f32", "bf16"] + ["q8_0"] * (head_dim % 32 == 0)
    family = gpt2 if seed % 5 == 2 else llama
    if family is gpt2:
        kv_heads = heads
    config = family.tiny(
        layers=int(rng.integers(1, 4)), width=int(rng.choice([32, 64, 96, 128, 256])), heads=heads, kv_heads=kv_heads,
        head_dim=head_dim,
        hidden=int(rng.choice([32, 64, 128, 160, 256])), vocab=int(rng.integers(17, 260)),
        rope_dims=2 * int(rng.integers(1, head_dim // 2 + 1)),
        rope_interleaved=bool(rng.integers(2)), tied=bool(rng.integers(2)), qkv_bias=bool(rng.integers(2)),
        qk_norm=bool(rng.integers(2)), k_format=str(rng.choice(cached)), v_format=str(rng.choice(cached)))
    plan = family.plan(config)
    return plan, stored(plan, random_values(plan, seed), random_formats(plan, rng), low_memory=low_memory)


def random_formats(plan: Plan, rng: np.random.Generator) -> dict[str, str]:
    return {w.name: str(rng.choice([n for n, twin in FORMATS.items() if w.k % twin.BLOCK_WEIGHTS == 0]))
            for w in plan.weights if w.k}


def deepseek(rng: np.random.Generator) -> ModelConfig:
    groups, each = int(rng.integers(1, 4)), int(rng.integers(2, 5))
    experts = Experts(groups * each, int(rng.integers(1, 4)), int(rng.choice([32, 64])), 32, int(rng.integers(2)),
                      bool(rng.integers(2)), bool(rng.integers(2)), groups, max(1, groups - 1), 2, bool(rng.integers(2)), 1.5)
    experts = replace(experts, used=min(experts.used, experts.groups_kept * each))
    latent = Latent(32 * int(rng.integers(1, 3)), 32 * int(rng.integers(2)), 32, 2 * int(rng.integers(1, 17)), 16)
    format = str(rng.choice(["f16", "f32", "bf16"] + ["q8_0"] * (latent.rope == 32)))
    return deepseek_v2.tiny(
        layers=2, width=int(rng.choice([32, 64, 256])), heads=int(rng.choice([2, 4, 34])), hidden=64,
        vocab=int(rng.integers(17, 260)), latent=latent, experts=experts, rope_interleaved=bool(rng.integers(2)),
        k_format=format, v_format=format)


def backend(seed: int = 0, *, low_memory: bool = False, **options) -> NativeBackend:
    plan, weights = model(seed, low_memory)
    return NativeBackend(plan, weights, **{"pages": PAGES, "max_tokens": 192, "max_rows": 192, "threads": 2, **options})


def prompts(seed: int, count: int, longest: int, vocab: int) -> list[list[int]]:
    rng = np.random.default_rng([seed, 77])
    return [rng.integers(0, vocab, int(rng.integers(1, longest + 1))).tolist() for _ in range(count)]


def whole(texts: list[list[int]], tables: list[list[int]]) -> Batch:
    """Every token of every text in one batch, every row flagged."""
    return Batch.build([(t, 0, 0) for t in texts], tables=[tables], rows=range(sum(map(len, texts))))


def logits_of(engine: NativeBackend, batch: Batch) -> np.ndarray:
    engine.run(batch)
    return engine.slot("logits").copy()


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a.view(np.uint32), b.view(np.uint32))


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("PYRUNTIME_THREADS", "PYRUNTIME_ISA", "PYRUNTIME_POOL", "PYRUNTIME_PRECISION", "PYRUNTIME_PATHS"):
        monkeypatch.delenv(name, raising=False)


# ---- a row's bits ----

@FEW
@given(st.integers(0, 30), st.integers(1, 5), st.data())
def test_ranges_of_ops_compose(seed, count, data):
    engine = backend(seed)
    texts = prompts(seed, count, 30, engine.plan.vocab)
    batch = whole(texts, tables_of([len(t) for t in texts], PAGES, np.random.default_rng(seed)))
    expected = logits_of(engine, batch)
    cut = data.draw(st.integers(0, len(engine.plan.ops)))
    engine.run(batch, 0, cut)
    engine.run(batch, cut)
    assert same(expected, engine.slot("logits"))


@FEW
@given(st.integers(0, 30), st.integers(2, 6))
def test_a_row_alone_is_the_row_in_a_batch(seed, count):
    engine = backend(seed)
    texts = prompts(seed, count, 25, engine.plan.vocab)
    rng = np.random.default_rng(seed)
    together = logits_of(engine, whole(texts, tables_of([len(t) for t in texts], PAGES, rng)))
    alone = [logits_of(engine, whole([t], tables_of([len(t)], PAGES, rng))) for t in texts]
    assert same(together, np.concatenate(alone))


@FEW
@given(st.integers(0, 30), st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 3))
def test_chunks_are_one_pass_and_token_by_token(seed, chunks, others):
    engine = backend(seed)
    vocab = engine.plan.vocab
    rng = np.random.default_rng(seed)
    text = rng.integers(0, vocab, sum(chunks)).tolist()[:190]
    beside = prompts(seed + 1, others, 3, vocab)
    tables = tables_of([len(text)] * 2 + [len(t) for t in beside], PAGES, rng)
    expected = logits_of(engine, whole([text], tables[:1]))
    got, done = [], 0
    for size in chunks:
        part = text[done:done + size]
        if not part:
            break
        batch = Batch.build([(part, done, done)] + [(t, 0, 0) for t in beside], tables=[tables[1:2] + tables[2:]],
                            rows=range(len(part)))
        got.append(logits_of(engine, batch))
        done += len(part)
    assert same(expected, np.concatenate(got))
    if len(text) <= 40:
        single = [logits_of(engine, Batch.build([([t], i, i)], tables=[tables[:1]])) for i, t in enumerate(text)]
        assert same(expected, np.concatenate(single))


@FEW
@given(st.integers(0, 30), st.integers(1, 40), st.integers(1, 40))
def test_a_tree_of_one_branch_is_a_chunk(seed, old, new):
    engine = backend(seed)
    text = np.random.default_rng(seed).integers(0, engine.plan.vocab, old + new).tolist()
    table = tables_of([old + new], PAGES, np.random.default_rng(seed))
    chain = np.array([(1 << i + 1) - 1 for i in range(new)], np.uint64)
    got = []
    for trees in (None, chain):
        engine.run(Batch.build([(text[:old], 0, 0)], tables=[table]))
        got.append(logits_of(engine, Batch.build([(text[old:], old, old)], tables=[table], rows=range(new), trees=trees)))
    assert same(*got)


@pytest.mark.parametrize("seed", [4, 7])
def test_branches_do_not_see_each_other(seed):
    """Two branches side by side behind one prompt: what one holds changes nothing of the other."""
    engine = backend(seed)
    table, trees = [[9, 3, 7]], np.array([1, 3, 4, 12], np.uint64)
    got = []
    for other in (5, 6):
        engine.run(Batch.build([(list(range(15)), 0, 0)], tables=[table]))
        batch = Batch.build([([1, 2, other, other], 15, 15)], tables=[table], rows=range(4), trees=trees)
        batch.positions[:] = [15, 16, 15, 16]
        got.append(logits_of(engine, batch))
    assert same(got[0][:2], got[1][:2]) and not np.array_equal(got[0][2:], got[1][2:])


@FEW
@given(st.integers(0, 30), st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(0, 3), st.sampled_from(MIXTURES),
       st.booleans(), st.data())
def test_a_path_follows_its_token(seed, chunks, others, paths, low_memory, data):
    """Prompt and generated tokens side by side, in any chunks, computed again or for the first time."""
    engine = backend(seed, paths=paths, low_memory=low_memory)
    vocab, rng = engine.plan.vocab, np.random.default_rng(seed)
    text = rng.integers(0, vocab, min(sum(chunks), 190)).tolist()
    roles = (np.arange(len(text)) >= data.draw(st.integers(0, len(text)))).astype(np.uint8)
    beside = prompts(seed + 1, others, 9, vocab)
    tables = tables_of([len(text)] * 2 + [len(t) for t in beside], PAGES, rng)
    expected = np.concatenate([logits_of(engine, replace(Batch.build([([t], i, i)], tables=[tables[:1]]), roles=roles[i:i + 1]))
                               for i, t in enumerate(text)])
    done = 0
    for size in chunks:
        part, n = text[done:done + size], len(text[done:done + size])
        batch = Batch.build([(t, 0, 0) for t in beside] + [(part, done, done)] * (n > 0),
                            tables=[tables[2:] + tables[1:2] * (n > 0)])
        if n:
            first = len(batch.tokens) - n
            rows = np.sort(rng.permutation(len(batch.tokens))[:max(1, len(batch.tokens) // 2)]).astype(np.int32)
            batch = replace(batch, roles=np.concatenate([rng.integers(0, 2, first), roles[done:done + n]]).astype(np.uint8),
                            rows=rows, sampling=greedy_rows(len(rows)))
            got = logits_of(engine, batch)
            assert same(expected[done + rows[rows >= first] - first], got[rows >= first])
        done += n
    plain = backend(seed, paths=(paths[0],) * 2)
    if not roles.any():
        assert same(expected[-1:], logits_of(plain, Batch.build([(text, 0, 0)], tables=[tables[:1]])))
    engine.close()


def test_paths_round_differently():
    texts, logits = [[3, 1, 4, 1, 5, 9, 2, 6]], {}
    for paths in (("a16", "a16"), *MIXTURES):
        engine = backend(4, paths=paths)
        batch = whole(texts, [[0]])
        logits[paths] = [logits_of(engine, replace(batch, roles=np.full(8, role, np.uint8))) for role in (0, 1)]
    exact, coarse = logits["a16", "a16"][0], logits["bf16", "bf16"][0]
    assert not same(exact, coarse) and np.abs(exact - coarse).max() < 0.05 * np.abs(exact).max()
    alike = {"a16": exact, "bf16": coarse, "a16_bf16": logits["a16_bf16", "a16"][0], "a8": logits["a8", "a16"][0]}
    for paths, got in logits.items():
        assert all(same(got[role], alike[path]) for role, path in enumerate(paths))
    assert not same(alike["a16_bf16"], coarse)
    assert 1e-4 < np.abs(exact - alike["a8"]).max() / np.abs(exact).max() < 0.1


@pytest.mark.parametrize("path", ["a16", "bf16"])
@pytest.mark.parametrize("seed", [5, 3, 7])
def test_long_contexts_split_the_same_way(seed, path):
    """More than one attention split: a chunk, single tokens, and many sequences at once agree."""
    engine = backend(seed, pages=120, max_tokens=600, paths=(path, path))
    text = np.random.default_rng(5).integers(0, engine.plan.vocab, 590).tolist()
    table = np.random.default_rng(6).permutation(120)[:37].tolist()
    rows = list(range(580, 590))
    engine.run(Batch.build([(text, 0, 0)], tables=[[table]], rows=rows))
    expected = engine.slot("logits").copy()
    for i, row in enumerate(rows):
        engine.run(Batch.build([(text[row:row + 1], row, row)], tables=[[table]]))
        assert same(expected[i:i + 1], engine.slot("logits"))
    engine.run(Batch.build([(text[500:590], 500, 500)], tables=[[table]], rows=range(80, 90)))
    assert same(expected, engine.slot("logits"))


@FEW
@given(st.integers(0, 30), st.sampled_from([("a16", "a16"), *MIXTURES]))
def test_threads_pools_instruction_sets_and_low_memory_agree(seed, paths):
    plan, _ = model(seed)
    texts = prompts(seed, 4, 40, plan.vocab)
    batch = whole(texts, tables_of([len(t) for t in texts], PAGES, np.random.default_rng(seed)))
    follow = Batch.build([([1], len(t), len(t)) for t in texts],
                         tables=[tables_of([len(t) + 1 for t in texts], PAGES, np.random.default_rng(seed))])
    roles = np.random.default_rng(seed).integers(0, 2, len(batch.tokens)).astype(np.uint8)
    expected: list[np.ndarray] = []
    for options in ([{"threads": n, "pool": p} for n in (1, 2, 3, 4) for p in machine.POOLS] + [{"isa": isa} for isa in ISAS]
                    + [{"low_memory": True}, {"low_memory": True, "isa": "scalar", "threads": 1}]):
        engine = backend(seed, paths=paths, **options)
        got = [logits_of(engine, replace(batch, roles=roles)), logits_of(engine, follow)]
        expected = expected or got
        assert all(same(a, b) for a, b in zip(expected, got, strict=True)), options
        engine.close()


@pytest.mark.parametrize("seed", [1, 3])
def test_a_page_that_changes_hands_shows_nothing_of_its_past(seed):
    engine = backend(seed, pages=2)
    clean = backend(seed, pages=2)
    engine.run(Batch.build([([3] * 32, 0, 0)], tables=[[[0, 1]]]))
    engine.slot("logits")[:] = np.nan
    for page in range(2):
        engine.page(0, page)[:] = 0xFF  # NaN in every format
    batch = whole([[5, 6, 7]], [[1]])
    assert same(logits_of(clean, batch), logits_of(engine, batch))


@pytest.mark.parametrize("seed", [2, 3])
def test_a_copied_page_goes_its_own_way(seed):
    engine = backend(seed)
    text = [1, 2, 3, 4, 5, 6]
    engine.run(whole([text], [[7]]))
    engine.copy_page(0, 7, 9)
    engine.run(Batch.build([([8], 6, 6)], tables=[[[9]]]))
    forked = engine.slot("logits").copy()
    engine.run(Batch.build([([9], 6, 6)], tables=[[[7]]]))
    engine.run(Batch.build([([8], 6, 6)], tables=[[[9]]]))
    assert same(forked, engine.slot("logits"))
    engine.run(whole([text + [8]], [[11]]))
    assert same(forked, engine.slot("logits")[-1:])


def test_flagging_fewer_rows_changes_no_row():
    engine = backend(4)
    text = list(range(12))
    every = logits_of(engine, whole([text], [[0]]))
    some = logits_of(engine, Batch.build([(text, 0, 0)], tables=[[[0]]], rows=[2, 2, 7, 11]))
    assert same(every[[2, 2, 7, 11]], some)
    engine.run(Batch.build([(text, 0, 0)], tables=[[[0]]], rows=[]))
    assert engine.slot("logits").shape[0] == 0 and engine.sampled().shape == (0,)


def test_a_sequence_without_tokens_changes_nothing():
    engine = backend(5)
    text = [1, 2, 3, 4]
    expected = logits_of(engine, whole([text], [[0]]))
    engine.run(whole([[7] * 20], [[8, 9]]))
    beside = Batch.build([([], 0, 0), (text, 0, 0), ([], 20, 20)], tables=[[[], [3], [8, 9]]], rows=range(4))
    assert same(expected, logits_of(engine, beside))


def test_embedding_rows_take_the_place_of_tokens():
    engine = backend(6)
    width = engine.plan.width
    engine.run(whole([[4, 9]], [[0]]), 0, 1)
    rows = engine.slot("x").copy()
    expected = logits_of(engine, whole([[4, 9]], [[0]]))
    batch = Batch.build([([-2, -1], 0, 0)], tables=[[[1]]], rows=[0, 1], embeddings=np.ascontiguousarray(rows[::-1]))
    assert rows.shape == (2, width) and same(expected, logits_of(engine, batch))


def test_a_weight_that_is_not_finite_is_reported():
    plan, weights = model(7)
    values = random_values(plan, 7)
    values["output_norm.weight"][0] = np.nan
    engine = NativeBackend(plan, stored(plan, values), pages=4, threads=1)
    engine.run(whole([[1, 2]], [[0]]))
    assert (engine.sampled()["flags"] & 1).all() and (engine.sampled()["token"] == -1).all()


def test_memory_does_not_grow_with_steps_or_length():
    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    engine = backend(3, pages=260)
    table = list(range(260))
    batches = [Batch.build([([1] * 64, at, at)], tables=[[table]]) for at in range(0, 4096, 64)]
    for batch in batches:
        engine.run(batch)
    before = resident()
    for _ in range(3):
        for batch in batches:
            engine.run(batch)
    assert resident() - before < 2 << 20


# ---- histories ----

def test_penalties_read_the_history():
    engine = backend(8, histories=3)
    sampling = greedy_rows(1)
    sampling["history"], sampling["frequency"] = 1, 100.0
    best = []
    for _ in range(4):
        engine.run(Batch.build([([1, 2, 3], 0, 0)], tables=[[[0]]], sampling=sampling))
        best.append(int(engine.sampled()["token"][0]))
        engine.history_extend(1, [best[-1]], True)
    assert len(set(best)) == 4
    engine.history_truncate(1, 1)
    engine.run(Batch.build([([1, 2, 3], 0, 0)], tables=[[[0]]], sampling=sampling))
    assert int(engine.sampled()["token"][0]) == best[1]
    engine.history_reset(1)
    engine.run(Batch.build([([1, 2, 3], 0, 0)], tables=[[[0]]], sampling=sampling))
    assert int(engine.sampled()["token"][0]) == best[0]


@pytest.mark.parametrize("call", [
    lambda e: e.history_reset(3), lambda e: e.history_reset(-1), lambda e: e.history_extend(0, [-1], False),
    lambda e: e.history_extend(0, [10**6], True), lambda e: e.history_extend(7, [1], True), lambda e: e.history_truncate(0, 1),
    lambda e: e.history_truncate(0, -1), lambda e: e.history_extend(0, [0.5], True), lambda e: e.copy_page(0, 0, PAGES),
    lambda e: e.copy_page(1, 0, 0), lambda e: e.copy_page(0, -1, 0), lambda e: e.page(0, PAGES), lambda e: e.slot("nothing"),
])
def test_calls_outside_an_engine_are_refused(call):
    with pytest.raises(errors.FieldInvalid):
        call(backend(0, histories=3))


# ---- life ----

def test_a_closed_backend_says_so_and_its_views_stay_readable():
    engine = backend(0)
    engine.run(whole([[1, 2]], [[0]]))
    logits = engine.slot("logits")
    kept = logits.copy()
    engine.close()
    engine.close()
    assert same(kept, logits)
    for call in (lambda: engine.run(whole([[1]], [[0]])), engine.sampled, lambda: engine.slot("x"),
                 lambda: engine.copy_page(0, 0, 1)):
        with pytest.raises(errors.EngineFailed, match="closed"):
            call()


@pytest.mark.parametrize("pool", machine.POOLS)
def test_a_forked_child_is_told_to_make_its_own(pool):
    engine = backend(0, pool=pool)
    batch = whole([[1, 2]], [[0]])
    engine.run(batch)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            engine.run(batch)
        except errors.EngineFailed as error:
            code = 0 if "fork" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    engine.run(batch)
