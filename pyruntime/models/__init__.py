"""Model families: one file each, named after Hugging Face's `model_type`. The folder is the registry.

A family module has ARCHITECTURES (the `general.architecture` names it reads), `from_gguf(metadata, shapes, vector) -> ModelConfig`,
CONFIG_TENSORS (tensors that go into the config, not to an op), `plan(config) -> Plan`, and `tiny(...) -> ModelConfig` for tests.
"""
from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from ..errors import ModelInvalid


def families() -> dict[str, ModuleType]:
    """Architecture name -> family module, from the files in this folder."""
    modules = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
    return {name: module for module in modules for name in module.ARCHITECTURES}


def family(architecture: str, file: str) -> ModuleType:
    """The family that reads `architecture`, or ModelInvalid naming those that exist."""
    known = families()
    if architecture not in known:
        raise ModelInvalid(f"{file}: architecture '{architecture}' is not supported; known: {', '.join(sorted(known))}")
    return known[architecture]
