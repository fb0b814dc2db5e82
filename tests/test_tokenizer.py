"""The tokenizer against the `tokenizers` package, and its own promises."""

from __future__ import annotations

import json
import random
import threading
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, processors
from vocabularies import (
    ADDED,
    SPECIAL,
    SPLITS,
    alphabet,
    both,
    gguf_metadata,
    gpt2_files,
    gpt2_metadata,
    pairs_metadata,
    pre_tokenizer,
    theirs,
)

from pyruntime.errors import FieldInvalid, ModelInvalid, ModelNotFound
from pyruntime.tokenizer import Tokenizer
from pyruntime.tokenizer.spec import Spec

PAIRS = [("smollm2", "smollm"), *(("gpt2", s) for s in SPLITS), *(("pairs", s) for s in SPLITS)]

EDGES = [
    "", " ", "  ", "   a", "a   ", "a  b", "\n", "\n\n", " \n", "\n ", " \n \n  x", "\r\n",
    "a\r\nb", "\r\n\r\n  b", "\t\tx", " \tx", "\x0b\x0c\x1c\x1d\x1e\x1f\x85", "\xa0a",
    "\u3000\u3000a", "\u200b \u200b", "\ufeffBOM", "I'm you're he'll we've she'd it's don't",
    "I'M YOU'RE HE'LL WE'VE SHE'D IT'S DON'T", "'S 's'S 'ſ ''s '' 'x",
    "o'clock 'lll 'rre 'v 'r 'l '", "'\u017fa", "1", "12", "123", "1234", "12345 67", "a1b2",
    " 1 22  333", "½²Ⅷ٣३ 零", "3.14e-10", "!?!?", " !", "  !", "!\n\n", " !\r\n x", "(a)", "a.b.c",
    "<|im_start|>user\n", "<|endoftext|>", "<|im_sta", "||>", "👩‍👩‍👧‍👦", "🏳️‍🌈 🇨🇭", "a\u0301",
    "\u0301", " \u0301\u0301", "e\u0301\u0327o", "\u0000", "a\u0000b", "\x01\x04\x06\x7f",
    "héllo wörld", "Ελληνικά", "русский текст", "中文字符", "日本語のテキスト", "한국어", "العربية", "עִברִית",
    "हिन्दी", "ไทย", "ꙮ𝔘𝔫𝔦", "\U000e0041\U000e007f", "\U0010ffff", "ǅǈ ª º ʰ ـ", "x" * 47, "x" * 48,
    "x" * 49, "ab" * 100, "_a_b", "a_1", "#$%^&*",
    "fooBAR", "Foo Bar's BAZ'D", "中AB中", "中ABc", "\u0301AB", " \u0301\u0301AB", "a\u0301B", "ǅa",
    "//\n/\r/a", ".abc", "..abc", ".é",
    "\x00\x01 \x02.a", "日本゠語ー・語", "\u3097\u3098か\u3099", "1234\u0301", "\u0301a\u0301 \u0301", "©®a", "\ue000\ue001b",
    "def f(x):\n    return x + 1\n\n\n\tif True:\n",
    "http://a.b/c?d=e&f=%20", "Ġ Ċ Â", "��",
]  # fmt: skip
SURROGATES = {chr(c) for c in range(0xD800, 0xE000)}


def is_assigned(char: str) -> bool:
    return unicodedata.category(char) not in ("Cn", "Cs")


# Characters of every script, those that rules speak of much more often.
CHARACTERS = st.one_of(
    st.sampled_from(" \n\r\t'sStTrRevVmMlLdD019aé\u3000\u017f!.<|>_\u0301\u00bd中"),
    st.characters(codec="ascii"),
    st.characters(exclude_categories=("Cn", "Cs")).filter(is_assigned),
)
TEXTS = st.one_of(
    st.text(CHARACTERS, max_size=60),
    st.lists(st.sampled_from([*EDGES, "the", " of", "   ", "Hello", " world", "2024"]), max_size=8).map("".join),
)


