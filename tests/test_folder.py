"""Hugging Face folders: what `transformers` saves opens and computes the same; the same model from both formats agrees; recipes are
carried out as a plain reading of them; what lies in a folder is refused in one line."""
from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from family_checks import carried_out, logits, scattered
from folders import tiny_folder, tokenizer_json, write_json, write_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import tiny_config, write_tiny

from pyruntime import LLM, quant
from pyruntime.config import Metadata
from pyruntime.errors import FieldInvalid, ModelInvalid, ModelNotFound, PyruntimeError
from pyruntime.loading import kv_bytes_per_token, open_file, open_model
from pyruntime.models import hf_families, llama
from pyruntime.plan import Weight
from pyruntime.recipe import Taken
from pyruntime.weights import Weights, load_weights
from pyruntime.weights.folder import QUANTIZE, STAND_INS, FolderModel, FolderSource, read_json

LENGTH = 40
IDS = np.random.default_rng(5).integers(0, 200, LENGTH).tolist()
EXACT: dict[str, Any] = dict(precision="precise", threads=2, kv_format="f32", kv_tokens=512)


def all_logits(path: Path, **options: Any) -> np.ndarray:
    model = open_model(path, **{**EXACT, **options})
    try:
        return logits(model.backend, IDS, [LENGTH])
    finally:
        model.close()


def near(got: np.ndarray, want: np.ndarray) -> bool:
    return bool(want.std() >= 0.5 and np.abs(got - want).max() <= 1e-4 * max(1.0, np.abs(want).max()))


# ---- what transformers saves ----

SMALL = dict(vocab_size=211, hidden_size=96, intermediate_size=160, num_hidden_layers=3, num_attention_heads=6,
             num_key_value_heads=2, head_dim=16, max_position_embeddings=256, pad_token_id=0, bos_token_id=None, eos_token_id=2)
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 1e4,
          "original_max_position_embeddings": 32}
