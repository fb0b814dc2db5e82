"""The readers of further files: Mistral's tekken.json, SentencePiece's tokenizer.model, BERT's vocab.txt, and of a folder."""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from pyruntime.errors import ModelInvalid, ModelNotFound
from pyruntime.tokenizer.spec import (
    Kind,
    Spec,
    as_id,
    as_list,
    as_object,
    decode_utf8,
    end_ids_of,
    from_gguf_metadata,
    from_vocab_merges,
    parse_json,
    read_file,
    words_spec,
)
from pyruntime.tokenizer.tokenizer_json import from_tokenizer_json, split_of_pattern, template_of

MOST_TOKENS = 1 << 24
# Special tokens of the files that list none, in order; the rest are fillers.
_TEKKEN_SPECIALS = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
    "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip


def from_folder(folder: str | Path) -> Spec:
    """Reads what a model's folder has of tokenizer.json, tekken.json, tokenizer.model, vocab.json with merges.txt, or vocab.txt,
    the first of them; with tokenizer_config.json, chat_template.jinja and generation_config.json where they are."""
    folder = Path(folder)
    config = dict(as_object(parse_json(path, path.name), path.name)) if (path := folder / "tokenizer_config.json").is_file() else {}
    if (path := folder / "chat_template.jinja").is_file():
        config["chat_template"] = decode_utf8(read_file(path, path.name), path.name)
    if (path := folder / "tokenizer.json").is_file():
        spec = from_tokenizer_json(path, config)
    elif (path := folder / "tekken.json").is_file():
        spec = from_tekken(path)
    elif (path := folder / "tokenizer.model").is_file():
        spec = from_sentencepiece(path)
    elif (path := folder / "vocab.json").is_file() and (merges := folder / "merges.txt").is_file():
        spec = from_vocab_merges(path, merges)
    elif (path := folder / "vocab.txt").is_file():
        spec = from_vocab_txt(path, config)
    else:
        raise ModelNotFound(f"{folder}: no tokenizer; known are tokenizer.json, tekken.json, tokenizer.model, vocab.json with "
                            "merges.txt, and vocab.txt")
    spec.chat_template = spec.chat_template or template_of(config)
    if (path := folder / "generation_config.json").is_file():
        ends = as_object(parse_json(path, path.name), path.name).get("eos_token_id")
        found = [as_id(i, MOST_TOKENS, f"{path.name}: eos_token_id") for i in (ends if isinstance(ends, list) else [ends])]
        spec.end_ids = list(dict.fromkeys([*spec.end_ids, *(i for i in found if i is not None and i < len(spec.tokens))]))
    return spec


def from_tekken(source: str | Path | bytes) -> Spec:
    """Reads Mistral's tekken.json: special tokens come first, then tokens of bytes, which merge in order of their ranks."""
    data = as_object(parse_json(source, "tekken.json"), "tekken.json")
    config = as_object(data.get("config"), "tekken.json: config")
    size = as_id(config.get("default_vocab_size"), MOST_TOKENS, "tekken.json: config.default_vocab_size") or 0
    n_special = as_id(config.get("default_num_special_tokens"), MOST_TOKENS, "tekken.json: config.default_num_special_tokens") or 0
    vocab = as_list(data.get("vocab"), "tekken.json: vocab")
    if not 0 <= size - n_special <= len(vocab):
        raise ModelInvalid(f"tekken.json: {size} tokens of which {n_special} are special, but vocab has {len(vocab)}")
    specials = _tekken_specials(data.get("special_tokens"), n_special)
    tokens = [_tekken_bytes(entry, i) for i, entry in enumerate(vocab[: size - n_special])]
    listed = [*specials, *(token.decode("latin-1").translate(_ALPHABET) for token in tokens)]
    kinds = [int(Kind.SPECIAL)] * n_special + [int(Kind.NORMAL)] * len(tokens)
    split = split_of_pattern(config.get("pattern"))
    if split is None:
        raise ModelInvalid(f"tekken.json: config.pattern {str(config.get('pattern'))[:160]!r} is not supported")
    bos, eos = (specials.index(name) if name in specials else None for name in ("<s>", "</s>"))
    return Spec("bpe", listed, kinds, split=split, ranked=True, ignore_merges=True, bos_id=bos, eos_id=eos,
                prefix=[] if bos is None else [bos], end_ids=end_ids_of(listed, kinds, [eos]))


def _alphabet() -> dict[int, str]:
    """GPT-2's character for every byte."""
    hidden = iter(range(256, 512))
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return {byte: chr(byte if byte in visible else next(hidden)) for byte in range(256)}


_ALPHABET = _alphabet()


