"""The steps that a tokenizer.json's normalizer is made of: each a value that takes a text and gives another.

A byte that is not UTF-8 comes as the surrogate that `surrogateescape` gives it, and passes through.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field

from pyruntime._core._text import CharsMap
from pyruntime.errors import ModelInvalid

Step = Callable[[str], str]
MARK = "\u2581"  # how tokens write a space
# The property White_Space: str.isspace means a few control characters too.
WHITE_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_LEADING, _TRAILING = re.compile(f"^[{WHITE_SPACE}]+"), re.compile(f"[{WHITE_SPACE}]+$")
_WORDS = re.compile(f"[^{WHITE_SPACE}]+")


@dataclass(frozen=True, slots=True)
class Form:
    """A Unicode normalization form: NFC, NFD, NFKC or NFKD."""

    name: str

    def __call__(self, text: str) -> str:
        return text if text.isascii() else unicodedata.normalize(self.name, text)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Prepend:
    """A text before every text that is not empty."""

    text: str

    def __call__(self, text: str) -> str:
        return self.text + text if text else text


@dataclass(frozen=True, slots=True)
class Replace:
    """One text in place of another wherever it stands."""

    old: str
    new: str

    def __call__(self, text: str) -> str:
        return text.replace(self.old, self.new)


@dataclass(frozen=True, slots=True)
class Squeeze:
    """A text in place of every run of at least `least` spaces."""

    least: int
    new: str

    def __call__(self, text: str) -> str:
        return re.sub(f" {{{self.least},}}", lambda _: self.new, text)


@dataclass(frozen=True, slots=True)
class Strip:
    """No white space at the beginning, at the end."""

    left: bool
    right: bool

    def __call__(self, text: str) -> str:
        if self.left:
            text = _LEADING.sub("", text)
        if self.right:
            end = len(text)
            while end and _TRAILING.match(text[end - 1]):
                end -= 1
            text = text[:end]
        return text


def trim(text: str) -> str:
    """Without spaces at either end."""
    return text.strip(" ")


class _Table(dict[int, str]):
    """For str.translate: what a rule makes of a character, kept once it is known."""

    def __init__(self, rule: Callable[[str], str]) -> None:
        super().__init__()
        self._rule = rule

    def __missing__(self, code: int) -> str:
        char = chr(code)
        made = char if 0xD800 <= code < 0xE000 else self._rule(char)
        self[code] = made
        return made


_UNMARKED = _Table(lambda c: "" if unicodedata.category(c)[0] == "M" else c)
_UNACCENTED = _Table(lambda c: "" if unicodedata.category(c) == "Mn" else c)


def strip_accents(text: str) -> str:
    """Without characters that combine with the one before."""
    return text if text.isascii() else text.translate(_UNMARKED)


def lowercase(text: str) -> str:
    """Character by character: str.lower looks around a sigma."""
    return text.replace("\u03a3", "\u03c3").lower()


@dataclass(frozen=True, slots=True)
class Mapped:
    """SentencePiece's map of characters. graphemes: as the `tokenizers` package applies it."""

    map: CharsMap
    graphemes: bool

    def __call__(self, text: str) -> str:
        data = self.map.apply(text.encode("utf-8", "surrogateescape"), self.graphemes)
        return data.decode("utf-8", "surrogateescape")


# The ideographs that BERT takes for words: its own list of ranges.
_IDEOGRAPHS = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
               (0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F))  # fmt: skip


def _cleaned(char: str) -> str:
    if char in "\t\n\r":
        return " "
    if char in "\0\ufffd" or unicodedata.category(char) in ("Cc", "Cf", "Co"):
        return ""
    return " " if unicodedata.category(char) in ("Zs", "Zl", "Zp") else char


def _apart(char: str) -> str:
    return f" {char} " if any(first <= ord(char) <= last for first, last in _IDEOGRAPHS) else char


@dataclass(frozen=True, slots=True)
class Bert:
    """What BERT does to a text: no control characters, ideographs apart, no accents, lower case."""

    clean: bool
    ideographs_apart: bool
    no_accents: bool
    lower: bool
    _table: _Table = field(init=False, compare=False)

    def __post_init__(self) -> None:
        def rule(char: str) -> str:
            made = _cleaned(char) if self.clean else char
            return _apart(made) if made and self.ideographs_apart else made

        object.__setattr__(self, "_table", _Table(rule))

    def __call__(self, text: str) -> str:
        text = text.translate(self._table)
        if self.no_accents and not text.isascii():
            text = unicodedata.normalize("NFD", text).translate(_UNACCENTED)
        return lowercase(text) if self.lower else text


def words(text: str) -> list[str]:
    """What stands between white space."""
    return _WORDS.findall(text)


def chars_map(data: bytes, graphemes: bool) -> Mapped:
    """ModelInvalid where data is no map."""
    if not data:
        raise ModelInvalid("tokenizer: the map of characters is empty")
    return Mapped(CharsMap(data), graphemes)