@pytest.mark.parametrize(
    "text, ids",
    [
        ("What is AI?", [2061, 318, 9552, 30]),
        ("Hello world", [15496, 995]),
        ("tokenization", [30001, 1634]),
    ],
)
def test_gpt2_facts(text, ids):
    assert both("gpt2", "gpt2")[0].encode(text) == ids


@pytest.mark.parametrize("name, split", PAIRS)
@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
@example(text="".join(EDGES))
def test_equals_tokenizers(name, split, text):
    ours, reference = both(name, split)
    assert ours.encode(text) == reference.encode(text).ids


@pytest.mark.parametrize("name, split", PAIRS)
def test_equals_tokenizers_on_edges(name, split):
    ours, reference = both(name, split)
    for text in EDGES:
        assert ours.encode(text) == reference.encode(text).ids, text
    for left in EDGES:
        for right in ("a", " ", "\n", "1", "'s", "!"):
            assert ours.encode(left + right) == reference.encode(left + right).ids, left + right


@pytest.mark.parametrize("name, split", [("smollm2", "smollm"), ("gpt2", "gpt2")])
def test_equals_tokenizers_on_every_word(name, split):
    """Every token's own text, alone and within a text."""
    ours, reference = both(name, split)
    words = [ours.token_bytes(i).decode(errors="ignore") for i in range(ours.vocab_size)]
    for form in ("{}", "x {} 7"):
        texts = [form.format(word) for word in words]
        for text, encoding in zip(texts, reference.encode_batch(texts), strict=True):
            assert ours.encode(text) == encoding.ids, text


def test_equals_tokenizers_on_code():
    ours, reference = both("smollm2", "smollm")
    root = Path(__file__).parent.parent
    for path in [*root.glob("tests/*.py"), *root.glob("csrc/*/*.[ch]"), *root.glob("*.toml")]:
        text = path.read_text()
        assert ours.encode(text) == reference.encode(text).ids, path


LARGE = [range(0x3400, 0xA000), range(0xAC00, 0xD7A4), range(0xE000, 0xF900), range(0x17000, 0x18B00),
         range(0x20000, 0xE0000), range(0xE0200, 0x110000)]  # fmt: skip


@pytest.mark.parametrize("split", ["gpt-4o", "deepseek-v3"])
def test_every_code_point_is_of_the_right_class(split):
    """Each beside a letter, a digit, itself and a sign; every 61st of the large ranges of one class."""
    ours, reference = both("pairs", split)
    points = [chr(c) for c in range(0x110000) if c % 61 == 0 or not any(c in r for r in LARGE)]
    for first in range(0, len(points), 2048):
        some = [c for c in points[first : first + 2048] if c not in SURROGATES]
        text = "".join(f"x{c}1{c}{c}." for c in some)
        if ours.encode(text) != reference.encode(text).ids:
            wrong = [c for c in some if ours.encode(f"x{c}1{c}{c}.") != reference.encode(f"x{c}1{c}{c}.").ids]
            pytest.fail(f"code points {[hex(ord(c)) for c in wrong[:8]]}")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_merges_equal_tokenizers(data):
    """Merges in an order no training makes, over words short and long: the scan and the heap."""
    tokens, merges = ["a", "b", "c"], []
    for _ in range(data.draw(st.integers(0, 25))):
        left, right = data.draw(st.sampled_from(tokens)), data.draw(st.sampled_from(tokens))
        if f"{left} {right}" not in merges and len(left + right) < 12:
            merges.append(f"{left} {right}")
            tokens += [left + right] * (left + right not in tokens)
    merges = data.draw(st.permutations(merges))
    text = data.draw(st.text("abc", max_size=200) | st.text("a", max_size=200))
    for ignore_merges in (False, True):
        meta = gguf_metadata(tokens, merges, [1] * len(tokens), "llama3" if ignore_merges else "gpt2")
        ours = Tokenizer.from_gguf_metadata(meta)
        assert ours.encode(text) == theirs(meta, ignore_merges).encode(text).ids


