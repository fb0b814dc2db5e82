"""The native backend: a plan resolved to the words of csrc/defs/ops.def, bound and run by csrc/exec."""
from __future__ import annotations

import re
import struct
from collections.abc import Sequence

import numpy as np

from .. import machine
from .._core import _engine
from ..errors import EngineFailed, FieldInvalid, ModelInvalid
from ..plan import KINDS, NAMES, CacheGroup, Op, Plan
from ..types import Batch
from ..weights import FORMATS, Stored, Weights

WORDS = 20  # RT_OP_WORDS
OPS: dict[str, tuple[int, tuple[tuple[str, str], ...]]] = {
    name: (kind, tuple(re.findall(r"([SWGRIF])\((\w+)\)", fields))) for kind, (name, fields) in enumerate(_engine.ops())}


class NativeBackend:
    """backends.base.Backend in C. Weights in the plan's order, or by name.

    pages: how many pages each cache group has (one number: the same for all). threads, isa, pool, precision: None
    takes what `machine` says. paths: those of (prompt, generated) tokens, instead of what the precision means here.
    FieldInvalid: a size or option outside its range; ModelInvalid: a plan that does not fit its weights; MemoryError.
    """

    def __init__(self, plan: Plan, weights: Weights | Sequence[Stored], *, pages: int | tuple[int, ...] = 64,
                 max_tokens: int = 512, max_rows: int = 64, max_seqs: int | None = None, histories: int = 64,
                 threads: int | None = None, isa: str | None = None, pool: str | None = None, precision: str | None = None,
                 paths: tuple[str, str] | None = None) -> None:
        self.precision = machine.precision(precision)
        plan = plan.token_by_token() if self.precision == "precise" else plan
        self.plan, self.max_tokens, self.max_rows, self.histories = plan, max_tokens, max_rows, histories
        self.max_seqs = max_tokens if max_seqs is None else max_seqs
        self.pages = (pages,) * len(plan.groups) if isinstance(pages, int) else tuple(pages)
        self.threads, self.isa, self.pool = machine.threads(threads), machine.isa(isa), machine.pool(pool)
        self.paths = machine.paths(self.precision, self.isa, paths)
        if len(self.pages) != len(plan.groups):
            raise FieldInvalid(f"pages has {len(self.pages)} numbers; the plan has {len(plan.groups)} cache groups",
                               field="pages")
        self._slots = {s.name: i for i, s in enumerate(plan.slots)}
        self._counts = (0, 0)
        self._engine: _engine.Engine | None = _engine.Engine(
            _words(plan), np.array([(s.width, s.per_row) for s in plan.slots], np.int32).reshape(-1, 2), _ordered(plan, weights),
            np.array([_group(g, n) for g, n in zip(plan.groups, self.pages, strict=True)], np.int32).reshape(-1, 10),
            [(np.array(r.inv_freq, np.float64), r.interleaved, r.mscale) for r in plan.ropes], plan.vocab, plan.width,
            max_tokens=max_tokens, max_rows=max_rows, max_seqs=self.max_seqs, histories=histories, threads=self.threads,
            isa=[name for name, _ in _engine.isas()].index(self.isa), pool=machine.POOLS.index(self.pool),
            prompt_path=machine.PATHS.index(self.paths[0]), generated_path=machine.PATHS.index(self.paths[1]))
        self._views = [self._engine.slot(i) for i in range(len(plan.slots))]
        self._sampled = self._engine.sampled()

    def _open(self) -> _engine.Engine:
        if self._engine is None:
            raise EngineFailed("the backend is closed; open the model again")
        return self._engine

    def run(self, batch: Batch, first: int = 0, last: int | None = None) -> None:
        """Compute ops [first, last) for the whole batch, without the GIL."""
        self._open().run(batch, first, len(self.plan.ops) if last is None else last)
        self._counts = len(batch.tokens), len(batch.rows)

    def sampled(self) -> np.ndarray:
        """SAMPLED [rows] of the last SAMPLE op; a view, valid until the next run."""
        self._open()
        return self._sampled[: self._counts[1]]

    def slot(self, name: str) -> np.ndarray:
        """A slot's f32 [tokens or rows][width] after the last run; a view, no copy."""
        self._open()
        if name not in self._slots:
            raise FieldInvalid(f"slot is '{name}'; known: {', '.join(self._slots)}", field="slot")
        index = self._slots[name]
        return self._views[index][: self._counts[self.plan.slots[index].per_row]]

    def page(self, group: int, page: int) -> np.ndarray:
        """One page's bytes, [layer][kv_head][K [head_dim][PAGE_TOKENS] | V [PAGE_TOKENS][head_dim]], of a latent group
        [layer][PAGE_TOKENS][head_dim], or a state's, f32 [layer][width | PAGE_TOKENS rows]; a view."""
        return self._open().page(group, page)

    def seen(self, group: int, slot: int) -> np.ndarray:
        """i32 [layers]: how many tokens a state has taken in; a view. With the page's bytes it is all of a state."""
        return self._open().seen(group, slot)

    def clock(self, on: bool) -> None:
        """Measure ops from here on, or stop. Switching on sets every sum to 0; off costs nothing."""
        self._open().clock(on)

    def times(self) -> np.ndarray:
        """i64 [ops + 1]: nanoseconds of each op, summed over the runs since the clock was switched on; last: checking batches."""
        return self._open().times().copy()

    def weights_read(self) -> np.ndarray:
        """i64 [ops]: bytes of weights that each op's passes took from memory, over the same runs. Packed ones, in low-memory mode
        the file's; a group that several units of work pass over counts for each; EMBED's rows do not count."""
        return self._open().weights_read().copy()

    def copy_page(self, group: int, source: int, target: int) -> None:
        """Copy one page (copy-on-write)."""
        self._open().copy_page(group, source, target)

    def state_truncate(self, group: int, slot: int, length: int, snapshots: Sequence[int] = ()) -> int:
        """Back to at most `length` tokens: itself, else the longest snapshot no longer, else nothing. The tokens it then has."""
        return self._open().state_truncate(group, slot, length, np.array(snapshots, np.int32))

    def history_reset(self, history: int) -> None:
        """Forget a token history's content."""
        self._open().history_reset(history)

    def history_extend(self, history: int, tokens: np.ndarray | Sequence[int], generated: bool) -> None:
        """Append tokens a penalty should see. Repetition counts all, presence and frequency the generated ones."""
        array = np.asarray(tokens)
        if array.size and (array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= self.plan.vocab):
            raise FieldInvalid(f"history tokens must be whole numbers, 0 to {self.plan.vocab - 1}", field="tokens")
        self._open().history_extend(history, np.ascontiguousarray(array, np.int32).reshape(-1), generated)

    def history_truncate(self, history: int, length: int) -> None:
        """Drop tokens past `length` (rollback of rejected drafts)."""
        self._open().history_truncate(history, length)

    def close(self) -> None:
        """Free weights, cache and threads. Further calls raise EngineFailed."""
        if self._engine is not None:
            self._engine.close()
        self._engine, self._views, self._sampled = None, [], np.zeros(0, self._sampled.dtype)


