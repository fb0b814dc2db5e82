"""The wheel: built in isolation, whole, and useful where there is neither compiler nor torch."""
from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import pyruntime

ROOT = Path(__file__).parent.parent
ENV = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "CC", "CFLAGS", "LDFLAGS")}


def run(*command: object, **more) -> str:
    p = subprocess.run([str(c) for c in command], env=more.pop("env", ENV), capture_output=True, text=True, timeout=1200, **more)
    assert p.returncode == 0, f"{command}: {p.stdout[-2000:]}\n{p.stderr[-2000:]}"
    return p.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """The wheel `make` has just made of this tree; without one, what `pip wheel .` gives in a copy of the tracked files."""
    tracked = [ROOT / name for name in filter(None, run("git", "ls-files", "-z", cwd=ROOT).split("\0"))]
    sources = [path for path in tracked if path.is_file()]
    built = [path for path in (ROOT / "dist").glob("*.whl")
             if path.stat().st_mtime > max(s.stat().st_mtime for s in sources if s.parts[-2] != "tests")]
    if len(built) == 1:
        return built[0]
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for path in sources:
        target = copy / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", out, copy)
    (made,) = out.glob("*.whl")
    return made


@pytest.mark.slow
def test_contents(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    ours = [n for n in names if ".dist-info/" not in n]
    assert wheel.name.startswith(f"pyruntime_llm-{pyruntime.__version__}-cp")
    assert all(n.startswith("pyruntime/") for n in ours)
    assert not [n for n in ours if re.search(r"\.(c|h|inc|def|pyx|pxd|a|o)$|/tests?/", n)]
    modules = {p.stem for p in (ROOT / "pyruntime/_core").glob("_[a-z]*.pyx")}
    for module in modules:
        assert [n for n in ours if n.startswith(f"pyruntime/_core/{module}.") and n.endswith(".so")], module
        assert f"pyruntime/_core/{module}.pyi" in ours
    python = set(filter(None, run("git", "ls-files", "pyruntime/**.py", "pyruntime/*.py", cwd=ROOT).split()))
    assert python == {n for n in ours if n.endswith(".py")}
    assert "pyruntime/py.typed" in ours and [n for n in names if n.endswith("licenses/LICENSE")]
    assert sum(i.file_size for i in zipfile.ZipFile(wheel).infolist()) < 30 << 20


@pytest.mark.slow
def test_metadata(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
    facts = email.message_from_bytes(archive.read(name))
    assert facts["Name"] == "pyruntime-llm" and facts["Version"] == pyruntime.__version__
    assert facts["License-Expression"] == "Apache-2.0" and facts["Requires-Python"] == ">=3.10"
    needs = [r for r in facts.get_all("Requires-Dist") if "extra ==" not in r]
    assert not [r for r in needs if re.match(r"(torch|transformers|gguf|tokenizers|pytest|huggingface)", r)]
    assert {"hub", "torch", "test"} <= set(facts.get_all("Provides-Extra"))


@pytest.mark.slow
def test_a_clean_environment_without_compiler_or_torch(wheel, tmp_path, tiny_model):
    """Install with dependencies, and answer, while PATH leads to no compiler."""
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", venv)
    env = {**ENV, "PATH": str(venv / "bin")}
    run(venv / "bin/python", "-m", "pip", "install", "-q", wheel, env=env, cwd=tmp_path)
    said = run(venv / "bin/python", "-c",
               "import sys, pyruntime\n"
               "heavy = {'torch', 'grpc', 'numpy', 'transformers', 'ray'} & set(sys.modules)\n"
               "assert not heavy, heavy\n"
               "import importlib.util\n"
               "assert importlib.util.find_spec('torch') is None\n"
               "print(pyruntime.__version__, pyruntime.__file__)", env=env, cwd=tmp_path)
    assert said.split()[0] == pyruntime.__version__ and str(venv) in said
    with pyruntime.LLM(tiny_model) as llm:
        want = llm.generate("the world", max_tokens=12, temperature=0.0).text
    assert run(venv / "bin/pyruntime", "run", tiny_model, "the world", "-n", 12, "--temperature", 0, env=env,
               cwd=tmp_path) == want + "\n"
    assert "all is well" in run(venv / "bin/pyruntime", "doctor", env=env, cwd=tmp_path)


@pytest.mark.slow
def test_the_wheel_answers_without_vector_instructions(wheel, tmp_path, tiny_model):
    """One binary: the plain C set in it gives the tokens the best set gives."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    command = (sys.executable, "-m", "pyruntime", "run", tiny_model, "the hell", "-n", 16, "--temperature", 0)
    answers = [run(*command, env={**ENV, "PYTHONPATH": str(tmp_path), **more}, cwd=tmp_path)
               for more in ({}, {"PYRUNTIME_ISA": "scalar"})]
    assert answers[0] == answers[1] != "\n"


def test_nothing_is_built_for_one_machine_only():
    for path in [ROOT / "setup.py", ROOT / "pyproject.toml", ROOT / "Makefile", *(ROOT / "csrc").rglob("*.[ch]")]:
        assert not re.search(r"-m(arch|cpu|tune)=nat|-ffast-m", path.read_text()), path


def test_one_version():
    assert f'VERSION = "{pyruntime.__version__}"' in (ROOT / "pyruntime/version.py").read_text()
    assert "\nversion = {" in (ROOT / "pyproject.toml").read_text()
    assert re.search(rf"^## {re.escape(pyruntime.__version__)}\b", (ROOT / "CHANGELOG.md").read_text(), re.M)


def test_every_compiled_module_has_a_stub():
    for path in (ROOT / "pyruntime/_core").glob("_[a-z]*.pyx"):
        assert path.with_suffix(".pyi").exists(), path


def test_a_second_build_does_nothing():
    if not (ROOT / ".venv/.installed").exists():
        pytest.skip("not built by make here")
    newest = max(p.stat().st_mtime for p in (ROOT / "csrc").rglob("*") if p.is_file())
    if newest > (ROOT / ".venv/.installed").stat().st_mtime:
        pytest.skip("sources changed since make built them")
    said = run("make", "-n", "build", cwd=ROOT, env={k: v for k, v in ENV.items() if not k.startswith(("MAKE", "MFLAGS"))})
    assert "pip wheel" not in said and "pip install" not in said


def test_what_ci_runs_is_whole():
    """Its syntax, and that it stops at the first thing that fails."""
    script = ROOT / ".ci/run"
    run("bash", "-n", script)
    assert os.access(script, os.X_OK) and "set -euo pipefail" in script.read_text() and "\nmake test" in script.read_text()
