"""Gemma 3 against `transformers`: random models through a GGUF file, and every way to get the family wrong."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("transformers")
pytest.importorskip("gguf")

from gemma_models import hugging_face, random_gemma, write_gguf
from reference_models import native_backend, stored, tables_of

from pyruntime import plan as p
from pyruntime.backends.torch import TorchBackend
from pyruntime.config import Metadata, ModelConfig, RopeScaling
from pyruntime.errors import ModelInvalid
from pyruntime.models import gemma3
from pyruntime.types import Batch
from pyruntime.weights import load_weights
from pyruntime.weights.gguf import GGUFModel

F32 = dict(k_format="f32", v_format="f32")
CONFIGS = {
    "as 270m": gemma3.tiny(layers=7, heads=4, kv_heads=1, head_dim=32, period=6, **F32),
    "scaled": gemma3.tiny(rope_scaling=RopeScaling("linear", 8.0), query_scale=0.2, final_softcap=9.0, **F32),
    "wide heads": gemma3.tiny(width=72, heads=3, kv_heads=3, head_dim=40, hidden=100, window=1, local_rope_theta=2e3, **F32),
}
LENGTH = 40


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny products gain nothing from torch's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Made:
    """One random model: transformers' logits of some tokens, and what our loader makes of its file."""

    def __init__(self, config: ModelConfig, path: Path) -> None:
        self.wanted, values = config, random_gemma(config, 3)
        self.reference = hugging_face(config, values)
        self.ids = np.random.default_rng(5).integers(0, config.vocab, LENGTH).tolist()
        with torch.inference_mode():
            self.want = self.reference(torch.tensor([self.ids])).logits[0].numpy()
            self.others = [self.reference(torch.tensor([self.ids[n:]])).logits[0].numpy() for n in (11, 30)]
        with GGUFModel(write_gguf(path, config, values)) as file:
            found = gemma3.from_gguf(file.metadata, file.shapes, file.vector)
            self.config = replace(found, **F32)
            self.plan = gemma3.plan(self.config)
            self.weights = load_weights(self.plan.weights, file, threads=1)

    def distance(self, logits: np.ndarray, want: np.ndarray | None = None) -> float:
        """Largest difference, in parts of the largest logit."""
        want = self.want if want is None else want
        return float(np.abs(logits - want).max() / max(1.0, np.abs(want).max()))


@pytest.fixture(scope="module", params=CONFIGS)
def made(request, tmp_path_factory) -> Made:
    return Made(CONFIGS[request.param], tmp_path_factory.mktemp("gemma") / "model.gguf")


@pytest.fixture(scope="module")
def scaled(tmp_path_factory) -> Made:
    return Made(CONFIGS["scaled"], tmp_path_factory.mktemp("gemma") / "model.gguf")


def tables(plan: p.Plan, pages: list[int]) -> list[list[list[int]]]:
    """One sequence's pages: other ones in each group."""
    return [[[page + group for page in pages]] for group in range(len(plan.groups))]


def logits(backend, ids: list[int], chunks: list[int]) -> np.ndarray:
    """Of every position, the sequence fed in `chunks`."""
    out, at, plan = [], 0, backend.plan
    for n in chunks:
        batch = Batch.build([(ids[at:at + n], at, at)], tables=tables(plan, [7, 2, 5]), rows=np.arange(n))
        backend.run(batch, 0, len(plan.ops) - 1)
        out.append(backend.slot("logits").copy())
        at += n
    return np.concatenate(out)


def native(made: Made, **sizes: int):
    return native_backend(made.plan, made.weights, precision="precise", threads=2, **{"pages": 9, **sizes})


def reference_backend(made: Made, plan: p.Plan | None = None) -> TorchBackend:
    return TorchBackend(plan or made.plan, made.weights, act_quant="none", pages=9)


def test_the_file_says_what_the_model_is(made: Made) -> None:
    """But for numbers that a file keeps in f32."""
    near = replace(made.config, eps=made.wanted.eps, query_scale=made.wanted.query_scale)
    assert near == made.wanted
    assert made.config.eps == np.float32(made.wanted.eps)
    assert np.isclose(made.config.query_scale, made.wanted.query_scale or made.wanted.head_dim**-0.5, rtol=1e-7)


@pytest.mark.parametrize("kind", ["torch", "native"])
@pytest.mark.parametrize("chunks", [[LENGTH], [17, 1, 22], [20] + [1] * 20], ids=["prefill", "chunked", "cached"])
def test_equals_transformers(made: Made, kind: str, chunks: list[int]) -> None:
    """Every position's logits within 1e-4 in f32."""
    assert made.want.std() >= 1
    backend = reference_backend(made) if kind == "torch" else native(made)
    assert made.distance(logits(backend, made.ids, chunks)) <= 1e-4


