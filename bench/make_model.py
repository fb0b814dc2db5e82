"""Models of real shapes with random weights, in any GGUF format: bandwidth and arithmetic do not care what the weights say.

    python bench/make_model.py llama-1b Q4_K_M [Q8_0 ...] [--folder DIR]

Shapes: smollm2-135m, llama-1b (Llama 3.2 1B), llama-8b (Llama 3.1 8B), tiny. Formats: any of GGUF's that hold weights, for every
matrix of the model; Q4_K_M and Q5_K_M are the mixed files of that name, with Q6_K where they have it. Blocks are random but
valid, scales are such that weights have mean 0 and a spread near 0.02, so activations stay finite. The tokenizer is a byte-level
BPE with filler tokens. A file that is there already is kept. Needs the `gguf` package. Prints each file's path.
"""
from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

SPREAD = 0.02        # standard deviation of the weights
POOL = 8 << 20       # bytes of random blocks, which tensors repeat from different places on
WRITE = 64 << 20     # bytes written between two reports of progress
FOLDER = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pyruntime-bench"


@dataclass(frozen=True)
class Shape:
    """A llama's sizes; `tied`: the embedding is the head; `factors`: Llama 3.1's stretched rotation."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    context: int
    theta: float
    tied: bool
    factors: float = 0.0


SHAPES = {
    "tiny": Shape(2, 256, 4, 2, 64, 512, 1024, 512, 1e4, True),
    "smollm2-135m": Shape(30, 576, 9, 3, 64, 1536, 49152, 8192, 1e5, True),
    "llama-1b": Shape(16, 2048, 32, 8, 64, 8192, 128256, 131072, 5e5, True, 32.0),
    "llama-8b": Shape(32, 4096, 32, 8, 128, 14336, 128256, 131072, 5e5, False, 8.0),
}

#: format -> (where its f16 scale stands in a block, where the f16 that is taken off stands, how many times the scale that is
#: so that the mean is 0). Formats not named have no scale in 16 bits.
SCALES: dict[str, tuple[int, int | None, float]] = {
    "Q4_0": (0, None, 0), "Q4_1": (0, 2, -7.5), "Q5_0": (0, None, 0), "Q5_1": (0, 2, -15.5), "Q8_0": (0, None, 0),
    "Q2_K": (80, 82, 1.5), "Q3_K": (108, None, 0), "Q4_K": (0, 2, 7.5), "Q5_K": (0, 2, 15.5), "Q6_K": (208, None, 0),
    "IQ4_NL": (0, None, 0), "IQ4_XS": (0, None, 0), "TQ1_0": (52, None, 0), "TQ2_0": (64, None, 0),
}
PLAIN = ("F32", "F16", "BF16")
BY_EXPONENT = ("MXFP4", "NVFP4")   # scales of 8 bits
MIXES = {"Q4_K_M": "Q4_K", "Q5_K_M": "Q5_K"}
FORMATS = (*PLAIN, *SCALES, *BY_EXPONENT, *MIXES)


def blocks(format: str, seed: int = 1) -> np.ndarray:
    """About POOL bytes of random valid blocks, u8 [blocks][bytes of a block]."""
    kind, draw = GGMLQuantizationType[format], np.random.default_rng(seed)
    weights, size = GGML_QUANT_SIZES[kind]
    count = POOL // size
    if format in PLAIN:
        values = draw.standard_normal(count, np.float32) * np.float32(SPREAD)
        if format == "BF16":
            values = ((values.view(np.uint32) + np.uint32(0x8000)) >> 16).astype(np.uint16)
        return values.astype(values.dtype if format != "F16" else np.float16).view(np.uint8).reshape(count, size)
    out = draw.integers(0, 256, (count, size), np.uint8)
    if format == "TQ2_0":
        out[:, :64] = (lambda trits: trits[0] | trits[1] << 2 | trits[2] << 4 | trits[3] << 6)(
            draw.integers(0, 3, (4, count, 64), np.uint8))
    if format == "MXFP4":
        out[:, 0] = draw.integers(119, 122, count, np.uint8)
    elif format == "NVFP4":
        out[:, :4] = draw.integers(2, 8, (count, 4), np.uint8)
    else:
        _scale(format, out, draw)
    return out


def _scale(format: str, out: np.ndarray, draw: np.random.Generator) -> None:
    """Scales between half and one and a half of what gives the spread."""
    kind, (at, less, ratio) = GGMLQuantizationType[format], SCALES[format]
    scale = draw.uniform(0.5, 1.5, len(out))
    if less is None:   # -8 to 7 has a mean, its mirror image the other
        scale *= draw.choice((-1.0, 1.0), len(out))

    def put(times: float) -> None:
        out[:, at : at + 2] = (scale * times).astype(np.float16).view(np.uint8).reshape(-1, 2)
        if less is not None:
            out[:, less : less + 2] = (scale * times * ratio).astype(np.float16).view(np.uint8).reshape(-1, 2)

    put(2.0**-10)
    put(2.0**-10 * SPREAD / float(np.std(gguf.quants.dequantize(out[:4096], kind))))


def more_bits(layer: int, layers: int) -> bool:
    """Which layers of a mixed file have their V and down matrices in Q6_K."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def tensors(shape: Shape, format: str) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """(name, format, shape with k last), in the file's order."""
    s, base, mixed = shape, MIXES.get(format, format), format in MIXES
    yield "token_embd.weight", "Q6_K" if mixed and s.tied else base, (s.vocab, s.width)
    if s.factors:
        yield "rope_freqs.weight", "F32", (s.head_dim // 2,)
    for i in range(s.layers):
        better = "Q6_K" if mixed and more_bits(i, s.layers) else base
        for name, kind, dims in (
            ("attn_norm", "F32", (s.width,)), ("attn_q", base, (s.heads * s.head_dim, s.width)),
            ("attn_k", base, (s.kv_heads * s.head_dim, s.width)), ("attn_v", better, (s.kv_heads * s.head_dim, s.width)),
            ("attn_output", base, (s.width, s.heads * s.head_dim)), ("ffn_norm", "F32", (s.width,)),
            ("ffn_gate", base, (s.hidden, s.width)), ("ffn_up", base, (s.hidden, s.width)),
            ("ffn_down", better, (s.width, s.hidden)),
        ):
            yield f"blk.{i}.{name}.weight", kind, dims
    yield "output_norm.weight", "F32", (s.width,)
    if not s.tied:
        yield "output.weight", "Q6_K" if mixed else base, (s.vocab, s.width)


def rotation_factors(shape: Shape) -> np.ndarray:
    """Llama 3's: low frequencies are divided by `factors`, high ones stay, those between blend."""
    low, high, old = 1.0, 4.0, 8192
    wave = 2 * np.pi * shape.theta ** (2 * np.arange(shape.head_dim // 2) / shape.head_dim)
    smooth = np.clip((old / wave - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / shape.factors + smooth)).astype(np.float32)


def byte_letters() -> list[str]:
    """GPT-2's printable letter for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters, free = {b: chr(b) for b in plain}, iter(range(256, 512))
    return [letters.get(b) or chr(next(free)) for b in range(256)]


def put_header(writer: gguf.GGUFWriter, name: str, format: str, shape: Shape) -> None:
    """Sizes and tokenizer: bytes, fillers, control tokens last."""
    s = shape
    writer.add_name(f"{name} {format}, random weights")
    for add, value in (
        (writer.add_block_count, s.layers), (writer.add_context_length, s.context), (writer.add_embedding_length, s.width),
        (writer.add_feed_forward_length, s.hidden), (writer.add_head_count, s.heads), (writer.add_head_count_kv, s.kv_heads),
        (writer.add_key_length, s.head_dim), (writer.add_value_length, s.head_dim), (writer.add_rope_dimension_count, s.head_dim),
        (writer.add_layer_norm_rms_eps, 1e-5), (writer.add_rope_freq_base, s.theta), (writer.add_vocab_size, s.vocab),
    ):
        add(value)
    letters, control = byte_letters(), 256 if s.vocab > 4096 else 2
    tokens = letters + ["er", "th", *(f"x{i}" for i in range(s.vocab - len(letters) - 2 - control))]
    tokens += ["<|begin_of_text|>", "<|end_of_text|>", *(f"<|reserved_{i}|>" for i in range(control - 2))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * (s.vocab - control) + [gguf.TokenType.CONTROL] * control)
    writer.add_token_merges(["e r", "t h"])
    writer.add_bos_token_id(s.vocab - control)
    writer.add_eos_token_id(s.vocab - control + 1)
    writer.add_add_bos_token(False)


def make(name: str, format: str, path: Path, report: Callable[[int, int], None] = lambda done, total: None) -> Path:
    """Write one model, whole or not at all; `report` is told bytes (done, in all)."""
    shape, listed = SHAPES[name], list(tensors(SHAPES[name], format))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    writer = gguf.GGUFWriter(partial, "llama")
    put_header(writer, name, format, shape)
    sizes = []
    for title, kind, dims in listed:
        weights, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
        if dims[-1] % weights:
            raise SystemExit(f"error: {title} has rows of {dims[-1]} weights and {kind} blocks hold {weights}; take another format")
        sizes.append(int(np.prod(dims)) // weights * size)
        raw = GGMLQuantizationType[kind]
        writer.add_tensor_info(title, dims, np.dtype(np.float32), sizes[-1], raw_dtype=raw)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        _write_tensors(writer, listed, sizes, shape, report)
        writer.close()
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _write_tensors(writer: gguf.GGUFWriter, listed: list[tuple[str, str, tuple[int, ...]]], sizes: list[int], shape: Shape,
                   report: Callable[[int, int], None]) -> None:
    file, draw = writer.fout[0], np.random.default_rng(2)
    pools: dict[str, np.ndarray] = {}
    done, total = 0, sum(sizes)
    writer.write_padding(file, file.tell())
    for (title, kind, dims), size in zip(listed, sizes, strict=True):
        if title == "rope_freqs.weight":
            file.write(rotation_factors(shape).tobytes())
        elif len(dims) == 1:
            file.write(np.ones(dims, np.float32).tobytes())
        else:
            if kind not in pools:
                pools[kind] = blocks(kind).reshape(-1)
            pool = pools[kind]
            block = GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]
            at, left = int(draw.integers(0, len(pool) // block)) * block, size
            while left:
                part = pool[at : at + left]
                file.write(part.data)
                at, left, done = 0, left - part.nbytes, done + part.nbytes
                report(done, total)
        writer.write_padding(file, size)


@contextmanager
def shown(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn(),
                  console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def made(name: str, format: str, folder: Path = FOLDER) -> Path:
    """The file, made if it is not there yet."""
    path = folder / f"{name}-{format}.gguf"
    if not path.exists():
        with shown(f"making {path.name}") as report:
            make(name, format, path, report)
    return path


def main() -> None:
    """Make what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("formats", nargs="+", metavar="FORMAT", help=", ".join(FORMATS))
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where models are kept [%(default)s]")
    asked = parser.parse_args()
    for format in asked.formats:
        if format not in FORMATS:
            parser.error(f"format is '{format}'; known: {', '.join(FORMATS)}")
        print(made(asked.shape, format, asked.folder))


if __name__ == "__main__":
    main()
