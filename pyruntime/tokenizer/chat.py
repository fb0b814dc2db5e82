"""Chat templates: messages to the prompt a model was trained on.

A template comes from a model's file and is code: it is rendered in a process of its own with bounded time,
memory and output (chat_worker.py). What the caller wrote stays text: before rendering, the characters that
special tokens begin with are exchanged in every string of the caller for private-use characters that occur
nowhere else, so that a special token in the result can only have come from the template.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyruntime.errors import FieldInvalid, ModelInvalid

if TYPE_CHECKING:
    from pyruntime.tokenizer.tokenizer import Tokenizer

WALL_SECONDS = 10.0  # of one rendering and the start of its process; processor time is bounded much closer
MOST_BYTES = 16 << 20  # of a request
MOST_REPLY = 128 << 20  # of its rendering as JSON
_WORKER = Path(__file__).with_name("chat_worker.py")
_STRING = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"", re.DOTALL)


class ChatTemplate:
    """One model's template, or another in its place. Threads may share it; they render one by one."""

    def __init__(self, tokenizer: Tokenizer, source: str | None = None) -> None:
        """source: the template; the model's own unless given."""
        found = source if source is not None else tokenizer.chat_template
        if found is None:
            raise ModelInvalid("tokenizer.chat_template: the model has no chat template; give a prompt instead")
        self._tokenizer = tokenizer
        self._source = found
        self._renderer = _Renderer(found)
        self._marks = _Marks(tokenizer.special_spellings, found)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **args: Any,
    ) -> str:
        """The prompt as text.

        add_generation_prompt: end with the opening of an answer. continue_final_message: end within the last
        message instead, for the model to go on. args: further names for the template.
        """
        marked, back = self._render(messages, tools, add_generation_prompt, continue_final_message, args)
        return marked.translate(back)

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **args: Any,
    ) -> tuple[str, list[int]]:
        """The prompt as text and as token ids: a special token only where the template wrote one."""
        marked, back = self._render(messages, tools, add_generation_prompt, continue_final_message, args)
        if not back:
            return marked, self._tokenizer.encode(marked, add_special=False, allow_special=True)
        ids: list[int] = []
        specials = self._tokenizer.special_spellings
        for piece in self._marks.specials.split(marked):
            if piece in specials:
                ids.append(specials[piece])
            elif piece:
                ids += self._tokenizer.encode(piece.translate(back), add_special=False)
        return marked.translate(back), ids

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        continue_final_message: bool,
        args: Mapping[str, Any],
    ) -> tuple[str, dict[int, str]]:
        """The rendering with marks, and the table that takes them back."""
        _check_messages(messages)
        tag = secrets.token_hex(16) + " " if continue_final_message else ""
        given, back = self._marks.put({"messages": messages, "tools": tools, **args}, tag)
        given["add_generation_prompt"] = add_generation_prompt and not continue_final_message
        given["bos_token"], given["eos_token"] = self._tokenizer.bos_token, self._tokenizer.eos_token
        text = self._renderer.render(given)
        return (_cut(text, tag) if tag else text), back


def _check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise FieldInvalid("messages: must be a list of at least one message", field="messages")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise FieldInvalid(f"messages[{i}]: must be an object with a role", field=f"messages[{i}].role")


def _tag_end(message: Any, tag: str) -> None:
    """Puts tag at the end of the message's text, where the rendering is to be cut."""
    content = message.get("content")
    if isinstance(content, str):
        message["content"] = content + tag
        return
    parts = content if isinstance(content, list) else []
    for part in reversed(parts):
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            part["text"] += tag
            return
    raise FieldInvalid("continue_final_message: the last message has no text", field="continue_final_message")


def _cut(text: str, tag: str) -> str:
    """text up to the tag; without the space before it where the template trimmed the space after it."""
    at = text.rfind(tag.strip())
    if at < 0:
        raise FieldInvalid(
            "continue_final_message: the template does not write the last message as it is",
            field="continue_final_message",
        )
    return text[:at] if text.startswith(tag, at) else text[:at].rstrip()


