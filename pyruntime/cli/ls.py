"""pyruntime ls"""
from __future__ import annotations

import time

import click

from .common import as_json, human_bytes, say_json, say_table


@click.command("ls", short_help="List the models on this disk.")
@as_json
def command(as_json: bool) -> None:
    """List the models on this disk, and the names that can be pulled.

    \b
      pyruntime ls
      PYRUNTIME_HOME=/big/disk pyruntime ls --json
    """
    from .. import store

    entries = store.ls()
    others = [name for name in store.CATALOGUE if name not in {e.name for e in entries}]
    if as_json:
        say_json({"home": str(store.home()), "available": others, "models": [
            {"name": e.name, "path": str(e.path), "bytes": e.size, "changed": e.changed} for e in entries]})
        return
    if entries:
        say_table([("NAME", "SIZE", "CHANGED", "PATH"), *(
            (e.name, human_bytes(e.size), time.strftime("%Y-%m-%d %H:%M", time.localtime(e.changed)), e.path)
            for e in entries)], right="1")
    else:
        click.echo(f"no models in {store.home()}")
    for name in others:
        click.echo(f"{name} can be pulled: pyruntime pull {name}", err=True)