MODELS = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, tie_word_embeddings=False)),
    "llama-tied": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, tie_word_embeddings=True)),
    "llama-biases": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, attention_bias=True)),
    "llama-3": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, rope_parameters=LLAMA3)),
    "llama-linear": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(
        **SMALL, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4})),
    "mistral": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(
        **SMALL, sliding_window=None, attn_implementation="eager")),
    "mistral-window": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(
        **SMALL, sliding_window=7, attn_implementation="eager")),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(
        **{k: v for k, v in SMALL.items() if k != "head_dim"}, tie_word_embeddings=True)),
    "qwen2-window": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(
        **{k: v for k, v in SMALL.items() if k != "head_dim"}, use_sliding_window=True, sliding_window=7, max_window_layers=1,
        attn_implementation="eager")),
    "gemma3": lambda: transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(
        **SMALL, sliding_window=7, query_pre_attn_scalar=16, attn_implementation="eager",
        layer_types=["sliding_attention", "full_attention", "sliding_attention"])),
    "gemma2": lambda: transformers.Gemma2ForCausalLM(transformers.Gemma2Config(
        **SMALL, sliding_window=7, query_pre_attn_scalar=20, attn_logit_softcapping=2.0, final_logit_softcapping=4.0,
        attn_implementation="eager")),
    "gemma2-untied": lambda: transformers.Gemma2ForCausalLM(transformers.Gemma2Config(
        **SMALL, sliding_window=7, attn_logit_softcapping=None, final_logit_softcapping=None, tie_word_embeddings=False,
        hidden_activation="gelu", attn_implementation="eager")),
    "gpt2-untied": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=211, n_embd=96, n_layer=2, n_head=3, n_positions=64, n_inner=100, activation_function="gelu",
        scale_attn_weights=False, layer_norm_epsilon=1e-3, tie_word_embeddings=False, bos_token_id=None, eos_token_id=2)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=211, n_embd=96, n_layer=3, n_head=6, n_positions=256, bos_token_id=None, eos_token_id=2)),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folders that save_pretrained wrote, by name, and the logits of the model in them; each made once."""
    made: dict[str, tuple[Path, np.ndarray]] = {}

    def get(name: str) -> tuple[Path, np.ndarray]:
        if name not in made:
            torch.manual_seed(3)
            model = scattered(MODELS[name](), 7)
            folder = tmp_path_factory.mktemp(name)
            model.save_pretrained(folder)
            with torch.inference_mode():
                made[name] = folder, model(torch.tensor([IDS]), use_cache=False).logits[0].float().numpy()
        return made[name]
    return get


@pytest.mark.parametrize("name", MODELS)
def test_what_transformers_saves_computes_the_same(name: str, saved: Any) -> None:
    folder, want = saved(name)
    assert near(all_logits(folder), want)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_low_memory_and_torch_compute_the_same(name: str, saved: Any) -> None:
    folder, want = saved(name)
    assert near(all_logits(folder, low_memory=True), want)
    model = open_model(folder, backend="torch", kv_format="f32", kv_tokens=512)
    assert np.abs(logits(model.backend, IDS, [LENGTH]) - want).max() <= 0.02 * np.abs(want).max()    # its activations are rounded


def test_window_and_scaling_are_seen(saved: Any, tmp_path: Path) -> None:
    """The comparison can tell: a folder whose config says otherwise computes otherwise."""
    for name, change in (("mistral-window", {"sliding_window": None}), ("llama-3", {"rope_parameters": {"rope_theta": 1e4}}),
                         ("qwen2-window", {"max_window_layers": 0}), ("gemma2", {"attn_logit_softcapping": None}),
                         ("gemma2", {"layer_types": None, "sliding_window": 8}), ("gemma2", {"query_pre_attn_scalar": 16}),
                         ("gpt2-untied", {"activation_function": "gelu_new"}), ("gpt2-untied", {"scale_attn_weights": True})):
        folder, want = saved(name)
        other = tmp_path / f"{name} {next(iter(change))}"
        other.mkdir()
        (other / "model.safetensors").symlink_to(folder / "model.safetensors")
        write_json(other / "config.json", {**json.loads((folder / "config.json").read_text()), **change})
        assert not near(all_logits(other), want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_stay_sixteen(dtype: torch.dtype, saved: Any, tmp_path: Path) -> None:
    folder, _ = saved("llama")
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=dtype)
    model.save_pretrained(tmp_path)
    with torch.inference_mode():
        want = model.float()(torch.tensor([IDS]), use_cache=False).logits[0].numpy()
    opened = open_model(tmp_path, **EXACT)
    assert {w.format_name for w in opened.weights if w.k} == {"BF16" if dtype == torch.bfloat16 else "F16"}
    assert near(logits(opened.backend, IDS, [LENGTH]), want)
    opened.close()


def test_in_several_files(saved: Any, tmp_path: Path) -> None:
    folder, want = saved("llama")
    transformers.LlamaForCausalLM.from_pretrained(folder).save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2 and near(all_logits(tmp_path), want)


def test_names_without_prefix_and_masks(saved: Any, tmp_path: Path) -> None:
    """GPT-2's file as it was first published: no `transformer.`, masks among the weights; and a tied head that was saved too."""
    folder, want = saved("gpt2")
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    short = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    masks = {f"h.{i}.attn.bias": np.tril(np.ones((1, 1, 256, 256), np.float32)) for i in range(3)}
    safetensors.numpy.save_file({**short, **masks, "lm_head.weight": short["wte.weight"]}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    assert near(all_logits(tmp_path), want)


def test_gemma_3_beside_a_tower(saved: Any, tmp_path: Path) -> None:
    """The text part of a model with pictures: nested config, longer names, a tower that is not read."""
    folder, want = saved("gemma3")
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    for number, prefix in enumerate(("model.language_model.", "language_model.model.")):
        other = tmp_path / str(number)
        other.mkdir()
        renamed = {prefix + name.removeprefix("model."): value for name, value in tensors.items()}
        renamed["vision_tower.x"] = np.ones(3, np.int64)
        safetensors.numpy.save_file(renamed, other / "model.safetensors")
        write_json(other / "config.json", {"model_type": "gemma3", "text_config": config})
        assert near(all_logits(other), want)


# ---- the same model from both formats ----

def test_both_formats_agree(tmp_path: Path) -> None:
    """F32 safetensors and F32 GGUF: logits within 1e-4, and greedy text and tokens the same."""
    folder = tiny_folder(tmp_path / "f")
    file = write_tiny(tmp_path / "m.gguf", formats=("F32",))
    a, b = all_logits(folder), all_logits(file)
    embedding = quant.FORMATS["Q8_0"]    # the GGUF's embedding is Q8_0
    assert np.abs(a - b).max() > 0 and embedding is not None
    same = tmp_path / "same.gguf"
    write_same(folder, same)
    c = all_logits(same)
    assert np.abs(a - c).max() < 1e-4
    with LLM(folder, **EXACT) as one, LLM(same, **EXACT) as two:
        for text in ("Hello world", "the 12 and on"):
            x, y = one.generate(text, max_tokens=12, temperature=0.0), two.generate(text, max_tokens=12, temperature=0.0)
            assert (x.text, x.token_ids, x.prompt_token_ids) == (y.text, y.token_ids, y.prompt_token_ids)
        message = [{"role": "user", "content": "Hi"}]
        assert one.chat(message, max_tokens=4, temperature=0.0).prompt_token_ids == \
            two.chat(message, max_tokens=4, temperature=0.0).prompt_token_ids
        assert one.tokenizer.end_ids == two.tokenizer.end_ids


def write_same(folder: Path, path: Path) -> None:
    """The tiny folder's numbers as GGUF, all of them F32."""
    from reference_models import random_values
    from tiny_model import tokenizer_metadata

    from pyruntime.weights.gguf_writer import Tensor, write_gguf

    config = tiny_config()
    metadata = {
        "general.architecture": "llama", "llama.block_count": config.layers, "llama.context_length": config.context,
        "llama.embedding_length": config.width, "llama.feed_forward_length": config.hidden,
        "llama.attention.head_count": config.heads, "llama.attention.head_count_kv": config.kv_heads,
        "llama.attention.key_length": config.head_dim, "llama.attention.layer_norm_rms_epsilon": config.eps,
        "llama.rope.freq_base": config.rope_theta, **tokenizer_metadata()}
    values = random_values(llama.plan(config), 0)
    write_gguf(path, metadata, [Tensor(n, "F32", v.shape, quant.FORMATS["F32"].quantize(v)) for n, v in values.items()])


# ---- recipes ----

@st.composite
def taken(draw: Any) -> tuple[Taken, tuple[int, ...]]:
    """A recipe and the shape of a tensor that it fits."""
    k, blocks, every = draw(st.sampled_from([1, 5, 32, 64])), draw(st.integers(1, 3)), draw(st.integers(1, 20))
    transpose, whole = draw(st.booleans()), draw(st.booleans())
    first = 0 if whole else draw(st.integers(0, every - 1))
    last = every if whole else draw(st.integers(first + 1, every))
    rows = every * blocks
    shape: tuple[int, ...] = (k, rows) if transpose else (rows, k)
    stack = draw(st.none() | st.integers(1, 3))
    at = None if stack is None else draw(st.integers(0, stack - 1))
    made = Taken("t", at=at, transpose=transpose, rows=None if whole else (first, last), every=0 if whole else every,
                 neg_exp=draw(st.booleans()), plus=draw(st.sampled_from([0.0, 1.0, -0.5])))
    return made, shape if stack is None else (stack, *shape)


@settings(max_examples=60, deadline=None)
@given(several=st.lists(taken(), min_size=1, max_size=3), dtype=st.sampled_from(["F32", "F16"]), seed=st.integers(0, 99),
       low_memory=st.booleans())
def test_recipes_are_carried_out(several: list, dtype: str, seed: int, low_memory: bool, tmp_path_factory: Any) -> None:
    """Packed, left in the file, or as a vector: the values of a plain reading of the recipe."""
    k = several[0][1][-2 if several[0][0].transpose else -1]
    rng, state, recipe = np.random.default_rng(seed), {}, []
    for i, (one, shape) in enumerate(several):
        if shape[-2 if one.transpose else -1] == k:
            state[f"t{i}"] = rng.standard_normal(shape).astype(np.float32 if dtype == "F32" else np.float16)
            recipe.append(Taken(f"t{i}", one.at, one.transpose, one.rows, one.every, False, one.neg_exp, one.plus))
    want = np.concatenate([carried_out(one, {n: v.astype(np.float32) for n, v in state.items()}) for one in recipe])
    folder = tmp_path_factory.mktemp("recipe")
    safetensors.numpy.save_file(state, folder / "model.safetensors")
    write_json(folder / "config.json", {"model_type": "llama"})
    with FolderModel(folder) as model:
        weights = [Weight("m", len(want), k), Weight("v", want.size)]
        source = FolderSource(model, weights, {w.name: tuple(recipe) for w in weights})
        for stored in load_weights(weights, source, low_memory=low_memory, threads=2):
            assert np.array_equal(stored.f32().reshape(want.shape), want)


def test_blocks_are_turned(tmp_path: Path) -> None:
    """`turn`: what is taken of each block of rows is transposed."""
    x = np.random.default_rng(1).standard_normal((6, 4)).astype(np.float32)
    safetensors.numpy.save_file({"t": x}, tmp_path / "model.safetensors")
    write_json(tmp_path / "config.json", {"model_type": "llama"})
    with FolderModel(tmp_path) as model:
        source = FolderSource(model, [Weight("m", 8, 2)], {"m": Taken("t", rows=(0, 2), every=3, turn=True)})
        want = x.reshape(2, 3, 4)[:, :2].swapaxes(1, 2).reshape(8, 2)
        assert np.array_equal(load_weights([Weight("m", 8, 2)], source)["m"].f32(), want)


@pytest.mark.parametrize("recipe, match", [
    (Taken("t", rows=(0, 9)), "the model needs rows 0 to 9 of each 8"), (Taken("t", rows=(3, 3)), "rows 3 to 3"),
    (Taken("t", rows=(-1, 3)), "rows -1 to 3"), (Taken("t", every=3), "rows 0 to 3 of each 3"),
    (Taken("t", at=8), "8 x 6, the model"),
    (Taken("t", at=-1), "8 x 6, the model"), (Taken("t"), "t at byte .* is 8 x 6, the model needs 8 x 5"),
    (Taken("u"), "tensor u is missing"), (Taken("i"), "tensor i is stored as I64"), (Taken("e"), "tensor e at byte .* is 0 x 5")])
def test_recipes_that_do_not_fit(recipe: Taken, match: str, tmp_path: Path) -> None:
    tensors = {"t": np.ones((8, 6), np.float32), "i": np.ones((8, 5), np.int64), "e": np.ones((0, 5), np.float32)}
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    write_json(tmp_path / "config.json", {"model_type": "llama"})
    with FolderModel(tmp_path) as model, pytest.raises(ModelInvalid, match=match):
        model.module.HF_SKIPPED, skipped = ("*",), model.module.HF_SKIPPED
        try:
            FolderSource(model, [Weight("m", 8, 5)], {"m": recipe})
        finally:
            model.module.HF_SKIPPED = skipped


# ---- quantized while loading ----

@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("wide") / "f", hidden=256)


