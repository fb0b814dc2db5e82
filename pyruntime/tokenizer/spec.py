"""What a tokenizer is made of, whichever file it came from, and the readers of GGUF metadata and of vocab.json with merges.txt.
Those of a tokenizer.json and of other files stand in tokenizer_json.py and files.py."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, MutableSequence, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from operator import index
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pyruntime.errors import ModelInvalid, ModelNotFound
from pyruntime.texts import Texts
from pyruntime.tokenizer.normalize import MARK, Bert, Prepend, Squeeze, Step, chars_map, trim
from pyruntime.tokenizer.pipeline import AddedToken, Rules


class Kind(IntEnum):
    """What a token is for: csrc/text/tokens.h."""

    NORMAL = 0
    ADDED = 1
    SPECIAL = 2
    UNUSED = 3
    BYTE = 4


# Pre-tokenizers by the names they have in GGUF files (csrc/text/split.h); a file without one means GPT-2's.
SPLITS: dict[str, int] = {
    **dict.fromkeys(["gpt2", "gpt-2", "default", "phi-2", "mpt", "olmo", "jais", "roberta-bpe"], 0),
    **dict.fromkeys(["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"], 1),
    **dict.fromkeys(["llama3", "llama-bpe", "llama-v3", "falcon3", "pixtral", "lfm2"], 2),
    **dict.fromkeys(["qwen2", "stablelm2", "deepseek-r1-qwen", "hunyuan", "megrez"], 3),
    "tekken": 4,
    **dict.fromkeys(["gpt-4o", "llama4"], 5),
    "deepseek-v3": 6,
}

# Control tokens that end a turn or a text in the models that have them, whatever the metadata says.
END_NAMES = frozenset(
    {
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end|>",
        "<|return|>",
        "<end_of_turn>",
        "<|EOT|>",
        "<EOT>",
        "</s>",
        "<eos>",
    }
)

Kinds = MutableSequence[int] | npt.NDArray[np.uint8]


@dataclass(slots=True)
class Spec:
    """One tokenizer. Token ids are positions in `tokens`; every id below is one of them."""

    family: str
    tokens: Sequence[str]
    kinds: Kinds
    merges: Sequence[str] = ()  # "left right", in order of rank
    split: str = "gpt2"
    ranked: bool = False  # tokens merge in order of their ids, without merges
    ignore_merges: bool = False
    bos_id: int | None = None
    eos_id: int | None = None
    prefix: list[int] = field(default_factory=list)
    suffix: list[int] = field(default_factory=list)
    end_ids: list[int] = field(default_factory=list)
    chat_template: str | None = None
    scores: Sequence[float] = ()  # SentencePiece: one a token
    space_prefix: bool = False  # spm: a space goes before a text
    unknown_id: int | None = None
    rules: Rules | None = None  # what happens before the model; None: the family finds its added tokens itself, and does no more
    added: Sequence[AddedToken] = ()
    least_score: float = 0.0  # unigram: the worst there is
    fuse_unknown: bool = True
    split_words: bool = False  # no token reaches across the place before a space
    single_sums: bool = False  # unigram: sums of 32 bits
    opening: str = ""  # what decoding takes off a text's first token: "space" one of them, "spaces" all, "" nothing
    subword_prefix: str = ""  # wordpiece: what tokens within a word begin with
    most_chars: int = 100  # wordpiece: a longer word is unknown
    cleanup: bool = False  # wordpiece: no space before signs when decoded


def find_split(name: str) -> int:
    """The pre-tokenizer's number in C; ModelInvalid lists the known ones."""
    if name not in SPLITS:
        raise ModelInvalid(f"tokenizer.ggml.pre: {name!r} is not supported; known are {', '.join(SPLITS)}")
    return SPLITS[name]