def merged_by_the_book(word: str, merges: list[str]) -> list[str]:
    """Again and again the leftmost pair of the lowest rank."""
    rank = {tuple(merge.split(" ")): i for i, merge in enumerate(merges)}
    parts = list(word)
    while found := [(rank[pair], i) for i, pair in enumerate(zip(parts, parts[1:], strict=False)) if pair in rank]:
        i = min(found)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def test_long_words_merge_by_the_book():
    """Merges in any order over words for the heap: entries of pairs that are gone must not count."""
    for seed in range(400):
        draw = random.Random(seed)
        tokens, merges = ["a", "b"], []
        for _ in range(draw.randint(5, 40)):
            pair = draw.choice(tokens), draw.choice(tokens)
            if " ".join(pair) not in merges and len("".join(pair)) < 12:
                merges.append(" ".join(pair))
                tokens += ["".join(pair)] * ("".join(pair) not in tokens)
        draw.shuffle(merges)
        word = "".join(draw.choices("ab", k=draw.randint(49, 120)))
        ours = Tokenizer.from_gguf_metadata(gguf_metadata(tokens, merges, [1] * len(tokens), "gpt2"))
        assert [tokens[i] for i in ours.encode(word)] == merged_by_the_book(word, merges), seed


def test_ignored_merges():
    """A token that its merges do not reach is produced whole only where merges are ignored."""
    tokens = ["a", "b", "c", "ab", "bc", "abc"]
    gpt2 = Tokenizer.from_gguf_metadata(gguf_metadata(tokens, ["b c", "a b"], [1] * 6, "gpt2"))
    llama3 = Tokenizer.from_gguf_metadata(gguf_metadata(tokens, ["b c", "a b"], [1] * 6, "llama-bpe"))
    assert (gpt2.encode("abc"), llama3.encode("abc")) == ([0, 4], [5])


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=200) | TEXTS.map(str.encode))
@example(data=bytes(range(256)))
@example(data=b"\xf0\x9f\x91\xa9\xe2\x80 \xed\xa0\x80 \xc0\xaf \xf4\x90\x80\x80 \xff")
def test_any_bytes_come_back(data):
    for split in SPLITS:
        ours = both("gpt2", split)[0]
        ids = ours.encode(data)
        assert ours.decode_bytes(ids) == data
        assert ours.decode(ids) == data.decode("utf-8", "replace")


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=100))
def test_bytes_without_a_token_are_left_out(data):
    ours = both("smollm2", "smollm")[0]
    known = {ours.token_bytes(i) for i in range(ours.vocab_size)}
    assert ours.decode_bytes(ours.encode(data)) == bytes(b for b in data if bytes([b]) in known)


@settings(max_examples=100, deadline=None)
@given(text=TEXTS, special=st.booleans())
def test_offsets(text, special):
    """Each token's bytes stand in the text where its offsets say, one after another."""
    ours = both("gpt2", "gpt2")[0]
    data = text.encode()
    ids, places = ours.encode(text, allow_special=special), ours.offsets(text, allow_special=special)
    assert places.shape == (len(ids), 2)
    assert [data[begin:end] for begin, end in places] == [ours.token_bytes(i) for i in ids]
    assert [0, *places[:, 1]][: len(ids)] == list(places[:, 0]) and (not ids or places[-1, 1] == len(data))


def test_encode_array():
    ours = both("gpt2", "gpt2")[0]
    ids = ours.encode_array("Hello world")
    assert ids.dtype == np.int32 and ids.flags.owndata and ids.tolist() == [15496, 995]


# ---- special and added tokens ----

EXTRA = ["<|im_end|>", "<|im_start|>", "<|im_", "<s>", "<tool>", "<tool><call>", "ab", "中", "  "]


@pytest.fixture(scope="module")
def with_extra():
    """Special and user-defined tokens that are prefixes of one another."""
    meta = pairs_metadata("gpt2")
    tokens = [*meta["tokenizer.ggml.tokens"], *(e for e in EXTRA if e != "ab")]
    types = [1] * len(meta["tokenizer.ggml.tokens"]) + [SPECIAL] * 4 + [ADDED] * 4
    types[tokens.index("ab")] = ADDED
    merges = [m for m in meta["tokenizer.ggml.merges"] if m != "a b"]
    changed = gguf_metadata(tokens, merges, types, "gpt2")
    return Tokenizer.from_gguf_metadata(changed), theirs(changed)


