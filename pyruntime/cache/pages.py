"""Pages of one cache group: who holds each one, which are free. Bookkeeping only; a page is an index.

A page holds PAGE_TOKENS tokens. A block table is a sequence's list of pages: token t lives in slot
table[t // PAGE_TOKENS] * PAGE_TOKENS + t % PAGE_TOKENS. A page is free when nobody holds it; several holders may share one.
GONE stands in a table where a page was given back because the window of every token still to compute lies past it.
"""
from __future__ import annotations

from array import array
from dataclasses import dataclass

from ..plan import PAGE_TOKENS, CacheGroup

__all__ = ["GONE", "PAGE_TOKENS", "PagePool", "Span", "pages_for", "slot_of"]

GONE = -1


def pages_for(tokens: int) -> int:
    """Pages that `tokens` tokens need."""
    return -(-tokens // PAGE_TOKENS)


def slot_of(table: list[int], token: int) -> int:
    """The cache slot of a sequence's token."""
    return table[token // PAGE_TOKENS] * PAGE_TOKENS + token % PAGE_TOKENS


@dataclass(frozen=True, slots=True)
class Span:
    """Which blocks of a group a sequence must hold, when one step computes at most `chunk` of its tokens."""

    window: int = 0
    chunk: int = 1
    state: bool = False   # one page, whatever the number of tokens

    @classmethod
    def of(cls, group: CacheGroup, chunk: int) -> Span:
        """A cache group's."""
        return cls(group.window, chunk, group.kind == "state")

    def blocks(self, computed: int, known: int) -> tuple[int, int]:
        """(first, end) of the blocks that the step after `computed` of `known` tokens reads or writes."""
        if self.state:
            return 0, 1
        if not self.window:
            return 0, pages_for(known)
        return max(0, computed - self.window + 1) // PAGE_TOKENS, pages_for(min(known, computed + self.chunk))

    def most(self, tokens: int) -> int:
        """Pages a sequence of up to `tokens` tokens ever holds at once."""
        if self.state or not self.window:
            return 1 if self.state else pages_for(tokens)
        return min(pages_for(tokens), (self.window + self.chunk - 1 + PAGE_TOKENS - 2) // PAGE_TOKENS + 1)

    def room(self, end: int, tokens: int) -> int:
        """How many of at most `tokens` tokens fit before block `end`."""
        return tokens if self.state else min(tokens, end * PAGE_TOKENS)


class PagePool:
    """A pool of `total` pages with reference counts.

    Free pages are kept as extents (runs of neighbours), merged when pages come back, so that a sequence gets neighbouring
    pages where it can: its next page is the one behind its last if that is free, and a newcomer leaves room behind others.
    """

    __slots__ = ("total", "free", "_holders", "_length_at", "_start_of_end")

    def __init__(self, total: int) -> None:
        self.total = total
        self.free = total
        self._holders = array("i", bytes(4 * total))
        self._length_at: dict[int, int] = {}       # first page of a free extent -> its length
        self._start_of_end: dict[int, int] = {}    # one past its last page -> its first page
        if total:
            self._put(0, total)

    def _put(self, start: int, length: int) -> None:
        self._length_at[start] = length
        self._start_of_end[start + length] = start

    def _cut(self, start: int) -> int:
        length = self._length_at.pop(start)
        del self._start_of_end[start + length]
        return length

    def _take(self, extent: int, start: int, count: int) -> range:
        """Pages [start, start + count) out of the free extent that begins at `extent`."""
        end = extent + self._cut(extent)
        if extent < start:
            self._put(extent, start - extent)
        if start + count < end:
            self._put(start + count, end - start - count)
        return range(start, start + count)

    def allocate(self, count: int, after: int = -1) -> list[int]:
        """`count` free pages, each with one holder; first those behind page `after`. The caller checks `free` before."""
        if count > self.free:
            raise ValueError(f"{count} pages asked for, {self.free} of {self.total} free")
        pages: list[int] = []
        if after + 1 in self._length_at and after >= 0:
            pages += self._take(after + 1, after + 1, min(count, self._length_at[after + 1]))
        while len(pages) < count:
            extent, length = max(self._length_at.items(), key=lambda item: item[1])
            n = min(count - len(pages), length)
            crowded = extent > 0 and n < length   # the page before belongs to someone who may grow
            pages += self._take(extent, extent + (length - n + 1) // 2 if crowded else extent, n)
        for page in pages:
            self._holders[page] = 1
        self.free -= count
        return pages

    def share(self, pages: list[int]) -> None:
        """One more holder for each page."""
        for page in pages:
            if not self._holders[page]:
                raise ValueError(f"page {page} is free; only a held page can be shared")
            self._holders[page] += 1

    def release(self, pages: list[int]) -> None:
        """One holder less for each page; those without any are free again."""
        for page in pages:
            if not self._holders[page]:
                raise ValueError(f"page {page} is free already")
            self._holders[page] -= 1
            if not self._holders[page]:
                self._give_back(page)

    def _give_back(self, page: int) -> None:
        start, length = page, 1
        if page + 1 in self._length_at:
            length += self._cut(page + 1)
        if page in self._start_of_end:
            start = self._start_of_end[page]
            length += self._cut(start)
        self._put(start, length)
        self.free += 1

    def holders(self, page: int) -> int:
        """How many hold `page`; 0 = free."""
        return self._holders[page]

    def check(self, tables: list[list[int]]) -> None:
        """AssertionError unless the counts add up when exactly `tables` hold pages."""
        counts = [0] * self.total
        for table in tables:
            for page in table:
                counts[page] += 1
        assert counts == self._holders.tolist(), "a page's holders differ from the tables that name it"
        free = sorted(p for start, length in self._length_at.items() for p in range(start, start + length))
        assert free == [p for p, n in enumerate(counts) if not n], "the free extents are not the pages without a holder"
        assert self.free == len(free) and all(s not in self._start_of_end for s in self._length_at), "extents touch or miscount"