def test_ragged_equals_transformers(made: Made) -> None:
    """Three sequences in one batch, the second one behind a cached start."""
    backend = native(made, pages=12, max_rows=100)
    several = [made.ids, made.ids[11:], made.ids[30:]]
    groups = [tables_of([len(s) for s in several], 12, np.random.default_rng(g)) for g in range(len(made.plan.groups))]
    last = len(made.plan.ops) - 1
    backend.run(Batch.build([(several[1][:9], 0, 0)], tables=[[g[1]] for g in groups]), 0, last)
    batch = Batch.build([(several[0], 0, 0), (several[1][9:], 9, 9), (several[2], 0, 0)], tables=groups,
                        rows=np.arange(sum(map(len, several)) - 9))
    backend.run(batch, 0, last)
    first, second, third = np.split(backend.slot("logits"), batch.starts[1:-1])
    for got, want in ((first, made.want), (second, made.others[0][9:]), (third, made.others[1])):
        assert made.distance(got, want) <= 1e-4


@pytest.mark.parametrize("kind", ["torch", "native"])
def test_greedy_equals_transformers(made: Made, kind: str) -> None:
    """24 tokens."""
    backend = reference_backend(made) if kind == "torch" else native(made)
    with torch.inference_mode():
        want = made.reference.generate(torch.tensor([made.ids[:12]]), attention_mask=torch.ones(1, 12), max_new_tokens=24,
                                       do_sample=False)[0, 12:].tolist()
    ids, at, new = made.ids[:12], 0, []
    while len(new) < 24:
        backend.run(Batch.build([(ids[at:], at, at)], tables=tables(made.plan, [7, 2, 5])))
        at = len(ids)
        new.append(int(backend.sampled()["token"][0]))
        ids = [*ids, new[-1]]
    assert new == want


def swapped(plan: p.Plan, kind: type, change) -> p.Plan:
    """The plan with `change(op)`, a list of ops, in the place of every op of a kind."""
    ops = [o for op in plan.ops for o in (change(op) if isinstance(op, kind) else [op])]
    return replace(plan, ops=tuple(ops))


