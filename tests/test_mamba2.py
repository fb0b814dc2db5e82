"""Mamba-2 against `transformers`: random models through their own names and through a GGUF file, and every way to get it wrong.

The reference is its plain torch path. That one clamps the time step in whole passes and forgets to in single steps from a cache,
so every reference here is a whole pass.
"""
from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers")
pytest.importorskip("gguf")

import gguf
import transformers
from family_checks import CHUNKS, KINDS, LENGTH, Family, changed, logits, read, scattered, tables
from reference_models import native_backend, random_values, stored

from pyruntime import plan as p
from pyruntime.config import Metadata, ModelConfig
from pyruntime.errors import ModelInvalid
from pyruntime.models import mamba2
from pyruntime.types import Batch
from pyruntime.weights import load_weights
from pyruntime.weights.folder import FolderModel
from pyruntime.weights.gguf import GGUFModel

CONFIGS = {
    "usual": mamba2.tiny(tied=False),
    "limits, biases, tied": mamba2.tiny(width=40, heads=5, groups=1, numbers=24, dt_min=0.4, dt_max=0.9, bias=True, tied=True,
                                        eps=1e-2),
    "odd sizes": mamba2.tiny(layers=3, width=33, heads=6, head_dim=11, groups=3, numbers=10, taps=3, conv_bias=False,
                             activation="gelu_tanh", eps=1e-2),     # a smaller one lets a group that is all but 0 swell f32's noise
}
WORDS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}


pytestmark = pytest.mark.usefixtures("one_thread")


def hugging_face(config: ModelConfig, seed: int = 3) -> transformers.Mamba2ForCausalLM:
    """A random one of a config of ours, in chunks short enough that a pass has several."""
    s = config.state_space
    hf = transformers.Mamba2Config(
        vocab_size=config.vocab, hidden_size=config.width, num_hidden_layers=config.layers,
        expand=s.heads * s.head_dim // config.width, num_heads=s.heads, head_dim=s.head_dim, n_groups=s.groups,
        state_size=s.numbers, conv_kernel=s.taps, use_bias=s.bias, use_conv_bias=s.conv_bias, hidden_act=WORDS[config.activation],
        layer_norm_epsilon=config.eps, chunk_size=16, time_step_limit=(s.dt_min, s.dt_max), tie_word_embeddings=config.tied,
        pad_token_id=0, bos_token_id=0, eos_token_id=0)
    return scattered(transformers.Mamba2ForCausalLM(hf), seed, {"lm_head.weight": 2.0, "conv1d.weight": 1.5})


@pytest.fixture(scope="module", params=CONFIGS)
def made(request) -> Family:
    config = CONFIGS[request.param]
    return Family.of(hugging_face(config), mamba2, config)


@pytest.fixture(scope="module")
def limited() -> Family:
    config = CONFIGS["limits, biases, tied"]
    return Family.of(hugging_face(config), mamba2, config)


@pytest.fixture(scope="module")
def usual() -> Family:
    return Family.of(hugging_face(CONFIGS["usual"]), mamba2, CONFIGS["usual"])


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


def test_limits_are_reached(limited: Family) -> None:
    """Of the time steps some lie below the least, some above the largest, some between: every branch is compared."""
    backend = limited.backend("torch")
    for at, op in enumerate(limited.plan.ops):
        if isinstance(op, p.Scan):
            backend.run(Batch.build([(limited.ids, 0, 0)], tables=tables(limited.plan)), 0, at)
            raw = backend.slot(op.dt)[:, op.first : op.first + op.heads] + limited.weights[op.dt_bias].f32()
            dt = np.logaddexp(0, raw)
            for share in ((dt < op.dt_min), (dt > op.dt_max), (dt > op.dt_min) & (dt < op.dt_max)):
                assert share.mean() > 0.05


