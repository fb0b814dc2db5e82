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
        int block_weights, block_bytes
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
    int RT_QUERY_ROWS, RT_TILE_SLOTS, RT_SPAN_PAGES
    int32_t rt_attention_width(int32_t head_dim)
    size_t rt_attention_bf16_floats(int32_t head_dim, int32_t rows)
    struct rt_block:
        int32_t page, low, high
        const int32_t *positions
    struct rt_query:
        int32_t position
        uint64_t tree
    enum rt_path:
        RT_PATH_BF16
        RT_PATHS
    ctypedef void rt_linear_kernel(const uint8_t *, int, int, int, const uint8_t *, size_t, int, float *, size_t) noexcept nogil
    struct rt_attention_args:
        const float *q
        const rt_query *queries
        const uint8_t *k
        const uint8_t *v
        const rt_block *blocks
        float *out
        float *max
        float *sum
        size_t q_stride, k_stride, v_stride
        int32_t n_blocks, more, first_block, fresh, tokens, share, head_dim, window
        int k_format, v_format
        float scale, softcap
    int RT_TAPS
    struct rt_conv_args:
        const float *x
        const float *w
        const float *bias
        float *state
        float *out
        size_t x_stride, state_stride, out_stride
        int32_t tokens, channels, taps, activation
    struct rt_scan_args:
        const float *x
        const float *b
        const float *c
        const float *dt
        const float *decay
        float *state
        float *out
        size_t x_stride, rate_stride, out_stride
        int32_t tokens, head_dim, numbers
        float d
    struct rt_scan_block_args:
        const float *x[16]
        const float *b[16]
        const float *c[16]
        const float *mix[16]
        float *out[16]
        float dt[16]
        float decay[16]
        float *state
        int32_t tokens, first, ends, head_dim, numbers
        float d
    struct rt_kernels:
        const char *name
        void (*quantize)(const float *, int, int, const float *, const float *, float, rt_path, uint8_t *) noexcept nogil
        rt_linear_kernel ***linear
        void (**embed)(const uint8_t *, int, int64_t, float, float *) noexcept nogil
        void (*add_scaled)(const float *, const float *, float, int, float *) noexcept nogil
        void (*add_bias)(const float *, const float *, int, float *) noexcept nogil
        void (*norm_add)(const float *, int, const float *, float, float *) noexcept nogil
        void (**gate)(const float *, const float *, int, float *) noexcept nogil
        void (*rope_head)(float *, int, const float *, float, const float *, const float *, int, int) noexcept nogil
        void (**store_k)(const float *, int, int, uint8_t *) noexcept nogil
        void (**store_v)(const float *, int, int, uint8_t *) noexcept nogil
        void (*attention)(const rt_attention_args *) noexcept nogil
        void (*attention_tile)(const rt_attention_args *, float *) noexcept nogil
        void (*attention_bf16)(const rt_attention_args *, float *) noexcept nogil
        void (*attention_join)(int, int, const float *, const float *, const float *, float *, float *, float *) noexcept nogil
        void (*attention_end)(int, int, const float *, float *) noexcept nogil
        void (*conv)(const rt_conv_args *) noexcept nogil
        void (*scan)(const rt_scan_args *) noexcept nogil
        void (*scan_mix)(const float *, const float *const *, int, int, float *) noexcept nogil
        void (*scan_block)(const rt_scan_block_args *) noexcept nogil
        void (*gated_norm)(const float *, const float *, int, const float *, float, int, float *) noexcept nogil
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


