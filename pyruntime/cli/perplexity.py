"""pyruntime perplexity MODEL --file F"""
from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import click

from ..errors import FieldInvalid
from .common import MODEL_OPTIONS, as_json, open_llm, options, progress, read_text, say_json


@click.command("perplexity", short_help="How well a model predicts a text.")
@click.argument("model")
@click.option("--file", "file", required=True, type=click.Path(dir_okay=False, path_type=Path), help="A UTF-8 text.")
@click.option("--window", type=click.IntRange(2), default=512, show_default=True, help="Tokens scored together.")
@click.option("--max-tokens", type=click.IntRange(2), help="Stop after this many tokens of the text.")
@options(MODEL_OPTIONS)
@as_json
def command(model: str, file: Path, window: int, max_tokens: int | None, as_json: bool, **given: Any) -> None:
    """How well a model predicts a text: exp of the mean negative log-probability of its tokens. Lower is better.

    The text is tokenized once and cut into windows that do not overlap. In a window each token but the first is predicted
    from all tokens before it in that window, so every window begins cold; the mean is over all predicted tokens.
    Compare figures of the same text and window only.

    \b
      pyruntime perplexity smollm2:135m --file book.txt
      pyruntime perplexity smollm2:135m --file book.txt --window 1024 --json
    """
    from ..types import SamplingParams

    text = read_text(file)
    began = time.perf_counter()
    with open_llm(model, given) as llm:
        ids = llm.tokenize(text, add_special=False)[:max_tokens]
        window = min(window, llm.context - 1)
        windows = [part for first in range(0, len(ids), window) if len(part := ids[first : first + window]) > 1]
        if not windows:
            raise FieldInvalid(f"{file} has {len(ids)} tokens; perplexity needs at least 2", field="file")
        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=True)
        scores: list[float] = []
        with progress(f"scoring {file.name}") as report:
            for number, part in enumerate(windows):
                answer = llm.generate(part, params)
                scores += [one.logprob for one in answer.prompt_logprobs or () if one.logprob is not None]
                if report:
                    report(number + 1, len(windows))
    mean = math.fsum(scores) / len(scores)
    spread = math.sqrt(math.fsum((s - mean) ** 2 for s in scores) / max(1, len(scores) - 1) / len(scores))
    facts = {"model": model, "file": str(file), "perplexity": math.exp(-mean), "mean_logprob": mean,
             "standard_error": math.exp(-mean) * spread, "tokens": len(ids), "predicted": len(scores),
             "windows": len(windows), "window": window, "seconds": time.perf_counter() - began}
    if as_json:
        say_json(facts)
    else:
        click.echo(f"perplexity {facts['perplexity']:.4f} ± {facts['standard_error']:.4f}  ({len(scores)} tokens predicted in "
                   f"{len(windows)} windows of {window}, {facts['seconds']:.1f} s)")
