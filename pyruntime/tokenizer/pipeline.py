"""From a text to what a model of tokens sees: added tokens found, the rest normalized, spaces put before it.

In this order, as the `tokenizers` package does: added tokens that are literal are found in the text as it is; what lies
between is normalized; the other added tokens, normalized themselves, are found there; what still lies between is encoded.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pyruntime._core._text import Added
from pyruntime.errors import ModelInvalid
from pyruntime.texts import Texts
from pyruntime.tokenizer.normalize import MARK, Prepend, Replace, Step, words

SPACED, TO_MARKS = Prepend(MARK), Replace(" ", MARK)
_MARK = MARK.encode()
Encoded = tuple[npt.NDArray[np.int32], npt.NDArray[np.uint32], int]
_Measured = tuple[npt.NDArray[np.int32], npt.NDArray[np.uint32], int, int]


class Model(Protocol):
    """Tokens of a text in which nothing is special. Threads may share it."""

    def encode(self, text: bytes) -> Encoded:
        """Token ids [count], where in text each ends [count], and the steps it took."""

    def token(self, id: int) -> bytes:
        """The bytes of a token of the vocabulary."""


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A text that is one token wherever it stands. normalized: it is looked for in the normalized text."""

    text: str
    id: int
    special: bool
    left: bool = False
    right: bool = False
    normalized: bool = False


@dataclass(frozen=True, slots=True)
class Rules:
    """What happens to a text before a model sees it.

    marks: tokens write a space as U+2581, which the model is given as a space. space: when one goes before a text that does
    not begin with one: never, first (where the whole text begins), always. by_words: white space only parts words.
    """

    steps: Sequence[Step] = ()
    marks: bool = False
    space: str = "never"
    by_words: bool = False


