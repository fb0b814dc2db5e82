"""What a tokenizer is made of, whichever file it came from, and the readers of the three kinds of file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from operator import index
from pathlib import Path

from pyruntime.errors import ModelInvalid, ModelNotFound


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

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_BLANKS = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*" + _BLANKS
_CAPITALS, _SMALL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = [rf"[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}*{_SMALL}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}+{_SMALL}*"]
_SIGNS = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _BLANKS
_REGEXES = {
    _CONTRACTIONS + r"\p{N}{1,3}" + _REST: "llama3",
    _CONTRACTIONS + r"\p{N}" + _REST: "qwen2",
    "|".join(_CASED) + r"|\p{N}" + _SIGNS: "tekken",
    "|".join(words + r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?" for words in _CASED) + r"|\p{N}{1,3}" + _SIGNS: "gpt-4o",
    r"\p{N}{1,3}": "three digits",
    "[一-龥぀-ゟ゠-ヿ]+": "East Asian",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"""
    + _BLANKS: "deepseek-v3",
}
_PIPELINES = {
    ("split into bytes",): "gpt2",
    ("digits", "split into bytes"): "smollm",
    ("llama3", "bytes"): "llama3",
    ("qwen2", "bytes"): "qwen2",
    ("tekken", "bytes"): "tekken",
    ("gpt-4o", "bytes"): "gpt-4o",
    ("three digits", "East Asian", "deepseek-v3", "bytes"): "deepseek-v3",
}


@dataclass(slots=True)
class Spec:
    """One tokenizer. Token ids are positions in `tokens`; every id below is one of them."""

    family: str
    tokens: list[str]
    kinds: list[int]
    merges: Sequence[str] = ()  # "left right", in order of rank
    split: str = "gpt2"
    ignore_merges: bool = False
    nfc: bool = False
    bos_id: int | None = None
    eos_id: int | None = None
    prefix: list[int] = field(default_factory=list)
    suffix: list[int] = field(default_factory=list)
    end_ids: list[int] = field(default_factory=list)
    chat_template: str | None = None
    scores: Sequence[float] = ()  # SentencePiece: one a token
    space_prefix: bool = False  # SentencePiece: a space goes before a text
    unknown_id: int | None = None


def find_split(name: str) -> int:
    """The pre-tokenizer's number in C; ModelInvalid lists the known ones."""
    if name not in SPLITS:
        raise ModelInvalid(f"tokenizer.ggml.pre: {name!r} is not supported; known are {', '.join(SPLITS)}")
    return SPLITS[name]


def from_gguf_metadata(meta: Mapping[str, object]) -> Spec:
    """Reads the keys tokenizer.ggml.* and tokenizer.chat_template. ModelInvalid names the key at fault."""
    model = _text(meta, "tokenizer.ggml.model")
    if model is None:
        raise ModelInvalid("tokenizer.ggml.model: missing; the file has no tokenizer")
    if model not in ("gpt2", "llama"):
        raise ModelInvalid(f"tokenizer.ggml.model: {model!r} is not supported; byte-level BPE ('gpt2') and "
                           "SentencePiece BPE ('llama') are")
    tokens = _texts(meta.get("tokenizer.ggml.tokens"), "tokenizer.ggml.tokens")

    def token_id(name: str) -> int | None:
        return _id(meta.get(f"tokenizer.ggml.{name}_token_id"), len(tokens), f"tokenizer.ggml.{name}_token_id")

    spec = (_gguf_byte_level if model == "gpt2" else _gguf_sentencepiece)(meta, tokens)
    spec.bos_id, spec.eos_id, spec.unknown_id = token_id("bos"), token_id("eos"), token_id("unknown")
    by_default = spec.family == "spm" or spec.ignore_merges
    add_bos = _flag(meta, "tokenizer.ggml.add_bos_token", default=by_default)
    add_eos = _flag(meta, "tokenizer.ggml.add_eos_token", default=False)
    spec.prefix = [spec.bos_id] if add_bos and spec.bos_id is not None else []
    spec.suffix = [spec.eos_id] if add_eos and spec.eos_id is not None else []
    spec.end_ids = _end_ids(tokens, spec.kinds, [spec.eos_id, token_id("eot"), token_id("eom")])
    spec.chat_template = _text(meta, "tokenizer.chat_template")
    return spec


