"""pyruntime bench MODEL"""
from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .common import MODEL_OPTIONS, as_json, options, pick, progress, say_json

PARTS = ("decode", "prefill", "batch", "depth", "load", "profile")


class Numbers(click.ParamType):
    """Whole numbers with commas between, each at least `least`."""

    name = "N,N,..."

    def __init__(self, least: int) -> None:
        self.least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(dict.fromkeys(int(part) for part in value.split(",")))
        except ValueError:
            self.fail(f"'{value}' is not a list of whole numbers such as 1,4,16", param, ctx)
        if min(numbers) < self.least or max(numbers) > 1 << 24:
            self.fail(f"'{value}' holds a number outside {self.least} to {1 << 24}", param, ctx)
        return numbers


class Parts(click.ParamType):
    """Names out of PARTS with commas between."""

    name = "PART,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        parts = value if isinstance(value, tuple) else tuple(value.split(","))
        if unknown := [part for part in parts if part not in PARTS]:
            self.fail(f"'{unknown[0]}' is none of {', '.join(PARTS)}", param, ctx)
        return parts


@click.command("bench", short_help="How fast a model runs here, beside this machine's limits.")
@click.argument("model")
@click.option("--only", type=Parts(), help=f"Measure only these: {', '.join(PARTS)}.")
@click.option("--profile", is_flag=True, help="Also look inside a step: what each op takes and reads, for a token and a prompt.")
@click.option("--prompt", "prompts", type=Numbers(2), default="512", show_default=True, help="Tokens of prompts to read.")
@click.option("--batch", "batches", type=Numbers(1), default="1,2,4,8,16,32", show_default=True, help="Sequences decoded together.")
@click.option("--depth", "depths", type=Numbers(0), default="0,1024,4096", show_default=True,
              help="Tokens already in the cache; those beyond the context are left out.")
@click.option("--generate", type=click.IntRange(2), help="Tokens for one figure [default: a second's, 16 to 128].")
@click.option("--rounds", type=click.IntRange(1, 1000), default=5, show_default=True, help="Medians are over so many.")
@click.option("--seconds", type=click.FloatRange(0), default=60.0, show_default=True,
              help="After so long the round is the last, if there were three.")
@click.option("--markdown", is_flag=True, help="Print Markdown tables.")
@click.option("--plots", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
              help="Draw roofline.png, batch.png and depth.png there (needs the extra `bench`).")
@options(MODEL_OPTIONS)
@as_json
def command(model: str, only: tuple[str, ...] | None, profile: bool, markdown: bool, plots: Path | None, as_json: bool,
            prompts: tuple[int, ...], batches: tuple[int, ...], depths: tuple[int, ...], generate: int | None, rounds: int,
            seconds: float, **given: Any) -> None:
    """How fast a model runs here, beside what this machine can do, measured in the same rounds.

    \b
    decode    one sequence, token by token, through the engine
    prefill   reading a prompt
    batch     several sequences side by side, token by token: tokens a second of all
    depth     one sequence that already holds many tokens
    load      opening the file, beside just reading it
    profile   what each op of a step takes; shares add up to the step

    Every figure is the median over rounds in which all figures take turns; the first round only warms up. Two limits are
    measured in between: reading, on the memory the weights lie in, by as many threads; and multiplying, by the same kernels
    on weights and activations that stay in the nearest caches. A token needs its weights and its part of the KV cache read
    once, and two operations for each weight; the limit in the table is the slower of the two, the ratio is what was reached
    of it. MBU: bytes that had to be read, per second, as a share of the read limit. MFU: the same for operations. Between two
    steps the backend rests: there the engine schedules, and makes text and events of tokens.

    \b
      pyruntime bench smollm2:135m
      pyruntime bench smollm2:135m --only decode,depth --depth 0,2048,8000 --threads 1
      pyruntime bench smollm2:135m --only prefill --profile --prompt 128,512 --markdown
      pyruntime bench smollm2:135m --plots pictures --json | jq .decode.tokens_per_second
    """
    if given.pop("backend") != "native":
        raise click.UsageError("bench measures the native backend; the others have no limits to stand beside")
    if markdown and as_json:
        raise click.UsageError("--json and --markdown are two outputs; choose one")
    from ..bench import measure, pictures, report

    if plots:
        pictures.require()
    chosen = pick(given, ("threads", "isa", "low_memory", "context", "kv_format"))
    parts = (only or PARTS[:5]) + (("profile",) if profile else ())
    wanted = measure.Wanted(parts, prompts, batches, depths, generate or 0, rounds, seconds)
    with progress("measuring") as shown:
        facts = measure.measure(model, {**chosen, "progress": False if shown else None}, wanted, shown)
    if plots:
        facts["plots"] = [str(path) for path in pictures.draw(facts, plots)]
    if as_json:
        say_json(facts)
    elif markdown:
        click.echo(report.markdown(facts))
    else:
        show(facts)


def show(facts: dict[str, Any]) -> None:
    """Tables for people."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from ..bench import report

    console = Console()
    if not console.is_terminal:
        console = Console(width=120)

    def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
        made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for i, name in enumerate(head):
            made.add_column(name, justify="right" if i > 0 and name != "bound by" else "left", no_wrap=True)
        for row in rows:
            made.add_row(*row)
        console.print(made)

    console.print(report.title(facts), highlight=False)
    console.print(report.limits(facts), highlight=False)
    if rows := list(report.rows(facts)):
        table(report.HEAD, rows)
    for line in filter(None, (report.steps(facts), report.load(facts))):
        console.print(line, highlight=False)
    for told, rows in report.profiles(facts):
        console.print(f"\n{told}", highlight=False)
        table(report.PROFILE_HEAD, rows)
    for path in facts.get("plots", ()):
        console.print(path, highlight=False)
