"""Who may import whom, read from the sources, and what `import pyruntime` costs."""
from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pyruntime"

#: from the ground up; a module may import from floors below its own and from its own
FLOORS = [
    {"errors", "version"},
    {"plan", "types", "texts", "config", "recipe"},
    {"models", "_core"},
    {"machine", "quant", "weights", "tokenizer", "store"},
    {"backends"},
    {"trace", "cache"},
    {"engine"},
    {"loading"},
    {"llm", "async_llm"},
    {"bench"},
    {"server", "client"},
    {"cli", "__main__"},
]
#: what a room may take from outside the standard library
OUTSIDE = {
    "errors": set(), "version": set(), "plan": set(), "config": set(), "recipe": set(), "types": {"numpy"}, "texts": {"numpy"},
    "models": set(),
    "store": {"huggingface_hub"}, "machine": {"numpy"}, "quant": {"numpy"}, "weights": {"numpy"},
    "tokenizer": {"numpy", "jinja2"},
    "trace": {"numpy"}, "backends": {"numpy", "torch"}, "cache": {"numpy"}, "engine": {"numpy"},
    "loading": {"rich"}, "llm": {"numpy"}, "async_llm": set(), "bench": {"numpy", "matplotlib"},
    "server": {"numpy", "grpc", "google", "grpc_health", "grpc_reflection", "grpc_status"},
    "client": {"grpc", "google", "grpc_health", "grpc_reflection", "grpc_status"},
    "cli": {"click", "rich", "numpy", "grpc", "grpc_health"}, "__main__": set(), "_core": {"numpy"},
}
STANDARD = set(sys.stdlib_module_names)
CONCRETE = {"pyruntime.backends.native", "pyruntime.backends.torch", "pyruntime.backends.torch_ops"}


def sources() -> list[Path]:
    return [p for p in sorted(PACKAGE.rglob("*.py")) if "pb" not in p.parts]


def imports(path: Path) -> set[str]:
    """Every module a file imports, absolute, wherever in the file it does."""
    module = path.relative_to(ROOT).with_suffix("").parts
    package = module[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) + 1 - node.level]) if node.level else []
            name = ".".join(base + ([node.module] if node.module else []))
            found |= {f"{name}.{alias.name}" for alias in node.names} if name in ("pyruntime", "pyruntime.backends") else {name}
    return found


def room(module: str) -> str:
    """`pyruntime.engine.events` -> `engine`."""
    return module.split(".")[1] if "." in module else module


def floor(name: str) -> int:
    return next(i for i, floor in enumerate(FLOORS) if name in floor)


def test_every_room_has_a_floor() -> None:
    rooms = {room(".".join(p.relative_to(ROOT).with_suffix("").parts)) for p in sources()} - {"__init__"}
    assert rooms <= set().union(*FLOORS) and rooms <= set(OUTSIDE)


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    own = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if own == "__init__":
        return    # hands names out lazily, from every floor
    for module in imports(path):
        top = module.split(".")[0]
        if top == "pyruntime":
            below = room(module)
            if below in ("__version__", "pyruntime") or below[0].isupper() or below == "open_model":
                assert own in ("cli", "server", "client"), f"{path}: takes {below} from the front door"
            else:
                assert floor(below) <= floor(own), f"{path} imports {module} from a floor above"
        else:
            assert top in STANDARD | OUTSIDE[own], f"{path} imports {module}"


@pytest.mark.parametrize("own", ["engine", "cache"])
def test_the_engine_knows_no_backend(own: str) -> None:
    for path in (PACKAGE / own).rglob("*.py"):
        for module in imports(path):
            assert module.split(".")[0] != "torch" and not module.startswith("pyruntime._core") and module not in CONCRETE, path


def test_only_loading_trace_and_the_edges_choose_a_backend() -> None:
    for path in sources():
        own = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
        if own not in ("backends", "loading", "trace", "server", "cli"):
            assert not imports(path) & CONCRETE, path


def family_names() -> set[str]:
    """What families are called: files, architectures, model types, and the words in these before a number."""
    from pyruntime.models import families, hf_families

    names = {*families(), *hf_families(), *(p.stem for p in (PACKAGE / "models").glob("[!_]*.py"))}
    return names | {word for name in names if len(word := re.split(r"[\d_.-]", name)[0]) > 2}


def test_family_names_are_found() -> None:
    assert {"llama", "gemma", "gemma3", "gpt2", "gpt"} <= family_names()


@pytest.mark.parametrize("room", ["csrc/base", "csrc/isa", "csrc/exec", "pyruntime/engine", "pyruntime/cache"])
def test_no_family_is_known_below_the_models(room: str) -> None:
    """Neither the executor nor the engine mentions one by name."""
    word = re.compile(r"(?<![a-z])(" + "|".join(sorted(family_names())) + r")(?![a-z])", re.IGNORECASE)
    sources = [p for p in sorted((ROOT / room).rglob("*")) if p.suffix in (".c", ".h", ".def", ".inc", ".py")]
    assert sources
    for path in sources:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert not word.search(line), f"{path}:{number} mentions a family: {line.strip()}"


def test_ground_floor_is_plain() -> None:
    for name in ("plan", "config", "recipe", "types", "errors"):
        outside = {m.split(".")[0] for m in imports(PACKAGE / f"{name}.py")} - STANDARD - {"pyruntime"}
        assert outside <= {"numpy"}, name


def test_import_pyruntime_imports_nothing_heavy() -> None:
    script = "import json, sys, pyruntime; pyruntime.__version__; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.check_output([sys.executable, "-c", script], cwd=ROOT, text=True))
    tops = {name.split(".")[0] for name in loaded}
    assert not tops & {"torch", "grpc", "rich", "jinja2", "numpy", "click", "google", "huggingface_hub", "asyncio"}
    assert [n for n in loaded if n.startswith("pyruntime")] == ["pyruntime", "pyruntime.version"]


def test_import_llm_imports_no_torch_and_no_grpc() -> None:
    script = "import json, sys; from pyruntime import LLM, SamplingParams; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.check_output([sys.executable, "-c", script], cwd=ROOT, text=True))
    tops = {name.split(".")[0] for name in loaded}
    assert not tops & {"torch", "grpc", "rich", "jinja2", "click", "transformers", "asyncio", "ssl"}


def test_every_public_name_is_there() -> None:
    import pyruntime

    assert set(pyruntime.__all__) <= set(dir(pyruntime))
    assert all(getattr(pyruntime, name) is not None for name in pyruntime.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pyruntime.nothing


def c_files() -> list[Path]:
    return [p for p in sorted((ROOT / "csrc").rglob("*.[ch]"))]


C_FLOORS = ["defs", "base", "simd", "quant", "ops", "isa", "exec"]


@pytest.mark.parametrize("path", c_files(), ids=lambda p: str(p.relative_to(ROOT / "csrc")))
def test_c_includes_go_down(path: Path) -> None:
    own = path.relative_to(ROOT / "csrc").parts[0]
    for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), re.M):
        target = name.split("/")[0]
        if "/" not in name or target == own or own == "rt.h" or target in ("defs", "base"):
            continue
        if own in C_FLOORS and target in C_FLOORS:
            below = C_FLOORS.index(target) <= C_FLOORS.index(own) or name == "isa/kernels.h"
            assert below, f"{path} includes {name} from a floor above"
        else:
            assert own in ("load", "text") and target in ("quant", "isa") or own == "exec", f"{path} includes {name}"
