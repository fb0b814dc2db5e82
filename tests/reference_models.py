"""Random weights and page tables for tests that compare backends."""
from __future__ import annotations

import numpy as np

from pyruntime.backends.torch import Dense
from pyruntime.plan import PAGE_TOKENS, Plan


def random_values(plan: Plan, seed: int) -> dict[str, np.ndarray]:
    """f32 values for every weight of a plan, scaled so that residuals and logits have a spread of about 1 or more.

    Matrices keep a unit input at unit size, norms scatter around 1, the embedding is large enough for logits std >= 1.
    """
    rng = np.random.default_rng(seed)
    values = {}
    for w in plan.weights:
        x = rng.standard_normal((w.rows, w.k) if w.k else (w.rows,)).astype(np.float32)
        if not w.k:
            x = 0.3 * x if w.name.endswith(".bias") else 1 + 0.2 * x
        else:
            x *= 2.0 / np.sqrt(w.k) if w.rows == plan.vocab else 1.2 / np.sqrt(w.k)
        values[w.name] = x.astype(np.float32)
    return values


def random_weights(plan: Plan, seed: int) -> dict[str, Dense]:
    """The same as F32 weights of the reference."""
    return {name: Dense(x) for name, x in random_values(plan, seed).items()}


def tables_of(lengths: list[int], pages: int, rng: np.random.Generator) -> list[list[int]]:
    """Disjoint random page tables long enough for each length."""
    order = rng.permutation(pages).tolist()
    return [[order.pop() for _ in range(-(-n // PAGE_TOKENS))] for n in lengths]
