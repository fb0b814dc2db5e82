"""GPT-2 against `transformers`: random models through their own names and through a GGUF file, and every way to get it wrong."""
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
from family_checks import CHUNKS, F32, KINDS, LENGTH, Family, changed, read, same_bits, same_names, scattered
from reference_models import random_values, stored
from tiny_model import tokenizer_metadata

from pyruntime import LLM, ContextLengthExceeded, FinishReason, SamplingParams
from pyruntime import plan as p
from pyruntime.config import Metadata, ModelConfig
from pyruntime.errors import FieldInvalid, ModelInvalid
from pyruntime.loading import kv_bytes_per_token
from pyruntime.models import gpt2
from pyruntime.quant import FORMATS
from pyruntime.recipe import ACTIVATIONS
from pyruntime.types import Batch
from pyruntime.weights import load_weights
from pyruntime.weights.gguf import GGUFModel
from pyruntime.weights.gguf_writer import Tensor
from pyruntime.weights.gguf_writer import write_gguf as write

CONFIGS = {
    "as 124m": gpt2.tiny(context=64, **F32),
    "erf, untied, one head": gpt2.tiny(width=40, heads=1, kv_heads=1, head_dim=40, hidden=100, activation="gelu", tied=False,
                                       context=64, **F32),
    "scores as they are": gpt2.tiny(layers=3, eps=1e-2, query_scale=1.0, activation="silu", context=64, **F32),
}
WORDS = {"gelu_tanh": "gelu_new", "gelu": "gelu", "silu": "silu"}


pytestmark = pytest.mark.usefixtures("one_thread")


def hugging_face(config: ModelConfig, seed: int = 3) -> transformers.GPT2LMHeadModel:
    """A random one of a config of ours; positions as large as tokens."""
    hf = transformers.GPT2Config(
        vocab_size=config.vocab, n_positions=config.context, n_embd=config.width, n_layer=config.layers, n_head=config.heads,
        n_inner=config.hidden, activation_function=WORDS[config.activation], layer_norm_epsilon=config.eps,
        scale_attn_weights=not config.query_scale, tie_word_embeddings=config.tied, attn_implementation="eager",
        bos_token_id=None, eos_token_id=None)
    return scattered(transformers.GPT2LMHeadModel(hf), seed, {"wpe.weight": 0.7})


@pytest.fixture(scope="module", params=CONFIGS)
def made(request) -> Family:
    config = CONFIGS[request.param]
    return Family.of(hugging_face(config), gpt2, config)


@pytest.fixture(scope="module")
def usual() -> Family:
    return Family.of(hugging_face(CONFIGS["as 124m"]), gpt2, CONFIGS["as 124m"])


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


