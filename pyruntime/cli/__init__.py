"""The `pyruntime` command: one file a subcommand, imported when it is called."""
from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click

from ..errors import REASONS, PyruntimeError
from ..version import VERSION

COMMANDS = ("pull", "ls", "rm", "run", "chat", "serve", "tokenize", "inspect", "perplexity", "bench", "doctor")


class Commands(click.Group):
    """Subcommands by file name, in the order a newcomer needs them."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        return importlib.import_module(f".{name}", __name__).command if name in COMMANDS else None


HELP = """\
Quantized language models on this computer's CPU.

\b
A first answer:
  pyruntime pull smollm2:135m
  pyruntime run smollm2:135m --chat "What is a page table?"
A service:
  pyruntime serve smollm2:135m --grpc 127.0.0.1:50051

MODEL is a name that `pyruntime ls` shows, the path of a GGUF file, or a Hugging Face folder. Every command that prints facts
takes --json.

Environment: PYRUNTIME_HOME (the cache folder), PYRUNTIME_THREADS, PYRUNTIME_ISA, PYRUNTIME_POOL (own or openmp),
PYRUNTIME_DEBUG=1 (tracebacks).
"""

group = click.version_option(VERSION, prog_name="pyruntime", message="%(prog)s %(version)s", help="Print the version.")(
    Commands("pyruntime", help=HELP, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code. An error is one line on stderr: 2 is the user's to mend, 1 is ours."""
    try:
        given = sys.argv[1:] if arguments is None else list(arguments)
        result = group.main(args=given or ["--help"], prog_name="pyruntime", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except (BrokenPipeError, SystemExit):  # the reader of our output has left (click turns that into an exit): no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, click.exceptions.Abort):
        click.echo("", err=True)
        return 130
    except Exception as error:
        if os.environ.get("PYRUNTIME_DEBUG") == "1":
            raise
        text, code = _told(error)
        click.echo(f"error: {' '.join(text.split())}", err=True)
        return code


def _told(error: Exception) -> tuple[str, int]:
    """An exception's line and exit code."""
    if isinstance(error, click.UsageError):
        where = error.ctx.command_path if error.ctx else "pyruntime"
        return f"{error.format_message()} (see `{where} --help`)", 2
    if isinstance(error, click.ClickException):
        return error.format_message(), 2
    if isinstance(error, PyruntimeError):
        return str(error), REASONS[error.reason].command
    if isinstance(error, OSError):
        return f"{error.filename or 'system'}: {error.strerror or error}", 2
    if isinstance(error, MemoryError):
        return "out of memory; a smaller model, --context or --low-memory needs less", 1
    return f"{type(error).__name__}: {error} (PYRUNTIME_DEBUG=1 shows where)", 1