def _gguf_byte_level(meta: Mapping[str, object], tokens: list[str]) -> Spec:
    pre = _text(meta, "tokenizer.ggml.pre") or "default"
    return Spec(
        family="bpe",
        tokens=tokens,
        kinds=_gguf_kinds(meta.get("tokenizer.ggml.token_type"), len(tokens), Kind.NORMAL),
        merges=_texts(meta.get("tokenizer.ggml.merges"), "tokenizer.ggml.merges"),
        split=pre,
        ignore_merges=find_split(pre) in (find_split("llama3"), find_split("tekken")),
    )


def _gguf_sentencepiece(meta: Mapping[str, object], tokens: list[str]) -> Spec:
    scores = _list(meta.get("tokenizer.ggml.scores"), "tokenizer.ggml.scores")
    if len(scores) != len(tokens):
        raise ModelInvalid(f"tokenizer.ggml.scores: {len(scores)} entries for {len(tokens)} tokens")
    return Spec(
        family="spm",
        tokens=tokens,
        kinds=_gguf_kinds(meta.get("tokenizer.ggml.token_type"), len(tokens), Kind.BYTE),
        scores=scores,  # type: ignore[arg-type]  # checked when they become an array
        space_prefix=_flag(meta, "tokenizer.ggml.add_space_prefix", default=True),
    )


def from_tokenizer_json(source: str | Path | bytes, config: Mapping[str, object] | None = None) -> Spec:
    """Reads a tokenizer.json (a path or its bytes); `config` is what tokenizer_config.json holds, if any."""
    data = _object(_parse_json(source, "tokenizer.json"), "tokenizer.json")
    config = config or {}
    model = _object(data.get("model"), "tokenizer.json: model")
    if model.get("type", "BPE") != "BPE":
        raise ModelInvalid(f"tokenizer.json: model.type {model.get('type')!r} is not supported; BPE is")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(name):
            raise ModelInvalid(f"tokenizer.json: model.{name} is not supported")
    added = [_object(a, "tokenizer.json: added_tokens") for a in _list(data.get("added_tokens") or [], "added_tokens")]
    tokens, kinds = _json_vocabulary(_object(model.get("vocab"), "tokenizer.json: model.vocab"), added)
    by_text = {token: i for i, token in enumerate(tokens)}

    def config_id(name: str) -> int | None:
        value = config.get(f"{name}_token")
        content = value.get("content") if isinstance(value, Mapping) else value
        return by_text.get(content) if isinstance(content, str) else None

    prefix, suffix = _template_ids(data.get("post_processor"), len(tokens))
    bos = config_id("bos")
    bos = prefix[0] if bos is None and prefix else bos
    eos = config_id("eos")
    merges = [
        m if isinstance(m, str) else " ".join(_texts(m, "tokenizer.json: merges"))
        for m in _list(model.get("merges"), "tokenizer.json: model.merges")
    ]
    return Spec(
        family="bpe",
        tokens=tokens,
        kinds=kinds,
        merges=merges,
        split=_json_split(data.get("pre_tokenizer")),
        ignore_merges=bool(model.get("ignore_merges")),
        nfc=_json_nfc(data.get("normalizer")),
        bos_id=bos,
        eos_id=eos,
        prefix=prefix,
        suffix=suffix,
        end_ids=_end_ids(tokens, kinds, [eos]),
        chat_template=_config_template(config),
    )


