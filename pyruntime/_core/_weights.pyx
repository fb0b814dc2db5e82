# cython: boundscheck=False, wraparound=False
"""Model files and the R16 layout, as numpy sees them: a thin mirror of csrc/load and csrc/quant."""
import os
from typing import NamedTuple

import numpy as np

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from ..errors import FieldInvalid, ModelNotFound
from ..texts import Texts

from .load cimport *
from .status cimport RT_OK, check, rt_status


class FormatInfo(NamedTuple):
    name: str
    ggml_type: int
    block_weights: int
    block_bytes: int
    tile_k: int
    packed_bytes: int
    form: str
    sub: int
    bits: int
    offset: int


class TensorInfo(NamedTuple):
    name: str
    shape: tuple
    format: str
    offset: int
    nbytes: int


# ---- formats and packing ----

cdef info(const rt_format_info *f):
    return FormatInfo(f.name.decode(), f.ggml_type, f.block_weights, f.block_bytes, f.tile_k, f.packed_bytes,
                      ("float", "scale", "least")[f.form], f.sub, f.bits, f.offset)


def formats():
    cdef int i, n = RT_FORMATS
    return tuple([info(&rt_format_table[i]) for i in range(n)])


cdef rt_format format_at(int index) except *:
    if not 0 <= index < RT_FORMATS:
        raise FieldInvalid(f"weight format {index} is not one of 0 to {RT_FORMATS - 1}")
    return <rt_format> index


cdef size_t sized(size_t have, size_t need, str what) except *:
    if need == 0 or have != need:
        raise FieldInvalid(f"{what} has {have} bytes, its shape and format take {need}")
    return need


def file_bytes(int format, uint64_t rows, uint64_t k):
    return rt_file_bytes(format_at(format), rows, k)


def packed_bytes(int format, uint64_t rows, uint64_t k):
    return rt_packed_bytes(format_at(format), rows, k)


def pack(int format, uint64_t rows, uint64_t k, const uint8_t[::1] blocks, uint8_t[::1] out, int threads=0):
    cdef rt_format f = format_at(format)
    cdef rt_status st
    st.code = RT_OK
    sized(blocks.shape[0], rt_file_bytes(f, rows, k), "a matrix to pack")
    sized(out.shape[0], rt_packed_bytes(f, rows, k), "a packed matrix")
    with nogil:
        rt_pack(f, rows, k, &blocks[0], blocks.shape[0], &out[0], out.shape[0], threads, &st)
    check(&st)


def unpack(int format, uint64_t rows, uint64_t k, const uint8_t[::1] packed):
    cdef rt_format f = format_at(format)
    cdef uint64_t row
    sized(packed.shape[0], rt_packed_bytes(f, rows, k), "a packed matrix")
    out = np.empty((rows, k), np.float32)
    cdef float[:, ::1] to = out
    with nogil:
        for row in range(rows):
            rt_unpack_row(f, k, &packed[0], row, &to[row, 0])
    return out


def decode(int format, uint64_t rows, uint64_t k, const uint8_t[::1] blocks, int threads=1):
    cdef rt_format f = format_at(format)
    cdef rt_status st
    sized(blocks.shape[0], rt_file_bytes(f, rows, k), "a matrix to decode")
    out = np.empty((rows, k), np.float32)
    cdef float[:, ::1] to = out
    st.code = RT_OK
    with nogil:
        rt_decode(f, rows, k, &blocks[0], &to[0, 0], threads, &st)
    check(&st)
    return out


def quantize(int format, const float[:, ::1] values, int threads=0):
    cdef rt_format f = format_at(format)
    cdef rt_status st
    cdef uint64_t rows = values.shape[0], k = values.shape[1]
    cdef size_t need = rt_file_bytes(f, rows, k)
    if need == 0 or not rt_can_quantize(f):
        raise FieldInvalid(f"{rows} x {k} numbers cannot become weights of format {format}")
    out = np.empty(need, np.uint8)
    cdef uint8_t[::1] to = out
    st.code = RT_OK
    with nogil:
        rt_quantize(f, rows, k, &values[0, 0], &to[0], threads, &st)
    check(&st)
    return out


def quantizable(int format):
    return bool(rt_can_quantize(format_at(format)))


def half_to_f32(const uint16_t[::1] bits, bint bfloat=False):
    cdef Py_ssize_t i
    out = np.empty(bits.shape[0], np.float32)
    cdef float[::1] to = out
    for i in range(bits.shape[0]):
        to[i] = rt_bf16_to_f32(bits[i]) if bfloat else rt_f16_to_f32(bits[i])
    return out


