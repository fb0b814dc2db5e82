"""Processors that are not here, emulated: the built tree whole on a Nehalem (no AVX) and a Haswell (no AVX-512), every kernel
there and on Arm with the same bits; and compiled code read: no object holds an instruction above its line in isas.def."""
from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from instructions import Instruction, above, functions, levels, ranges, unpadded

from pyruntime._core import _engine

ROOT = Path(__file__).parent.parent
#: processors of qemu, and the set an engine must take on each
CPUS = {"Nehalem": "scalar", "Haswell": "avx2"}
ANSWER = """
import json, sys
from pyruntime import LLM, SamplingParams
with LLM(sys.argv[1], threads=2, progress=False) as llm:
    outs = [llm.generate(text, SamplingParams(max_tokens=16, logprobs=3, **more))
            for text, more in (("the hell", dict(temperature=0.0)), ("on the other hand, " * 9, dict(temperature=0.9, seed=7)))]
print(json.dumps({"isa": llm.engine.backend.isa, "said": [[o.text, list(o.token_ids), repr(o.logprobs)] for o in outs]}))
"""
UNABLE = """
import sys
import numpy as np
from pyruntime._core._kernels import Kernels
Kernels(sys.argv[1]).add_bias(np.ones(99, np.float32), np.ones(99, np.float32))
"""


def python(*arguments: object, cpu: str = "", paths: str = "a16,a16") -> subprocess.CompletedProcess[str]:
    """This Python, natively or on an emulated processor."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYRUNTIME_")}
    environment |= {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", "PYRUNTIME_PATHS": paths}
    command = [sys.executable, *map(str, arguments)]
    if cpu:
        command = [str(shutil.which("qemu-x86_64")), "-cpu", cpu, *command]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=ROOT)


@pytest.fixture(scope="module", params=CPUS)
def cpu(request: pytest.FixtureRequest) -> str:
    if not dict(_engine.isas()).keys() >= {"avx2"}:
        pytest.skip("this build is of another architecture")
    if not shutil.which("qemu-x86_64"):
        pytest.skip("older processors need the emulator (Debian: qemu-user)")
    return request.param


@pytest.mark.parametrize("paths", ["a16,a16", "a16_bf16,a16", "a8,a16"])
def test_an_older_cpu_gives_the_same_answers(cpu: str, tiny_model: Path, paths: str) -> None:
    """Greedy and drawn tokens and the bits of their log-probabilities, from the best set of each processor on the same paths."""
    said = [python("-c", ANSWER, tiny_model, cpu=which, paths=paths) for which in ("", cpu)]
    assert [p.returncode for p in said] == [0, 0], said[1].stderr[-2000:]
    here, there = (json.loads(p.stdout) for p in said)
    assert here["isa"] == _engine.best_isa() and there["isa"] == CPUS[cpu]
    assert here["said"] == there["said"] and all(len(ids) == 16 for _, ids, _ in there["said"])


def test_commands_run_on_an_older_cpu(cpu: str, tiny_model: Path) -> None:
    ran = python("-m", "pyruntime", "doctor", "--json", cpu=cpu)
    facts = json.loads(ran.stdout)
    assert ran.returncode == 0 and facts["problems"] == [] and facts["cpu"]["isa"] == CPUS[cpu]
    assert {name for name, missing in facts["cpu"]["isas"].items() if not missing} == {"scalar", CPUS[cpu]}
    assert "avx512f" in facts["cpu"]["isas"]["avx512"]
    ran = python("-m", "pyruntime", "run", tiny_model, "the world", "-n", 4, "--temperature", 0, cpu=cpu)
    assert ran.returncode == 0 and ran.stdout.strip(), ran.stderr[-2000:]


@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_the_emulator_has_no_more_than_the_cpu(cpu: str, isa: str) -> None:
    """What makes the two above proofs: an instruction the processor lacks ends the process."""
    ran = python("-c", UNABLE, isa, cpu=cpu)
    assert (ran.returncode == 0) == (CPUS[cpu] == isa), ran.stderr[-2000:]
    if ran.returncode:
        assert ran.returncode in (-4, 132), ran.stderr[-2000:]


# ---- what the compiled code holds ----


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every object of the C library, by its source: those last built if nothing changed since, else built now."""
    if not dict(_engine.isas()).keys() >= {"avx2"}:
        pytest.skip("this build is of another architecture")
    if not (shutil.which("objdump") and shutil.which("as") and shutil.which("gcc")):
        pytest.skip("needs gcc and binutils")
    sources = [p for p in (ROOT / "csrc").rglob("*") if p.is_file()]
    newest = max(p.stat().st_mtime for p in sources)
    wanted = {str(p.relative_to(ROOT).with_suffix(".o")) for p in sources if p.suffix == ".c"}
    for folder in (ROOT / "build").glob("temp*"):
        found = {str(p.relative_to(folder)): p for p in (folder / "csrc").rglob("*.o")}
        if wanted <= found.keys() and min(found[name].stat().st_mtime for name in wanted) > newest:
            return {name: found[name] for name in wanted}
    out = tmp_path_factory.mktemp("objects")
    subprocess.run([sys.executable, "setup.py", "-q", "build_clib", "-b", out, "-t", out], cwd=ROOT, check=True)
    return {name: out / name for name in wanted}