def read_weights(folder: Path, quantize: str | None = None) -> tuple[Weights, tuple[str, ...]]:
    with FolderModel(folder) as model:
        config = model.config()
        plan = model.module.plan(config)
        source = model.source(plan, config, quantize)
        return load_weights(plan.weights, source, threads=2), source.notes


@pytest.mark.parametrize("asked", QUANTIZE)
def test_quantized_while_loading(asked: str, wide: Path) -> None:
    """Matrices become what the quantizer makes of them, vectors stay; rows of no whole blocks take the stand-in, and it is said."""
    format = QUANTIZE[asked]
    (plain, _), (made, notes) = read_weights(wide), read_weights(wide, asked)
    assert any(w.k == 256 for w in made)
    for w in made:
        exact, name = plain[w.name].f32(), w.format_name
        if not w.k:
            assert name == "F32" and np.array_equal(w.f32(), exact)
            continue
        assert name == (format if w.k == 256 else STAND_INS.get(format, format))
        if format not in STAND_INS or w.k != 256:
            blocks = gguf.quants.quantize(exact, gguf.GGMLQuantizationType[name])
            assert np.array_equal(w.f32(), gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name]))
        else:
            twin = quant.FORMATS[name]
            rounded = twin.dequantize(twin.quantize(exact), exact.shape)
            assert ((w.f32() - exact) ** 2).sum() <= ((rounded - exact) ** 2).sum()
    assert bool(notes) == (format in STAND_INS) and all(STAND_INS[format] in note and "96" in note for note in notes)


