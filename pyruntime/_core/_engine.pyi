from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..types import Batch
from ..weights import Stored

def ops() -> tuple[tuple[str, str], ...]:
    """The ops of csrc/defs/ops.def in order: name, and the text of its fields."""

def isas() -> tuple[tuple[str, str], ...]:
    """The instruction sets of csrc/defs/isas.def in order: name, and what this machine lacks for it ("" = it can run)."""

def best_isa() -> str:
    """The highest set this machine can run."""

class Engine:
    """One bound plan (csrc/rt.h): everything is proven when it is made, weights and views keep their memory alive.

    ops u32 [n][1 + RT_OP_WORDS], slots i32 [n][width, per_row], groups i32 [n][struct rt_group],
    ropes [(inv_freq f64 [pairs], interleaved, mscale)]. One caller at a time; `run` releases the GIL.
    """

    def __init__(self, ops: NDArray[np.uint32], slots: NDArray[np.int32], weights: Sequence[Stored], groups: NDArray[np.int32],
                 ropes: Sequence[tuple[NDArray[np.float64], bool, float]], vocab: int, width: int, *, max_tokens: int,
                 max_rows: int, max_seqs: int, histories: int, threads: int, isa: int, pool: int, prompt_path: int,
                 generated_path: int) -> None: ...
    def run(self, batch: Batch, first: int, last: int) -> None:
        """Ops [first, last) for the whole batch. FieldInvalid when the batch does not fit the engine."""

    def slot(self, index: int) -> NDArray[np.float32]:
        """[max_tokens or max_rows][width], a view."""

    def sampled(self) -> np.ndarray:
        """SAMPLED [max_rows], a view."""

    def page(self, group: int, page: int) -> NDArray[np.uint8]:
        """One page's bytes, [layer][kv_head][K [head_dim][16] | V [16][head_dim]], a view."""

    def clock(self, on: bool) -> None:
        """Measure ops from here on, or stop; switching on sets every sum to 0."""

    def times(self) -> NDArray[np.int64]:
        """[ops + 1] nanoseconds each op took, summed over runs; the last: checking batches. A view."""

    def weights_read(self) -> NDArray[np.int64]:
        """[ops] bytes of weights each op took from memory, summed over runs. A view."""

    def copy_page(self, group: int, source: int, target: int) -> None: ...
    def seen(self, group: int, slot: int) -> NDArray[np.int32]:
        """Tokens that a state has taken in, [layers], a view."""

    def state_truncate(self, group: int, slot: int, length: int, snapshots: NDArray[np.int32]) -> int: ...
    def history_reset(self, history: int) -> None: ...
    def history_extend(self, history: int, tokens: NDArray[np.int32], generated: bool) -> None: ...
    def history_truncate(self, history: int, length: int) -> None: ...
    def close(self) -> None:
        """Drop the engine and its weights; memory goes with the last view."""
