# cython: boundscheck=False, wraparound=False
"""csrc/exec as Python sees it: a thin mirror of csrc/rt.h. What a plan means stands in backends/native.py."""
import numpy as np

from ..errors import EngineFailed, FieldInvalid
from ..types import SAMPLED, SAMPLING

cimport cython
cimport numpy as cnp
from libc.stdint cimport INT32_MAX, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from .rt cimport *
from .status cimport RT_OK, check, rt_status

cnp.import_array()

assert sizeof(rt_sampling) == SAMPLING.itemsize and sizeof(rt_sampled) == SAMPLED.itemsize


# ---- tables ----

def ops():
    cdef int i, n = RT_OPS
    return tuple([(rt_op_table[i].name.decode(), rt_op_table[i].fields.decode()) for i in range(n)])


def isas():
    cdef char missing[RT_MISSING_BYTES]
    return tuple([(rt_isa_name(i).decode(), rt_isa_missing(i, missing).decode()) for i in range(rt_isa_count())])


def best_isa():
    return rt_isa_name(rt_cpu_best_isa()).decode()


# ---- arrays ----

cdef object refused(object array, object dtype, str what, object shape):
    have = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
    return FieldInvalid(f"batch: {what} is {have}; it must be a contiguous array, {dtype} {shape}", field=what)


cdef int32_t length(object array, str what) except -1:
    """Of the first axis."""
    if not cnp.PyArray_Check(array) or cnp.PyArray_NDIM(array) < 1 or cnp.PyArray_DIM(array, 0) > INT32_MAX:
        raise refused(array, "array", what, "of one axis or more")
    return <int32_t> cnp.PyArray_DIM(array, 0)


cdef void *numbers(object array, int kind, Py_ssize_t n, str what) except? NULL:
    """The data of a contiguous array of n numbers; [] gives NULL or an address nobody reads."""
    if not cnp.PyArray_Check(array) or cnp.PyArray_TYPE(array) != kind or not cnp.PyArray_ISCARRAY_RO(array) \
            or cnp.PyArray_SIZE(array) != n:
        raise refused(array, cnp.PyArray_DescrFromType(kind), what, f"of {n}")
    return cnp.PyArray_DATA(array)


cdef void *records(object array, object dtype, Py_ssize_t n, str what) except? NULL:
    if not cnp.PyArray_Check(array) or (array.dtype is not dtype and array.dtype != dtype) \
            or not cnp.PyArray_ISCARRAY_RO(array) or cnp.PyArray_SIZE(array) != n:
        raise refused(array, dtype, what, f"of {n}")
    return cnp.PyArray_DATA(array)


# ---- memory that numpy looks at ----

cdef class _Handle:
    """Owns the C engine. Views hold it, so memory is freed when the engine is closed and the last of them is gone."""
    cdef rt_engine *engine

    def __dealloc__(self):
        rt_engine_free(self.engine)


@cython.final
cdef class _View:
    cdef _Handle owner
    cdef uint8_t *bytes
    cdef Py_ssize_t size

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        buffer.buf = self.bytes
        buffer.obj = self
        buffer.len = self.size
        buffer.readonly = 0
        buffer.itemsize = 1
        buffer.format = b"B"
        buffer.ndim = 1
        buffer.shape = &self.size
        buffer.strides = &buffer.itemsize
        buffer.suboffsets = NULL
        buffer.internal = NULL

    def __releasebuffer__(self, Py_buffer *buffer):
        pass


cdef view_of(_Handle owner, const void *bytes, Py_ssize_t size):
    cdef _View view = _View.__new__(_View)
    view.owner = owner
    view.bytes = <uint8_t *> bytes
    view.size = size
    return np.frombuffer(view, np.uint8)


cdef class _Table:
    """A C array for the length of a call."""
    cdef void *at

    def __cinit__(self, size_t n, size_t size):
        self.at = calloc(n + 1, size)
        if self.at == NULL:
            raise MemoryError(f"no memory for a table of {n}")

    def __dealloc__(self):
        free(self.at)


# ---- the engine ----

