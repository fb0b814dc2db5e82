"""DeepSeek V2 and V3, and GLM-4 MoE Lite, against `transformers`: random models through their own names, a folder and a GGUF file,
routing that varies, and every way to get the family wrong."""
from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("gguf")

import gguf
import transformers
from click.testing import CliRunner
from family_checks import CHUNKS, F32, KINDS, LENGTH, Family, changed, logits, read, same_bits, scattered
from folders import write_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_models import random_values, stored
from tiny_model import tiny_tokenizer

from pyruntime import LLM
from pyruntime import plan as p
from pyruntime.backends.base import expert_counts
from pyruntime.cli.inspect import command
from pyruntime.config import Experts, Latent, Metadata, ModelConfig, RopeScaling
from pyruntime.errors import FieldInvalid, ModelInvalid
from pyruntime.loading import kv_bytes_per_token, open_model
from pyruntime.models import deepseek_v2
from pyruntime.quant import FORMATS
from pyruntime.recipe import yarn_factors, yarn_mscale
from pyruntime.weights import load_weights
from pyruntime.weights.gguf import GGUFModel

YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512, "beta_fast": 16, "beta_slow": 1, "mscale": 1.0,
        "mscale_all_dim": 0.7, "rope_theta": 1e4}
SHAPE = dict(vocab_size=211, hidden_size=96, intermediate_size=160, moe_intermediate_size=32, num_hidden_layers=3,
             num_attention_heads=4, num_key_value_heads=4, n_shared_experts=2, n_routed_experts=8, num_experts_per_tok=3,
             kv_lora_rank=32, q_lora_rank=48, qk_rope_head_dim=16, qk_nope_head_dim=16, v_head_dim=16, n_group=4, topk_group=2,
             first_k_dense_replace=1, max_position_embeddings=256, routed_scaling_factor=1.7, tie_word_embeddings=False,
             rope_parameters=YARN, attn_implementation="eager", pad_token_id=0, bos_token_id=None, eos_token_id=None)
MODELS: dict[str, tuple[str, dict[str, object]]] = {     # transformers' class, fields
    "v2": ("DeepseekV2", dict(topk_method="group_limited_greedy")),
    "v2 lite": ("DeepseekV2", dict(
        q_lora_rank=None, topk_method="greedy", num_attention_heads=3, num_key_value_heads=3, v_head_dim=32,
        rope_parameters={"rope_type": "default", "rope_theta": 1e3}, routed_scaling_factor=1.0)),
    "v3": ("DeepseekV3", {}),
    "v3 of halves": ("DeepseekV3", dict(
        rope_interleave=False, first_k_dense_replace=0, n_group=1, topk_group=1, norm_topk_prob=False, kv_lora_rank=48,
        num_hidden_layers=2)),
    "glm4 lite": ("Glm4MoeLite", dict(
        rms_norm_eps=1e-3, mlp_layer_types=["dense", "sparse", "sparse"],
        rope_parameters={"rope_type": "default", "rope_theta": 1e3})),
}


pytestmark = pytest.mark.usefixtures("one_thread")


def hugging_face(which: str, seed: int = 3) -> torch.nn.Module:
    """A random one: scores and router logits of several, so that angles, biases and groups show."""
    generation, fields = MODELS[which]
    config = getattr(transformers, f"{generation}Config")(**{**SHAPE, **fields})
    model = getattr(transformers, f"{generation}ForCausalLM")(config)
    for name, bias in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            bias.copy_(torch.from_numpy(np.random.default_rng(seed).standard_normal(len(bias)) * 0.3))
    return scattered(model, seed, {"mlp.gate.weight": 2.5, "q_b_proj.weight": 1.8, "q_proj.weight": 1.8,
                                   "kv_a_proj_with_mqa.weight": 1.8})


def as_saved(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every expert's matrices by themselves, as in a checkpoint."""
    out = {}
    for name, value in state.items():
        stem, _, last = name.rpartition(".")
        parts = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}.get(last)
        if parts is None:
            out[name] = value
            continue
        for expert, matrix in enumerate(value):
            for part, rows in zip(parts, matrix.chunk(len(parts)), strict=True):
                out[f"{stem}.{expert}.{part}.weight"] = rows
    return out


def config_of(model: torch.nn.Module) -> ModelConfig:
    return replace(deepseek_v2.from_hf(Metadata(model.config.to_dict(), "config.json"), {}), **F32)


