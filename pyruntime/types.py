"""What crosses floors: sampling parameters, batches, step results, generation results. Standard library and numpy only."""
from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from .errors import FieldInvalid

MAX_TOP_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_LOGIT_BIAS = 1024

#: One flagged row's sampling, as SAMPLE reads it (struct rt_sampling in csrc/rt.h, same order and sizes).
#: history: index of the token history penalties read, -1 = none. position: how many tokens this candidate has generated.
#: bias_first/bias_count: a slice of the batch's (bias_ids, bias_values). allowed: row of `masks`, -1 = every token.
#: logprobs: -1 = none wanted, 0 = the sampled token's, n = and the n best.
SAMPLING = np.dtype([
    ("seed", "<u8"), ("temperature", "<f4"), ("top_p", "<f4"), ("min_p", "<f4"), ("typical_p", "<f4"),
    ("repetition", "<f4"), ("presence", "<f4"), ("frequency", "<f4"), ("top_k", "<i4"), ("candidate", "<i4"),
    ("position", "<i4"), ("history", "<i4"), ("bias_first", "<i4"), ("bias_count", "<i4"), ("allowed", "<i4"),
    ("logprobs", "<i4"), ("reserved", "<i4"),
])

#: One flagged row's outcome (struct rt_sampled). flags bit 0: a logit was NaN or infinite, token is then -1.
SAMPLED = np.dtype([
    ("token", "<i4"), ("rank", "<i4"), ("flags", "<i4"), ("top_count", "<i4"), ("logprob", "<f4"),
    ("top_ids", "<i4", (MAX_TOP_LOGPROBS,)), ("top_logprobs", "<f4", (MAX_TOP_LOGPROBS,)),
])


class FinishReason(str, Enum):
    """Why a candidate stopped."""

    END = "end_of_sequence"
    STOP_STRING = "stop_sequence"
    STOP_TOKEN = "stop_token"
    LENGTH = "max_output_tokens"
    CONTEXT = "context_full"
    TIME = "time_budget"
    CANCELLED = "cancelled"
    DRAINED = "drained"
    FAILED = "failed"


