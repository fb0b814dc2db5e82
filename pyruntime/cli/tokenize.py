"""pyruntime tokenize MODEL TEXT"""
from __future__ import annotations

import re

import click

from ..errors import FieldInvalid
from .common import as_json, say_json, text_argument

COLORS = ("blue", "green", "magenta", "cyan", "yellow")


@click.command("tokenize", short_help="Show how a model reads a text.")
@click.argument("model")
@click.argument("text", required=False)
@click.option("--special", is_flag=True, help="Texts of special tokens become them; otherwise they are plain text.")
@click.option("--add-special/--no-add-special", default=None, help="Begin with the model's first token [default: as it wants].")
@click.option("--ids", metavar="IDS", help='The other way: the text of these ids, as "1 2 3" or "[1, 2, 3]".')
@as_json
def command(model: str, text: str | None, special: bool, add_special: bool | None, ids: str | None, as_json: bool) -> None:
    """Show how a model reads TEXT: token ids, and the pieces in colours.

    TEXT may be - or piped in. Pieces that are no whole characters show their bytes. Only the tokenizer is loaded.

    \b
      pyruntime tokenize smollm2:135m "Hello, tokenizer"
      pyruntime tokenize smollm2:135m --special "<|im_start|>user" --json
      pyruntime tokenize smollm2:135m --ids "19556 28"
    """
    from ..loading import open_file
    from ..store import resolve

    found = None if ids is None else parse_ids(ids)
    wanted = text_argument(text, "text") if found is None else ""
    with open_file(resolve(model)) as opened:
        tokenizer = opened.tokenizer()
    if found is None:
        found = tokenizer.encode(wanted, add_special=add_special, allow_special=special)
    else:
        for token in found:
            if token >= tokenizer.vocab_size:
                raise FieldInvalid(f"token id {token} is outside the vocabulary of {tokenizer.vocab_size}", field="ids")
    pieces = [piece(tokenizer.token_bytes(token)) for token in found]
    whole = tokenizer.decode(found)
    if as_json:
        say_json({"token_ids": found, "pieces": pieces, "count": len(found), "text": whole})
        return
    if ids is not None:
        click.echo(whole)
        return
    click.echo("".join(click.style(p.replace("\n", "\\n\n"), fg=COLORS[i % len(COLORS)], reverse=True)
                       for i, p in enumerate(pieces)))
    click.echo(" ".join(map(str, found)))
    click.echo(f"{len(found)} tokens, {len(whole.encode())} bytes", err=True)


def parse_ids(text: str) -> list[int]:
    """Token ids separated by spaces or commas, brackets allowed."""
    words = [word for word in re.split(r"[\s,\[\]]+", text) if word]
    for word in words:
        if not re.fullmatch(r"[0-9]{1,9}", word):
            raise FieldInvalid(f"{word[:40]!r} is not a token id; give whole numbers, 0 or more", field="ids")
    return [int(word) for word in words]


def piece(data: bytes) -> str:
    """A token's bytes as text; bytes that are no whole characters as \\xNN."""
    return data.decode("utf-8", "backslashreplace")
