"""Short runs of the fuzz targets (tests/fuzz) under the sanitizers: the corpus once, then some thousand mutations of it.
Long runs: `make fuzz`."""
from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))
import fuzz

#: enough to reach what the corpus reaches many times over, in seconds
RUNS = {("gguf", "address"): 20_000, ("safetensors", "address"): 20_000, ("tokenizer", "address"): 4_000,
        ("sentencepiece", "address"): 4_000, ("vocabulary", "address"): 4_000, ("batch", "address"): 1_000,
        ("batch", "thread"): 150}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("target, sanitizer", RUNS)
def test_nothing_is_found(target: str, sanitizer: str, tmp_path: Path) -> None:
    if fuzz.compiler() is None:
        pytest.skip("gcc is not installed")
    if "libasan.so" in Path("/proc/self/maps").read_text() or "libtsan.so" in Path("/proc/self/maps").read_text():
        pytest.skip("already under a sanitizer")
    program = fuzz.build(target, tmp_path, sanitizer=sanitizer)
    found = fuzz.fuzz(program, target, RUNS[target, sanitizer], sanitizer=sanitizer, timeout=600)
    if "unexpected memory mapping" in found.report:
        pytest.skip("the thread sanitizer does not run on this kernel")
    assert not found.report, found.report
    assert found.runs == RUNS[target, sanitizer] and found.edges > 300


@pytest.mark.parametrize("target, check, without", [
    ("gguf", "  if (length > most || !left(file, *at, length))\n", "  if (length > most)\n"),
    ("safetensors", "return p->at < p->end ?", "return p->at <= p->end ?")], ids=["gguf", "safetensors"])
def test_a_fault_is_found(target: str, check: str, without: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver itself: without one check of a reader it reports within the same runs, and keeps the input."""
    if fuzz.compiler() is None:
        pytest.skip("gcc is not installed")
    source = (fuzz.CSRC / f"load/{target}.c").read_text()
    assert check in source
    (tmp_path / "load").mkdir()
    (tmp_path / f"load/{target}.c").write_text(source.replace(check, without))
    monkeypatch.setattr(fuzz, "FLAGS", [f"-I{tmp_path}", *fuzz.FLAGS])
    found = fuzz.fuzz(fuzz.build(target, tmp_path), target, RUNS[target, "address"], timeout=600)
    assert "AddressSanitizer" in found.report and (tmp_path / f"crash-{target}").stat().st_size > 0


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_the_corpus_is_small(target: str) -> None:
    files = list((fuzz.HERE / "corpus" / target).iterdir())
    assert 0 < len(files) <= 100 and all(f.stat().st_size <= 4096 for f in files)
