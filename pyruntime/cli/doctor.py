"""pyruntime doctor"""
from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import click

from ..errors import PyruntimeError
from .common import as_json, human_bytes, say_json, say_table

PACKAGES = ("numpy", "grpcio", "protobuf", "click", "rich", "jinja2")
EXTRAS = {"torch": "the reference backend", "huggingface-hub": "pull hf:…", "pip": "pull smollm2:135m"}


@click.command("doctor", short_help="What this machine can do, and what stands in the way.")
@as_json
def command(as_json: bool) -> int:
    """What this machine can do, and what stands in the way.

    Instruction sets with the features that are missing, threads, memory, huge pages, versions, the cache folder, optional
    packages. Exit code 1 when something that is needed does not work.

    \b
      pyruntime doctor
      PYRUNTIME_ISA=avx512 pyruntime doctor --json
    """
    problems: list[str] = []
    facts: dict[str, Any] = {"versions": versions(), "cpu": cpu(problems), "memory": memory(), "cache": cache(problems),
                             "extras": extras()}
    facts["problems"] = problems
    if as_json:
        say_json(facts)
    else:
        show(facts)
    return 1 if problems else 0


def versions() -> dict[str, str]:
    """Ours, Python's, the system's, and those of what we stand on."""
    from ..version import VERSION

    found = {"pyruntime": VERSION, "python": platform.python_version(), "system": platform.platform()}
    return found | {name: version for name in PACKAGES if (version := installed(name))}


def installed(package: str) -> str:
    """A package's version, "" when it is not there."""
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def cpu(problems: list[str]) -> dict[str, Any]:
    """The processor, its instruction sets and the one an engine would take, the threads it would start."""
    facts: dict[str, Any] = {"name": cpu_name(), "machine": platform.machine(), "cpus": os.cpu_count()}
    try:
        from .. import machine
        from .._core import _engine
    except ImportError as error:
        problems.append(f"the compiled modules do not load: {error}; install the wheel again")
        return facts
    facts["isas"], facts["best_isa"] = dict(_engine.isas()), _engine.best_isa()
    for name, choose in (("isa", machine.isa), ("threads", machine.threads), ("pool", machine.pool),
                         ("precision", machine.precision)):
        try:
            facts[name] = choose()
        except PyruntimeError as error:
            problems.append(str(error))
    try:
        facts["paths"] = {name: machine.paths(name, facts.get("isa", "")) for name in machine.PRECISIONS}
        facts["rounding"] = machine.ROUNDING
    except PyruntimeError as error:
        problems.append(str(error))
    if hasattr(os, "sched_getaffinity"):
        facts["allowed_cpus"] = len(os.sched_getaffinity(0))
    quota = machine.quota(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    facts["cgroup_cpus"] = None if quota == float("inf") else quota
    return facts


def cpu_name() -> str:
    """The processor's own name."""
    for line in read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def memory() -> dict[str, Any]:
    """Bytes in all and free, the control group's limit, and how 2 MB pages are handed out."""
    lines = dict(line.split(":", 1) for line in read("/proc/meminfo").splitlines() if ":" in line)
    size = {name: int(lines[key].split()[0]) * 1024 for name, key in (("total", "MemTotal"), ("available", "MemAvailable"))
            if key in lines}
    limit = read("/sys/fs/cgroup/memory.max").strip()
    pages = read("/sys/kernel/mm/transparent_hugepage/enabled")
    return {**size, "cgroup_limit": int(limit) if limit.isdigit() else None,
            "huge_pages": pages[pages.find("[") + 1 : pages.find("]")] if "[" in pages else "unknown"}


def read(path: str) -> str:
    """A small system file, "" where there is none."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def cache(problems: list[str]) -> dict[str, Any]:
    """The cache folder, whether it can be written, and what is in it."""
    from .. import store

    folder = store.home()
    above = next(path for path in (folder, *folder.parents) if path.exists())
    writable = above.is_dir() and os.access(above, os.W_OK | os.X_OK)
    if not writable:
        problems.append(f"the cache folder {folder} cannot be written; set PYRUNTIME_HOME to one that can")
    entries = store.ls()
    return {"folder": str(folder), "writable": writable, "models": [e.name for e in entries],
            "bytes": sum(e.size for e in entries)}


def extras() -> dict[str, str]:
    """Optional packages and their versions, "" for those not there."""
    return {name: installed(name) for name in EXTRAS}


def show(facts: dict[str, Any]) -> None:
    """The same for people."""
    cpu, memory, cache = facts["cpu"], facts["memory"], facts["cache"]
    pages = {"always": "always given", "madvise": "given when asked for, as the weights do", "never": "never given: slower"}
    rows = [("versions", ", ".join(f"{name} {version}" for name, version in facts["versions"].items())),
            ("processor", f"{cpu['name']} ({cpu['machine']}, {cpu['cpus']} CPUs)")]
    if best := cpu.get("best_isa"):
        chosen = f"{cpu['isa']}, as PYRUNTIME_ISA says" if "isa" in cpu else "none chosen"
        rows.append(("instructions", f"{best}, the best set that runs here" if cpu.get("isa") == best else
                     f"{chosen}; the best set that runs here is {best}"))
    rows += [(f"  {name}", f"cannot run here: lacks {missing}" if missing else "runs here")
             for name, missing in cpu.get("isas", {}).items()]
    if "precision" in cpu:
        rows.append(("precision", cpu["precision"]))
    rows += [(f"  {name}", f"prompts in {prompt}, generated tokens in {generated} here")
             for name, (prompt, generated) in cpu.get("paths", {}).items()]
    used = {path for paths in cpu.get("paths", {}).values() for path in paths}
    rows += [(f"  {path}", meaning) for path, meaning in cpu.get("rounding", {}).items() if path in used]
    if "threads" in cpu:
        quota = "no quota" if cpu["cgroup_cpus"] is None else f"a quota of {cpu['cgroup_cpus']:g}"
        rows.append(("threads", f"{cpu['threads']} ({cpu.get('allowed_cpus', cpu['cpus'])} CPUs allowed, {quota}), "
                                f"pool {cpu.get('pool', '?')}"))
    limit = memory["cgroup_limit"]
    rows += [("memory", f"{human_bytes(memory.get('available', 0))} free of {human_bytes(memory.get('total', 0))}"
                        + (f", control group allows {human_bytes(limit)}" if limit else "")),
             ("2 MB pages", pages.get(memory["huge_pages"], memory["huge_pages"])),
             ("cache", f"{cache['folder']}: {', '.join(cache['models']) or 'no models yet'} ({human_bytes(cache['bytes'])})")]
    for name, version in facts["extras"].items():
        rows.append((name, f"{version or 'not installed'} (for {EXTRAS[name]})"))
    say_table(rows)
    for problem in facts["problems"]:
        click.echo(f"problem: {' '.join(problem.split())}", err=True)
    if not facts["problems"]:
        click.echo("all is well")
