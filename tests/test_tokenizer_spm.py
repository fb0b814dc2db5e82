"""SentencePiece's byte-pair encoding against the `sentencepiece` package reading the same vocabulary, and its own promises."""
from __future__ import annotations

import functools
import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_tokenizer import EDGES, TEXTS

from pyruntime.errors import FieldInvalid, ModelInvalid
from pyruntime.tokenizer import Detokenizer, Tokenizer
from pyruntime.tokenizer.chat import ChatTemplate
from pyruntime.weights.gguf import GGUFModel

spm = pytest.importorskip("sentencepiece")
pb = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
ROOT = Path(__file__).parent
BYTES = [f"<0x{b:02X}>" for b in range(256)]
SPACES = ["", " ", "  ", "   a", "a   ", "▁", "▁▁", " ▁ ", "a▁b", "▁a ", " a", "a b", "  \n ", "<s>", "<x>a", "a <x> b", "\0",
          "a\0 b", "x" * 47 + " y", "x" * 48, "ab " * 40, "the" * 40]


def metadata(tokens: list[str], scores: list[float], types: list[int], **more: object) -> dict[str, object]:
    return {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.scores": scores,
            "tokenizer.ggml.token_type": types, "tokenizer.ggml.add_bos_token": False,
            **{f"tokenizer.ggml.{name}": value for name, value in more.items()}}


def theirs(meta: dict[str, Any]) -> Any:
    """The `sentencepiece` package's processor of the same vocabulary; the unknown token is of its own kind there."""
    proto = pb.ModelProto()
    unknown = meta["tokenizer.ggml.unknown_token_id"]
    rows = zip(meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.scores"], meta["tokenizer.ggml.token_type"], strict=True)
    for i, (text, score, kind) in enumerate(rows):
        piece = proto.pieces.add()
        piece.piece, piece.score = text.replace(" ", "▁") if kind == USER else text, float(score)
        piece.type = UNKNOWN if i == unknown else int(kind)
        if kind == BYTE:
            proto.trainer_spec.byte_fallback = True
    proto.trainer_spec.model_type = 2
    proto.trainer_spec.vocab_size, proto.trainer_spec.unk_id = len(proto.pieces), unknown
    normal = proto.normalizer_spec
    normal.name, normal.remove_extra_whitespaces, normal.escape_whitespaces = "identity", False, True
    normal.add_dummy_prefix = bool(meta.get("tokenizer.ggml.add_space_prefix", True))
    return spm.SentencePieceProcessor(model_proto=proto.SerializeToString())


def both(meta: dict[str, Any]) -> tuple[Tokenizer, Any]:
    return Tokenizer.from_gguf_metadata(meta), theirs(meta)


@functools.cache
def trained(kind: str) -> dict[str, object]:
    """A vocabulary that the package itself trains on the test texts."""
    extra: dict[str, Any] = {
        "llama": dict(byte_fallback=True),
        "gemma": dict(byte_fallback=True, add_dummy_prefix=False, user_defined_symbols=["\n", "\n\n", "  ", "   ", "<x>", "the c"]),
        "across": dict(byte_fallback=True, split_by_whitespace=False, add_dummy_prefix=False),
        "no bytes": dict(byte_fallback=False, character_coverage=0.98),
    }[kind]
    out = io.BytesIO()
    lines = (ROOT / "data/alice.txt").read_text().split("\n") + Path(__file__).read_text().split("\n")
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(line for line in lines if line), model_writer=out, model_type="bpe", vocab_size=900,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2, num_threads=1,
        **{"character_coverage": 0.995, **extra})
    proto = pb.ModelProto.FromString(out.getvalue())
    return metadata([p.piece for p in proto.pieces], [p.score for p in proto.pieces], [p.type for p in proto.pieces],
                    unknown_token_id=proto.trainer_spec.unk_id, bos_token_id=1, eos_token_id=2,
                    add_space_prefix=extra.get("add_dummy_prefix", True))


@functools.cache
def trained_both(kind: str) -> tuple[Tokenizer, Any]:
    return both(trained(kind))


