"""What this process may use of the machine: CPUs, instruction sets, kinds of thread pool. Each can be set in the environment."""
from __future__ import annotations

import math
import os
from pathlib import Path

from ._core import _engine
from .errors import FieldInvalid

THREADS_MAX = 1024
POOLS = ("own", "openmp")
#: csrc/quant/act.h, enum rt_path: how the products of a token round; closest to f32 first
ROUNDING = {"a16": "activations are 16-bit integers, beside float weights f32",
            "a16_bf16": "as a16, but float weights and their activations are bf16", "bf16": "weights and activations are bf16",
            "a8": "activations are 8-bit integers under a scale for every 32; float weights as a16_bf16"}
PATHS = tuple(ROUNDING)
#: the most rounding a prompt's and a generated token may take
PRECISIONS = {"balanced": ("bf16", "a16"), "precise": ("a16", "a16"), "throughput": ("bf16", "bf16"), "int8": ("a8", "a16")}
#: the paths that are faster than those before them, by instruction set; elsewhere A16 is both faster and closer. A8 on AVX2:
#: weights of 4 and 5 bits, others become 3 to 9 % slower; on NEON reasoned, not measured
FASTER: dict[str, tuple[str, ...]] = {"avx2": ("a8",), "avx512": ("a8",), "avx512bf16": ("a16_bf16", "a8"), "amx": ("bf16",),
                                      "neon": ("a8",)}


def threads(asked: int | None = None) -> int:
    """`asked`, else PYRUNTIME_THREADS, else the CPUs this process may use. FieldInvalid: not 1 to 1024."""
    name, value = "threads", str(asked)
    if asked is None:
        name, value = "PYRUNTIME_THREADS", os.environ.get("PYRUNTIME_THREADS", "")
        if not value:
            return cpus()
    if not value.isdecimal() or not 1 <= int(value) <= THREADS_MAX:
        raise FieldInvalid(f"{name} is '{value}'; it must be a whole number, 1 to {THREADS_MAX}", field="threads")
    return int(value)


def cpus() -> int:
    """CPUs this process may use: its affinity, and its control group's quota rounded up."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    granted = quota(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    return max(1, math.ceil(min(allowed, granted, THREADS_MAX)))


def quota(membership: Path, root: Path) -> float:
    """CPUs of time the tightest control group around this process grants, version 1 or 2; infinity when none limits it."""
    try:
        lines = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        return math.inf
    least = math.inf
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if not controllers:
            least = min(least, *(_unified(folder) for folder in _around(root, path)))
        elif "cpu" in controllers.split(","):
            for base in (root / controllers, root / "cpu"):
                least = min(least, *(_classic(folder) for folder in _around(base, path)))
    return least


def _around(base: Path, path: str) -> list[Path]:
    """A group's folder and those it stands in, down to `base` (which inside a container is the group itself)."""
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    return [base.joinpath(*parts[:n]) for n in range(len(parts), -1, -1)]


def _unified(folder: Path) -> float:
    try:
        granted, period = (folder / "cpu.max").read_text().split()
        return math.inf if granted == "max" else int(granted) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


def _classic(folder: Path) -> float:
    try:
        granted, period = (int((folder / f"cpu.cfs_{what}_us").read_text()) for what in ("quota", "period"))
        return granted / period if granted > 0 else math.inf
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


def isa(asked: str | None = None) -> str:
    """`asked`, else PYRUNTIME_ISA, else the best set this machine can run. FieldInvalid: unknown, or it cannot run here."""
    name = "isa" if asked is not None else "PYRUNTIME_ISA"
    wanted = asked if asked is not None else os.environ.get("PYRUNTIME_ISA", "")
    if not wanted:
        return _engine.best_isa()
    known = dict(_engine.isas())
    if wanted not in known:
        raise FieldInvalid(f"{name} is '{wanted}'; known: {', '.join(known)}", field="isa")
    if known[wanted]:
        raise FieldInvalid(f"{name} is '{wanted}', and this machine lacks {known[wanted]}; leave it out to take "
                           f"{_engine.best_isa()}", field="isa")
    return wanted


def pool(asked: str | None = None) -> str:
    """`asked`, else PYRUNTIME_POOL, else "own". FieldInvalid: not one of POOLS."""
    name = "pool" if asked is not None else "PYRUNTIME_POOL"
    wanted = (asked if asked is not None else os.environ.get("PYRUNTIME_POOL", "")) or "own"
    if wanted not in POOLS:
        raise FieldInvalid(f"{name} is '{wanted}'; known: {', '.join(POOLS)}", field="pool")
    return wanted


def precision(asked: str | None = None) -> str:
    """`asked`, else PYRUNTIME_PRECISION, else "balanced". FieldInvalid: not one of PRECISIONS."""
    name = "precision" if asked is not None else "PYRUNTIME_PRECISION"
    wanted = (asked if asked is not None else os.environ.get("PYRUNTIME_PRECISION", "")) or "balanced"
    if wanted not in PRECISIONS:
        raise FieldInvalid(f"{name} is '{wanted}'; known: {', '.join(PRECISIONS)}", field="precision")
    return wanted


def paths(precision: str, isa: str, forced: tuple[str, str] | None = None) -> tuple[str, str]:
    """The path of (prompt, generated) tokens: the fastest on `isa` that `precision` allows each.

    `forced`, else PYRUNTIME_PATHS ("bf16,a16"), names them outright: for measuring. FieldInvalid: not two of PATHS."""
    name, wanted = "paths", forced
    if wanted is None and (text := os.environ.get("PYRUNTIME_PATHS", "")):
        name, wanted = "PYRUNTIME_PATHS", tuple(text.split(","))  # type: ignore[assignment]
    if wanted is None:
        prompt, generated = (_fastest(allowed, isa) for allowed in PRECISIONS[precision])
        return prompt, generated
    if len(wanted) != 2 or not set(wanted) <= set(PATHS):
        raise FieldInvalid(f"{name} is '{','.join(wanted)}'; it must be the prompt's and the generated tokens' path, each one of "
                           f"{', '.join(PATHS)}", field="paths")
    return wanted


def _fastest(allowed: str, isa: str) -> str:
    """The last of the paths up to `allowed` that gains speed on `isa`."""
    known = PATHS[: PATHS.index(allowed) + 1]
    return next((path for path in reversed(known) if path in FASTER.get(isa, ())), PATHS[0])
