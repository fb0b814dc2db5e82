"""The thread pool: every unit once and in order, on both pools, and no data race in ours."""
from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLAGS = ["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-fopenmp", f"-I{ROOT / 'csrc'}"]

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")


def build(folder: Path, *more: str) -> str:
    program = str(folder / "pool_race")
    subprocess.run(["gcc", *FLAGS, *more, str(ROOT / "tests" / "pool_race.c"), str(ROOT / "csrc" / "base" / "pool.c"),
                    "-o", program, "-lpthread"], check=True)
    return program


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> str:
    return build(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory) -> list[str]:
    program = build(tmp_path_factory.mktemp("tsan"), "-fsanitize=thread")
    plainly = ["setarch", "-R"] if shutil.which("setarch") else []  # the sanitizer wants its addresses free
    check = subprocess.run([*plainly, program, "1", "0", "1"], capture_output=True, text=True, timeout=120)
    if "unexpected memory mapping" in check.stderr:
        pytest.skip("the thread sanitizer does not run on this kernel")
    return [*plainly, program]


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("kind", ["0", "1"], ids=["own", "openmp"])
def test_every_unit_runs_once_and_in_order(plain, threads, kind):
    done = subprocess.run([plain, str(threads), kind, "400"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("threads", [2, 4])
def test_our_pool_has_no_race(sanitized, threads):
    done = subprocess.run([*sanitized, str(threads), "0", "300"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stdout + done.stderr