def test_256_steps_equal_the_scan(usual: Family) -> None:
    """One token after another, as one pass, as transformers' blocks: to 1e-4; natively to the last bit."""
    ids = np.random.default_rng(8).integers(0, usual.plan.vocab, 256).tolist()
    want, long = usual.truth(ids), 256
    backends = {name: native_backend(usual.plan, usual.weights, precision="precise", threads=2, pages=9, max_rows=long)
                for name in ("steps", "whole")}
    steps, whole = logits(backends["steps"], ids, [1] * long), logits(backends["whole"], ids, [long])
    assert np.array_equal(steps, whole) and usual.distance(whole, want) <= 1e-4
    assert all(np.array_equal(backends["steps"].page(g, 7 + g), backends["whole"].page(g, 7 + g)) for g in range(2))


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
def test_blocks_equal_transformers(made: Family, chunks: list[int]) -> None:
    """As every profile but `precise` runs a prompt; and 256 tokens, past many blocks."""
    def blocks(**more):
        return native_backend(made.plan, made.weights, precision="balanced", paths=("a16", "a16"), threads=2, pages=17,
                              max_rows=256, **more)

    got = logits(blocks(), made.ids, chunks)
    assert made.distance(got) <= 1e-4 and np.array_equal(got, logits(blocks(), made.ids, [LENGTH]))
    assert not np.array_equal(got, logits(made.backend("native"), made.ids, chunks))
    ids = np.random.default_rng(8).integers(0, made.plan.vocab, 256).tolist()
    assert made.distance(logits(blocks(), ids, [256]), made.truth(ids)) <= 1e-4


# ---- and what is not ----

def spaced(config: ModelConfig, **fields: object) -> ModelConfig:
    return replace(config, state_space=replace(config.state_space, **fields))