def family_of(which: str) -> Family:
    model = hugging_face(which)
    return Family.of(model, deepseek_v2, config_of(model), as_saved=as_saved)


@pytest.fixture(scope="module", params=MODELS)
def made(request) -> Family:
    return family_of(request.param)


@pytest.fixture(scope="module")
def second() -> Family:
    return family_of("v2")


@pytest.fixture(scope="module")
def third() -> Family:
    return family_of("v3")


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


@pytest.mark.parametrize("kind", KINDS)
def test_routing_varies_and_is_transformers_own(made: Family, kind: str) -> None:
    """Counts of every expert in every layer; at most one has no token, none has all."""
    backend, config = made.backend(kind), config_of(made.reference)
    logits(backend, made.ids, [LENGTH])
    counts, e = expert_counts(backend), config.experts
    assert e is not None and list(counts) == [f"routes.{i}" for i in range(e.dense, config.layers)]
    found: dict[int, np.ndarray] = {}
    hooks = [layer.mlp.gate.register_forward_hook(lambda module, x, y, i=i: found.__setitem__(i, y[2].numpy()))
             for i, layer in enumerate(made.reference.model.layers) if i >= e.dense]
    made.truth(made.ids)
    for hook in hooks:
        hook.remove()
    for name, count in counts.items():
        chosen = found[int(name.split(".")[1])]
        assert np.array_equal(count, np.bincount(chosen.ravel(), minlength=e.count)) and count.sum() == LENGTH * e.used
        assert np.array_equal(backend.slot(name)[:, :e.used], np.sort(chosen, 1))
        assert (count > 0).sum() >= e.count - 1 and count.max() < LENGTH and len(np.unique(chosen.sum(1))) > 5


def test_a_token_keeps_its_latent_and_one_rotated_key(made: Family) -> None:
    """(latent + rope) numbers a layer, whatever the heads: in the plan, in the engine's pages."""
    config = config_of(made.reference)
    latent = config.latent
    assert latent is not None
    for format, size in (("f32", 4), ("f16", 2), ("bf16", 2)):
        plan = deepseek_v2.plan(replace(config, k_format=format, v_format=format))
        token = config.layers * (latent.rank + latent.rope) * size
        assert kv_bytes_per_token(plan) == token
        backend = made.backend("native", plan)
        assert backend.page(0, 0).nbytes == p.PAGE_TOKENS * token
        backend.close()


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_native_chunks_threads_and_memory_do_not_matter(seed: int) -> None:
    plan = deepseek_v2.plan(deepseek_v2.tiny(vocab=67, latent=Latent(rank=64, q_rank=32, keys=32, rope=8, values=32)))
    same_bits(plan, random_values(plan, seed), seed)


# ---- what is not the family ----

def with_experts(**fields: object) -> Callable[[ModelConfig], ModelConfig]:
    return lambda config: replace(config, experts=replace(config.experts, **fields))


def with_latent(**fields: object) -> Callable[[ModelConfig], ModelConfig]:
    return lambda config: replace(config, latent=replace(config.latent, **fields))


def with_yarn(**fields: float) -> Callable[[ModelConfig], ModelConfig]:
    """The rope and the scale of another YaRN."""
    def change(config: ModelConfig) -> ModelConfig:
        factor, fast, mscale, all_dim = ({"factor": 8.0, "fast": 16.0, "mscale": 1.0, "all_dim": 0.7} | fields).values()
        grown = yarn_mscale(factor, mscale) / yarn_mscale(factor, all_dim)
        return replace(config, query_scale=32**-0.5 * yarn_mscale(factor, all_dim)**2, rope_scaling=RopeScaling(
            "factors", factor, yarn_factors(16, 1e4, factor, 512, fast, 1.0), grown))
    return change