def from_vocab_merges(vocab: str | Path | bytes, merges: str | Path | bytes) -> Spec:
    """Reads GPT-2's vocab.json (or encoder.json) and merges.txt (or vocab.bpe): paths or their bytes."""
    entries = _object(_parse_json(vocab, "vocab.json"), "vocab.json")
    tokens, kinds = _json_vocabulary(entries, [])
    for i, token in enumerate(tokens):
        if token in END_NAMES:
            kinds[i] = Kind.SPECIAL
    lines = _decode(_read(merges, "merges.txt"), "merges.txt").split("\n")
    rules = [line for line in lines[lines[0].startswith("#version") :] if line]
    ends = _end_ids(tokens, kinds, [])
    bos = ends[0] if ends else None
    return Spec(family="bpe", tokens=tokens, kinds=kinds, merges=rules, bos_id=bos, eos_id=bos, end_ids=ends)


# ---- values from files ----


def _text(meta: Mapping[str, object], key: str) -> str | None:
    value = meta.get(key)
    if value is not None and not isinstance(value, str):
        raise ModelInvalid(f"{key}: must be a string, not {type(value).__name__}")
    return value


def _flag(meta: Mapping[str, object], key: str, default: bool) -> bool:
    value = meta.get(key)
    return default if value is None else bool(value)


def _list(value: object, where: str) -> Sequence[object]:
    if isinstance(value, str | bytes) or not hasattr(value, "__len__") or not hasattr(value, "__getitem__"):
        raise ModelInvalid(f"{where}: must be a list" if value is not None else f"{where}: missing")
    return value  # type: ignore[return-value]


def _texts(value: object, where: str) -> list[str]:
    texts = list(_list(value, where))
    if set(map(type, texts)) <= {str}:
        return texts  # type: ignore[return-value]
    i, wrong = next((i, text) for i, text in enumerate(texts) if type(text) is not str)
    raise ModelInvalid(f"{where}: entry {i} must be a string, not {type(wrong).__name__}")


def _id(value: object, n: int, where: str) -> int | None:
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


def _gguf_kinds(value: object, n: int, byte: Kind) -> list[int]:
    """GGUF token types: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte: what `byte` says."""
    if value is None:
        return [Kind.NORMAL] * n
    types = _list(value, "tokenizer.ggml.token_type")
    if len(types) != n:
        raise ModelInvalid(f"tokenizer.ggml.token_type: {len(types)} entries for {n} tokens")
    known = {1: Kind.NORMAL, 2: Kind.SPECIAL, 3: Kind.SPECIAL, 4: Kind.ADDED, 5: Kind.UNUSED, 6: byte}
    try:
        return [known[t] for t in (types.tolist() if hasattr(types, "tolist") else types)]  # type: ignore[index]
    except (KeyError, TypeError) as error:
        raise ModelInvalid(f"tokenizer.ggml.token_type: {error} is not a token type; they are 1 to 6") from None


def _end_ids(tokens: Sequence[str], kinds: Sequence[int], named: Iterable[int | None]) -> list[int]:
    """Every token that ends an answer, those the file names first."""
    ids = [i for i in named if i is not None]
    ids += [i for i, token in enumerate(tokens) if kinds[i] == Kind.SPECIAL and token in END_NAMES]
    return list(dict.fromkeys(ids))


def _read(source: str | Path | bytes, what: str) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        return Path(source).read_bytes()
    except FileNotFoundError:
        raise ModelNotFound(f"{source}: no such file; give the path of a {what}") from None


