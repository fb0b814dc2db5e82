"""What commands share: options, output, progress."""
from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..errors import FieldInvalid

if TYPE_CHECKING:
    from ..llm import LLM
    from ..types import SamplingParams

F = TypeVar("F", bound=Callable[..., Any])
INPUT_MAX = 64 << 20  # bytes of text read from a file or stdin

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

MODEL_OPTIONS = (
    click.option("--threads", type=click.IntRange(1, 1024), help="Threads [default: PYRUNTIME_THREADS, else the CPUs here]."),
    click.option("--isa", help="Instruction set [default: PYRUNTIME_ISA, else the best here; see `pyruntime doctor`]."),
    click.option("--precision", type=click.Choice(["balanced", "precise", "throughput", "int8"]),
                 help="How products may round for speed [default: PYRUNTIME_PRECISION, else balanced; see `pyruntime doctor`]."),
    click.option("--low-memory", is_flag=True, help="Leave the weights in the file: less memory, slower, the same answers."),
    click.option("--quantize", metavar="FORMAT",
                 help="What a folder's matrices become while they load: q8_0, q4_0, q4_1, q5_0, q5_1, q4_k, q5_k or q6_k."),
    click.option("--context", type=click.IntRange(1), help="Most tokens of prompt and answer [default: the model's]."),
    click.option("--kv-format", metavar="FORMAT[:FORMAT]",
                 help="K and V in the cache: f32, f16, bf16 or q8_0, or K:V apart [default: f16]."),
    click.option("--backend", type=click.Choice(["native", "torch"]), default="native", show_default=True,
                 help="native: C. torch: the reference, slow."),
)

SAMPLING_OPTIONS = (
    click.option("-n", "--max-tokens", type=int, help="Most tokens to generate [default: until the model ends]."),
    click.option("--temperature", type=float, help="0 takes the best token each time [default: the model's, else 1]."),
    click.option("--top-k", type=int, help="Draw from the k likeliest tokens; 0 is off."),
    click.option("--top-p", type=float, help="Draw from the likeliest tokens that together reach p."),
    click.option("--min-p", type=float, help="Drop tokens less likely than this times the likeliest."),
    click.option("--typical-p", type=float, help="Draw from the most typical tokens that together reach p."),
    click.option("--repetition-penalty", type=float, help="Above 1: tokens seen before become less likely."),
    click.option("--presence-penalty", type=float, help="Taken off every token generated before."),
    click.option("--frequency-penalty", type=float, help="Taken off for every time a token was generated before."),
    click.option("--seed", type=int, help="The same seed gives the same tokens."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; may be given several times."),
)


def options(several: Sequence[Callable[[F], F]]) -> Callable[[F], F]:
    """Several click options as one decorator, in their order."""
    def put(function: F) -> F:
        for option in reversed(several):
            function = option(function)
        return function
    return put


def pick(given: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Take `names` out of a command's arguments, without those left unset."""
    return {name: value for name in names if (value := given.pop(name)) not in (None, ())}


def sampling(given: dict[str, Any], **more: Any) -> SamplingParams:
    """SamplingParams from SAMPLING_OPTIONS; takes them out of `given`."""
    from ..types import SamplingParams

    names = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty",
             "presence_penalty", "frequency_penalty", "seed", "stop")
    return SamplingParams(**pick(given, names), **more)


def open_llm(model: str, given: dict[str, Any], **more: Any) -> LLM:
    """An LLM from MODEL_OPTIONS, for one request at a time unless told; takes them out of `given`.

    Loading shows a bar on a terminal."""
    from ..llm import LLM

    chosen = pick(given, ("threads", "isa", "precision", "low_memory", "quantize", "context", "kv_format", "backend"))
    llm = LLM(model, **{"max_running": 1, **chosen, **more})
    for note in llm.model.notes:
        click.echo(f"note: {note}", err=True)
    return llm


def text_argument(text: str | None, what: str) -> str:
    """An argument's text; `-`, or none while something is piped in, reads stdin."""
    if text == "-" or (text is None and not sys.stdin.isatty()):
        data = sys.stdin.buffer.read(INPUT_MAX + 1)
    elif text is None:
        raise FieldInvalid(f"no {what} given; add one, or - to read it from stdin", field=what)
    else:
        return text
    return decode(data, "stdin")


def read_text(path: Path) -> str:
    """A UTF-8 text file, bounded."""
    with open(path, "rb") as handle:
        return decode(handle.read(INPUT_MAX + 1), str(path))


def decode(data: bytes, where: str) -> str:
    """Bytes as UTF-8 text, or FieldInvalid that says where it breaks."""
    if len(data) > INPUT_MAX:
        raise FieldInvalid(f"{where}: longer than {INPUT_MAX >> 20} MiB; give a shorter text")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise FieldInvalid(f"{where}: byte {error.start} is not UTF-8; convert the text to UTF-8") from None


def say_json(facts: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(facts, ensure_ascii=False))


def say_table(rows: Sequence[Sequence[object]], right: str = "") -> None:
    """Aligned columns; `right` names by digit the columns that align right."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for row in texts:
        cells = [c.rjust(w) if str(i) in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        click.echo("  ".join(cells).rstrip())


def human_bytes(count: float) -> str:
    """1536 -> 1.5 KiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


@contextmanager
def progress(label: str, unit: str = "") -> Iterator[Callable[[int, int], None] | None]:
    """A bar on a terminal's stderr, told (done, total); None elsewhere. unit "bytes" counts bytes."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    count = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    with Bar(TextColumn("{task.description}"), BarColumn(), count, TimeRemainingColumn(),
             console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)