def half_of_f32(const float[::1] values, bint bfloat=False):
    cdef Py_ssize_t i
    out = np.empty(values.shape[0], np.uint16)
    cdef uint16_t[::1] to = out
    for i in range(values.shape[0]):
        to[i] = rt_f32_to_bf16(values[i]) if bfloat else rt_f32_to_f16(values[i])
    return out


# ---- memory that numpy looks at ----

cdef class _View:
    """Bytes of an owner, as a buffer; the owner lives as long as anyone looks."""
    cdef object owner
    cdef uint8_t *bytes
    cdef Py_ssize_t size
    cdef bint readonly

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        if self.readonly and flags & 1:  # PyBUF_WRITABLE
            raise BufferError("this memory is read-only")
        buffer.buf = self.bytes
        buffer.obj = self
        buffer.len = self.size
        buffer.readonly = self.readonly
        buffer.itemsize = 1
        buffer.format = b"B"
        buffer.ndim = 1
        buffer.shape = &self.size
        buffer.strides = &buffer.itemsize
        buffer.suboffsets = NULL
        buffer.internal = NULL

    def __releasebuffer__(self, Py_buffer *buffer):
        pass


cdef view_of(object owner, const uint8_t *bytes, Py_ssize_t size, bint readonly):
    if size == 0:
        return np.empty(0, np.uint8)
    cdef _View view = _View.__new__(_View)
    view.owner = owner
    view.bytes = <uint8_t *> bytes
    view.size = size
    view.readonly = readonly
    return np.frombuffer(view, np.uint8)


cdef class Region:
    """One piece of memory in 2 MB pages; freed when the last view of it is gone."""
    cdef rt_region region

    def __init__(self, size_t nbytes):
        cdef rt_status st
        st.code = RT_OK
        if self.region.base == NULL:
            rt_region_make(nbytes, &self.region, &st)
        check(&st)

    def __dealloc__(self):
        rt_region_free(&self.region)

    @property
    def nbytes(self):
        return self.region.size

    def take(self, size_t nbytes):
        cdef uint8_t *at = rt_region_take(&self.region, nbytes)
        if at == NULL:
            raise FieldInvalid(f"{nbytes} bytes do not fit in what is left of a region of {self.region.size}")
        return view_of(self, at, nbytes, False)


# ---- GGUF ----

cdef class _Mapping:
    """The open file. Views hold it, so it is unmapped when the last of them is gone."""
    cdef rt_gguf *file

    def __dealloc__(self):
        rt_gguf_close(self.file)


cdef str text_of(rt_text text):
    return PyUnicode_DecodeUTF8(text.bytes, <Py_ssize_t> text.length, "surrogateescape")


DTYPES = {RT_GGUF_UINT8: np.uint8, RT_GGUF_INT8: np.int8, RT_GGUF_UINT16: np.uint16, RT_GGUF_INT16: np.int16,
          RT_GGUF_UINT32: np.uint32, RT_GGUF_INT32: np.int32, RT_GGUF_FLOAT32: np.float32, RT_GGUF_BOOL: np.bool_,
          RT_GGUF_UINT64: np.uint64, RT_GGUF_INT64: np.int64, RT_GGUF_FLOAT64: np.float64}


cdef numbers(rt_gguf *file, rt_gguf_value value, uint32_t type):
    cdef bytes raw = PyBytes_FromStringAndSize(<const char *> file.file.map + value.at, <Py_ssize_t> value.bytes)
    if type == RT_GGUF_BOOL:
        return np.frombuffer(raw, np.uint8) != 0
    return np.frombuffer(raw, DTYPES[type])


cdef texts(rt_gguf *file, uint64_t *at, uint64_t count):
    cdef rt_status st
    cdef uint64_t first = at[0]
    offset = np.empty(count + 1, np.uint64)
    cdef uint64_t[::1] to = offset
    st.code = RT_OK
    rt_gguf_text_offsets(file, at, count, &to[0], &st)
    check(&st)
    cdef bytes data = PyBytes_FromStringAndSize(NULL, <Py_ssize_t> to[count])
    rt_gguf_text_bytes(file, first, count, &to[0], <uint8_t *> <char *> data)
    return Texts(data, offset)


cdef object value_at(rt_gguf *file, uint64_t *at, uint32_t type, int depth):
    cdef rt_status st
    cdef rt_gguf_value value
    cdef uint64_t i
    st.code = RT_OK
    rt_gguf_read(file, at, type, &value, &st)
    check(&st)
    if type == RT_GGUF_STRING:
        return text_of(value.text)
    if type != RT_GGUF_ARRAY:
        return numbers(file, value, type)[0].item()
    if value.item_type == RT_GGUF_STRING:
        return texts(file, at, value.count)
    if value.item_type != RT_GGUF_ARRAY:
        at[0] += value.bytes
        return numbers(file, value, value.item_type)
    if depth == 0:
        raise RecursionError("a GGUF array changed while it was read")
    return [value_at(file, at, value.item_type, depth - 1) for i in range(value.count)]


