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
        ignore_merges: bool,
        seed: int,
    ) -> None:
        """text: the UTF-8 of all tokens; offset: [n + 1] where each begins; kind: [n]; merge_text and
        merge_offset: the same of "left right" for every merge, in order of rank."""

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