WRONG = {
    "theta": lambda c: replace(c, rope_theta=1.1e4),
    "pairs of halves": lambda c: replace(c, rope_interleaved=False),
    "no yarn": lambda c: replace(c, rope_scaling=RopeScaling("none", mscale=c.rope_scaling.mscale)),
    "yarn linear": lambda c: replace(c, rope_scaling=RopeScaling("linear", 8.0, mscale=c.rope_scaling.mscale)),
    "yarn's factor": with_yarn(factor=7.0), "yarn's ramp": with_yarn(fast=4.0), "mscale": with_yarn(mscale=0.9),
    "mscale_all_dim": with_yarn(all_dim=0.8), "no mscale": lambda c: replace(c, rope_scaling=replace(c.rope_scaling, mscale=1.0)),
    "scale without mscale": lambda c: replace(c, query_scale=32**-0.5),
    "scale of the latent": lambda c: replace(c, query_scale=48**-0.5),
    "eps": lambda c: replace(c, eps=1e-3), "eps of latents": with_latent(eps=1e-3),
    "one expert less": with_experts(used=2), "one expert more": with_experts(used=4), "routed scale": with_experts(scale=1.6),
    "routed scale ignored": with_experts(scale=1.0), "groups ignored": with_experts(groups=1, groups_kept=1),
    "one group": with_experts(groups_kept=2, groups=2), "three groups kept": with_experts(groups_kept=3),
    "other function": lambda c: replace(c, activation="gelu"),
}
WRONG_SECOND = {"weights normalized": with_experts(normalize=True), "sigmoids": with_experts(sigmoid=True),
                "groups by two": with_experts(group_best=2)}
WRONG_THIRD = {"weights not normalized": with_experts(normalize=False), "softmax": with_experts(sigmoid=False),
               "routing bias ignored": with_experts(biased=False), "groups by one": with_experts(group_best=1)}


@pytest.mark.parametrize("generation, wrong", [*(("second", w) for w in {**WRONG, **WRONG_SECOND}),
                                               *(("third", w) for w in {**WRONG, **WRONG_THIRD})])
def test_a_wrong_config_is_seen(generation: str, wrong: str, request) -> None:
    family = request.getfixturevalue(generation)
    config = config_of(family.reference)
    assert with_yarn()(config).rope_scaling == config.rope_scaling
    family.sees(deepseek_v2.plan({**WRONG, **WRONG_SECOND, **WRONG_THIRD}[wrong](config)))


def without_shared(plan: p.Plan) -> p.Plan:
    ops = [op for op in plan.ops if not (getattr(op, "out", "") == "shared" or getattr(op, "x", "") == "shared")]
    return replace(plan, ops=tuple(ops))


PLANS = {
    "no shared experts": without_shared,
    "experts of the residual before its norm": lambda plan: changed(plan, p.Experts, norm=None),
    "gate and up swapped": lambda plan: changed(plan, p.Experts, lambda op: [replace(op, gate=op.up, up=op.gate)]),
    "router of another layer's norm": lambda plan: changed(plan, p.NormLinear, lambda op: [
        replace(op, norm=op.norm.replace("ffn_norm", "attn_norm")) if op.out == "router" else op]),
    "key rotated, not queries": lambda plan: replace(
        changed(plan, p.LatentKV, rope=1), ropes=(*plan.ropes, p.Rope((0.0,) * 8, True))),
    "a window": lambda plan: changed(plan, p.Attention, window=20),
}


@pytest.mark.parametrize("wrong", PLANS)
@pytest.mark.parametrize("generation", ["second", "third"])
def test_a_wrong_plan_is_seen(generation: str, wrong: str, request) -> None:
    family = request.getfixturevalue(generation)
    family.sees(PLANS[wrong](family.plan))


def parts_turned(values: dict[str, np.ndarray], name: str, parts: int) -> None:
    """Every part's matrix in its neighbour's place."""
    for key in values:
        if key.endswith(name):
            values[key] = np.roll(values[key].reshape(parts, -1, values[key].shape[1]), 1, 0).reshape(values[key].shape)


@pytest.mark.parametrize("name, parts", [
    ("attn_k_b.weight", 4), ("attn_v_b.weight", 4), ("ffn_gate_exps.weight", 8), ("ffn_up_exps.weight", 8),
    ("ffn_down_exps.weight", 8), ("ffn_gate_inp.weight", 8)])
def test_parts_in_another_order_are_seen(third: Family, name: str, parts: int) -> None:
    values = read(third.reference, deepseek_v2, config_of(third.reference), as_saved)
    parts_turned(values, name, parts)
    third.sees(third.plan, stored(third.plan, values))


# ---- configs ----

