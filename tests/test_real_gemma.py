"""Gemma-3-270M Q4_K_M against `transformers` in f32 on the weights that the `gguf` package reads from the same file.

The texts: the first 1,024 tokens of Alice's Adventures in Wonderland, twice what a local layer sees, in chunks of 128 through
shuffled pages, every fourth position looked at (a position is 262,144 numbers), and eight passages of it of which 24 tokens
each are generated side by side.
"""
from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("gguf")

import gguf
from gemma_models import hugging_face
from test_real_model import CHUNK, DATA, WINDOW, Distance, Ours

from pyruntime import LLM
from pyruntime.models import gemma3
from pyruntime.plan import PAGE_TOKENS
from pyruntime.tokenizer import Tokenizer
from pyruntime.weights.gguf import GGUFModel

pytestmark = pytest.mark.timeout(1200)  # about a minute on two quiet cores
PASSAGES, GIVEN, NEW, EVERY = 8, 40, 24, 4


def by_gguf(file: GGUFModel, name: str) -> np.ndarray:
    """A tensor as the `gguf` package dequantizes it."""
    tensor = file.tensors[name]
    kind = gguf.GGMLQuantizationType[tensor.format]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rows = file.raw(name).reshape(-1, tensor.shape[-1] // block * size)
    return gguf.quants.dequantize(rows, kind).astype(np.float32).reshape(tensor.shape)


@pytest.fixture(scope="module")
def reference(gemma: Path):
    """transformers' model; two threads while it is used."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with GGUFModel(gemma) as file:
        config = gemma3.from_gguf(file.metadata, file.shapes, file.vector)
        yield hugging_face(config, {name: by_gguf(file, name) for name in file.tensors})
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def distances(gemma: Path, reference) -> dict[str, dict[str, Distance]]:
    """{backend: {"passages": Distance, "text": Distance}}; the reference's logits are made once, a chunk's at a time."""
    file = GGUFModel(gemma)
    ids = Tokenizer.from_gguf_metadata(file.metadata.values).encode((DATA / "alice.txt").read_text())[: WINDOW]
    assert len(ids) == WINDOW > 1.9 * gemma3.from_gguf(file.metadata, file.shapes, file.vector).window
    passages = []
    for at in range(1, WINDOW - GIVEN - NEW, (WINDOW - GIVEN - NEW) // PASSAGES)[:PASSAGES]:
        passages.append(dict(prompt_ids=[ids[0], *ids[at:at + GIVEN]], ids=ids[at + GIVEN:at + GIVEN + NEW]))
    ours = {kind: Ours(kind, file, pages=WINDOW // PAGE_TOKENS + PASSAGES * 10) for kind in ("native", "torch")}
    out = {kind: {"passages": Distance(), "text": Distance()} for kind in ours}
    with torch.inference_mode():
        hidden = reference.model(torch.tensor([ids])).last_hidden_state[0]
        parts = {kind: backend.chunks(ids, EVERY) for kind, backend in ours.items()}
        for at in range(0, WINDOW, CHUNK):
            following = ids[at + 1:at + CHUNK + 1:EVERY]
            want = reference.lm_head(hidden[at:at + CHUNK:EVERY])
            for kind in ours:
                out[kind]["text"].add(want, next(parts[kind]), following)
        whole = torch.tensor([passage["prompt_ids"] + passage["ids"] for passage in passages])
        hidden = reference.model(whole).last_hidden_state[:, GIVEN:-1]
        for passage, got, state in zip(passages, ours["native"].decode(passages), hidden, strict=True):
            out["native"]["passages"].add(reference.lm_head(state), got, passage["ids"])
    return out


@pytest.mark.parametrize("kind", ["native", "torch"])
def test_the_best_token_is_the_same(distances, kind: str) -> None:
    """Wherever the reference's best two differ by more than 0.05 nats."""
    assert distances[kind]["text"].sure > 220
    assert all(part.disagreements == 0 for part in distances[kind].values())


@pytest.mark.parametrize("kind", ["native", "torch"])
def test_perplexity_and_divergence(distances, kind: str) -> None:
    """On the text: perplexity within 0.1 %, mean KL divergence below 1e-4, the ten best log-probabilities within 0.01."""
    text = distances[kind]["text"]
    want, got = np.exp(np.mean(text.nll, axis=0))
    print(f"\n{kind}: perplexity {got:.4f} ({got / want - 1:+.2e}), KL {np.mean(text.kl):.2e}, "
          f"ten best {np.mean(text.ten_best):.2e}, {text.disagreements} of {text.sure} differ")
    assert abs(got / want - 1) < 1e-3
    assert np.mean(text.kl) < 1e-4
    assert np.mean(text.ten_best) < 0.01


def test_generated_tokens_are_as_likely(distances) -> None:
    passages = distances["native"]["passages"]
    assert len(passages.kl) == PASSAGES * NEW
    assert np.mean(passages.kl) < 1e-4 and np.mean(passages.ten_best) < 0.01


def test_the_reference_backend_is_closer_still(distances) -> None:
    """Without A16 only the f16 cache and f32 sums are left."""
    assert np.mean(distances["torch"]["text"].kl) < 1e-5


def test_it_answers_by_name(gemma: Path, reference) -> None:
    """Through `LLM`: a greedy answer is transformers' own; the catalogue's file has the authors' sampling."""
    with LLM(gemma, precision="precise", kv_tokens=1024, progress=False) as llm:
        ids = llm.tokenize("The capital of France is")
        answer = llm.generate(ids, temperature=0, max_tokens=24)
        assert ids[0] == llm.tokenizer.bos_id
        if "PYRUNTIME_TEST_GEMMA" not in os.environ:
            assert llm.model.defaults == {"temperature": 1.0, "top_k": 64, "top_p": 0.95}
    with torch.inference_mode():
        want = reference.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=24, do_sample=False)
    got = list(answer.token_ids)
    assert got == want[0, len(ids):len(ids) + len(got)].tolist()
    assert answer.text.startswith(" the capital of the country of France.")
