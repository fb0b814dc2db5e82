"""This machine's limits, measured by csrc/base/limits.h."""
import numpy as np

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint64_t


cdef extern from "base/limits.h" nogil:
    uint64_t rt_limit_read(const uint8_t *bytes, size_t n)


def read(const uint8_t[::1] data not None):
    cdef uint64_t total
    cdef size_t n = <size_t> data.shape[0]
    if n == 0:
        return 0
    with nogil:
        total = rt_limit_read(&data[0], n)
    return total


def read_all(parts, int passes):
    cdef const size_t[::1] starts = np.array([part.ctypes.data for part in parts], np.uintp)
    cdef const size_t[::1] sizes = np.array([part.nbytes for part in parts], np.uintp)
    cdef uint64_t total = 0
    cdef Py_ssize_t i
    with nogil:
        for _ in range(passes):
            for i in range(sizes.shape[0]):
                total += rt_limit_read(<const uint8_t *> starts[i], sizes[i])
    return total
