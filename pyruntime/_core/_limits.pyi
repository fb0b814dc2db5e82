"""This machine's limits, measured by csrc/base/limits.h."""
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

def read(data: NDArray[np.uint8]) -> int:
    """Read every byte once, without the GIL, as fast as one thread can; returns the sum of its 64-bit words."""

def read_all(parts: Sequence[NDArray[np.uint8]], passes: int) -> int:
    """Read every part front to back, all of them `passes` times, in one call without the GIL; returns the sum. Contiguous only."""
