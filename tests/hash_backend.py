"""A backend whose next token is a hash of what the sequence's pages hold: any slip in pages, positions, roles or order shows.

The same function over plain lists (`expected`) says what must come out.
"""
from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from pyruntime.models import llama
from pyruntime.plan import PAGE_TOKENS, Plan
from pyruntime.types import SAMPLED, SAMPLING, Batch

VOCAB = 284


def next_token(cells: object, seed: int, candidate: int, position: int, allowed: list[int]) -> int:
    """The token after (token, position, role) cells."""
    text = repr((cells, seed, candidate, position)).encode()
    return allowed[zlib.crc32(text) % len(allowed)]


def expected(prompt: list[int], count: int, seed: int = 0, candidate: int = 0, allowed: list[int] | None = None,
             windows: tuple[int, ...] = (0,)) -> list[int]:
    """`count` tokens after `prompt`, by plain lists: each depends on what the groups' windows show (0: everything)."""
    tokens = list(prompt)
    for i in range(count):
        cells = [(t, p, int(p >= len(prompt))) for p, t in enumerate(tokens)]
        tokens.append(next_token([cells[-w:] for w in windows], seed, candidate, i, allowed or list(range(VOCAB))))
    return tokens[len(prompt) :]


def _slot(table: list[int], token: int) -> int:
    assert table[token // PAGE_TOKENS] >= 0, "a page that was given back is used"
    return table[token // PAGE_TOKENS] * PAGE_TOKENS + token % PAGE_TOKENS


class HashBackend:
    """backends.base.Backend over cells of (token, position, role), in a cache group for each of `windows`."""

    def __init__(self, *, pages: int | tuple[int, ...] = 64, max_tokens: int = 64, max_rows: int = 16, histories: int = 16,
                 context: int = 256, before: Callable[[int], None] | None = None, windows: tuple[int, ...] = (0,)) -> None:
        plan = llama.plan(llama.tiny(layers=1, vocab=VOCAB, context=context))
        groups = tuple(replace(plan.groups[0], name=f"kv{g}", window=w) for g, w in enumerate(windows))
        self.plan: Plan = replace(plan, groups=groups)
        self.pages = (pages,) * len(windows) if isinstance(pages, int) else pages
        self.max_tokens, self.max_rows, self.histories, self.windows = max_tokens, max_rows, histories, windows
        self.cells: list[list[tuple[int, int, int]]] = [[(-1, -1, -1)] * (n * PAGE_TOKENS) for n in self.pages]
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
            tables = [table[s].tolist() for table in batch.tables]
            for j in range(start, stop):
                slot = end - (stop - start) + (j - start)
                cell = (int(batch.tokens[j]), int(batch.positions[j]), int(batch.roles[j]))
                for cells, table in zip(self.cells, tables, strict=True):
                    cells[_slot(table, slot)] = cell
                if row < rows and batch.rows[row] == j:
                    seen = [[cells[_slot(table, t)] for t in range(max(0, slot + 1 - window) if window else 0, slot + 1)]
                            for cells, table, window in zip(self.cells, tables, self.windows, strict=True)]
                    self._sample(batch, row, seen)
                    row += 1
        assert row == rows

    def _sample(self, batch: Batch, row: int, cells: list[list[tuple[int, int, int]]]) -> None:
        sampling, out = batch.sampling[row], self._sampled[row]
        allowed = list(range(VOCAB))
        if sampling["allowed"] >= 0:
            bits = np.unpackbits(batch.masks[sampling["allowed"]], bitorder="little")
            allowed = np.flatnonzero(bits).tolist()
        if cells[0][0][0] in self.poison:
            out["token"], out["flags"] = -1, 1
        else:
            out["token"] = next_token(cells, *(int(sampling[k]) for k in ("seed", "candidate", "position")), allowed)

    def sampled(self) -> np.ndarray:
        return self._sampled

    def slot(self, name: str) -> np.ndarray:
        return np.zeros((len(self._sampled), VOCAB), np.float32)

    def copy_page(self, group: int, source: int, target: int) -> None:
        a, b, cells = source * PAGE_TOKENS, target * PAGE_TOKENS, self.cells[group]
        cells[b : b + PAGE_TOKENS] = cells[a : a + PAGE_TOKENS]

    def state_truncate(self, group: int, slot: int, length: int, snapshots: Sequence[int] = ()) -> int:
        raise AssertionError("it has no states")

    def history_reset(self, history: int) -> None:
        self.history[history] = []

    def history_extend(self, history: int, tokens: np.ndarray, generated: bool) -> None:
        self.history[history] += [(t, generated) for t in tokens.tolist()]

    def history_truncate(self, history: int, length: int) -> None:
        del self.history[history][length:]

    def close(self) -> None:
        self.closed = True
