"""Model families: one file each, named after Hugging Face's `model_type`. The folder is the registry.

A family module has `plan(config) -> Plan`, `tiny(...) -> ModelConfig` for tests, and says what it reads:

- GGUF: ARCHITECTURES (the `general.architecture` names), `from_gguf(metadata, shapes, vector) -> ModelConfig`, CONFIG_TENSORS
  (tensors that go into the config, not to an op). Where older files keep a weight otherwise, `gguf_older(config) ->
  dict[str, Taken]` says as which rows of which tensor.
- Hugging Face folders: MODEL_TYPES (config.json's `model_type`), `from_hf(metadata, shapes) -> ModelConfig` (metadata is
  config.json, nested values by `metadata.inside`; a null is as good as absent, and what is absent means what it means in
  `transformers`), `hf_weights(config) -> dict[str, Recipe]` (each of the plan's weights -> where it stands, `recipe.Taken`),
  HF_PREFIXES (taken off a tensor's name, each once, in this order, where they are there: names in recipes and shapes are without
  them), HF_SKIPPED (tensors that need not be read, with * for anything: buffers, the head of a tied model).
  A tensor that is neither read nor skipped is an error: the answers would be wrong.

A module whose name begins with `_` is no family.
"""
from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from ..errors import ModelInvalid


def _modules() -> list[ModuleType]:
    names = (m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    return [importlib.import_module(f"{__name__}.{name}") for name in names]


def families() -> dict[str, ModuleType]:
    """GGUF's architecture name -> family module, from the files in this folder."""
    return {name: module for module in _modules() for name in module.ARCHITECTURES}


def hf_families() -> dict[str, ModuleType]:
    """Hugging Face's `model_type` -> family module."""
    return {name: module for module in _modules() for name in module.MODEL_TYPES}


def family(architecture: str, file: str) -> ModuleType:
    """The family that reads `architecture`, or ModelInvalid naming those that exist."""
    return _known(families(), "architecture", architecture, file)


def hf_family(model_type: str, file: str) -> ModuleType:
    """The family that reads `model_type`, or ModelInvalid naming those that exist."""
    return _known(hf_families(), "model_type", model_type, file)


def _known(known: dict[str, ModuleType], what: str, name: str, file: str) -> ModuleType:
    if name not in known:
        raise ModelInvalid(f"{file}: {what} '{name[:80]}' is not supported; known: {', '.join(sorted(known))}")
    return known[name]
