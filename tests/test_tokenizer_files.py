"""Further files of tokenizers: tekken.json and tokenizer.model of Mistral's, SentencePiece's own unigram models, WordPiece and
unigram out of a GGUF, and a model's folder."""
from __future__ import annotations

import base64
import functools
import io
import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_tokenizer import EDGES, JSON, TEXTS
from test_tokenizer_json import MARK, NEW, SPACES, bert, bert_vocabulary, trained
from tokenizers import decoders, models
from vocabularies import PATTERNS, alphabet, from_pypi, gpt2_files, pre_tokenizer

from pyruntime.errors import ModelInvalid, ModelNotFound
from pyruntime.tokenizer import Tokenizer

ROOT = Path(__file__).parent
TEXT = TEXTS | st.lists(st.sampled_from([*SPACES, *EDGES, " the", "Alice"]), max_size=8).map("".join)


# ---- tekken.json ----


@functools.cache
def tekken_file() -> bytes:
    return from_pypi("mistral-common", "1.13.1", "mistral_common/data/tekken_240718.json")[0]


@functools.cache
def tekken() -> tuple[Tokenizer, tokenizers.Tokenizer]:
    """Mistral Nemo's, and what its ranks mean as the `tokenizers` package has them: merges of every pair that makes a token."""
    letters = alphabet()
    ranked = ["".join(letters[b] for b in base64.b64decode(e["token_bytes"])) for e in json.loads(tekken_file())["vocab"][:130072]]
    known = set(ranked)
    merges = [(word[:cut], word[cut:]) for word in ranked for cut in range(1, len(word))
              if word[:cut] in known and word[cut:] in known]
    made = tokenizers.Tokenizer(models.BPE({word: i + 1000 for i, word in enumerate(ranked)}, merges, ignore_merges=True))
    made.pre_tokenizer, made.decoder = pre_tokenizer("tekken"), decoders.ByteLevel()
    return Tokenizer.from_tekken(tekken_file()), made


@settings(max_examples=150, deadline=None)
@given(text=TEXT)
@example(text="".join(EDGES))
def test_tekken_equals_tokenizers(text: str) -> None:
    ours, reference = tekken()
    assert ours.encode(text, add_special=False) == reference.encode(text).ids
    assert ours.decode(ours.encode(text), skip_special=True) == text


def test_tekken_facts() -> None:
    ours, reference = tekken()
    assert (ours.vocab_size, ours.bos_id, ours.eos_id, ours.end_ids, len(ours.special_ids)) == (131072, 1, 2, [2], 1000)
    assert ours.encode("Hello world") == [1, 22177, 4304]
    assert ours.encode("[INST]Hi[/INST]", add_special=False, allow_special=True) == [3, *ours.encode("Hi", add_special=False), 4]
    for path in [*ROOT.glob("test_tok*.py"), ROOT / "data/alice.txt"]:
        assert ours.encode(path.read_text(), add_special=False) == reference.encode(path.read_text()).ids
    assert ours.decode_bytes(ours.encode(bytes(range(256)), add_special=False)) == bytes(range(256))


def by_rank(word: str, rank: dict[str, int]) -> list[int]:
    """Again and again the leftmost pair that makes the token of the lowest rank."""
    parts = list(word)
    while found := [(rank[a + b], i) for i, (a, b) in enumerate(zip(parts, parts[1:], strict=False)) if a + b in rank]:
        i = min(found)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [rank[part] for part in parts]


def small_tekken(words: list[str], **changes: object) -> dict[str, Any]:
    """Every byte, then words: without special tokens."""
    vocab = [bytes([b]) for b in range(256)] + [word.encode() for word in words]
    config = {"pattern": PATTERNS["tekken"][0], "default_vocab_size": len(vocab) + 2, "default_num_special_tokens": 2}
    listed = [{"rank": i, "token_bytes": base64.b64encode(b).decode(), "token_str": None} for i, b in enumerate(vocab)]
    return {"config": config, "special_tokens": [{"rank": 1, "token_str": "</s>"}], "vocab": listed, **changes}


@settings(max_examples=100, deadline=None)
@given(words=st.lists(st.text("ab", min_size=2, max_size=6), unique=True, max_size=20),
       text=st.text("ab", min_size=1, max_size=120))
def test_any_ranks_merge_by_the_book(words: list[str], text: str) -> None:
    ours = Tokenizer.from_tekken(json.dumps(small_tekken(words)).encode())
    rank = {chr(i): i for i in range(256)} | {word: 256 + i for i, word in enumerate(words)}
    want = [rank[text]] if text in rank else by_rank(text, rank)
    assert [i - 2 for i in ours.encode(text)] == want and ours.specials == {0: "<SPECIAL_0>", 1: "</s>"}