cdef class GGUFFile:
    cdef _Mapping mapping
    cdef readonly str path
    cdef readonly dict tensors
    cdef dict index, fields
    cdef dict _metadata

    def __init__(self, path):
        cdef rt_status st
        cdef bytes encoded = os.fsencode(path)
        cdef const char *name = encoded
        cdef rt_gguf *file = NULL
        st.code = RT_OK
        if b"\0" in encoded:
            raise ModelNotFound(f"{encoded!r}: no such file; a path holds no zero byte")
        self.path = os.fsdecode(path)
        with nogil:
            rt_gguf_open(name, &file, &st)
        check(&st)
        self.mapping = _Mapping.__new__(_Mapping)
        self.mapping.file = file
        self._list_tensors()

    cdef _list_tensors(self):
        cdef rt_gguf *file = self.mapping.file
        cdef rt_gguf_tensor *t
        cdef char unnamed[24]
        self.tensors, self.index = {}, {}
        for i in range(file.n_tensors):
            t = &file.tensors[i]
            name = text_of(t.name)
            shape = tuple(t.dims[t.n_dims - 1 - d] for d in range(t.n_dims))
            self.index[name] = i
            self.tensors[name] = TensorInfo(name, shape, rt_ggml_type_name(t.ggml_type, unnamed).decode(), t.offset, t.bytes)

    cdef rt_gguf *opened(self) except NULL:
        if self.mapping is None:
            raise ValueError(f"{self.path}: this file is closed")
        return self.mapping.file

    cdef rt_gguf_tensor *tensor(self, str name) except NULL:
        cdef rt_gguf *file = self.opened()
        return &file.tensors[<uint64_t> self.index[name]]

    @property
    def version(self):
        return self.opened().version

    @property
    def alignment(self):
        return self.opened().alignment

    @property
    def metadata(self):
        cdef rt_gguf *file
        cdef uint64_t at
        if self._metadata is None:
            self.check()
            file = self.opened()
            found = {}
            for i in range(file.n_fields):
                at = file.fields[i].at
                found[text_of(file.fields[i].key)] = value_at(file, &at, file.fields[i].type, 4)
            self._metadata = found
        return self._metadata

    @property
    def metadata_types(self):
        cdef rt_gguf *file = self.opened()
        return {text_of(file.fields[i].key): file.fields[i].type for i in range(file.n_fields)}

    def raw(self, str name):
        cdef rt_gguf_tensor *t = self.tensor(name)
        self.check()
        return view_of(self.mapping, self.mapping.file.file.map + t.offset, t.bytes, True)

    def read(self, str name):
        cdef rt_status st
        cdef rt_gguf_tensor *t = self.tensor(name)
        cdef _Mapping alive = self.mapping
        out = np.empty(t.bytes, np.uint8)
        cdef uint8_t[::1] to = out
        st.code = RT_OK
        if t.bytes:
            with nogil:
                rt_file_read(&alive.file.file, t.offset, t.bytes, &to[0], &st)
        check(&st)
        return out

    def supported(self, str name):
        cdef rt_status st
        cdef rt_gguf_tensor *t = self.tensor(name)
        st.code = RT_OK
        rt_gguf_supported(self.mapping.file, t, &st)
        check(&st)
        return <int> t.format

    def pack(self, outs, int threads=0):
        cdef rt_status st
        cdef rt_gguf *file = self.opened()
        cdef _Mapping alive = self.mapping
        cdef uint64_t n = len(outs)
        cdef uint8_t[::1] out
        cdef rt_gguf_packing *job
        cdef bytearray space = bytearray((n + 1) * sizeof(rt_gguf_packing))
        cdef rt_gguf_packing *jobs = <rt_gguf_packing *> <char *> space
        held = []
        for i, (name, array) in enumerate(outs.items()):
            out = array
            held.append(out)
            job = &jobs[<uint64_t> i]
            job.tensor = self.index[name]
            job.dst = &out[0] if out.shape[0] else NULL
            job.dst_bytes = out.shape[0]
        st.code = RT_OK
        with nogil:
            rt_gguf_pack(alive.file, jobs, n, threads, &st)
        check(&st)

    def check(self):
        cdef rt_status st
        st.code = RT_OK
        rt_file_unchanged(&self.opened().file, &st)
        check(&st)

    def close(self):
        self.mapping = None

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