WRONG = {
    "eps": dict(eps=1e-3), "gelu by its other name": dict(activation="gelu"), "silu": dict(activation="silu"),
    "scores not scaled": dict(query_scale=1.0), "scores scaled by the width": dict(query_scale=96**-0.5),
    "half as many heads": dict(heads=3, kv_heads=3, head_dim=32), "twice as many heads": dict(heads=12, kv_heads=12, head_dim=8),
    "a layer less": dict(layers=1),
}
WRONG_OTHERS = {
    "erf, untied, one head": {"tied": dict(tied=True), "gelu_new": dict(activation="gelu_tanh"),
                              "two heads": dict(heads=2, kv_heads=2, head_dim=20)},
    "scores as they are": {"scores scaled": dict(query_scale=0.0), "eps left out": dict(eps=1e-5),
                           "activation left out": dict(activation="gelu_tanh")},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_config_is_seen(usual: Family, wrong: str) -> None:
    usual.sees(gpt2.plan(replace(CONFIGS["as 124m"], **WRONG[wrong])))


@pytest.mark.parametrize("which, wrong", [(which, wrong) for which, wrongs in WRONG_OTHERS.items() for wrong in wrongs])
def test_a_wrong_config_of_another_is_seen(which: str, wrong: str) -> None:
    Family.of(hugging_face(CONFIGS[which]), gpt2, CONFIGS[which]).sees(
        gpt2.plan(replace(CONFIGS[which], **WRONG_OTHERS[which][wrong])))


PLANS = {
    "no positions": lambda plan: changed(plan, p.Embed, positions=None),
    "embedding scaled": lambda plan: changed(plan, p.Embed, scale=96**0.5),
    "no norm biases": lambda plan: changed(plan, p.NormLinear, norm_bias=None),
    "no bias of the last norm": lambda plan: changed(plan, p.Logits, norm_bias=None),
    "RMS norms": lambda plan: changed(plan, p.NormLinear, norm_kind=p.NormKind.RMS),
    "last norm an RMS norm": lambda plan: changed(plan, p.Logits, norm_kind=p.NormKind.RMS),
    "no biases before attention": lambda plan: changed(plan, p.NormLinear, lambda op: [
        replace(op, b0=None) if op.out == "qkv" else op]),
    "no biases after it": lambda plan: changed(plan, p.LinearAdd, bias=None),
    "no activation": lambda plan: changed(plan, p.NormLinear, activation=p.Activation.NONE),
    "activation of q, k and v": lambda plan: changed(plan, p.NormLinear, activation=p.Activation.GELU_TANH),
    "a window": lambda plan: changed(plan, p.Attention, window=LENGTH - 1),
    "rotated": lambda plan: replace(changed(plan, p.RopeKV, rope=0), ropes=(p.Rope((1.0,) * 8, False),)),
}


@pytest.mark.parametrize("wrong", PLANS)
def test_a_wrong_plan_is_seen(usual: Family, wrong: str) -> None:
    usual.sees(PLANS[wrong](usual.plan))


def q_and_k_swapped(values: dict[str, np.ndarray]) -> None:
    for name in values:
        if ".attn_qkv." in name:
            q, k, v = np.split(values[name], 3)
            values[name] = np.concatenate([k, q, v])


def heads_interleaved(values: dict[str, np.ndarray]) -> None:
    """Rows as [head][q, k, v], as kin of GPT-2 have them."""
    for name in values:
        if ".attn_qkv." in name:
            values[name] = values[name].reshape(6, 3, 16, -1).swapaxes(0, 1).reshape(values[name].shape)


def not_transposed(values: dict[str, np.ndarray]) -> None:
    """The one square matrix, where the shape does not tell."""
    for name in values:
        if name.endswith("attn_output.weight"):
            values[name] = np.ascontiguousarray(values[name].T)


def positions_turned(values: dict[str, np.ndarray]) -> None:
    values["position_embd.weight"] = np.roll(values["position_embd.weight"], 1, 0)


@pytest.mark.parametrize("wrong", [q_and_k_swapped, heads_interleaved, not_transposed, positions_turned])
def test_wrong_weights_are_seen(usual: Family, wrong) -> None:
    values = read(usual.reference, gpt2, CONFIGS["as 124m"])
    wrong(values)
    usual.sees(usual.plan, stored(usual.plan, values))


# ---- configs ----

def test_weights_are_called_what_converters_call_them() -> None:
    same_names(gpt2, CONFIGS["erf, untied, one head"])


def test_config_json_says_what_the_model_is(made: Family, request) -> None:
    found = gpt2.from_hf(Metadata(made.reference.config.to_dict(), "config.json"), {})
    assert replace(found, **F32) == CONFIGS[request.node.callspec.params["made"]]


def test_what_config_json_leaves_out() -> None:
    """GPT-2's smallest is what its config says when it says nothing."""
    found = gpt2.from_hf(Metadata({"model_type": "gpt2"}, "config.json"), {})
    assert found == ModelConfig("gpt2", 12, 768, 12, 12, 64, 3072, 50257, 1024, activation="gelu_tanh")
    plan = gpt2.plan(found)
    assert len(plan.weights) == 148 and sum(w.rows * max(w.k, 1) for w in plan.weights) == 124_439_808
    assert kv_bytes_per_token(plan) == 36_864


@pytest.mark.parametrize("key, value, says", [
    ("n_head", 7, "divide"), ("n_head", 0, "n_head"), ("n_embd", "wide", "n_embd"), ("n_inner", -1, "n_inner"),
    ("activation_function", "gelu_newer", "known: silu, swish, gelu, gelu_new"), ("activation_function", 3, "text"),
    ("add_cross_attention", True, "add_cross_attention"), ("scale_attn_by_inverse_layer_idx", True, "inverse_layer"),
    ("layer_norm_epsilon", float("nan"), "epsilon"), ("n_positions", 1 << 40, "n_positions")])
def test_bad_config_json(key: str, value: object, says: str) -> None:
    with pytest.raises(ModelInvalid, match=f"config.json.*{says}"):
        gpt2.from_hf(Metadata({key: value}, "config.json"), {})


BASE = {"gpt2.embedding_length": 96, "gpt2.block_count": 2, "gpt2.attention.head_count": 6, "gpt2.context_length": 64,
        "gpt2.feed_forward_length": 160}


@pytest.mark.parametrize("key, value, says", [
    ("attention.head_count", 5, "divide"), ("attention.head_count", 1 << 20, "head_count"), ("embedding_length", 0, "embedding"),
    ("block_count", None, "block_count"), ("context_length", 0, "context_length"), ("feed_forward_length", True, "feed_forward"),
    ("attention.layer_norm_epsilon", 2.0, "epsilon")])
def test_bad_metadata(key: str, value: object, says: str) -> None:
    shapes = {"token_embd.weight": (211, 96)}
    assert gpt2.from_gguf(Metadata(BASE, "file"), shapes, lambda name: ()) == gpt2.tiny(context=64)
    with pytest.raises(ModelInvalid, match=f"file.*{says}"):
        gpt2.from_gguf(Metadata(BASE | {f"gpt2.{key}": value}, "file"), shapes, lambda name: ())


def write_gguf(path: Path, config: ModelConfig, values: dict[str, np.ndarray]) -> Path:
    """The file as llama.cpp's converter writes it, F32, without a tokenizer."""
    out = gguf.GGUFWriter(path, "gpt2")
    out.add_context_length(config.context)
    out.add_embedding_length(config.width)
    out.add_block_count(config.layers)
    out.add_feed_forward_length(config.hidden)
    out.add_head_count(config.heads)
    out.add_layer_norm_eps(config.eps)
    for name, value in values.items():
        out.add_tensor(name, value)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def test_a_gguf_file_equals_transformers(usual: Family, tmp_path: Path) -> None:
    config = CONFIGS["as 124m"]
    with GGUFModel(write_gguf(tmp_path / "m.gguf", config, read(usual.reference, gpt2, config))) as file:
        found = gpt2.from_gguf(file.metadata, file.shapes, file.vector)
        assert replace(found, eps=config.eps, **F32) == config and found.eps == np.float32(config.eps)
        plan = gpt2.plan(replace(found, **F32))
        weights = load_weights(plan.weights, file, threads=1)
        assert set(file.tensors) == {w.name for w in plan.weights}
    for kind in KINDS:
        Family(usual.reference, plan, weights).same_in(kind, [LENGTH])


# ---- activations by their name ----

@pytest.mark.parametrize("word, figure", [("gelu", 0.841345), ("gelu_new", 0.841192), ("silu", 0.731059)])
@pytest.mark.parametrize("kind", KINDS)
def test_activation_at_one(word: str, figure: float, kind: str) -> None:
    """A block of one matrix that hands 1 on: mean 0, norm's bias 1."""
    weights = (p.Weight("e", 4, 16), p.Weight("zero", 16), p.Weight("one", 16), p.Weight("eye", 16, 16))
    plan = p.Plan(
        ops=(p.Embed("x", "e"), p.NormLinear("x", "y", norm="zero", norm_bias="one", norm_kind=p.NormKind.LAYER, w0="eye",
                                             activation=p.Activation[ACTIVATIONS[word].upper()])),
        slots=(p.Slot("x", 16), p.Slot("y", 16)), weights=weights, groups=(), ropes=(), vocab=4, context=8, width=16)
    values = {"e": np.ones((4, 16), np.float32), "zero": np.zeros(16, np.float32), "one": np.ones(16, np.float32),
              "eye": np.eye(16, dtype=np.float32)}
    backend = Family(None, plan, stored(plan, values)).backend(kind)  # type: ignore[arg-type]
    backend.run(Batch.build([([2], 0, 0)], tables=[], rows=[]))
    assert np.abs(backend.slot("y") - figure).max() < 6e-7


# ---- positions ----

@pytest.mark.parametrize("kind", KINDS)
def test_positions_end_with_the_context(usual: Family, kind: str) -> None:
    """The last one is computed, the next refused."""
    backend = usual.backend(kind)
    batch = Batch.build([([3], 0, 0)], tables=[[[0]]])
    batch.positions[:] = 63
    backend.run(batch, 0, 1)
    values = read(usual.reference, gpt2, CONFIGS["as 124m"])
    assert np.array_equal(backend.slot("x")[0], values["token_embd.weight"][3] + values["position_embd.weight"][63])
    for position in (64, 2**31 - 1):
        batch.positions[:] = position
        with pytest.raises(FieldInvalid, match="positions"):
            backend.run(batch)


@pytest.mark.parametrize("kind", KINDS)
def test_positions_are_added_to_given_rows(usual: Family, kind: str) -> None:
    """Embedding rows in the place of tokens have positions too."""
    backend, row = usual.backend(kind), np.arange(96, dtype=np.float32)
    backend.run(Batch.build([([5, -1], 7, 0)], tables=[[[0]]], embeddings=row[None]), 0, 1)
    positions = read(usual.reference, gpt2, CONFIGS["as 124m"])["position_embd.weight"]
    assert np.array_equal(backend.slot("x")[1], row + positions[8])


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_native_chunks_threads_and_memory_do_not_matter(seed: int) -> None:
    plan = gpt2.plan(gpt2.tiny(vocab=67, context=48))
    same_bits(plan, random_values(plan, seed), seed)


def test_an_answer_ends_with_the_context(tmp_path: Path) -> None:
    """Whole stack, file to text: the last position is used, none past it; greedy tokens are those of `transformers`."""
    metadata = tokenizer_metadata()
    config = gpt2.tiny(context=32, vocab=len(metadata["tokenizer.ggml.tokens"]), **F32)
    reference = hugging_face(config)
    facts = {"general.architecture": "gpt2", "gpt2.context_length": 32, "gpt2.embedding_length": config.width,
             "gpt2.block_count": config.layers, "gpt2.feed_forward_length": config.hidden,
             "gpt2.attention.head_count": config.heads}
    tensors = [Tensor(name, "F32", x.shape, FORMATS["F32"].quantize(x)) for name, x in read(reference, gpt2, config).items()]
    write(tmp_path / "m.gguf", {**facts, **metadata}, tensors)
    prompt = [5, 9, 2, 7, 1]
    with LLM(tmp_path / "m.gguf", kv_format="f32", progress=False, precision="precise") as llm:
        answer = llm.generate(prompt, SamplingParams(temperature=0.0, ignore_end=True, max_tokens=27))
        with pytest.raises(ContextLengthExceeded):
            llm.generate(list(range(33)), SamplingParams(max_tokens=1))
    ids = list(prompt)
    while len(ids) < 32:
        with torch.inference_mode():
            ids.append(int(reference(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    assert list(answer.token_ids) == ids[5:] and answer.finish_reason is FinishReason.LENGTH
    write(tmp_path / "longer.gguf", {**facts, **metadata, "gpt2.context_length": 33}, tensors)
    with pytest.raises(ModelInvalid, match=r"position_embd\.weight"):
        LLM(tmp_path / "longer.gguf", progress=False)