def _decode(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelInvalid(f"{what}: not UTF-8 at byte {error.start}") from None


def _parse_json(source: str | Path | bytes, what: str) -> object:
    try:
        return json.loads(_decode(_read(source, what), what))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ModelInvalid(f"{what}: not JSON: {error}") from None


def _object(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise ModelInvalid(f"{where}: must be an object" if value is not None else f"{where}: missing")
    return value


def _json_vocabulary(vocab: dict[str, object], added: list[dict[str, object]]) -> tuple[list[str], list[int]]:
    """Tokens by id. Ids that no token has are unused ones with an empty text."""
    entries: list[tuple[str, object, Kind]] = [(token, i, Kind.NORMAL) for token, i in vocab.items()]
    for extra in added:
        content = extra.get("content")
        if not isinstance(content, str):
            raise ModelInvalid("tokenizer.json: an added token has no content")
        for name in ("single_word", "lstrip", "rstrip"):
            if extra.get(name):
                raise ModelInvalid(f"tokenizer.json: added token {content!r:.40}: {name} is not supported")
        entries.append((content, extra.get("id"), Kind.SPECIAL if extra.get("special") else Kind.ADDED))
    most = 4 * len(entries) + 1024  # some vocabularies have holes; none is mostly holes
    ids = [_id(i, most, f"token {token!r:.40}") for token, i, _ in entries]
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


def _json_split(value: object) -> str:
    """The pre-tokenizer that a tokenizer.json describes, by the name it has in GGUF."""
    node = _object(value, "tokenizer.json: pre_tokenizer")
    steps = _list(node.get("pretokenizers"), "pretokenizers") if node.get("type") == "Sequence" else [node]
    name = _PIPELINES.get(tuple(_step(_object(step, "tokenizer.json: pre_tokenizer")) for step in steps))
    if name is None:
        raise ModelInvalid(
            f"tokenizer.json: this pre_tokenizer is not supported: {json.dumps(node)[:160]}; "
            f"known are those of {', '.join(_PIPELINES.values())}"
        )
    return name


def _step(step: dict[str, object]) -> str:
    """One step of a pre-tokenizer, as _PIPELINES calls it."""
    kind, pattern = step.get("type"), step.get("pattern")
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return "split into bytes" if step.get("use_regex", True) else "bytes"
    if kind == "Digits" and step.get("individual_digits"):
        return "digits"
    if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert") and isinstance(pattern, dict):
        # Some files have line breaks themselves in the pattern.
        return _REGEXES.get(str(pattern.get("Regex")).replace("\r", "\\r").replace("\n", "\\n"), "?")
    return "?"


def _json_nfc(value: object) -> bool:
    if value is None:
        return False
    if _object(value, "tokenizer.json: normalizer").get("type") != "NFC":
        raise ModelInvalid(f"tokenizer.json: normalizer {json.dumps(value)[:80]} is not supported; NFC is")
    return True


def _template_ids(value: object, n: int) -> tuple[list[int], list[int]]:
    """The special tokens that a post_processor puts before and after a text."""
    if value is None:
        return [], []
    node = _object(value, "tokenizer.json: post_processor")
    if node.get("type") == "Sequence":
        for step in _list(node.get("processors"), "tokenizer.json: processors"):
            found = _template_ids(step, n)
            if found != ([], []):
                return found
        return [], []
    if node.get("type") != "TemplateProcessing":
        return [], []
    table = _object(node.get("special_tokens"), "tokenizer.json: special_tokens")
    sides: tuple[list[int], list[int]] = ([], [])
    after = False
    for item in _list(node.get("single"), "tokenizer.json: single"):
        piece = _object(item, "tokenizer.json: single")
        if "SpecialToken" not in piece:
            after = True
            continue
        name = _object(piece["SpecialToken"], "SpecialToken").get("id")
        for i in _list(_object(table.get(str(name)), f"special token {name!r:.40}").get("ids"), "ids"):
            checked = _id(i, n, f"tokenizer.json: special token {name!r:.40}")
            sides[after].extend([] if checked is None else [checked])
    return sides


def _config_template(config: Mapping[str, object]) -> str | None:
    """tokenizer_config.json's chat_template: one, or several by name, of which `default` is the one."""
    value = config.get("chat_template")
    if isinstance(value, list):
        named = {t.get("name"): t.get("template") for t in value if isinstance(t, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None
