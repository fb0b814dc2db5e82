"""Throws mutated inputs at one of the C edges under the address and undefined-behaviour sanitizers.

    python tests/fuzz/fuzz.py gguf --runs 1000000        the GGUF reader, and packing of what it accepts
    python tests/fuzz/fuzz.py safetensors                the safetensors reader
    python tests/fuzz/fuzz.py tokenizer | sentencepiece | vocabulary | batch   vocabularies; plans and batches on a small engine
    python tests/fuzz/fuzz.py batch --sanitizer thread   the same batches on four threads of our own pool

Needs gcc. Starts from `corpus/<target>` (and the files of tests/corpus/<target>), the same seed gives the same runs, and the inputs
that reach more can be kept (--few FOLDER). `--clang` builds libFuzzer's driver instead of drive.c. A finding ends with status 1,
its report on stderr and the input in `crash-<target>`.
"""
from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CSRC = ROOT / "csrc"
#: target -> runs unless told: minutes each
TARGETS = {"gguf": 1_000_000, "safetensors": 1_000_000, "tokenizer": 200_000, "sentencepiece": 200_000, "vocabulary": 200_000,
           "batch": 30_000}
#: what each target is linked with; the target itself may include a source whole
PARTS = {
    "gguf": ["load/file.c", "load/pack.c", "quant/*.c"],
    "safetensors": ["load/file.c", "load/pack.c", "quant/*.c"],
    "tokenizer": ["text/*.c"],
    "sentencepiece": ["text/*.c"],
    "vocabulary": ["text/*.c"],
    "batch": ["exec/*.c", "base/*.c", "load/pack.c", "quant/*.c", "isa/table.c", "isa/scalar.c"],
}
FLAGS = ["-std=gnu11", "-O1", "-g1", "-fopenmp", "-ffp-contract=off", "-fno-omit-frame-pointer", "-Wall", "-Wextra", f"-I{CSRC}"]
SANITIZERS = {"address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
              "thread": ["-fsanitize=thread", "-DFUZZ_THREADS=4"]}
