"""pyruntime chat MODEL"""
from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from ..errors import ContextLengthExceeded, FieldInvalid
from .common import INPUT_MAX, MODEL_OPTIONS, SAMPLING_OPTIONS, as_json, open_llm, options, sampling
from .run import facts, summary

if TYPE_CHECKING:
    from ..llm import LLM
    from ..types import SamplingParams

HELP = """\
/system TEXT  set the system message and begin anew
/clear        begin anew
/stats        speed of the last answer
/help         this
/quit         leave (so does Ctrl-D); Ctrl-C stops an answer"""


class Conversation:
    """Messages so far, and the answers that go on them."""

    def __init__(self, llm: LLM, params: SamplingParams, system: str | None) -> None:
        self.llm, self.params, self.system = llm, params, system
        self.messages: list[dict[str, str]] = []
        self.last: Any = None

    def head(self) -> list[dict[str, str]]:
        return [] if self.system is None else [{"role": "system", "content": self.system}]

    def answer(self, text: str) -> Iterator[str]:
        """Pieces of the answer to one message; interrupted, what came stays in the conversation.

        When the conversation outgrows the context, its oldest exchange goes."""
        self.messages.append({"role": "user", "content": text})
        said = ""
        try:
            while True:
                try:
                    stream = self.llm.stream(self.head() + self.messages, self.params)
                    break
                except ContextLengthExceeded:
                    if len(self.messages) < 3:
                        raise
                    del self.messages[:2]
            with stream:
                for delta in stream:
                    said += delta.text
                    self.last = delta.completion or self.last
                    yield delta.text
        finally:
            if said:
                self.messages.append({"role": "assistant", "content": said})
            else:
                self.messages.pop()


@click.command("chat")
@click.argument("model")
@click.option("--system", metavar="TEXT", help="A system message.")
@options(SAMPLING_OPTIONS)
@options(MODEL_OPTIONS)
@as_json
def command(model: str, system: str | None, as_json: bool, **given: Any) -> None:
    """Talk to a model in the terminal. /help shows the few commands; Ctrl-C stops an answer, Ctrl-D leaves.

    Without a terminal each line of stdin is a message. --json prints one JSON object a line for each answer.

    \b
      pyruntime chat smollm2:135m --temperature 0.7
      printf 'My name is Ada.\\nWhat is my name?\\n' | pyruntime chat smollm2:135m --seed 1
    """
    params = sampling(given)
    with open_llm(model, given) as llm:
        talk = Conversation(llm, params, system)
        if sys.stdin.isatty():
            click.secho(f"{llm.model.name}, {llm.context} tokens of context. /help for commands.", err=True, dim=True)
        for line in lines():
            if line.startswith("/"):
                if not obey(line, talk):
                    break
            elif line.strip():
                say(talk, line, as_json)


def lines() -> Iterator[str]:
    """Messages: typed at a prompt with history and editing, or the lines of stdin."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            yield line.rstrip("\n")[:INPUT_MAX]
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  input() edits and remembers lines once it is loaded
    while True:
        try:
            yield input("> ")
        except KeyboardInterrupt:
            click.echo("  (Ctrl-D leaves)", err=True)
        except EOFError:
            click.echo()
            return


def obey(line: str, talk: Conversation) -> bool:
    """A /command; False ends the chat."""
    name, _, rest = line[1:].partition(" ")
    if name in ("quit", "exit", "q"):
        return False
    if name == "clear":
        talk.messages.clear()
    elif name == "system":
        talk.system = rest.strip() or None
        talk.messages.clear()
    elif name == "stats" and talk.last is not None:
        click.echo(summary(talk.last), err=True)
    elif name == "help":
        click.echo(HELP, err=True)
    elif name != "stats":
        click.echo(f"no command /{name}; /help shows them", err=True)
    return True


def say(talk: Conversation, line: str, as_json: bool) -> None:
    """Print one answer as it comes."""
    import json

    try:
        for piece in talk.answer(line):
            if not as_json:
                click.echo(piece, nl=False)
                sys.stdout.flush()
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
        click.secho(" (stopped)", nl=False, dim=True)
    except (ContextLengthExceeded, FieldInvalid) as error:
        if not sys.stdin.isatty():
            raise
        click.echo(f"error: {error}", err=True)
        return
    click.echo(json.dumps(facts(talk.last), ensure_ascii=False) if as_json else "")