WRONG = {
    "global theta": lambda c: dict(rope_theta=c.rope_theta * 1.1), "local theta": lambda c: dict(local_rope_theta=1.1e4),
    "thetas swapped": lambda c: dict(rope_theta=c.local_rope_theta, local_rope_theta=c.rope_theta),
    "no scaling": lambda c: dict(rope_scaling=RopeScaling()), "interleaved": lambda c: dict(rope_interleaved=True),
    "window + 1": lambda c: dict(window=c.window + 1), "window - 1": lambda c: dict(window=c.window - 1),
    "no window": lambda c: dict(window=1 << 20), "all global": lambda c: dict(local=(False,) * c.layers),
    "all local": lambda c: dict(local=(True,) * c.layers), "pattern turned": lambda c: dict(local=c.local[1:] + c.local[:1]),
    "query scale": lambda c: dict(query_scale=0.0), "eps": lambda c: dict(eps=1e-3), "silu": lambda c: dict(activation="silu"),
    "gelu": lambda c: dict(activation="gelu"), "no cap": lambda c: dict(final_softcap=0.0),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_config_is_seen(scaled: Made, wrong: str) -> None:
    plan = gemma3.plan(replace(scaled.config, **WRONG[wrong](scaled.config)))
    assert scaled.distance(logits(reference_backend(scaled, plan), scaled.ids, [LENGTH])) > 1e-4


def other(name: str) -> str:
    """The name of a layer's other post-norm."""
    one, two = "post_attention_norm", "post_ffw_norm"
    return name.replace(one, two) if one in name else name.replace(two, one)


PLANS = {
    "no embedding scale": lambda plan: swapped(plan, p.Embed, lambda op: [replace(op, scale=1.0)]),
    "embedding scale in bf16": lambda plan: swapped(plan, p.Embed, lambda op: [
        replace(op, scale=float(torch.tensor(op.scale).bfloat16()))]),
    "no query norm": lambda plan: swapped(plan, p.RopeKV, lambda op: [replace(op, q_norm=None)]),
    "no key norm": lambda plan: swapped(plan, p.RopeKV, lambda op: [replace(op, k_norm=None)]),
    "norms swapped": lambda plan: swapped(plan, p.RopeKV, lambda op: [replace(op, q_norm=op.k_norm, k_norm=op.q_norm)]),
    "no post-norm": lambda plan: swapped(swapped(plan, p.NormAdd, lambda op: []), p.Linear, lambda op: [
        p.LinearAdd(op.x, "x", op.weight)]),
    "post-norm of the sum": lambda plan: swapped(plan, p.NormAdd, lambda op: [
        replace(op, norm=op.norm.replace("post_attention_norm", "ffn_norm"))]),
    "post-norms swapped": lambda plan: swapped(plan, p.NormAdd, lambda op: [replace(op, norm=other(op.norm))]),
    "gate and up swapped": lambda plan: swapped(plan, p.Gated, lambda op: [replace(op, gate=op.up, up=op.gate)]),
}


@pytest.mark.parametrize("wrong", PLANS)
def test_a_wrong_plan_is_seen(scaled: Made, wrong: str) -> None:
    plan = PLANS[wrong](scaled.plan)
    assert plan != scaled.plan
    assert scaled.distance(logits(reference_backend(scaled, plan), scaled.ids, [LENGTH])) > 1e-4


def test_heads_mapped_otherwise_are_seen(scaled: Made) -> None:
    """Query head h reads KV head h mod kv_heads: the rows of q in that order."""
    c, values = scaled.config, random_gemma(CONFIGS["scaled"], 3)
    order = np.arange(c.heads).reshape(c.kv_heads, -1).T.reshape(-1)
    for name, value in values.items():
        if ".attn_q." in name:
            values[name] = value.reshape(c.heads, c.head_dim, -1)[order].reshape(value.shape)
    backend = TorchBackend(scaled.plan, stored(scaled.plan, values, low_memory=True), act_quant="none", pages=9)
    assert scaled.distance(logits(backend, scaled.ids, [LENGTH])) > 1e-4


@pytest.mark.parametrize("given_", [7, np.array([True, False, True, True]), [1, 0, 1, 1], 3])
def test_patterns_of_a_file(given_) -> None:
    meta = Metadata({"gemma3.attention.sliding_window_pattern": given_}, "f")
    found = gemma3._pattern(meta, "gemma3.attention.sliding_window_pattern", 4)
    assert found == (gemma3.pattern(4, given_) if isinstance(given_, int) else (True, False, True, True))


BASE = {"gemma3.embedding_length": 96, "gemma3.block_count": 2, "gemma3.attention.head_count": 4, "gemma3.context_length": 64,
        "gemma3.feed_forward_length": 100, "gemma3.attention.sliding_window": 5}


@pytest.mark.parametrize("key, value", [
    ("attention.sliding_window_pattern", [True]), ("attention.sliding_window_pattern", "x"),
    ("attention.sliding_window_pattern", [2, 0]), ("attention.sliding_window_pattern", 0), ("attention.head_count_kv", 3),
    ("attention.key_length", 15), ("attention.value_length", 128), ("rope.dimension_count", 128), ("attn_logit_softcapping", 50.0),
    ("rope.scaling.type", "yarn"), ("attention.sliding_window", -1), ("rope.freq_base_swa", 0.0), ("attention.scale", 0.0),
    ("block_count", "two"), ("final_logit_softcapping", float("nan"))])
def test_bad_metadata(key: str, value: object) -> None:
    shapes = {"token_embd.weight": (11, 96)}
    assert gemma3.from_gguf(Metadata(BASE, "file"), shapes, lambda name: ()).local == (True, True)
    says = {"attention.head_count_kv": "key-value", "rope.scaling.type": "yarn"}.get(key, key)
    with pytest.raises(ModelInvalid, match=f"file.*{says}"):
        gemma3.from_gguf(Metadata(BASE | {f"gemma3.{key}": value}, "file"), shapes, lambda name: ())


def test_what_files_leave_out() -> None:
    """Local theta, pattern and query scale are the family's; no window: every layer is global."""
    shapes = {"token_embd.weight": (11, 96)}
    config = gemma3.from_gguf(Metadata(BASE | {"gemma3.block_count": 18}, "f"), shapes, lambda name: ())
    assert (config.local_rope_theta, config.rope_theta, config.head_dim, config.query_scale) == (1e4, 1e6, 256, 1 / 16)
    assert [i for i, local in enumerate(config.local) if not local] == [5, 11, 17]
    large = gemma3.from_gguf(Metadata(BASE | {"gemma3.block_count": 62, "gemma3.embedding_length": 5376,
                                              "gemma3.attention.head_count": 32}, "f"), shapes, lambda name: ())
    assert large.query_scale == 168**-0.5
    whole = gemma3.plan(gemma3.from_gguf(Metadata(BASE | {"gemma3.attention.sliding_window": 0}, "f"), shapes, lambda name: ()))
    assert [g.name for g in whole.groups] == ["global"] and len(whole.ropes) == 1


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), data=st.data())
def test_native_chunks_and_pages_do_not_matter(seed: int, data) -> None:
    """Block formats, f16 cache: any chunks through any pages give the bits of one pass."""
    plan, rng = gemma3.plan(gemma3.tiny(vocab=67, layers=3)), np.random.default_rng(seed)
    formats = {w.name: data.draw(st.sampled_from(["Q8_0", "Q4_1", "F16"])) for w in plan.weights if w.k}
    weights = stored(plan, random_gemma(gemma3.tiny(vocab=67, layers=3), seed), formats)
    ids, chunks = rng.integers(0, 67, LENGTH).tolist(), []
    while sum(chunks) < LENGTH:
        chunks.append(int(rng.integers(1, min(20, LENGTH - sum(chunks)) + 1)))
    one, other = (native_backend(plan, weights, pages=9, threads=n) for n in (1, 2))
    assert np.array_equal(logits(one, ids, [LENGTH]), logits(other, ids, chunks))