KINDS = ("llama", "gemma", "across", "no bytes")
TEXT = TEXTS | st.lists(st.sampled_from([*SPACES, *EDGES, "the c", "\n", " the", "Alice"]), max_size=8).map("".join)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(text=TEXT)
@example(text="".join(EDGES))
def test_equals_sentencepiece(kind: str, text: str) -> None:
    ours, reference = trained_both(kind)
    assert ours.encode(text) == reference.encode(text)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_sentencepiece_on_edges_and_code(kind: str) -> None:
    ours, reference = trained_both(kind)
    for left in [*EDGES, *SPACES]:
        for right in ("", "a", " ", "\n", "  b", "▁", "!"):
            assert ours.encode(left + right) == reference.encode(left + right), left + right
    for path in [*ROOT.glob("test_s*.py"), ROOT / "data/alice.txt"]:
        assert ours.encode(path.read_text()) == reference.encode(path.read_text()), path


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_scores_equal_sentencepiece(data) -> None:
    """Tokens no training makes, equal scores, words for the scan and the heap, characters that are no token."""
    letters = "ab ▁é"
    words = data.draw(st.lists(st.text("ab▁é", min_size=2, max_size=6), unique=True, max_size=30))
    words = ["▁", *data.draw(st.sampled_from([[], ["a"], ["a", "b"], ["a", "b", "é"]])), *words]
    users = [w for w in data.draw(st.lists(st.text("ab▁", min_size=1, max_size=4), unique=True, max_size=3)) if w not in words]
    score = st.sampled_from([0.0, -0.0, -1.0, -1.5, -2.0, 3.0, 1e-38, -1e30])
    scores = data.draw(st.lists(score, min_size=len(words), max_size=len(words)))
    fallback = BYTES if data.draw(st.booleans()) else []
    meta = metadata(["<unk>", *words, *users, *fallback], [0.0, *scores, *[0.0] * (len(users) + len(fallback))],
                    [UNKNOWN, *[NORMAL] * len(words), *[USER] * len(users), *[BYTE] * len(fallback)],
                    unknown_token_id=0, add_space_prefix=data.draw(st.booleans()))
    ours, reference = both(meta)
    for text in data.draw(st.lists(st.text(letters, max_size=20) | st.text(letters, min_size=49, max_size=150), max_size=6)):
        assert ours.encode(text) == reference.encode(text), text


@pytest.mark.parametrize("kind", ["llama", "gemma", "across"])
@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=100) | TEXT.map(str.encode), special=st.booleans())
@example(data=bytes(range(256)), special=False)
@example(data=b"\xf0\x9f\x91\xa9\xe2\x80 \xed\xa0\x80 \xc0\xaf \xf4\x90\x80\x80 \xff \xe2\x96", special=True)
def test_any_bytes_come_back(kind: str, data: bytes, special: bool) -> None:
    """U+2581 as a space, as the tokens mean it."""
    ours = trained_both(kind)[0]
    assert ours.decode_bytes(ours.encode(data, allow_special=special)) == data.replace("▁".encode(), b" ")


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None)
@given(text=TEXT, special=st.booleans())
def test_offsets(kind: str, text: str, special: bool) -> None:
    """Each token's bytes stand in the text where its offsets say, one after another."""
    ours, data = trained_both(kind)[0], text.encode()
    ids, places = ours.encode(text, allow_special=special), ours.offsets(text, allow_special=special)
    assert places.shape == (len(ids), 2)
    assert [0, *places[:, 1]][: len(ids)] == list(places[:, 0])
    if kind == "no bytes":
        return
    assert not ids or places[-1, 1] == len(data)
    begins = ours._space_prefix
    for i, (begin, end) in zip(ids, places, strict=True):
        token = ours.token_bytes(i)
        assert data[begin:end].replace("▁".encode(), b" ") == (token[1:] if begins and i not in ours.special_ids else token) \
            or b"\xe2\x96" in data
        begins = ours._space_prefix and i in ours.special_ids


# ---- special and added tokens ----


def test_special_tokens_are_text_unless_allowed() -> None:
    ours = trained_both("gemma")[0]
    text = "<s>the cat</s>"
    assert not ours.special_ids & set(ours.encode(text)) and ours.decode(ours.encode(text)) == text
    allowed = ours.encode(text, allow_special=True)
    assert (allowed[0], allowed[-1]) == (1, 2)
    assert ours.decode(allowed) == text and ours.decode(allowed, skip_special=True) == "the cat"
    assert allowed[1:-1] == ours.encode("the cat")


def test_a_space_goes_before_every_text() -> None:
    """And behind a special token, as GGUF's readers put it; taken off when the text comes back."""
    ours = trained_both("llama")[0]
    parts = [*ours.encode("the"), 1, *ours.encode("cat"), 2]
    assert ours.encode("the<s>cat</s>", allow_special=True) == parts
    assert ours.decode(parts) == "the<s>cat</s>" and ours.decode(parts, skip_special=True) == "thecat"
    assert ours.token_bytes(ours.encode("the")[0])[:1] == b" " and ours.encode("") == []
    assert ours.decode(ours.encode(" the")) == " the"


