"""Many strings in one piece behave as a list of them."""
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vocabularies import gguf_metadata

from pyruntime.errors import ModelInvalid
from pyruntime.loading import _Beside
from pyruntime.texts import Texts
from pyruntime.tokenizer.pipeline import packed
from pyruntime.tokenizer.tokenizer import Tokenizer

PARTS = st.lists(st.one_of(st.binary(max_size=6), st.text(max_size=4).map(str.encode),
                           st.sampled_from([b"", b"\xc3", b"\xa9", "é".encode()])))


def texts(parts: list[bytes]) -> Texts:
    return Texts(b"".join(parts), np.cumsum([0, *map(len, parts)]).astype(np.uint64))


@given(PARTS)
def test_as_a_list(parts: list[bytes]) -> None:
    ours, plain = texts(parts), [part.decode("utf-8", "surrogateescape") for part in parts]
    assert len(ours) == len(plain) and list(ours) == plain and ours == plain and plain == ours and ours == texts(parts)
    assert [ours[i] for i in range(-len(plain), len(plain))] == plain + plain
    assert ours[1:3] == plain[1:3] and ours[::-1] == plain[::-1]
    assert ours != [*plain, "x"] and ours != texts([*parts, b"x"])
    for beyond in (len(plain), -len(plain) - 1):
        with pytest.raises(IndexError):
            ours[beyond]


@given(PARTS)
def test_packed_as_a_list_is(parts: list[bytes]) -> None:
    """The same bytes and places, or the same error: each string on its own is UTF-8 or is not, whatever its neighbours make of
    it."""
    def outcome(of: object) -> object:
        try:
            data, offset = packed(of, "tokens")  # type: ignore[arg-type]
        except ModelInvalid as error:
            return str(error)
        return data, offset.tolist(), offset.dtype

    ours = texts(parts)
    assert outcome(ours) == outcome(list(ours))
    assert ours.valid == all(part.decode("utf-8", "replace").encode() == part for part in parts)


@pytest.mark.parametrize("at", [0, 3, 15, 16, 17, 40])
@pytest.mark.parametrize("wrong, says", [("x a", "its left side is not a token"), ("a x", "its right side is not a token"),
                                         ("c a", "what it makes is not a token"), ("ab", "is not two tokens"),
                                         ("a b c", "is not two tokens"), ("again", "is there twice")])
def test_the_first_wrong_merge_is_named(at: int, wrong: str, says: str) -> None:
    """However many are looked up together, and whatever is wrong behind it."""
    letters = [chr(ord("A") + i) for i in range(26)]
    pairs = [x + y for x in letters[:8] for y in letters[:8]]
    tokens, merges = [*letters, *pairs, "a", "b", "c"], [" ".join(pair) for pair in pairs]
    bad = merges[0] if wrong == "again" else wrong
    place = max(at, 1) if wrong == "again" else at
    merges.insert(place, bad)
    for behind in (place + 2, place + 20):
        merges.insert(behind, "q q q")
    meta = gguf_metadata(tokens, merges, [1] * len(tokens), "gpt2")
    with pytest.raises(ModelInvalid, match=rf"merge {place}\b.*{says}"):
        Tokenizer.from_gguf_metadata(meta)


def test_beside_gives_what_the_call_gives_or_raises() -> None:
    with _Beside(lambda: 7) as beside:
        assert beside.result() == 7
        beside.look()

    def fail() -> int:
        raise ModelInvalid("no")

    with pytest.raises(ModelInvalid, match="no"), _Beside(fail) as beside:
        beside.result()
    with pytest.raises(KeyError), _Beside(fail):    # the block's own error is the one that is told
        raise KeyError
