"""SmolLM2-135M Q4_1 against `transformers` reading the same file in f32: how close the answers are, in numbers.

The texts: 22 prompts with 64 fixed tokens each (native: prompts in one ragged batch, then 64 steps of 22 sequences side by
side; the torch reference reads each at once), and 4,096 tokens of Alice's Adventures in Wonderland in windows of 1,024
(chunks of 128 through shuffled pages).
"""
from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from pyruntime.models import family
from pyruntime.plan import PAGE_TOKENS
from pyruntime.tokenizer import Tokenizer
from pyruntime.types import Batch
from pyruntime.weights import load_weights
from pyruntime.weights.gguf import GGUFModel

DATA = Path(__file__).parent / "data"
pytestmark = pytest.mark.timeout(1800)  # about two minutes on two quiet cores
WINDOW, WINDOWS, CHUNK = 1024, 4, 128
PROMPTS = json.loads((DATA / "continuations.json").read_text())


@dataclass
class Distance:
    """What one backend's predictions are from the reference's, position by position."""

    disagreements: int = 0                                        # best token differs where the reference is sure
    sure: int = 0                                                 # positions where its best two are > 0.05 nats apart
    ten_best: list[float] = field(default_factory=list)           # mean |difference| of its ten best log-probabilities
    kl: list[float] = field(default_factory=list)                 # KL(reference || ours)
    nll: list[tuple[float, float]] = field(default_factory=list)  # of the token that follows: (reference, ours)

    def add(self, want: torch.Tensor, got: np.ndarray, following: list[int]) -> None:
        """want, got: logits [n][vocab]; following [n]: the tokens that come next."""
        a, b = (torch.log_softmax(x.double(), -1) for x in (want, torch.from_numpy(got)))
        best = a.topk(10, -1)
        sure = best.values[:, 0] - best.values[:, 1] > 0.05
        self.sure += int(sure.sum())
        self.disagreements += int((b.argmax(-1) != best.indices[:, 0])[sure].sum())
        self.ten_best += (b.gather(1, best.indices) - best.values).abs().mean(-1).tolist()
        self.kl += (a.exp() * (a - b)).sum(-1).tolist()
        at = torch.tensor(following)[:, None]
        self.nll += list(zip((-a.gather(1, at))[:, 0].tolist(), (-b.gather(1, at))[:, 0].tolist(), strict=True))