def test_what_cannot_be_quantized(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "f")
    with pytest.raises(FieldInvalid, match="quantize is 'q9'; known: q8_0"):
        open_model(folder, quantize="q9")
    with pytest.raises(FieldInvalid, match="choose one"):
        open_model(folder, quantize="q8_0", low_memory=True)
    with pytest.raises(FieldInvalid, match="quantize is for folders"):
        open_model(write_tiny(tmp_path / "m.gguf"), quantize="q8_0")
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"].copy()
    tensors["model.layers.1.mlp.up_proj.weight"][5, 6] = np.nan
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelInvalid, match="safetensors: tensor model.layers.1.mlp.up_proj.weight holds a value that is not"):
        open_model(folder, quantize="q4_k")


MEMORY = """
import resource, sys
from pyruntime.loading import open_model
def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) << 10
open("/proc/self/clear_refs", "w").write("5")
before = peak()
model = open_model(sys.argv[1], kv_tokens=64, quantize=sys.argv[2], threads=2)
print(peak() - before, model.weights.nbytes)
"""


def test_no_model_in_f32_beside_the_packed_one(tmp_path: Path) -> None:
    """100 MB of bf16 numbers, turned and quantized: the peak stays below the packed weights, a tensor and some pieces."""
    width, layers = 1024, 4
    config = {"model_type": "gpt2", "n_embd": width, "n_layer": layers, "n_head": 16, "vocab_size": 1000, "n_positions": 64,
              "tie_word_embeddings": True}
    write_json(tmp_path / "config.json", config)
    shapes = {"wte.weight": (1000, width), "wpe.weight": (64, width), "ln_f.weight": (width,), "ln_f.bias": (width,)}
    for i in range(layers):
        shapes |= {f"h.{i}.ln_{n}.{p}": (width,) for n in (1, 2) for p in ("weight", "bias")}
        for name, k, rows in (("attn.c_attn", 1, 3), ("attn.c_proj", 1, 1), ("mlp.c_fc", 1, 4), ("mlp.c_proj", 4, 1)):
            shapes |= {f"h.{i}.{name}.weight": (k * width, rows * width), f"h.{i}.{name}.bias": (rows * width,)}
    tensors = {name: torch.full(shape, 0.5, dtype=torch.bfloat16) for name, shape in shapes.items()}
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    done = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path), "q8_0"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    grown, packed = map(int, done.stdout.split())
    whole = 4 * sum(int(np.prod(s)) for s in shapes.values())
    assert grown < packed + (90 << 20) < packed + whole / 2


