import numpy as np
import numpy.typing as npt

class Bpe:
    """A byte-level BPE vocabulary (csrc/text/bpe.h). It never changes: threads share it, and encoding holds no GIL."""

    def __init__(
        self,
        text: bytes,
        offset: npt.NDArray[np.uint32],
        kind: npt.NDArray[np.uint8],
        merge_text: bytes,
        merge_offset: npt.NDArray[np.uint32],
        split: int,
        ranked: bool,
        ignore_merges: bool,
        seed: int,
    ) -> None:
        """text: the UTF-8 of all tokens; offset: [n + 1] where each begins; kind: [n]; merge_text and
        merge_offset: the same of "left right" for every merge, in order of rank; ranked: tokens merge in order of their
        ids, without merges."""

    def encode(
        self, text: bytes, allow_special: bool
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint32], int]:
        """Token ids [count], where in text each ends [count], and the steps it took."""

    def token(self, id: int) -> bytes:
        """The bytes of one token; IndexError outside the vocabulary."""

    @property
    def known_bytes(self) -> int:
        """How many of the 256 bytes have a token of their own."""

class Spm:
    """A SentencePiece BPE vocabulary (csrc/text/spm.h). It never changes: threads share it, and encoding holds no GIL."""

    def __init__(
        self,
        text: bytes,
        offset: npt.NDArray[np.uint32],
        kind: npt.NDArray[np.uint8],
        score: npt.NDArray[np.float32],
        unknown: int,
        space_prefix: bool,
        seed: int,
    ) -> None:
        """text: the UTF-8 of all tokens; offset: [n + 1] where each begins; kind, score: [n]; unknown: a token or -1."""

    def encode(
        self, text: bytes, allow_special: bool
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint32], int]:
        """Token ids [count], where in text each ends [count], and the steps it took."""

    def token(self, id: int) -> bytes:
        """The bytes of one token; IndexError outside the vocabulary."""

class Chars:
    """A vocabulary of BPE over characters (csrc/text/chars.h). It never changes: threads share it, and encoding holds no GIL."""

    def __init__(
        self,
        text: bytes,
        offset: npt.NDArray[np.uint32],
        kind: npt.NDArray[np.uint8],
        spaces: bool,
        merge_text: bytes,
        merge_offset: npt.NDArray[np.uint32],
        unknown: int,
        fuse_unknown: bool,
        split_words: bool,
        ignore_merges: bool,
        seed: int,
    ) -> None:
        """As Bpe's; spaces: tokens write a space as U+2581, the text does not; unknown: a token or -1."""

    def encode(self, text: bytes) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint32], int]:
        """Token ids [count], where in text each ends [count], and the steps it took."""

    def token(self, id: int) -> bytes:
        """The bytes of one token; IndexError outside the vocabulary."""

class Unigram:
    """A unigram vocabulary (csrc/text/unigram.h). It never changes: threads share it, and encoding holds no GIL."""

    def __init__(
        self,
        text: bytes,
        offset: npt.NDArray[np.uint32],
        kind: npt.NDArray[np.uint8],
        spaces: bool,
        score: npt.NDArray[np.float64],
        least: float,
        unknown: int,
        split_words: bool,
        single: bool,
        seed: int,
    ) -> None:
        """As Chars'; score: [n]; least: the worst score; single: sums of 32 bits."""

    def encode(self, text: bytes) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint32], int]:
        """Token ids [count], where in text each ends [count], and the steps it took."""

    def token(self, id: int) -> bytes:
        """The bytes of one token; IndexError outside the vocabulary."""

class WordPiece:
    """A WordPiece vocabulary (csrc/text/wordpiece.h). It never changes: threads share it, and encoding holds no GIL."""

    def __init__(
        self,
        text: bytes,
        offset: npt.NDArray[np.uint32],
        kind: npt.NDArray[np.uint8],
        prefix: bytes,
        most_chars: int,
        unknown: int,
        seed: int,
    ) -> None:
        """prefix: what tokens within a word begin with; most_chars: a longer word is unknown."""

    def encode(self, text: bytes) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint32], int]:
        """Token ids [count], where in text each ends [count], and the steps it took."""

    def token(self, id: int) -> bytes:
        """The bytes of one token; IndexError outside the vocabulary."""

class Added:
    """Added tokens (csrc/text/added.h). They never change: threads share them, and finding holds no GIL."""

    def __init__(self, text: bytes, offset: npt.NDArray[np.uint32], flags: npt.NDArray[np.uint8], seed: int) -> None:
        """text, offset: as Bpe's; flags: [n] 1 special, 2 takes the white space before it along, 4 that behind it."""

    def find(self, text: bytes, allow_special: bool) -> tuple[npt.NDArray[np.uint32], int]:
        """[count, 3] begin, end and number of each that was found, and the steps it took."""

class CharsMap:
    """A precompiled map of characters (csrc/text/charsmap.h). Threads share it."""

    def __init__(self, data: bytes) -> None: ...
    def apply(self, text: bytes, graphemes: bool) -> bytes:
        """text mapped: the longest entry at every place, or by graphemes as the `tokenizers` package does."""
