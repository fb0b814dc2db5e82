"""This machine's limits, measured by csrc/base/limits.h."""
import numpy as np
from numpy.typing import NDArray

def read(data: NDArray[np.uint8]) -> int:
    """Read every byte once, without the GIL, as fast as one thread can; returns the sum of its 64-bit words."""