# ---- text, or none ----

def test_a_folder_with_everything(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "SmolTest-1.7B", generation={"temperature": 0.3, "top_k": 7, "eos_token_id": [2, 9], "x": 1})
    with LLM(folder, kv_tokens=256) as llm:
        assert llm.model.name == "SmolTest-1.7B" and llm.model.defaults == {"temperature": 0.3, "top_k": 7}
        assert llm.tokenizer.end_ids[0] == 2 and 9 in llm.tokenizer.end_ids
        assert llm.detokenize(llm.tokenize("Hello world")) == "Hello world"


@pytest.mark.parametrize("how", ["jinja", "vocab and merges"])
def test_other_places_of_a_template_and_tokens(how: str, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "f")
    whole = open_file(folder).tokenizer()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    template = config.pop("chat_template")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(template)
    if how != "jinja":
        model = tokenizer_json()["model"]
        (folder / "tokenizer.json").unlink()
        write_json(folder / "vocab.json", model["vocab"])
        (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(model["merges"]) + "\n")
    found = open_file(folder).tokenizer()
    assert found.chat_template == template == whole.chat_template
    assert found.encode("the world and on") == whole.encode("the world and on")


@pytest.mark.parametrize("value", ["x", [1, -2], [True], {}, 1.5, 2**40])
def test_end_ids_of_a_folder_without_tokenizer(value: Any, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "f", tokenizer=False)
    assert open_file(folder).tokenizer().end_ids == [2]
    write_json(folder / "generation_config.json", {"eos_token_id": [5, 7]})
    assert open_file(folder).tokenizer().end_ids == [5, 7]
    write_json(folder / "generation_config.json", {"eos_token_id": value})
    with pytest.raises(ModelInvalid, match="generation_config.json: 'eos_token_id' is .*; it must be a token id"):
        open_model(folder)


def test_without_tokenizer_ids_go_in_and_come_out(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "f", tokenizer=False)
    with LLM(folder, **EXACT) as llm, LLM(tiny_folder(tmp_path / "g"), **EXACT) as other:
        answer = llm.generate(IDS[:9], max_tokens=8, temperature=0.0)
        assert answer.token_ids == other.generate(IDS[:9], max_tokens=8, temperature=0.0).token_ids and answer.text == ""
        for use in (lambda: llm.generate("Hi"), lambda: llm.tokenize("Hi"), lambda: llm.detokenize([1]),
                    lambda: llm.chat([{"role": "user", "content": "Hi"}])):
            with pytest.raises(FieldInvalid, match="f has no tokenizer .*; give token ids, not text"):
                use()
        with pytest.raises(FieldInvalid, match="stop is text, and this model has no tokenizer"):
            llm.generate(IDS[:4], stop=["x"])


def test_the_server_without_tokenizer(tmp_path: Path) -> None:
    from server_fixture import serving

    from pyruntime.client import Client

    folder = tiny_folder(tmp_path / "f", tokenizer=False)
    with LLM(folder, kv_tokens=256) as llm, serving({"m": llm}) as server, Client(server.address) as client:
        assert len(client.generate(IDS[:4], max_tokens=3, token_ids=True).candidates[0].token_ids) == 3
        message = [{"role": "user", "content": "Hi"}]
        for call in (lambda: client.generate("Hi"), lambda: client.tokenize("Hi"), lambda: client.chat(message)):
            with pytest.raises(PyruntimeError, match="has no tokenizer"):
                call()


