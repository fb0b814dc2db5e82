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

from family_checks import CHUNKS, F32, KINDS, LENGTH, Family, changed, logits, read, same_bits, same_names
from gemma_models import hugging_face, random_gemma, write_gguf
from reference_models import stored

from pyruntime import plan as p
from pyruntime.config import Metadata, ModelConfig, RopeScaling
from pyruntime.errors import ModelInvalid
from pyruntime.models import _gemma, gemma3
from pyruntime.weights import load_weights
from pyruntime.weights.gguf import GGUFModel

CONFIGS = {
    "as 270m": gemma3.tiny(layers=7, heads=4, kv_heads=1, head_dim=32, period=6, **F32),
    "scaled": gemma3.tiny(rope_scaling=RopeScaling("linear", 8.0), query_scale=0.2, final_softcap=4.0, **F32),
    "wide heads": gemma3.tiny(width=72, heads=3, kv_heads=3, head_dim=40, hidden=100, window=1, local_rope_theta=2e3, **F32),
}


pytestmark = pytest.mark.usefixtures("one_thread")


def from_file(config: ModelConfig, path: Path) -> tuple[Family, ModelConfig]:
    """A random model, what our loader makes of its file, and the config it found there."""
    values = random_gemma(config, 3)
    with GGUFModel(write_gguf(path, config, values)) as file:
        found = replace(gemma3.from_gguf(file.metadata, file.shapes, file.vector), **F32)
        plan = gemma3.plan(found)
        return Family(hugging_face(config, values), plan, load_weights(plan.weights, file, threads=1)), found


@pytest.fixture(scope="module", params=CONFIGS)
def read_(request, tmp_path_factory) -> tuple[Family, ModelConfig, ModelConfig]:
    """(model, config of the file, config it was made from)."""
    wanted = CONFIGS[request.param]
    return *from_file(wanted, tmp_path_factory.mktemp("gemma") / "model.gguf"), wanted


@pytest.fixture(scope="module")
def made(read_) -> Family:
    return read_[0]


@pytest.fixture(scope="module")
def scaled(tmp_path_factory) -> tuple[Family, ModelConfig]:
    return from_file(CONFIGS["scaled"], tmp_path_factory.mktemp("gemma") / "model.gguf")


