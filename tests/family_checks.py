"""What every family is put before: a tiny random model of `transformers` and the plan of the same weights give the same logits in
one pass, in chunks, from the cache, in a ragged batch and greedily; and whoever gets the family wrong is seen.

`scattered(model)` gives a model weights whose logits spread; `read(model, family, config)` carries out the family's recipes on its
state dict; `Family(model, plan, weights)` has the checks. A test file of a family calls each, see test_gpt2.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from types import ModuleType

import gguf
import numpy as np
import torch
from reference_models import native_backend, stored, tables_of
from transformers.pytorch_utils import Conv1D

from pyruntime import plan as p
from pyruntime.backends.torch import TorchBackend
from pyruntime.config import ModelConfig
from pyruntime.recipe import Taken
from pyruntime.types import Batch
from pyruntime.weights import Weights

F32 = dict(k_format="f32", v_format="f32")
KINDS = ("torch", "native")
LENGTH, PROMPT, NEW = 40, 12, 24
CHUNKS = {"prefill": [LENGTH], "chunked": [17, 1, 22], "cached": [20] + [1] * 20}
NEAR = 1e-4    # in parts of the largest logit
PAGES = 12


def scattered(model: torch.nn.Module, seed: int, scales: Mapping[str, float] | None = None) -> torch.nn.Module:
    """The model with random weights in f32: matrices keep a unit input near unit size, the embedding gives logits a spread of 1 and
    more, biases are 0.3, norms scatter by 0.2 around what they begin as. scales: factors of those whose name ends so."""
    rng = np.random.default_rng(seed)
    turned = {id(m.weight) for m in model.modules() if isinstance(m, Conv1D)}
    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    for name, weight in model.named_parameters():
        x = rng.standard_normal(tuple(weight.shape))
        if weight.dim() > 1:
            x *= (2.0 if id(weight) in tables else 1.2) / np.sqrt(weight.shape[-2 if id(weight) in turned else -1])
        else:
            x = 0.3 * x if name.endswith("bias") else weight.detach().numpy() + 0.2 * x
        factor = next((f for end, f in (scales or {}).items() if name.endswith(end)), 1.0)
        weight.data = torch.from_numpy(factor * x).to(torch.float32)
    model.tie_weights()
    return model.eval()


def read(model: torch.nn.Module, family: ModuleType, config: ModelConfig,
         as_saved: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] = dict) -> dict[str, np.ndarray]:
    """Each of the plan's weights in f32, by the family's recipes, from the model's state dict. as_saved: how a checkpoint has it,
    where that differs."""
    state = {}
    for name, value in as_saved(model.state_dict()).items():
        for prefix in family.HF_PREFIXES:
            name = name.removeprefix(prefix)
        state[name] = value.detach().numpy()
    found = {}
    for name, recipe in family.hf_weights(config).items():
        parts = recipe if isinstance(recipe, tuple) else (recipe,)
        found[name] = np.concatenate([carried_out(part, state) for part in parts])
    shapes = {w.name: (w.rows, w.k) if w.k else (w.rows,) for w in family.plan(config).weights}
    return {name: np.ascontiguousarray(value).reshape(shapes[name]) for name, value in found.items()}


def carried_out(taken: Taken, state: Mapping[str, np.ndarray]) -> np.ndarray:
    """One recipe, step by step."""
    x = state[taken.tensor]
    x = x if taken.at is None else x[taken.at]
    x = x.T if taken.transpose else x
    if taken.rows is not None:
        every = x.reshape(-1, taken.every or len(x), *x.shape[1:])[:, slice(*taken.rows)]
        x = every.swapaxes(1, 2).reshape(-1, every.shape[1]) if taken.turn else every.reshape(-1, *x.shape[1:])
    return (-np.exp(x) if taken.neg_exp else x) + np.float32(taken.plus)


def same_names(family: ModuleType, config: ModelConfig) -> None:
    """What the plan calls a weight is what the `gguf` package makes of the checkpoint's name for it."""
    arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == family.ARCHITECTURES[0])
    known = gguf.get_tensor_name_map(arch, config.layers)
    for name, taken in family.hf_weights(config).items():
        there, kind = taken.tensor.rsplit(".", 1)
        found = {known.get_name(prefix + there) for prefix in ("", *family.HF_PREFIXES)} - {None}
        assert found == {name.removesuffix("." + kind)}, f"{taken.tensor} is {found}"