def from_gguf_metadata(meta: Mapping[str, object]) -> Spec:
    """Reads the keys tokenizer.ggml.* and tokenizer.chat_template. ModelInvalid names the key at fault."""
    model = as_text(meta, "tokenizer.ggml.model")
    if model is None:
        raise ModelInvalid("tokenizer.ggml.model: missing; the file has no tokenizer")
    if model not in _GGUF_MODELS:
        raise ModelInvalid(f"tokenizer.ggml.model: {model!r} is not supported; byte-level BPE ('gpt2'), SentencePiece's BPE "
                           "('llama') and unigram ('t5') and WordPiece ('bert') are")
    tokens = as_texts(meta.get("tokenizer.ggml.tokens"), "tokenizer.ggml.tokens")

    def token_id(name: str) -> int | None:
        return as_id(meta.get(f"tokenizer.ggml.{name}_token_id"), len(tokens), f"tokenizer.ggml.{name}_token_id")

    unknown = token_id("unknown")
    spec = _GGUF_MODELS[model](meta, tokens, unknown)
    spec.bos_id, spec.eos_id, spec.unknown_id = token_id("bos"), token_id("eos"), unknown
    if model == "bert":
        spec.eos_id = next((i for i in map(token_id, ("seperator", "separator", "eos")) if i is not None), None)
    by_default = model in ("llama", "bert") or spec.ignore_merges
    add_bos = as_flag(meta, "tokenizer.ggml.add_bos_token", default=by_default)
    add_eos = as_flag(meta, "tokenizer.ggml.add_eos_token", default=model in ("t5", "bert"))
    spec.prefix = [spec.bos_id] if add_bos and spec.bos_id is not None else []
    spec.suffix = [spec.eos_id] if add_eos and spec.eos_id is not None else []
    spec.end_ids = end_ids_of(tokens, spec.kinds, [spec.eos_id, token_id("eot"), token_id("eom")])
    spec.chat_template = as_text(meta, "tokenizer.chat_template")
    return spec


def _gguf_byte_level(meta: Mapping[str, object], tokens: Sequence[str], unknown: int | None) -> Spec:
    pre = as_text(meta, "tokenizer.ggml.pre") or "default"
    return Spec(
        family="bpe",
        tokens=tokens,
        kinds=_gguf_kinds(meta.get("tokenizer.ggml.token_type"), len(tokens), Kind.NORMAL),
        merges=as_texts(meta.get("tokenizer.ggml.merges"), "tokenizer.ggml.merges"),
        split=pre,
        ignore_merges=find_split(pre) in (find_split("llama3"), find_split("tekken")),
    )


def _gguf_sentencepiece(meta: Mapping[str, object], tokens: Sequence[str], unknown: int | None) -> Spec:
    spec = Spec(
        family="spm",
        tokens=tokens,
        kinds=_gguf_kinds(meta.get("tokenizer.ggml.token_type"), len(tokens), Kind.BYTE),
        scores=_gguf_scores(meta, len(tokens)),
        space_prefix=as_flag(meta, "tokenizer.ggml.add_space_prefix", default=True),
    )
    if steps := _gguf_steps(meta):  # a model that normalizes: all that goes before merging is the rules'
        _put_rules(spec, steps)
    return spec


def _gguf_unigram(meta: Mapping[str, object], tokens: Sequence[str], unknown: int | None) -> Spec:
    scores = _gguf_scores(meta, len(tokens))
    kinds = _gguf_kinds(meta.get("tokenizer.ggml.token_type"), len(tokens), Kind.BYTE)
    try:
        least = min((float(score) for score, kind in zip(scores, kinds, strict=True) if kind == Kind.NORMAL), default=0.0)
    except (TypeError, ValueError):
        raise ModelInvalid("tokenizer.ggml.scores: every one must be a number") from None
    spec = Spec("unigram", tokens, kinds, scores=scores, least_score=least, single_sums=True,
                space_prefix=as_flag(meta, "tokenizer.ggml.add_space_prefix", default=True))
    if unknown is not None:
        spec.kinds[unknown] = Kind.SPECIAL
    _put_rules(spec, _gguf_steps(meta))
    return spec


def _put_rules(spec: Spec, steps: list[Step]) -> None:
    """steps before the model, then a space before what they leave; added tokens are looked for in what they leave."""
    before = [Prepend(MARK)] if spec.space_prefix else []
    spec.rules = Rules([*steps, *before], marks=True)
    spec.opening, spec.space_prefix = "space" if spec.space_prefix else "", False
    kinds = np.array(spec.kinds, np.uint8)
    spec.added = [AddedToken(spec.tokens[i], i, bool(kinds[i] == Kind.SPECIAL), normalized=bool(kinds[i] == Kind.ADDED))
                  for i in ids_of(kinds, Kind.ADDED, Kind.SPECIAL)]
    spec.kinds = np.where(kinds == Kind.ADDED, np.uint8(Kind.UNUSED), kinds)