@settings(max_examples=200, deadline=None)
@given(text=st.lists(st.sampled_from([*EXTRA, "<|im_e", "nd|>", "<", "<tool", "a", "b", " ", "x"]), max_size=12).map("".join))
def test_added_tokens_equal_tokenizers(with_extra, text):
    ours, reference = with_extra
    reference.encode_special_tokens = True
    assert ours.encode(text) == reference.encode(text).ids
    reference.encode_special_tokens = False
    assert ours.encode(text, allow_special=True) == reference.encode(text).ids


def test_special_tokens_are_text_unless_allowed():
    ours = both("smollm2", "smollm")[0]
    text = "<|im_start|>user\nHi<|im_end|>"
    assert not ours.special_ids & set(ours.encode(text))
    assert ours.decode(ours.encode(text)) == text
    allowed = ours.encode(text, allow_special=True)
    assert (allowed[0], allowed[-1]) == (1, 2)
    assert ours.decode(allowed) == text and ours.decode(allowed, skip_special=True) == "user\nHi"


def test_every_special_token_is_one_token():
    ours = both("smollm2", "smollm")[0]
    assert len(ours.special_ids) == 17
    for text, i in ours.special_spellings.items():
        assert ours.encode(f"a{text}b", allow_special=True) == [*ours.encode("a"), i, *ours.encode("b")]