def test_config_json_says_what_the_model_is(second: Family, third: Family) -> None:
    latent = Latent(rank=32, q_rank=48, keys=16, rope=16, values=16)
    experts = Experts(8, 3, 32, shared=64, dense=1, groups=4, groups_kept=2, group_best=1, scale=1.7)
    found = config_of(second.reference)
    assert (found.latent, found.experts, found.kv_heads, found.head_dim, found.tied) == (latent, experts, 1, 48, False)
    assert found.query_scale == pytest.approx(32**-0.5 * (1 + 0.07 * np.log(8.0))**2)
    other = replace(experts, group_best=2, sigmoid=True, biased=True, normalize=True)
    assert config_of(third.reference).experts == other


@pytest.mark.parametrize("kind", deepseek_v2.MODEL_TYPES)
def test_what_config_json_leaves_out_is_as_in_transformers(kind: str) -> None:
    """But for V2's default of 1407 numbers an expert, which no model has, and how many a token meets, which it does not say."""
    more = dict(moe_intermediate_size=1408, num_experts_per_tok=6) if kind == "deepseek_v2" else {}
    said = transformers.AutoConfig.for_model(kind, **more)
    whole = deepseek_v2.from_hf(Metadata(said.to_dict(), "config.json"), {})
    assert deepseek_v2.from_hf(Metadata({"model_type": kind, **more}, "config.json"), {}) == whole
    bare = deepseek_v2.from_hf(Metadata({"model_type": kind, **more, "q_lora_rank": None}, "config.json"), {})
    assert whole.latent is not None and whole.latent.q_rank == said.q_lora_rank > 0
    assert bare.latent == replace(whole.latent, q_rank=0)


@pytest.mark.parametrize("factor, beta, mscale, all_dim, more", [
    (40.0, 32, 0.707, 0.707, {}), (8.0, 16, 1.0, 0.7, {}), (4.0, 32, None, None, {}), (4.0, 32, 1.0, None, {}),
    (2.0, 64, None, None, {"attention_factor": 1.3}), (16.0, 32, 1.0, 1.0, {"truncate": False, "beta_slow": 2})])