def _gguf_steps(meta: Mapping[str, object]) -> list[Step]:
    """SentencePiece's normalizer: a map of characters, single spaces."""
    key = "tokenizer.ggml.precompiled_charsmap"
    value, steps = meta.get(key), list[Step]()
    if value is not None:
        if not isinstance(value, bytes):
            try:
                value = bytes(b & 255 for b in as_list(value, key))  # type: ignore[operator]
            except TypeError:
                raise ModelInvalid(f"{key}: must be bytes") from None
        steps += [chars_map(value, graphemes=False)] if value else []
    if as_flag(meta, "tokenizer.ggml.remove_extra_whitespaces", default=False):
        steps += [Squeeze(2, " "), trim]
    return steps


def _gguf_words(meta: Mapping[str, object], tokens: Sequence[str], unknown: int | None) -> Spec:
    """A GGUF writes the beginning of a word with U+2581, and what is within one without ##."""
    def back(token: str) -> str:
        return token[1:] if token[:1] == MARK else token if token[:1] == "[" and token[-1:] == "]" else "##" + token

    return words_spec([back(token) for token in tokens])


def words_spec(tokens: list[str], lower: bool = True, strip: object = None, apart: bool = True) -> Spec:
    """BERT's tokenizer over tokens that write ## within a word."""
    specials = {name: tokens.index(name) for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if name in tokens}
    if not {"[UNK]", "[CLS]", "[SEP]"} <= specials.keys():
        raise ModelInvalid("tokenizer: the vocabulary must have [UNK], [CLS] and [SEP]")
    kinds = [int(Kind.NORMAL)] * len(tokens)
    for i in specials.values():
        kinds[i] = Kind.SPECIAL
    rules = Rules([Bert(True, apart, lower if strip is None else bool(strip), lower)])
    added = [AddedToken(name, i, special=True) for name, i in specials.items()]
    return Spec("wordpiece", tokens, kinds, rules=rules, added=added, unknown_id=specials["[UNK]"], bos_id=specials["[CLS]"],
                prefix=[specials["[CLS]"]], suffix=[specials["[SEP]"]], subword_prefix="##", cleanup=True)


def _gguf_scores(meta: Mapping[str, object], n: int) -> Sequence[float]:
    scores = as_list(meta.get("tokenizer.ggml.scores"), "tokenizer.ggml.scores")
    if len(scores) != n:
        raise ModelInvalid(f"tokenizer.ggml.scores: {len(scores)} entries for {n} tokens")
    return scores  # type: ignore[return-value]  # checked when they become an array


_GGUF_MODELS = {"gpt2": _gguf_byte_level, "llama": _gguf_sentencepiece, "t5": _gguf_unigram, "bert": _gguf_words}


def from_vocab_merges(vocab: str | Path | bytes, merges: str | Path | bytes) -> Spec:
    """Reads GPT-2's vocab.json (or encoder.json) and merges.txt (or vocab.bpe): paths or their bytes."""
    entries = as_object(parse_json(vocab, "vocab.json"), "vocab.json")
    tokens, kinds = vocabulary_by_id([(token, i, Kind.NORMAL) for token, i in entries.items()])
    for i, token in enumerate(tokens):
        if token in END_NAMES:
            kinds[i] = Kind.SPECIAL
    lines = decode_utf8(read_file(merges, "merges.txt"), "merges.txt").split("\n")
    rules = [line for line in lines[lines[0].startswith("#version") :] if line]
    ends = end_ids_of(tokens, kinds, [])
    bos = ends[0] if ends else None
    return Spec(family="bpe", tokens=tokens, kinds=kinds, merges=rules, bos_id=bos, eos_id=bos, end_ids=ends)


# ---- values from files ----


def as_text(meta: Mapping[str, object], key: str) -> str | None:
    value = meta.get(key)
    if value is not None and not isinstance(value, str):
        raise ModelInvalid(f"{key}: must be a string, not {type(value).__name__}")
    return value


def as_flag(meta: Mapping[str, object], key: str, default: bool) -> bool:
    value = meta.get(key)
    return default if value is None else bool(value)


