"""One answer, end to end: get a model, serve it over gRPC, ask, print the text as it comes, stop the server.

    python examples/demo.py ["Your question"]
"""
from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

from pyruntime.client import Client

MODEL = "smollm2:135m"
QUESTION = "Explain in three sentences why the sky is blue."
COMMAND = str(Path(sysconfig.get_path("scripts")) / "pyruntime")


@contextlib.contextmanager
def served(model: str) -> Iterator[str]:
    """The address of a server of our own, on a free port of this machine."""
    server = subprocess.Popen([COMMAND, "serve", model, "--grpc", "127.0.0.1:0", "--json"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        if not line:
            sys.exit(f"the server ended before it was ready (exit code {server.wait()})")
        yield json.loads(line)["address"]
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    question = " ".join(sys.argv[1:]) or QUESTION
    subprocess.run([COMMAND, "pull", MODEL], check=True)
    with served(MODEL) as address, Client(address) as client:
        print(f"serving {MODEL} on {address}\n\n> {question}\n")
        began = first = last = time.perf_counter()
        tokens = 0
        for delta in client.stream_chat([{"role": "user", "content": question}], max_tokens=256, temperature=0.0):
            last = time.perf_counter()
            first = last if tokens == 0 else first
            tokens += delta.output_tokens
            print(delta.text, end="", flush=True)
        speed = (tokens - 1) / (last - first) if last > first else 0.0
        print(f"\n\n{tokens} tokens, {speed:.0f} tokens/s, first token after {1000 * (first - began):.0f} ms")
    print("server stopped")


if __name__ == "__main__":
    main()
