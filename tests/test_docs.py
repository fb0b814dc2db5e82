"""What the README says is so: its commands exist, its programs run, its links lead somewhere."""
from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pyruntime import store
from pyruntime.cli import COMMANDS, group

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.S)
COMMAND_LINES = [line[2:] for kind, text in BLOCKS if kind == "console" for line in text.splitlines() if line.startswith("$ ")]


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`make ([a-z]+)`", README)) <= targets
    assert set(re.findall(r'@echo "make ([a-z]+)', (ROOT / "Makefile").read_text())) <= targets


def test_commands_and_options_exist():
    ours = [line.split() for line in COMMAND_LINES if line.startswith("pyruntime ")]
    assert len(ours) >= 8
    for words in ours:
        assert words[1] in COMMANDS
        command = group.get_command(None, words[1])
        known = {option for parameter in command.params for option in parameter.opts}
        assert {w for w in words if w.startswith("-") and not w[1:2].isdigit()} <= known


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    for target in re.findall(r"`((?:pyruntime|protos|examples|bench|dist)/[\w/.]*)`", README):
        assert target == "dist/" or (ROOT / target).exists(), target


def test_the_package_is_named_right():
    for path in [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "ARCHITECTURE.md", *(ROOT / "docs").rglob("*.md")]:
        assert not re.search(r"pip3? install (-\S+ )*pyruntime(?!-llm)", path.read_text()), path


def test_the_catalogue_is_what_the_readme_pulls():
    assert {name for name in re.findall(r"(?:smollm2|gemma3):\w+", README)} == set(store.CATALOGUE)


def test_the_python_example_runs(smollm, tmp_path):
    """With the model in a cache folder of its own, so that nothing is fetched when it is here already."""
    (code,) = [text for kind, text in BLOCKS if kind == "python"]
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    target = tmp_path / "models" / "smollm2" / "135m.gguf"
    target.parent.mkdir(parents=True)
    os.link(smollm, target) if smollm.stat().st_dev == tmp_path.stat().st_dev else target.symlink_to(smollm)
    p = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300,
                       env={**os.environ, "PYRUNTIME_HOME": str(tmp_path)})
    assert p.returncode == 0, p.stderr
    lines = p.stdout.splitlines()
    assert "Paris" in lines[0] and "max_output_tokens 16" in lines[0] and p.stdout.count("[(") == 1


def test_the_demo_runs(smollm, tmp_path):
    """The program behind `make demo`, where the package is installed."""
    import sysconfig

    if not Path(sysconfig.get_path("scripts"), "pyruntime").exists():
        pytest.skip("the pyruntime command is not installed beside this Python")
    target = tmp_path / "models" / "smollm2" / "135m.gguf"
    target.parent.mkdir(parents=True)
    target.symlink_to(smollm)
    p = subprocess.run([sys.executable, ROOT / "examples/demo.py", "Count", "to", "three."], capture_output=True, text=True,
                       timeout=300, env={**os.environ, "PYRUNTIME_HOME": str(tmp_path)}, cwd=tmp_path)
    assert p.returncode == 0, p.stderr
    assert re.search(r"\d+ tokens, \d+ tokens/s, first token after \d+ ms\nserver stopped\n$", p.stdout)