def _ordered(plan: Plan, weights: Weights | Sequence[Stored]) -> list[Stored]:
    """One Stored for each of the plan's weights, of its shape."""
    named = {w.name: w for w in weights}
    for need in plan.weights:
        have = named.get(need.name)
        if have is None:
            raise ModelInvalid(f"weight {need.name} is missing; the plan needs it")
        if (have.rows, have.k) != (need.rows, need.k):
            raise ModelInvalid(f"weight {need.name} is {have.rows} x {have.k}; the plan needs {need.rows} x {need.k}")
    return [named[need.name] for need in plan.weights]


def _format(name: str) -> int:
    if name.upper() not in FORMATS:
        raise ModelInvalid(f"cache format is '{name}'; known: {', '.join(f.lower() for f in FORMATS)}")
    return FORMATS.index(name.upper())


def _group(group: CacheGroup, pages: int) -> tuple[int, ...]:
    """struct rt_group."""
    if group.kind not in KINDS:
        raise ModelInvalid(f"cache group {group.name} is of kind '{group.kind}'; known: {', '.join(KINDS)}")
    return (KINDS.index(group.kind), group.layers, group.kv_heads, group.head_dim, _format(group.k_format),
            _format(group.v_format), group.window, group.width, group.row, pages)


def _words(plan: Plan) -> np.ndarray:
    """Every op as struct rt_op: its kind, then its fields in the order of csrc/defs/ops.def."""
    index = {"S": {s.name: i for i, s in enumerate(plan.slots)}, "W": {w.name: i for i, w in enumerate(plan.weights)},
             "G": {g.name: i for i, g in enumerate(plan.groups)}}
    out = np.zeros((len(plan.ops), 1 + WORDS), np.uint32)
    for at, op in enumerate(plan.ops):
        kind, fields = OPS[NAMES[type(op)]]
        out[at, 0] = kind
        for i, (letter, name) in enumerate(fields):
            out[at, 1 + i] = _word(at, op, letter, name, index)
    return out


def _word(at: int, op: Op, letter: str, name: str, index: dict[str, dict[str, int]]) -> int:
    value = getattr(op, name)
    try:
        if letter == "F":
            return struct.unpack("<I", struct.pack("<f", value))[0]
        if letter in "SWR" and value is None:
            value = -1
        elif letter in index:
            value = index[letter][value]
        return struct.unpack("<I", struct.pack("<i", value))[0]
    except (KeyError, struct.error, OverflowError):
        raise ModelInvalid(f"op {at} ({NAMES[type(op)]}): {name} is {value!r}, which the plan does not have or a word does "
                           "not hold") from None
