# cython: boundscheck=False, wraparound=False
"""Every kernel of every instruction set on numpy arrays: doors for tests and benchmarks."""
from typing import NamedTuple

import numpy as np

from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc

from ..errors import FieldInvalid


cdef extern from "quant/formats.h" nogil:
    int RT_FORMATS
    ctypedef enum rt_format:
        pass
    ctypedef struct rt_format_info:
        int block_bytes
    const rt_format_info rt_format_table[]

cdef extern from "load/pack.h" nogil:
    size_t rt_group_bytes(rt_format format, uint64_t k)

cdef extern from "base/cpu.h" nogil:
    int RT_MISSING_BYTES
    int32_t rt_isa_count()
    const char *rt_isa_name(int32_t isa)
    const char *rt_isa_missing(int32_t isa, char *missing)

cdef extern from "isa/kernels.h" nogil:
    size_t rt_act_bytes(int k)
    struct rt_attention_args:
        const float *q
        float *out
        const uint8_t *const *k
        const uint8_t *const *v
        const int32_t *const *positions
        int32_t blocks, share, head_dim, position, window
        float scale, softcap
    struct rt_kernels:
        const char *name
        void (*quantize)(const float *, int, int, const float *, const float *, float, uint8_t *) noexcept nogil
        void (**linear)(const uint8_t *, int, int, int, const uint8_t *, size_t, int, float *, size_t) noexcept nogil
        void (**embed)(const uint8_t *, int, int64_t, float, float *) noexcept nogil
        void (*add_scaled)(const float *, const float *, float, int, float *) noexcept nogil
        void (*add_bias)(const float *, const float *, int, float *) noexcept nogil
        void (*norm_add)(const float *, int, const float *, float, float *) noexcept nogil
        void (**gate)(const float *, const float *, int, float *) noexcept nogil
        void (*rope_head)(float *, int, const float *, float, const float *, const float *, int, int) noexcept nogil
        void (**store_k)(const float *, int, int, uint8_t *) noexcept nogil
        void (**store_v)(const float *, int, int, uint8_t *) noexcept nogil
        void (*attention)(const rt_attention_args *, int, int, float *, float *) noexcept nogil
        void (*attention_combine)(int, int, int, const float *, const float *, const float *, const float *,
                                  float *) noexcept nogil
        void (*scale_cap)(float *, int, float, float) noexcept nogil
        int (*argmax)(const float *, int, float *, int *) noexcept nogil
        double (*exp_sum)(const float *, int, float) noexcept nogil

cdef extern from "rt.h" nogil:
    const rt_kernels *rt_isa_kernels(int32_t isa)


class IsaInfo(NamedTuple):
    name: str
    missing: str


def isas():
    cdef char missing[256]
    return tuple(IsaInfo(rt_isa_name(i).decode(), rt_isa_missing(i, missing).decode()) for i in range(rt_isa_count()))


def act_bytes(int k):
    return rt_act_bytes(k)


cdef int need(bint holds, str what) except -1:
    if not holds:
        raise FieldInvalid(f"{what}; give arrays of the shapes the kernel states")
    return 0


cdef const float *floats(const float[::1] values, Py_ssize_t n, str name) except? NULL:
    if values is None:
        return NULL
    need(values.shape[0] >= n and n > 0, f"{name} has {values.shape[0]} values, not {n}")
    return &values[0]


def aligned(shape, dtype=np.float32):
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + 64, np.uint8)
    at = -raw.ctypes.data % 64
    return raw[at:at + size].view(dtype).reshape(shape)