class _Marks:
    """Private-use characters in place of those that special tokens begin with, in what the caller wrote."""

    def __init__(self, specials: Mapping[str, int], source: str) -> None:
        """source: the template. Text that it looks for, such as </think>, is left alone where no special
        token could come of it."""
        self._source = source
        longest_first = sorted(specials, key=len, reverse=True)
        self.specials = re.compile(f"({'|'.join(map(re.escape, longest_first))})" if specials else r"(?!)")
        # The first two characters that are signs: a template may write the first one around a caller's name.
        # A special token that begins with two letters is exchanged where it is spelled out.
        edges = {s: [c for c in s[:2] if not c.isalnum()] for s in longest_first}
        exchanged = [re.escape(c) for c in {c for found in edges.values() for c in found}]
        exchanged += [re.escape(s) for s in longest_first if not edges[s]]
        self._edges = sorted({c for s in specials for c in edges[s] or s[0]})
        kept = sorted(self._searched_for(longest_first), key=len, reverse=True)
        edge = f"(?P<edge>{'|'.join(exchanged) or '(?!)'})"
        self._pattern = re.compile("|".join([*map(re.escape, kept), edge]))

    def _searched_for(self, specials: Sequence[str]) -> set[str]:
        """The template's own strings, from their first edge on, that hold and begin no special token."""
        found, beginnings = set(), {s[:i] for s in specials for i in range(1, len(s) + 1)}
        for match in _STRING.finditer(self._source):
            text = (match[1] or match[2] or "").replace("\\n", "\n").replace("\\t", "\t")
            first = next((i for i, c in enumerate(text) if c in self._edges), len(text))
            text = text[first:]
            begins = any(text[k:] in beginnings for k in range(len(text)))
            if text and not begins and not self.specials.search(text):
                found.add(text)
        return found

    def put(self, given: dict[str, Any], tag: str) -> tuple[dict[str, Any], dict[int, str]]:
        """A copy of given with marks in all its strings and the tag at the end of the last message, and the table
        that takes the marks back: empty without any."""
        try:
            plain = json.dumps(given, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise FieldInvalid(f"messages: must be plain JSON values: {error}", field="messages") from None
        if len(plain) > MOST_BYTES:
            raise FieldInvalid(f"messages: {len(plain)} characters; at most {MOST_BYTES}", field="messages")
        given = json.loads(plain)
        if tag:
            _tag_end(given["messages"][-1], tag)
        if not any(c in plain for c in self._edges):
            return given, {}
        while True:
            codes = secrets.SystemRandom().sample(range(0xF0000, 0xFFFFE), len(self._edges))
            if not any(chr(c) in plain or chr(c) in self._source for c in codes):
                break
        marks = {edge: chr(code) for edge, code in zip(self._edges, codes, strict=True)}
        return self._mark(given, marks), {ord(mark): edge for edge, mark in marks.items()}

    def _mark(self, value: Any, marks: Mapping[str, str]) -> Any:
        if isinstance(value, str):
            return self._pattern.sub(lambda m: marks[m[0][0]] + m[0][1:] if m["edge"] else m[0], value)
        if isinstance(value, list):
            return [self._mark(v, marks) for v in value]
        if isinstance(value, dict):
            return {self._mark(k, marks): self._mark(v, marks) for k, v in value.items()}
        return value


class _Renderer:
    """The process that renders one template: started when first needed, started again after it was killed."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0  # the process id that started it: a fork starts its own
        self._finalizer: weakref.finalize | None = None

    def render(self, names: Mapping[str, Any]) -> str:
        with self._lock:
            process = self._running()
            try:
                reply = json.loads(_exchange(process, json.dumps(names).encode() + b"\n"))
            except (TimeoutError, EOFError, BrokenPipeError) as error:
                raise self._buried(process, error) from None
            except BaseException:
                self._stop()
                raise
        if "text" in reply:
            return reply["text"]
        said = " ".join(str(reply["error"]).split())[:300]
        if reply["blame"] == "model":
            raise ModelInvalid(f"tokenizer.chat_template: {said}")
        raise FieldInvalid(f"messages: the model's chat template says: {said}", field="messages")

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            kept = {k: os.environ[k] for k in ("LD_LIBRARY_PATH", "PYTHONHOME", "TZ") if k in os.environ}
            path = os.pathsep.join(os.path.abspath(p) for p in sys.path if p)
            process = subprocess.Popen(
                [sys.executable, "-S", str(_WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env={**kept, "PYTHONPATH": path},
            )
            assert process.stdin is not None and process.stdout is not None
            os.set_blocking(process.stdin.fileno(), False)
            os.set_blocking(process.stdout.fileno(), False)
            if self._finalizer is not None and self._owner != os.getpid():
                self._finalizer.detach()
            self._process, self._owner = process, os.getpid()
            self._finalizer = weakref.finalize(self, _end, process)
            _exchange(process, json.dumps(self._source).encode() + b"\n", answered=False)
        return self._process

    def _stop(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._process = None

    def _buried(self, process: subprocess.Popen[bytes], error: Exception) -> ModelInvalid:
        """Ends the process; the error that says why it had to."""
        slow = isinstance(error, TimeoutError)
        if not slow:
            with contextlib.suppress(subprocess.TimeoutExpired):
                slow = process.wait(1) == -signal.SIGPROF
        self._stop()
        why = "it takes too long" if slow else "its process ended"
        return ModelInvalid(f"tokenizer.chat_template: {why}; use another template or shorter messages")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


def _exchange(process: subprocess.Popen[bytes], line: bytes, answered: bool = True) -> bytes:
    """Writes a line, reads one. TimeoutError after WALL_SECONDS, EOFError or BrokenPipeError at its end."""
    assert process.stdin is not None and process.stdout is not None
    deadline = time.monotonic() + WALL_SECONDS
    rest, got = memoryview(line), bytearray()
    with selectors.DefaultSelector() as ready:
        ready.register(process.stdin, selectors.EVENT_WRITE)
        ready.register(process.stdout, selectors.EVENT_READ)
        while rest or (answered and not got.endswith(b"\n")):
            events = ready.select(max(0.0, deadline - time.monotonic()))
            if not events:
                raise TimeoutError
            for key, _ in events:
                if key.fileobj is process.stdin:
                    rest = rest[os.write(key.fd, rest[: 1 << 16]) :]
                    if not rest:
                        ready.unregister(process.stdin)
                else:
                    part = os.read(key.fd, 1 << 16)
                    got += part
                    if not part or len(got) > MOST_REPLY:
                        raise EOFError
    return bytes(got)