# ---- what inspect says ----

def say(*words: str) -> tuple[int, str, str]:
    done = subprocess.run([sys.executable, "-m", "pyruntime", *words], capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


def test_the_commands_take_folders(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "f")
    code, out, err = say("run", str(folder), "Hello", "-n", "3", "--temperature", "0", "--quantize", "q4_k", "--json")
    assert code == 0 and len(json.loads(out)["token_ids"]) == 3 and "note: " in err and "stored as Q5_0" in err
    code, out, err = say("inspect", str(folder), "--tensors")
    assert code == 0 and "safetensors" in out and "model.layers.0.mlp.up_proj.weight" in out, err
    code, out, _ = say("tokenize", str(folder), "Hello world", "--json")
    assert code == 0 and json.loads(out)["text"] == "Hello world"
    (tmp_path / "text").write_text("the world and the world on that hell")
    code, out, err = say("perplexity", str(folder), "--file", str(tmp_path / "text"), "--quantize", "q8_0", "--json")
    assert code == 0 and json.loads(out)["perplexity"] > 1, err
    bare = tiny_folder(tmp_path / "bare", tokenizer=False)
    code, out, err = say("run", str(bare), "--ids", "5, 6 7", "-n", "3", "--temperature", "0")
    assert code == 0 and len(out.split()) == 3 and all(word.isdecimal() for word in out.split()), err
    for wrong, told in ((("5 x7",), "'x7' is no token id"), (("5", "--chat"), "choose one"), (("99999999",), "99999999")):
        code, _, err = say("run", str(bare), "--ids", *wrong, "-n", "3")
        assert code == 2 and told in err and len(err.strip().splitlines()) == 1, err
    for words in (("run", str(bare), "Hello"), ("tokenize", str(bare), "Hello")):
        code, _, err = say(*words)
        assert code == 2 and "has no tokenizer" in err and len(err.strip().splitlines()) == 1


def sparse(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A safetensors file of zeros in F32 that takes no room."""
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape, dtype=object))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + at)


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_gpt2_of_160_tensors(prefix: str, tmp_path: Path) -> None:
    """The published file's shapes: 160 tensors, of which 12 are masks."""
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (50257, 768), "wpe.weight": (1024, 768), "ln_f.weight": (768,),
                                          "ln_f.bias": (768,)}
    for i in range(12):
        shapes |= {f"h.{i}.ln_{n}.{p}": (768,) for n in (1, 2) for p in ("weight", "bias")}
        shapes[f"h.{i}.attn.bias"] = (1, 1, 1024, 1024)
        for name, k, rows in (("attn.c_attn", 768, 2304), ("attn.c_proj", 768, 768), ("mlp.c_fc", 768, 3072),
                              ("mlp.c_proj", 3072, 768)):
            shapes |= {f"h.{i}.{name}.weight": (k, rows), f"h.{i}.{name}.bias": (rows,)}
    assert len(shapes) == 160
    sparse(tmp_path / "model.safetensors", {prefix + name: shape for name, shape in shapes.items()})
    write_json(tmp_path / "config.json", {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024,
                                          "vocab_size": 50257, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5})
    code, out, err = say("inspect", str(tmp_path), "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert (facts["tensor_count"], facts["parameters"]) == (148, 124_439_808)
    assert facts["memory"]["kv_bytes_per_token"] == 36_864 and facts["formats"][0]["tensors"] == 148
    assert facts["config"]["activation"] == "gelu_tanh"


@pytest.mark.parametrize("layers, heads, kv_heads, bytes_", [(32, 32, 32, 524_288), (80, 64, 8, 327_680)])
def test_cache_bytes_of_a_token(layers: int, heads: int, kv_heads: int, bytes_: int) -> None:
    config = {"model_type": "llama", "hidden_size": heads * 128, "intermediate_size": 128, "num_hidden_layers": layers,
              "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": 32000}
    assert kv_bytes_per_token(llama.plan(llama.from_hf(Metadata(config, "config.json"), {}))) == bytes_


# ---- what lies ----

def broken(folder: Path, name: str, content: bytes | None) -> Path:
    path = folder / name
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)
    return folder


INDEX = "model.safetensors.index.json"
LIES: dict[str, tuple[str, bytes | None, str]] = {
    "no config": ("config.json", None, "config.json: no such file"),
    "config is no JSON": ("config.json", b"{", "config.json: not readable as JSON"),
    "config is a list": ("config.json", b"[]", "config.json: it must hold a JSON object"),
    "config nests": ("config.json", b"[" * 100_000, "config.json: not readable as JSON"),
    "config has NaN": ("config.json", b'{"model_type": "llama", "hidden_size": NaN}', "'hidden_size' is nan; it must be"),
    "config has an infinity": (
        "config.json", b'{"model_type": "llama", "hidden_size": {"__float__": "Infinity"}}', "is inf; it must"),
    "config has a giant number": ("config.json", b'{"x": ' + b"9" * 10_000 + b"}", "config.json: not readable as JSON"),
    "config is no text": ("config.json", b'{"a": "\xff"}', "config.json: not readable as JSON"),
    "config has no type": ("config.json", b"{}", "'model_type' is missing"),
    "config's type is nobody's": ("config.json", b'{"model_type": "x"}', "model_type 'x' is not supported; known: "),
    "config's type is a number": ("config.json", b'{"model_type": 3}', "'model_type' is 3"),
    "weights are quantized": ("config.json", b'{"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}', "'gptq'"),
    "no weights": ("model.safetensors", None, "neither model.safetensors nor"),
    "weights lie": ("model.safetensors", bytes(7), "model.safetensors: 7 bytes are no safetensors file"),
    "tokenizer is no JSON": ("tokenizer.json", b"{", "tokenizer.json: not JSON"),
    "tokenizer config is no JSON": ("tokenizer_config.json", b"{", "tokenizer_config.json: not JSON"),
    "generation config lies": ("generation_config.json", b'{"top_p": 7}', "its sampling defaults are not usable"),
    "end id lies": ("generation_config.json", b'{"eos_token_id": "x"}', "eos_token_id: must be a token id, not 'x'"),
    "end id is negative": ("generation_config.json", b'{"eos_token_id": [1, -2]}', "eos_token_id: token id -2 is outside"),
}


@pytest.mark.parametrize("lie", LIES)
def test_each_lie_gets_one_line(lie: str, tmp_path: Path) -> None:
    name, content, match = LIES[lie]
    with pytest.raises(PyruntimeError, match=match) as caught:
        open_model(broken(tiny_folder(tmp_path / "f"), name, content), kv_tokens=64)
    assert "\n" not in str(caught.value) and isinstance(caught.value, (ModelInvalid, ModelNotFound))


@pytest.mark.parametrize("content, match", [
    (b"{}", "'weight_map' must tell"), (b'{"weight_map": {"a": 3}}', "'weight_map' must tell"),
    (b'{"weight_map": []}', "must tell"),
    (b'{"weight_map": {"a": "../x.safetensors"}}', "is no name of a .safetensors file beside it"),
    (b'{"weight_map": {"a": "/etc/passwd"}}', "is no name of"), (b'{"weight_map": {"a": "b/x.safetensors"}}', "is no name of"),
    (b'{"weight_map": {"a": "..safetensors"}}', "is no name of"),
    (b'{"weight_map": {"a": ".hidden.safetensors"}}', "is no name of"),
    (b'{"weight_map": {"a": "x.safetensors\\u0000"}}', "is no name of"), (b'{"weight_map": {"a": "lost.safetensors"}}', "names it"),
    (b'{"weight_map": {"a": "x.safetensors"}}', "tensor 'a' is not in x.safetensors"),
    (json.dumps({"weight_map": {f"t{i}": f"x{i}.safetensors" for i in range(1025)}}).encode(), "1025 files; at most 1024")])
def test_an_index_that_lies(content: bytes, match: str, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "f")
    (folder / "model.safetensors").rename(folder / "x.safetensors")
    with pytest.raises(PyruntimeError, match=match) as caught:
        open_model(broken(folder, INDEX, content))
    assert "\n" not in str(caught.value) and INDEX in str(caught.value)


def test_the_same_tensor_in_two_files(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "f")
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    (folder / "b.safetensors").write_bytes((folder / "a.safetensors").read_bytes())
    names = list(safetensors.numpy.load_file(folder / "a.safetensors"))
    write_json(folder / INDEX, {"weight_map": {name: f"{'ab'[i % 2]}.safetensors" for i, name in enumerate(names)}})
    with pytest.raises(ModelInvalid, match="is there twice"):
        open_model(folder)


def test_tensors_nobody_reads_and_tensors_that_lack(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "f")
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    safetensors.numpy.save_file({**tensors, "model.layers.0.extra": np.ones(3, np.float32)}, folder / "model.safetensors")
    with pytest.raises(ModelInvalid, match="tensor 'model.layers.0.extra' is no part of the 'llama' family"):
        open_model(folder)
    safetensors.numpy.save_file({n: v for n, v in tensors.items() if "up_proj" not in n}, folder / "model.safetensors")
    with pytest.raises(ModelInvalid, match="tensor layers.0.mlp.up_proj.weight is missing; the folder is incomplete"):
        open_model(folder)
    shorter = {n: v[:-1] if "embed_tokens" in n else v for n, v in tensors.items()}
    safetensors.numpy.save_file(shorter, folder / "model.safetensors")
    with pytest.raises(ModelInvalid, match=r"safetensors: tensor model.embed_tokens.weight at byte \d+ is .*, the model needs"):
        open_model(folder)


def test_parts_of_a_folder_point_to_it(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "f")
    for name in ("model.safetensors", "config.json"):
        with pytest.raises(ModelInvalid, match=f"name the folder, {folder}"):
            open_model(folder / name)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelNotFound, match="pickled weights are not read"):
        open_model(folder)


