"""Many strings in one piece: the UTF-8 of all of them and where each begins. A vocabulary as a file holds it: a tenth of the
memory of as many Python strings, and made without them."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import overload

import numpy as np
from numpy.typing import NDArray


class Texts(Sequence[str]):
    """A list of strings that makes each when it is asked for. Bytes that are no UTF-8 come as surrogate escapes.

    data: every string's bytes, one behind the other. offset: u64 [n + 1], where each begins in data.
    """

    __slots__ = ("data", "offset")

    def __init__(self, data: bytes, offset: NDArray[np.uint64]) -> None:
        self.data, self.offset = data, offset

    def __len__(self) -> int:
        return len(self.offset) - 1

    @overload
    def __getitem__(self, which: int) -> str: ...
    @overload
    def __getitem__(self, which: slice) -> list[str]: ...

    def __getitem__(self, which: int | slice) -> str | list[str]:
        if isinstance(which, slice):
            return [self[i] for i in range(*which.indices(len(self)))]
        i = range(len(self))[which]    # negative ones, and an IndexError
        return self.data[self.offset[i] : self.offset[i + 1]].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        at = 0
        for end in islice(self.offset.tolist(), 1, None):
            yield self.data[at:end].decode("utf-8", "surrogateescape")
            at = end

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Texts):
            return self.data == other.data and np.array_equal(self.offset, other.offset)
        return list(self) == other if isinstance(other, list) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # as a list

    def __repr__(self) -> str:
        return repr(self[:8])[:-1] + (", ...]" if len(self) > 8 else "]")

    @property
    def valid(self) -> bool:
        """Whether every one is UTF-8: all together are, and none begins within a character."""
        bounds = self.offset[1:-1]
        inner = np.frombuffer(self.data, np.uint8)[bounds[bounds < len(self.data)].astype(np.int64)]
        try:
            self.data.decode()
        except UnicodeDecodeError:
            return False
        return not np.any(inner & 0xC0 == 0x80)