CONFIG, LIMITED = CONFIGS["usual"], CONFIGS["limits, biases, tied"]
WRONG = {
    "epsilon": replace(CONFIG, eps=1e-3), "tanh gelu": replace(CONFIG, activation="gelu_tanh"),
    "gelu": replace(CONFIG, activation="gelu"), "largest step": spaced(CONFIG, dt_max=0.8),
    "least step": spaced(CONFIG, dt_min=0.3), "no conv bias": spaced(CONFIG, conv_bias=False),
    "one group of twice the numbers": spaced(CONFIG, groups=1, numbers=32),
    "tied": replace(CONFIG, tied=True), "a layer less": replace(CONFIG, layers=1),
}
WRONG_LIMITED = {
    "least step left out": spaced(LIMITED, dt_min=0.0), "largest step left out": spaced(LIMITED, dt_max=math.inf),
    "another least step": spaced(LIMITED, dt_min=0.41), "another largest step": spaced(LIMITED, dt_max=0.88),
    "no biases": spaced(LIMITED, bias=False), "no conv bias": spaced(LIMITED, conv_bias=False), "eps": replace(LIMITED, eps=1e-3),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_config_is_seen(usual: Family, wrong: str) -> None:
    usual.sees(mamba2.plan(WRONG[wrong]))


@pytest.mark.parametrize("wrong", WRONG_LIMITED)
def test_a_wrong_config_with_limits_is_seen(limited: Family, wrong: str) -> None:
    limited.sees(mamba2.plan(WRONG_LIMITED[wrong]))


PLANS = {
    "no activation": changed(mamba2.plan(CONFIG), p.Conv, activation=p.Activation.NONE),
    "dt bias ignored": changed(mamba2.plan(CONFIG), p.Scan, dt_bias=None),
    "D dropped": changed(mamba2.plan(CONFIG), p.Scan, d=None),
    "D and the dt bias swapped": changed(mamba2.plan(CONFIG), p.Scan, lambda op: [replace(op, d=op.dt_bias, dt_bias=op.d)]),
    "gate after the norm": changed(mamba2.plan(CONFIG), p.GatedNorm, gate_last=True),
    "norm over everything": changed(mamba2.plan(CONFIG), p.GatedNorm, groups=1),
    "norm by heads": changed(mamba2.plan(CONFIG), p.GatedNorm, groups=6),
    "gate of another place": changed(mamba2.plan(CONFIG), p.GatedNorm, first=16),
    "steps of other heads": changed(mamba2.plan(CONFIG), p.Scan, lambda op: [replace(op, first=op.first - 1)]),
    "convolved from another place": changed(mamba2.plan(CONFIG), p.Conv, lambda op: [replace(op, first=op.first - 1)]),
    "no gate": changed(mamba2.plan(CONFIG), p.GatedNorm, gate="xbc"),
}


@pytest.mark.parametrize("wrong", PLANS)
def test_a_wrong_plan_is_seen(usual: Family, wrong: str) -> None:
    usual.sees(PLANS[wrong])


def a_positive(values: np.ndarray) -> np.ndarray:
    return -values


def a_as_its_logarithm(values: np.ndarray) -> np.ndarray:
    return np.log(-values)


def shifted(values: np.ndarray) -> np.ndarray:
    """Each kernel one input late."""
    return np.roll(values.reshape(-1, 4), 1, 1).ravel()


def turned(values: np.ndarray) -> np.ndarray:
    """Newest input first."""
    return values.reshape(-1, 4)[:, ::-1].ravel().copy()


def taps_first(values: np.ndarray) -> np.ndarray:
    return values.reshape(4, -1).T.ravel().copy()


def b_and_c_swapped(values: np.ndarray) -> np.ndarray:
    """Rows of the input projection: z, x, B, C, dt."""
    z, x, b, c, dt = np.split(values, np.cumsum([96, 96, 32, 32]))
    return np.concatenate([z, x, c, b, dt])


def groups_swapped(values: np.ndarray) -> np.ndarray:
    """B and C of the other group: head h reads h % groups."""
    z, x, b, c, dt = np.split(values, np.cumsum([96, 96, 32, 32]))
    return np.concatenate([z, x, np.roll(b, 16, 0), np.roll(c, 16, 0), dt])


def x_and_z_swapped(values: np.ndarray) -> np.ndarray:
    z, x, rest = np.split(values, [96, 192])
    return np.concatenate([x, z, rest])


@pytest.mark.parametrize("wrong, name", [
    (a_positive, "ssm_a"), (a_as_its_logarithm, "ssm_a"), (shifted, "ssm_conv1d.weight"), (turned, "ssm_conv1d.weight"),
    (taps_first, "ssm_conv1d.weight"), (b_and_c_swapped, "ssm_in.weight"), (groups_swapped, "ssm_in.weight"),
    (x_and_z_swapped, "ssm_in.weight")])
def test_wrong_weights_are_seen(usual: Family, wrong, name: str) -> None:
    values = read(usual.reference, mamba2, CONFIG)
    for key in values:
        if key.endswith(name):
            values[key] = np.ascontiguousarray(wrong(values[key]), np.float32)
    usual.sees(usual.plan, stored(usual.plan, values))


# ---- configs and files ----

def test_config_json_says_what_the_model_is(made: Family, request) -> None:
    found = mamba2.from_hf(Metadata(made.reference.config.to_dict(), "config.json"), {})
    assert replace(found, context=256) == CONFIGS[request.node.callspec.params["made"]]


def test_what_config_json_leaves_out() -> None:
    found = mamba2.from_hf(Metadata({"model_type": "mamba2"}, "config.json"), {})
    wanted = mamba2.tiny(layers=64, width=4096, vocab=32768, heads=128, head_dim=64, groups=8, numbers=128,
                         context=mamba2.NO_LIMIT, tied=False)
    assert found == wanted


@pytest.mark.parametrize("key, value, says", [
    ("num_heads", 7, "not hidden_size"), ("head_dim", 63, "not hidden_size"), ("n_groups", 3, "divide"),
    ("n_groups", 0, "n_groups"),
    ("state_size", 1 << 20, "state_size"), ("conv_kernel", 1, "conv_kernel"), ("conv_kernel", 17, "conv_kernel"),
    ("time_step_limit", [0.1], "time_step_limit"), ("time_step_limit", [0.2, 0.1], "time_step_limit"),
    ("time_step_limit", [float("nan"), 1.0], "time_step_limit"), ("time_step_limit", "all", "time_step_limit"),
    ("time_step_limit", [-1.0, 1.0], "time_step_limit"), ("hidden_act", "relu", "known: silu"), ("use_bias", 1, "use_bias")])
def test_bad_config_json(key: str, value: object, says: str) -> None:
    with pytest.raises(ModelInvalid, match=f"config.json.*{says}"):
        mamba2.from_hf(Metadata({key: value}, "config.json"), {})


BASE = {"mamba2.embedding_length": 48, "mamba2.block_count": 2, "mamba2.context_length": 256, "mamba2.ssm.conv_kernel": 4,
        "mamba2.ssm.inner_size": 96, "mamba2.ssm.state_size": 16, "mamba2.ssm.time_step_rank": 6, "mamba2.ssm.group_count": 2}


@pytest.mark.parametrize("key, value, says", [
    ("ssm.inner_size", 97, "divide"), ("ssm.group_count", 4, "divide"), ("ssm.time_step_rank", 0, "time_step_rank"),
    ("ssm.state_size", None, "state_size"), ("ssm.conv_kernel", 1 << 30, "conv_kernel"), ("block_count", 0, "block_count")])
def test_bad_metadata(key: str, value: object, says: str) -> None:
    shapes = {"token_embd.weight": (211, 48), "output.weight": (211, 48), "blk.0.ssm_conv1d.bias": (160,)}
    assert mamba2.from_gguf(Metadata(BASE, "file"), shapes, lambda name: ()) == CONFIG
    with pytest.raises(ModelInvalid, match=f"file.*{says}"):
        mamba2.from_gguf(Metadata(BASE | {f"mamba2.{key}": value}, "file"), shapes, lambda name: ())


def write_gguf(path: Path, config: ModelConfig, values: dict[str, np.ndarray]) -> Path:
    """The file as llama.cpp's converter writes it, F32, without a tokenizer."""
    s = config.state_space
    out = gguf.GGUFWriter(path, "mamba2")
    out.add_context_length(config.context)
    out.add_embedding_length(config.width)
    out.add_feed_forward_length(0)
    out.add_head_count(0)
    out.add_block_count(config.layers)
    out.add_ssm_conv_kernel(s.taps)
    out.add_ssm_inner_size(s.heads * s.head_dim)
    out.add_ssm_state_size(s.numbers)
    out.add_ssm_time_step_rank(s.heads)
    out.add_ssm_group_count(s.groups)
    out.add_layer_norm_rms_eps(config.eps)
    for name, value in values.items():
        if name.endswith("conv1d.weight"):
            value = value.reshape(-1, s.taps)
        elif name.endswith(("ssm_a", "ssm_d")):
            value = value.reshape(-1, 1)
        elif name.endswith("ssm_norm.weight"):
            value = value.reshape(s.groups, -1)
        out.add_tensor(name, value)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def test_a_gguf_file_equals_transformers(usual: Family, tmp_path: Path) -> None:
    with GGUFModel(write_gguf(tmp_path / "m.gguf", CONFIG, read(usual.reference, mamba2, CONFIG))) as file:
        found = mamba2.from_gguf(file.metadata, file.shapes, file.vector)
        assert replace(found, eps=CONFIG.eps) == CONFIG and found.eps == np.float32(CONFIG.eps)
        plan = mamba2.plan(found)
        weights = load_weights(plan.weights, file, threads=1)
        assert set(file.tensors) == {w.name for w in plan.weights}
    for kind in KINDS:
        Family(usual.reference, plan, weights).same_in(kind, [LENGTH])


def test_a_vector_has_the_shapes_its_weight_names() -> None:
    conv, a = p.Weight("w", 12, shape=(3, 4)), p.Weight("a", 6)
    assert conv.fits((3, 4)) and conv.fits((12,)) and conv.fits((3, 1, 4)) and a.fits((6, 1)) and p.Weight("one", 1).fits((1, 1))
    assert not conv.fits((4, 3)) and not conv.fits((2, 6)) and not a.fits((3, 2)) and not p.Weight("m", 6, 1).fits((6,))


def test_block_formats_and_low_memory() -> None:
    """Matrices in blocks, packed or left in the file, any threads and chunks: the same bits."""
    plan, rng = mamba2.plan(mamba2.tiny(width=64, heads=8, head_dim=16)), np.random.default_rng(2)
    formats = {w.name: "Q8_0" for w in plan.weights if w.k}
    values, ids = random_values(plan, 4), rng.integers(0, plan.vocab, LENGTH).tolist()
    outs = [logits(native_backend(plan, stored(plan, values, formats, low_memory=low), pages=12, threads=threads), ids, chunks)
            for low, threads, chunks in ((False, 1, [LENGTH]), (True, 2, [1] * LENGTH), (False, 2, [3, 17, 20]))]
    assert np.array_equal(outs[0], outs[1]) and np.array_equal(outs[0], outs[2])


def test_a_folder_equals_transformers(usual: Family, tmp_path: Path) -> None:
    """As `transformers` saves it: infinite limits in config.json, kernels as [channels][1][taps], A by its logarithm."""
    usual.reference.save_pretrained(tmp_path)
    with FolderModel(tmp_path) as folder:
        found = folder.config()
        assert replace(found, context=CONFIG.context) == CONFIG
        plan = mamba2.plan(found)
        weights = load_weights(plan.weights, folder.source(plan, found), threads=1)
    for kind in KINDS:
        Family(usual.reference, plan, weights).same_in(kind, [LENGTH])