# ---- every number of a config ----

VALUES: tuple[Any, ...] = (-1, 0, 1, 2, 2**31, 2**63, 2**200, 0.5, -0.0, 1e300, float("nan"), float("inf"), "x", "", None, [], {},
                           True, False)


def keys_of(values: dict[str, Any], within: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every place in nested objects that has to do with text, lists' items left out."""
    found: list[tuple[str, ...]] = []
    for key, value in values.items():
        if key in ("id2label", "label2id", "vision_config"):
            continue
        found.append((*within, key))
        if isinstance(value, dict):
            found += keys_of(value, (*within, key))
    return found


def with_value(values: dict[str, Any], place: tuple[str, ...], value: Any) -> dict[str, Any]:
    return {**values, place[0]: value if len(place) == 1 else with_value(values[place[0]], place[1:], value)}


def config_of(model_type: str) -> dict[str, Any]:
    """What `transformers` takes for granted in a config of this type, small where that is a matter of layers."""
    few: dict[str, Any] = {"num_hidden_layers": 2}
    if model_type == "deepseek_v2":     # whose class takes for granted what no model has
        few |= {"moe_intermediate_size": 1408, "num_experts_per_tok": 6}
    config = transformers.AutoConfig.for_model(model_type, **({"text_config": few} if model_type == "gemma3" else few))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(config.to_json_string(use_diff=False))
        return read_json(Path(folder) / "config.json", 1 << 20)


@pytest.mark.parametrize("model_type", sorted(hf_families()))
def test_every_value_of_a_config(model_type: str) -> None:
    """Each key in turn takes values it cannot have: a typed error in one line, or a config with a plan that names its weights."""
    family = hf_families()[model_type]
    good = config_of(model_type)
    outcomes = {"refused": 0, "read": 0}
    for place in keys_of(good):
        for value in VALUES:
            try:
                config = family.from_hf(Metadata(with_value(good, place, value), "config.json"), {})
                plan = family.plan(config) if config.layers <= 128 else None
                assert plan is None or set(family.hf_weights(config)) == {w.name for w in plan.weights}
                outcomes["read"] += 1
            except ModelInvalid as error:
                assert str(error).startswith("config.json") and "\n" not in str(error), (place, value)
                outcomes["refused"] += 1
    assert outcomes["refused"] > 40 and outcomes["read"] > 40, outcomes


def test_a_config_that_does_not_fit_its_tensors(tmp_path: Path) -> None:
    """The same on files: whatever a number says, the folder is refused in one line or opens and answers."""
    folder = tiny_folder(tmp_path / "f", tokenizer=False)
    good = json.loads((folder / "config.json").read_text())
    opened = 0
    for number, place in enumerate(keys_of(good)):
        for value in VALUES[number % 3::3]:    # every value of every key: the test above
            (folder / "config.json").write_text(json.dumps(with_value(good, place, value)))
            try:
                with LLM(folder, kv_tokens=64, context=64, threads=1) as llm:
                    llm.generate([1, 2, 3], max_tokens=2)
                    opened += 1
            except PyruntimeError as error:
                assert "\n" not in str(error), (place, value)
    assert opened > 10


def test_the_tiny_tokenizer_is_the_package_s(tmp_path: Path) -> None:
    """tokenizer.json of these tests is one that the `tokenizers` package reads the same."""
    import tokenizers

    write_tokenizer(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ours = open_file(tiny_folder(tmp_path / "f")).tokenizer()
    assert theirs.encode("Hello the 12 worlds", add_special_tokens=False).ids == ours.encode("Hello the 12 worlds")