def level(name: str) -> list[str]:
    """Features code of this object may use: those of its set, and of no other."""
    parts = Path(name).parts
    return levels().get(Path(name).stem, []) if parts[-2] == "isa" else []


def test_no_object_holds_instructions_above_its_level(objects: dict[str, Path]) -> None:
    """All but the sets run on any x86-64; a set uses what its line in isas.def names. base/cpu.c asks the system by xgetbv,
    behind the flag that says the CPU has it."""
    for name, path in objects.items():
        code = [i for body in functions(path).values() for i in body]
        wrong = [i.text for i in above(code, level(name)) if (name, i.text) != ("csrc/base/cpu.o", "xgetbv")]
        assert not wrong, f"{name}: {wrong[:5]}"
        if level(name):
            assert above(code, []), f"{name} uses nothing of its set"


def test_modules_hold_the_sets_and_nothing_else_above_the_baseline(objects: dict[str, Path]) -> None:
    """In the modules as shipped, stripped: each function above the baseline is one of a set's object."""
    modules = sorted((ROOT / "pyruntime/_core").glob("*.so"))
    newest = max(p.stat().st_mtime for p in (ROOT / "csrc").rglob("*") if p.is_file())
    if min(p.stat().st_mtime for p in modules) < newest:
        pytest.skip("sources changed since the modules were built")
    sets = {tuple(i.name for i in body) for name, path in objects.items() if level(name) for body in functions(path).values()}
    found = [strangers(module, sets) for module in modules]
    assert not [f for f, _ in found if f] and sum(seen for _, seen in found) > 50


def strangers(module: Path, sets: set[tuple[str, ...]]) -> tuple[list[str], int]:
    """Instructions above the baseline outside functions of the sets, and how many functions of the sets there are."""
    code = sorted(i for body in functions(module).values() for i in body)
    wide = {i.address for i in above(code, []) if i.text != "xgetbv"}
    bodies: dict[tuple[int, int], list[Instruction]] = {}
    bounds, at, seen = ranges(module), 0, 0
    for i in code:
        while at + 1 < len(bounds) and bounds[at + 1][0] <= i.address:
            at += 1
        inside = bounds and bounds[at][0] <= i.address < bounds[at][1]
        bodies.setdefault(bounds[at] if inside else (0, 0), []).append(i)
    wrong = []
    for where, body in bodies.items():
        if above_here := [i.text for i in body if i.address in wide]:
            known = where != (0, 0) and tuple(i.name for i in unpadded(body)) in sets
            seen += known
            wrong += [] if known else above_here
    return wrong, seen


