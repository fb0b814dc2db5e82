"""What a plan's step must read and multiply: the numerators of every ratio."""
from __future__ import annotations

from dataclasses import dataclass

from ..loading import kv_bytes_per_token
from ..plan import Attention, Conv, EachLinear, Experts, Gated, Linear, LinearAdd, Logits, NormLinear, Op, Plan, Scan
from ..weights import Weights

Kind = tuple[int, int]  # (format, k) of a matrix


def matrices(op: Op) -> tuple[str, ...]:
    """Names of the matrices an op multiplies by."""
    if isinstance(op, NormLinear):
        return tuple(w for w in (op.w0, op.w1, op.w2) if w)
    if isinstance(op, (Gated, Experts)):
        return op.gate, op.up
    return (op.weight,) if isinstance(op, (Linear, LinearAdd, EachLinear, Logits)) else ()


def parts_of(op: Op) -> tuple[int, int]:
    """(m, n): a token meets m of the n equal parts of an op's matrices; of a mixture the experts it chose."""
    return (op.parts, op.of) if isinstance(op, (EachLinear, Experts)) else (1, 1)


def matrix_bytes(op: Op, weights: Weights) -> int:
    """Bytes of its matrices that an op reads for one token."""
    parts, of = parts_of(op)
    return sum(weights[name].nbytes for name in matrices(op)) * parts // of


@dataclass(frozen=True, slots=True)
class Work:
    """One model's: bytes of weights, bytes of K and V a stored token has, operations by kind of matrix."""

    body_bytes: int                  # matrices that a token multiplies by
    head_bytes: int                  # those of LOGITS, for flagged rows
    kv_bytes: int                    # per stored token, all layers
    state_bytes: int                 # per sequence, all layers
    body: dict[Kind, int]            # operations a token: 2 for each weight
    head: dict[Kind, int]            # operations a flagged row

    @classmethod
    def of(cls, plan: Plan, weights: Weights) -> Work:
        """Count a plan's. A matrix that two ops use counts twice: a step reads it twice."""
        size, operations = {True: 0, False: 0}, {True: dict[Kind, int](), False: dict[Kind, int]()}
        for op in plan.ops:
            head = isinstance(op, Logits)
            size[head] += matrix_bytes(op, weights)
            parts, of = parts_of(op)
            for weight in (weights[name] for name in matrices(op)):
                kind = weight.format, weight.k
                operations[head][kind] = operations[head].get(kind, 0) + 2 * weight.rows * weight.k * parts // of
        states = 4 * sum(group.layers * group.width for group in plan.groups if group.kind == "state")
        return cls(size[False], size[True], kv_bytes_per_token(plan), states, operations[False], operations[True])

    @property
    def weight_bytes(self) -> int:
        """Read by every step that makes a token."""
        return self.body_bytes + self.head_bytes

    def step_bytes(self, stored: float, sequences: int = 1) -> int:
        """A step of one token for each of `sequences` that hold `stored` tokens each."""
        return self.weight_bytes + int(sequences * stored * self.kv_bytes) + sequences * self.state_bytes

    def prompt_bytes(self, tokens: int, chunk: int) -> int:
        """A prompt: the weights and the states once a chunk, the head once, and K and V once a chunk as far as they are stored."""
        steps = -(-tokens // chunk)
        stored = sum(min(tokens, (i + 1) * chunk) for i in range(steps))
        return steps * (self.body_bytes + self.state_bytes) + self.head_bytes + stored * self.kv_bytes

    def operations(self, tokens: int, rows: int) -> dict[Kind, int]:
        """By kind of matrix: `tokens` through the body, `rows` through the head."""
        out = {kind: tokens * count for kind, count in self.body.items()}
        for kind, count in self.head.items():
            out[kind] = out.get(kind, 0) + rows * count
        return {kind: count for kind, count in out.items() if count}


def op_bytes(op: Op, plan: Plan, weights: Weights, stored: int) -> int:
    """Bytes an op must read when its sequence holds `stored` tokens: its matrices; ATTENTION its layer's K and V; CONV and SCAN
    their layer's state."""
    if isinstance(op, Attention):
        layers = sum(group.layers for group in plan.groups if group.kind != "state")
        return stored * kv_bytes_per_token(plan) // layers
    if isinstance(op, (Conv, Scan)):
        return 4 * plan.groups[plan.group(op.group)].width
    return matrix_bytes(op, weights)


def op_operations(op: Op, weights: Weights, tokens: int, rows: int, stored: int, head_dim: int) -> int:
    """Multiplications and additions of an op: two a weight; ATTENTION four a head's element and pair of tokens that meet; SCAN
    five a number of its state, and three an element."""
    if isinstance(op, Attention):
        met = sum(stored - tokens + 1 + t for t in range(tokens))
        return 4 * op.heads * head_dim * met
    if isinstance(op, Scan):
        return tokens * op.heads * head_dim * (5 * op.numbers + 3)
    if isinstance(op, Conv):
        return 2 * tokens * weights[op.weight].rows
    times = rows if isinstance(op, Logits) else tokens
    parts, of = parts_of(op)
    return 2 * times * sum(weights[name].rows * weights[name].k for name in matrices(op)) * parts // of
