"""pyruntime run MODEL PROMPT"""
from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Any

import click

from ..errors import FieldInvalid
from .common import MODEL_OPTIONS, SAMPLING_OPTIONS, as_json, open_llm, options, sampling, say_json, text_argument

if TYPE_CHECKING:
    from ..types import Completion


@click.command("run", short_help="Complete or answer one prompt.")
@click.argument("model")
@click.argument("prompt", required=False)
@click.option("--chat", is_flag=True, help="The prompt is a user's message: put it through the model's chat template.")
@click.option("--system", metavar="TEXT", help="A system message before it; implies --chat.")
@click.option("--ids", is_flag=True, help="PROMPT is token ids, blanks or commas between them, and ids are what is printed: for a "
              "model without a tokenizer.")
@options(SAMPLING_OPTIONS)
@click.option("--ignore-end", is_flag=True, help="Go on past the model's end token.")
@click.option("--logprobs", type=int, metavar="N", help="With --json: each token's log-probability and the N best.")
@click.option("--truncate", is_flag=True, help="Cut the beginning of a prompt that is longer than the context.")
@options(MODEL_OPTIONS)
@as_json
def command(model: str, prompt: str | None, chat: bool, system: str | None, ids: bool, as_json: bool, truncate: bool,
            **given: Any) -> None:
    """Complete PROMPT as it stands, or answer it with --chat; the text streams to stdout.

    PROMPT may be - or piped in. --json prints prompt ids, output ids, text, finish reason and timings at the end.

    \b
      pyruntime run smollm2:135m "The capital of France is" -n 16 --temperature 0
      pyruntime run smollm2:135m --chat "Why is the sky blue?"
      pyruntime run ./folder "Once upon a time" --quantize q4_k
      pyruntime run ./no-tokenizer --ids "15496 995" -n 8
      cat notes.txt | pyruntime run smollm2:135m --system "Summarize in one sentence." --json
    """
    if ids and (chat or system is not None):
        raise click.UsageError("--ids gives tokens, --chat and --system text; choose one")
    text = text_argument(prompt, "prompt")
    params = sampling(given, logprobs=given.pop("logprobs"), ignore_end=given.pop("ignore_end"))
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": text})
    asked: Any = token_ids(text) if ids else messages if chat or messages[1:] else text
    with open_llm(model, given) as llm:
        done = None
        with llm.stream(asked, params, truncate=truncate) as stream:
            for delta in stream:
                if not as_json:
                    click.echo("".join(f"{token} " for token in delta.token_ids) if ids else delta.text, nl=False)
                    sys.stdout.flush()
                done = delta.completion or done
    assert done is not None  # a stream ends with its completion, or raises
    if as_json:
        say_json({"model": model, **facts(done)})
    else:
        click.echo()
        if sys.stderr.isatty():
            click.secho(summary(done), err=True, dim=True)


def token_ids(text: str) -> list[int]:
    """Ids out of "15496 995" or "15496, 995"; FieldInvalid names what is none."""
    words = text.replace(",", " ").split()
    if wrong := [word for word in words if not (word.isascii() and word.isdecimal() and len(word) < 10)]:
        raise FieldInvalid(f"prompt: '{wrong[0][:40]}' is no token id; --ids takes whole numbers, blanks or commas between them",
                           field="prompt")
    return [int(word) for word in words]


def facts(done: Completion) -> dict[str, Any]:
    """A completion as JSON: everything it carries."""
    return {
        "prompt_token_ids": list(done.prompt_token_ids), "token_ids": list(done.token_ids), "text": done.text,
        "finish_reason": done.finish_reason.value, "matched": done.matched,
        "usage": dataclasses.asdict(done.usage),
        "timings": {**dataclasses.asdict(done.timings), **rates(done)},
        "logprobs": None if done.logprobs is None else [dataclasses.asdict(one) for one in done.logprobs],
    }


def rates(done: Completion) -> dict[str, float | None]:
    """Tokens per second: of the prompt tokens computed, and of the tokens after the first."""
    computed = done.usage.prompt_tokens - done.usage.cached_prompt_tokens
    later = done.usage.output_tokens - 1
    return {
        "prefill_tokens_per_second": computed / done.timings.prefill if done.timings.prefill > 0 else None,
        "decode_tokens_per_second": later / done.timings.decode if done.timings.decode > 0 and later > 0 else None,
    }


def summary(done: Completion) -> str:
    """One line about speed."""
    speed = rates(done)["decode_tokens_per_second"]
    return (f"{done.usage.prompt_tokens} prompt tokens, {done.usage.output_tokens} generated, first after "
            f"{done.timings.first_token:.3f} s" + (f", {speed:.0f} tokens/s" if speed else "") + f" ({done.finish_reason.value})")
