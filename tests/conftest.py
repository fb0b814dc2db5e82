"""What several tests share: hypothesis profiles, a tiny random model, and the real one."""
from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from tiny_model import write_tiny

settings.register_profile("default", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture
def one_thread():
    """torch on one thread: tiny products gain nothing from more."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama GGUF with random weights and a small byte-level BPE tokenizer: the whole stack runs on it."""
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def smollm() -> Path:
    """SmolLM2-135M-Instruct Q4_1: PYRUNTIME_TEST_MODEL, else out of the cache folder, pulled there if it must be."""
    if own := os.environ.get("PYRUNTIME_TEST_MODEL"):
        return Path(own)
    from pyruntime.store import pull

    return pull("smollm2:135m")


@pytest.fixture(scope="session")
def gemma() -> Path:
    """Gemma-3-270M Q4_K_M: PYRUNTIME_TEST_GEMMA, else out of the cache folder, pulled there if it can be."""
    if own := os.environ.get("PYRUNTIME_TEST_GEMMA"):
        return Path(own)
    from pyruntime.errors import ModelNotFound
    from pyruntime.store import pull

    try:
        return pull("gemma3:270m")
    except ModelNotFound as error:
        pytest.skip(f"Gemma-3-270M is not here and cannot be had: {error}")


@pytest.fixture(scope="session")
def smollm_llm(smollm: Path):
    """The real model, loaded once for the native backend."""
    from pyruntime import LLM

    with LLM(smollm, kv_tokens=16384, progress=False) as llm:
        yield llm
