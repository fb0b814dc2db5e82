"""SAMPLE: every rule by its figures, the native twin against the book, the random stream, and what it reports."""
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling_cases import equals_the_book, random_row, rows_of, run, sampler

from pyruntime.backends.torch_ops import adjusted, kept, philox, uniform
from pyruntime.errors import FieldInvalid
from pyruntime.types import greedy_rows

FIGURE = [5, 3, 2, 1.5, 1, 0.5, 0, -0.5, -1, -2]
NONE = np.zeros(0, np.int64)


def distribution(logits=FIGURE, history=NONE, **fields) -> dict[int, float]:
    """token -> probability after every rule, by the book."""
    at = rows_of(**fields)[0]
    x = adjusted(np.asarray(logits, np.float32), at, np.asarray(history, np.int64), NONE, np.zeros(0, np.float32))
    ids, w = kept(x, np.ones(x.size, bool), at)
    return dict(zip(ids.tolist(), (w / w.sum()).tolist(), strict=True))


@pytest.mark.parametrize(("fields", "history", "want"), [
    (dict(), [], {0: 0.7943, 1: 0.1075, 2: 0.0395}),
    (dict(top_p=0.9), [], {0: 0.8808, 1: 0.1192}),
    (dict(repetition=1.2), [0, 1, 3], {0: 0.6859}),
    (dict(temperature=0.8, top_k=5, top_p=0.9, repetition=1.2), [0, 1, 3], {0: 0.8893, 1: 0.1107}),
    (dict(top_k=2, repetition=2), [1], {0: 0.9526, 2: 0.0474}),
    (dict(min_p=0.1), [], {0: 0.8808, 1: 0.1192}),
    (dict(top_k=1), [], {0: 1.0}),
], ids=["temperature", "top-p", "penalty", "all", "penalty-top-k", "min-p", "top-k-1"])
def test_published_figures(fields, history, want):
    """The numbers other engines' documentation agrees on, to the digits given."""
    got = distribution(history=history, **fields)
    if "top_k" in fields or "top_p" in fields or "min_p" in fields:
        assert set(got) == set(want)
    for token, p in want.items():
        assert abs(got[token] - p) < 5e-5


@pytest.mark.parametrize("kind", ["torch", "native"])
@pytest.mark.parametrize("fields", [dict(), dict(top_p=0.9), dict(temperature=0.8, top_k=5, top_p=0.9, repetition=1.2),
                                    dict(top_k=2, repetition=2.0), dict(min_p=0.1), dict(typical_p=0.5)],
                         ids=["temperature", "top-p", "all", "penalty-top-k", "min-p", "typical"])
def test_draws_follow_the_distribution(kind, fields):
    """Chi-squared of many draws at consecutive positions against the distribution by the book, p > 1e-6."""
    n = 100_000 if kind == "native" else 4_000
    backend = sampler(kind, len(FIGURE), rows=1000)
    history = [0, 1, 3] if fields.get("top_k") == 5 else [1]
    counts = np.zeros(len(FIGURE))
    if "repetition" in fields:
        backend.history_reset(0)
        backend.history_extend(0, np.array(history), False)
    for first in range(0, n, 1000):
        rows = rows_of(1000, seed=7, position=first + np.arange(1000), history=0 if "repetition" in fields else -1, **fields)
        counts += np.bincount(run(backend, np.tile(np.float32(FIGURE), (1000, 1)), rows)["token"], minlength=len(FIGURE))
    want = distribution(history=history if "repetition" in fields else NONE, **fields)
    assert counts[[t for t in range(len(FIGURE)) if t not in want]].sum() == 0
    expected = np.array([n * p for p in want.values()])
    chi2 = float(((counts[list(want)] - expected) ** 2 / expected).sum())
    freedom = len(want) - 1
    # Wilson-Hilferty: (chi2 / k)^(1/3) is close to normal with mean 1 - 2/9k and variance 2/9k; 4.8 sigma is p = 1e-6.
    limit = freedom * (1 - 2 / (9 * freedom) + 4.8 * (2 / (9 * freedom)) ** 0.5) ** 3 if freedom else 0
    assert chi2 <= limit


