"""pyruntime inspect MODEL"""
from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from .common import as_json, human_bytes, say_json, say_table

if TYPE_CHECKING:
    from .._core._weights import TensorInfo
    from ..plan import Plan
    from ..weights import Source

SHOWN = 60  # characters of a metadata value


@click.command("inspect", short_help="What a model holds, and the memory it takes.")
@click.argument("model")
@click.option("--tensors", is_flag=True, help="List every tensor.")
@click.option("--metadata", is_flag=True, help="List the file's metadata, or config.json.")
@click.option("--quantize", metavar="FORMAT", help="Plan memory for a folder's weights in this format.")
@as_json
def command(model: str, tensors: bool, metadata: bool, quantize: str | None, as_json: bool) -> None:
    """What a model file or folder holds: configuration, tensors by format, memory plan, tokenizer.

    Reads headers only; no weights are loaded.

    \b
      pyruntime inspect smollm2:135m
      pyruntime inspect ./model.gguf --tensors
      pyruntime inspect ./gpt2 --quantize q8_0
      pyruntime inspect smollm2:135m --json | jq .memory.kv_bytes_per_token
    """
    from ..loading import open_file
    from ..store import resolve
    from ..weights.gguf import GGUFModel

    path = resolve(model)
    with open_file(path) as opened:
        config = opened.config()
        plan = opened.module.plan(config)
        if isinstance(opened, GGUFModel) and quantize is None:
            source: Any = opened.pieces(plan, config)
        else:
            source = opened.source(plan, config, quantize)
        tokenizer = opened.tokenizer()
        facts: dict[str, Any] = {
            "model": model, "path": str(path), "file_bytes": opened.nbytes, "format": opened.kind,
            "architecture": opened.architecture, "name": opened.metadata.text("general.name", ""),
            "parameters": sum(math.prod(t.shape) for t in source.stored.values()), "tensor_count": len(source.stored),
            "config": dataclasses.asdict(config),
            "formats": formats(source.stored.values()), "memory": memory(plan, source),
            "tokenizer": {
                "vocabulary": tokenizer.vocab_size, "begin_id": tokenizer.bos_id, "end_ids": sorted(tokenizer.end_ids),
                "adds_begin": tokenizer.add_bos, "special_tokens": len(tokenizer.special_ids),
                "chat_template": tokenizer.chat_template is not None},
            "notes": list(source.notes),
        }
        if tensors:
            facts["tensors"] = [{"name": t.name, "shape": list(t.shape), "format": t.format, "bytes": t.nbytes}
                                for t in source.stored.values()]
        if metadata:
            facts["metadata"] = {key: short(value) for key, value in opened.metadata.values.items()}
    if as_json:
        say_json(facts)
    else:
        show(facts)


def formats(tensors: Iterable[TensorInfo]) -> list[dict[str, Any]]:
    """Tensors, parameters and bytes of each format, the largest first."""
    count, parameters, size = Counter[str](), Counter[str](), Counter[str]()
    for tensor in tensors:
        count[tensor.format] += 1
        parameters[tensor.format] += math.prod(tensor.shape)
        size[tensor.format] += tensor.nbytes
    return [{"format": name, "tensors": count[name], "parameters": parameters[name], "bytes": total,
             "bits_per_weight": round(8 * total / parameters[name], 4) if parameters[name] else 0.0}
            for name, total in size.most_common()]


def memory(plan: Plan, source: Source) -> dict[str, int]:
    """Bytes: weights once packed (what the plan names), KV cache for each token and for a whole context (behind a window pages
    are given back), and a sequence's states."""
    from .._core import _weights
    from ..cache.pages import Span
    from ..loading import CHUNK, kv_bytes_per_token, page_bytes, state_bytes

    packed = 0
    for weight in plan.weights:
        if weight.k == 0:
            packed += 4 * weight.rows
        elif weight.name in source.tensors:
            packed += _weights.packed_bytes(source.supported(weight.name), weight.rows, weight.k)
    whole = sum(page_bytes(g) * Span.of(g, CHUNK).most(plan.context) for g in plan.groups if g.kind != "state")
    return {"packed_weight_bytes": packed, "kv_bytes_per_token": kv_bytes_per_token(plan), "kv_bytes_at_full_context": whole,
            "state_bytes_per_sequence": state_bytes(plan)}


def short(value: Any) -> Any:
    """A metadata value as JSON can carry it; long ones as their kind and length."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    return f"[{len(value)} values]"


def mixer(config: dict[str, Any]) -> str:
    """What a layer has heads of."""
    if (s := config["state_space"]) and not config["heads"]:
        return f"state space of {s['heads']} heads of {s['head_dim']} × {s['numbers']} in {s['groups']} groups, {s['taps']} taps"
    return (f"{config['heads']} heads over {config['kv_heads']} key-value heads of {config['head_dim']}, "
            f"hidden {config['hidden']}")


def show(facts: dict[str, Any]) -> None:
    """The same for people."""
    config, memory, tokens = facts["config"], facts["memory"], facts["tokenizer"]
    say_table([
        ("model", f"{facts['name'] or facts['model']}  ({facts['architecture']}, {facts['format']})"),
        ("folder" if facts["format"] == "safetensors" else "file", f"{facts['path']}  {human_bytes(facts['file_bytes'])}"),
        ("parameters", f"{facts['parameters']:,} in {facts['tensor_count']} tensors"),
        ("shape", f"{config['layers']} layers, width {config['width']}, {mixer(config)}"),
        ("context", f"{config['context']:,} tokens"),
        ("vocabulary", f"{tokens['vocabulary']:,} tokens, {tokens['special_tokens']} special, ends at "
                       f"{', '.join(map(str, tokens['end_ids']))}; chat template: {'yes' if tokens['chat_template'] else 'no'}"),
        ("weights", f"{human_bytes(memory['packed_weight_bytes'])} once packed"),
        *([("KV cache", f"{memory['kv_bytes_per_token']:,} bytes a token, "
                        f"{human_bytes(memory['kv_bytes_at_full_context'])} for a whole context")]
          if memory["kv_bytes_per_token"] else []),
        *([("states", f"{human_bytes(memory['state_bytes_per_sequence'])} a sequence, however long")]
          if memory["state_bytes_per_sequence"] else []),
    ])
    click.echo()
    say_table([("FORMAT", "TENSORS", "PARAMETERS", "SIZE", "BITS/WEIGHT"), *(
        (f["format"], f["tensors"], f"{f['parameters']:,}", human_bytes(f["bytes"]), f"{f['bits_per_weight']:.2f}")
        for f in facts["formats"])], right="1234")
    if "tensors" in facts:
        click.echo()
        say_table([("TENSOR", "SHAPE", "FORMAT", "SIZE"), *(
            (t["name"], " × ".join(map(str, t["shape"])), t["format"], human_bytes(t["bytes"])) for t in facts["tensors"])],
            right="3")
    if "metadata" in facts:
        click.echo()
        for key, value in facts["metadata"].items():
            line = " ".join(str(value).split())
            click.echo(f"{key} = {line if len(line) <= SHOWN else line[:SHOWN] + '…'}")