def test_yarn_equals_transformers(factor: float, beta: float, mscale: float | None, all_dim: float | None, more: dict) -> None:
    """Frequencies, what cosines are multiplied by, and the attention's scale."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    said = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": 4096, "beta_fast": beta, "rope_theta": 1e4,
            **{k: v for k, v in (("mscale", mscale), ("mscale_all_dim", all_dim)) if v is not None}, **more}
    config = transformers.DeepseekV3Config(**{**SHAPE, "rope_parameters": said, "qk_rope_head_dim": 64,
                                              "max_position_embeddings": int(4096 * factor)})
    inv_freq, grown = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    new = config.to_dict()
    old = {**new, "rope_theta": 1e4, "rope_scaling": {**said, "type": "yarn"}, "rope_parameters": None}
    for values in (new, old):
        plan = deepseek_v2.plan(deepseek_v2.from_hf(Metadata(values, "config.json"), {}))
        assert np.allclose(plan.ropes[0].inv_freq, inv_freq.double().numpy(), rtol=1e-6, atol=0)
        assert plan.ropes[0].mscale == pytest.approx(grown)
        attention = next(op for op in plan.ops if isinstance(op, p.Attention))
        layer = transformers.models.deepseek_v3.modeling_deepseek_v3.DeepseekV3Attention(config, 0)
        assert attention.scale == pytest.approx(layer.scaling)


@pytest.mark.parametrize("generation, fields, says", [
    ("v2", {"norm_topk_prob": True}, "norm_topk_prob"), ("v2", {"topk_method": "noaux_tc"}, "topk_method"),
    ("v2", {"scoring_func": "sigmoid"}, "scoring_func"), ("v3", {"scoring_func": "softmax"}, "scoring_func"),
    ("v3", {"topk_method": "greedy"}, "topk_method"), ("v3", {"n_group": 5}, "groups"), ("v3", {"topk_group": 9}, "topk_group"),
    ("v3", {"num_experts_per_tok": 200}, "groups"), ("v3", {"kv_lora_rank": 500}, "latent has 500"),
    ("v3", {"v_head_dim": 100}, "value has 100"), ("v3", {"moe_intermediate_size": 1407}, "expert has 1407"),
    ("v3", {"qk_rope_head_dim": 63}, "even"), ("v3", {"attention_bias": True}, "attention_bias"),
    ("v3", {"num_key_value_heads": 4}, "num_key_value_heads"), ("v3", {"moe_layer_freq": 2}, "moe_layer_freq"),
    ("v3", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "original_max_position"),
    ("v3", {"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "dynamic"),
    ("v3", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ("glm", {"num_hidden_layers": 3, "mlp_layer_types": ["dense", "sparse", "dense"]}, "dense layers behind"),
    ("glm", {"num_hidden_layers": 3, "mlp_layer_types": ["dense", "sparse"]}, "mlp_layer_types")])
def test_bad_config_json(generation: str, fields: dict[str, object], says: str) -> None:
    kind = "glm4_moe_lite" if generation == "glm" else f"deepseek_{generation}"
    base = {"model_type": kind, "moe_intermediate_size": 1408, "num_experts_per_tok": 8}
    with pytest.raises(ModelInvalid, match=f"config.json.*{says}"):
        deepseek_v2.from_hf(Metadata(base | fields, "config.json"), {})


# ---- GGUF ----

def write_gguf(path: Path, config: ModelConfig, values: dict[str, np.ndarray], heads_apart: bool = True,
               format: str | None = None) -> Path:
    """The file as llama.cpp's converter writes it, F32, without a tokenizer: experts stacked, kv_b split and turned (heads_apart)
    or, as older ones have it, whole and in `format`."""
    latent, e, out = config.latent, config.experts, gguf.GGUFWriter(path, "deepseek2")
    assert latent is not None and e is not None
    out.add_context_length(config.context)
    out.add_embedding_length(config.width)
    out.add_block_count(config.layers)
    out.add_feed_forward_length(config.hidden)
    out.add_head_count(config.heads)
    out.add_head_count_kv(1 if heads_apart else config.heads)
    out.add_layer_norm_rms_eps(config.eps)
    out.add_rope_freq_base(config.rope_theta)
    out.add_rope_dimension_count(latent.rope)
    if latent.q_rank:
        out.add_q_lora_rank(latent.q_rank)
    out.add_kv_lora_rank(latent.rank)
    if heads_apart:
        out.add_key_length_mla(latent.keys + latent.rope)
        out.add_value_length_mla(latent.values)
    out.add_key_length(config.head_dim if heads_apart else latent.keys + latent.rope)
    out.add_value_length(latent.rank if heads_apart else latent.values)
    if config.rope_scaling.kind != "none":
        out.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        out.add_rope_scaling_factor(config.rope_scaling.factor)
        out.add_rope_scaling_orig_ctx_len(512)
        out.add_rope_scaling_yarn_beta_fast(16.0)
        out.add_rope_scaling_yarn_log_mul(0.1 * 0.7)
    out.add_leading_dense_block_count(e.dense)
    out.add_expert_count(e.count)
    out.add_expert_used_count(e.used)
    out.add_expert_feed_forward_length(e.hidden)
    out.add_expert_shared_count(e.shared // e.hidden)
    out.add_expert_weights_scale(e.scale)
    out.add_expert_weights_norm(e.normalize)
    out.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID if e.sigmoid else gguf.ExpertGatingFuncType.SOFTMAX)
    if e.groups > 1:
        out.add_expert_group_count(e.groups)
        out.add_expert_group_used_count(e.groups_kept)
    values = dict(values)
    for i in range(0 if heads_apart else config.layers):
        k, v = (values.pop(f"blk.{i}.attn_{n}_b.weight") for n in "kv")
        k = k.reshape(config.heads, latent.rank, latent.keys).swapaxes(1, 2)
        whole = np.concatenate((k, v.reshape(config.heads, latent.values, -1)), 1)
        name, kind = f"blk.{i}.attn_kv_b.weight", gguf.GGMLQuantizationType[format or "F32"]
        out.add_tensor(name, gguf.quants.quantize(whole.reshape(-1, latent.rank), kind), raw_dtype=kind)
    for name, value in values.items():
        parts = e.count if "_exps." in name else config.heads if name.endswith(("_k_b.weight", "_v_b.weight")) else 0
        out.add_tensor(name, np.ascontiguousarray(value.reshape(parts, -1, value.shape[1]) if parts else value))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


@pytest.mark.parametrize("which", ["v2 lite", "v3"])
def test_a_gguf_file_equals_transformers(which: str, tmp_path: Path) -> None:
    """Whose cosines are not scaled (both mscales are one): the reference's neither."""
    reference = hugging_face(which)
    if which == "v3":
        reference.config.rope_parameters["mscale"] = 0.7
        reference.model.rotary_emb.attention_scaling = 1.0
    config = config_of(reference)
    values = read(reference, deepseek_v2, config, as_saved)
    with GGUFModel(write_gguf(tmp_path / "m.gguf", config, values)) as file:
        found = deepseek_v2.from_gguf(file.metadata, file.shapes, file.vector)
        near = dict(eps=config.eps, query_scale=config.query_scale, latent=config.latent, experts=config.experts,
                    rope_scaling=config.rope_scaling)
        assert replace(found, **near, **F32) == config
        assert found.query_scale == pytest.approx(config.query_scale)
        assert replace(found.latent, eps=1e-6) == config.latent
        assert replace(found.experts, scale=config.experts.scale) == config.experts
        plan = deepseek_v2.plan(replace(found, **F32))
        assert set(file.tensors) == {w.name for w in plan.weights} and file.source(plan, found) is file
        for low_memory in (False, True):
            weights = load_weights(plan.weights, file, threads=1, low_memory=low_memory)
            for kind in KINDS:
                Family(reference, plan, weights).same_in(kind, [LENGTH])


