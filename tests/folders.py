"""Hugging Face folders for tests: of our own tiny llama, and of random models of `transformers`."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from reference_models import random_values
from tiny_model import CHATML, SPECIAL, tiny_config, tokenizer_metadata

from pyruntime.models import llama


def write_json(path: Path, values: Any) -> Path:
    path.write_text(json.dumps(values))
    return path


def tokenizer_json() -> dict[str, Any]:
    """The tiny model's tokenizer as the `tokenizers` package writes it."""
    meta: Any = tokenizer_metadata()
    tokens = meta["tokenizer.ggml.tokens"]
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": [{"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
                          "special": True} for i, text in enumerate(SPECIAL)],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {token: i for i, token in enumerate(tokens)}, "merges": list(meta["tokenizer.ggml.merges"])},
    }


def write_tokenizer(folder: Path) -> None:
    write_json(folder / "tokenizer.json", tokenizer_json())
    write_json(folder / "tokenizer_config.json", {"bos_token": SPECIAL[1], "eos_token": SPECIAL[2], "chat_template": CHATML})


def halves(w: np.ndarray, heads: int) -> np.ndarray:
    """GGUF's order of a head's rows (interleaved pairs) -> Hugging Face's (halves)."""
    return np.ascontiguousarray(w.reshape(heads, -1, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape))


def tiny_folder(folder: Path, *, seed: int = 0, tokenizer: bool = True, dtype: type = np.float32, prefix: str = "model.",
                generation: dict[str, Any] | None = None, **fields: Any) -> Path:
    """The model that `write_tiny(seed)` writes as GGUF, in unquantized numbers, as a folder."""
    folder.mkdir(exist_ok=True)
    config = tiny_config(**fields)
    write_json(folder / "config.json", {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": config.vocab, "hidden_size": config.width,
        "intermediate_size": config.hidden, "num_hidden_layers": config.layers, "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads, "head_dim": config.head_dim, "max_position_embeddings": config.context,
        "rms_norm_eps": config.eps, "rope_theta": config.rope_theta, "tie_word_embeddings": config.tied, "hidden_act": "silu",
        "rope_scaling": None, "bos_token_id": 1, "eos_token_id": 2})
    recipes, tensors = llama.hf_weights(config), {}
    for name, value in random_values(llama.plan(config), seed).items():
        if ".attn_q." in name or ".attn_k." in name:
            value = halves(value, config.heads if ".attn_q." in name else config.kv_heads)
        there = recipes[name].tensor    # type: ignore[union-attr]
        tensors[there if there.startswith("lm_head") else prefix + there] = value.astype(dtype)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    if tokenizer:
        write_tokenizer(folder)
    if generation is not None:
        write_json(folder / "generation_config.json", generation)
    return folder
