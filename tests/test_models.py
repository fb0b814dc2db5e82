"""Families: what a file says becomes the config and the plan, and nothing of it is dropped in silence."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import write_tiny

from pyruntime.config import Metadata
from pyruntime.errors import ModelInvalid
from pyruntime.loading import open_model
from pyruntime.models import families, hf_families, llama
from pyruntime.recipe import Taken


def test_llama_3_frequencies_equal_transformers(tmp_path: Path) -> None:
    """The file's divisors give the frequencies that transformers computes from Llama 3's scaling parameters."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    pairs, theta = 8, 5e5
    config = LlamaConfig(hidden_size=96, num_attention_heads=6, head_dim=2 * pairs, max_position_embeddings=131072,
                         rope_parameters={"rope_type": "llama3", "rope_theta": theta, "factor": 32.0, "low_freq_factor": 1.0,
                                          "high_freq_factor": 4.0, "original_max_position_embeddings": 8192})
    scaled = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))[0].double().numpy()
    plain = theta ** (-np.arange(pairs) / pairs)
    divisors = (plain / scaled).astype(np.float32)
    assert divisors.max() > 30 and divisors.min() < 1.001
    path = write_tiny(tmp_path / "m.gguf", rope_theta=theta, more_tensors={llama.FACTORS: divisors})
    model = open_model(path, backend="torch", kv_tokens=64)
    assert np.allclose(model.plan.ropes[0].inv_freq, scaled, rtol=1e-6, atol=0)
    model.close()


@pytest.mark.parametrize("divisors", [np.ones(7, np.float32), np.ones((2, 4), np.float32), np.zeros(8, np.float32),
                                      np.full(8, np.nan, np.float32)], ids=["short", "matrix", "zero", "nan"])
def test_bad_frequency_divisors(tmp_path: Path, divisors: np.ndarray) -> None:
    path = write_tiny(tmp_path / "m.gguf", more_tensors={llama.FACTORS: divisors})
    with pytest.raises(ModelInvalid, match=llama.FACTORS):
        open_model(path, kv_tokens=64)


def test_a_tensor_nobody_reads_is_an_error(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", more_tensors={"blk.0.attn_q_norm.weight": np.ones(16, np.float32)})
    with pytest.raises(ModelInvalid, match="blk.0.attn_q_norm.weight.*no part of"):
        open_model(path, kv_tokens=64)


def test_every_family_keeps_the_contract() -> None:
    for name, module in families().items():
        plan = module.plan(module.tiny())
        assert name in module.ARCHITECTURES and plan.cuts[0] == 0 and isinstance(module.CONFIG_TENSORS, tuple)
        assert len({w.name for w in plan.weights}) == len(plan.weights)


def test_every_hugging_face_family_keeps_the_contract() -> None:
    for name, module in hf_families().items():
        config = module.tiny()
        recipes = module.hf_weights(config)
        assert name in module.MODEL_TYPES and set(recipes) == {w.name for w in module.plan(config).weights}
        for recipe in recipes.values():
            for taken in recipe if isinstance(recipe, tuple) else (recipe,):
                assert isinstance(taken, Taken) and not taken.tensor.startswith(module.HF_PREFIXES)
        assert all(isinstance(pattern, str) for pattern in module.HF_SKIPPED)


def test_hugging_face_rope_equals_transformers() -> None:
    """llama3 and linear scaling of config.json, under both of its names, give transformers' frequencies."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    for scaling in ({"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 8192}, {"rope_type": "linear", "factor": 4.0}):
        config = LlamaConfig(hidden_size=128, num_attention_heads=2, max_position_embeddings=131072, rms_norm_eps=1e-5,
                             num_hidden_layers=1, rope_parameters={**scaling, "rope_theta": 5e5})
        wanted = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, torch.device("cpu"))[0].double().numpy()
        new = config.to_dict()
        old = {**new, "rope_theta": 5e5, "rope_scaling": scaling, "rope_parameters": None}
        for values in (new, old):
            ours = llama.plan(llama.from_hf(Metadata(values, "config.json"), {})).ropes[0]
            assert np.allclose(ours.inv_freq, wanted, rtol=1e-6, atol=0) and not ours.interleaved
