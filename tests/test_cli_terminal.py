"""The commands in a real terminal and as real processes: keys, signals, pipes."""
from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest

PYRUNTIME = (sys.executable, "-m", "pyruntime")


@pytest.fixture(autouse=True)
def interruptible():
    """Children take SIGINT also where these tests run in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Terminal:
    """A process whose stdin, stdout and stderr are one terminal."""

    def __init__(self, *arguments: object) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "xterm"
            os.execv(sys.executable, [*PYRUNTIME, *map(str, arguments)])
        self.seen = ""

    def until(self, pattern: str, seconds: float = 60) -> str:
        """What appears up to a match of `pattern`."""
        deadline = time.monotonic() + seconds
        while not (match := re.search(pattern, self.seen)):
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.seen!r}"
            if select.select([self.fd], [], [], 0.2)[0]:
                try:
                    data = os.read(self.fd, 65536)
                except OSError:     # the other side is closed
                    data = b""
                assert data, f"ended before {pattern!r}: {self.seen!r}"
                self.seen += data.decode("utf-8", "replace")
        text, self.seen = self.seen[: match.end()], self.seen[match.end():]
        return text

    def type(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def wait(self) -> int:
        deadline = time.monotonic() + 60
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self.fd)
                return os.waitstatus_to_exitcode(status)
            assert time.monotonic() < deadline
            try:
                if select.select([self.fd], [], [], 0.05)[0]:
                    os.read(self.fd, 65536)
            except OSError:
                time.sleep(0.05)


def test_chat_in_a_terminal(tiny_model):
    terminal = Terminal("chat", tiny_model, "--temperature", "0")
    terminal.until("/help for commands")
    terminal.until("> ")
    terminal.type("/help\n")
    terminal.until(r"/quit +leave")
    terminal.type("the\n")          # without -n an answer fills the context unless the model ends it
    terminal.until("> ")
    terminal.type("/stats\n")
    terminal.until(r"\d+ generated[^>]*> ")
    time.sleep(0.5)                 # a signal between the prompt's appearance and readline's wait is seen at the next key only
    terminal.type("\x03")           # at the prompt Ctrl-C only says how to leave
    terminal.until(r"Ctrl-D leaves[^>]*> ")
    terminal.type("\x04")
    assert terminal.wait() == 0


def test_ctrl_c_stops_an_answer_and_the_chat_goes_on(tiny_model):
    terminal = Terminal("chat", tiny_model, "--backend", "torch", "--temperature", "0")
    terminal.until("> ")
    terminal.type("and the world\n")
    terminal.until("world\r\n")
    terminal.until(r"[^\r\n]")      # the answer has begun
    terminal.type("\x03")
    terminal.until(r"\(stopped\)[^>]*> ")
    terminal.type("/quit\n")
    assert terminal.wait() == 0


def test_run_in_a_terminal_says_how_fast(tiny_model):
    terminal = Terminal("run", tiny_model, "the", "-n", 8)
    terminal.until(r"1 prompt tokens, \d generated, first after .* s")
    assert terminal.wait() == 0


def test_a_reader_that_leaves_is_no_error(tiny_model):
    run = subprocess.Popen([*PYRUNTIME, "run", str(tiny_model), "the", "-n", "200", "--seed", "1"], stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, text=True)
    assert run.stdout is not None and run.stderr is not None
    run.stdout.close()
    assert run.wait(60) == 0 and run.stderr.read() == ""


def test_ctrl_c_during_run_ends_it(tiny_model):
    run = subprocess.Popen([*PYRUNTIME, "run", str(tiny_model), "the", "--backend", "torch", "--ignore-end"],
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert run.stdout is not None
    assert run.stdout.read(1)
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 130 and b"Traceback" not in err


class TestServe:
    def start(self, *arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen([*PYRUNTIME, "serve", *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                text=True)

    def test_serve_answers_and_stops(self, tiny_model):
        client = pytest.importorskip("pyruntime.client")
        server = self.start(tiny_model, "--grpc", "127.0.0.1:0", "--json", "--name", "small")
        try:
            assert server.stdout is not None
            ready = json.loads(server.stdout.readline())
            assert ready["ready"] is True and ready["model"] == "small" and ready["address"].startswith("127.0.0.1:")
            from pyruntime import LLM

            with client.Client(ready["address"]) as asking, LLM(tiny_model) as llm:
                assert [m.name for m in asking.models()] == ["small"]
                text = "".join(d.text for d in asking.stream("the hell", max_tokens=12, temperature=0.0))
                assert text == llm.generate("the hell", max_tokens=12, temperature=0.0).text
        finally:
            server.send_signal(signal.SIGTERM)
            out, err = server.communicate(timeout=60)
        assert server.returncode == 0 and "Traceback" not in err

    def test_a_taken_port_is_one_line(self, tiny_model):
        server = self.start(tiny_model, "--grpc", "127.0.0.1:0", "--json")
        try:
            assert server.stdout is not None
            address = json.loads(server.stdout.readline())["address"]
            second = self.start(tiny_model, "--grpc", address)
            out, err = second.communicate(timeout=60)
            assert second.returncode == 2 and err.splitlines()[-1].startswith("error: ") and address in err
        finally:
            server.terminate()
            server.wait(60)

    def test_listening_beyond_this_machine_wants_a_key(self, tiny_model):
        server = self.start(tiny_model, "--grpc", "0.0.0.0:0")
        out, err = server.communicate(timeout=60)
        assert server.returncode == 2 and err.count("\n") == 1 and "--insecure" in err or "insecure" in err