def test_philox_known_answers():
    """The vectors published with Random123."""
    ones = (0xFFFFFFFF,) * 4
    assert philox((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert philox(ones, ones[:2]) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    assert philox((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)) == \
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


def test_streams_differ_in_every_key():
    """Seed (both halves), candidate, position and draw each give another number."""
    keys = [(1, 0, 0, 0), (1 << 32, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (0, 0, 0, 0)]
    assert len({uniform(*k) for k in keys}) == len(keys)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_native_equals_the_book(seed):
    """Token, rank, flags and best ids are equal; log-probabilities agree to 1e-5 (relative past 1: f32 has no more)."""
    equals_the_book(random_row(np.random.default_rng(seed)))


@pytest.mark.parametrize("kind", ["torch", "native"])
def test_neighbours_do_not_matter(kind):
    """A row draws the same token alone, in a batch, and in any order of the batch."""
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((8, 500)).astype(np.float32) * 3
    rows = rows_of(8, seed=rng.integers(0, 2**63, 8), position=np.arange(8), top_p=0.9)
    backend = sampler(kind, 500)
    together = run(backend, logits, rows)["token"]
    assert np.array_equal(run(backend, logits[::-1], rows[::-1].copy())["token"][::-1], together)
    assert [run(backend, logits[i:i + 1], rows[i:i + 1])["token"][0] for i in range(8)] == together.tolist()


@pytest.mark.parametrize("kind", ["torch", "native"])
def test_greedy_takes_the_lowest_of_equals_and_hears_penalties(kind):
    """temperature 0: lowest id on ties, after bias, penalties and mask."""
    backend = sampler(kind, 5)
    x = np.float32([[1, 4, 4, 4, 0]])
    assert run(backend, x, greedy_rows(1))["token"] == 1
    backend.history_extend(0, np.array([1]), True)
    at = greedy_rows(1)
    at["history"], at["presence"] = 0, 0.5
    assert run(backend, x, at)["token"] == 2
    at["allowed"] = 0
    assert run(backend, x, at, masks=np.uint8([[0b11001]]))["token"] == 3
    at["bias_count"] = 1
    assert run(backend, x, at, masks=np.uint8([[0b11001]]), bias_ids=np.int32([4]), bias_values=np.float32([100]))["token"] == 4


@pytest.mark.parametrize("kind", ["torch", "native"])
def test_penalties_count_what_they_say(kind):
    """Repetition reads prompt and answer, frequency and presence the answer alone; truncation takes them back."""
    backend = sampler(kind, 4)
    backend.history_extend(0, np.array([0, 0, 1]), False)
    backend.history_extend(0, np.array([1, 2, 2, 2]), True)

    def order(**fields) -> list[int]:
        at = rows_of(history=0, temperature=0, **fields)
        left, out = np.float32([[3, 3, 3, -3]]), []
        for _ in range(4):
            token = int(run(backend, left, at)["token"][0])
            out.append(token)
            left[0, token] = -1e4
        return out

    assert order(frequency=1) == [0, 1, 2, 3]
    assert order(presence=1)[0] == 0
    assert order(presence=-1)[:2] == [1, 2]
    assert order(repetition=2) == [0, 1, 2, 3]
    assert order(repetition=0.5, frequency=-0.1)[0] == 2
    backend.history_truncate(0, 4)
    assert order(frequency=-1)[0] == 1
    backend.history_reset(0)
    assert order(frequency=-1)[0] == 0


@pytest.mark.parametrize("kind", ["torch", "native"])
def test_not_finite_logits_are_flagged(kind):
    """One NaN or infinity: token -1 and bit 0; a mask that allows nothing: bit 1. Neighbours are untouched."""
    backend = sampler(kind, 40)
    for bad in (np.nan, np.inf, -np.inf):
        x = np.zeros((2, 40), np.float32)
        x[0, 33] = bad
        for rows in (greedy_rows(2), rows_of(2)):
            out = run(backend, x, rows)
            assert (out["token"][0], out["flags"][0], out["flags"][1]) == (-1, 1, 0)
            assert out["token"][1] >= 0
    rows = greedy_rows(2)
    rows["allowed"] = [0, -1]
    out = run(backend, np.ones((2, 40), np.float32), rows, masks=np.zeros((1, 5), np.uint8))
    assert out["token"].tolist() == [-1, 0] and out["flags"].tolist() == [2, 0]


@pytest.mark.parametrize("kind", ["torch", "native"])
def test_logprobs_are_the_log_softmax(kind):
    """To 1e-5 on a 49k vocabulary, whatever temperature, bias or mask say; rank 1 is the best."""
    rng = np.random.default_rng(4)
    x = (rng.standard_normal((2, 49152)) * 4).astype(np.float32)
    rows = rows_of(2, logprobs=20, temperature=3.0, seed=[1, 2])
    out = run(sampler(kind, 49152), x, rows)
    wide = x.astype(np.float64)
    want = wide - wide.max(1, keepdims=True) - np.log(np.exp(wide - wide.max(1, keepdims=True)).sum(1, keepdims=True))
    best = np.argsort(-want, axis=1, kind="stable")
    for i in range(2):
        token = out["token"][i]
        assert abs(out["logprob"][i] - want[i, token]) < 1e-5
        assert best[i, out["rank"][i] - 1] == token
        assert np.array_equal(out["top_ids"][i], best[i, :20])
        assert np.abs(out["top_logprobs"][i] - want[i, best[i, :20]]).max() < 1e-5


@pytest.mark.parametrize("kind", ["torch", "native"])
@pytest.mark.parametrize(("field", "value"), [("history", 8), ("history", -2), ("allowed", 0), ("temperature", np.nan),
                                              ("temperature", -1), ("top_p", 0), ("top_p", 1.5), ("min_p", -0.1),
                                              ("typical_p", 0), ("repetition", 0), ("top_k", -1), ("logprobs", 21),
                                              ("bias_first", -1), ("bias_count", 1)])
def test_bad_rows_are_refused(kind, field, value):
    """A row outside its ranges is a FieldInvalid before anything runs."""
    rows = rows_of(1)
    rows[field] = value
    with pytest.raises(FieldInvalid):
        run(sampler(kind, 8), np.zeros((1, 8), np.float32), rows)
