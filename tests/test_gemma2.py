"""Gemma 2 against `transformers`: random models through their own names and through a GGUF file, caps and windows reached, and
every way to get the family wrong."""
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

import gguf
import transformers
from family_checks import CHUNKS, F32, KINDS, LENGTH, Family, changed, logits, read, same_bits, same_names, scattered
from reference_models import random_values, stored

from pyruntime import plan as p
from pyruntime._core._kernels import Kernels
from pyruntime.backends.torch_ops import soft_cap
from pyruntime.config import Metadata, ModelConfig
from pyruntime.errors import ModelInvalid
from pyruntime.models import gemma2
from pyruntime.weights import load_weights
from pyruntime.weights.gguf import GGUFModel

CONFIGS = {
    "usual": gemma2.tiny(query_scale=0.25, **F32),
    "wide heads": gemma2.tiny(layers=3, width=72, heads=3, kv_heads=3, head_dim=40, hidden=100, window=1, query_scale=0.2,
                              rope_theta=2e3, local_rope_theta=2e3, local=(True, False, True), final_softcap=9.0, **F32),
    "all global, no caps": gemma2.tiny(layers=2, heads=8, kv_heads=1, head_dim=10, query_scale=0.5, score_softcap=0.0,
                                       final_softcap=0.0, local=(False, False), **F32),
}


pytestmark = pytest.mark.usefixtures("one_thread")


def hugging_face(config: ModelConfig, seed: int = 3) -> transformers.Gemma2ForCausalLM:
    """A random one of a config of ours: scores of several, so that a cap, a window and an angle show."""
    hf = transformers.Gemma2Config(
        vocab_size=config.vocab, hidden_size=config.width, intermediate_size=config.hidden, num_hidden_layers=config.layers,
        num_attention_heads=config.heads, num_key_value_heads=config.kv_heads, head_dim=config.head_dim,
        max_position_embeddings=config.context, rms_norm_eps=config.eps, sliding_window=config.window,
        layer_types=["sliding_attention" if local else "full_attention" for local in config.local],
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        query_pre_attn_scalar=round(config.query_scale**-2), attn_logit_softcapping=config.score_softcap or None,
        final_logit_softcapping=config.final_softcap or None, attn_implementation="eager",
        pad_token_id=0, bos_token_id=None, eos_token_id=None)
    return scattered(transformers.Gemma2ForCausalLM(hf), seed, {"q_proj.weight": 1.8, "k_proj.weight": 1.8})


@pytest.fixture(scope="module", params=CONFIGS)
def made(request) -> Family:
    config = CONFIGS[request.param]
    return Family.of(hugging_face(config), gemma2, config)


@pytest.fixture(scope="module")
def usual() -> Family:
    return Family.of(hugging_face(CONFIGS["usual"]), gemma2, CONFIGS["usual"])


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


def test_caps_and_windows_are_reached(usual: Family) -> None:
    """Scores and logits lie well past their caps, tokens beyond the window."""
    config = CONFIGS["usual"]
    assert min(usual.largest_scores()) > 1.5 * config.score_softcap
    assert config.window < LENGTH / 2
    uncapped = usual.backend("torch", changed(usual.plan, p.Logits, softcap=0.0))
    assert np.abs(logits(uncapped, usual.ids, [LENGTH])).max() > 1.5 * config.final_softcap


def test_a_cap_of_thirty_makes_fifty_less() -> None:
    x = np.float32([50.0])
    for capped in (Kernels("scalar").scale_cap(x, 1.0, 30.0), soft_cap(torch.from_numpy(x), 30.0).numpy()):
        assert capped[0] == pytest.approx(27.933, abs=5e-4)


