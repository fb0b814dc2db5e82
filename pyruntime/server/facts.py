"""What the server says of its models and its machine, read from the things themselves."""
from __future__ import annotations

import hashlib
import os
import platform
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._core import _engine
from ..backends.native import NativeBackend
from ..loading import page_bytes
from .models import Facts
from .pb import admin_pb2

if TYPE_CHECKING:
    from ..engine.engine import Engine

SAMPLES, SAMPLE_BYTES = 64, 64 << 10


def facts_of(loaded: Any) -> Facts:
    """Facts of an LLM, read from the file it came from; none of a bare engine."""
    model = getattr(loaded, "model", None)
    if model is None:
        return Facts()
    held: Counter[str] = Counter()
    for weight in model.weights:
        held[weight.format_name] += weight.nbytes
    return Facts(
        architecture=model.config.family, revision=fingerprint(model.path), scheme=held.most_common(1)[0][0].lower(),
        parameters=sum(w.rows * max(w.k, 1) for w in model.weights), weight_bytes=model.weights.nbytes)


def fingerprint(path: str | os.PathLike[str]) -> str:
    """16 hexadecimal digits that tell one weights' file, or the files of a folder, from another: of each one's size, first MiB
    (the metadata) and samples across the rest. Reads at most 5 MiB of a file."""
    digest, path = hashlib.sha256(), Path(path)
    for one in [path / "config.json", *sorted(path.glob("*.safetensors"))] if path.is_dir() else [path]:
        size = one.stat().st_size
        digest.update(str(size).encode())
        with open(one, "rb") as file:
            digest.update(file.read(1 << 20))
            for i in range(SAMPLES):
                file.seek(i * max(0, size - SAMPLE_BYTES) // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def cache_bytes(engines: Iterable[Engine]) -> int:
    """Bytes of K and V and states that the engines' pages hold."""
    return sum(n * page_bytes(g) for e in engines for g, n in zip(e.backend.plan.groups, e.backend.pages, strict=True))


def cpu_of(engines: Iterable[Engine]) -> tuple[admin_pb2.GetServerInfoResponse.Cpu, int]:
    """The processor, the instruction sets it can run, the one in use and why no better one is; and how many threads compute.

    Of the first engine on the native backend; without one there is no set in use."""
    native = next((e.backend for e in engines if isinstance(e.backend, NativeBackend)), None)
    vendor, model = cpu_names()
    sets = _engine.isas()
    out = admin_pb2.GetServerInfoResponse.Cpu(
        vendor=vendor, model=model, isa_detected=[name for name, missing in sets if not missing])
    if native is None:
        return out, 0
    out.isa_selected = native.isa
    better = sets[[name for name, _ in sets].index(native.isa) + 1 :]
    out.isa_reason = "; ".join(f"{name}: this processor lacks {missing}" if missing else f"{name}: {native.isa} was asked for"
                               for name, missing in better)
    return out, native.threads


def cpu_names() -> tuple[str, str]:
    """(vendor, model) as the system tells them; "" where it does not."""
    try:
        lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    except OSError:
        return "", platform.processor()
    known = {key.strip(): value.strip() for key, _, value in reversed(lines)}
    return known.get("vendor_id", ""), known.get("model name", platform.processor())