# ---- safetensors ----

cdef class _SafetensorsMapping:
    """The open file, as _Mapping."""
    cdef rt_safetensors *file

    def __dealloc__(self):
        rt_safetensors_close(self.file)


cdef class SafetensorsFile:
    cdef _SafetensorsMapping mapping
    cdef readonly str path
    cdef readonly dict tensors, metadata
    cdef dict index

    def __init__(self, path):
        cdef rt_status st
        cdef bytes encoded = os.fsencode(path)
        cdef const char *name = encoded
        cdef rt_safetensors *file = NULL
        cdef rt_safetensors_tensor *t
        st.code = RT_OK
        if b"\0" in encoded:
            raise ModelNotFound(f"{encoded!r}: no such file; a path holds no zero byte")
        self.path = os.fsdecode(path)
        with nogil:
            rt_safetensors_open(name, &file, &st)
        check(&st)
        self.mapping = _SafetensorsMapping.__new__(_SafetensorsMapping)
        self.mapping.file = file
        self.tensors, self.index = {}, {}
        for i in range(file.n_tensors):
            t = &file.tensors[i]
            tensor = text_of(t.name)
            shape = tuple(t.dims[d] for d in range(t.n_dims))
            self.index[tensor] = i
            self.tensors[tensor] = TensorInfo(tensor, shape, t.dtype.decode(), t.offset, t.bytes)
        self.metadata = {text_of(file.fields[i].key): text_of(file.fields[i].text) for i in range(file.n_fields)}

    cdef rt_safetensors *opened(self) except NULL:
        if self.mapping is None:
            raise ValueError(f"{self.path}: this file is closed")
        return self.mapping.file

    cdef rt_safetensors_tensor *tensor(self, str name) except NULL:
        cdef rt_safetensors *file = self.opened()
        return &file.tensors[<uint64_t> self.index[name]]

    def supported(self, str name):
        cdef rt_status st
        cdef rt_safetensors_tensor *t = self.tensor(name)
        st.code = RT_OK
        rt_safetensors_supported(self.mapping.file, t, &st)
        check(&st)
        return <int> t.format

    def raw(self, str name):
        cdef rt_safetensors_tensor *t = self.tensor(name)
        self.check()
        return view_of(self.mapping, self.mapping.file.file.map + t.offset, t.bytes, True)

    def read(self, str name, uint64_t first=0, count=None):
        cdef rt_status st
        cdef rt_safetensors_tensor *t = self.tensor(name)
        cdef _SafetensorsMapping alive = self.mapping
        cdef uint64_t n = t.bytes - min(first, t.bytes) if count is None else count
        if first > t.bytes or n > t.bytes - first:
            raise FieldInvalid(f"{self.path}: tensor {name} has {t.bytes} bytes, not {n} from byte {first} on")
        out = np.empty(n, np.uint8)
        cdef uint8_t[::1] to = out
        st.code = RT_OK
        if n:
            with nogil:
                rt_file_read(&alive.file.file, t.offset + first, n, &to[0], &st)
        check(&st)
        return out

    def pack(self, jobs, int threads=0):
        cdef rt_status st
        cdef rt_safetensors *file = self.opened()
        cdef _SafetensorsMapping alive = self.mapping
        cdef uint64_t n = len(jobs)
        cdef uint8_t[::1] out
        cdef rt_safetensors_tensor *t
        cdef rt_file_packing *job
        cdef bytearray space = bytearray((n + 1) * sizeof(rt_file_packing))
        cdef rt_file_packing *all = <rt_file_packing *> <char *> space
        held = []
        for i, (name, first, rows, k, array) in enumerate(jobs):
            self.supported(name)
            t = self.tensor(name)
            out = array
            held.append(out)
            job = &all[<uint64_t> i]
            job.format, job.rows, job.k = t.format, rows, k
            job.offset = t.offset + <uint64_t> first
            job.dst = &out[0] if out.shape[0] else NULL
            job.dst_bytes = out.shape[0]
            if first + rt_file_bytes(job.format, job.rows, job.k) > t.bytes:
                raise FieldInvalid(f"{self.path}: tensor {name} has {t.bytes} bytes, fewer than {rows} x {k} from byte {first} on")
        st.code = RT_OK
        with nogil:
            rt_file_pack(&alive.file.file, all, n, threads, &st)
        check(&st)

    def check(self):
        cdef rt_status st
        st.code = RT_OK
        rt_file_unchanged(&self.opened().file, &st)
        check(&st)

    def close(self):
        self.mapping = None

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()