WRONG = {
    "theta": dict(rope_theta=1.1e4), "local theta": dict(local_rope_theta=1.1e4), "interleaved": dict(rope_interleaved=True),
    "window + 1": dict(window=8), "window - 1": dict(window=6), "all global": dict(local=(False,) * 4),
    "all local": dict(local=(True,) * 4), "pattern turned": dict(local=(False, True) * 2),
    "query scale": dict(query_scale=0.24), "no score cap": dict(score_softcap=0.0), "score cap": dict(score_softcap=5.1),
    "no final cap": dict(final_softcap=0.0), "final cap": dict(final_softcap=4.1),
    "caps swapped": dict(score_softcap=4.0, final_softcap=5.0),
    "eps": dict(eps=1e-3), "silu": dict(activation="silu"), "gelu": dict(activation="gelu"),
    "half as many heads": dict(heads=2, kv_heads=1, head_dim=32), "a layer less": dict(layers=3, local=(True, False, True)),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_config_is_seen(usual: Family, wrong: str) -> None:
    usual.sees(gemma2.plan(replace(CONFIGS["usual"], **WRONG[wrong])))


def other(name: str) -> str:
    """The name of a layer's other post-norm."""
    one, two = "post_attention_norm", "post_ffw_norm"
    return name.replace(one, two) if one in name else name.replace(two, one)


def without_post_norms(plan: p.Plan) -> p.Plan:
    return changed(changed(plan, p.NormAdd, lambda op: []), p.Linear, lambda op: [p.LinearAdd(op.x, "x", op.weight)])


PLANS = {
    "no embedding scale": lambda plan: changed(plan, p.Embed, scale=1.0),
    "embedding scale in bf16": lambda plan: changed(plan, p.Embed, scale=float(torch.tensor(96**0.5).bfloat16())),
    "no post-norms": without_post_norms,
    "post-norms swapped": lambda plan: changed(plan, p.NormAdd, lambda op: [replace(op, norm=other(op.norm))]),
    "post-norm of the sum": lambda plan: changed(plan, p.NormAdd, lambda op: [
        replace(op, norm=op.norm.replace("post_attention_norm", "ffn_norm"))]),
    "gate and up swapped": lambda plan: changed(plan, p.Gated, lambda op: [replace(op, gate=op.up, up=op.gate)]),
}


@pytest.mark.parametrize("wrong", PLANS)
def test_a_wrong_plan_is_seen(usual: Family, wrong: str) -> None:
    usual.sees(PLANS[wrong](usual.plan))


def heads_mapped_otherwise(values: dict[str, np.ndarray]) -> None:
    """Query head h reads KV head h mod 2."""
    for name in values:
        if ".attn_q." in name:
            values[name] = values[name].reshape(2, 2, 16, -1).swapaxes(0, 1).reshape(values[name].shape)


def norms_without_their_one(values: dict[str, np.ndarray]) -> None:
    for name in values:
        if "norm" in name:
            values[name] = values[name] - 1


@pytest.mark.parametrize("wrong", [heads_mapped_otherwise, norms_without_their_one])
def test_wrong_weights_are_seen(usual: Family, wrong) -> None:
    values = read(usual.reference, gemma2, CONFIGS["usual"])
    wrong(values)
    usual.sees(usual.plan, stored(usual.plan, values))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_native_chunks_threads_and_memory_do_not_matter(seed: int) -> None:
    plan = gemma2.plan(gemma2.tiny(vocab=67, layers=3, window=5))
    same_bits(plan, random_values(plan, seed), seed)


# ---- configs ----

def test_weights_are_called_what_converters_call_them() -> None:
    same_names(gemma2, CONFIGS["usual"])


def test_config_json_says_what_the_model_is(made: Family, request) -> None:
    found = gemma2.from_hf(Metadata(made.reference.config.to_dict(), "config.json"), {})
    wanted = CONFIGS[request.node.callspec.params["made"]]
    assert found.query_scale == pytest.approx(wanted.query_scale)
    assert replace(found, query_scale=wanted.query_scale, **F32) == wanted


def test_what_config_json_leaves_out_is_as_in_transformers() -> None:
    """And a null is none."""
    whole = gemma2.from_hf(Metadata(transformers.Gemma2Config().to_dict(), "config.json"), {})
    assert gemma2.from_hf(Metadata({}, "config.json"), {}) == whole
    assert (whole.score_softcap, whole.final_softcap, whole.window, whole.query_scale) == (50.0, 30.0, 4096, 1 / 16)
    assert whole.local == (True, False) * 13
    none = dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "sliding_window"))
    bare = gemma2.from_hf(Metadata(none, "config.json"), {})
    assert (bare.score_softcap, bare.final_softcap, bare.window, bare.local) == (0.0, 0.0, 0, ())


@pytest.mark.parametrize("key, value, says", [
    ("num_key_value_heads", 3, "key-value"), ("head_dim", 15, "even"), ("hidden_activation", "geglu", "known: silu"),
    ("attention_bias", True, "attention_bias"), ("use_bidirectional_attention", True, "bidirectional"),
    ("layer_types", ["sliding_attention"], "layer_types"), ("layer_types", ["chunked_attention"] * 26, "layer_types"),
    ("rope_scaling", {"type": "linear", "factor": 2.0}, "linear"), ("attn_logit_softcapping", -1.0, "attn_logit"),
    ("query_pre_attn_scalar", 0, "query_pre"), ("sliding_window", -1, "sliding_window")])
