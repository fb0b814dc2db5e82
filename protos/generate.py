"""Generates pyruntime/server/pb from protos/: `python protos/generate.py`, or `--check` to compare only.

The modules live inside our package, so imports become relative; the names in the descriptors stay `pyruntime.v1`.
Generated code runs on every protobuf from its generator's own version up, so the generator is pinned to an old one.
"""
from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

PROTOS = Path(__file__).resolve().parent
PACKAGE = PROTOS.parent / "pyruntime/server/pb"
PINNED = "1.68.1"
INIT = '"""Generated from protos/ by protos/generate.py; names as in the proto files."""\n'


def protoc(*outputs: str) -> None:
    """The compiler over every proto file, in a process of its own: loaded into one with other C++ libraries it can end them."""
    sources = sorted(str(p.relative_to(PROTOS)) for p in PROTOS.rglob("*.proto"))
    if subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", *outputs, *sources]).returncode:
        raise SystemExit("protoc failed; its messages stand above")


def generate() -> dict[str, str]:
    """File name -> content of everything in pyruntime/server/pb."""
    with tempfile.TemporaryDirectory() as folder:
        protoc(*(f"--{kind}_out={folder}" for kind in ("python", "pyi", "grpc_python")))
        made = {p.name: package_relative(p.read_text()) for p in sorted(Path(folder).rglob("*.py*"))}
    # A file without a service still gets a file of stubs: leave it out.
    made = {name: text for name, text in made.items() if not name.endswith("_grpc.py") or "class " in text}
    return {"__init__.py": INIT, **made}


def package_relative(text: str) -> str:
    """Generated source with its imports and module names moved from pyruntime.v1 into this package."""
    text = re.sub(r"^from pyruntime\.v1 import ", "from . import ", text, flags=re.M)
    return re.sub(r"'pyruntime\.v1\.(\w+_pb2)'", r"'pyruntime.server.pb.\1'", text)


def installed() -> dict[str, str]:
    """File name -> content of what is in the tree."""
    return {p.name: p.read_text() for p in sorted(PACKAGE.glob("*.py*"))}


def main() -> int:
    import importlib.metadata

    version = importlib.metadata.version("grpcio-tools")
    if version != PINNED:
        raise SystemExit(f"grpcio-tools {version} is installed; generate with {PINNED}: pip install grpcio-tools=={PINNED}")
    made, there = generate(), installed()
    if "--check" in sys.argv[1:]:
        stale = sorted(name for name in made.keys() | there.keys() if made.get(name) != there.get(name))
        if stale:
            print(f"pyruntime/server/pb is stale: {', '.join(stale)}; run python protos/generate.py", file=sys.stderr)
        return bool(stale)
    PACKAGE.mkdir(parents=True, exist_ok=True)
    for name in there.keys() - made.keys():
        (PACKAGE / name).unlink()
    for name, text in made.items():
        (PACKAGE / name).write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