def test_smollm2_facts():
    ours = both("smollm2", "smollm")[0]
    assert (ours.vocab_size, ours.bos_id, ours.eos_id, ours.end_ids, ours.add_bos) == (
        49152,
        1,
        2,
        [2, 0],
        False,
    )
    assert (ours.bos_token, ours.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert ours.encode("Hi", add_special=True) == [1, *ours.encode("Hi")]


def test_beginning_and_end_as_the_model_says():
    more = {
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": np.int32(2),
        "tokenizer.ggml.eot_token_id": 3,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": True,
    }
    meta = gguf_metadata(["a", "<s>", "</s>", "<|x|>"], [], np.array([1, 3, 3, 3]), "gpt2", **more)
    ours = Tokenizer.from_gguf_metadata(meta)
    assert ours.encode("a") == ours.encode("a", add_special=True) == [1, 0, 2]
    assert ours.encode("a", add_special=False) == [0]
    assert ours.offsets("a").tolist() == [[0, 0], [0, 1], [1, 1]]
    assert ours.end_ids == [2, 3]
    meta["tokenizer.ggml.pre"] = "llama-bpe"
    del meta["tokenizer.ggml.add_bos_token"]
    assert Tokenizer.from_gguf_metadata(meta).add_bos, "llama3 texts begin with a token unless the file says otherwise"


# ---- the other files ----


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("normalize", [False, True])
def test_tokenizer_json(split, normalize, tmp_path):
    """A file as the `tokenizers` package writes it."""
    meta = gpt2_metadata(split)
    reference = theirs(meta, ignore_merges=split == "llama3")
    reference.add_special_tokens([AddedToken("<|begin|>", special=True)])
    reference.add_tokens([AddedToken("<think>", normalized=False)])
    begin = reference.token_to_id("<|begin|>")
    reference.post_processor = processors.TemplateProcessing("<|begin|> $A", special_tokens=[("<|begin|>", begin)])
    if normalize:
        reference.normalizer = normalizers.NFC()
    path = tmp_path / "tokenizer.json"
    reference.save(str(path))
    ours = Tokenizer.from_tokenizer_json(path, {"eos_token": {"content": "<|endoftext|>"}, "chat_template": "{{ 1 }}"})
    reference = tokenizers.Tokenizer.from_file(str(path))
    assert (ours.bos_id, ours.eos_id, ours.vocab_size) == (begin, 50256, reference.get_vocab_size())
    assert ours.chat_template == "{{ 1 }}"
    for text in [*EDGES, "<think>a</think>", "e\u0301 \u212b <|begin|>"]:
        assert ours.encode(text, allow_special=True) == reference.encode(text).ids, text
        assert ours.encode(text, add_special=False, allow_special=True) == reference.encode(text, add_special_tokens=False).ids


def test_tokenizer_json_with_merges_of_either_form():
    reference = theirs(gpt2_metadata())
    data = json.loads(reference.to_str())
    pairs = [m if isinstance(m, list) else m.split(" ") for m in data["model"]["merges"]]
    for merges in (pairs, [" ".join(pair) for pair in pairs]):
        data["model"]["merges"] = merges
        ours = Tokenizer.from_tokenizer_json(json.dumps(data).encode())
        assert ours.encode("What is AI?") == [2061, 318, 9552, 30]


def test_vocab_and_merges(tmp_path):
    vocabulary, merges = gpt2_files()
    (tmp_path / "vocab.json").write_bytes(vocabulary)
    (tmp_path / "merges.txt").write_bytes(merges)
    ours = Tokenizer.from_vocab_merges(tmp_path / "vocab.json", str(tmp_path / "merges.txt"))
    assert ours.encode("tokenization") == [30001, 1634]
    assert (ours.eos_id, ours.end_ids, ours.special_ids) == (50256, [50256], {50256})
    with pytest.raises(ModelNotFound, match=r"nowhere.*vocab\.json"):
        Tokenizer.from_vocab_merges(tmp_path / "nowhere", merges)


# ---- time, threads ----


@pytest.mark.parametrize("text", ["a", " ", "\n", " \n", "1", "'", "'s", "é", "<|im_", "<|im_end|>", "ab ", "\xa0", "\u3000"])
@pytest.mark.parametrize("name, split", PAIRS)
def test_steps_grow_with_length(name, split, text):
    """Steps of twice the text are less than 2.5 times as many, the longest word included."""
    encoder = both(name, split)[0]._encoder
    n = 20_000 // len(text)
    once, twice = (encoder.encode((text * k).encode(), True)[2] for k in (n, 2 * n))
    assert 0 < once < 60 * n * len(text.encode()) and twice < 2.5 * once


def test_a_megabyte_of_one_letter():
    ours = both("gpt2", "gpt2")[0]
    ids, ends, steps = ours._encoder.encode(b"a" * (1 << 20), False)
    assert ours.decode_bytes(ids) == b"a" * (1 << 20) and ends[-1] == 1 << 20
    assert steps < 40 << 20


def test_threads_share_a_tokenizer():
    ours = both("smollm2", "smollm")[0]
    texts = [edge * 50 for edge in EDGES]
    alone = [ours.encode(text) for text in texts]
    results: list[list[list[int]]] = [[] for _ in range(4)]

    def encode(k: int) -> None:
        for _ in range(5):
            results[k] = [ours.encode(text) for text in texts]

    threads = [threading.Thread(target=encode, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [alone] * 4


def test_encoding_holds_no_lock_of_python():
    """Another thread counts on while one text is encoded."""
    ours = both("gpt2", "gpt2")[0]
    counted, done = [0], threading.Event()

    def count() -> None:
        while not done.is_set():
            counted[0] += 1

    thread = threading.Thread(target=count)
    thread.start()
    before = counted[0]
    ours._encoder.encode(b"a" * (4 << 20), False)
    during = counted[0] - before
    done.set()
    thread.join()
    assert during > 1000


# ---- bad input ----


def small(**changes: object) -> dict[str, object]:
    meta = gguf_metadata(["a", "b", "ab", "<x>"], ["a b"], [1, 1, 1, 3], "gpt2")
    for key, value in changes.items():
        meta[f"tokenizer.ggml.{key}"] = value
    return {key: value for key, value in meta.items() if value is not None}


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"model": None}, r"tokenizer\.ggml\.model"),
        ({"model": 7}, r"tokenizer\.ggml\.model.*string"),
        ({"model": "rwkv"}, r"'rwkv' is not supported"),
        ({"pre": "nonsense"}, r"'nonsense' is not supported; known are gpt2, .*smollm.*llama-bpe.*qwen2"),
        ({"tokens": None}, r"tokens: missing"),
        ({"tokens": "abc"}, r"tokens: must be a list"),
        ({"tokens": [], "token_type": [], "merges": []}, r"vocabulary is empty"),
        ({"tokens": ["a", "b", 5, "<x>"]}, r"entry 2 must be a string"),
        ({"tokens": ["a", "b", "ab", "a"]}, r"tokens 0 and 3 are the same text"),
        ({"tokens": ["a", "b", "ab", "\ud800"]}, r"not valid Unicode"),
        ({"tokens": ["a", "b", "ab", "x" * 300]}, r"added token 3 has 300 bytes"),
        ({"merges": None}, r"merges: missing"),
        ({"merges": ["a b", "a b"]}, r"merge 1, .* twice"),
        ({"merges": ["a z"]}, r"merge 0: its right side is not a token"),
        ({"merges": ["b a"]}, r"merge 0: what it makes is not a token"),
        ({"merges": ["ab"]}, r"merge 0 is not two tokens"),
        ({"merges": ["a  b"]}, r"merge 0 is not two tokens"),
        ({"merges": [3]}, r"entry 0 must be a string"),
        ({"merges": ["a b"], "token_type": [1, 1, 3, 3]}, r"merge 0 makes the special token 2"),
        ({"token_type": [1, 1]}, r"2 entries for 4 tokens"),
        ({"token_type": [1, 1, 1, 9]}, r"9 is not a token type"),
        ({"token_type": [1, 1, 1, [1]]}, r"not a token type|unhashable"),
        ({"bos_token_id": 4}, r"bos_token_id: token id 4 is outside"),
        ({"eos_token_id": -1}, r"eos_token_id: token id -1 is outside"),
        ({"eot_token_id": "2"}, r"eot_token_id: must be a token id"),
        ({"eos_token_id": 2**63}, r"eos_token_id: token id .* is outside"),
    ],
)
def test_bad_metadata(changes, says):
    with pytest.raises(ModelInvalid, match=says) as caught:
        Tokenizer.from_gguf_metadata(small(**changes))
    assert "\n" not in str(caught.value)


