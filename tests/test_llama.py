"""Llama, Mistral and Qwen2 against `transformers`, by their checkpoints' own names: biases, windows and scalings, and every way to
get a config wrong. tests/test_reference.py has the rows as GGUF orders them."""
from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("gguf")

import transformers
from family_checks import CHUNKS, F32, KINDS, LENGTH, Family, scattered

from pyruntime.config import Metadata, ModelConfig, RopeScaling
from pyruntime.models import llama

SHAPE = dict(vocab_size=211, hidden_size=96, intermediate_size=160, num_hidden_layers=3, num_attention_heads=6,
             num_key_value_heads=2, head_dim=16, max_position_embeddings=256, rms_norm_eps=1e-5, attn_implementation="eager",
             pad_token_id=0, bos_token_id=None, eos_token_id=None)
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e3}
MODELS: dict[str, tuple[str, dict[str, object]]] = {     # transformers' class, fields
    "llama": ("Llama", dict(tie_word_embeddings=False, attention_bias=True, rope_parameters=LINEAR)),
    "mistral": ("Mistral", dict(sliding_window=7, tie_word_embeddings=False, rope_parameters={"rope_theta": 1e3})),
    "qwen2": ("Qwen2", dict(tie_word_embeddings=True, use_sliding_window=True, sliding_window=9, max_window_layers=1,
                            rope_parameters={"rope_theta": 1e3})),
}


pytestmark = pytest.mark.usefixtures("one_thread")


def config_of(model: torch.nn.Module) -> ModelConfig:
    return replace(llama.from_hf(Metadata(model.config.to_dict(), "config.json"), {}), **F32)


@pytest.fixture(scope="module")
def families() -> dict[str, Family]:
    """Random ones: scores of several, so that an angle and a window show."""
    found = {}
    for name, (kind, fields) in MODELS.items():
        config = getattr(transformers, f"{kind}Config")(**{**SHAPE, **fields})
        model = scattered(getattr(transformers, f"{kind}ForCausalLM")(config), 3, {"q_proj.weight": 1.8, "k_proj.weight": 1.8})
        found[name] = Family.of(model, llama, config_of(model))
    return found


@pytest.mark.parametrize("which", MODELS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
def test_equals_transformers(families: dict[str, Family], which: str, kind: str, chunks: list[int]) -> None:
    families[which].same_in(kind, chunks)


@pytest.mark.parametrize("which", MODELS)
@pytest.mark.parametrize("kind", KINDS)
def test_ragged_equals_transformers(families: dict[str, Family], which: str, kind: str) -> None:
    families[which].same_ragged(kind)


@pytest.mark.parametrize("which", MODELS)
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_equals_transformers(families: dict[str, Family], which: str, kind: str) -> None:
    families[which].same_greedy(kind)


WRONG = {
    "theta": dict(rope_theta=1.1e3), "pairs interleaved": dict(rope_interleaved=True), "half of a head rotated": dict(rope_dims=8),
    "eps": dict(eps=1e-3), "gelu": dict(activation="gelu_tanh"), "one key-value head": dict(heads=3, kv_heads=1, head_dim=32),
    "heads of half the width": dict(heads=12, kv_heads=4, head_dim=8), "a layer less": dict(layers=2),
}
OWN = {
    "llama": {"no scaling": dict(rope_scaling=RopeScaling()), "another scaling": dict(rope_scaling=RopeScaling("linear", 4.2)),
              "no biases before attention": dict(qkv_bias=False), "no bias after it": dict(out_bias=False), "tied": dict(tied=True),
              "a window": dict(window=LENGTH - 1, local=(True,) * 3)},
    "mistral": {"no window": dict(window=0, local=()), "window + 1": dict(window=8), "window - 1": dict(window=6),
                "first layer global": dict(local=(False, True, True)), "tied": dict(tied=True)},
    "qwen2": {"no window": dict(window=0, local=()), "window + 1": dict(window=10), "window - 1": dict(window=8),
              "every layer local": dict(local=(True,) * 3), "the last layer alone": dict(local=(False, False, True)),
              "no biases": dict(qkv_bias=False)},
}


@pytest.mark.parametrize("which, wrong", [(which, wrong) for which in MODELS for wrong in {**WRONG, **OWN[which]}])
def test_a_wrong_config_is_seen(families: dict[str, Family], which: str, wrong: str) -> None:
    families[which].sees(llama.plan(replace(config_of(families[which].reference), **{**WRONG, **OWN[which]}[wrong])))
