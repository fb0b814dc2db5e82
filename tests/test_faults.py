"""The suite itself under test: faults planted in a copy of the native source must each be caught by some property."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from faults import FAULTS, plant

import pyruntime

ROOT = Path(__file__).parents[1]
FLAGS = ["-std=gnu11", "-O1", "-fPIC", "-ffp-contract=off", "-fvisibility=hidden", "-fopenmp", "-w"]
#: what the engine needs; the widest sets and the text floor stay out, for the time they take to compile
WIDEST = ("avx512", "avx512bf16", "amx")
LEFT_OUT = ("text", *(f"isa/{name}.c" for name in WIDEST))


def _sources(tree: Path) -> list[Path]:
    return [s for s in sorted((tree / "csrc").rglob("*.c")) if not str(s.relative_to(tree / "csrc")).startswith(LEFT_OUT)]


def _build(tree: Path) -> None:
    """A package in `tree` whose engine holds every fault, and a global to pick one."""
    shutil.copytree(ROOT / "csrc", tree / "csrc")
    plant(tree / "csrc")
    table = tree / "csrc/isa/table.c"
    table.write_text("".join(f"#define rt_kernels_{name} rt_kernels_scalar\n" for name in WIDEST) + table.read_text())
    (tree / "csrc/fault.h").write_text("extern int rt_fault;\n")
    (tree / "csrc/fault.c").write_text('__attribute__((visibility("default"))) int rt_fault;\n')
    shutil.copytree(Path(pyruntime.__file__).parent, tree / "pyruntime", ignore=shutil.ignore_patterns("_engine*", "__pycache__"))
    for name in [*(ROOT / "pyruntime/_core").glob("*.pxd"), ROOT / "pyruntime/_core/_engine.pyx"]:
        shutil.copy(name, tree / "pyruntime/_core")
    subprocess.run([sys.executable, "-m", "cython", "-3", "pyruntime/_core/_engine.pyx", "-o", "csrc/_engine.c"],
                   cwd=tree, check=True)
    include = ["-Icsrc", "-I" + sysconfig.get_path("include"), "-I" + np.get_include(), "-include", "fault.h"]
    compiler = os.environ.get("CC", "cc")

    def compile_one(source: Path) -> str:
        out = source.with_suffix(".o")
        subprocess.run([compiler, *FLAGS, *include, "-c", str(source), "-o", str(out)], cwd=tree, check=True)
        return str(out)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, _sources(tree)))
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    subprocess.run([compiler, "-shared", "-fopenmp", *objects, "-lm", "-lpthread", "-o", f"pyruntime/_core/_engine{suffix}"],
                   cwd=tree, check=True)


@pytest.fixture(scope="module")
def caught(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str | None]:
    """fault -> what the battery says; 0 is the source as it is."""
    if not shutil.which(os.environ.get("CC", "cc")):
        pytest.skip("needs a C compiler")
    pytest.importorskip("Cython")
    tree = tmp_path_factory.mktemp("faulty")
    _build(tree)
    environment = {**os.environ, "PYTHONPATH": f"{tree}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(ROOT / "tests/fault_battery.py")], cwd=tree, env=environment,
                          capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, f"after {len(lines)} faults: {done.stderr[-2000:]}"
    return {line["fault"]: line["caught"] for line in lines}


def test_the_source_as_it_is_passes(caught):
    """No fault, nothing caught."""
    assert caught[0] is None


@pytest.mark.parametrize("n", range(1, len(FAULTS) + 1), ids=[f.name for f in FAULTS])
def test_fault_is_caught(caught, n):
    """Some property fails with it."""
    if (caught[n] or "").startswith("skipped"):
        pytest.skip(caught[n])
    assert caught[n] is not None


def test_there_are_enough():
    """Twenty at the least, no name twice."""
    assert len({f.name for f in FAULTS}) == len(FAULTS) >= 20
