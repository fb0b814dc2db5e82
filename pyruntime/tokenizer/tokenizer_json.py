"""The reader of a tokenizer.json, as the `tokenizers` package writes it: what we do not do is an error that names it.

Truncation and padding, which some files ask for, are the caller's business and left out.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pyruntime.errors import ModelInvalid
from pyruntime.tokenizer.normalize import (
    MARK,
    Bert,
    Form,
    Prepend,
    Replace,
    Squeeze,
    Step,
    Strip,
    chars_map,
    lowercase,
    strip_accents,
)
from pyruntime.tokenizer.pipeline import TO_MARKS, AddedToken, Rules, utf8
from pyruntime.tokenizer.spec import Kind, Spec, as_id, as_list, as_object, as_texts, end_ids_of, parse_json, vocabulary_by_id

MOST_STEPS, MOST_DEPTH, MOST_GROWTH, MOST_CHARS = 64, 8, 64.0, 64
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
_BYTE_NAMES = frozenset(f"<0x{byte:02X}>" for byte in range(256))
Object = dict[str, object]


def from_tokenizer_json(source: str | Path | bytes, config: Mapping[str, object] | None = None) -> Spec:
    """Reads a tokenizer.json (a path or its bytes); `config` is what tokenizer_config.json holds, if any."""
    data = as_object(parse_json(source, "tokenizer.json"), "tokenizer.json")
    config = config or {}
    model = as_object(data.get("model"), "tokenizer.json: model")
    kind = _model_type(model)
    if not isinstance(kind, str) or kind not in _MODELS:
        raise ModelInvalid(f"tokenizer.json: model.type {kind!r:.40} is not supported; {', '.join(_MODELS)} are")
    spec = _MODELS[kind](data, model)
    by_text = {token: i for i, token in enumerate(spec.tokens)}

    def config_id(name: str) -> int | None:
        value = config.get(f"{name}_token")
        content = value.get("content") if isinstance(value, Mapping) else value
        return by_text.get(content) if isinstance(content, str) else None

    spec.prefix, spec.suffix = _template_ids(data.get("post_processor"), len(spec.tokens))
    bos = config_id("bos")
    spec.bos_id = spec.prefix[0] if bos is None and spec.prefix else bos
    spec.eos_id = config_id("eos")
    spec.end_ids = end_ids_of(spec.tokens, spec.kinds, [spec.eos_id])
    spec.chat_template = template_of(config)
    return spec


def _model_type(model: Object) -> object:
    """Old files leave it out: the vocabulary and what stands beside it tell."""
    if "type" in model:
        return model["type"]
    if "merges" in model or not isinstance(model.get("vocab"), list):
        return "WordPiece" if "max_input_chars_per_word" in model else "BPE"
    return "Unigram"


# ---- models ----


def _bpe(data: Object, model: Object) -> Spec:
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise ModelInvalid(f"tokenizer.json: model.{name} is not supported")
    steps = _steps(data.get("normalizer"))
    merges = [
        m if isinstance(m, str) else " ".join(as_texts(m, "tokenizer.json: merges"))
        for m in as_list(model.get("merges"), "tokenizer.json: model.merges")
    ]
    vocab = as_object(model.get("vocab"), "tokenizer.json: model.vocab")
    over_characters = bool(model.get("byte_fallback")) or TO_MARKS in steps or _has_type(data.get("pre_tokenizer"), "Metaspace")
    if not over_characters:
        tokens, kinds, added = _vocabulary(list(vocab.items()), data)
        split, space = _byte_level_split(data.get("pre_tokenizer"))
        _byte_level_decoder(data.get("decoder"))
        rules = Rules(steps, space="always" if space else "never")
        return Spec("bpe", tokens, kinds, merges, split=split, ignore_merges=bool(model.get("ignore_merges")), rules=rules,
                    added=added)
    rules, split_words = _spaces(data.get("pre_tokenizer"), steps)
    unknown = _named(vocab, model.get("unk_token"))
    tokens, kinds, added = _vocabulary(list(vocab.items()), data, unknown=unknown, fallback=bool(model.get("byte_fallback")),
                                       marks=True)
    return Spec("chars", tokens, kinds, merges, ignore_merges=bool(model.get("ignore_merges")), rules=rules, added=added,
                unknown_id=unknown, fuse_unknown=bool(model.get("fuse_unk")), split_words=split_words,
                opening=_opening(data.get("decoder"), rules))


def _unigram(data: Object, model: Object) -> Spec:
    pairs = []
    for i, entry in enumerate(as_list(model.get("vocab"), "tokenizer.json: model.vocab")):
        pair = as_list(entry, f"tokenizer.json: model.vocab: entry {i}")
        if len(pair) != 2 or not isinstance(pair[0], str) or type(pair[1]) not in (int, float):
            raise ModelInvalid(f"tokenizer.json: model.vocab: entry {i} must be a text and its score")
        pairs.append((pair[0], pair[1]))
    unknown = as_id(model.get("unk_id"), len(pairs), "tokenizer.json: model.unk_id")
    rules, split_words = _spaces(data.get("pre_tokenizer"), _steps(data.get("normalizer")))
    names = [(text, i) for i, (text, _) in enumerate(pairs)]
    tokens, kinds, added = _vocabulary(names, data, unknown=unknown, fallback=bool(model.get("byte_fallback")), marks=True)
    try:
        scores = [float(score) for _, score in pairs]  # type: ignore[arg-type]
    except OverflowError:
        raise ModelInvalid("tokenizer.json: model.vocab: a score is beyond all floats") from None
    return Spec("unigram", tokens, kinds, rules=rules, added=added, unknown_id=unknown, split_words=split_words,
                scores=scores + [0.0] * (len(tokens) - len(scores)), least_score=min(scores, default=0.0),
                opening=_opening(data.get("decoder"), rules))


def _wordpiece(data: Object, model: Object) -> Spec:
    vocab = as_object(model.get("vocab"), "tokenizer.json: model.vocab")
    unknown = _named(vocab, model.get("unk_token", "[UNK]"))
    if unknown is None:
        raise ModelInvalid("tokenizer.json: model.unk_token: must be a token of the vocabulary")
    prefix, most = model.get("continuing_subword_prefix", "##"), model.get("max_input_chars_per_word", 100)
    if not isinstance(prefix, str) or len(prefix) > MOST_CHARS:
        raise ModelInvalid(f"tokenizer.json: model.continuing_subword_prefix: must be a text of at most {MOST_CHARS} characters")
    if not isinstance(most, int) or not 0 <= most < 1 << 31:
        raise ModelInvalid("tokenizer.json: model.max_input_chars_per_word: must be a count")
    if data.get("pre_tokenizer") != {"type": "BertPreTokenizer"}:
        raise _unsupported("pre_tokenizer", data.get("pre_tokenizer"), "that of a WordPiece model is BertPreTokenizer")
    decoder = as_object(data.get("decoder") or {"type": "WordPiece", "prefix": prefix}, "tokenizer.json: decoder")
    if decoder.get("type") != "WordPiece" or decoder.get("prefix", "##") != prefix:
        raise _unsupported("decoder", decoder, "that of a WordPiece model is WordPiece with its prefix")
    tokens, kinds, added = _vocabulary(list(vocab.items()), data, unknown=unknown)
    return Spec("wordpiece", tokens, kinds, rules=Rules(_steps(data.get("normalizer"))), added=added, unknown_id=unknown,
                subword_prefix=prefix, most_chars=most, cleanup=bool(decoder.get("cleanup", True)))


_MODELS = {"BPE": _bpe, "Unigram": _unigram, "WordPiece": _wordpiece}


def _named(vocab: Object, name: object) -> int | None:
    """The id of the token that a file names."""
    if name is None:
        return None
    if not isinstance(name, str) or name not in vocab:
        raise ModelInvalid(f"tokenizer.json: model.unk_token: {name!r:.40} is not in the vocabulary")
    return as_id(vocab[name], 4 * len(vocab) + 1024, "tokenizer.json: model.unk_token")


def _vocabulary(
    entries: Sequence[tuple[str, object]],
    data: Object,
    *,
    unknown: int | None = None,
    fallback: bool = False,
    marks: bool = False,
) -> tuple[list[str], list[int], list[AddedToken]]:
    """Tokens by id, their kinds, and which of them are added ones. What no text can become is unused: an added token that the
    model does not have; with marks for spaces, a token that has a space."""
    listed = [as_object(a, "tokenizer.json: added_tokens") for a in as_list(data.get("added_tokens") or [], "added_tokens")]
    known = {token for token, _ in entries}
    every: list[tuple[str, object, Kind]] = []
    for token, i in entries:
        kind = Kind.BYTE if fallback and token in _BYTE_NAMES else Kind.UNUSED if marks and " " in token else Kind.NORMAL
        every.append((token, i, Kind.SPECIAL if i == unknown and unknown is not None else kind))
    extra = []
    for item in listed:
        content = item.get("content")
        if not isinstance(content, str):
            raise ModelInvalid("tokenizer.json: an added token has no content")
        if item.get("single_word"):
            raise ModelInvalid(f"tokenizer.json: added token {content!r:.40}: single_word is not supported")
        if item.get("special"):
            every.append((content, item.get("id"), Kind.SPECIAL))
        elif content not in known:
            every.append((content, item.get("id"), Kind.UNUSED))
        extra.append((content, item))
    tokens, kinds = vocabulary_by_id(every)
    added = []
    for content, item in extra:
        i = as_id(item.get("id"), len(tokens), f"token {content!r:.40}")
        if i is None:
            raise ModelInvalid("tokenizer.json: an added token has no id")
        if tokens[i] != content:
            raise ModelInvalid(f"tokens {tokens[i]!r:.40} and {content!r:.40} have the same id {i}")
        special = bool(item.get("special"))
        added.append(AddedToken(content, i, special, bool(item.get("lstrip")), bool(item.get("rstrip")),
                                bool(item.get("normalized", not special))))
    return tokens, kinds, added


# ---- normalizers ----


def _unsupported(what: str, value: object, known: str) -> ModelInvalid:
    return ModelInvalid(f"tokenizer.json: this {what} is not supported: {json.dumps(value)[:160]}; {known}")


def _flatten(value: object, what: str, inner: str, depth: int = 0) -> list[Object]:
    """The steps of a Sequence, or the one there is, or none."""
    if value is None:
        return []
    node = as_object(value, f"tokenizer.json: {what}")
    if node.get("type") != "Sequence":
        return [node]
    if depth == MOST_DEPTH:
        raise ModelInvalid(f"tokenizer.json: {what}: sequences lie in one another more than {MOST_DEPTH} deep")
    found = [step for item in as_list(node.get(inner), f"tokenizer.json: {what}.{inner}")
             for step in _flatten(item if item is not None else {}, what, inner, depth + 1)]
    if len(found) > MOST_STEPS:
        raise ModelInvalid(f"tokenizer.json: {what}: more than {MOST_STEPS} steps")
    return found


def _has_type(value: object, kind: str) -> bool:
    return any(step.get("type") == kind for step in _flatten(value, "pre_tokenizer", "pretokenizers"))


def _steps(value: object) -> list[Step]:
    """A normalizer. What its steps can make of a character is bounded."""
    steps, growth = [], 1.0
    for node in _flatten(value, "normalizer", "normalizers"):
        step = _normalizer(node)
        if isinstance(step, Replace):
            growth *= max(1.0, len(step.new) / len(step.old))
        elif isinstance(step, Squeeze):
            growth *= max(1.0, len(step.new) / step.least)
        if growth > MOST_GROWTH:
            raise ModelInvalid(f"tokenizer.json: normalizer: makes a text more than {MOST_GROWTH:g} times as long")
        steps.append(step)
    return steps


def _short(node: Object, name: str, least: int = 0) -> str:
    value = node.get(name)
    if not isinstance(value, str) or not least <= len(value) <= MOST_CHARS:
        raise ModelInvalid(f"tokenizer.json: {node.get('type')}.{name}: must be a text of {least} to {MOST_CHARS} characters")
    utf8(value)
    return value


def _normalizer(node: Object) -> Step:
    kind = node.get("type")
    if kind in ("NFC", "NFD", "NFKC", "NFKD"):
        return Form(str(kind))
    if kind == "Lowercase":
        return lowercase
    if kind == "StripAccents":
        return strip_accents
    if kind == "Strip":
        return Strip(bool(node.get("strip_left", True)), bool(node.get("strip_right", True)))
    if kind == "Prepend":
        return Prepend(_short(node, "prepend"))
    if kind == "Replace":
        pattern, new = as_object(node.get("pattern"), "tokenizer.json: Replace.pattern"), _short(node, "content")
        if "String" in pattern:
            return Replace(_short({"type": "Replace.pattern", **pattern}, "String", 1), new)
        if pattern.get("Regex") == " {2,}":
            return Squeeze(2, new)
        raise _unsupported("normalizer", node, "of regular expressions ' {2,}' is")
    if kind == "Precompiled":
        text = node.get("precompiled_charsmap")
        try:
            data = base64.b64decode(text.encode(), validate=True) if isinstance(text, str) else b""
        except (binascii.Error, UnicodeEncodeError):
            raise ModelInvalid("tokenizer.json: Precompiled.precompiled_charsmap: not base64") from None
        return chars_map(data, True)
    if kind == "BertNormalizer":
        lower, strip = bool(node.get("lowercase", True)), node.get("strip_accents")
        return Bert(bool(node.get("clean_text", True)), bool(node.get("handle_chinese_chars", True)),
                    lower if strip is None else bool(strip), lower)
    raise _unsupported("normalizer", node, "known are NFC, NFD, NFKC, NFKD, Lowercase, StripAccents, Strip, Prepend, Replace, "
                       "Precompiled, BertNormalizer and sequences of them")


# ---- pre-tokenizers and decoders ----


def _byte_level_split(value: object) -> tuple[str, bool]:
    """The pre-tokenizer that a tokenizer.json describes, by the name it has in GGUF, and whether it puts a space first."""
    steps = _flatten(value, "pre_tokenizer", "pretokenizers")
    if value is None:
        raise ModelInvalid("tokenizer.json: pre_tokenizer: missing")
    name = _PIPELINES.get(tuple(map(_step, steps)))
    space = bool(steps) and bool(steps[-1].get("add_prefix_space", True))
    if name is None or (space and len(steps) > 1):
        raise _unsupported("pre_tokenizer", value, f"known are those of {', '.join(_PIPELINES.values())}")
    return name, space


def _step(step: Object) -> str:
    """One step of a pre-tokenizer, as _PIPELINES calls it."""
    kind, pattern = step.get("type"), step.get("pattern")
    if kind == "ByteLevel":
        return "split into bytes" if step.get("use_regex", True) else "bytes"
    if kind == "Digits" and step.get("individual_digits"):
        return "digits"
    if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert") and isinstance(pattern, dict):
        return split_of_pattern(pattern.get("Regex")) or "?"
    return "?"


def split_of_pattern(pattern: object) -> str | None:
    """What a regular expression is called. Some files have line breaks themselves in it."""
    return _REGEXES.get(str(pattern).replace("\r", "\\r").replace("\n", "\\n"))


def _byte_level_decoder(value: object) -> None:
    steps = _flatten(value, "decoder", "decoders")
    if any(step.get("type") not in ("ByteLevel", "Fuse") for step in steps):
        raise _unsupported("decoder", value, "that of byte-level BPE is ByteLevel")


def _spaces(value: object, steps: list[Step]) -> tuple[Rules, bool]:
    """The rules of a model that writes spaces as U+2581, and whether words are apart before each."""
    space, by_words, split, marks = "never", False, False, TO_MARKS in steps
    for node in _flatten(value, "pre_tokenizer", "pretokenizers"):
        kind = node.get("type")
        if kind == "WhitespaceSplit" and not by_words and space == "never":
            by_words = True
        elif kind == "Metaspace" and not split:
            if node.get("replacement", MARK) != MARK:
                raise _unsupported("pre_tokenizer", node, f"the replacement {MARK!r} is")
            default = "always" if node.get("add_prefix_space", True) else "never"
            space = str(node.get("prepend_scheme") or default)
            split, marks = bool(node.get("split", True)), True
            if space not in ("never", "first", "always"):
                raise _unsupported("pre_tokenizer", node, "prepend_scheme is never, first or always")
        elif kind == "Split" and node.get("pattern") == {"String": " "} and marks and not node.get("invert"):
            continue  # no space is left to split at
        else:
            raise _unsupported("pre_tokenizer", node, "known with U+2581 are Metaspace, WhitespaceSplit before it, Split at spaces")
    if not marks or (by_words and (space != "always" or not split)):
        raise _unsupported("pre_tokenizer", value, "a model over characters needs spaces written as U+2581")
    return Rules(steps, marks=True, space=space, by_words=by_words), split


def _opening(value: object, rules: Rules) -> str:
    """What a decoder takes off the beginning of a text: Spec.opening."""
    steps = _flatten(value, "decoder", "decoders")
    if not steps:
        return "space" if rules.space != "never" or any(isinstance(step, Prepend) for step in rules.steps) else ""
    opening, spaced = "", False
    for node in steps:
        kind = node.get("type")
        if kind == "Metaspace" and node.get("replacement", MARK) == MARK:
            default = "always" if node.get("add_prefix_space", True) else "never"
            opening = "" if (node.get("prepend_scheme") or default) == "never" else "spaces"
            spaced = True
        elif kind == "Replace" and node.get("pattern") == {"String": MARK} and node.get("content") == " ":
            spaced = True
        elif kind == "Strip" and node.get("content") == " " and node.get("start") in (0, 1) and node.get("stop") == 0:
            opening = "space" if node.get("start") else opening
        elif kind not in ("ByteFallback", "Fuse"):
            raise _unsupported("decoder", node, "known are Metaspace, ByteFallback, Fuse, Replace of U+2581, Strip of one space")
    if not spaced:
        raise _unsupported("decoder", value, "it leaves U+2581 where spaces were")
    return opening


# ---- what goes around a text ----


def _template_ids(value: object, n: int) -> tuple[list[int], list[int]]:
    """The special tokens that a post_processor puts before and after a text."""
    found: tuple[list[int], list[int]] = ([], [])
    for node in _flatten(value, "post_processor", "processors"):
        kind = node.get("type")
        if kind == "ByteLevel":
            continue
        if kind not in ("TemplateProcessing", "BertProcessing", "RobertaProcessing"):
            raise _unsupported("post_processor", node, "known are TemplateProcessing, BertProcessing, RobertaProcessing, ByteLevel")
        if found != ([], []):
            raise _unsupported("post_processor", value, "of those that add tokens one is")
        found = _template(node, n) if kind == "TemplateProcessing" else ([_pair_id(node, "cls", n)], [_pair_id(node, "sep", n)])
    return found


def _pair_id(node: Object, name: str, n: int) -> int:
    pair = as_list(node.get(name), f"tokenizer.json: post_processor.{name}")
    found = as_id(pair[1] if len(pair) == 2 else None, n, f"tokenizer.json: post_processor.{name}")
    if found is None:
        raise ModelInvalid(f"tokenizer.json: post_processor.{name}: must be a token and its id")
    return found


def _template(node: Object, n: int) -> tuple[list[int], list[int]]:
    sides: tuple[list[int], list[int]] = ([], [])
    after = False
    for item in as_list(node.get("single"), "tokenizer.json: single"):
        piece = as_object(item, "tokenizer.json: single")
        if "SpecialToken" not in piece:
            if after:
                raise _unsupported("post_processor", node, "a template has its text once")
            after = True
            continue
        name = as_object(piece["SpecialToken"], "SpecialToken").get("id")
        table = as_object(node.get("special_tokens"), "tokenizer.json: special_tokens")
        for i in as_list(as_object(table.get(str(name)), f"special token {name!r:.40}").get("ids"), "ids"):
            checked = as_id(i, n, f"tokenizer.json: special token {name!r:.40}")
            sides[after].extend([] if checked is None else [checked])
    return sides


def template_of(config: Mapping[str, object]) -> str | None:
    """tokenizer_config.json's chat_template: one, or several by name, of which `default` is the one."""
    value = config.get("chat_template")
    if isinstance(value, list):
        named = {t.get("name"): t.get("template") for t in value if isinstance(t, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None