class Ours:
    """A backend of ours on the real model, asked for every position's logits."""

    def __init__(self, kind: str, file: GGUFModel, pages: int = 2 * WINDOW // PAGE_TOKENS + len(PROMPTS) * 10) -> None:
        from pyruntime.backends.native import NativeBackend
        from pyruntime.backends.torch import TorchBackend

        module = family(file.architecture, file.path)
        plan = module.plan(module.from_gguf(file.metadata, file.shapes, file.vector))
        weights = load_weights(plan.weights, file)
        sizes = dict(pages=pages, max_tokens=1024, max_rows=CHUNK)
        self.backend = NativeBackend(plan, weights, precision="precise", **sizes) if kind == "native" else \
            TorchBackend(plan, weights, act_quant="none", **sizes)
        self.last = len(plan.ops) - 1
        self.order = np.random.default_rng(0).permutation(pages).tolist()

    def logits(self, sequences, tables, rows) -> np.ndarray:
        """Of the flagged rows; a view."""
        self.backend.run(Batch.build(sequences, tables=[tables] * len(self.backend.plan.groups), rows=rows), 0, self.last)
        return self.backend.slot("logits")

    def chunks(self, ids: list[int], every: int = 1) -> Iterator[np.ndarray]:
        """Logits [CHUNK / every][vocab], views, of a text read in chunks."""
        for at in range(0, len(ids), CHUNK):
            yield self.logits([(ids[at:at + CHUNK], at, at)], [self.order], np.arange(0, CHUNK, every))

    def window(self, ids: list[int]) -> np.ndarray:
        """Logits [len(ids)][vocab]."""
        return np.concatenate([part.copy() for part in self.chunks(ids)])

    def read(self, prompt: dict) -> np.ndarray:
        """Logits [64][vocab] that predict a prompt's tokens, all of them given at once."""
        ids, n = prompt["prompt_ids"] + prompt["ids"], len(prompt["prompt_ids"])
        return self.logits([(ids[:-1], 0, 0)], [self.order], np.arange(n - 1, len(ids) - 1)).copy()

    def decode(self, prompts: list[dict] = PROMPTS) -> list[np.ndarray]:
        """The same for every prompt, token by token."""
        tables = [self.order[10 * i:10 * i + 10] for i in range(len(prompts))]
        lengths = [len(p["prompt_ids"]) for p in prompts]
        steps = [self.logits([(p["prompt_ids"], 0, 0) for p in prompts], tables, None).copy()]
        for step in range(len(prompts[0]["ids"]) - 1):
            steps.append(self.logits([([p["ids"][step]], n + step, n + step) for p, n in zip(prompts, lengths, strict=True)],
                                     tables, None).copy())
        return list(np.stack(steps, 1))


@pytest.fixture(scope="module")
def distances(smollm: Path):
    """{backend: {"prompts": Distance, "text": Distance}}; the reference's logits are made once and compared with both."""
    transformers = pytest.importorskip("transformers")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    model = transformers.AutoModelForCausalLM.from_pretrained(smollm.parent, gguf_file=smollm.name, dtype=torch.float32).eval()
    file = GGUFModel(smollm)
    ids = Tokenizer.from_gguf_metadata(file.metadata.values).encode((DATA / "alice.txt").read_text())
    assert len(ids) >= WINDOW * WINDOWS
    ours = {kind: Ours(kind, file) for kind in ("native", "torch")}
    out = {kind: {"prompts": Distance(), "text": Distance()} for kind in ours}
    decoded = ours["native"].decode()
    with torch.inference_mode():
        for i, prompt in enumerate(PROMPTS):
            n = len(prompt["prompt_ids"])
            want = model(torch.tensor([prompt["prompt_ids"] + prompt["ids"]])).logits[0, n - 1:-1]
            out["native"]["prompts"].add(want, decoded[i], prompt["ids"])
            out["torch"]["prompts"].add(want, ours["torch"].read(prompt), prompt["ids"])
        for first in range(0, WINDOW * WINDOWS, WINDOW):
            window = ids[first:first + WINDOW]
            want = model(torch.tensor([window])).logits[0, :-1]
            for kind, backend in ours.items():
                if kind == "native" or first == 0:
                    out[kind]["text"].add(want, backend.window(window)[:-1], window[1:])
    torch.set_num_threads(before)
    return out


@pytest.mark.parametrize("kind", ["native", "torch"])
def test_the_best_token_is_the_same(distances, kind):
    """Wherever the reference's best two differ by more than 0.05 nats."""
    for part in distances[kind].values():
        assert part.sure > 500
        assert part.disagreements == 0


@pytest.mark.parametrize("kind", ["native", "torch"])
def test_the_ten_best_are_as_likely(distances, kind):
    """Mean |difference| of the reference's ten best log-probabilities below 0.01."""
    assert np.mean(distances[kind]["prompts"].ten_best) < 0.01


@pytest.mark.parametrize("kind", ["native", "torch"])
def test_perplexity_and_divergence(distances, kind):
    """On the text: perplexity within 0.1 %, mean KL divergence below 1e-4."""
    text = distances[kind]["text"]
    want, got = np.exp(np.mean(text.nll, axis=0))
    print(f"\n{kind}: perplexity {got:.4f} ({got / want - 1:+.2e}), KL {np.mean(text.kl):.2e}, "
          f"ten best {np.mean(text.ten_best):.2e}, {text.disagreements} of {text.sure} differ")
    assert abs(got / want - 1) < 1e-3
    assert np.mean(text.kl) < 1e-4


def test_the_reference_is_closer_still(distances):
    """Without A16 only the f16 cache and f32 sums are left."""
    assert np.mean(distances["torch"]["text"].kl) < 1e-5
    assert np.mean(distances["torch"]["prompts"].ten_best) < 0.002