cdef class Kernels:
    cdef const rt_kernels *table

    def __init__(self, which):
        """`which`: a set's name in isas(), or the address of a struct rt_kernels."""
        if isinstance(which, str):
            names = [i.name for i in isas()]
            need(which in names, f"instruction set '{which}' is none of {', '.join(names)}")
            self.table = rt_isa_kernels(names.index(which))
        else:
            self.table = <const rt_kernels *> <uintptr_t> which
        need(self.table != NULL, f"this build has no kernels for {which}")

    @property
    def name(self):
        return self.table.name.decode()

    def has_cache_format(self, int format):
        return 0 <= format < RT_FORMATS and self.table.store_k[format] != NULL and self.table.store_v[format] != NULL

    def quantize(self, const float[::1] x, int norm_kind=0, norm=None, norm_bias=None, float eps=0.0):
        cdef int k = <int> x.shape[0]
        cdef uint8_t[::1] act = aligned(rt_act_bytes(k), np.uint8)
        self.table.quantize(floats(x, k, "x"), k, norm_kind, floats(norm, k, "norm"), floats(norm_bias, k, "norm_bias"), eps,
                            &act[0])
        return np.asarray(act)

    def linear(self, int format, const uint8_t[::1] packed, int k, int first, int last, const uint8_t[:, ::1] acts, out=None):
        cdef int m = <int> acts.shape[0]
        need(0 <= format < RT_FORMATS and self.table.linear[format] != NULL, f"no linear kernel for format {format}")
        need(m > 0 and k > 0 and 0 <= first < last, f"groups {first} to {last} of k {k} for {m} tokens")
        cdef size_t group = rt_group_bytes(<rt_format> format, k)
        need(group > 0 and <size_t> packed.shape[0] >= last * group, "packed is too short")
        need(<size_t> acts.shape[1] >= rt_act_bytes(k), "acts are too short")
        if out is None:
            out = aligned((m, 16 * (last - first)))
        cdef float[:, ::1] y = out
        need(y.shape[0] >= m and y.shape[1] >= 16 * (last - first), "out is too small")
        with nogil:
            self.table.linear[format](&packed[0], k, first, last, &acts[0, 0], acts.shape[1], m, &y[0, 0], y.shape[1])
        return out

    def embed(self, int format, const uint8_t[::1] packed, int k, int64_t row, float scale=1.0):
        cdef float[::1] out = aligned(k)
        need(0 <= format < RT_FORMATS and k > 0 and row >= 0, f"row {row} of k {k} in format {format}")
        cdef int64_t group = <int64_t> rt_group_bytes(<rt_format> format, k)
        need(group > 0 and packed.shape[0] >= (row // 16 + 1) * group, "packed is too short")
        self.table.embed[format](&packed[0], k, row, scale, &out[0])
        return np.asarray(out)

    def add_scaled(self, const float[::1] x, const float[::1] bias, float scale, const float[::1] y):
        cdef int n = <int> y.shape[0]
        cdef float[::1] out = np.array(y)
        self.table.add_scaled(floats(x, n, "x"), floats(bias, n, "bias"), scale, n, &out[0])
        return np.asarray(out)

    def add_bias(self, const float[::1] x, const float[::1] bias):
        cdef int n = <int> x.shape[0]
        cdef float[::1] out = aligned(n)
        self.table.add_bias(floats(x, n, "x"), floats(bias, n, "bias"), n, &out[0])
        return np.asarray(out)

    def norm_add(self, const float[::1] x, const float[::1] norm, float eps, const float[::1] y):
        cdef int n = <int> y.shape[0]
        cdef float[::1] out = np.array(y)
        self.table.norm_add(floats(x, n, "x"), n, floats(norm, n, "norm"), eps, &out[0])
        return np.asarray(out)

    def gate(self, int activation, const float[::1] gate, const float[::1] up):
        cdef int n = <int> gate.shape[0]
        cdef float[::1] out = aligned(n)
        need(0 <= activation < 3, f"activation {activation} is none of 0 to 2")
        self.table.gate[activation](floats(gate, n, "gate"), floats(up, n, "up"), n, &out[0])
        return np.asarray(out)

    def rope_head(self, const float[::1] x, const float[::1] norm, float eps, const float[::1] cos, const float[::1] sin,
                  bint interleaved):
        cdef int n = <int> x.shape[0], pairs = 0 if cos is None else <int> cos.shape[0]
        cdef float[::1] out = np.array(x)
        need(n > 0 and 2 * pairs <= n, f"{pairs} pairs in a head of {n}")
        self.table.rope_head(&out[0], n, floats(norm, n, "norm"), eps, floats(cos, pairs, "cos") if pairs else NULL,
                             floats(sin, pairs, "sin") if pairs else NULL, pairs, interleaved)
        return np.asarray(out)

    def store(self, str part, int format, const float[::1] x, int slot, uint8_t[::1] page):
        cdef int n = <int> x.shape[0]
        need(self.has_cache_format(format), f"no cache in format {format}")
        need(n > 0 and 0 <= slot < 16, f"slot {slot} of a head of {n}")
        need(page.shape[0] >= n * 16 * rt_format_table[format].block_bytes, "page is too short")
        if part == "k":
            self.table.store_k[format](&x[0], n, slot, &page[0])
        else:
            self.table.store_v[format](&x[0], n, slot, &page[0])

    def attention(self, const float[:, ::1] q, const uint8_t[:, ::1] k, const uint8_t[:, ::1] v, const int32_t[:, ::1] positions,
                  int position, float scale, int window=0, float softcap=0.0, int k_format=1, int v_format=1):
        cdef int blocks = <int> k.shape[0], share = <int> q.shape[0], head_dim = <int> q.shape[1], b
        need(self.has_cache_format(k_format) and self.has_cache_format(v_format), f"no cache in {k_format}, {v_format}")
        need(blocks > 0 and v.shape[0] == blocks and positions.shape[0] == blocks and positions.shape[1] == 16, "blocks differ")
        need(k.shape[1] >= head_dim * 16 * rt_format_table[k_format].block_bytes, "k is too short")
        need(v.shape[1] >= head_dim * 16 * rt_format_table[v_format].block_bytes, "v is too short")
        cdef float[:, ::1] out = aligned((share, head_dim))
        cdef float[::1] most = aligned(share), total = aligned(share)
        cdef rt_attention_args args
        cdef const void **lists = <const void **> malloc(3 * blocks * sizeof(void *))
        if lists == NULL:
            raise MemoryError
        for b in range(blocks):
            lists[b] = &k[b, 0]
            lists[blocks + b] = &v[b, 0]
            lists[2 * blocks + b] = &positions[b, 0]
        args.q, args.out, args.k = &q[0, 0], &out[0, 0], <const uint8_t *const *> lists
        args.v, args.positions = <const uint8_t *const *> (lists + blocks), <const int32_t *const *> (lists + 2 * blocks)
        args.blocks, args.share, args.head_dim, args.position, args.window = blocks, share, head_dim, position, window
        args.scale, args.softcap = scale, softcap
        self.table.attention(&args, k_format, v_format, &most[0], &total[0])
        free(lists)
        return np.asarray(out), np.asarray(most), np.asarray(total)

    def attention_combine(self, const float[:, :, ::1] partial, const float[:, ::1] most, const float[:, ::1] total, sinks=None):
        cdef int n = <int> partial.shape[0], share = <int> partial.shape[1], head_dim = <int> partial.shape[2]
        cdef float[:, ::1] out = aligned((share, head_dim))
        need(n > 0 and most.shape[0] == n and total.shape[0] == n and most.shape[1] == share and total.shape[1] == share,
             "partials differ")
        self.table.attention_combine(n, share, head_dim, &partial[0, 0, 0], &most[0, 0], &total[0, 0],
                                     floats(sinks, share, "sinks"), &out[0, 0])
        return np.asarray(out)

    def scale_cap(self, const float[::1] x, float scale, float softcap):
        cdef float[::1] out = np.array(x)
        self.table.scale_cap(&out[0], <int> out.shape[0], scale, softcap)
        return np.asarray(out)

    def argmax(self, const float[::1] x):
        cdef float largest = 0
        cdef int finite = 0
        cdef int at = self.table.argmax(floats(x, 1, "x"), <int> x.shape[0], &largest, &finite)
        return at, largest, bool(finite)

    def exp_sum(self, const float[::1] x, float largest):
        return self.table.exp_sum(floats(x, 1, "x"), <int> x.shape[0], largest)
