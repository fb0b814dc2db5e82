"""Decides what each step computes. Bookkeeping only: it knows pages, seats and budgets, no backend and no text.

One rule: a sequence has `computed < known` tokens. A prompt, a chunk of it, a decode and a recomputation after preemption
are all "compute some of the missing ones"; whoever computes its last known token gets one more.

Invariants: a running sequence has a seat and the pages its next step needs: those of all its known tokens, but in a group
with a window only those that the step's tokens see or fill (`cache.pages.Span`); a waiting one has neither. Both lists are in
order of (priority, arrival), so the last running one is the youngest. A sequence alone always fits (`context` is at most
what the pool holds), so the first in line can always go on: there is no deadlock.
"""
from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..cache.pages import GONE, PAGE_TOKENS, PagePool, Span, pages_for
from ..errors import ContextLengthExceeded, FieldInvalid
from ..plan import CacheGroup
from ..types import Batch, greedy_rows

_NO_IDS, _NO_VALUES = np.zeros(0, np.int32), np.zeros(0, np.float32)


@dataclass(slots=True, eq=False)
class Sequence:
    """One candidate's tokens and how far they are computed. The maker fills the first block, the scheduler the second."""

    tokens: list[int]                          # the prompt, then what was generated: `known` of them
    sampling: np.ndarray                       # SAMPLING [1]; history, position, bias and allowed are filled per step
    owner: Any = None
    priority: int = 0                          # higher first
    penalized: bool = False                    # penalties read a token history
    scored: int = -1                           # prompt rows flagged so far for prompt_logprobs; -1 = none wanted
    bias: tuple[np.ndarray, np.ndarray] | None = None   # token ids i32, values f32
    mask: np.ndarray | None = None             # u8 [ceil(vocab / 8)], allowed tokens; None = all
    early_mask: np.ndarray | None = None       # the same while fewer than `min_tokens` are generated
    min_tokens: int = 0

    prompt: int = field(init=False)            # how many of the tokens are the prompt; the rest are generated (their role)
    computed: int = 0                          # tokens whose K and V are in the cache
    cached: int = 0                            # prompt tokens that came from the prefix cache
    tables: list[list[int]] = field(default_factory=list)   # one block table per cache group; empty = waiting
    room: int = 0                              # tokens its pages can hold
    seat: int = -1                             # row of the scheduler's stores and number of the token history
    order: tuple[int, int] = (0, 0)            # (-priority, arrival)
    preemptions: int = 0

    def __post_init__(self) -> None:
        self.prompt = len(self.tokens)

    @property
    def generated(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - self.prompt


@dataclass(slots=True)
class Flagged:
    """A sequence's rows in a step: `scores` prompt rows from `row` on (the first is prompt token `first`'s), then, if
    `samples`, the row whose outcome is its next token."""

    sequence: Sequence
    row: int
    first: int
    scores: int
    samples: bool


@dataclass(slots=True)
class Step:
    """One scheduled step: the batch, whose tokens it holds, what its rows are for, and who just got a seat. The next one may
    be the same object with other numbers."""

    batch: Batch
    parts: list[tuple[Sequence, int]]          # (sequence, how many tokens), in batch order
    flagged: list[Flagged]
    admitted: list[Sequence]
    preempted: list[Sequence]


@dataclass(slots=True)
class _Line:
    """The step in which every running sequence decodes. It stays the same until somebody comes or goes, but for tokens,
    positions and now and then a page, so it is kept and these are written over: what a step touches anew is slow to reach
    behind a model's weights."""

    step: Step
    sequences: list[Sequence]
    seats: np.ndarray                          # i64 [n]
    constrained: bool                          # somebody has a bias or a mask
    paged: bool = False                        # its block tables are today's


def _order(sequence: Sequence) -> tuple[int, int]:
    return sequence.order


class Scheduler:
    """Seats, pages and the queue. `pages`: pages of each cache group; `groups` says what these are, all paged and without a
    window if left out. `chunk`: most prompt tokens in one step. Beside sequences that decode it is `beside` (None:
    `chunk`), or one for every sequence that runs or waits, but not for more than have seats, if that is more. A step holds
    at most `max_tokens` tokens and `max_rows` flagged rows."""

    def __init__(self, pages: tuple[int, ...], *, context: int, max_running: int, max_tokens: int, max_rows: int,
                 chunk: int = 512, beside: int | None = None, groups: tuple[CacheGroup, ...] | None = None) -> None:
        beside = chunk if beside is None else beside
        if min(context, max_running, max_tokens, max_rows, chunk, beside, *pages) < 1:
            raise FieldInvalid("context, max_running, max_tokens, max_rows, chunk, beside and pages must be at least 1")
        self.pools = tuple(PagePool(n) for n in pages)
        most = min(chunk, max_tokens)
        self.spans = tuple(Span.of(g, most) for g in groups) if groups is not None else (Span(),) * len(pages)
        self.context = min([context, *(PAGE_TOKENS * n for n, span in zip(pages, self.spans, strict=True)
                                       if n < span.most(context))])
        self._most = tuple(span.most(self.context) for span in self.spans)
        self.max_running = min(max_running, max_tokens, max_rows)
        self.max_tokens, self.max_rows, self.chunk, self.beside = max_tokens, max_rows, chunk, beside
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self.preemptions = 0
        self._arrivals = 0
        self._seats = list(range(self.max_running))[::-1]
        self._tables = tuple(np.zeros((self.max_running, 1 if span.state else pages_for(self.context)), np.int32)
                             for span in self.spans)
        self._sampling = greedy_rows(self.max_running)
        self._score_row = greedy_rows(1)
        self._line: _Line | None = None
        self._count = np.arange(self.max_running + 1, dtype=np.int32)
        self._ones, self._base = np.ones(self.max_running, np.uint8), np.full(self.max_running, -1, np.int32)

    def fits(self, prompt: int) -> None:
        """ContextLengthExceeded unless a prompt of so many tokens and one token of answer fit."""
        if prompt >= self.context:
            raise ContextLengthExceeded(
                f"the prompt has {prompt} tokens; context and cache hold {self.context}, prompt and answer together: "
                f"shorten it to {self.context - 1} or fewer, or ask for truncation", field="prompt")

    def add(self, sequence: Sequence) -> None:
        """Put a new sequence in line."""
        self.fits(sequence.prompt)
        sequence.order = (-sequence.priority, self._arrivals)
        self._arrivals += 1
        insort(self.waiting, sequence, key=_order)

    def schedule(self) -> Step | None:
        """The next step, or None when nothing is left to compute. Every step is committed before the next is scheduled."""
        preempted = self._grow()
        admitted = [] if preempted else self._admit()
        if self._line is not None:
            return self._decode(self._line)
        parts = self._divide()
        return self._build(parts, admitted, preempted) if parts else None

    def commit(self, step: Step, tokens: np.ndarray) -> None:
        """Enter what the step computed. `tokens` [rows]: each row's sampled token, negative = none."""
        sampled = tokens.tolist()
        for sequence, count in step.parts:
            sequence.computed += count
        for flagged in step.flagged:
            if flagged.scores:
                flagged.sequence.scored = flagged.first + flagged.scores
            if flagged.samples:
                if (token := sampled[flagged.row + flagged.scores]) >= 0:
                    flagged.sequence.tokens.append(token)
                else:
                    self._line = None

    def finish(self, sequence: Sequence) -> None:
        """Take a sequence out, in whatever state; its seat and pages are free afterwards. Again is no error."""
        if sequence.seat >= 0:
            self.running.remove(sequence)
            self._release(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    @property
    def pages_used(self) -> int:
        """Pages held, all groups together."""
        return sum(pool.total - pool.free for pool in self.pools)

    @property
    def pages_total(self) -> int:
        """Pages there are, all groups together."""
        return sum(pool.total for pool in self.pools)

    def check(self) -> None:
        """AssertionError unless seats, pages and order hold together."""
        for g, pool in enumerate(self.pools):
            pool.check([[page for page in s.tables[g] if page != GONE] for s in self.running])
        seats = [s.seat for s in self.running]
        assert sorted(seats + self._seats) == list(range(self.max_running)), "a seat is lost or taken twice"
        assert all(s.seat < 0 and not s.tables and not s.computed for s in self.waiting), "a waiting sequence holds something"
        for line in (self.running, self.waiting):
            assert line == sorted(line, key=_order), "out of order"
        for s in self.running:
            assert 0 <= s.computed < len(s.tokens) <= self.context, "computed < known <= context is broken"
            for g, table in enumerate(s.tables):
                assert self._tables[g][s.seat, : len(table)].tolist() == table, "a stored block table differs"
                first, held = self.spans[g].blocks(s.computed, 0)[0], [i for i, page in enumerate(table) if page != GONE]
                assert held == list(range(len(table) - len(held), len(table))), "a page before the window's is missing"
                assert len(table) - len(held) <= first and len(held) <= self._most[g], "a page in the window is missing"

    # ---- seats and pages ----

    def _grow(self) -> list[Sequence]:
        """Pages for every running sequence's next step, the youngest giving theirs up when none are left."""
        preempted: list[Sequence] = []
        full = [s for s in self.running if len(s.tokens) > s.room]
        if full and self._line is not None:
            self._line.paged = False
        for sequence in full:
            if sequence.seat >= 0:
                self._trim(sequence)
            while sequence.seat >= 0 and not self._extend(sequence):
                preempted.append(self._preempt(self.running[-1]))
        return preempted

    def _trim(self, sequence: Sequence) -> None:
        """Give back the pages that lie behind the window of every token still to compute."""
        for pool, span, table, store in zip(self.pools, self.spans, sequence.tables, self._tables, strict=True):
            end = first = min(span.blocks(sequence.computed, 0)[0], len(table))
            while first and table[first - 1] != GONE:
                first -= 1
            if first < end:
                pool.release(table[first:end])
                table[first:end] = [GONE] * (end - first)
                store[sequence.seat, first:end] = GONE

    def _extend(self, sequence: Sequence) -> bool:
        """Block tables as long as the next step needs in every group, or nothing changed and False."""
        tables = sequence.tables
        ends = [span.blocks(sequence.computed, len(sequence.tokens))[1] for span in self.spans]
        if any(pool.free < end - len(table) for pool, table, end in zip(self.pools, tables, ends, strict=True)):
            return False
        for pool, table, store, end in zip(self.pools, tables, self._tables, ends, strict=True):
            had = len(table)
            table += pool.allocate(end - had, table[-1] if table else GONE)
            store[sequence.seat, had:end] = table[had:]
        sequence.room = min((span.room(end, self.context) for span, end in zip(self.spans, ends, strict=True)),
                            default=self.context)
        return True

    def _preempt(self, sequence: Sequence) -> Sequence:
        """Back into line with nothing computed; the tokens stay known and keep their roles."""
        self.running.remove(sequence)
        self._release(sequence)
        sequence.preemptions += 1
        self.preemptions += 1
        insort(self.waiting, sequence, key=_order)
        return sequence

    def _release(self, sequence: Sequence) -> None:
        for pool, table in zip(self.pools, sequence.tables, strict=True):
            pool.release([page for page in table if page != GONE])
        self._seats.append(sequence.seat)
        sequence.tables, sequence.seat, sequence.computed, sequence.room = [], -1, 0, 0
        self._line = None

    def _admit(self) -> list[Sequence]:
        """Seats for the first in line while seats, budget and pages last. One page per running sequence stays in reserve, where
        not all of them can have all they will ever need."""
        admitted: list[Sequence] = []
        if not self.waiting or not self._seats:
            return admitted
        budget = self.max_tokens - sum(len(s.tokens) - s.computed for s in self.running)
        while self.waiting and self._seats and budget > 0:
            sequence = self.waiting[0]
            if self.running and not self._room_for(sequence):
                break
            self.waiting.pop(0)
            sequence.seat = self._seats.pop()
            sequence.tables = [[] for _ in self.pools]
            self._extend(sequence)
            self._sampling[sequence.seat] = sequence.sampling[0]
            self._sampling[sequence.seat]["history"] = sequence.seat if sequence.penalized else -1
            insort(self.running, sequence, key=_order)
            self._line = None
            admitted.append(sequence)
            budget -= len(sequence.tokens)
        return admitted

    def _room_for(self, sequence: Sequence) -> bool:
        running, known = len(self.running), len(sequence.tokens)
        return all(pool.free >= span.blocks(0, known)[1] + running or pool.total >= (running + 1) * most
                   for pool, span, most in zip(self.pools, self.spans, self._most, strict=True))

    # ---- the batch ----

    def _divide(self) -> list[tuple[Sequence, int]]:
        """Who computes how many tokens: decodes first, then chunks in order until the budgets end.

        A step takes about as long as it has tokens. So few prompt tokens go beside few decodes, more as a line forms, and never
        so many that a step takes much longer than two in which all seats decode."""
        parts = [(s, 1) for s in self.running if len(s.tokens) - s.computed == 1]
        if len(parts) == len(self.running):
            return parts
        rows = self.max_rows - len(parts)
        budget = min(self.max_tokens - len(parts), self.chunk)
        if parts:
            budget = min(budget, max(self.beside, min(len(self.running) + len(self.waiting), self.max_running)))
        for s in self.running:
            missing = len(s.tokens) - s.computed
            if missing == 1 or not budget:
                continue
            count = min(missing, budget)
            if s.scored >= 0:
                count = min(count, rows)        # at most one row per token
            elif count == missing and not rows:
                count -= 1
            if count:
                rows -= count if s.scored >= 0 else int(count == missing)
                budget -= count
                parts.append((s, count))
        return parts

    def _decode(self, line: _Line) -> Step:
        """The kept step with its newest tokens."""
        batch = line.step.batch
        if line.constrained:
            batch.sampling, batch.bias_ids, batch.bias_values, batch.masks = self._rows(line.step.flagged, len(line.sequences))
        tokens, positions, kv_lens, generated = batch.tokens, batch.positions, batch.kv_lens, batch.sampling["position"]
        for row, s in enumerate(line.sequences):
            tokens[row], positions[row], kv_lens[row] = s.tokens[-1], s.computed, s.computed + 1
            generated[row] = len(s.tokens) - s.prompt
        if not line.paged:
            batch.tables, line.paged = self._block_tables(line.seats, int(kv_lens.max())), True
        return line.step

    def _keep(self, parts: list[tuple[Sequence, int]], flagged: list[Flagged]) -> None:
        """If everybody running gets a token from this step, all of them decode in the next: keep that one."""
        sequences, n = [s for s, _ in parts], len(parts)
        if n == len(self.running) == len(flagged) and all(f.samples and not f.scores for f in flagged):
            seats = np.array([s.seat for s in sequences])
            batch = Batch(
                tokens=np.zeros(n, np.int32), positions=np.zeros(n, np.int32), starts=self._count[: n + 1],
                kv_lens=np.zeros(n, np.int32), tables=(), rows=self._count[:n], sampling=self._sampling[seats],
                roles=self._ones[:n], adapters=self._base[:n], bias_ids=_NO_IDS, bias_values=_NO_VALUES)
            rows = [Flagged(s, row, 0, 0, True) for row, s in enumerate(sequences)]
            constrained = any(s.bias is not None or s.mask is not None or s.early_mask is not None for s in sequences)
            self._line = _Line(Step(batch, [(s, 1) for s in sequences], rows, [], []), sequences, seats, constrained)

    def _block_tables(self, seats: np.ndarray | list[int], most: int) -> tuple[np.ndarray, ...]:
        """Those of the seats, as wide as `most` tokens need."""
        return tuple(store[seats, : pages_for(most)] for store in self._tables)

    def _build(self, parts: list[tuple[Sequence, int]], admitted: list[Sequence], preempted: list[Sequence]) -> Step:
        tokens: list[int] = []
        positions: list[int] = []
        roles: list[int] = []
        starts = [0]
        kv_lens: list[int] = []
        rows: list[int] = []
        flagged: list[Flagged] = []
        for s, count in parts:
            first, known = s.computed, len(s.tokens)
            end = first + count
            if count == 1:
                tokens.append(s.tokens[first])
                positions.append(first)
                roles.append(first >= s.prompt)
            else:
                tokens += s.tokens[first:end]
                positions += range(first, end)
                split = min(max(s.prompt - first, 0), count)
                roles += [0] * split + [1] * (count - split)
            offset = starts[-1]
            starts.append(offset + count)
            kv_lens.append(end)
            samples = end == known
            score_first = max(first, s.scored)
            scores = max(0, min(end, s.prompt - 1) - score_first) if s.scored >= 0 else 0
            if samples or scores:
                flagged.append(Flagged(s, len(rows), score_first, scores, samples))
                rows += range(offset + score_first - first, offset + score_first - first + scores)
                if samples:
                    rows.append(offset + count - 1)
        sampling, bias_ids, bias_values, masks = self._rows(flagged, len(rows))
        batch = Batch(
            tokens=np.array(tokens, np.int32), positions=np.array(positions, np.int32), starts=np.array(starts, np.int32),
            kv_lens=np.array(kv_lens, np.int32), tables=self._block_tables([s.seat for s, _ in parts], max(kv_lens)),
            rows=np.array(rows, np.int32), sampling=sampling, roles=np.array(roles, np.uint8),
            adapters=np.full(len(parts), -1, np.int32), bias_ids=bias_ids, bias_values=bias_values, masks=masks)
        self._keep(parts, flagged)
        return Step(batch, parts, flagged, admitted, preempted)

    def _rows(self, flagged: list[Flagged], rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        """(sampling, bias ids, bias values, masks) of the flagged rows."""
        if len(flagged) == rows and all(f.samples for f in flagged):
            sampling = self._sampling[[f.sequence.seat for f in flagged]]
            sampling["position"] = [f.sequence.generated for f in flagged]
        else:
            sampling = self._score_row.repeat(rows)
            for f in flagged:
                sampling["logprobs"][f.row : f.row + f.scores] = f.sequence.sampling["logprobs"]
                if f.samples:
                    sampling[f.row + f.scores] = self._sampling[f.sequence.seat]
                    sampling["position"][f.row + f.scores] = f.sequence.generated
        ids: list[np.ndarray] = []
        values: list[np.ndarray] = []
        masks: list[np.ndarray] = []
        biases = 0
        for f in flagged:
            s, row = f.sequence, f.row + f.scores
            if not f.samples:
                continue
            if s.bias is not None:
                sampling["bias_first"][row], sampling["bias_count"][row] = biases, len(s.bias[0])
                ids.append(s.bias[0])
                values.append(s.bias[1])
                biases += len(s.bias[0])
            mask = s.early_mask if s.early_mask is not None and s.generated < s.min_tokens else s.mask
            if mask is not None:
                sampling["allowed"][row] = len(masks)
                masks.append(mask)
        return (sampling, np.concatenate(ids) if ids else _NO_IDS, np.concatenate(values) if values else _NO_VALUES,
                np.stack(masks) if masks else None)


