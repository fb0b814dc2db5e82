"""pyruntime serve MODEL"""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from .common import MODEL_OPTIONS, as_json, open_llm, options, pick


@click.command("serve")
@click.argument("model")
@click.option("--grpc", "address", default="127.0.0.1:50051", show_default=True, metavar="HOST:PORT",
              help="Where to listen; port 0 takes a free one.")
@click.option("--name", help="What clients call the model [default: MODEL, of a path its last part].")
@click.option("--api-key-file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Ask clients for one of these bearer tokens, one a line; PYRUNTIME_API_KEY gives one as well.")
@click.option("--tls-cert", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Certificate chain, PEM.")
@click.option("--tls-key", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Its private key, PEM.")
@click.option("--insecure", is_flag=True, help="Listen beyond this machine without key or TLS.")
@click.option("--max-running", type=click.IntRange(1, 1024), default=8, show_default=True, help="Requests computed at once.")
@click.option("--max-waiting", type=click.IntRange(0, 1 << 20), default=1024, show_default=True, help="Requests in line.")
@click.option("--kv-tokens", type=click.IntRange(1), help="Tokens the cache holds for all requests.")
@click.option("--chunk-beside", type=click.IntRange(1), default=8, show_default=True,
              help="Prompt tokens a step reads beside running answers, or as many as there are requests (of --max-running) if "
                   "that is more. Few: answers flow evenly; many, up to 512: new ones begin sooner.")
@click.option("--drain-timeout", type=click.FloatRange(0), default=30.0, show_default=True,
              help="Seconds running requests get after SIGTERM.")
@options(MODEL_OPTIONS)
@as_json
def command(model: str, address: str, name: str | None, api_key_file: Path | None, tls_cert: Path | None,
            tls_key: Path | None, insecure: bool, drain_timeout: float, as_json: bool, **given: Any) -> None:
    """Serve a model over gRPC until SIGTERM or Ctrl-C.

    The services are those of protos/pyruntime/v1, with standard health and reflection. The address is printed once the
    model is loaded; with --json as one line {"ready": true, "address": …}.

    \b
      pyruntime serve smollm2:135m --grpc 127.0.0.1:50051
      pyruntime serve ./model.gguf --name my-model --grpc 127.0.0.1:0 --json
    """
    from ..errors import FieldInvalid
    from ..loading import model_name
    from ..server import run_server
    from ..server.auth import read_keys
    from ..store import resolve

    if (tls_cert is None) != (tls_key is None):
        raise FieldInvalid("TLS needs both --tls-cert and --tls-key", field="tls")
    tls = (tls_cert.read_bytes(), tls_key.read_bytes()) if tls_cert and tls_key else None
    file = resolve(model)  # a wrong name ends here, before a port is taken
    name = name or model_name(model, file)
    more = pick(given, ("max_running", "max_waiting", "kv_tokens", "chunk_beside"))

    def ready(bound: str) -> None:
        click.echo(json.dumps({"ready": True, "address": bound, "model": name}) if as_json
                   else f"serving {name} on {bound} (Ctrl-C stops)")

    run_server({name: lambda: open_llm(model, given, **more)}, address=address, api_keys=read_keys(api_key_file), tls=tls,
               insecure=insecure, drain_timeout=drain_timeout, ready=ready)
