"""Text as it streams: whole characters, stop strings across token borders."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from vocabularies import both, gguf_metadata

from pyruntime.errors import FieldInvalid
from pyruntime.tokenizer import Detokenizer, Tokenizer


@pytest.fixture(scope="module")
def gpt2():
    return both("gpt2", "gpt2")[0]


def pieces(detokenizer: Detokenizer, ids: list[int]) -> list[str]:
    return [*(detokenizer.feed(i) for i in ids), detokenizer.finish()]


def stopped_by_the_book(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """What Detokenizer promises, read off the whole text."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end if include else end - len(longest)], longest
    return text, None


IDS = st.lists(st.integers(0, 50255) | st.integers(0, 255) | st.sampled_from([172, 253, 237, 223]), max_size=40)


@settings(max_examples=300, deadline=None)
@given(ids=IDS)
def test_pieces_are_the_text(gpt2, ids):
    """Any tokens, whole characters or not: as decode says, and what has been said is never taken back."""
    assert "".join(pieces(Detokenizer(gpt2), ids)) == gpt2.decode(ids)


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("👩👦é中")), cut=st.booleans())
@example(text="👩‍👩‍👧‍👦", cut=True)
def test_pieces_are_whole_characters(gpt2, text, cut):
    """However a text is cut into tokens, down to single bytes, no piece shows half a character."""
    whole = gpt2.encode(text)
    ids = [i for t in whole for b in gpt2.token_bytes(t) for i in gpt2.encode(bytes([b]))] if cut else whole
    detokenizer = Detokenizer(gpt2)
    said = ""
    for k, i in enumerate(ids):
        said += detokenizer.feed(i)
        certain = gpt2.decode_bytes(ids[: k + 1]).decode("utf-8", "ignore")
        assert said == certain, "every character that is complete, nothing more"
    assert detokenizer.finish() == "" and said == text


def test_an_emoji_of_three_tokens(gpt2):
    ids = gpt2.encode("🤗")
    assert len(ids) == 3
    assert pieces(Detokenizer(gpt2), ids) == ["", "", "🤗", ""]
    assert pieces(Detokenizer(gpt2), ids[:2]) == ["", "", "\ufffd"]
    assert pieces(Detokenizer(gpt2), [ids[0], *gpt2.encode("a")]) == ["", "\ufffda", ""]


STOPS = st.lists(st.text("ab\né", min_size=1, max_size=5), max_size=4)


@settings(max_examples=400, deadline=None)
@given(parts=st.lists(st.text("ab\né", min_size=1, max_size=4), max_size=15), stops=STOPS, include=st.booleans())
@example(parts=["aab"], stops=["ab", "aab", "b"], include=False)
@example(parts=["a", "a", "a", "b"], stops=["aab"], include=False)
def test_stop_strings(gpt2, parts, stops, include):
    """Across token borders, as on the whole text; never a character of a possible stop string too early."""
    ids = [i for part in parts for i in gpt2.encode(part)]
    text, stopped = stopped_by_the_book("".join(parts), stops, include)
    detokenizer = Detokenizer(gpt2, stops, include_stop=include)
    said, seen = "", ""
    for k, i in enumerate(ids):
        said += detokenizer.feed(i)
        seen = gpt2.decode_bytes(ids[: k + 1]).decode("utf-8", "ignore")
        if detokenizer.stopped is None:
            ends = {seen[at:] for at in range(len(seen))}
            held = max((len(e) for e in ends if any(s.startswith(e) for s in stops)), default=0)
            assert said == seen[: len(seen) - held]
    assert said + detokenizer.finish() == text
    assert detokenizer.stopped == stopped
    if stopped is not None:
        assert detokenizer.feed(0) == "" and detokenizer.finish() == ""


def test_a_stop_string_that_never_comes_is_text(gpt2):
    detokenizer = Detokenizer(gpt2, ["END OF IT"])
    said = [detokenizer.feed(i) for i in gpt2.encode("The END O")]
    assert "".join(said) == "The " and detokenizer.finish() == "END O" and detokenizer.stopped is None


def test_held_back_text_and_held_back_bytes_end_in_order(gpt2):
    ids = [*gpt2.encode("xa"), gpt2.encode("👩")[0]]
    assert "".join(pieces(Detokenizer(gpt2, ["ab"]), ids)) == "xa\ufffd"


def test_a_stop_string_of_what_is_no_character(gpt2):
    """The mark of broken bytes can be a stop string, at the end of the text too."""
    detokenizer = Detokenizer(gpt2, ["\ufffd"])
    assert pieces(detokenizer, [*gpt2.encode("a"), gpt2.encode("👩")[0]]) == ["a", "", ""]
    assert detokenizer.stopped == "\ufffd"


class Counted(str):
    """A string that counts how often one of its characters is looked at."""

    looks = 0

    def __getitem__(self, at):
        Counted.looks += 1
        return super().__getitem__(at)


@pytest.mark.parametrize("stop, text", [("a" * 500 + "b", "a"), ("ab" * 200 + "c", "ab"), ("\n\n", "\nx")])
def test_stop_strings_take_linear_time(gpt2, stop, text):
    """In a text of nothing but beginnings of the stop string."""
    detokenizer = Detokenizer(gpt2, [Counted(stop)])
    Counted.looks = 0
    for i in gpt2.encode(text * 2000):
        detokenizer.feed(i)
    assert Counted.looks < 4 * len(text * 2000)


def test_special_tokens_give_no_text_unless_asked_for():
    meta = gguf_metadata(["a", "<|x|>"], [], [1, 3], "gpt2")
    ours = Tokenizer.from_gguf_metadata(meta)
    assert pieces(Detokenizer(ours), [0, 1, 0]) == ["a", "", "a", ""]
    assert pieces(Detokenizer(ours, skip_special=False), [0, 1, 0]) == ["a", "<|x|>", "a", ""]


@pytest.mark.parametrize("bad", [-1, 2, 2**40])
def test_a_token_outside_the_vocabulary(bad):
    ours = Tokenizer.from_gguf_metadata(gguf_metadata(["a", "b"], [], [1, 1], "gpt2"))
    with pytest.raises(FieldInvalid, match="not a token id"):
        Detokenizer(ours).feed(bad)


@pytest.mark.parametrize("stop", [[""], ["a", ""], [3], "abc", [b"a"]])
def test_bad_stop_strings(gpt2, stop):
    with pytest.raises(FieldInvalid, match=r"^stop: ") as caught:
        Detokenizer(gpt2, stop)
    assert caught.value.field == "stop"