@pytest.mark.parametrize("change, says", [
    (dict(vocab=None), r"vocab: missing"),
    (dict(config={}, special_tokens=[]), r"config.pattern|vocabulary is empty"),
    (dict(config={"default_vocab_size": 10**9, "default_num_special_tokens": 0}), r"outside the vocabulary"),
    (dict(config={"default_vocab_size": 300, "default_num_special_tokens": 2}), r"300 tokens .* but vocab has 256"),
    (dict(special_tokens=[{"rank": 5, "token_str": "x"}]), r"rank: token id 5 is outside"),
    (dict(special_tokens=[{"rank": 1, "token_str": "x"}] * 2), r"a rank of its own"),
    (dict(vocab=[{"rank": 0, "token_bytes": "*"}] * 256), r"entry 0 must have rank 0 and token_bytes in base64"),
    (dict(vocab=[{"rank": i, "token_bytes": "AA=="} for i in range(256)]), r"are the same bytes"),
    (dict(vocab=[{"rank": i, "token_bytes": base64.b64encode(b"x" * (10**6 if i else 1)).decode()} for i in range(2)],
          special_tokens=[], config={"pattern": "x+", "default_vocab_size": 2}), r"config.pattern .* is not supported"),
])
def test_bad_tekken(change: dict[str, Any], says: str) -> None:
    data = small_tekken([])
    with pytest.raises(ModelInvalid, match=says):
        Tokenizer.from_tekken(json.dumps({**data, **change}).encode())
    long = small_tekken(["x" * 10**6])
    with pytest.raises(ModelInvalid, match="has 1000000 bytes; at most 512"):
        Tokenizer.from_tekken(json.dumps(long).encode())


# ---- SentencePiece's own file ----


@functools.cache
def mistral(version: str) -> tuple[Tokenizer, Any]:
    spm = pytest.importorskip("sentencepiece")
    name = {"v1": "tokenizer.model.v1", "v3": "mistral_instruct_tokenizer_240323.model.v3"}[version]
    data = from_pypi("mistral-common", "1.13.1", f"mistral_common/data/{name}")[0]
    return Tokenizer.from_sentencepiece(data), spm.SentencePieceProcessor(model_proto=data)


@pytest.mark.parametrize("version", ["v1", "v3"])
@settings(max_examples=100, deadline=None)
@given(text=TEXT)
@example(text="".join(EDGES))
def test_mistral_equals_sentencepiece(version: str, text: str) -> None:
    ours, reference = mistral(version)
    assert ours.encode(text, add_special=False) == reference.encode(text)


def test_mistral_facts() -> None:
    ours = mistral("v3")[0]
    assert (ours.vocab_size, ours.bos_id, ours.eos_id, ours.end_ids) == (32768, 1, 2, [2])
    assert mistral("v1")[0].encode("Hello world") == [1, 22557, 1526]


@functools.cache
def both(rule: str) -> tuple[Tokenizer, Any]:
    spm = pytest.importorskip("sentencepiece")
    data = trained(rule) if rule != "bpe" else trained_bpe()
    return Tokenizer.from_sentencepiece(data), spm.SentencePieceProcessor(model_proto=data)


def trained_bpe() -> bytes:
    """A BPE model that normalizes."""
    spm = pytest.importorskip("sentencepiece")
    out = io.BytesIO()
    lines = [line for line in (ROOT / "data/alice.txt").read_text().split("\n") if line]
    spm.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=out, model_type="bpe", vocab_size=600, minloglevel=2,
                                   num_threads=1, byte_fallback=True, normalization_rule_name="nmt_nfkc")
    return out.getvalue()


@pytest.mark.parametrize("rule", ["nmt_nfkc", "nmt_nfkc_cf", "bpe"])
@settings(max_examples=150, deadline=None)
@given(text=TEXT)
@example(text=" \u3000 a  ｂ\r\n e\u0301 ｅ\u0301 ﷺ ▁ ▁")
def test_models_that_normalize_equal_sentencepiece(rule: str, text: str) -> None:
    ours, reference = both(rule)
    ids = reference.encode(text)
    around = [2] if rule != "bpe" else []
    assert ours.encode(text, add_special=False) == ids
    assert ours.encode(text)[-1:] == around or rule == "bpe"


def test_models_that_normalize_equal_sentencepiece_on_edges() -> None:
    for rule in ("nmt_nfkc", "bpe"):
        ours, reference = both(rule)
        for left in [*EDGES, *SPACES]:
            for right in ("", "a", "  ", "\n  b", "\u0301"):
                assert ours.encode(left + right, add_special=False) == reference.encode(left + right), left + right
        text = (ROOT / "data/alice.txt").read_text()
        assert ours.encode(text, add_special=False) == reference.encode(text)
        assert ours.decode(ours.encode("Alice  was", add_special=False)) == "Alice was"


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 30_000), byte=st.integers(0, 255), cut=st.booleans())
def test_damaged_models_give_a_typed_error_or_work(at: int, byte: int, cut: bool) -> None:
    data = bytearray(trained("nfkc"))
    at %= len(data)
    data[at] = byte
    try:
        ours = Tokenizer.from_sentencepiece(bytes(data[:at] if cut else data))
        ours.decode(ours.encode("Alice ｗas é\u0301", allow_special=True))
    except ModelInvalid as error:
        assert "\n" not in str(error)