def _number(name: str, value: object, low: float, high: float, *, above_low: bool = False) -> float:
    """A finite real within [low, high] (or (low, high]), or FieldInvalid naming the field."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) \
            or not low <= value <= high or (above_low and value == low):
        span = f"{'above ' if above_low else ''}{low:g} {'and at most' if above_low else 'to'} {high:g}"
        raise FieldInvalid(f"{name} is {value!r}; it must be a number, {span}", field=name)
    return float(value)


def _integer(name: str, value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not low <= int(value) <= high:
        raise FieldInvalid(f"{name} is {value!r}; it must be a whole number, {low} to {high}", field=name)
    return int(value)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request picks and stops. Checked when made; `None` means "the model's default, else neutral".

    Order of application: logit bias and penalties on the raw logits, temperature, top-k, top-p, min-p, typical, draw.
    temperature 0 is greedy. top_k 0 is off. seed None draws one. max_tokens None fills the context.
    logprobs n: log-probability of each sampled token and of the n best (0 to 20), from the raw logits.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] = field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False
    ignore_end: bool = False
    logprobs: int | None = None
    prompt_logprobs: bool = False
    skip_special: bool = True
    time_budget: float | None = None

    def __post_init__(self) -> None:
        put = object.__setattr__
        big = 2**31 - 1
        if self.max_tokens is not None:
            _integer("max_tokens", self.max_tokens, 1, big)
        _integer("min_tokens", self.min_tokens, 0, big)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise FieldInvalid(f"min_tokens is {self.min_tokens}, above max_tokens {self.max_tokens}; "
                               "lower it or raise max_tokens", field="min_tokens")
        for name, low, high, above in (
            ("temperature", 0.0, 100.0, False), ("top_p", 0.0, 1.0, True), ("min_p", 0.0, 1.0, False),
            ("typical_p", 0.0, 1.0, True), ("repetition_penalty", 0.0, 100.0, True),
            ("presence_penalty", -100.0, 100.0, False), ("frequency_penalty", -100.0, 100.0, False),
        ):
            if (value := getattr(self, name)) is not None:
                put(self, name, _number(name, value, low, high, above_low=above))
        if self.top_k is not None:
            _integer("top_k", self.top_k, 0, big)
        if self.seed is not None:
            _integer("seed", self.seed, 0, 2**64 - 1)
        if self.logprobs is not None:
            _integer("logprobs", self.logprobs, 0, MAX_TOP_LOGPROBS)
        if self.time_budget is not None:
            _number("time_budget", self.time_budget, 0.0, 1e9)
        put(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        if len(self.stop) > MAX_STOP_STRINGS or any(not isinstance(s, str) or not s for s in self.stop):
            raise FieldInvalid(f"stop must be at most {MAX_STOP_STRINGS} strings, none empty", field="stop")
        for name in ("stop_token_ids", "allowed_token_ids"):
            put(self, name, tuple(_integer(name, i, 0, big) for i in getattr(self, name)))
        if len(self.logit_bias) > MAX_LOGIT_BIAS:
            raise FieldInvalid(f"logit_bias has {len(self.logit_bias)} entries; at most {MAX_LOGIT_BIAS}", field="logit_bias")
        put(self, "logit_bias", {_integer("logit_bias", k, 0, big): _number("logit_bias", v, -1e4, 1e4)
                                 for k, v in self.logit_bias.items()})


@dataclass(slots=True)
class Batch:
    """The ragged tokens of many sequences that one step computes. The scheduler fills it, and may fill it again for the next;
    a backend only reads, and keeps nothing of it.

    tokens     i32 [n]            token ids; -1-i stands for row i of `embeddings`
    positions  i32 [n]            position of each token, which rotation and masks use
    starts     i32 [seqs + 1]     sequence s owns tokens starts[s]:starts[s+1]
    kv_lens    i32 [seqs]         tokens of s in the cache once this step has stored its own: token j of s goes to
                                  slot kv_lens[s] - (starts[s+1] - starts[s]) + j of its block table
    tables     per group, in plan order: i32 [seqs][>= ceil(kv_len / PAGE_TOKENS)]   page indices; -1 in a group with a
                                  window where every slot of the block lies behind the window of all tokens here
    roles      u8 [n]             0 = prompt, 1 = generated; kept when a token is recomputed
    rows       i32 [rows]         token indices that get logits (several per sequence allowed), ascending
    sampling   SAMPLING [rows]
    adapters   i32 [seqs]         -1 = the base model
    """

    tokens: np.ndarray
    positions: np.ndarray
    starts: np.ndarray
    kv_lens: np.ndarray
    tables: tuple[np.ndarray, ...]
    rows: np.ndarray
    sampling: np.ndarray
    roles: np.ndarray
    adapters: np.ndarray
    bias_ids: np.ndarray
    bias_values: np.ndarray
    masks: np.ndarray | None = None        # u8 [masks][ceil(vocab / 8)], bit t of byte t//8 set = allowed
    embeddings: np.ndarray | None = None   # f32 [m][width]
    trees: np.ndarray | None = None        # u64 [n], for sequences of at most 64 tokens here: bit j = the token sees the
    #                                        sequence's token j of this step, where positions allow; its own bit is set; 0 = no tree

    @classmethod
    def build(cls, sequences, *, tables, rows=None, sampling=None, **rest) -> Batch:
        """From `sequences` = [(token ids, first position, tokens already cached)], one table list per group.

        rows None flags each sequence's last token; sampling None is greedy without logprobs.
        """
        lens = [len(ids) for ids, _, _ in sequences]
        starts = np.concatenate([[0], np.cumsum(lens)]).astype(np.int32)
        rows = np.asarray(starts[1:] - 1 if rows is None else rows, np.int32)
        if sampling is None:
            sampling = greedy_rows(len(rows))
        fields = dict(
            tokens=np.concatenate([np.asarray(ids, np.int32) for ids, _, _ in sequences]),
            positions=np.concatenate([first + np.arange(len(ids), dtype=np.int32) for ids, first, _ in sequences]),
            starts=starts,
            kv_lens=np.array([cached + len(ids) for ids, _, cached in sequences], np.int32),
            tables=tuple(pad_tables(t) for t in tables),
            rows=rows, sampling=sampling,
            roles=np.zeros(int(starts[-1]), np.uint8),
            adapters=np.full(len(lens), -1, np.int32),
            bias_ids=np.zeros(0, np.int32), bias_values=np.zeros(0, np.float32),
        )
        return cls(**{**fields, **rest})


def greedy_rows(n: int) -> np.ndarray:
    """SAMPLING rows that take the best token: neutral values everywhere."""
    rows = np.zeros(n, SAMPLING)
    rows["top_p"] = rows["typical_p"] = rows["repetition"] = 1.0
    rows["history"] = rows["allowed"] = rows["logprobs"] = -1
    return rows


def pad_tables(tables) -> np.ndarray:
    """Ragged lists of page indices -> i32 [seqs][longest], padded with 0 (never read past a sequence's length)."""
    out = np.zeros((len(tables), max((len(t) for t in tables), default=0)), np.int32)
    for row, table in zip(out, tables, strict=True):
        row[: len(table)] = table
    return out


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One position: the sampled token, its log-probability and rank (1 = most likely), and the best alternatives."""

    token_id: int
    logprob: float | None
    rank: int
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens a request used."""

    prompt_tokens: int
    output_tokens: int
    cached_prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds: waiting for a place, reading the prompt, until the first token (from submission), generating the rest."""

    queued: float = 0.0
    prefill: float = 0.0
    first_token: float = 0.0
    decode: float = 0.0


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished answer."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] | None
    usage: Usage
    timings: Timings
    matched: str | int | None = None      # the stop string or token that ended it
    prompt_token_ids: tuple[int, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a stream: whole characters only. The last one carries the finished `completion`."""

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    completion: Completion | None = None
