"""Quantized language models on ordinary CPUs.

    from pyruntime import LLM, SamplingParams
    with LLM("smollm2:135m") as llm:
        print(llm.chat([{"role": "user", "content": "Hi"}], SamplingParams(max_tokens=64)).text)

Names are imported when they are first used, so that `import pyruntime` costs nothing.
"""
from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from .version import VERSION as __version__

if TYPE_CHECKING:
    from .async_llm import AsyncLLM
    from .errors import (
        ContextLengthExceeded,
        EngineFailed,
        FieldInvalid,
        ModelInvalid,
        ModelNotFound,
        PyruntimeError,
        QueueFull,
    )
    from .llm import LLM
    from .loading import open_model
    from .types import Completion, Delta, FinishReason, SamplingParams, Timings, TokenLogprob, Usage

_HOMES = {
    "llm": ("LLM",),
    "async_llm": ("AsyncLLM",),
    "loading": ("open_model",),
    "types": ("SamplingParams", "Completion", "Delta", "FinishReason", "TokenLogprob", "Usage", "Timings"),
    "errors": ("PyruntimeError", "FieldInvalid", "ContextLengthExceeded", "ModelNotFound", "ModelInvalid", "QueueFull",
               "EngineFailed"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "LLM", "AsyncLLM", "Completion", "ContextLengthExceeded", "Delta", "EngineFailed", "FieldInvalid", "FinishReason",
    "ModelInvalid", "ModelNotFound", "PyruntimeError", "QueueFull", "SamplingParams", "Timings", "TokenLogprob", "Usage",
    "__version__", "open_model",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'pyruntime' has no attribute '{name}'")
    value = globals()[name] = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