def _tekken_bytes(entry: object, i: int) -> bytes:
    node = as_object(entry, f"tekken.json: vocab: entry {i}")
    text = node.get("token_bytes")
    try:
        if node.get("rank") == i and isinstance(text, str) and (data := base64.b64decode(text.encode(), validate=True)):
            return data
    except (binascii.Error, UnicodeEncodeError):
        pass
    raise ModelInvalid(f"tekken.json: vocab: entry {i} must have rank {i} and token_bytes in base64")


def _tekken_specials(value: object, n: int) -> list[str]:
    names = {i: name for i, name in enumerate(_TEKKEN_SPECIALS) if value is None and i < n}
    for entry in as_list(value if value is not None else [], "tekken.json: special_tokens"):
        node = as_object(entry, "tekken.json: special_tokens")
        rank, text = as_id(node.get("rank"), n, "tekken.json: special_tokens: rank"), node.get("token_str")
        if rank is None or not isinstance(text, str) or rank in names:
            raise ModelInvalid("tekken.json: special_tokens: every one must have a rank of its own and a token_str")
        names[rank] = text
    return [names.get(i, f"<SPECIAL_{i}>") for i in range(n)]


def from_vocab_txt(source: str | Path | bytes, config: Mapping[str, object] | None = None) -> Spec:
    """Reads BERT's vocab.txt: a token a line; `config` is what tokenizer_config.json holds, if any."""
    config = config or {}
    lines = decode_utf8(read_file(source, "vocab.txt"), "vocab.txt").split("\n")
    tokens = [line.rstrip("\r") for line in (lines[:-1] if lines and not lines[-1] else lines)]
    return words_spec(tokens, lower=bool(config.get("do_lower_case", True)), strip=config.get("strip_accents"),
                      apart=bool(config.get("tokenize_chinese_chars", True)))


# ---- SentencePiece ----


def _fields(data: bytes, where: str) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a protobuf message: numbers, or bytes of fixed and counted length."""
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            if at >= len(data) or shift > 63:
                raise ModelInvalid(f"{where}: a number breaks off at byte {at}")
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        key = number()
        kind = key & 7
        if kind == 0:
            yield key >> 3, number()
            continue
        length = {1: 8, 5: 4}.get(kind) if kind != 2 else number()
        if length is None or length > len(data) - at:
            raise ModelInvalid(f"{where}: field {key >> 3} at byte {at} is damaged")
        yield key >> 3, data[at : at + length]
        at += length


def _message(value: int | bytes, where: str) -> bytes:
    if isinstance(value, int):
        raise ModelInvalid(f"{where}: a number where a message should be")
    return value


def from_sentencepiece(source: str | Path | bytes) -> Spec:
    """Reads SentencePiece's own file, of a BPE or a unigram model."""
    where = "tokenizer.model"
    tokens: list[str] = []
    scores: list[float] = []
    types: list[int] = []
    trainer: dict[int, int | bytes] = {}
    normal: dict[int, int | bytes] = {}
    for number, value in _fields(read_file(source, where), where):
        if number == 1:
            piece = dict(_fields(_message(value, where), f"{where}: piece {len(tokens)}"))
            text, score, kind = piece.get(1, b""), piece.get(2, b"\0\0\0\0"), piece.get(3, 1)
            if not isinstance(text, bytes) or not isinstance(score, bytes) or len(score) != 4 or not isinstance(kind, int):
                raise ModelInvalid(f"{where}: piece {len(tokens)} is damaged")
            tokens.append(decode_utf8(text, f"{where}: piece {len(tokens)}"))
            scores.append(struct.unpack("<f", score)[0])
            types.append(kind)
        elif number in (2, 3):
            (trainer if number == 2 else normal).update(_fields(_message(value, where), where))
    model = {1: "t5", 2: "llama"}.get(_number(trainer, 3, 1))
    if model is None or _number(trainer, 24, 0) or not _number(normal, 5, 1):
        raise ModelInvalid(f"{where}: this kind of model is not supported; BPE and unigram are, with spaces before words as U+2581")
    meta: dict[str, object] = {"model": model, "tokens": tokens, "scores": scores, "token_type": types,
                               "add_space_prefix": _number(normal, 3, 1), "remove_extra_whitespaces": _number(normal, 4, 1)}
    if chars := normal.get(2):
        meta["precompiled_charsmap"] = chars
    for name, number, default in (("unknown", 40, 0), ("bos", 41, 1), ("eos", 42, 2)):
        token = _number(trainer, number, default)
        if token < len(tokens):  # -1 says that there is none
            meta[f"{name}_token_id"] = token
    return from_gguf_metadata({f"tokenizer.ggml.{name}": value for name, value in meta.items()})


def _number(fields: Mapping[int, int | bytes], number: int, default: int) -> int:
    value = fields.get(number, default)
    if not isinstance(value, int):
        raise ModelInvalid(f"tokenizer.model: field {number} must be a number")
    return value