def test_good_metadata():
    """What test_bad_metadata changes is good as it is."""
    assert Tokenizer.from_gguf_metadata(small()).encode("abba") == [2, 1, 0]
    assert Tokenizer.from_gguf_metadata(small(pre=None, token_type=None)).special_ids == frozenset()


@pytest.mark.parametrize(
    "data, says",
    [
        (b"", r"not JSON"),
        (b"[]", r"must be an object"),
        (b"\xff", r"not UTF-8 at byte 0"),
        (b"{}", r"model: missing"),
        (b"[" * 100_000, r"not JSON"),
        (b'{"model": {"type": "WordLevel"}}', r"'WordLevel' is not supported; BPE, Unigram, WordPiece are"),
        (b'{"model": {"vocab": {"a": 1000000000}, "merges": []}}', r"outside the vocabulary"),
        (b'{"model": {"vocab": {"a": -1}, "merges": []}}', r"outside the vocabulary"),
        (
            b'{"model": {"vocab": {"a": 0, "b": 0}, "merges": []}, "pre_tokenizer": {"type": "ByteLevel"}}',
            r"the same id 0",
        ),
        (
            b'{"model": {"vocab": {"a": 0}, "merges": []}, "pre_tokenizer": {"type": "Whitespace"}}',
            r"known are those of gpt2",
        ),
        (b'{"model": {"vocab": {"a": 0}, "merges": [], "end_of_word_suffix": "</w>"}}', r"model.end_of_word_suffix is not"),
        (
            b'{"model": {"vocab": {"a": 0}, "merges": [[1, 2]]}, "pre_tokenizer": {"type": "ByteLevel"}}',
            r"must be a string",
        ),
        (b'{"model": {"vocab": {"a": 0}, "merges": []}, "added_tokens": [{"id": 1}]}', r"no content"),
        (b'{"model": {"vocab": {"a": 0}, "merges": []}, "added_tokens": [{"content": "x"}]}', r"no id"),
    ],
)
def test_bad_tokenizer_json(data, says):
    with pytest.raises(ModelInvalid, match=says):
        Tokenizer.from_tokenizer_json(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=5) | st.floats(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_tokenizer_json_gives_a_typed_error_or_works(data):
    """Any value of a good file exchanged for any other."""
    reference = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    reference.pre_tokenizer, reference.decoder = pre_tokenizer("smollm"), decoders.ByteLevel()
    reference.add_special_tokens(["<x>"])
    reference.post_processor = processors.TemplateProcessing("<x> $A", special_tokens=[("<x>", 3)])
    tree = json.loads(reference.to_str())
    node, trail = tree, []
    while isinstance(node, dict | list) and node and (not trail or data.draw(st.booleans())):
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        trail.append((node, key))
        node = node[key]
    owner, key = trail[-1]
    owner[key] = data.draw(JSON)
    try:
        Tokenizer.from_tokenizer_json(json.dumps(tree).encode()).encode("abba<x>", allow_special=True)
    except ModelInvalid as error:
        assert "\n" not in str(error)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_metadata_gives_a_typed_error_or_works(data):
    meta = small(bos_token_id=0, eos_token_id=3)
    key = data.draw(st.sampled_from(sorted(meta)))
    value = meta[key]
    if isinstance(value, list) and data.draw(st.booleans()):
        value[data.draw(st.integers(0, len(value) - 1))] = data.draw(JSON)
    else:
        meta[key] = data.draw(JSON)
    try:
        Tokenizer.from_gguf_metadata(meta).encode("abba<x>", allow_special=True)
    except ModelInvalid as error:
        assert "\n" not in str(error)


def test_only_special_tokens_end_an_answer_by_their_name():
    meta = gguf_metadata(["a", "</s>", "<|im_end|>", "<eos>"], [], [1, 1, SPECIAL, ADDED], "gpt2")
    assert Tokenizer.from_gguf_metadata(meta).end_ids == [2]


def test_an_unknown_family():
    with pytest.raises(ModelInvalid, match="no family 'words'; known are bpe"):
        Tokenizer.build(Spec(family="words", tokens=["a"], kinds=[0], merges=[]))


def test_bad_text():
    with pytest.raises(FieldInvalid, match="character 1 is half of a surrogate pair") as caught:
        both("gpt2", "gpt2")[0].encode("a\ud83d")
    assert caught.value.field == "text"


@pytest.mark.parametrize("bad", [-1, 50257, 2**31, 2**63, 2**200, "a", None, 1.5])
def test_bad_ids(bad):
    ours = both("gpt2", "gpt2")[0]
    for act in (ours.token_bytes, lambda i: ours.decode([0, i]), lambda i: ours.decode_bytes([i])):
        with pytest.raises(FieldInvalid, match="is not a token id; they are 0 to 50256") as caught:
            act(bad)
        assert caught.value.field == "token_ids"


def test_a_byte_is_its_own_token_wherever_that_stands():
    ours = Tokenizer.from_gguf_metadata(gguf_metadata(["ab", "b", "ba", "a"], [], [1] * 4, "gpt2"))
    assert ours.encode("abc") == [3, 1]


def test_half_a_surrogate_pair_is_three_bytes():
    """As any bytes that are not UTF-8: each a sign of its own, so that a word takes none of several before it."""
    ours = both("pairs", "llama3")[0]
    assert ours.encode(b"\xed\xa0\x80a") == ours.encode(b"\xed\xa0\x80") + ours.encode("a")
    assert ours.encode("\ufffda") != ours.encode("\ufffd") + ours.encode("a"), "one sign goes before a word"


def test_the_alphabet_covers_every_byte():
    meta = gguf_metadata(alphabet(), [], [1] * 256, "gpt2")
    ours = Tokenizer.from_gguf_metadata(meta)
    assert [ours.token_bytes(i) for i in range(256)] == [bytes([i]) for i in range(256)]