def test_what_a_file_leaves_out() -> None:
    """A text begins with its token and a space; control tokens end answers by their names."""
    meta = metadata(["<s>", "</s>", "▁a", "a", "▁"], [0.0, 0.0, -1.0, -2.0, -3.0], [CONTROL, CONTROL, 1, 1, 1], bos_token_id=0)
    del meta["tokenizer.ggml.add_bos_token"]
    ours = Tokenizer.from_gguf_metadata(meta)
    assert (ours.encode("a"), ours.add_bos, ours.end_ids) == ([0, 2], True, [1])
    assert ours.encode("é") == [0, 4] and ours.encode("aéa") == [0, 2, 3], "without bytes and an unknown token it is left out"
    assert ours.encode("aé", add_special=False) == [2]


def test_unused_tokens_are_never_made() -> None:
    meta = metadata(["a", "b", "ab", "abab"], [-3.0, -4.0, 0.0, 0.0], [1, 1, UNUSED, 1], add_space_prefix=False)
    assert Tokenizer.from_gguf_metadata(meta).encode("abab") == [0, 1, 0, 1]


# ---- as it streams ----


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 899) | st.integers(3, 258), max_size=40))
def test_pieces_are_the_tokens(ids: list[int]) -> None:
    """An answer goes on from its prompt: the spaces of its tokens stay, bytes become whole characters."""
    ours = trained_both("llama")[0]
    stream = Detokenizer(ours, skip_special=False)
    said = "".join([*(stream.feed(i) for i in ids), stream.finish()])
    assert said == b"".join(map(ours.token_bytes, ids)).decode("utf-8", "replace")


def test_bytes_stream_as_whole_characters() -> None:
    ours = trained_both("gemma")[0]
    ids = ours.encode("👩‍👩 中")
    assert all(len(ours.token_bytes(i)) == 1 for i in ids)
    stream = Detokenizer(ours)
    pieces = [stream.feed(i) for i in ids]
    assert [p for p in pieces if p] == ["👩", "\u200d", "👩", " ", "中"] and stream.finish() == ""


# ---- time ----


@pytest.mark.parametrize("text", ["a", " ", "\n", "▁", "é", "<s>", "ab ", "the", "\xff", "  \n"])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_grow_with_length(kind: str, text: str) -> None:
    """Steps of twice the text are less than 2.5 times as many, the longest word included."""
    encoder, data = trained_both(kind)[0]._encoder, text.encode("latin-1" if text == "\xff" else "utf-8")
    n = 20_000 // len(data)
    once, twice = (encoder.encode(data * k, True)[2] for k in (n, 2 * n))
    assert 0 < once < 80 * n * len(data) and twice < 2.5 * once


@pytest.mark.parametrize("letter", [b"a", b" ", b"\n"])
def test_a_megabyte_of_one_letter(letter: bytes) -> None:
    ours = trained_both("across")[0]
    ids, ends, steps = ours._encoder.encode(letter * (1 << 20), False)
    assert ours.decode_bytes(ids) == letter * (1 << 20) and ends[-1] == 1 << 20
    assert steps < 60 << 20


# ---- bad input ----


def small(**changes: object) -> dict[str, object]:
    meta = metadata(["a", "b", "ab", "<0x0A>", "<x>"], [0.0, -1.0, -2.0, 0.0, 0.0], [1, 1, 1, BYTE, CONTROL])
    for key, value in changes.items():
        meta[f"tokenizer.ggml.{key}"] = value
    return {key: value for key, value in meta.items() if value is not None}


@pytest.mark.parametrize("changes, says", [
    (dict(scores=None), r"scores: missing"), (dict(scores=[1.0]), r"scores: 1 entries for 5 tokens"),
    (dict(scores=["x"] * 5), r"scores: every one must be a number"), (dict(scores=[[1.0]] * 5), r"scores: every one"),
    (dict(scores=[float("nan")] * 5), r"score of token 0 is not a finite"),
    (dict(scores=[0.0, float("inf"), 0.0, 0.0, 0.0]), r"score of token 1"),
    (dict(tokens=["a", "▁", " ", "<0x0A>", "<x>"]), r"tokens 1 and 2 are the same"),
    (dict(tokens=["a", "b", "ab", "<0x0g>", "<x>"]), r"byte token 3 is not written"),
    (dict(tokens=["a", "b", "ab", "x", "<x>"]), r"byte token 3"),
    (dict(tokens=["a", "b", "ab", "<0x0A>", "x" * 300]), r"added token 4 has 300 bytes"),
    (dict(unknown_token_id=5), r"unknown_token_id: token id 5 is outside"), (dict(token_type=[1, 1]), r"2 entries for 5"),
])
def test_bad_metadata(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ModelInvalid, match=says) as caught:
        Tokenizer.from_gguf_metadata(small(**changes))
    assert "\n" not in str(caught.value)
    assert Tokenizer.from_gguf_metadata(small(add_space_prefix=False)).encode("abb\n") == [2, 1, 3]


