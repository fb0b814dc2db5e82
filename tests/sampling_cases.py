"""Rows for SAMPLE: a backend that does nothing else, random cases, and the comparison of the native twin with the book."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from reference_models import native_backend

from pyruntime.backends.torch import TorchBackend
from pyruntime.backends.torch_ops import sample_row
from pyruntime.plan import Plan, Sample, Slot
from pyruntime.types import Batch, greedy_rows


def sampler(kind: str, vocab: int, rows: int = 8, histories: int = 8):
    """A backend whose plan is SAMPLE alone."""
    plan = Plan((Sample("logits"),), (Slot("x", 16), Slot("logits", vocab, per_row=True)), (), (), (), vocab, 64, 16)
    sizes = dict(max_tokens=rows, max_rows=rows, histories=histories, pages=())
    return TorchBackend(plan, {}, **sizes) if kind == "torch" else native_backend(plan, {}, **sizes)


def run(backend, logits, sampling, **batch) -> np.ndarray:
    """SAMPLED of logits [rows][vocab]; one sequence a row."""
    n = len(logits)
    made = Batch.build([([0], 0, 0)] * n, tables=[], sampling=sampling, **batch)
    backend.run(made, 0, 0)          # sizes the slots
    backend.slot("logits")[:] = logits
    backend.run(made)
    return backend.sampled().copy()


def rows_of(n: int = 1, **fields) -> np.ndarray:
    """n SAMPLING rows at temperature 1 with some fields set."""
    rows = greedy_rows(n)
    rows["temperature"] = 1
    for name, value in fields.items():
        rows[name] = value
    return rows


@dataclass
class Case:
    """One row: logits [vocab], SAMPLING [1], history (a generated token t is -1 - t), bias, mask bool [vocab] or None."""

    logits: np.ndarray
    sampling: np.ndarray
    history: np.ndarray
    bias_ids: np.ndarray
    bias_values: np.ndarray
    mask: np.ndarray | None


def random_row(rng: np.random.Generator) -> Case:
    """Any mix of rules on any vocabulary: ties, sharp and flat logits, the ends of every range, sometimes a NaN."""
    vocab = int(rng.choice([1, 2, 7, 50, 300, 3000, 9001]))
    logits = (rng.standard_normal(vocab) * rng.choice([0.1, 1, 3, 10, 100])).astype(np.float32)
    if rng.random() < 0.5:
        logits = np.round(logits)
    if rng.random() < 0.06:
        logits[rng.integers(vocab)] = rng.choice([np.nan, np.inf, -np.inf])
    at = rows_of(seed=rng.integers(0, 2**64, dtype=np.uint64), position=rng.integers(0, 999), candidate=rng.integers(0, 4),
                 temperature=rng.choice([0, 0.1, 0.7, 1, 2, 1e-6, 1e-42]), top_k=rng.choice([0, 0, 1, 2, 5, 40, 999]),
                 top_p=rng.choice([1, 1, 1e-6, 0.1, 0.5, 0.9, 0.9999, 0.99999994]), min_p=rng.choice([0, 0, 0.01, 0.1, 0.5, 1]),
                 typical_p=rng.choice([1, 1, 0.01, 0.2, 0.9]), logprobs=rng.integers(-1, 21), history=3,
                 repetition=rng.choice([1, 1.2, 0.5]), frequency=rng.choice([0, 0.3]), presence=rng.choice([0, -0.4]))
    history = rng.integers(-vocab, vocab, rng.integers(0, 30))
    bias = rng.choice(vocab, min(vocab, int(rng.integers(0, 4))), replace=False).astype(np.int32)
    at["bias_first"], at["bias_count"] = 2, bias.size
    mask = rng.random(vocab) < rng.choice([0.01, 0.5]) if rng.random() < 0.5 else None
    at["allowed"] = -1 if mask is None else 1
    return Case(logits, at, history, bias, rng.standard_normal(bias.size).astype(np.float32) * 5, mask)


def equals_the_book(case: Case) -> None:
    """Native's token, rank, flags and best ids are the numpy twin's, log-probabilities to 1e-5; logits stay as they were."""
    backend = sampler("native", case.logits.size)
    for t in case.history:
        backend.history_extend(3, np.array([t if t >= 0 else -1 - t], np.int32), bool(t < 0))
    masks = None if case.mask is None else np.stack([0 * np.packbits(case.mask), np.packbits(case.mask, bitorder="little")])
    got = run(backend, case.logits[None], case.sampling, masks=masks,
              bias_ids=np.concatenate([[0, 0], case.bias_ids]).astype(np.int32),
              bias_values=np.concatenate([[9e3, 9e3], case.bias_values]).astype(np.float32))[0]
    want = sample_row(case.logits, case.sampling[0], case.history, case.bias_ids, case.bias_values, case.mask)
    for name in ("token", "rank", "flags", "top_count", "top_ids"):
        assert np.array_equal(got[name], want[name]), f"{name}: {got[name]}, by the book {want[name]}"
    for name in ("logprob", "top_logprobs"):
        assert np.all(np.abs(got[name] - want[name]) <= 1e-5 * np.maximum(1, np.abs(want[name]))), name
    assert np.array_equal(backend.slot("logits")[0], case.logits, equal_nan=True)
