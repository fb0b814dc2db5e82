"""Token ids to text as they come: whole characters only, nothing that may be the start of a stop string."""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyruntime.errors import FieldInvalid

if TYPE_CHECKING:
    from pyruntime.tokenizer.tokenizer import Tokenizer


class _Matcher:
    """Knuth-Morris-Pratt over one stop string. `matched`: how much of it the text so far ends with."""

    __slots__ = ("stop", "fallback", "matched")

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.matched = 0
        self.fallback = [0] * len(stop)  # the longest proper prefix of stop that its first i + 1 characters end with
        k = 0
        for i in range(1, len(stop)):
            while k and stop[i] != stop[k]:
                k = self.fallback[k - 1]
            k += stop[i] == stop[k]
            self.fallback[i] = k

    def feed(self, char: str) -> bool:
        """True when the text now ends with the stop string."""
        k = self.matched
        while k and self.stop[k] != char:
            k = self.fallback[k - 1]
        self.matched = k + (self.stop[k] == char)
        return self.matched == len(self.stop)


class Detokenizer:
    """The text of one answer, piece by piece: all pieces together are the text of its tokens, up to the stop.

    A text stops at the first character that completes a stop string; if it completes several, at the longest.
    """

    __slots__ = ("_tokenizer", "_partial", "_matchers", "_held", "_include_stop", "_skipped", "_begins", "stopped")

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        include_stop: bool = False,
        skip_special: bool = True,
        begins: bool = False,
    ) -> None:
        """stop: strings that end the text, themselves left out unless include_stop; skip_special: special
        tokens give no text; begins: the first token begins a text, rather than going on from a prompt."""
        if isinstance(stop, str) or not all(isinstance(text, str) and text for text in stop):
            raise FieldInvalid("stop: must be a list of strings that are not empty", field="stop")
        self._tokenizer = tokenizer
        self._partial = b""  # bytes of a character that has not come whole
        self._matchers = [_Matcher(text) for text in stop]
        self._held = ""
        self._include_stop = include_stop
        self._skipped = tokenizer.special_ids if skip_special else frozenset()
        self._begins = begins
        self.stopped: str | None = None
        """The stop string that ended the text, if one has."""

    def feed(self, token_id: int) -> str:
        """The text that is certain after one more token; often "" and never part of a character."""
        data = (self._tokenizer.opening_bytes if self._begins else self._tokenizer.token_bytes)(token_id)
        if token_id in self._skipped:
            return ""
        self._begins = False
        data = self._partial + data
        text, used = utf_8_decode(data, "replace")
        self._partial = data[used:]
        return self._advance(text)

    def finish(self) -> str:
        """What was held back. Bytes of a character that never came whole are U+FFFD, as in bytes.decode."""
        text = self._advance(self._partial.decode("utf-8", "replace")) + self._held
        self._partial, self._held = b"", ""
        return text

    def _advance(self, text: str) -> str:
        if self.stopped is not None:
            return ""
        if not self._matchers:
            return text
        text = self._held + text
        for i in range(len(self._held), len(text)):
            hits = [m.stop for m in self._matchers if m.feed(text[i])]
            if hits:
                self.stopped = max(hits, key=len)
                self._held = ""
                return text[: i + 1 if self._include_stop else i + 1 - len(self.stopped)]
        certain = len(text) - max(m.matched for m in self._matchers)
        self._held = text[certain:]
        return text[:certain]