def test_bad_config_json(key: str, value: object, says: str) -> None:
    with pytest.raises(ModelInvalid, match=f"config.json.*{says}"):
        gemma2.from_hf(Metadata({key: value}, "config.json"), {})


BASE = {"gemma2.embedding_length": 96, "gemma2.block_count": 4, "gemma2.attention.head_count": 4, "gemma2.context_length": 64,
        "gemma2.feed_forward_length": 100}
SHAPES = {"token_embd.weight": (11, 96)}


@pytest.mark.parametrize("key, value, says", [
    ("attention.head_count_kv", 3, "key-value"), ("attention.key_length", 15, "even"),
    ("attention.value_length", 128, "value_length"), ("rope.dimension_count", 128, "dimension_count"),
    ("rope.scaling.type", "yarn", "yarn"), ("attention.sliding_window", -1, "sliding"),
    ("attn_logit_softcapping", float("inf"), "attn_logit"), ("final_logit_softcapping", "30", "final_logit"),
    ("block_count", 0, "block_count"), ("attention.scale", 0.0, "scale"),
    ("attention.sliding_window_pattern", [True], "sliding_window_pattern"), ("rope.freq_base_swa", 0.0, "freq_base_swa")])
def test_bad_metadata(key: str, value: object, says: str) -> None:
    with pytest.raises(ModelInvalid, match=f"file.*{says}"):
        gemma2.from_gguf(Metadata(BASE | {f"gemma2.{key}": value}, "file"), SHAPES, lambda name: ())


def test_what_files_leave_out() -> None:
    """Caps, window, pattern and query scale are the family's; no window: every layer is global."""
    config = gemma2.from_gguf(Metadata(BASE, "f"), SHAPES, lambda name: ())
    assert (config.score_softcap, config.final_softcap, config.window) == (50.0, 30.0, 4096)
    assert (config.local, config.head_dim, config.query_scale) == ((True, False) * 2, 256, 1 / 16)
    listed = {"gemma2.attention.sliding_window_pattern": [False, True, True, True], "gemma2.rope.freq_base_swa": 2e4}
    other = gemma2.from_gguf(Metadata(BASE | listed, "f"), SHAPES, lambda name: ())
    assert (other.local, other.rope_theta, other.local_rope_theta) == ((False, True, True, True), 1e4, 2e4)
    large = gemma2.from_gguf(Metadata(BASE | {"gemma2.block_count": 46, "gemma2.embedding_length": 4608,
                                              "gemma2.attention.head_count": 32}, "f"), SHAPES, lambda name: ())
    assert large.query_scale == 1 / 12
    whole = gemma2.plan(gemma2.from_gguf(Metadata(BASE | {"gemma2.attention.sliding_window": 0}, "f"), SHAPES, lambda name: ()))
    assert [g.name for g in whole.groups] == ["global"] and len(whole.ropes) == 1


def write_gguf(path: Path, config: ModelConfig, values: dict[str, np.ndarray]) -> Path:
    """The file as llama.cpp's converter writes it, F32, without a tokenizer."""
    out = gguf.GGUFWriter(path, "gemma2")
    out.add_context_length(config.context)
    out.add_embedding_length(config.width)
    out.add_block_count(config.layers)
    out.add_feed_forward_length(config.hidden)
    out.add_head_count(config.heads)
    out.add_head_count_kv(config.kv_heads)
    out.add_layer_norm_rms_eps(config.eps)
    out.add_key_length(config.head_dim)
    out.add_value_length(config.head_dim)
    out.add_attn_logit_softcapping(config.score_softcap)
    out.add_final_logit_softcapping(config.final_softcap)
    out.add_sliding_window(config.window)
    for name, value in values.items():
        out.add_tensor(name, value)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def test_a_gguf_file_equals_transformers(usual: Family, tmp_path: Path) -> None:
    """Which does not say the query scale: it is that of a head."""
    config = CONFIGS["usual"]
    assert config.query_scale == config.head_dim**-0.5
    with GGUFModel(write_gguf(tmp_path / "m.gguf", config, read(usual.reference, gemma2, config))) as file:
        found = gemma2.from_gguf(file.metadata, file.shapes, file.vector)
        assert replace(found, eps=config.eps, **F32) == config and found.eps == np.float32(config.eps)
        plan = gemma2.plan(replace(found, **F32))
        weights = load_weights(plan.weights, file, threads=1)
        assert set(file.tensors) == {w.name for w in plan.weights}
    for kind in KINDS:
        Family(usual.reference, plan, weights).same_in(kind, [LENGTH])
