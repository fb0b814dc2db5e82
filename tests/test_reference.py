"""The torch reference against Hugging Face's Llama, and against itself in other chunkings: everything else is held to it."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_models import random_values, random_weights, stored, tables_of

from pyruntime.backends.torch import TorchBackend
from pyruntime.backends.torch_ops import a16
from pyruntime.config import RopeScaling
from pyruntime.models import llama
from pyruntime.types import Batch

transformers = pytest.importorskip("transformers")


pytestmark = pytest.mark.usefixtures("one_thread")


def to_gguf_rows(w: np.ndarray, heads: int) -> np.ndarray:
    """Hugging Face's order of a head's rows (halves) -> GGUF's (interleaved pairs)."""
    return np.ascontiguousarray(w.reshape(heads, 2, -1, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape))


def hugging_face(config, seed: int):
    """A LlamaForCausalLM of our config with random weights, and those weights under our names."""
    scaling = {"rope_theta": config.rope_theta, "rope_type": "default"}
    if config.rope_scaling.kind == "linear":
        scaling = {"rope_theta": config.rope_theta, "rope_type": "linear", "factor": config.rope_scaling.factor}
    hf = transformers.LlamaConfig(
        vocab_size=config.vocab, hidden_size=config.width, intermediate_size=config.hidden, num_hidden_layers=config.layers,
        num_attention_heads=config.heads, num_key_value_heads=config.kv_heads, head_dim=config.head_dim,
        max_position_embeddings=config.context, rms_norm_eps=config.eps, rope_parameters=scaling,
        tie_word_embeddings=config.tied, attention_bias=False, attn_implementation="eager")
    model = transformers.LlamaForCausalLM(hf).eval().to(torch.float32)
    ours = random_values(llama.plan(config), seed)
    state = {}
    names = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
             "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
             "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
    for name, values in ours.items():
        value = torch.from_numpy(values)
        if name.startswith("blk."):
            _, layer, part, _ = name.split(".")
            state[f"model.layers.{layer}.{names[part]}.weight"] = value
        else:
            state[{"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
                   "output.weight": "lm_head.weight"}[name]] = value
    if config.tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    if config.rope_interleaved:
        for name in list(ours):
            if ".attn_q." in name or ".attn_k." in name:
                heads = config.heads if ".attn_q." in name else config.kv_heads
                ours[name] = to_gguf_rows(ours[name], heads)
    return model, stored(llama.plan(config), ours, low_memory=True)


def all_logits(backend: TorchBackend, ids: list[int], chunks: list[int], table: list[int]) -> np.ndarray:
    """Logits of every position, the sequence fed in `chunks`."""
    out, at = [], 0
    for n in chunks:
        batch = Batch.build([(ids[at:at + n], at, at)], tables=[[table]], rows=np.arange(n))
        backend.run(batch, 0, len(backend.plan.ops) - 1)
        out.append(backend.slot("logits").copy())
        at += n
    return np.concatenate(out)


CONFIGS = [
    llama.tiny(k_format="f32", v_format="f32", context=64),
    llama.tiny(width=72, heads=3, kv_heads=3, head_dim=24, hidden=100, rope_interleaved=False, k_format="f32", v_format="f32"),
    llama.tiny(heads=8, kv_heads=1, head_dim=10, tied=False, rope_scaling=RopeScaling("linear", 4.0), rope_theta=1e5,
               k_format="f32", v_format="f32"),
]