def as_list(value: object, where: str) -> Sequence[object]:
    if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__len__") or not hasattr(value, "__getitem__"):
        raise ModelInvalid(f"{where}: must be a list" if value is not None else f"{where}: missing")
    return value  # type: ignore[return-value]


def as_texts(value: object, where: str) -> Sequence[str]:
    if isinstance(value, Texts):
        return value
    texts = list(as_list(value, where))
    if set(map(type, texts)) <= {str}:
        return texts  # type: ignore[return-value]
    i, wrong = next((i, text) for i, text in enumerate(texts) if type(text) is not str)
    raise ModelInvalid(f"{where}: entry {i} must be a string, not {type(wrong).__name__}")


def as_id(value: object, n: int, where: str) -> int | None:
    """A token id below n, or None where there is none."""
    if value is None:
        return None
    try:
        number = index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ModelInvalid(f"{where}: must be a token id, not {value!r:.40}") from None
    if not 0 <= number < n:
        raise ModelInvalid(f"{where}: token id {number} is outside the vocabulary of {n}")
    return number


def _gguf_kinds(value: object, n: int, byte: Kind) -> Kinds:
    """GGUF token types: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte: what `byte` says."""
    if value is None:
        return np.full(n, Kind.NORMAL, np.uint8)
    types = as_list(value, "tokenizer.ggml.token_type")
    if len(types) != n:
        raise ModelInvalid(f"tokenizer.ggml.token_type: {len(types)} entries for {n} tokens")
    known = {1: Kind.NORMAL, 2: Kind.SPECIAL, 3: Kind.SPECIAL, 4: Kind.ADDED, 5: Kind.UNUSED, 6: byte}
    if isinstance(types, np.ndarray) and types.dtype.kind in "iu" and n and types.min() >= 1 and types.max() <= 6:
        return np.array([0, *known.values()], np.uint8)[types]
    try:
        return [known[t] for t in (types.tolist() if hasattr(types, "tolist") else types)]  # type: ignore[index]
    except (KeyError, TypeError) as error:
        raise ModelInvalid(f"tokenizer.ggml.token_type: {error} is not a token type; they are 1 to 6") from None


def ids_of(kinds: Kinds, *wanted: Kind) -> list[int]:
    """The tokens of some kinds, ascending."""
    ids: list[int] = np.flatnonzero(np.isin(np.array(kinds, np.uint8), wanted)).tolist()
    return ids


def end_ids_of(tokens: Sequence[str], kinds: Kinds, named: Iterable[int | None]) -> list[int]:
    """Every token that ends an answer, those the file names first."""
    ids = [i for i in named if i is not None]
    ids += [i for i in ids_of(kinds, Kind.SPECIAL) if tokens[i] in END_NAMES]
    return list(dict.fromkeys(ids))


def read_file(source: str | Path | bytes, what: str) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        return Path(source).read_bytes()
    except FileNotFoundError:
        raise ModelNotFound(f"{source}: no such file; give the path of a {what}") from None


def decode_utf8(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelInvalid(f"{what}: not UTF-8 at byte {error.start}") from None


def parse_json(source: str | Path | bytes, what: str) -> object:
    text = decode_utf8(read_file(source, what), what)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, or a number of thousands of digits
        raise ModelInvalid(f"{what}: not JSON: {error}") from None


def as_object(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise ModelInvalid(f"{where}: must be an object" if value is not None else f"{where}: missing")
    return value


def vocabulary_by_id(entries: Sequence[tuple[str, object, Kind]]) -> tuple[list[str], list[int]]:
    """Tokens and their kinds by id. Ids that no token has are unused ones with an empty text."""
    most = 4 * len(entries) + 1024  # some vocabularies have holes; none is mostly holes
    ids = [as_id(i, most, f"token {token!r:.40}") for token, i, _ in entries]
    if None in ids:
        raise ModelInvalid("tokenizer.json: an added token has no id")
    n = max((i for i in ids if i is not None), default=-1) + 1
    tokens, kinds = [""] * n, [int(Kind.UNUSED)] * n
    for i, (token, _, kind) in zip(ids, entries, strict=True):
        assert i is not None
        if kinds[i] != Kind.UNUSED and tokens[i] != token:
            raise ModelInvalid(f"tokens {tokens[i]!r:.40} and {token!r:.40} have the same id {i}")
        tokens[i], kinds[i] = token, int(kind)
    return tokens, kinds
