"""The tokenizer: text to token ids and back. Which algorithm does it is the family's business."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from operator import index
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pyruntime._core._text import Bpe, Chars, Spm, Unigram, WordPiece
from pyruntime.errors import FieldInvalid, ModelInvalid
from pyruntime.tokenizer import files
from pyruntime.tokenizer import spec as specs
from pyruntime.tokenizer.chat import ChatTemplate
from pyruntime.tokenizer.pipeline import Encoded, Model, Pipeline, Rules, packed, utf8
from pyruntime.tokenizer.spec import Kind, Spec
from pyruntime.tokenizer.tokenizer_json import from_tokenizer_json


class Encoder(Protocol):
    """One family's algorithm over one vocabulary. Threads may share it."""

    def encode(self, text: bytes, allow_special: bool) -> Encoded:
        """Token ids [count], where in text each ends [count], and the steps it took."""

    def token(self, id: int) -> bytes:
        """The bytes of a token of the vocabulary."""


class _Whole:
    """A family that finds its added tokens itself, as a model that finds none."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def encode(self, text: bytes) -> Encoded:
        return self._encoder.encode(text, False)

    def token(self, id: int) -> bytes:
        return self._encoder.token(id)


def _listed(spec: Spec) -> tuple[bytes, npt.NDArray[np.uint32], npt.NDArray[np.uint8]]:
    return *packed(spec.tokens, "tokens"), np.array(spec.kinds, np.uint8)


def _scores(spec: Spec, dtype: type[np.floating[Any]]) -> npt.NDArray[Any]:
    try:
        scores = np.array(spec.scores, dtype)
    except (TypeError, ValueError, OverflowError):
        raise ModelInvalid("tokenizer.ggml.scores: every one must be a number") from None
    if scores.shape != (len(spec.tokens),):
        raise ModelInvalid("tokenizer.ggml.scores: every one must be a number")
    return scores


def _unknown(spec: Spec) -> int:
    return -1 if spec.unknown_id is None else spec.unknown_id


def _byte_level_bpe(spec: Spec) -> Encoder:
    split, merges = specs.find_split(spec.split), packed(spec.merges, "merges")
    return Bpe(*_listed(spec), *merges, split, spec.ranked, spec.ignore_merges, secrets.randbits(64))


def _sentencepiece_bpe(spec: Spec) -> Encoder:
    return Spm(*_listed(spec), _scores(spec, np.float32), _unknown(spec), spec.space_prefix, secrets.randbits(64))


def _bpe_over_characters(spec: Spec) -> Model:
    return Chars(*_listed(spec), _rules(spec).marks, *packed(spec.merges, "merges"), _unknown(spec), spec.fuse_unknown,
                 spec.split_words, spec.ignore_merges, secrets.randbits(64))  # fmt: skip


def _unigram(spec: Spec) -> Model:
    return Unigram(*_listed(spec), _rules(spec).marks, _scores(spec, np.float64), spec.least_score, _unknown(spec),
                   spec.split_words, spec.single_sums, secrets.randbits(64))  # fmt: skip


def _wordpiece(spec: Spec) -> Model:
    return WordPiece(*_listed(spec), utf8(spec.subword_prefix), spec.most_chars, _unknown(spec), secrets.randbits(64))


def _rules(spec: Spec) -> Rules:
    return spec.rules or Rules()


# Every family of tokenizers, by the name a Spec gives it: those that find added tokens themselves, those that leave it to a
# Pipeline. The first can do as the second do.
FAMILIES: dict[str, Callable[[Spec], Encoder]] = {"bpe": _byte_level_bpe, "spm": _sentencepiece_bpe}
MODELS: dict[str, Callable[[Spec], Model]] = {"chars": _bpe_over_characters, "unigram": _unigram, "wordpiece": _wordpiece}


def _encoder(spec: Spec) -> Encoder:
    if spec.family in MODELS:
        model = MODELS[spec.family](spec)
    elif spec.family not in FAMILIES:
        raise ModelInvalid(f"tokenizer: no family {spec.family!r}; known are {', '.join([*FAMILIES, *MODELS])}")
    elif spec.rules is None:
        return FAMILIES[spec.family](spec)
    else:
        model = _Whole(FAMILIES[spec.family](spec))
    return Pipeline(model, _rules(spec), spec.added)


# What a text of WordPiece loses before signs, as the `tokenizers` package takes it away token by token.
_CLEANED = [(" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"), (" do not", " don't"),
            (" 's", "'s"), (" 've", "'ve"), (" 're", "'re")]  # fmt: skip


class Tokenizer:
    """A model's tokenizer. It never changes: threads may share one."""

    def __init__(self, spec: Spec) -> None:
        if not spec.tokens:
            raise ModelInvalid("tokenizer: the vocabulary is empty")
        self._encoder = _encoder(spec)
        self._space_prefix, self._opening = spec.space_prefix, spec.opening
        self._by_words, self._subword_prefix, self._cleanup = spec.family == "wordpiece", utf8(spec.subword_prefix), spec.cleanup
        self._prefix, self._suffix = spec.prefix, spec.suffix
        self.vocab_size = len(spec.tokens)
        self.bos_id, self.eos_id = spec.bos_id, spec.eos_id
        self.end_ids = spec.end_ids
        self.bos_token = None if self.bos_id is None else spec.tokens[self.bos_id]
        self.eos_token = None if self.eos_id is None else spec.tokens[self.eos_id]
        self.specials = {i: spec.tokens[i] for i in specs.ids_of(spec.kinds, Kind.SPECIAL)}
        self.special_ids = frozenset(self.specials)
        self.chat_template = spec.chat_template

    @classmethod
    def build(cls, spec: Spec) -> Tokenizer:
        return cls(spec)

    @classmethod
    def from_gguf_metadata(cls, meta: Mapping[str, object]) -> Tokenizer:
        return cls(specs.from_gguf_metadata(meta))

    @classmethod
    def from_tokenizer_json(cls, source: str | Path | bytes, config: Mapping[str, object] | None = None) -> Tokenizer:
        return cls(from_tokenizer_json(source, config))

    @classmethod
    def from_vocab_merges(cls, vocab: str | Path | bytes, merges: str | Path | bytes) -> Tokenizer:
        return cls(specs.from_vocab_merges(vocab, merges))

    @classmethod
    def from_tekken(cls, source: str | Path | bytes) -> Tokenizer:
        return cls(files.from_tekken(source))

    @classmethod
    def from_sentencepiece(cls, source: str | Path | bytes) -> Tokenizer:
        return cls(files.from_sentencepiece(source))

    @classmethod
    def from_vocab_txt(cls, source: str | Path | bytes, config: Mapping[str, object] | None = None) -> Tokenizer:
        return cls(files.from_vocab_txt(source, config))

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Of a model's folder, whichever of the known files it has. ModelNotFound where it has none."""
        return cls(files.from_folder(folder))

    @property
    def add_bos(self) -> bool:
        """Whether a text gets the beginning-of-sequence token unless the caller says otherwise."""
        return self.bos_id is not None and self.bos_id in self._prefix

    def encode(self, text: str | bytes, add_special: bool | None = None, allow_special: bool = False) -> list[int]:
        """Token ids of text.

        add_special: True puts the beginning-of-sequence token, False adds nothing, None what the model does.
        allow_special: whether the text of special tokens becomes them; otherwise it is text like any other.
        """
        before, after = self._around(add_special)
        return [*before, *self._encoder.encode(self._utf8(text), allow_special)[0].tolist(), *after]

    def encode_array(
        self, text: str | bytes, add_special: bool | None = None, allow_special: bool = False
    ) -> npt.NDArray[np.int32]:
        """As encode. [count]"""
        return np.array(self.encode(text, add_special, allow_special), np.int32)

    def offsets(self, text: str | bytes, add_special: bool | None = None, allow_special: bool = False) -> npt.NDArray[np.int64]:
        """[count, 2] where each token of encode begins and ends, in bytes of the UTF-8 of text (normalized,
        where the model does that). Tokens that were added are empty."""
        before, after = self._around(add_special)
        ends = self._encoder.encode(self._utf8(text), allow_special)[1]
        last = ends[-1] if len(ends) else 0
        places = np.concatenate([np.zeros(1 + len(before)), ends, np.full(len(after), last)]).astype(np.int64)
        return np.stack([places[:-1], places[1:]], axis=1)

    def _around(self, add_special: bool | None) -> tuple[list[int], list[int]]:
        """The ids that go before and after a text."""
        if add_special is False:
            return [], []
        if add_special and not self._prefix and self.bos_id is not None:
            return [self.bos_id], self._suffix
        return self._prefix, self._suffix

    def _utf8(self, text: str | bytes) -> bytes:
        if not isinstance(text, str):
            return bytes(text)
        try:
            return text.encode()
        except UnicodeEncodeError as error:
            message = f"text: character {error.start} is half of a surrogate pair; send valid Unicode"
            raise FieldInvalid(message, field="text") from None

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """The text of ids, the inverse of encode; bytes that are not UTF-8 become U+FFFD.

        What encode puts before a text is taken off again; a text that goes on from another one is Detokenizer's."""
        return self.decode_bytes(ids, skip_special).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int], skip_special: bool = False) -> bytes:
        """The same as bytes."""
        parts: list[bytes] = []
        begins = True
        for i in ids:
            data, special = self.token_bytes(i), i in self.special_ids
            if not (special and skip_special):
                parts.append(self.opening_bytes(i) if begins and not (special and self._space_prefix) else data)
                begins = False
            begins = begins or (self._space_prefix and special)
        return b"".join(parts)

    def token_bytes(self, id: int) -> bytes:
        """What one token stands for within a text. FieldInvalid outside the vocabulary."""
        data = self._raw_bytes(id)
        if not self._by_words:
            return data
        within = bool(self._subword_prefix) and data.startswith(self._subword_prefix)
        return self._cleaned(data[len(self._subword_prefix) :] if within else b" " + data)

    def opening_bytes(self, id: int) -> bytes:
        """What one token stands for at the beginning of a text."""
        data = self._raw_bytes(id)
        if self._by_words:
            return self._cleaned(data)
        if self._opening == "spaces":
            return data.replace(b" ", b"")
        if self._opening == "space" or self._space_prefix:
            return data[1:] if data[:1] == b" " else data
        return data

    def _cleaned(self, data: bytes) -> bytes:
        for old, new in _CLEANED if self._cleanup else ():
            data = data.replace(old.encode(), new.encode())
        return data

    def _raw_bytes(self, id: int) -> bytes:
        try:
            return self._encoder.token(index(id))
        except (IndexError, TypeError, OverflowError):
            message = f"token_ids: {id!r:.40} is not a token id; they are 0 to {self.vocab_size - 1}"
            raise FieldInvalid(message, field="token_ids") from None

    @cached_property
    def special_spellings(self) -> dict[str, int]:
        """The texts of special tokens."""
        return {text: i for i, text in self.specials.items() if text}

    @cached_property
    def chat(self) -> ChatTemplate:
        """The model's chat template; ModelInvalid when it has none."""
        return ChatTemplate(self)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> tuple[str, list[int]]:
        """The prompt of a chat as text and token ids; options as in ChatTemplate.encode."""
        return self.chat.encode(messages, **options)
