"""The tokenizer: text to token ids and back. Which algorithm does it is the family's business."""

from __future__ import annotations

import secrets
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from operator import index
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pyruntime._core._text import Bpe, Spm
from pyruntime.errors import FieldInvalid, ModelInvalid
from pyruntime.tokenizer import spec as specs
from pyruntime.tokenizer.chat import ChatTemplate
from pyruntime.tokenizer.spec import Kind, Spec


class Encoder(Protocol):
    """One family's algorithm over one vocabulary. Threads may share it."""

    def encode(self, text: bytes, allow_special: bool) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint32], int]:
        """Token ids [count], where in text each ends [count], and the steps it took."""

    def token(self, id: int) -> bytes:
        """The bytes of a token of the vocabulary."""


def _byte_level_bpe(spec: Spec) -> Encoder:
    text, offset = _packed(spec.tokens, "tokens")
    merge_text, merge_offset = _packed(spec.merges, "merges")
    kinds = np.array(spec.kinds, np.uint8)
    split = specs.find_split(spec.split)
    return Bpe(text, offset, kinds, merge_text, merge_offset, split, spec.ignore_merges, secrets.randbits(64))


def _sentencepiece_bpe(spec: Spec) -> Encoder:
    text, offset = _packed(spec.tokens, "tokens")
    try:
        scores = np.array(spec.scores, np.float32)
    except (TypeError, ValueError):
        raise ModelInvalid("tokenizer.ggml.scores: every one must be a number") from None
    if scores.shape != (len(spec.tokens),):
        raise ModelInvalid("tokenizer.ggml.scores: every one must be a number")
    unknown = -1 if spec.unknown_id is None else spec.unknown_id
    kinds = np.array(spec.kinds, np.uint8)
    return Spm(text, offset, kinds, scores, unknown, spec.space_prefix, secrets.randbits(64))


def _packed(texts: Sequence[str], what: str) -> tuple[bytes, npt.NDArray[np.uint32]]:
    """The UTF-8 of all texts in one, and where each begins: [n + 1]."""
    try:
        parts = [text.encode() for text in texts]
    except UnicodeEncodeError as error:
        raise ModelInvalid(f"tokenizer: {error.object!r:.40} among the {what} is not valid Unicode") from None
    offset = np.zeros(len(parts) + 1, np.uint64)
    np.cumsum(np.fromiter(map(len, parts), np.uint64, len(parts)), out=offset[1:])
    if offset[-1] >= 2**32:
        raise ModelInvalid(f"tokenizer: {offset[-1]} bytes of {what}; at most 4 GiB are supported")
    return b"".join(parts), offset.astype(np.uint32)


# Every family of tokenizers, by the name a Spec gives it.
FAMILIES: dict[str, Callable[[Spec], Encoder]] = {"bpe": _byte_level_bpe, "spm": _sentencepiece_bpe}


class Tokenizer:
    """A model's tokenizer. It never changes: threads may share one."""

    def __init__(self, spec: Spec) -> None:
        if spec.family not in FAMILIES:
            raise ModelInvalid(f"tokenizer: no family {spec.family!r}; known are {', '.join(FAMILIES)}")
        if not spec.tokens:
            raise ModelInvalid("tokenizer: the vocabulary is empty")
        self._encoder = FAMILIES[spec.family](spec)
        self._nfc = spec.nfc
        self._space_prefix = spec.space_prefix
        self._prefix, self._suffix = spec.prefix, spec.suffix
        self.vocab_size = len(spec.tokens)
        self.bos_id, self.eos_id = spec.bos_id, spec.eos_id
        self.end_ids = spec.end_ids
        self.bos_token = None if self.bos_id is None else spec.tokens[self.bos_id]
        self.eos_token = None if self.eos_id is None else spec.tokens[self.eos_id]
        self.specials = {i: spec.tokens[i] for i, kind in enumerate(spec.kinds) if kind == Kind.SPECIAL}
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
        return cls(specs.from_tokenizer_json(source, config))

    @classmethod
    def from_vocab_merges(cls, vocab: str | Path | bytes, merges: str | Path | bytes) -> Tokenizer:
        return cls(specs.from_vocab_merges(vocab, merges))

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
        data = self._utf8(text)
        before, after = self._around(add_special)
        ends = self._encoder.encode(data, allow_special)[1]
        places = np.concatenate([np.zeros(1 + len(before)), ends, np.full(len(after), len(data))]).astype(np.int64)
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
            return (unicodedata.normalize("NFC", text) if self._nfc else text).encode()
        except UnicodeEncodeError as error:
            message = f"text: character {error.start} is half of a surrogate pair; send valid Unicode"
            raise FieldInvalid(message, field="text") from None

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """The text of ids, the inverse of encode; bytes that are not UTF-8 become U+FFFD.

        A space that encode puts before a text is taken off again; a text that goes on from another one is Detokenizer's."""
        return self.decode_bytes(ids, skip_special).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int], skip_special: bool = False) -> bytes:
        """The same as bytes."""
        parts, begins = [], self._space_prefix
        for i in ids:
            data, special = self.token_bytes(i), i in self.special_ids
            if not (special and skip_special):
                parts.append(data[1:] if begins and not special and data[:1] == b" " else data)
            begins = self._space_prefix and special
        return b"".join(parts)

    def token_bytes(self, id: int) -> bytes:
        """What one token stands for. FieldInvalid outside the vocabulary."""
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
