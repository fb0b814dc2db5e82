"""A model in every format a GGUF file can have, and in the mixtures files come in: from the file to logits and tokens."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from reference_models import native_backend
from tiny_model import tiny_config, write_tiny

from pyruntime import quant
from pyruntime.backends.torch import TorchBackend
from pyruntime.models import llama
from pyruntime.types import Batch
from pyruntime.weights import load_weights
from pyruntime.weights.gguf import GGUFModel

SHAPE = dict(width=256, hidden=512, heads=4, kv_heads=2, head_dim=64)
IN_FILES = [name for name, twin in quant.FORMATS.items() if twin.GGML_TYPE != quant.NO_GGML_TYPE]
#: Which formats stand side by side in the files of these names.
MIXTURES = {"Q2_K": ("Q2_K", "Q3_K", "Q6_K"), "Q3_K_M": ("Q3_K", "Q5_K", "Q4_K", "Q6_K"), "Q4_K_M": ("Q4_K", "Q6_K"),
            "Q5_K_M": ("Q5_K", "Q6_K"), "IQ4_XS": ("IQ4_XS", "Q5_K", "Q6_K"), "Q5_0": ("Q5_0", "Q8_0"), "Q5_1": ("Q5_1", "Q8_0"),
            "MXFP4": ("MXFP4", "Q8_0", "BF16"), "NVFP4": ("NVFP4", "BF16"), "TQ1_0": ("TQ1_0", "Q4_K", "F16")}


def logits(backend, ids: np.ndarray) -> list[np.ndarray]:
    """After a prompt and after each of the tokens that follow it."""
    at, out = 0, []
    for n in (len(ids) - 3, 1, 1, 1):
        backend.run(Batch.build([(ids[at:at + n], at, at)], tables=[[[2, 0, 1]]]))
        out.append(np.array(backend.slot("logits")))
        at += n
    return out


@pytest.mark.parametrize("name, formats", [*((n, (n,)) for n in IN_FILES), *((f"{n} mixed", f) for n, f in MIXTURES.items())],
                         ids=lambda value: value if isinstance(value, str) else "")
def test_from_a_file_to_logits(tmp_path: Path, name: str, formats: tuple[str, ...]) -> None:
    """Packed and read in place give the same bits; the reference on the same weights is as near as test_reference_native says."""
    path, config = write_tiny(tmp_path / "m.gguf", formats=formats, **SHAPE), tiny_config(**SHAPE)
    plan, ids = llama.plan(config), np.random.default_rng(5).integers(0, config.vocab, 24)
    with GGUFModel(path) as model:
        weights, low = load_weights(plan.weights, model), load_weights(plan.weights, model, low_memory=True)
        assert {w.format_name for w in weights if w.k} == {*formats, "Q8_0"}  # the embedding is Q8_0
    got, same = (logits(native_backend(plan, w, pages=3, threads=1, precision="precise"), ids) for w in (weights, low))
    torch.set_num_threads(1)
    want = logits(TorchBackend(plan, low, pages=3), ids)
    for a, b, c in zip(got, same, want, strict=True):
        assert np.array_equal(a, b) and np.isfinite(a).all()
        assert np.abs(a - c).max() <= 2.0**-9 * np.abs(c).max()
