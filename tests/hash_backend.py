"""A backend whose next token is a hash of what the sequence's pages hold: any slip in pages, positions, roles or order shows.

The same function over plain lists (`expected`) says what must come out.
"""
from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np

from pyruntime.models import llama
from pyruntime.plan import PAGE_TOKENS, Plan
from pyruntime.types import SAMPLED, SAMPLING, Batch

VOCAB = 284


def next_token(cells: list[tuple[int, int, int]], seed: int, candidate: int, position: int, allowed: list[int]) -> int:
    """The token after (token, position, role) cells."""
    text = repr((cells, seed, candidate, position)).encode()
    return allowed[zlib.crc32(text) % len(allowed)]


def expected(prompt: list[int], count: int, seed: int = 0, candidate: int = 0, allowed: list[int] | None = None) -> list[int]:
    """`count` tokens after `prompt`, by plain lists."""
    tokens = list(prompt)
    for i in range(count):
        cells = [(t, p, int(p >= len(prompt))) for p, t in enumerate(tokens)]
        tokens.append(next_token(cells, seed, candidate, i, allowed or list(range(VOCAB))))
    return tokens[len(prompt) :]


class HashBackend:
    """backends.base.Backend over cells of (token, position, role)."""

    def __init__(self, *, pages: int = 64, max_tokens: int = 64, max_rows: int = 16, histories: int = 16,
                 context: int = 256, before: Callable[[int], None] | None = None) -> None:
        config = llama.tiny(layers=1, vocab=VOCAB, context=context)
        self.plan: Plan = llama.plan(config)
        self.pages, self.max_tokens, self.max_rows, self.histories = (pages,), max_tokens, max_rows, histories
        self.cells: list[tuple[int, int, int]] = [(-1, -1, -1)] * (pages * PAGE_TOKENS)
        self.before = before or (lambda step: None)
        self.steps = 0
        self.history: list[list[tuple[int, bool]]] = [[] for _ in range(histories)]
        self.poison: set[int] = set()       # prompts' first tokens whose rows come out as not finite
        self.closed = False
        self._sampled = np.zeros(0, SAMPLED)

    def run(self, batch: Batch, first: int = 0, last: int | None = None) -> None:
        self.before(self.steps)
        self.steps += 1
        n, rows = len(batch.tokens), len(batch.rows)
        assert 0 < n <= self.max_tokens and rows <= self.max_rows and batch.sampling.dtype == SAMPLING
        assert len(batch.positions) == len(batch.roles) == n == batch.starts[-1] and len(batch.sampling) == rows
        assert (np.diff(batch.starts) > 0).all() and (np.diff(batch.rows) > 0).all()
        self._sampled = np.zeros(rows, SAMPLED)
        row = 0
        for s, end in enumerate(batch.kv_lens.tolist()):
            start, stop = batch.starts[s], batch.starts[s + 1]
            table = batch.tables[0][s].tolist()
            for j in range(start, stop):
                slot = end - (stop - start) + (j - start)
                at = table[slot // PAGE_TOKENS] * PAGE_TOKENS + slot % PAGE_TOKENS
                self.cells[at] = (int(batch.tokens[j]), int(batch.positions[j]), int(batch.roles[j]))
                if row < rows and batch.rows[row] == j:
                    seen = [self.cells[table[t // PAGE_TOKENS] * PAGE_TOKENS + t % PAGE_TOKENS] for t in range(slot + 1)]
                    self._sample(batch, row, seen)
                    row += 1
        assert row == rows

    def _sample(self, batch: Batch, row: int, cells: list[tuple[int, int, int]]) -> None:
        sampling, out = batch.sampling[row], self._sampled[row]
        allowed = list(range(VOCAB))
        if sampling["allowed"] >= 0:
            bits = np.unpackbits(batch.masks[sampling["allowed"]], bitorder="little")
            allowed = np.flatnonzero(bits).tolist()
        if cells[0][0] in self.poison:
            out["token"], out["flags"] = -1, 1
        else:
            out["token"] = next_token(cells, *(int(sampling[k]) for k in ("seed", "candidate", "position")), allowed)

    def sampled(self) -> np.ndarray:
        return self._sampled

    def slot(self, name: str) -> np.ndarray:
        return np.zeros((len(self._sampled), VOCAB), np.float32)

    def copy_page(self, group: int, source: int, target: int) -> None:
        a, b = source * PAGE_TOKENS, target * PAGE_TOKENS
        self.cells[b : b + PAGE_TOKENS] = self.cells[a : a + PAGE_TOKENS]

    def history_reset(self, history: int) -> None:
        self.history[history] = []

    def history_extend(self, history: int, tokens: np.ndarray, generated: bool) -> None:
        self.history[history] += [(t, generated) for t in tokens.tolist()]

    def history_truncate(self, history: int, length: int) -> None:
        del self.history[history][length:]

    def close(self) -> None:
        self.closed = True