def utf8(text: str) -> bytes:
    """A token's text; ModelInvalid with half of a surrogate pair in it."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise ModelInvalid(f"tokenizer: {text!r:.40} is not valid Unicode") from None


def packed(texts: Sequence[str], what: str) -> tuple[bytes, npt.NDArray[np.uint32]]:
    """The UTF-8 of all texts in one, and where each begins: [n + 1]."""
    if isinstance(texts, Texts) and texts.valid:
        data, offset = texts.data, texts.offset
    else:
        try:
            parts = [text.encode() for text in texts]
        except UnicodeEncodeError as error:
            raise ModelInvalid(f"tokenizer: {error.object!r:.40} among the {what} is not valid Unicode") from None
        data, offset = b"".join(parts), np.zeros(len(parts) + 1, np.uint64)
        np.cumsum(np.fromiter(map(len, parts), np.uint64, len(parts)), out=offset[1:])
    if offset[-1] >= 2**32:
        raise ModelInvalid(f"tokenizer: {offset[-1]} bytes of {what}; at most 4 GiB are supported")
    return data, offset.astype(np.uint32)


class _Finder:
    """Some of the added tokens."""

    def __init__(self, tokens: Sequence[AddedToken], texts: Sequence[str]) -> None:
        self._ids = [t.id for t in tokens]
        flags = np.array([t.special + 2 * t.left + 4 * t.right for t in tokens], np.uint8)
        self._added = Added(*packed(texts, "added tokens"), flags, secrets.randbits(64))

    def pieces(self, text: bytes, allow_special: bool) -> Iterator[tuple[int, int, int | None]]:
        """(begin, end, id) of each token found, and of what lies between, without an id."""
        at = 0
        for begin, end, which in self._added.find(text, allow_special)[0].tolist() if self._ids else ():
            if at < begin:
                yield at, begin, None
            yield begin, end, self._ids[which]
            at = end
        if at < len(text):
            yield at, len(text), None


class Pipeline:
    """One tokenizer's rules, added tokens and model. Threads may share it."""

    def __init__(self, model: Model, rules: Rules, added: Sequence[AddedToken]) -> None:
        self._model = model
        self._rules = rules
        # Places in the text are exact where nothing but spaces and their marks was touched.
        self._exact = all(step in (SPACED, TO_MARKS) for step in rules.steps) and not rules.by_words
        self._spaced = self._exact and SPACED in rules.steps
        literal = [t for t in added if not t.normalized]
        self._literal = _Finder(literal, [t.text for t in literal])
        # Of those that are the same when normalized the first counts, special ones before others.
        others: dict[str, AddedToken] = {}
        for token in sorted((t for t in added if t.normalized), key=lambda t: not t.special):
            others.setdefault(self._normalized(utf8(token.text)).decode(), token)
        self._others = _Finder(list(others.values()), list(others))
        self._shown = {token.id: utf8(text) for text, token in others.items()}  # as they stand in a text

    def token(self, id: int) -> bytes:
        return self._shown.get(id) or self._model.token(id)

    def encode(self, text: bytes, allow_special: bool) -> Encoded:
        """As Model.encode; places are in the normalized text."""
        parts: list[Encoded] = []
        at = 0
        for begin, end, token in self._literal.pieces(text, allow_special):
            if token is None:
                ids, ends, work, length = self._between(text[begin:end], begin == 0, allow_special)
                parts.append((ids, ends + np.uint32(at), work))
                at += length
            else:
                at += end - begin
                parts.append((np.array([token], np.int32), np.array([at], np.uint32), 1))
        return _joined(parts, len(text))

    def _between(self, text: bytes, first: bool, allow_special: bool) -> _Measured:
        """Tokens of a text between literal tokens, and how long it is normalized."""
        normalized = self._normalized(text)
        parts, length = [], 0
        for begin, end, token in self._others.pieces(normalized, allow_special):
            if token is None:
                ids, ends, work, more = self._plain(normalized[begin:end], first and begin == 0)
                parts.append((ids, ends + np.uint32(length), work))
                length += more
            else:
                length += end - begin
                parts.append((np.array([token], np.int32), np.array([length], np.uint32), 1))
        ids, ends, work = _joined(parts, len(normalized))
        if not self._exact:
            return ids, ends, work, length
        if self._spaced:
            ends = ends - np.minimum(ends, 1).astype(np.uint32)
        return ids, self._with_marks(text, ends), work, len(text)

    def _plain(self, text: bytes, first: bool) -> _Measured:
        """Tokens of a text without added tokens, and how long it is."""
        rules, space = self._rules, False
        if rules.by_words:
            separate = words(text.decode("utf-8", "surrogateescape"))
            marked = [word if word.startswith(MARK) else MARK + word for word in separate]
            text = "".join(marked).replace(MARK, " ").encode("utf-8", "surrogateescape")
        elif rules.space == "always" or (rules.space == "first" and first):
            space = not text.startswith(b" ")
        ids, ends, work = self._model.encode(b" " + text if space else text)
        return ids, ends - np.minimum(ends, 1).astype(np.uint32) if space else ends, work, len(text)

    def _normalized(self, text: bytes) -> bytes:
        if self._exact:
            text = text.replace(_MARK, b" ") if self._rules.marks else text
            return b" " + text if self._spaced and text else text
        if self._rules.steps:
            made = text.decode("utf-8", "surrogateescape")
            for step in self._rules.steps:
                made = step(made)
            text = made.encode("utf-8", "surrogateescape")
        return text.replace(_MARK, b" ") if self._rules.marks and not self._rules.by_words else text

    def _with_marks(self, text: bytes, ends: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
        """Places in a text with spaces for marks -> places in text."""
        if not self._rules.marks or _MARK not in text:
            return ends
        parts = text.split(_MARK)[:-1]
        marks = np.cumsum([len(part) + 1 for part in parts]) - 1  # where each stands as a space
        return (ends + 2 * np.searchsorted(marks, ends, "left")).astype(np.uint32)


def _joined(parts: Sequence[Encoded], work: int) -> Encoded:
    if not parts:
        return np.empty(0, np.int32), np.empty(0, np.uint32), work
    if len(parts) == 1:
        return parts[0][0], parts[0][1], parts[0][2] + work
    ids, ends, steps = zip(*parts, strict=True)
    return np.concatenate(ids), np.concatenate(ends), work + sum(steps)
