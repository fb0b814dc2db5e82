"""Mixtures of experts, op by op: what a loop over tokens and experts gives, whoever else is in the batch."""
from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference_models import native_backend, stored

from pyruntime import plan as p
from pyruntime.backends.base import expert_counts
from pyruntime.backends.torch import TorchBackend
from pyruntime.quant import FORMATS
from pyruntime.types import Batch

FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@dataclass(frozen=True)
class Shape:
    """A mixture and how it is routed."""

    width: int
    hidden: int
    groups: int
    each: int      # experts of a group
    kept: int
    best: int
    top_k: int
    sigmoid: bool
    biased: bool
    normalize: bool
    scale: float
    activation: int

    @property
    def experts(self) -> int:
        return self.groups * self.each

    def route(self) -> p.Route:
        return p.Route("router", "routes", top_k=self.top_k, bias="bias" if self.biased else None, scoring=int(self.sigmoid),
                       groups=self.groups, groups_kept=self.kept, group_best=self.best, normalize=self.normalize, scale=self.scale)


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    groups, each = draw(st.sampled_from([1, 1, 2, 4])), draw(st.integers(2, 6))
    kept = draw(st.integers(1, groups))
    return Shape(32 * draw(st.integers(1, 3)), 32 * draw(st.integers(1, 2)), groups, each, kept, draw(st.integers(1, 2)),
                 draw(st.integers(1, min(6, kept * each))), draw(st.booleans()), draw(st.booleans()), draw(st.booleans()),
                 draw(st.sampled_from([1.0, 2.5])), draw(st.sampled_from([0, 1, 2])))


def plan_of(shape: Shape) -> p.Plan:
    """x and the router's logits are put into their slots; x takes the mixture in."""
    s, n = shape, shape.experts
    ops = (p.Embed("x", "table"), shape.route(),
           p.Experts("x", "hidden", "routes", norm="norm", gate="gate", up="up", parts=s.top_k, of=n, activation=s.activation),
           p.EachLinear("hidden", "results", "down", parts=s.top_k, of=n, routes="routes"),
           p.RoutedAdd("results", "x", "routes", parts=s.top_k))
    slots = (p.Slot("x", s.width), p.Slot("router", n), p.Slot("routes", 2 * s.top_k), p.Slot("hidden", s.top_k * s.hidden),
             p.Slot("results", s.top_k * s.width))
    weights = (p.Weight("table", 16, s.width), p.Weight("norm", s.width), p.Weight("bias", n),
               p.Weight("gate", n * s.hidden, s.width), p.Weight("up", n * s.hidden, s.width),
               p.Weight("down", n * s.width, s.hidden))
    return p.Plan(ops, slots, weights, (), (), vocab=16, context=16, width=s.width)