def test_a_planted_function_in_a_module_is_found(objects: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "planted.c").write_text("void g(int *p) { p[0] = 1; }\n" '#pragma GCC target("avx2")\n'
                                        "void f(int *p) { for (int i = 0; i < 64; i++) p[i] *= 3; }\n")
    subprocess.run(["gcc", "-O3", "-fPIC", "-shared", "-Wl,-s", tmp_path / "planted.c", "-o", tmp_path / "planted.so"], check=True)
    assert strangers(tmp_path / "planted.so", set())[0]
    subprocess.run(["gcc", "-O3", "-fPIC", "-c", tmp_path / "planted.c", "-o", tmp_path / "planted.o"], check=True)
    body = tuple(i.name for i in functions(tmp_path / "planted.o")["f"])
    assert strangers(tmp_path / "planted.so", {body}) == ([], 1)


PLANTED = {  # (object's name, features it is compiled with): C code
    ("csrc/base/pool.o", "avx2"): "void f(int *p) { for (int i = 0; i < 64; i++) p[i] *= 3; }",
    ("csrc/base/pool.o", "popcnt"): "int f(int x) { return __builtin_popcount(x); }",
    ("csrc/isa/scalar.o", "fma"): "float f(float x, float y) { return __builtin_fmaf(x, y, 1); }",
    ("csrc/isa/scalar.o", "sse4.1"): "float f(float x) { return __builtin_rintf(x); }",
    ("csrc/quant/formats.o", "bmi2"): "unsigned f(unsigned x, int n) { return x << n; }",
    ("csrc/isa/avx2.o", "avx512f"): "void f(int *p) { for (int i = 0; i < 64; i++) p[i] *= 3; }",
    ("csrc/isa/avx2.o", "avx512vl"): "#include <immintrin.h>\n__m256i f(__m256i a, __m256i b) { return _mm256_max_epi64(a, b); }",
    ("csrc/isa/avx2.o", "avxvnni"):
        "#include <immintrin.h>\n__m256i f(__m256i a, __m256i b) { return _mm256_dpbusd_avx_epi32(a, b, b); }",
    ("csrc/isa/avx512.o", "avx512f,avx512bf16"):
        "#include <immintrin.h>\n__m512 f(__m512 a, __m512i b) { return _mm512_dpbf16_ps(a, (__m512bh)b, (__m512bh)b); }",
    ("csrc/isa/avx512.o", "avx512f,avx512vbmi"):
        "#include <immintrin.h>\n__m512i f(__m512i a, __m512i b) { return _mm512_permutexvar_epi8(a, b); }",
    ("csrc/isa/avx512.o", "amx-tile,amx-int8"): "#include <immintrin.h>\nvoid f(void) { _tile_dpbusd(0, 1, 2); }",
}


@pytest.mark.parametrize("name, features", PLANTED)
def test_a_planted_instruction_is_found(objects: dict[str, Path], name: str, features: str, tmp_path: Path) -> None:
    pragma = f'#pragma GCC target("{features}")\n'
    (tmp_path / "planted.c").write_text(pragma + PLANTED[name, features] + "\n")
    subprocess.run(["gcc", "-O3", "-c", tmp_path / "planted.c", "-o", tmp_path / "planted.o"], check=True)
    code = functions(tmp_path / "planted.o")["f"]
    assert above(code, level(name)) and not above(code, [FLAGS_OF_GCC.get(f, f) for f in features.split(",")])


#: what gcc calls them -> what the assembler does
FLAGS_OF_GCC = {"avx512bf16": "avx512_bf16", "avxvnni": "avx_vnni"}


# ---- every kernel on every processor ----

BATTERY = ROOT / "tests/kernel_battery.c"
C = ["-std=gnu11", "-O3", "-fno-schedule-insns", "-ffp-contract=off", "-fopenmp", "-Wall", "-Wextra", "-Werror"]
ARM = "aarch64-linux-gnu-gcc"


def hashes(*command: object) -> dict[str, dict[str, str]]:
    """set -> kernel and format -> hash of what it computed (tests/kernel_battery.c)."""
    said = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=True, timeout=300).stdout
    return parsed(said.splitlines())


def parsed(lines: Iterable[str]) -> dict[str, dict[str, str]]:
    out: dict[str, dict[str, str]] = {}
    for isa, kernel, format, hash_ in (line.split() for line in lines):
        out.setdefault(isa, {})[f"{kernel} {format}"] = hash_
    return out