THREAD = {"TSAN_OPTIONS": "halt_on_error=1:exitcode=66", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Found:
    """How a run ended: drive.c's line, or the report of a finding."""

    runs: int
    seconds: float
    edges: int
    kept: int
    report: str = ""


def compiler(clang: bool = False) -> str | None:
    """The compiler's path, None when there is none."""
    return shutil.which("clang" if clang else "gcc")


def build(target: str, folder: Path, *, sanitizer: str = "address", clang: bool = False) -> Path:
    """Compile a target and its driver into `folder`; the program's path."""
    cc = compiler(clang)
    assert cc is not None, "no compiler"
    sources = [HERE / f"{target}.c", *(path for part in PARTS[target] for path in sorted(CSRC.glob(part)))]
    # One set is enough here, the others equal it and take long to compile.
    sets = re.findall(r"^ISA\((\w+)", (CSRC / "defs/isas.def").read_text(), re.MULTILINE)
    one_set = [f"-Drt_kernels_{name}=rt_kernels_scalar" for name in sets if name != "scalar"]
    coverage = ["-fsanitize=fuzzer-no-link"] if clang else ["-fsanitize-coverage=trace-pc"]

    def compile_one(source: Path) -> str:
        flags = [*FLAGS, *SANITIZERS[sanitizer], *(one_set if source.name == "table.c" else []), *coverage]
        if source.name == "scalar.c":  # kernels: memory is what matters, and calls keep the compiler quick
            flags = [*FLAGS, *SANITIZERS[sanitizer][:1]]
            flags = [f.replace(",undefined", "") for f in flags]
            flags += [] if clang or sanitizer != "address" else ["--param", "asan-instrumentation-with-call-threshold=0"]
        out = folder / f"{target}-{sanitizer}-{source.parent.name}-{source.stem}.o"
        subprocess.run([cc, *flags, "-c", str(source), "-o", str(out)], check=True)
        return str(out)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        objects = list(pool.map(compile_one, sources))
    program = folder / f"fuzz-{target}-{sanitizer}"
    link = ["-fsanitize=fuzzer"] if clang else []
    if not clang:
        drive = folder / f"drive-{sanitizer}.o"
        subprocess.run([cc, "-std=gnu11", "-O2", "-g1", "-Wall", "-Wextra", *SANITIZERS[sanitizer][:1], "-c", str(HERE / "drive.c"),
                        "-o", str(drive)], check=True)
        objects.append(str(drive))
    subprocess.run([cc, *objects, *SANITIZERS[sanitizer], "-fopenmp", *link, "-lm", "-lpthread", "-o", str(program)], check=True)
    return program


def seeds(target: str, folder: Path) -> list[Path]:
    """Files to start from: the corpus, and for the GGUF reader one small file of every weight format."""
    found = sorted((HERE / "corpus" / target).iterdir())
    if (more := HERE.parent / "corpus" / target).is_dir():
        found += sorted(more.iterdir())
    if target == "gguf":
        sys.path[:0] = [str(ROOT)]
        import numpy as np

        from pyruntime import quant
        from pyruntime.quant.r16 import NO_GGML_TYPE
        from pyruntime.weights.gguf_writer import Tensor, write_gguf

        rng = np.random.default_rng(1)
        for name, twin in quant.FORMATS.items():
            if twin.GGML_TYPE != NO_GGML_TYPE:
                path = folder / f"seed-{name}.gguf"
                values = rng.standard_normal((2, twin.BLOCK_WEIGHTS)).astype(np.float32)
                write_gguf(path, {"general.architecture": "none"}, [Tensor("t", name, values.shape, twin.quantize(values))])
                found.append(path)
    return [path for path in found if path.stat().st_size <= 4096]


def fuzz(program: Path, target: str, runs: int, *, seed: int = 1, few: Path | None = None, crash: Path | None = None,
         sanitizer: str = "address", timeout: float | None = None) -> Found:
    """Run the driver; the report is empty when nothing was found."""
    folder = program.parent
    environment = {**os.environ, **(THREAD if sanitizer == "thread" else {})}
    plain = ["setarch", "-R"] if sanitizer == "thread" and shutil.which("setarch") else []  # it wants its addresses free
    command = [*plain, str(program), str(runs), str(seed), str(crash or folder / f"crash-{target}"), str(few or "-"),
               *map(str, seeds(target, folder))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout)
    if done.returncode:
        return Found(0, 0.0, 0, 0, done.stderr or f"ended by status {done.returncode}")
    return Found(**json.loads(done.stdout.splitlines()[-1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--runs", type=int, help=f"default {TARGETS}")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sanitizer", choices=SANITIZERS, default="address")
    parser.add_argument("--few", type=Path, help="a folder for a few inputs that reach more than the corpus does")
    parser.add_argument("--clang", action="store_true", help="drive with libFuzzer")
    args = parser.parse_args()
    args.runs = args.runs or TARGETS[args.target]
    if compiler(args.clang) is None:
        print("this needs clang" if args.clang else "this needs gcc", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as name:
        program = build(args.target, Path(name), sanitizer=args.sanitizer, clang=args.clang)
        if args.clang:
            folder = Path(name) / "seeds"
            folder.mkdir()
            for i, path in enumerate(seeds(args.target, Path(name))):
                shutil.copy(path, folder / str(i))
            options = [f"-runs={args.runs}", f"-seed={args.seed}", "-max_len=4096", "-print_final_stats=1"]
            return subprocess.run([str(program), *options, str(folder)]).returncode
        if args.few:
            args.few.mkdir(parents=True, exist_ok=True)
        found = fuzz(program, args.target, args.runs, seed=args.seed, few=args.few, crash=Path(f"crash-{args.target}"),
                     sanitizer=args.sanitizer)
    if found.report:
        print(found.report, file=sys.stderr)
        return 1
    print(f"{args.target}: {found.runs} runs under the {args.sanitizer} sanitizer in {found.seconds:.0f} s, {found.edges} edges, "
          f"{found.kept} inputs kept, no finding")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