def values_of(plan: p.Plan, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {w.name: (rng.standard_normal((w.rows, w.k) if w.k else w.rows) * (w.k or 1)**-0.5).astype(np.float32)
            for w in plan.weights}


def inputs(shape: Shape, tokens: int, rng: np.random.Generator, tied: bool) -> tuple[np.ndarray, np.ndarray]:
    """(x, router logits). tied: logits of few values, so that equals are everywhere."""
    logits = rng.integers(-1, 2, (tokens, shape.experts)) if tied else rng.standard_normal((tokens, shape.experts)) * 2
    return rng.standard_normal((tokens, shape.width)).astype(np.float32), logits.astype(np.float32)


def computed(backend, x: np.ndarray, logits: np.ndarray, roles: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Every slot after the mixture."""
    batch = Batch.build([([1] * len(x), 0, 0)], tables=[], rows=[])
    if roles is not None:
        batch = replace(batch, roles=roles)
    backend.run(batch, 0, 1)
    backend.slot("x")[:], backend.slot("router")[:] = x, logits
    backend.run(batch, 1)
    return {s.name: backend.slot(s.name).copy() for s in backend.plan.slots}


# ---- the book ----

def chosen(shape: Shape, logits: np.ndarray, bias: np.ndarray) -> dict[int, float]:
    """One token's experts, ascending, and what each counts: rule by rule, in f64."""
    wide = logits.astype(np.float64)
    e = np.exp(wide - wide.max())
    scores = 1 / (1 + np.exp(-wide)) if shape.sigmoid else e / e.sum()
    choices = scores + (bias if shape.biased else 0)
    groups = [range(g * shape.each, (g + 1) * shape.each) for g in range(shape.groups)]
    worth = [sum(sorted((choices[i] for i in group), reverse=True)[: shape.best]) for group in groups]
    stay = sorted(range(shape.groups), key=lambda g: (-worth[g], g))[: shape.kept]
    left = [i for g in stay for i in groups[g]]
    best = sorted(sorted(left, key=lambda i: (-choices[i], i))[: shape.top_k])
    total = sum(scores[i] for i in best) + 1e-20 if shape.normalize else 1.0
    return {i: shape.scale * scores[i] / total for i in best}


def expected(shape: Shape, values: dict[str, np.ndarray], x: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """x with the mixture added, a loop over tokens and their experts in f64."""
    out = x.astype(np.float64)
    gate, up, down = (values[n].astype(np.float64).reshape(shape.experts, -1, values[n].shape[1]) for n in ("gate", "up", "down"))
    act = [lambda a: a / (1 + np.exp(-a)),
           lambda a: torch.nn.functional.gelu(torch.from_numpy(a), approximate="tanh").numpy(),
           lambda a: torch.nn.functional.gelu(torch.from_numpy(a)).numpy()][shape.activation]
    for t, row in enumerate(out.copy()):
        n = row / np.sqrt((row**2).mean() + 1e-5) * values["norm"]
        for i, weight in chosen(shape, logits[t], values["bias"]).items():
            out[t] += weight * (down[i] @ (act(gate[i] @ n) * (up[i] @ n)))
    return out


@FEW
@given(shapes(), st.integers(1, 70), st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from(["torch", "native"]))
def test_a_mixture_is_the_loop(shape: Shape, tokens: int, seed: int, tied: bool, kind: str) -> None:
    """Routes equal the book's, their weights to f32, the sum to its roundings; counts add up to tokens x top_k."""
    rng, plan = np.random.default_rng(seed), plan_of(shape)
    values = values_of(plan, rng)
    x, logits = inputs(shape, tokens, rng, tied)
    if kind == "torch":
        backend = TorchBackend(plan, stored(plan, values, low_memory=True), act_quant="none")
    else:
        backend = native_backend(plan, stored(plan, values), precision="precise", threads=2)
    got = computed(backend, x, logits)
    routes = [chosen(shape, row, values["bias"]) for row in logits]
    assert got["routes"][:, : shape.top_k].tolist() == [list(r) for r in routes]
    assert np.allclose(got["routes"][:, shape.top_k:], [list(r.values()) for r in routes], rtol=1e-6, atol=1e-30)
    want = expected(shape, values, x, logits)
    assert np.abs(got["x"] - want).max() <= 2e-5 * max(1.0, np.abs(want).max())
    counts = expert_counts(backend)["routes"]
    assert counts.tolist() == np.bincount([i for r in routes for i in r], minlength=shape.experts).tolist()
    assert counts.sum() == tokens * shape.top_k and counts.max() <= tokens
    backend.close()


@FEW
@given(shapes(), st.integers(2, 150), st.integers(0, 2**32 - 1), st.booleans(), st.booleans(),
       st.sampled_from([("a16", "a16"), ("bf16", "a16"), ("bf16", "bf16"), ("a16_bf16", "a16"), ("a16_bf16", "bf16"),
                        ("a8", "a16")]))
def test_a_token_keeps_its_bits_in_any_batch(shape: Shape, tokens: int, seed: int, low_memory: bool, tied: bool,
                                             paths: tuple[str, str]) -> None:
    """However tokens are grouped: in another order, in two steps, on other threads, beside tokens of another path."""
    rng, plan = np.random.default_rng(seed), plan_of(shape)
    formats = {w.name: str(rng.choice([n for n, twin in FORMATS.items() if w.k % twin.BLOCK_WEIGHTS == 0]))
               for w in plan.weights if w.k}
    weights = stored(plan, values_of(plan, rng), formats, low_memory=low_memory)
    x, logits = inputs(shape, tokens, rng, tied)
    roles = rng.integers(0, 2, tokens).astype(np.uint8)
    one, other = (native_backend(plan, weights, threads=n, paths=paths) for n in (1, 3))
    whole = computed(one, x, logits, roles)["x"]
    order, cut = rng.permutation(tokens), int(rng.integers(1, tokens))
    assert np.array_equal(whole[order], computed(other, x[order], logits[order], roles[order])["x"])
    parts = [computed(other, x[s], logits[s], roles[s])["x"] for s in (slice(cut), slice(cut, None))]
    assert np.array_equal(whole, np.concatenate(parts))


PATHS = [("a16", "a16"), ("bf16", "bf16"), ("bf16", "a16"), ("a16_bf16", "a16"), ("a8", "a16")]


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("paths", PATHS, ids="-".join)
def test_an_expert_is_read_once_a_step(paths: tuple[str, str], threads: int, low_memory: bool) -> None:
    """However many tokens chose it, and by whichever paths, as the op clock counts bytes; and not at all if none did. The bits
    are those of steps in which nothing lies in portions."""
    rng, s = np.random.default_rng(4), shape(width=256, hidden=288, each=9, top_k=3)
    plan, tokens = plan_of(s), 700
    formats = {"gate": "Q4_K", "up": "Q8_0", "down": "Q4_0"}
    weights = stored(plan, values_of(plan, rng), formats, low_memory=low_memory)
    x, logits = inputs(s, tokens, rng, False)
    logits[:, :2] += [6, 3]                     # one that nearly all choose, a second that many do
    logits[:, 7] = -50                          # one that nobody does
    roles = rng.integers(0, 2, tokens).astype(np.uint8)
    backend = native_backend(plan, weights, threads=threads, paths=paths, max_tokens=tokens)
    backend.clock(True)
    got = computed(backend, x, logits, roles)
    ids = got["routes"][:, : s.top_k].astype(int)
    counts = [np.bincount(ids[roles == role].ravel(), minlength=s.experts) for role in (0, 1)]
    if paths[0] == paths[1] or "a16_bf16" in paths:     # which are one to weights in blocks
        counts = [counts[0] + counts[1]]
        assert counts[0].max() > 2 * 256
    assert all(sum(c > 256) >= 1 and sum(c > 64) >= 3 and c[7] == 0 for c in counts)
    used = int((sum(counts) > 0).sum())
    of_one = {name: weights[name].nbytes // s.experts for name in ("gate", "up", "down")}
    assert backend.weights_read().tolist() == [0, 0, used * (of_one["gate"] + of_one["up"]), used * of_one["down"], 0]
    few = native_backend(plan, weights, threads=1, paths=paths, max_tokens=20)
    parts = [computed(few, x[at:at + 20], logits[at:at + 20], roles[at:at + 20])["x"] for at in range(0, tokens, 20)]
    assert np.array_equal(got["x"], np.concatenate(parts))


def test_heads_are_read_once_a_step() -> None:
    """EACH_LINEAR without routes: every token meets every matrix, each of them read once."""
    plan = p.Plan((p.Embed("x", "table"), p.EachLinear("x", "out", "heads", parts=5, of=5)),
                  (p.Slot("x", 160), p.Slot("out", 5 * 48)), (p.Weight("table", 16, 160), p.Weight("heads", 5 * 48, 32)),
                  (), (), vocab=16, context=400, width=160)
    weights = stored(plan, values_of(plan, np.random.default_rng(1)), {"heads": "Q8_0"})
    backend = native_backend(plan, weights, threads=2, max_tokens=400, paths=("a16", "a16"))
    backend.clock(True)
    for tokens, steps in ((1, 1), (65, 2), (400, 3)):
        backend.run(Batch.build([([1] * tokens, 0, 0)], tables=[], rows=[]))
        assert backend.weights_read()[1] == steps * weights["heads"].nbytes


def shape(**fields: object) -> Shape:
    usual = dict(width=32, hidden=32, groups=1, each=4, kept=1, best=1, top_k=2, sigmoid=False, biased=False, normalize=False,
                 scale=1.0, activation=0)
    return Shape(**{**usual, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["torch", "native"])
def test_routes_of_known_numbers(kind: str) -> None:
    """Equals go to the lower index; groups by their best, or their two best; a bias moves the choice and not the weight."""
    def routes(s: Shape, *logits: float) -> list[float]:
        plan = plan_of(s)
        values = values_of(plan, np.random.default_rng(0)) | {"bias": np.float32([0, 0, 0, 0.6])}
        backend = TorchBackend(plan, stored(plan, values, low_memory=True)) if kind == "torch" else \
            native_backend(plan, stored(plan, values), threads=1)
        return computed(backend, np.ones((1, 32), np.float32), np.float32([logits]))["routes"][0].astype(float).round(4).tolist()

    assert routes(shape(), 1, 1, 1, 1) == [0, 1, 0.25, 0.25]
    assert routes(shape(), 0, 5, 5, 5) == pytest.approx([1, 2, 0.3326, 0.3326], abs=1e-4)
    assert routes(shape(normalize=True, scale=2.0), 0, 5, 5, 5) == [1, 2, 1, 1]
    assert routes(shape(sigmoid=True), 0, -1, 3, 2) == [2, 3, 0.9526, 0.8808]
    assert routes(shape(sigmoid=True, biased=True), 3, 2, 1, 0) == [0, 3, 0.9526, 0.5]
    by_best = shape(groups=2, each=2, sigmoid=True, top_k=1)
    assert routes(by_best, 3, -9, 2, 2) == [0, 0.9526]
    assert routes(replace(by_best, best=2), 3, -9, 2, 2) == [2, 0.8808]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_stay_inside(bad: float) -> None:
    """Ids are distinct and experts of the plan whatever the router says; what is computed from it is not finite where it is not."""
    for fields in (dict(), dict(groups=2, each=4, kept=1, best=2, sigmoid=True), dict(each=8, top_k=5, normalize=True)):
        s = shape(**fields)
        plan = plan_of(s)
        backend = native_backend(plan, stored(plan, values_of(plan, np.random.default_rng(1))), threads=2)
        rng = np.random.default_rng(2)
        x, logits = inputs(s, 40, rng, False)
        logits[rng.random(logits.shape) < 0.3] = bad
        logits[7] = bad
        ids = computed(backend, x, logits)["routes"][:, : s.top_k]
        assert ((ids >= 0) & (ids < s.experts) & (ids == ids.astype(int))).all()
        assert all(len(set(row)) == s.top_k for row in ids.tolist())


def test_a_slot_that_holds_no_route_names_the_first_expert() -> None:
    """Whatever stands in the slot, nothing outside the weights is read."""
    s = shape(each=3)
    plan = plan_of(s)
    values = values_of(plan, np.random.default_rng(1))
    native = native_backend(plan, stored(plan, values), threads=1, precision="precise")
    ref = TorchBackend(plan, stored(plan, values, low_memory=True), act_quant="none")
    x, logits = inputs(s, 6, np.random.default_rng(3), False)
    odd = np.float32([[np.nan, 1], [-1, 2], [3, 0], [np.inf, 1e30], [1, 1], [-np.inf, 2]])
    out = []
    for backend in (native, ref):
        computed(backend, x, logits)
        backend.slot("routes")[:, :2] = odd
        backend.run(Batch.build([([1] * 6, 0, 0)], tables=[], rows=[]), 2, 4)
        out.append(backend.slot("results").copy())
    assert np.isfinite(out[0]).all() and np.allclose(*out, atol=1e-5)
