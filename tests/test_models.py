"""Families: what a file says becomes the config and the plan, and nothing of it is dropped in silence."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import write_tiny

from pyruntime.errors import ModelInvalid
from pyruntime.loading import open_model
from pyruntime.models import families, llama


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
