"""The native backend against the reference, op by op within bounds derived from the arithmetic (op_bounds), on random
small models, formats, ragged batches, chunkings, page tables and instruction sets."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from backend_compare import PAGES, ROWS, compare, schedule, some_roles
from hybrid_plans import hybrid
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference_models import native_backend, random_values, stored

from pyruntime import plan as p
from pyruntime.backends.torch import TorchBackend
from pyruntime.config import Experts, Latent, ModelConfig, RopeScaling
from pyruntime.models import deepseek_v2, gemma3, gpt2, llama, mamba2
from pyruntime.quant import FORMATS
from pyruntime.types import Batch


def formats_of(k: int) -> list[str]:
    """Formats that rows of k weights can have."""
    return [name for name, twin in FORMATS.items() if k % twin.BLOCK_WEIGHTS == 0]


pytestmark = pytest.mark.usefixtures("one_thread")


@st.composite
def deepseeks(draw) -> ModelConfig:
    """Latents, heads and experts of many shapes; groups that limit what tokens choose from."""
    rope = 2 * draw(st.integers(1, 12))
    latent = Latent(16 * draw(st.integers(1, 5)), draw(st.sampled_from([0, 24, 64])), draw(st.sampled_from([5, 16, 32])), rope,
                    16 * draw(st.integers(1, 3)), draw(st.sampled_from([1e-6, 1e-2])))
    groups, each = draw(st.sampled_from([1, 1, 2, 3])), draw(st.integers(1, 4))
    kept = draw(st.integers(1, groups))
    experts = Experts(groups * each, draw(st.integers(1, min(5, kept * each))), 16 * draw(st.integers(1, 4)),
                      draw(st.sampled_from([0, 32, 50])), draw(st.integers(0, 1)), draw(st.booleans()), draw(st.booleans()), groups,
                      kept, draw(st.integers(1, min(2, each))), draw(st.booleans()), draw(st.sampled_from([1.0, 2.5])))
    cached = ["f16", "f32", "bf16"] + ["q8_0"] * ((latent.rank + rope) % 32 == 0)
    format = draw(st.sampled_from(cached))
    return deepseek_v2.tiny(layers=2, width=16 * draw(st.sampled_from([1, 2, 4, 6, 16])),
                            heads=draw(st.sampled_from([1, 3, 6, 20])), hidden=draw(st.integers(3, 90)),
                            vocab=draw(st.integers(17, 70)), latent=latent, rope_interleaved=draw(st.booleans()),
                            experts=draw(st.sampled_from([experts, experts, None])),
                            k_format=format, v_format=format)


@st.composite
def models(draw) -> tuple[p.Plan, dict[str, str], int]:
    """(plan, format of each matrix, seed) of a random small llama, gemma, gpt2, deepseek or mamba2, or of two families."""
    kv_heads, share = draw(st.integers(1, 3)), draw(st.sampled_from([1, 1, 2, 3, 5]))
    head_dim = 2 * draw(st.integers(1, 20)) if draw(st.booleans()) else draw(st.sampled_from([16, 32, 64]))
    cached = ["f16", "f16", "f32", "bf16"] + ["q8_0", "q8_0"] * (head_dim % 32 == 0)
    width, hidden = (draw(st.sampled_from([32, 64, 96, 160, 256, 256])) if draw(st.booleans()) else draw(st.integers(3, 90))
                     for _ in "ab")
    fields = dict(
        layers=draw(st.integers(1, 2)), width=width, heads=kv_heads * share, kv_heads=kv_heads, head_dim=head_dim,
        hidden=hidden, vocab=draw(st.integers(17, 70)), tied=draw(st.booleans()), rope_interleaved=draw(st.booleans()),
        rope_scaling=RopeScaling("linear", 2.5) if draw(st.booleans()) else RopeScaling(),
        k_format=draw(st.sampled_from(cached)), v_format=draw(st.sampled_from(cached)))
    family = draw(st.sampled_from([llama, llama, gemma3, gpt2, mamba2, deepseek_v2]))
    if family is deepseek_v2:
        plan = deepseek_v2.plan(draw(deepseeks()))
    elif family is mamba2:
        plan = mamba2.plan(mamba2.tiny(
            layers=fields["layers"], width=width, heads=kv_heads * share, head_dim=head_dim, groups=kv_heads,
            numbers=draw(st.integers(1, 20)), vocab=fields["vocab"], taps=draw(st.integers(2, 5)), bias=draw(st.booleans()),
            conv_bias=draw(st.booleans()),
            dt_min=draw(st.sampled_from([0.0, 0.5])), dt_max=draw(st.sampled_from([0.75, np.inf])),
            activation=draw(st.sampled_from(["silu", "gelu"])), eps=draw(st.sampled_from([1e-6, 1e-2]))))
        if draw(st.booleans()):
            plan = replace(plan, ops=tuple(
                replace(op, gate_last=True) if isinstance(op, p.GatedNorm) else replace(op, d=None, dt_bias=None)
                if isinstance(op, p.Scan) else op for op in plan.ops))
        if draw(st.booleans()):
            plan = hybrid(plan, llama.plan(llama.tiny(**fields)))
    elif family is llama:
        plan = llama.plan(llama.tiny(**fields, qkv_bias=draw(st.booleans()), qk_norm=draw(st.booleans()),
                                     rope_dims=2 * draw(st.integers(1, head_dim // 2))))
    elif family is gpt2:
        plan = gpt2.plan(gpt2.tiny(**fields | dict(kv_heads=fields["heads"]), eps=draw(st.sampled_from([1e-6, 1e-2])), context=64))
    else:
        plan = gemma3.plan(gemma3.tiny(**fields, period=2, window=draw(st.integers(1, 20)),
                                       eps=draw(st.sampled_from([1e-6, 1e-2]))))
    if draw(st.booleans()):      # what other families use of the same ops
        window, softcap = draw(st.sampled_from([0, 1, 5, 20])), draw(st.sampled_from([0.0, 3.0]))
        kind = draw(st.sampled_from([p.Activation.SILU, p.Activation.GELU_TANH, p.Activation.GELU]))
        plan = replace(plan, groups=tuple(replace(g, window=0) for g in plan.groups), ops=tuple(
            replace(op, window=window, softcap=softcap) if isinstance(op, p.Attention) else
            replace(op, activation=kind) if isinstance(op, (p.Gated, p.Experts)) or getattr(op, "activation", -1) >= 0 else
            replace(op, scale=1.5) if isinstance(op, p.Embed) else
            replace(op, softcap=softcap, scale=1.5) if isinstance(op, p.Logits) else
            replace(op, scale=0.75) if isinstance(op, p.LinearAdd) else op for op in plan.ops))
    formats = {w.name: draw(st.sampled_from(formats_of(w.k))) for w in plan.weights if w.k}
    return plan, formats, draw(st.integers(0, 2**32 - 1))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(models(), st.data())
def test_every_op_stays_within_its_bound(model, data):
    """Every op of every step."""
    plan, formats, seed = model
    rng = np.random.default_rng(seed)
    values = random_values(plan, seed)
    low_memory, paths = data.draw(st.booleans()), data.draw(st.sampled_from([
        ("a16", "a16"), ("bf16", "a16"), ("a16_bf16", "a16"), ("a16_bf16", "bf16"), ("bf16", "bf16"),
        ("a8", "a16"), ("a8", "bf16")]))
    blocks = stored(plan, values, formats, low_memory=True)
    native = native_backend(plan, blocks if low_memory else stored(plan, values, formats), pages=PAGES, max_tokens=64,
                            max_rows=ROWS, threads=data.draw(st.integers(1, 2)), paths=paths,
                            precision=data.draw(st.sampled_from(["balanced", "precise"])))
    ref = TorchBackend(plan, blocks, pages=PAGES, max_tokens=64, max_rows=ROWS, dtype=torch.float64, paths=paths)
    lengths = tuple(int(n) for n in rng.integers(1, 45, data.draw(st.integers(1, 3))))
    for batch in schedule(plan, rng, lengths=lengths):
        compare(plan, blocks, native, ref, replace(batch, roles=some_roles(rng, len(batch.tokens))))
    native.close()


@pytest.mark.parametrize("format", FORMATS)
def test_whole_model_stays_close(format):
    """End to end, errors allowed to travel: 20 decode steps after a chunked prompt, logits of spread >= 1.

    One flipped A16 step is 2^-15 of a token's largest activation, one flipped f16 step 2^-11 of one stored number; through
    two layers both stay below 2^-9 of the largest logit.
    """
    config = llama.tiny(width=256, hidden=256, heads=8, kv_heads=2, head_dim=32)
    plan = llama.plan(config)
    formats = {w.name: format for w in plan.weights if w.k}
    values = random_values(plan, 11)
    native = native_backend(plan, stored(plan, values, formats), pages=PAGES, precision="precise")
    ref = TorchBackend(plan, stored(plan, values, formats, low_memory=True), pages=PAGES)
    ids, rng = np.random.default_rng(2).integers(0, config.vocab, 60), np.random.default_rng(3)
    at, table = 0, rng.permutation(PAGES).tolist()
    for n in [23, 17] + [1] * 20:
        batch = Batch.build([(ids[at:at + n], at, at)], tables=[[table]])
        native.run(batch)
        ref.run(batch)
        got, want = native.slot("logits"), ref.slot("logits")
        assert want.std() >= 0.8
        assert np.abs(got - want).max() <= 2.0**-9 * np.abs(want).max()
        assert np.array_equal(native.sampled()["token"], ref.sampled()["token"])
        at += n