@pytest.mark.parametrize("format", ["F32", "F16", "Q8_0"])
def test_older_files_hold_both_halves_in_one(format: str, third: Family, tmp_path: Path) -> None:
    """attn_kv_b instead of attn_k_b and attn_v_b: the same numbers, whatever its format; the first turned, in F32 if of blocks."""
    config, twin = config_of(third.reference), FORMATS[format]
    values = read(third.reference, deepseek_v2, config, as_saved)
    for name in values:
        if name.endswith(("attn_k_b.weight", "attn_v_b.weight")):    # as the file's rounding leaves them
            values[name] = rounded_rows(values[name], name, config, twin)
    files = []
    for apart in (True, False):
        path = write_gguf(tmp_path / f"{apart}.gguf", config, values, apart, None if apart else format)
        with GGUFModel(path) as file:
            found = replace(deepseek_v2.from_gguf(file.metadata, file.shapes, file.vector), **F32)
            plan = deepseek_v2.plan(found)
            source = file.source(plan, found)
            files.append((found, load_weights(plan.weights, source, threads=1),
                          load_weights(plan.weights, source, threads=1, low_memory=True)))
            notes = source.notes
    assert files[0][0] == files[1][0] and (notes == ()) == (format != "Q8_0")
    for name in (w.name for w in plan.weights):
        want = files[0][1][name].f32()
        assert all(np.array_equal(w[name].f32(), want) for _, *both in files for w in both), name
    assert files[1][1]["blk.0.attn_k_b.weight"].format_name == ("F32" if format == "Q8_0" else format)
    assert files[1][1]["blk.0.attn_v_b.weight"].format_name == format


def rounded_rows(x: np.ndarray, name: str, config: ModelConfig, twin) -> np.ndarray:
    """Through the format along the latent, as attn_kv_b's rows lie."""
    latent, turned = config.latent, "k_b" in name
    assert latent is not None
    rows = x.reshape(config.heads, latent.rank, latent.keys).swapaxes(1, 2) if turned else x
    rows = np.ascontiguousarray(rows.reshape(-1, latent.rank))
    rows = twin.dequantize(twin.quantize(rows), rows.shape)
    rows = rows.reshape(config.heads, latent.keys, latent.rank).swapaxes(1, 2) if turned else rows
    return np.ascontiguousarray(rows).reshape(x.shape).astype(np.float32)


def test_a_file_with_halves_of_another_height(third: Family, tmp_path: Path) -> None:
    config = config_of(third.reference)
    values = read(third.reference, deepseek_v2, config, as_saved)
    with GGUFModel(write_gguf(tmp_path / "m.gguf", config, values, heads_apart=False)) as file:
        found = deepseek_v2.from_gguf(file.metadata, file.shapes, file.vector)
        odd = replace(found, latent=replace(found.latent, keys=found.latent.keys - 1))
        with pytest.raises(ModelInvalid, match="attn_kv_b.weight is 128 x 32, the model needs blocks of 31 rows"):
            file.source(deepseek_v2.plan(odd), odd)


