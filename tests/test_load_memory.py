"""What loading leaves in memory, as the system counts it in a process of its own: packed weights, once, in 2 MB pages."""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pyruntime import quant
from pyruntime.weights.gguf_writer import Tensor, write_gguf

if not Path("/proc/self/smaps_rollup").exists():
    pytest.skip("needs Linux's /proc", allow_module_level=True)

ROWS, K, MATRICES, VECTORS = 4096, 2048, 6, 40

CHILD = """
import json, re, sys
from pyruntime.plan import Weight
from pyruntime.weights import load_weights
from pyruntime.weights.gguf import GGUFModel

path, low, rows, k, matrices, vectors = sys.argv[1], sys.argv[2] == "low", *map(int, sys.argv[3:])

def count(name, file="/proc/self/status"):
    return int(re.search(rf"^{name}:\\s+(\\d+) kB", open(file).read(), re.M)[1]) << 10

plan = [Weight(f"v{i}", k) for i in range(vectors)] + [Weight(f"m{i}", rows, k) for i in range(matrices)]
with GGUFModel(path) as model:
    open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
    before = count("VmRSS")
    weights = load_weights(plan, model, low_memory=low, threads=2)
    mapped = sum(path in line for line in open("/proc/self/maps"))
print(json.dumps(dict(
    packed=weights.nbytes, peak=count("VmHWM") - before, huge=count("AnonHugePages", "/proc/self/smaps_rollup"), mapped=mapped,
    mapped_after=sum(path in line for line in open("/proc/self/maps")))))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """53 MB of Q8_0 between vectors, as in a real model."""
    path, rng = tmp_path_factory.mktemp("memory") / "model.gguf", np.random.default_rng(1)
    values = rng.standard_normal(K).astype(np.float32).view(np.uint8)
    matrix = rng.integers(0, 256, quant.nbytes(quant.FORMATS["Q8_0"], (ROWS, K)), np.uint8)
    tensors = []
    for i in range(MATRICES):
        tensors += [Tensor(f"v{j}", "F32", (K,), values) for j in range(VECTORS * i // MATRICES, VECTORS * (i + 1) // MATRICES)]
        tensors.append(Tensor(f"m{i}", "Q8_0", (ROWS, K), matrix))
    write_gguf(path, {"general.architecture": "none"}, tensors)
    return path


def load(path: Path, how: str) -> dict[str, int]:
    done = subprocess.run([sys.executable, "-c", CHILD, str(path), how, *map(str, (ROWS, K, MATRICES, VECTORS))],
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_packed_weights_are_there_once(model: Path) -> None:
    """At no moment do the file and what is made of it lie in memory together; the mapping goes with the file's last view."""
    found = load(model, "packed")
    assert found["packed"] > 50 << 20
    assert found["peak"] <= 1.1 * found["packed"]
    assert found["mapped"] > 0 and found["mapped_after"] == 0


def test_they_lie_in_large_pages(model: Path) -> None:
    modes = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not modes.exists() or "[never]" in modes.read_text():
        pytest.skip("this kernel gives no transparent 2 MB pages")
    found = load(model, "packed")
    assert found["huge"] >= 0.9 * found["packed"]


def test_low_memory_mode_copies_no_matrix(model: Path) -> None:
    found = load(model, "low")
    assert found["peak"] < 0.1 * found["packed"] and found["mapped_after"] > 0
