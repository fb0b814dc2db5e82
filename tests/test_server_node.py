"""The README's Node client, from the proto files, against the server."""
from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from server_fixture import serving

from pyruntime import LLM
from pyruntime.client import Client

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples/node"
UNREACHABLE = ("ENOTFOUND", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "EAI_AGAIN", "ENETUNREACH", "E503", "network")


@pytest.fixture(scope="session")
def node_modules():
    """What package-lock.json names, installed once under build/."""
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    lock = (EXAMPLE / "package-lock.json").read_bytes()
    folder = ROOT / f"build/node-{hashlib.sha256(lock).hexdigest()[:12]}"
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(EXAMPLE / name, folder)
        made = subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder, capture_output=True,
                              text=True, timeout=300)
        if made.returncode and any(sign in made.stderr for sign in UNREACHABLE):
            pytest.skip("npm's registry cannot be reached")
        assert made.returncode == 0, made.stderr
        (folder / "done").touch()
    return folder / "node_modules"


def run(node_modules, *args, **environment):
    return subprocess.run(["node", str(EXAMPLE / "client.js"), *args], capture_output=True, text=True, timeout=120,
                          env={**os.environ, "NODE_PATH": str(node_modules), **environment})


def test_the_node_client_streams_the_same_answer(node_modules, tiny_model):
    with LLM(tiny_model) as llm, serving({"tiny": llm}) as server, Client(server.address) as client:
        answer = client.chat([{"role": "user", "content": "hello"}], temperature=0.0, max_tokens=128)
        said = run(node_modules, server.address, "hello")
        assert (said.returncode, said.stderr) == (0, "")
        assert said.stdout == f"{answer.candidates[0].message.text}\n[{answer.usage.output_tokens} tokens]\n"


def test_the_node_client_says_what_went_wrong(node_modules, tiny_model):
    with LLM(tiny_model) as llm, serving({"tiny": llm}, api_keys=["right"]) as server:
        refused = run(node_modules, server.address, "hello", PYRUNTIME_API_KEY="wrong")
        assert refused.returncode == 1 and refused.stderr.startswith("UNAUTHENTICATED: this server needs a key")
        assert run(node_modules, server.address, "hello", PYRUNTIME_API_KEY="right").returncode == 0