# ---- out of a GGUF ----


def bert_metadata() -> dict[str, Any]:
    """As the converter of GGUF's project writes it."""
    words = list(bert_vocabulary())
    special = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    phantom = [w if w[0] == "[" and w[-1] == "]" else w[2:] if w.startswith("##") else MARK + w for w in words]
    return {"tokenizer.ggml.model": "bert", "tokenizer.ggml.tokens": phantom,
            "tokenizer.ggml.token_type": [3 if w in special else 1 for w in words],
            "tokenizer.ggml.bos_token_id": 101, "tokenizer.ggml.seperator_token_id": 102, "tokenizer.ggml.unknown_token_id": 100}


@pytest.fixture(scope="module")
def words() -> tuple[Tokenizer, Any]:
    return Tokenizer.from_gguf_metadata(bert_metadata()), bert()


@settings(max_examples=60, deadline=None)
@given(text=TEXT)
def test_words_out_of_a_gguf_equal_tokenizers(words, text: str) -> None:
    ours, reference = words
    text = "".join(c for c in text if ord(c) not in NEW)
    reference.theirs.encode_special_tokens = True
    assert ours.encode(text) == reference.theirs.encode(text).ids


@pytest.mark.parametrize("changes, says", [
    ({"precompiled_charsmap": [1, 2, 3]}, r"map of characters: a trie"),
    ({"precompiled_charsmap": ["x"]}, r"charsmap: must be bytes"),
    ({"scores": ["x"] * 3}, r"scores: every one must be"), ({"scores": [0.0]}, r"1 entries for 3 tokens"),
    ({"tokens": ["<unk>", "a", "y" * 10**6]}, r"token 2 has 1000000 bytes"),
    ({"scores": [0, float("nan"), 0]}, r"not a finite number"),
])
def test_bad_unigram_metadata(changes: dict[str, Any], says: str) -> None:
    meta = {"model": "t5", "tokens": ["<unk>", "a", "b"], "scores": [0.0, -1.0, -2.0], "token_type": [2, 1, 1],
            "unknown_token_id": 0}

    def read(values: dict[str, Any]) -> Tokenizer:
        return Tokenizer.from_gguf_metadata({f"tokenizer.ggml.{key}": value for key, value in values.items()})

    assert read({**meta, "add_space_prefix": False}).encode("abé") == [1, 2, 0]
    with pytest.raises(ModelInvalid, match=says):
        read({**meta, **changes})


# ---- a folder ----


def test_a_folder(tmp_path: Path) -> None:
    """The first of the known files, and what stands beside it."""
    with pytest.raises(ModelNotFound, match="no tokenizer; known are tokenizer.json"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\nab\n##c\nÉ\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False, "eos_token": "[SEP]"}))
    assert Tokenizer.from_folder(tmp_path).encode("abc É") == [1, 3, 4, 5, 2]
    vocabulary, merges = gpt2_files()
    (tmp_path / "vocab.json").write_bytes(vocabulary)
    (tmp_path / "merges.txt").write_bytes(merges)
    assert Tokenizer.from_folder(tmp_path).encode("Hello world") == [15496, 995]
    (tmp_path / "tokenizer.model").write_bytes(trained("nfkc"))
    (tmp_path / "chat_template.jinja").write_text("{{ 1 }}")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    ours = Tokenizer.from_folder(tmp_path)
    assert ours.end_ids == [2, 7] and ours.chat_template == "{{ 1 }}"
    (tmp_path / "tekken.json").write_text(json.dumps(small_tekken(["ab"])))
    assert Tokenizer.from_folder(str(tmp_path)).encode("ab") == [258]
    (tmp_path / "tokenizer.json").write_bytes(bert().data)
    assert Tokenizer.from_folder(tmp_path).encode("hello") == [101, 7592, 102]
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "x"}')
    with pytest.raises(ModelInvalid, match="eos_token_id: must be a token id"):
        Tokenizer.from_folder(tmp_path)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_tekken_gives_a_typed_error_or_works(data: Any) -> None:
    """Any value of a good file exchanged for any other."""
    tree: Any = small_tekken(["ab", "aba"])
    node, trail = tree, []
    while isinstance(node, dict | list) and node and (not trail or data.draw(st.booleans())):
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(min(len(node), 5))))
        trail.append((node, key))
        node = node[key]
    owner, key = trail[-1]
    owner[key] = data.draw(JSON)
    try:
        Tokenizer.from_tekken(json.dumps(tree).encode()).encode("abba</s>", allow_special=True)
    except ModelInvalid as error:
        assert "\n" not in str(error)