@pytest.fixture(scope="module")
def battery(objects: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The battery for x86-64, over the objects as built."""
    return link_battery(objects, tmp_path_factory.mktemp("battery") / "battery")


def link_battery(objects: dict[str, Path], out: Path, *more: str) -> Path:
    needed = [path for name, path in objects.items() if "/isa/" in name or "/quant/" in name]
    needed += [objects["csrc/base/cpu.o"], objects["csrc/load/pack.o"]]
    subprocess.run(["gcc", *C, *more, f"-I{ROOT}/csrc", BATTERY, *needed, "-lm", "-o", out], check=True, capture_output=True)
    return out


def test_every_kernel_is_the_same_on_an_older_cpu(battery: Path, cpu: str) -> None:
    here, there = hashes(battery), hashes("qemu-x86_64", "-cpu", cpu, battery)
    assert there.keys() == {"scalar", CPUS[cpu]} and len(here["scalar"]) > 20
    assert all(kernels == here["scalar"] for kernels in [*here.values(), *there.values()])


# ---- a machine of its own, for instructions that qemu does not have ----

#: Bochs's processors that have a set; 3.0 is the first release with AMX
MODELS = {"avx512": ("sapphire_rapids", "tigerlake", "corei7_icelake_u"), "avx512bf16": ("sapphire_rapids",),
          "amx": ("sapphire_rapids",)}


def bare_metal(folder: Path, isa: str, program: Path) -> dict[str, str]:
    """The battery's hashes from a set on a processor of Bochs (PYRUNTIME_BOCHS, else on the path), which runs nothing else."""
    if not (bochs := os.environ.get("PYRUNTIME_BOCHS") or shutil.which("bochs")):
        pytest.skip(f"{isa} on a machine of its own needs Bochs (Debian: bochs)")
    about = subprocess.run([bochs, "--help", "cpu"], capture_output=True, text=True)
    known = (about.stdout + about.stderr).split()
    if not (models := [model for model in MODELS[isa] if model in known]):
        pytest.skip(f"this Bochs has no processor with {isa}")
    rom = folder / "rom.bin"
    subprocess.run(["gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-fno-builtin", "-fno-stack-protector", "-fPIE",
                    "-mgeneral-regs-only", "-mno-red-zone", "-fcf-protection=none", "-nostdlib", "-static", "-Wl,--build-id=none",
                    "-T", ROOT / "tests/bare_metal.ld", ROOT / "tests/bare_metal.S", ROOT / "tests/bare_metal.c",
                    "-o", folder / "rom.elf"], check=True)
    subprocess.run(["objcopy", "-O", "binary", folder / "rom.elf", rom], check=True)
    code, command = program.read_bytes(), f"battery\n{isa}\n".encode()
    assert len(code) <= 0x1e0000
    (folder / "rom").write_bytes(code.ljust(0x1e0000, b"\0") + command.ljust(0x10000, b"\0") + rom.read_bytes())
    (folder / "vga").write_bytes(b"\x55\xaa\x01" + bytes(509))
    lines = [f"romimage: file={folder}/rom, address=0xffe00000", f"vgaromimage: file={folder}/vga", "vga: extension=none",
             "megs: 256", f"cpu: model={models[0]}, count=1, reset_on_triple_fault=0", "port_e9_hack: enabled=1",
             "plugin_ctrl: speaker=false", 'display_library: rfb, options="timeout=0"', f"log: {folder}/log", "panic: action=fatal",
             "error: action=ignore", "info: action=ignore"]
    (folder / "bochsrc").write_text("\n".join(lines) + "\n")
    ran = subprocess.run([bochs, "-q", "-f", folder / "bochsrc"], input="c\n", capture_output=True, text=True, timeout=300)
    (folder / "said").write_text(ran.stdout)
    assert "\nexit 0\n" in ran.stdout, (ran.stdout + ran.stderr)[-2000:]
    said = parsed(line for line in ran.stdout.splitlines() if line.startswith(isa))[isa]
    if "2.7" in known:  # its vcvtps2ph rounds some numbers half way between two the wrong way, on every processor
        said = {kernel: hash_ for kernel, hash_ in said.items() if not re.search(r"attention .*\bF16", kernel)}
    return said


@pytest.mark.parametrize("isa", MODELS)
def test_every_kernel_is_the_same_on_a_machine_of_its_own(objects: dict[str, Path], battery: Path, isa: str,
                                                          tmp_path: Path) -> None:
    """Instructions neither this CPU nor qemu has, as Bochs executes them."""
    if isa not in dict(_engine.isas()):
        pytest.skip(f"no {isa} in this build")
    sets = [set_ for set_ in levels() if set_ not in (isa, "avx512")]  # the program must fit into a ROM: other sets stay out
    needed = {name: path for name, path in objects.items() if Path(name).stem not in sets}
    link_battery(needed, tmp_path / "program", "-static", "-s", *(f"-Wl,--defsym=rt_kernels_{set_}=0" for set_ in sets))
    said, want = bare_metal(tmp_path, isa, tmp_path / "program"), hashes(battery)["scalar"]
    assert said.keys() <= want.keys() and len(said) > 20 and said == {kernel: want[kernel] for kernel in said}


# ---- Arm ----


class Arm:
    """The kernels and the battery for Arm, as objects."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        sources = [BATTERY, *(ROOT / "csrc/isa").glob("*.c"), *(ROOT / "csrc/quant").glob("*.c"), ROOT / "csrc/base/cpu.c",
                   ROOT / "csrc/load/pack.c"]
        self.objects = {path.name: self.compile(path) for path in sources}

    def compile(self, source: Path, *first: str, folder: Path | None = None) -> Path:
        out = (folder or self.folder) / f"{source.parent.name}-{source.stem}.o"
        subprocess.run([ARM, *C, "-O1", *first, f"-I{ROOT}/csrc", "-c", source, "-o", out], check=True)
        return out

    def link(self, name: str, **others: Path) -> Path:
        out, objects = self.folder / name, self.objects | {f"{stem}.c": path for stem, path in others.items()}
        subprocess.run([ARM, "-static", "-fopenmp", *objects.values(), "-lm", "-o", out], check=True, capture_output=True)
        return out


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Arm:
    if not (shutil.which("qemu-aarch64") and shutil.which(ARM)):
        pytest.skip("Arm needs a compiler and an emulator (Debian: gcc-aarch64-linux-gnu, libc6-dev-arm64-cross, qemu-user)")
    return Arm(tmp_path_factory.mktemp("arm"))


def test_every_kernel_is_the_same_on_arm(arm: Arm, battery: Path) -> None:
    """NEON's instructions against the scalar set of the same binary, and both against x86-64."""
    want, program = hashes(battery)["scalar"], arm.link("battery")
    assert hashes("qemu-aarch64", "-cpu", "neoverse-n1", program) == {"scalar": want, "neon": want}
    assert hashes("qemu-aarch64", "-cpu", "cortex-a53", program) == {"scalar": want}  # which has no dot products


@pytest.mark.parametrize("line, fault", [
    ("vfmaq_f32(z.c, x.c, y.c)", "vaddq_f32(z.c, vmulq_f32(x.c, y.c))"),
    ("vrndnq_f32", "vrndmq_f32"),
    ("j % 2 == 0", "j % 4 == 0"),
])
def test_a_fault_in_neon_is_found(arm: Arm, battery: Path, tmp_path: Path, line: str, fault: str) -> None:
    source = (ROOT / "csrc/simd/neon.h").read_text()
    assert source.count(line) == 1
    (tmp_path / "simd").mkdir()
    (tmp_path / "simd/neon.h").write_text(source.replace(line, fault))
    faulty = arm.compile(ROOT / "csrc/isa/neon.c", "-O0", f"-I{tmp_path}", folder=tmp_path)
    got = hashes("qemu-aarch64", arm.link("faulty", neon=faulty))
    assert got["scalar"] == hashes(battery)["scalar"] != got["neon"]


def test_the_whole_library_is_sound_for_arm(arm: Arm) -> None:
    """Nothing in it is for x86-64 alone: no warning from any file."""
    for path in sorted((ROOT / "csrc").rglob("*.c")):
        subprocess.run([ARM, *C, "-fsyntax-only", f"-I{ROOT}/csrc", path], check=True)