class Family:
    """A model of `transformers` in f32, and the plan and weights that should be it. Caches keep f32."""

    def __init__(self, reference: torch.nn.Module, plan: p.Plan, weights: Weights, *, seed: int = 5) -> None:
        self.reference, self.plan, self.weights = reference, plan, weights
        self.ids = np.random.default_rng(seed).integers(0, plan.vocab, LENGTH).tolist()

    @classmethod
    def of(cls, reference: torch.nn.Module, family: ModuleType, config: ModelConfig, **how: Callable) -> Family:
        """The family's recipes carried out on the reference's own weights; how: as `read` takes it."""
        plan = family.plan(config)
        return cls(reference, plan, stored(plan, read(reference, family, config, **how)))

    def truth(self, ids: Sequence[int]) -> np.ndarray:
        """Logits of every position."""
        with torch.inference_mode():
            return self.reference(torch.tensor([list(ids)]), use_cache=False).logits[0].float().numpy()

    @cached_property
    def want(self) -> np.ndarray:
        return self.truth(self.ids)

    @cached_property
    def greedy(self) -> list[int]:
        """NEW tokens after a prompt of PROMPT, each from a whole pass."""
        ids = self.ids[:PROMPT]
        while len(ids) < PROMPT + NEW:
            ids = [*ids, int(self.truth(ids)[-1].argmax())]
        return ids[PROMPT:]

    def backend(self, kind: str, plan: p.Plan | None = None, weights: Weights | None = None):
        """A fresh one of the plan or of another, that rounds nothing."""
        plan, weights = plan or self.plan, weights or self.weights
        if kind == "torch":
            return TorchBackend(plan, weights, act_quant="none", pages=PAGES, max_rows=2 * LENGTH)
        return native_backend(plan, weights, precision="precise", threads=2, pages=PAGES, max_rows=2 * LENGTH)

    def distance(self, got: np.ndarray, want: np.ndarray | None = None) -> float:
        """Largest difference, in parts of the largest logit."""
        want = self.want if want is None else want
        return float(np.abs(got - want).max() / max(1.0, np.abs(want).max()))

    # ---- the same ----

    def same_in(self, kind: str, chunks: Sequence[int]) -> None:
        """Every position's logits, the sequence fed in `chunks`."""
        assert self.want.std() >= 1
        assert self.distance(logits(self.backend(kind), self.ids, chunks)) <= NEAR

    def same_ragged(self, kind: str) -> None:
        """Three sequences in one batch, the second behind a cached start."""
        backend, last = self.backend(kind), len(self.plan.ops) - 1
        texts = [self.ids, self.ids[11:], self.ids[30:]]
        groups = [tables_of([len(t) for t in texts], PAGES, np.random.default_rng(g)) for g in range(len(self.plan.groups))]
        backend.run(Batch.build([(texts[1][:9], 0, 0)], tables=[[g[1]] for g in groups]), 0, last)
        batch = Batch.build([(texts[0], 0, 0), (texts[1][9:], 9, 9), (texts[2], 0, 0)], tables=groups,
                            rows=np.arange(sum(map(len, texts)) - 9))
        backend.run(batch, 0, last)
        first, second, third = np.split(backend.slot("logits"), batch.starts[1:-1])
        for got, want in ((first, self.want), (second, self.truth(texts[1])[9:]), (third, self.truth(texts[2]))):
            assert self.distance(got, want) <= NEAR

    def same_greedy(self, kind: str) -> None:
        """NEW tokens, each the best."""
        backend, ids, at = self.backend(kind), self.ids[:PROMPT], 0
        while len(ids) < PROMPT + NEW:
            backend.run(Batch.build([(ids[at:], at, at)], tables=tables(self.plan)))
            at = len(ids)
            ids = [*ids, int(backend.sampled()["token"][0])]
        assert ids[PROMPT:] == self.greedy

    # ---- and what is not ----

    def sees(self, plan: p.Plan, weights: Weights | None = None) -> None:
        """Another plan, or other weights, gives other logits: the comparison can tell."""
        assert plan != self.plan or weights is not None
        assert not self.distance(logits(self.backend("torch", plan, weights), self.ids, [LENGTH])) <= NEAR    # NaN is seen too

    def largest_scores(self) -> list[float]:
        """Of each attention op over pages of K and V: the largest |scale q . k| of a token and one it sees, before any cap."""
        backend, found, done = self.backend("torch"), [], 0
        batch = Batch.build([(self.ids, 0, 0)], tables=tables(self.plan))
        for at, op in enumerate(self.plan.ops):
            if isinstance(op, p.Attention):
                backend.run(batch, done, at)
                done, g = at, self.plan.groups[self.plan.group(op.group)]
                q, k, _ = np.split(backend.slot(op.qkv).reshape(LENGTH, -1, g.head_dim), [op.heads, op.heads + g.kv_heads], 1)
                scores = op.scale * np.einsum("thd,khd->htk", q, k.repeat(op.heads // g.kv_heads, 1))
                behind = np.arange(LENGTH)[:, None] - np.arange(LENGTH)
                seen = (behind >= 0) & (behind < (op.window or LENGTH))
                found.append(float(np.abs(scores[:, seen]).max()))
        return found


def tables(plan: p.Plan) -> list[list[list[int]]]:
    """One sequence's pages, in no order: other ones in each group."""
    return [[[page + group for page in (7, 2, 5)]] for group in range(len(plan.groups))]


def logits(backend, ids: Sequence[int], chunks: Sequence[int]) -> np.ndarray:
    """Of every position, the sequence fed in `chunks`."""
    out, at, plan = [], 0, backend.plan
    for n in chunks:
        batch = Batch.build([(ids[at:at + n], at, at)], tables=tables(plan), rows=np.arange(n))
        backend.run(batch, 0, len(plan.ops) - 1)
        out.append(backend.slot("logits").copy())
        at += n
    return np.concatenate(out)


def same_bits(plan: p.Plan, values: Mapping[str, np.ndarray], seed: int) -> None:
    """Native, block formats: any chunks on any threads, weights packed or left in the file, give the bits of one pass."""
    rng = np.random.default_rng(seed)
    formats = {w.name: str(rng.choice(["Q8_0", "Q4_1", "F16"])) for w in plan.weights if w.k}
    ids, chunks = rng.integers(0, plan.vocab, LENGTH).tolist(), []
    while sum(chunks) < LENGTH:
        chunks.append(int(rng.integers(1, min(20, LENGTH - sum(chunks)) + 1)))
    one = native_backend(plan, stored(plan, dict(values), formats), pages=PAGES, threads=1)
    other = native_backend(plan, stored(plan, dict(values), formats, low_memory=True), pages=PAGES, threads=2)
    assert np.array_equal(logits(one, ids, [LENGTH]), logits(other, ids, chunks))


def changed(plan: p.Plan, kind: type, change: Callable[[p.Op], Sequence[p.Op]] | None = None, **fields: object) -> p.Plan:
    """The plan with `change(op)`, a list of ops, or the op with other fields, in the place of every op of a kind."""
    def other(op: p.Op) -> Sequence[p.Op]:
        return [op] if not isinstance(op, kind) else change(op) if change else [replace(op, **fields)]

    return replace(plan, ops=tuple(o for op in plan.ops for o in other(op)))