# ---- from a folder to an answer ----

@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A V3 as `transformers` saves it, with the tiny tokenizer's vocabulary."""
    generation, fields = MODELS["v3"]
    MODELS["worded"] = generation, {**fields, "vocab_size": tiny_tokenizer().vocab_size}
    path = tmp_path_factory.mktemp("v3") / "folder"
    hugging_face("worded").save_pretrained(path)
    del MODELS["worded"]
    write_tokenizer(path)
    return path


@pytest.mark.parametrize("options", [{}, {"low_memory": True}, {"backend": "torch"}], ids=str)
def test_a_folder_opens(folder: Path, options: dict[str, object]) -> None:
    """And computes what the model does that was saved."""
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").float().eval()
    ids = np.random.default_rng(5).integers(0, 200, LENGTH).tolist()
    want = reference(torch.tensor([ids]), use_cache=False).logits[0].detach().numpy()
    got = folder_logits(folder, ids, **options)
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()


def test_a_folder_is_quantized_while_it_loads(folder: Path) -> None:
    """Experts and heads' matrices too, but for what chooses experts; native and the reference compute the same from them."""
    ids = np.random.default_rng(5).integers(0, 200, LENGTH).tolist()
    formats: dict[str, str] = {}
    got, want = (folder_logits(folder, ids, formats, quantize="q8_0", **more) for more in ({}, {"backend": "torch"}))
    assert np.abs(got - want).max() <= 0.02 * np.abs(want).max()
    assert {f for name, f in formats.items() if "_exps" in name or "attn_v_b" in name} == {"Q8_0"}
    assert {f for name, f in formats.items() if "ffn_gate_inp" in name} == {"F32"}


def folder_logits(folder: Path, ids: list[int], formats: dict[str, str] | None = None, **options: object) -> np.ndarray:
    exact = {} if "backend" in options else dict(precision="precise", threads=2)
    model = open_model(folder, kv_format="f32", kv_tokens=512, **exact, **options)
    try:
        if formats is not None:
            formats.update({w.name: w.format_name for w in model.weights})
        return logits(model.backend, ids, [LENGTH])
    finally:
        model.close()


def test_preemption_and_batches_are_neutral(folder: Path) -> None:
    """Pages are pages: four answers at once in a cache for two are those of each alone, and of one step by step."""
    prompts, said = [list(range(3 + i, 30 + 7 * i)) for i in range(4)], []
    for kv_tokens, max_running, chunk in ((256, 4, 16), (4096, 4, 512), (4096, 1, 512)):
        with LLM(folder, kv_tokens=kv_tokens, max_running=max_running, chunk=chunk, precision="precise", threads=2,
                 context=160) as llm:
            outs = llm.generate(prompts, max_tokens=70, temperature=0.7, seed=3, ignore_end=True)
            said.append([o.token_ids for o in outs])
            assert (llm.stats().preemptions > 0) == (kv_tokens == 256)
    assert said[0] == said[1] == said[2]


def test_inspect_says_what_a_token_takes(folder: Path) -> None:
    done = CliRunner().invoke(command, [str(folder), "--json"])
    found = json.loads(done.output)
    assert found["memory"]["kv_bytes_per_token"] == 3 * (32 + 16) * 2     # layers, latent and rope, f16
    assert (found["config"]["latent"]["rank"], found["config"]["experts"]["count"]) == (32, 8)


def test_the_memory_plan_counts_what_each_expert_is_given(folder: Path) -> None:
    """Three of a token's 96 numbers, rounded for each expert, are more than four of 32 for each head."""
    model = open_model(folder, kv_tokens=64, chunk=100, max_running=4)
    slots = sum(4 * s.width * (64 if s.per_row else 104) for s in model.plan.slots)
    assert model.memory.activations == slots + 104 * 3 * 96 * 9
    model.close()


def test_kv_formats_of_rows(folder: Path) -> None:
    """One format for both; q8_0 where rows are whole blocks, which (32 + 16) are not."""
    with pytest.raises(FieldInvalid, match="one row for both"):
        open_model(folder, kv_format="f16:f32")
    with pytest.raises(FieldInvalid, match="this model's have 48"):
        open_model(folder, kv_format="q8_0")
    open_model(folder, kv_format="bf16:bf16", kv_tokens=64).close()