def test_the_file_says_what_the_model_is(read_) -> None:
    """But for numbers that a file keeps in f32."""
    _, found, wanted = read_
    assert replace(found, eps=wanted.eps, query_scale=wanted.query_scale) == wanted
    assert found.eps == np.float32(wanted.eps)
    assert np.isclose(found.query_scale, wanted.query_scale or wanted.head_dim**-0.5, rtol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
def test_equals_transformers(made: Family, kind: str, chunks: list[int]) -> None:
    made.same_in(kind, chunks)


@pytest.mark.parametrize("kind", KINDS)
def test_ragged_equals_transformers(made: Family, kind: str) -> None:
    made.same_ragged(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_equals_transformers(made: Family, kind: str) -> None:
    made.same_greedy(kind)


def test_the_checkpoint_s_own_names_give_the_same_weights(scaled) -> None:
    model, config = scaled
    values, own = random_gemma(CONFIGS["scaled"], 3), read(model.reference, gemma3, config)
    assert set(own) == set(values) and all(np.allclose(own[name], values[name], rtol=0, atol=3e-7) for name in own)


def test_weights_are_called_what_converters_call_them() -> None:
    same_names(gemma3, CONFIGS["scaled"])


def test_windows_are_reached_and_logits_capped(scaled) -> None:
    model, config = scaled
    assert config.window < LENGTH / 2
    uncapped = model.backend("torch", changed(model.plan, p.Logits, softcap=0.0))
    assert np.abs(logits(uncapped, model.ids, [LENGTH])).max() > 1.5 * config.final_softcap


WRONG = {
    "global theta": lambda c: dict(rope_theta=c.rope_theta * 1.1), "local theta": lambda c: dict(local_rope_theta=1.1e4),
    "thetas swapped": lambda c: dict(rope_theta=c.local_rope_theta, local_rope_theta=c.rope_theta),
    "no scaling": lambda c: dict(rope_scaling=RopeScaling()), "interleaved": lambda c: dict(rope_interleaved=True),
    "window + 1": lambda c: dict(window=c.window + 1), "window - 1": lambda c: dict(window=c.window - 1),
    "no window": lambda c: dict(window=1 << 20), "all global": lambda c: dict(local=(False,) * c.layers),
    "all local": lambda c: dict(local=(True,) * c.layers), "pattern turned": lambda c: dict(local=c.local[1:] + c.local[:1]),
    "query scale": lambda c: dict(query_scale=0.0), "eps": lambda c: dict(eps=1e-3), "silu": lambda c: dict(activation="silu"),
    "gelu": lambda c: dict(activation="gelu"), "no cap": lambda c: dict(final_softcap=0.0),
    "a layer less": lambda c: dict(layers=c.layers - 1, local=c.local[:-1]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_config_is_seen(scaled, wrong: str) -> None:
    model, config = scaled
    model.sees(gemma3.plan(replace(config, **WRONG[wrong](config))))


def other(name: str) -> str:
    """The name of a layer's other post-norm."""
    one, two = "post_attention_norm", "post_ffw_norm"
    return name.replace(one, two) if one in name else name.replace(two, one)


PLANS = {
    "no embedding scale": lambda plan: changed(plan, p.Embed, lambda op: [replace(op, scale=1.0)]),
    "embedding scale in bf16": lambda plan: changed(plan, p.Embed, lambda op: [
        replace(op, scale=float(torch.tensor(op.scale).bfloat16()))]),
    "no query norm": lambda plan: changed(plan, p.RopeKV, lambda op: [replace(op, q_norm=None)]),
    "no key norm": lambda plan: changed(plan, p.RopeKV, lambda op: [replace(op, k_norm=None)]),
    "norms swapped": lambda plan: changed(plan, p.RopeKV, lambda op: [replace(op, q_norm=op.k_norm, k_norm=op.q_norm)]),
    "no post-norm": lambda plan: changed(changed(plan, p.NormAdd, lambda op: []), p.Linear, lambda op: [
        p.LinearAdd(op.x, "x", op.weight)]),
    "post-norm of the sum": lambda plan: changed(plan, p.NormAdd, lambda op: [
        replace(op, norm=op.norm.replace("post_attention_norm", "ffn_norm"))]),
    "post-norms swapped": lambda plan: changed(plan, p.NormAdd, lambda op: [replace(op, norm=other(op.norm))]),
    "gate and up swapped": lambda plan: changed(plan, p.Gated, lambda op: [replace(op, gate=op.up, up=op.gate)]),
}


@pytest.mark.parametrize("wrong", PLANS)
def test_a_wrong_plan_is_seen(scaled, wrong: str) -> None:
    scaled[0].sees(PLANS[wrong](scaled[0].plan))


def test_heads_mapped_otherwise_are_seen(scaled) -> None:
    """Query head h reads KV head h mod kv_heads: the rows of q in that order."""
    model, c = scaled
    values = random_gemma(CONFIGS["scaled"], 3)
    order = np.arange(c.heads).reshape(c.kv_heads, -1).T.reshape(-1)
    for name, value in values.items():
        if ".attn_q." in name:
            values[name] = value.reshape(c.heads, c.head_dim, -1)[order].reshape(value.shape)
    model.sees(model.plan, stored(model.plan, values))


@pytest.mark.parametrize("given_", [7, np.array([True, False, True, True]), [1, 0, 1, 1], 3])
def test_patterns_of_a_file(given_) -> None:
    meta = Metadata({"gemma3.attention.sliding_window_pattern": given_}, "f")
    found = _gemma.listed(meta, "gemma3.attention.sliding_window_pattern", 4, 6)
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
@given(seed=st.integers(0, 2**32 - 1))
def test_native_chunks_threads_and_memory_do_not_matter(seed: int) -> None:
    config = gemma3.tiny(vocab=67, layers=3)
    same_bits(gemma3.plan(config), random_gemma(config, seed), seed)
