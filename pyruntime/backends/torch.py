"""The reference backend: interprets a plan op by op in torch. On CPU in f32 it is what the native backend is held to."""
from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from .. import quant
from ..errors import EngineFailed, FieldInvalid
from ..plan import PAGE_TOKENS, CacheGroup, Conv, Embed, Op, Plan, Scan, Weight
from ..types import SAMPLED, Batch
from ..weights import Weights
from .torch_ops import OPS, Cache, Matrix, States, Step, bf16, rounds_weights

CACHE_TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "q8_0": torch.float32}  # q8_0: its values


class TorchBackend:
    """backends.base.Backend in torch.

    act_quant "exact" rounds the inputs of integer-format products to A16 as the native backend does, and multiplies
    activations and weights rounded to bf16 where the path of a token's role (prompt, generated) in `paths` does; "none" rounds
    nothing. dtype is the type sums are made in (f64 gives a yardstick for f32); slots are f32 whatever it is.
    caches: each group's pages, by name; states: each state group's.
    """

    def __init__(self, plan: Plan, weights: Weights, *, pages: int | tuple[int, ...] = 64,
                 max_tokens: int = 512, max_rows: int = 64, histories: int = 64, act_quant: str = "exact", device: str = "cpu",
                 dtype: torch.dtype = torch.float32, paths: tuple[str, str] = ("a16", "a16")) -> None:
        if act_quant not in ("none", "exact"):
            raise FieldInvalid(f"act_quant is {act_quant!r}; known: none, exact", field="act_quant")
        self.plan, self.max_tokens, self.max_rows, self.histories = plan, max_tokens, max_rows, histories
        self.pages = (pages,) * len(plan.groups) if isinstance(pages, int) else tuple(pages)
        self.act_quant, self.dtype, self.device = act_quant, dtype, torch.device(device)
        self.paths = paths
        self._weights = {w.name: self._bind(weights, w) for w in plan.weights}
        self._slots = {s.name: torch.zeros((max_rows if s.per_row else max_tokens, s.width), device=self.device)
                       for s in plan.slots}
        named = list(zip(plan.groups, self.pages, strict=True))
        self.caches = {g.name: self._arena(g, n) for g, n in named if g.kind != "state"}
        self.states = {g.name: States(torch.zeros((g.layers, n, g.width), device=self.device), np.zeros((g.layers, n), np.int64))
                       for g, n in named if g.kind == "state"}
        self._histories: list[list[int]] = [[] for _ in range(histories)]
        self._sampled = np.zeros(max_rows, SAMPLED)
        learned = {op.positions for op in plan.ops if isinstance(op, Embed) and op.positions}
        self._positions = min([len(self._weights[name].values) for name in learned], default=1 << 31)
        self._counts = (0, 0)
        self._closed = False

    def _bind(self, weights: Weights, need: Weight) -> Matrix:
        stored = weights[need.name]
        if (stored.rows, stored.k) != (need.rows, need.k):
            raise FieldInvalid(f"weight '{need.name}' is {stored.rows} x {stored.k}; the plan needs {need.rows} x {need.k}",
                               field=need.name)
        twin = quant.FORMATS[stored.format_name]
        if stored.packed is None:
            assert stored.blocks is not None
            values = twin.dequantize(stored.blocks, (stored.rows, stored.k))
        else:
            values = twin.unpack(stored.packed, stored.rows, stored.k) if stored.k else stored.packed.view(np.float32)
        integer = stored.k > 0 and twin.BLOCK_WEIGHTS > 1  # such weights meet activations rounded to integers
        wide = torch.tensor(values).to(self.device, self.dtype)
        rounded = need.k > 0 and self.act_quant == "exact" and any(rounds_weights(path, integer) for path in self.paths)
        coarse = bf16(wide) if rounded else None
        return Matrix(wide, integer, coarse)

    def _arena(self, group: CacheGroup, pages: int) -> Cache:
        shape = (group.layers, pages * PAGE_TOKENS, group.kv_heads, group.head_dim)
        k = torch.zeros(shape, dtype=CACHE_TYPES[group.k_format], device=self.device)
        latent = group.kind == "latent"     # V lies within K
        v = k[..., : group.width] if latent else torch.zeros(shape, dtype=CACHE_TYPES[group.v_format], device=self.device)
        return Cache(k, v, torch.full(shape[:2], -1, dtype=torch.int32, device=self.device))

    @torch.inference_mode()
    def run(self, batch: Batch, first: int = 0, last: int | None = None) -> None:
        """Compute ops [first, last) for the whole batch."""
        if self._closed:
            raise EngineFailed("the backend is closed; open the model again")
        self._check(batch)
        last = len(self.plan.ops) if last is None else last
        if not 0 <= first <= last <= len(self.plan.ops):
            raise FieldInvalid(f"ops {first} to {last} are outside the plan's {len(self.plan.ops)}", field="first")
        self._counts = len(batch.tokens), len(batch.rows)
        step = Step(self.plan, batch, self._weights, {s.name: self._part(s.name) for s in self.plan.slots}, self.caches,
                    self._histories, self._sampled, self.act_quant, self.dtype, self.paths, self.states)
        self._advance(batch, self.plan.ops[first:last])
        for op in self.plan.ops[first:last]:
            OPS[type(op)](step, op)

    def _advance(self, b: Batch, ops: tuple[Op, ...]) -> None:
        """The states that `ops` go on from are those after the tokens before this step's, or FieldInvalid; now after its own."""
        named, before = {g.name: i for i, g in enumerate(self.plan.groups)}, b.kv_lens - np.diff(b.starts)
        touched = [(self.states[op.group].seen[op.layer], b.tables[named[op.group]][:, 0])
                   for op in ops if isinstance(op, (Conv, Scan))]
        for seen, slots in touched:
            if not ((before == 0) | (seen[slots] == before)).all():
                raise FieldInvalid("batch.kv_lens goes on from another number of tokens than a state has seen", field="kv_lens")
        for seen, slots in touched:
            seen[slots] = b.kv_lens

    def _part(self, name: str) -> torch.Tensor:
        per_row = self.plan.slots[self.plan.slot(name)].per_row
        return self._slots[name][: self._counts[per_row]]

    def sampled(self) -> np.ndarray:
        """SAMPLED [rows] of the last SAMPLE op."""
        return self._sampled[: self._counts[1]]

    def slot(self, name: str) -> np.ndarray:
        """A slot's f32 [tokens or rows][width] after the last run; on CPU a view, writable."""
        return self._part(name).cpu().numpy()

    def copy_page(self, group: int, source: int, target: int) -> None:
        """Copy one page with its stored positions, or a state with what it has seen."""
        for page in (source, target):
            if not 0 <= group < len(self.pages) or not 0 <= page < self.pages[group]:
                raise FieldInvalid(f"page {page} of group {group} does not exist", field="page")
        name = self.plan.groups[group].name
        if state := self.states.get(name):
            state.values[:, target], state.seen[:, target] = state.values[:, source], state.seen[:, source]
            return
        cache = self.caches[name]
        for part in (cache.k, cache.v, cache.positions):
            paged = part.unflatten(1, (-1, PAGE_TOKENS))
            paged[:, target] = paged[:, source]

    def state_truncate(self, group: int, slot: int, length: int, snapshots: Sequence[int] = ()) -> int:
        """Back to at most `length` tokens: itself, else the longest snapshot no longer, else nothing. The tokens it then has."""
        state = self.states.get(self.plan.groups[group].name) if 0 <= group < len(self.pages) else None
        if state is None or not all(0 <= s < self.pages[group] for s in (slot, *snapshots)) or length < 0:
            raise FieldInvalid(f"state {slot} of group {group}, or a snapshot, does not exist", field="slot")
        seen = {s: int(state.seen[0, s]) if len(set(state.seen[:, s].tolist())) == 1 else -1 for s in (slot, *snapshots)}
        if not 0 <= seen[slot] <= length:
            fitting = [s for s in snapshots if 0 < seen[s] <= length]
            if not fitting:
                state.seen[:, slot] = 0
                return 0
            self.copy_page(group, best := max(fitting, key=lambda s: seen[s]), slot)
            return seen[best]
        return seen[slot]

    def history_reset(self, history: int) -> None:
        """Forget a token history's content."""
        self._history(history).clear()

    def history_extend(self, history: int, tokens: np.ndarray, generated: bool) -> None:
        """Append tokens a penalty should see."""
        ids = np.asarray(tokens, np.int64).ravel()
        if ids.size and not (ids.min() >= 0 and ids.max() < self.plan.vocab):
            raise FieldInvalid(f"a token id is outside the vocabulary of {self.plan.vocab}", field="tokens")
        self._history(history).extend((-1 - ids if generated else ids).tolist())

    def history_truncate(self, history: int, length: int) -> None:
        """Drop tokens past `length`."""
        del self._history(history)[max(length, 0):]

    def _history(self, history: int) -> list[int]:
        if not 0 <= history < self.histories:
            raise FieldInvalid(f"history {history} does not exist; there are {self.histories}", field="history")
        return self._histories[history]

    def close(self) -> None:
        """Free weights and cache."""
        self._closed = True
        self._weights, self._slots, self.caches, self.states = {}, {}, {}, {}

    def _check_trees(self, b: Batch, need: Callable[[object, str, str], None]) -> None:
        assert b.trees is not None
        need(b.trees.dtype == np.uint64 and len(b.trees) == len(b.tokens), "trees", "must be one u64 a token")
        for start, end in zip(b.starts[:-1].tolist(), b.starts[1:].tolist(), strict=True):
            for i, tree in enumerate(b.trees[start:end].tolist()):
                need(not tree or (end - start <= 64 and tree >> i & 1 and not tree >> end - start), "trees",
                     "must name tokens of a sequence's own at most 64 new ones, itself among them")

    def _check(self, b: Batch) -> None:
        """A batch against this backend's sizes, or FieldInvalid naming the field."""
        n, rows, seqs = len(b.tokens), len(b.rows), len(b.kv_lens)

        def need(ok: object, field: str, what: str) -> None:
            if not ok:
                raise FieldInvalid(f"batch.{field} {what}", field=field)

        need(0 < n <= self.max_tokens, "tokens", f"has {n} tokens; 1 to {self.max_tokens} fit one step")
        need(rows <= self.max_rows, "rows", f"has {rows} rows; at most {self.max_rows} fit one step")
        if b.trees is not None:
            self._check_trees(b, need)
        given = 0 if b.embeddings is None else len(b.embeddings)
        need(b.tokens.min() >= -given and b.tokens.max() < self.plan.vocab, "tokens", "holds an id outside the vocabulary")
        need(len(b.positions) == n and b.positions.min() >= 0, "positions", "must be one position >= 0 a token")
        need(b.positions.max() < self._positions, "positions", f"must lie below the model's {self._positions}")
        lens = np.diff(b.starts)
        need(len(b.starts) == seqs + 1 and b.starts[0] == 0 and b.starts[-1] == n and (lens > 0).all(), "starts",
             "must rise from 0 to the number of tokens")
        need((b.kv_lens >= lens).all(), "kv_lens", "must count at least the sequence's own new tokens")
        need(rows == 0 or (b.rows.min() >= 0 and b.rows.max() < n and (np.diff(b.rows) > 0).all()), "rows",
             "must be ascending token indices")
        need(len(b.sampling) == rows, "sampling", "must have one entry a row")
        need(len(b.tables) == len(self.pages), "tables", f"must hold one table for each of {len(self.pages)} cache groups")
        least = np.minimum.reduceat(b.positions, b.starts[:-1])
        for group, table, pages in zip(self.plan.groups, b.tables, self.pages, strict=True):
            used = -(-b.kv_lens // PAGE_TOKENS)
            if group.kind == "state":
                used = np.minimum(used, 1)
                need(b.trees is None or not b.trees.any(), "trees", "is set, and a state takes in one token after another")
            need(len(table) == seqs and (used <= table.shape[1]).all(), "tables", "is too short for the sequences")
            block = np.arange(table.shape[1])
            read = block < used[:, None]
            if group.window:
                read &= (table != -1) | ((block + 1) * PAGE_TOKENS - 1 > least[:, None] - group.window)
            live = table[read]
            need(live.size == 0 or (live.min() >= 0 and live.max() < pages), "tables", "names a page that does not exist")
            need(group.kind != "state" or len(set(live.tolist())) == seqs, "tables", "gives one state to two sequences")
        s = b.sampling
        for name, low, high in (("temperature", 0, 1e6), ("top_p", 1e-45, 1), ("min_p", 0, 1), ("typical_p", 1e-45, 1),
                                ("repetition", 1e-45, 1e6), ("presence", -1e6, 1e6), ("frequency", -1e6, 1e6),
                                ("top_k", 0, 2**31), ("candidate", 0, 2**31), ("position", 0, 2**31), ("logprobs", -1, 20)):
            need(((s[name] >= low) & (s[name] <= high)).all(), "sampling", f"has a {name} outside {low:g} to {high:g}")
        need((s["bias_first"] >= 0).all() and (s["bias_count"] >= 0).all()
             and (s["bias_first"].astype(np.int64) + s["bias_count"] <= len(b.bias_ids)).all(), "sampling",
             "names a bias that does not exist")
        need(((s["history"] >= -1) & (s["history"] < self.histories)).all(), "sampling", "names a history that does not exist")
        masks = 0 if b.masks is None else len(b.masks)
        need(((s["allowed"] >= -1) & (s["allowed"] < masks)).all(), "sampling", "names a mask that does not exist")