JSON = st.recursive(st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=5) | st.floats(),
                    lambda inner: st.lists(inner, max_size=4), max_leaves=8)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_metadata_gives_a_typed_error_or_works(data) -> None:
    meta = small(bos_token_id=0, eos_token_id=4, unknown_token_id=4, add_space_prefix=True)
    key = data.draw(st.sampled_from(sorted(meta)))
    value = meta[key]
    if isinstance(value, list) and data.draw(st.booleans()):
        meta[key] = [*value]
        meta[key][data.draw(st.integers(0, len(value) - 1))] = data.draw(JSON)
    else:
        meta[key] = data.draw(JSON)
    try:
        Tokenizer.from_gguf_metadata(meta).encode("abba<x>\n\xff", allow_special=True)
    except ModelInvalid as error:
        assert "\n" not in str(error)


# ---- the real one ----


@pytest.fixture(scope="module")
def real(gemma: Path) -> tuple[Tokenizer, Any]:
    """Gemma's 262,144 tokens."""
    with GGUFModel(gemma) as file:
        return both(file.metadata.values)


def test_gemma_equals_sentencepiece(real) -> None:
    ours, reference = real
    for text in [*EDGES, *SPACES, *(left + right for left in EDGES for right in ("a", " ", "\n\n", "  b", "</"))]:
        assert ours.encode(text, add_special=False) == reference.encode(text), text
    for path in [*ROOT.glob("test_*.py"), *(ROOT.parent / "csrc").glob("*/*.[ch]"), ROOT / "data/alice.txt"]:
        assert ours.encode(path.read_text(), add_special=False) == reference.encode(path.read_text()), path


@settings(max_examples=300, deadline=None)
@given(text=TEXT)
def test_gemma_equals_sentencepiece_on_any_text(real, text: str) -> None:
    ours, reference = real
    assert ours.encode(text, add_special=False) == reference.encode(text)


def test_gemma_equals_sentencepiece_on_every_token(real) -> None:
    """Each token's own text alone and within a text, some thousands of them."""
    ours, reference = real
    draw = random.Random(7)
    ids = draw.sample(range(ours.vocab_size), 6000)
    words = [ours.token_bytes(i).decode(errors="ignore") for i in ids]
    for form in ("{}", "x {} 7"):
        texts = [form.format(word) for word in words]
        for text, want in zip(texts, reference.encode(texts), strict=True):
            assert ours.encode(text, add_special=False) == want, text


def test_gemma_facts(real) -> None:
    ours = real[0]
    assert (ours.vocab_size, ours.bos_id, ours.eos_id, ours.end_ids, ours.add_bos) == (262144, 2, 1, [1, 106], True)
    assert ours.encode("Hello world") == [2, 9259, 1902]
    assert ours.encode("<start_of_turn>user\n", add_special=False, allow_special=True) == [105, 2364, 107]
    assert ours.decode(np.arange(236, 300).tolist()[2:]).startswith("\x00\x01\x02")
    with pytest.raises(ModelInvalid, match="no chat template"):
        ours.encode_chat([{"role": "user", "content": "Hi"}])


TURNS = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\\n\\n' %}
{%- set turns = messages[1:] %}{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}
{%- for turn in turns %}{% if (turn['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns must alternate') }}
{%- endif %}{{ '<start_of_turn>' + ('model' if turn['role'] == 'assistant' else turn['role']) + '\\n' }}
{{- first if loop.first else '' }}
{{- turn['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""


def test_gemma_turns(real) -> None:
    """As the instruction-tuned models' files write them: rendered as transformers does, 6,249 special tokens kept apart from
    what the caller wrote."""
    template_utils = pytest.importorskip("transformers.utils.chat_template_utils")
    ours = real[0]
    template = ChatTemplate(ours, TURNS)
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": " Hi <end_of_turn> <unused7>  there\n\n"},
                {"role": "assistant", "content": "Hello!"}, {"role": "user", "content": "▁<bos>"}]
    text, ids = template.encode(messages)
    assert text == template_utils.render_jinja_template(
        [messages], chat_template=TURNS, add_generation_prompt=True, bos_token="<bos>", eos_token="<eos>")[0][0]
    assert [i for i in ids if i in ours.special_ids] == [2, 105, 106, 105, 106, 105, 106, 105]
    assert ours.decode(ids) == text.replace("▁", " ")
    with pytest.raises(FieldInvalid, match="turns must alternate"):
        template.encode(messages[2:])
