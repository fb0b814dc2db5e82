"""pyruntime rm NAME"""
from __future__ import annotations

import click

from .common import as_json, human_bytes, say_json


@click.command("rm", short_help="Remove a model from this disk.")
@click.argument("name")
@as_json
def command(name: str, as_json: bool) -> None:
    """Remove a model from this disk, by a name that `pyruntime ls` shows.

    \b
      pyruntime rm smollm2:135m
    """
    from .. import store

    gone = store.rm(name)
    if as_json:
        say_json({"name": gone.name, "path": str(gone.path), "bytes": gone.size})
    else:
        click.echo(f"removed {gone.name} ({human_bytes(gone.size)})")
