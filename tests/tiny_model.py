"""A whole model of a few hundred kilobytes: random llama weights, a byte-level BPE tokenizer, a chat template."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from reference_models import random_values

from pyruntime import quant
from pyruntime.config import ModelConfig
from pyruntime.models import llama, mamba2
from pyruntime.tokenizer import Tokenizer
from pyruntime.weights.gguf_writer import Tensor, write_gguf

PIECES = ("th", "he", "in", "er", "an", "on", "at", "en", "the", "and", "ing", "Ġthe", "Ġand", "Ġa", "Ġin", "ll", "Ġhe", "Ġhell",
          "Ġw", "or", "ld", "Ġwor", "Ġworld", "Ġon", "Ġthat")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
          "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


def byte_letters() -> list[str]:
    """GPT-2's printable letter for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters, free = {b: chr(b) for b in plain}, iter(range(256, 512))
    return [letters.get(b) or chr(next(free)) for b in range(256)]


def tokenizer_metadata() -> dict[str, object]:
    """tokenizer.* of a GGUF: the bytes, some merges, ChatML's special tokens (they come first)."""
    tokens, merges = [*SPECIAL, *byte_letters()], []
    for piece in PIECES:
        parts = [piece[:i] for i in range(len(piece) - 1, 0, -1) if piece[:i] in tokens and piece[i:] in tokens]
        if not parts:
            continue
        merges.append(f"{parts[0]} {piece[len(parts[0]):]}")
        tokens.append(piece)
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": merges, "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.token_type": np.array([3] * 3 + [1] * (len(tokens) - 3), np.int32),
        "tokenizer.ggml.add_bos_token": False, "tokenizer.chat_template": CHATML,
    }


def tiny_tokenizer() -> Tokenizer:
    """The tokenizer alone."""
    return Tokenizer.from_gguf_metadata(tokenizer_metadata())


def tiny_config(**fields: object) -> ModelConfig:
    """llama.tiny with as many tokens as the tokenizer has."""
    return replace(llama.tiny(), vocab=tiny_tokenizer().vocab_size, **fields)


def write_tiny_mamba(path: Path, *, seed: int = 0, **fields: object) -> Path:
    """The same with Mamba-2: no attention, no pages. Matrices Q8_0, vectors F32 as converters shape them."""
    config = replace(mamba2.tiny(width=64, heads=8, tied=False, **fields), vocab=tiny_tokenizer().vocab_size)
    plan, space = mamba2.plan(config), config.state_space
    assert space is not None
    metadata: dict[str, object] = {
        "general.architecture": "mamba2", "general.name": "tiny mamba", "mamba2.block_count": config.layers,
        "mamba2.context_length": config.context, "mamba2.embedding_length": config.width, "mamba2.ssm.conv_kernel": space.taps,
        "mamba2.ssm.inner_size": space.heads * space.head_dim, "mamba2.ssm.state_size": space.numbers,
        "mamba2.ssm.time_step_rank": space.heads, "mamba2.ssm.group_count": space.groups,
        "mamba2.attention.layer_norm_rms_epsilon": config.eps, **tokenizer_metadata(),
    }
    shapes = {w.name: w.shape or ((w.rows, 1) if w.name.endswith(("ssm_a", "ssm_d")) else (w.rows,))
              for w in plan.weights if not w.k}
    tensors = []
    for name, values in random_values(plan, seed).items():
        format = "F32" if name in shapes else "Q8_0"
        tensors.append(Tensor(name, format, shapes.get(name, values.shape), quant.FORMATS[format].quantize(values)))
    write_gguf(path, metadata, tensors)
    return path


def write_tiny(path: Path, *, seed: int = 0, formats: tuple[str, ...] = ("Q8_0", "Q4_0", "Q4_1", "F16"),
               extra: dict[str, object] | None = None, more_tensors: dict[str, np.ndarray] | None = None, **fields: object) -> Path:
    """Write the GGUF. Matrices take `formats` in turn, the embedding Q8_0, vectors F32. `extra` metadata of None leaves out."""
    config = tiny_config(**fields)
    plan = llama.plan(config)
    metadata: dict[str, object] = {
        "general.architecture": "llama", "general.name": "tiny", "llama.block_count": config.layers,
        "llama.context_length": config.context, "llama.embedding_length": config.width,
        "llama.feed_forward_length": config.hidden, "llama.attention.head_count": config.heads,
        "llama.attention.head_count_kv": config.kv_heads, "llama.attention.key_length": config.head_dim,
        "llama.attention.layer_norm_rms_epsilon": config.eps, "llama.rope.freq_base": config.rope_theta,
        **tokenizer_metadata(), **(extra or {}),
    }
    tensors = [Tensor(name, "F32", values.shape, quant.FORMATS["F32"].quantize(values))
               for name, values in (more_tensors or {}).items()]
    for i, (name, values) in enumerate(random_values(plan, seed).items()):
        format = "F32" if values.ndim == 1 else "Q8_0" if name == "token_embd.weight" else formats[i % len(formats)]
        tensors.append(Tensor(name, format, values.shape, quant.FORMATS[format].quantize(values)))
    write_gguf(path, {key: value for key, value in metadata.items() if value is not None}, tensors)
    return path