cdef Py_ssize_t page_bytes(int format, int head_dim) except -1:
    """Bytes of a page's K or V of one head."""
    need(head_dim % rt_format_table[format].block_weights == 0, f"a head of {head_dim} is not whole blocks")
    return head_dim // rt_format_table[format].block_weights * 16 * rt_format_table[format].block_bytes


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

    def quantize(self, const float[::1] x, int norm_kind=0, norm=None, norm_bias=None, float eps=0.0, int path=0):
        cdef int k = <int> x.shape[0]
        need(0 <= path < RT_PATHS, f"there is no path {path}")
        cdef uint8_t[::1] act = aligned(rt_act_bytes(k), np.uint8)
        self.table.quantize(floats(x, k, "x"), k, norm_kind, floats(norm, k, "norm"), floats(norm_bias, k, "norm_bias"), eps,
                            <rt_path> path, &act[0])
        return np.asarray(act)

    def linear(self, int format, const uint8_t[::1] packed, int k, int first, int last, const uint8_t[:, ::1] acts, out=None,
               int path=0):
        cdef rt_linear_kernel *kernel = NULL
        cdef int m = <int> acts.shape[0]
        need(0 <= path < RT_PATHS, f"there is no path {path}")
        if 0 <= format < RT_FORMATS:
            kernel = self.table.linear[path][format]
        need(kernel != NULL, f"no linear kernel for format {format}")
        need(m > 0 and k > 0 and 0 <= first < last, f"groups {first} to {last} of k {k} for {m} tokens")
        cdef size_t group = rt_group_bytes(<rt_format> format, k)
        need(group > 0 and <size_t> packed.shape[0] >= last * group, "packed is too short")
        need(<size_t> acts.shape[1] >= rt_act_bytes(k), "acts are too short")
        if out is None:
            out = aligned((m, 16 * (last - first)))
        cdef float[:, ::1] y = out
        need(y.shape[0] >= m and y.shape[1] >= 16 * (last - first), "out is too small")
        with nogil:
            kernel(&packed[0], k, first, last, &acts[0, 0], acts.shape[1], m, &y[0, 0], y.shape[1])
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
        need(page.shape[0] >= page_bytes(format, n), "page is too short")
        if part == "k":
            self.table.store_k[format](&x[0], n, slot, &page[0])
        else:
            self.table.store_v[format](&x[0], n, slot, &page[0])

    def attention(self, const float[:, :, ::1] q, const uint8_t[:, ::1] k, const uint8_t[:, ::1] v,
                  const int32_t[:, ::1] stored, const int32_t[::1] positions, float scale, int window=0, float softcap=0.0,
                  int k_format=1, int v_format=1, const uint64_t[::1] trees=None, int fresh=0, int first_block=0, bint tile=False,
                  int path=0):
        """Partial results (out [tokens][share][width], max [tokens][share], sum [tokens][share][16]) of q
        [tokens][share][head_dim] over blocks k, v [blocks][bytes] with positions stored [blocks][16]; tile: all at once.
        v None: k holds latent rows. path: as the tokens' products round."""
        cdef int tokens = <int> q.shape[0], share = <int> q.shape[1], head_dim = <int> q.shape[2], blocks = <int> k.shape[0]
        cdef int width = rt_attention_width(head_dim), b, i
        need(self.has_cache_format(k_format) and self.has_cache_format(v_format), f"no cache in {k_format}, {v_format}")
        need(blocks > 0 and stored.shape[0] == blocks and stored.shape[1] == 16, "blocks differ")
        need(v is None or v.shape[0] == blocks, "blocks differ")
        need(tokens > 0 and share > 0 and positions.shape[0] == tokens, "queries differ")
        need(trees is None or trees.shape[0] == tokens, "queries differ")
        need(not tile or tokens * share <= RT_QUERY_ROWS, f"{tokens * share} query rows; a tile has at most {RT_QUERY_ROWS}")
        need(k.shape[1] >= page_bytes(k_format, head_dim), "k is too short")
        need(v is None or v.shape[1] >= page_bytes(v_format, head_dim), "v is too short")
        cdef float[:, :, ::1] out = aligned((tokens, share, width)), total = aligned((tokens, share, 16))
        cdef float[:, ::1] most = aligned((tokens, share))
        need(0 <= path < RT_PATHS, f"there is no path {path}")
        need(path != RT_PATH_BF16 or (v is not None and blocks <= RT_SPAN_PAGES and first_block % 2 == 0),
             f"{blocks} blocks from {first_block} on, path {path}; bf16 takes up to {RT_SPAN_PAGES}, from an even one on")
        cdef float[::1] scratch = aligned(max(<size_t> RT_TILE_SLOTS * (head_dim + width),
                                              rt_attention_bf16_floats(head_dim, tokens * share)))
        cdef rt_attention_args args
        cdef rt_block *table = <rt_block *> malloc(blocks * sizeof(rt_block))
        cdef rt_query *queries = <rt_query *> malloc(tokens * sizeof(rt_query))
        try:
            if table == NULL or queries == NULL:
                raise MemoryError
            for b in range(blocks):
                held = [p for p in stored[b] if p >= 0]
                table[b].page, table[b].positions = b, &stored[b, 0]
                table[b].low, table[b].high = min(held, default=2**31 - 1), max(held, default=-1)
            for i in range(tokens):
                queries[i].position, queries[i].tree = positions[i], 0 if trees is None else trees[i]
            args.k, args.v, args.blocks, args.n_blocks = &k[0, 0], NULL, table, blocks
            args.more, args.first_block = 0, first_block
            args.q_stride, args.k_stride, args.v_stride = share * head_dim, k.shape[1], 0
            if v is not None:
                args.v, args.v_stride = &v[0, 0], v.shape[1]
            args.fresh, args.share, args.head_dim, args.window = fresh, share, head_dim, window
            args.k_format, args.v_format, args.scale, args.softcap = k_format, v_format, scale, softcap
            for i in range(1 if tile else tokens):
                args.q, args.queries, args.tokens = &q[i, 0, 0], queries + i, tokens if tile else 1
                args.out, args.max, args.sum = &out[i, 0, 0], &most[i, 0], &total[i, 0, 0]
                if path == RT_PATH_BF16:
                    self.table.attention_bf16(&args, &scratch[0])
                elif tile or v is None:
                    self.table.attention_tile(&args, &scratch[0])
                else:
                    self.table.attention(&args)
        finally:
            free(table)
            free(queries)
        return np.asarray(out), np.asarray(most), np.asarray(total)

    def attention_join(self, parts, int head_dim, sinks=None):
        """out [tokens][share][head_dim] of partial results in order; sinks [share] or None."""
        cdef float[:, :, ::1] out, sum
        cdef float[:, ::1] most
        tokens, share = parts[0][1].shape
        cdef int rows = tokens * share
        cdef float[::1] joined = aligned(rows * head_dim), total = aligned(rows * 16)
        cdef float[::1] top = np.full(rows, np.finfo(np.float32).min, np.float32)
        if sinks is not None:
            top = np.tile(np.asarray(sinks, np.float32), tokens)
            total[::16] = 1
        for out, most, sum in parts:
            need(out.shape[0] == tokens and out.shape[1] == share, "partials differ")
            need(out.shape[2] == rt_attention_width(head_dim), "partials differ")
            self.table.attention_join(rows, head_dim, &out[0, 0, 0], &most[0, 0], &sum[0, 0, 0], &top[0], &total[0], &joined[0])
        self.table.attention_end(rows, head_dim, &total[0], &joined[0])
        return np.asarray(joined).reshape(tokens, share, head_dim)

    def conv(self, const float[:, ::1] x, const float[:, ::1] w, const float[::1] bias, state, int activation):
        """(out [tokens][channels], the state after them) of x [tokens][channels], w [channels][taps], state [taps - 1][channels]."""
        cdef int tokens = <int> x.shape[0], channels = <int> x.shape[1], taps = <int> w.shape[1]
        cdef float[:, ::1] after = np.array(state, np.float32), out = aligned((tokens, channels))
        need(tokens > 0 and channels > 0 and w.shape[0] == channels and 2 <= taps <= RT_TAPS, f"{taps} taps of {channels} channels")
        need(after.shape[0] == taps - 1 and after.shape[1] == channels, "the state is of another shape")
        cdef rt_conv_args args = rt_conv_args(&x[0, 0], &w[0, 0], floats(bias, channels, "bias"), &after[0, 0], &out[0, 0], channels,
                                              channels, channels, tokens, channels, taps, activation)
        self.table.conv(&args)
        return np.asarray(out), np.asarray(after)

    def scan(self, const float[:, ::1] xbc, const float[::1] dt, const float[::1] decay, float d, state):
        """(out [tokens][head_dim], the state after them) of xbc [tokens][head_dim + 2 numbers], state [numbers][head_dim]."""
        cdef float[:, ::1] after = np.array(state, np.float32)
        cdef int tokens = <int> xbc.shape[0], numbers = <int> after.shape[0], head_dim = <int> after.shape[1]
        need(tokens > 0 and numbers > 0 and head_dim > 0 and xbc.shape[1] == head_dim + 2 * numbers, "xbc is of another shape")
        cdef float[:, ::1] out = aligned((tokens, head_dim))
        cdef rt_scan_args args = rt_scan_args(&xbc[0, 0], &xbc[0, head_dim], &xbc[0, head_dim + numbers], floats(dt, tokens, "dt"),
                                              floats(decay, tokens, "decay"), &after[0, 0], &out[0, 0], xbc.shape[1], 1, head_dim,
                                              tokens, head_dim, numbers, d)
        self.table.scan(&args)
        return np.asarray(out), np.asarray(after)

    def scan_block(self, const float[:, ::1] xbc, const float[::1] dt, const float[::1] decay, float d, state, int first, bint ends):
        """(out [tokens - first][head_dim], the state after them or, without `ends`, before) of up to 16 tokens as `scan` has them."""
        cdef float[:, ::1] after = np.array(state, np.float32)
        cdef int tokens = <int> xbc.shape[0], numbers = <int> after.shape[0], head_dim = <int> after.shape[1], i
        need(0 < tokens <= 16 and 0 <= first <= tokens and numbers > 0 and head_dim > 0, f"{tokens} tokens, the first {first}")
        need(xbc.shape[1] == head_dim + 2 * numbers, "xbc is of another shape")
        need(dt.shape[0] == tokens and decay.shape[0] == tokens, "dt or decay is of another shape")
        cdef float[:, ::1] out = aligned((tokens, head_dim)), mix = aligned((tokens, 16))
        cdef rt_scan_block_args args
        args.state, args.tokens, args.first, args.ends = &after[0, 0], tokens, first, ends
        args.head_dim, args.numbers, args.d = head_dim, numbers, d
        for i in range(tokens):
            args.x[i], args.b[i], args.c[i] = &xbc[i, 0], &xbc[i, head_dim], &xbc[i, head_dim + numbers]
            args.dt[i], args.decay[i], args.mix[i], args.out[i] = dt[i], decay[i], &mix[i, 0], &out[i, 0]
            self.table.scan_mix(args.c[i], args.b, i + 1, numbers, &mix[i, 0])
        self.table.scan_block(&args)
        return np.asarray(out)[first:], np.asarray(after)

    def gated_norm(self, const float[::1] x, const float[::1] gate, const float[::1] norm, float eps, bint gate_last):
        cdef int n = <int> x.shape[0]
        cdef float[::1] out = aligned(n)
        self.table.gated_norm(floats(x, n, "x"), floats(gate, n, "gate"), n, floats(norm, n, "norm"), eps, gate_last, &out[0])
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