@pytest.mark.parametrize("config", CONFIGS, ids=["gqa", "halves", "mqa-linear"])
@pytest.mark.parametrize("chunks", [[40], [17, 1, 22], [20] + [1] * 20], ids=["prefill", "chunked", "cached"])
def test_equals_transformers(config, chunks):
    """Every position's logits within 1e-4 of Hugging Face's, f32 and no rounding of ours."""
    model, weights = hugging_face(config, seed=3)
    ids = np.random.default_rng(5).integers(0, config.vocab, 40).tolist()
    with torch.inference_mode():
        want = model(torch.tensor([ids])).logits[0].numpy()
    assert want.std() >= 1
    backend = TorchBackend(llama.plan(config), weights, act_quant="none", pages=9)
    got = all_logits(backend, ids, chunks, [7, 2, 5])
    assert np.abs(got - want).max() <= 1e-4 * max(1.0, np.abs(want).max())


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_chunks_pages_and_neighbours_do_not_matter(seed):
    """A ragged batch through random pages gives each sequence what it gets alone, up to f32 summation order."""
    rng = np.random.default_rng(seed)
    config = llama.tiny(vocab=67, width=48, heads=4, kv_heads=2, head_dim=8, hidden=64)
    plan = llama.plan(config)
    weights = random_weights(plan, seed)
    together, alone = (TorchBackend(plan, weights, pages=40, max_rows=200, act_quant="none", dtype=torch.float64)
                       for _ in range(2))
    sequences = [rng.integers(0, config.vocab, rng.integers(2, 50)).tolist() for _ in range(3)]
    tables = tables_of([len(s) for s in sequences], 40, rng)
    done, logits = [0] * 3, [[] for _ in sequences]
    while any(d < len(s) for d, s in zip(done, sequences, strict=True)):
        live = [i for i in range(3) if done[i] < len(sequences[i])]
        take = {i: int(rng.integers(1, len(sequences[i]) - done[i] + 1)) for i in live}
        batch = Batch.build([(sequences[i][done[i]:done[i] + take[i]], done[i], done[i]) for i in live],
                            tables=[[tables[i] for i in live]], rows=np.arange(sum(take.values())))
        together.run(batch, 0, len(plan.ops) - 1)
        rows = np.split(together.slot("logits").copy(), batch.starts[1:-1])
        for i, part in zip(live, rows, strict=True):
            logits[i].append(part)
            done[i] += take[i]
    for ids, parts in zip(sequences, logits, strict=True):
        want = all_logits(alone, ids, [len(ids)], list(range(4)))
        # f64 sums, but slots and the f16 cache round: a value that falls on the other side of a rounding moves by
        # 2^-24 (slot) or 2^-11 (cache) relative; only the first can happen while the cache's inputs agree to 2^-24,
        # and a flip of the second is what the slack is for.
        np.testing.assert_allclose(np.concatenate(parts), want, rtol=0, atol=2e-3 * np.abs(want).max())


@given(seed=st.integers(0, 2**32 - 1), k=st.integers(1, 200))
def test_a16_rounds_to_the_nearest_of_65279_steps(seed, k):
    """|a16(x) - x| <= max|x| / 32639 / 2, up to f32; zero stays zero; the largest stays itself."""
    x = torch.from_numpy(np.random.default_rng(seed).standard_normal((3, k)).astype(np.float32))
    x[1] = 0
    y = a16(x)
    step = x.abs().amax(-1, keepdim=True) / 32639
    assert ((y - x).abs() <= step * 0.5 + x.abs() * 1e-6).all()
    assert (y[1] == 0).all()
    best = x.abs().argmax(-1, keepdim=True)
    assert torch.allclose(y.gather(1, best), x.gather(1, best), rtol=1e-6)


def test_run_ranges_equal_one_run():
    """run(b, 0, k) then run(b, k) == run(b), every cut."""
    config = llama.tiny()
    plan = llama.plan(config)
    weights = random_weights(plan, 1)
    batch = Batch.build([(list(range(20)), 0, 0), ([3, 4], 0, 0)], tables=[[[0, 1], [2]]])
    whole = TorchBackend(plan, weights)
    whole.run(batch)
    for cut in range(1, len(plan.ops)):
        parts = TorchBackend(plan, weights)
        parts.run(batch, 0, cut)
        parts.run(batch, cut)
        assert np.array_equal(parts.slot("logits"), whole.slot("logits"))
        assert np.array_equal(parts.sampled(), whole.sampled())


def test_a_copied_page_is_the_page():
    """copy_page carries K, V and stored positions: the copy's logits are the original's."""
    plan = llama.plan(llama.tiny())
    backend = TorchBackend(plan, random_weights(plan, 2))
    backend.run(Batch.build([(list(range(10)), 0, 0)], tables=[[[4]]]))
    backend.copy_page(0, 4, 9)
    out = []
    for page in (4, 9):
        backend.run(Batch.build([([11], 10, 10)], tables=[[[page]]]))
        out.append(backend.slot("logits").copy())
    assert np.array_equal(*out)
