"""Tiny models for the server's tests: a GGUF file with random weights and a tokenizer of bytes, and a server over it."""
from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager

import numpy as np

from pyruntime.models import llama
from pyruntime.server import Server
from pyruntime.weights.gguf_writer import Tensor, write_gguf

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}{{ note }}")


def byte_tokens() -> list[str]:
    """The 256 bytes as byte-level BPE spells them."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b if b in plain else next(others)) for b in range(256)]


def write_tiny(path, *, seed: int = 0, context: int = 512, template: str | None = TEMPLATE, end: str = "<|im_end|>", **more):
    """A llama of a few thousand weights whose vocabulary is 256 bytes and three specials."""
    tokens = byte_tokens() + SPECIALS
    config = llama.tiny(vocab=len(tokens), context=context, layers=2, width=64, heads=4, kv_heads=2, head_dim=16, hidden=96)
    rng = np.random.default_rng(seed)
    tensors = []
    for w in llama.plan(config).weights:
        x = rng.standard_normal((w.rows, w.k) if w.k else (w.rows,)).astype(np.float32)
        x = x * (2.0 if w.rows == config.vocab else 1.2) / np.sqrt(w.k) if w.k else 1 + 0.2 * x
        tensors.append(Tensor(w.name, "F32", x.shape, x.astype(np.float32).reshape(-1).view(np.uint8)))
    write_gguf(path, {
        "general.architecture": "llama", "llama.block_count": config.layers, "llama.embedding_length": config.width,
        "llama.attention.head_count": config.heads, "llama.attention.head_count_kv": config.kv_heads,
        "llama.attention.key_length": config.head_dim, "llama.feed_forward_length": config.hidden,
        "llama.context_length": config.context, "llama.rope.dimension_count": config.head_dim,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": ["a b", "c d"][:0] or ["Ġ t"][:0],
        "tokenizer.ggml.token_type": np.array([1] * 256 + [3] * len(SPECIALS), np.int32),
        "tokenizer.ggml.eos_token_id": tokens.index(end), "tokenizer.ggml.bos_token_id": tokens.index("<|endoftext|>"),
        **({"tokenizer.chat_template": template} if template else {}), **more}, tensors)
    return path


@contextmanager
def serving(models, **options):
    """A running Server in an event loop of its own thread; yields it, its `address` bound, its models loaded."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def wait(work, timeout=60):
        return asyncio.run_coroutine_threadsafe(work, loop).result(timeout)

    async def make():
        server = Server(models, **options)
        await server.start()
        await server.loaded()
        return server

    server = wait(make())
    server.run = wait
    try:
        yield server
    finally:
        wait(server.stop(timeout=5))
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