cdef class Engine:
    cdef _Handle handle
    cdef tuple weights
    cdef _Table tables, widths
    cdef int32_t n_ops, n_groups, vocab, width
    cdef bint busy
    cdef rt_limits limits
    cdef object slot_widths

    def __init__(self, const uint32_t[:, ::1] ops, const int32_t[:, ::1] slots, weights, const int32_t[:, ::1] groups, ropes,
                 int32_t vocab, int32_t width, *, int32_t max_tokens, int32_t max_rows, int32_t max_seqs, int32_t histories,
                 int32_t threads, int32_t isa, int32_t pool, int32_t prompt_path, int32_t generated_path):
        cdef rt_plan plan
        cdef rt_status st
        cdef _Table c_weights = _Table(len(weights), sizeof(rt_weight)), c_ropes = _Table(len(ropes), sizeof(rt_rope))
        cdef rt_engine *engine = NULL
        if ops.shape[1] * 4 != sizeof(rt_op) or slots.shape[1] * 4 != sizeof(rt_slot) or groups.shape[1] * 4 != sizeof(rt_group):
            raise FieldInvalid("plan: its tables are not shaped as csrc/rt.h says")
        self.fill_weights(<rt_weight *> c_weights.at, tuple(weights))
        held = self.fill_ropes(<rt_rope *> c_ropes.at, ropes)
        plan.n_ops, plan.n_slots, plan.n_groups = ops.shape[0], slots.shape[0], groups.shape[0]
        plan.n_weights, plan.n_ropes = len(weights), len(ropes)
        plan.ops, plan.slots, plan.groups = NULL, NULL, NULL
        if plan.n_ops:
            plan.ops = <const rt_op *> &ops[0, 0]
        if plan.n_slots:
            plan.slots = <const rt_slot *> &slots[0, 0]
        if plan.n_groups:
            plan.groups = <const rt_group *> &groups[0, 0]
        plan.weights, plan.ropes = <const rt_weight *> c_weights.at, <const rt_rope *> c_ropes.at
        plan.vocab, plan.width = vocab, width
        self.limits = rt_limits(max_tokens, max_rows, max_seqs, histories, threads, isa, pool, prompt_path, generated_path)
        st.code = RT_OK
        with nogil:
            rt_engine_new(&plan, &self.limits, &engine, &st)
        check(&st)
        del held
        self.handle = _Handle.__new__(_Handle)
        self.handle.engine = engine
        self.n_ops, self.n_groups, self.vocab, self.width = plan.n_ops, plan.n_groups, vocab, width
        self.tables, self.widths = _Table(plan.n_groups, sizeof(void *)), _Table(plan.n_groups, sizeof(int32_t))
        self.slot_widths = [(slots[i, 0], slots[i, 1]) for i in range(slots.shape[0])]

    cdef fill_weights(self, rt_weight *to, tuple weights):
        cdef const uint8_t[::1] given
        self.weights = weights
        for i, w in enumerate(weights):
            given = w.blocks if w.packed is None else w.packed
            to[<int> i] = rt_weight(w.format, w.rows, w.k, NULL, NULL, given.shape[0])
            if given.shape[0] and w.packed is not None:
                to[<int> i].packed = &given[0]
            elif given.shape[0]:
                to[<int> i].blocks = &given[0]

    cdef list fill_ropes(self, rt_rope *to, ropes):
        cdef const double[::1] frequencies
        held = []
        for i, (values, interleaved, mscale) in enumerate(ropes):
            frequencies = values
            held.append(frequencies)
            to[<int> i] = rt_rope(NULL, frequencies.shape[0], interleaved, mscale)
            if frequencies.shape[0]:
                to[<int> i].inv_freq = &frequencies[0]
        return held

    cdef _Handle opened(self):
        if self.handle is None:
            raise EngineFailed("this engine is closed; open the model again")
        if self.busy:
            raise EngineFailed("this engine is running a step; it takes one caller at a time")
        return self.handle

    cdef int fill_batch(self, rt_batch *b, object batch) except -1:
        cdef const int32_t **tables = <const int32_t **> self.tables.at
        cdef int32_t *widths = <int32_t *> self.widths.at
        cdef int32_t g
        b.n_tokens, b.n_seqs = length(batch.tokens, "tokens"), length(batch.kv_lens, "kv_lens")
        b.n_rows, b.n_bias = length(batch.rows, "rows"), length(batch.bias_ids, "bias_ids")
        b.tokens = <int32_t *> numbers(batch.tokens, cnp.NPY_INT32, b.n_tokens, "tokens")
        b.positions = <int32_t *> numbers(batch.positions, cnp.NPY_INT32, b.n_tokens, "positions")
        b.roles = <uint8_t *> numbers(batch.roles, cnp.NPY_UINT8, b.n_tokens, "roles")
        b.starts = <int32_t *> numbers(batch.starts, cnp.NPY_INT32, <Py_ssize_t> b.n_seqs + 1, "starts")
        b.kv_lens = <int32_t *> numbers(batch.kv_lens, cnp.NPY_INT32, b.n_seqs, "kv_lens")
        b.adapters = <int32_t *> numbers(batch.adapters, cnp.NPY_INT32, b.n_seqs, "adapters")
        b.rows = <int32_t *> numbers(batch.rows, cnp.NPY_INT32, b.n_rows, "rows")
        b.sampling = <rt_sampling *> records(batch.sampling, SAMPLING, b.n_rows, "sampling")
        b.bias_ids = <int32_t *> numbers(batch.bias_ids, cnp.NPY_INT32, b.n_bias, "bias_ids")
        b.bias_values = <float *> numbers(batch.bias_values, cnp.NPY_FLOAT32, b.n_bias, "bias_values")
        if len(batch.tables) != self.n_groups:
            raise FieldInvalid(f"batch: {len(batch.tables)} block tables; the plan has {self.n_groups} cache groups", field="tables")
        for g in range(self.n_groups):
            table = batch.tables[g]
            if length(table, "tables") != b.n_seqs or cnp.PyArray_NDIM(table) != 2 or cnp.PyArray_DIM(table, 1) > INT32_MAX:
                raise refused(table, "int32", "tables", f"[{b.n_seqs}][pages]")
            widths[g] = <int32_t> cnp.PyArray_DIM(table, 1)
            tables[g] = <int32_t *> numbers(table, cnp.NPY_INT32, cnp.PyArray_SIZE(table), "tables")
        b.tables, b.table_widths = tables, widths
        b.masks, b.n_masks, b.embeddings, b.n_embeddings, b.trees = NULL, 0, NULL, 0, NULL
        if batch.masks is not None:
            b.n_masks = length(batch.masks, "masks")
            b.masks = <uint8_t *> numbers(batch.masks, cnp.NPY_UINT8, <Py_ssize_t> b.n_masks * ((self.vocab + 7) // 8), "masks")
        if batch.embeddings is not None:
            b.n_embeddings = length(batch.embeddings, "embeddings")
            b.embeddings = <float *> numbers(batch.embeddings, cnp.NPY_FLOAT32, <Py_ssize_t> b.n_embeddings * self.width,
                                             "embeddings")
        if batch.trees is not None:
            b.trees = <uint64_t *> numbers(batch.trees, cnp.NPY_UINT64, b.n_tokens, "trees")
        return 0

    def run(self, batch, int32_t first, int32_t last):
        cdef rt_batch b
        cdef rt_status st
        cdef _Handle handle = self.opened()
        self.fill_batch(&b, batch)
        st.code = RT_OK
        self.busy = True
        with nogil:
            rt_engine_run(handle.engine, &b, first, last, &st)
        self.busy = False
        check(&st)

    def slot(self, int32_t index):
        cdef _Handle handle = self.opened()
        if not 0 <= index < len(self.slot_widths):
            raise FieldInvalid(f"slot {index} is not one of {len(self.slot_widths)}")
        width, per_row = self.slot_widths[index]
        rows = self.limits.max_rows if per_row else self.limits.max_tokens
        return view_of(handle, rt_engine_slot(handle.engine, index), rows * width * 4).view(np.float32).reshape(rows, width)

    def sampled(self):
        cdef _Handle handle = self.opened()
        return view_of(handle, rt_engine_sampled(handle.engine), self.limits.max_rows * sizeof(rt_sampled)).view(SAMPLED)

    def page(self, int32_t group, int32_t page):
        cdef _Handle handle = self.opened()
        cdef size_t size = 0
        cdef uint8_t *at = rt_engine_page(handle.engine, group, page, &size)
        if at == NULL:
            raise FieldInvalid(f"page {page} of group {group} does not exist")
        return view_of(handle, at, size)

    def clock(self, bint on):
        rt_engine_clock(self.opened().engine, on)

    def times(self):
        cdef _Handle handle = self.opened()
        return view_of(handle, rt_engine_times(handle.engine), (self.n_ops + 1) * sizeof(int64_t)).view(np.int64)

    def weights_read(self):
        cdef _Handle handle = self.opened()
        return view_of(handle, rt_engine_weights_read(handle.engine), self.n_ops * sizeof(int64_t)).view(np.int64)

    def copy_page(self, int32_t group, int32_t source, int32_t target):
        cdef rt_status st
        cdef _Handle handle = self.opened()
        st.code = RT_OK
        with nogil:
            rt_engine_copy_page(handle.engine, group, source, target, &st)
        check(&st)

    def history_reset(self, int32_t history):
        cdef rt_status st
        st.code = RT_OK
        rt_history_reset(self.opened().engine, history, &st)
        check(&st)

    def history_extend(self, int32_t history, const int32_t[::1] tokens, bint generated):
        cdef rt_status st
        st.code = RT_OK
        if tokens.shape[0] > INT32_MAX:
            raise FieldInvalid(f"{tokens.shape[0]} tokens are more than a history takes")
        rt_history_extend(self.opened().engine, history, &tokens[0] if tokens.shape[0] else NULL, <int32_t> tokens.shape[0],
                          generated, &st)
        check(&st)

    def seen(self, int32_t group, int32_t slot):
        cdef _Handle handle = self.opened()
        cdef int32_t layers = 0
        cdef int32_t *at = rt_engine_seen(handle.engine, group, slot, &layers)
        if at == NULL:
            raise FieldInvalid(f"state {slot} of group {group} does not exist")
        return view_of(handle, at, layers * sizeof(int32_t)).view(np.int32)

    def state_truncate(self, int32_t group, int32_t slot, int32_t length, const int32_t[::1] snapshots):
        cdef rt_status st
        cdef int32_t left = 0
        st.code = RT_OK
        rt_state_truncate(self.opened().engine, group, slot, length, &snapshots[0] if snapshots.shape[0] else NULL,
                          <int32_t> snapshots.shape[0], &left, &st)
        check(&st)
        return left

    def history_truncate(self, int32_t history, int32_t length):
        cdef rt_status st
        st.code = RT_OK
        rt_history_truncate(self.opened().engine, history, length, &st)
        check(&st)

    def close(self):
        if self.busy:
            raise EngineFailed("this engine is running a step; close it when the step is done")
        self.handle = self.weights = None
