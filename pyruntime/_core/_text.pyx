"""Tokenizers over csrc/text: no logic here."""
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

import numpy as np

from pyruntime._core.status cimport check, rt_code, rt_status


cdef extern from "text/bpe.h" nogil:
    ctypedef int rt_split
    ctypedef struct rt_bpe:
        pass
    ctypedef struct rt_bpe_spec:
        uint32_t n_tokens
        const uint8_t *text
        const uint32_t *offset
        const uint8_t *kind
        uint32_t n_merges
        const uint8_t *merge_text
        const uint32_t *merge_offset
        rt_split split
        bint ignore_merges
        uint64_t seed
    rt_code rt_bpe_build(const rt_bpe_spec *spec, rt_bpe **out, rt_status *st)
    void rt_bpe_free(rt_bpe *bpe)
    rt_code rt_bpe_encode(const rt_bpe *bpe, const uint8_t *text, size_t n, bint allow_special, int32_t *ids,
                          uint32_t *ends, size_t *count, uint64_t *work, rt_status *st)
    const uint8_t *rt_bpe_token(const rt_bpe *bpe, int64_t id, size_t *n)
    int rt_bpe_known_bytes(const rt_bpe *bpe)

cdef extern from "text/spm.h" nogil:
    ctypedef struct rt_spm:
        pass
    ctypedef struct rt_spm_spec:
        uint32_t n_tokens
        const uint8_t *text
        const uint32_t *offset
        const uint8_t *kind
        const float *score
        int32_t unknown
        bint space_prefix
        uint64_t seed
    rt_code rt_spm_build(const rt_spm_spec *spec, rt_spm **out, rt_status *st)
    void rt_spm_free(rt_spm *spm)
    size_t rt_spm_most(const rt_spm *spm, size_t n)
    rt_code rt_spm_encode(const rt_spm *spm, const uint8_t *text, size_t n, bint allow_special, int32_t *ids,
                          uint32_t *ends, size_t *count, uint64_t *work, rt_status *st)
    const uint8_t *rt_spm_token(const rt_spm *spm, int64_t id, size_t *n)


cdef class Bpe:
    cdef rt_bpe *bpe

    def __cinit__(self, bytes text not None, const uint32_t[::1] offset, const uint8_t[::1] kind, bytes merge_text not None,
                  const uint32_t[::1] merge_offset, int split, bint ignore_merges, uint64_t seed):
        cdef rt_status st
        cdef rt_bpe_spec spec
        cdef Py_ssize_t n_tokens = offset.shape[0] - 1, n_merges = merge_offset.shape[0] - 1
        if not 0 < n_tokens == kind.shape[0] < 0xFFFFFFFF or not 0 <= n_merges < 0xFFFFFFFF:
            raise ValueError("text, offset, kind and merges do not fit together")
        if offset[n_tokens] != len(text) or merge_offset[n_merges] != len(merge_text):
            raise ValueError("an offset does not end where its text does")
        spec.n_tokens = <uint32_t> n_tokens
        spec.text = text
        spec.offset = &offset[0]
        spec.kind = &kind[0]
        spec.n_merges = <uint32_t> n_merges
        spec.merge_text = merge_text
        spec.merge_offset = &merge_offset[0]
        spec.split = split
        spec.ignore_merges = ignore_merges
        spec.seed = seed
        with nogil:
            rt_bpe_build(&spec, &self.bpe, &st)
        check(&st)

    def __dealloc__(self):
        rt_bpe_free(self.bpe)

    def encode(self, bytes text not None, bint allow_special):
        cdef rt_status st
        cdef size_t n = len(text), count = 0
        cdef uint64_t work = 0
        cdef const uint8_t *data = text
        ids_array = np.empty(n + 1, np.int32)
        ends_array = np.empty(n + 1, np.uint32)
        cdef int32_t[::1] ids = ids_array
        cdef uint32_t[::1] ends = ends_array
        cdef int32_t *first_id = &ids[0]
        cdef uint32_t *first_end = &ends[0]
        with nogil:
            rt_bpe_encode(self.bpe, data, n, allow_special, first_id, first_end, &count, &work, &st)
        check(&st)
        return ids_array[:count], ends_array[:count], work

    def token(self, int64_t id):
        cdef size_t n = 0
        cdef const uint8_t *data = rt_bpe_token(self.bpe, id, &n)
        if data == NULL:
            raise IndexError(f"token id {id} is outside the vocabulary")
        return PyBytes_FromStringAndSize(<const char *> data, <Py_ssize_t> n)

    @property
    def known_bytes(self):
        return rt_bpe_known_bytes(self.bpe)


cdef class Spm:
    cdef rt_spm *spm

    def __cinit__(self, bytes text not None, const uint32_t[::1] offset, const uint8_t[::1] kind, const float[::1] score,
                  int unknown, bint space_prefix, uint64_t seed):
        cdef rt_status st
        cdef rt_spm_spec spec
        cdef Py_ssize_t n_tokens = offset.shape[0] - 1
        if not 0 < n_tokens == kind.shape[0] == score.shape[0] < 0xFFFFFFFF:
            raise ValueError("text, offset, kind and score do not fit together")
        if offset[n_tokens] != len(text):
            raise ValueError("an offset does not end where its text does")
        spec.n_tokens = <uint32_t> n_tokens
        spec.text = text
        spec.offset = &offset[0]
        spec.kind = &kind[0]
        spec.score = &score[0]
        spec.unknown = unknown
        spec.space_prefix = space_prefix
        spec.seed = seed
        with nogil:
            rt_spm_build(&spec, &self.spm, &st)
        check(&st)

    def __dealloc__(self):
        rt_spm_free(self.spm)

    def encode(self, bytes text not None, bint allow_special):
        cdef rt_status st
        cdef size_t n = len(text), count = 0, most = rt_spm_most(self.spm, n)
        cdef uint64_t work = 0
        cdef const uint8_t *data = text
        ids_array = np.empty(most + 1, np.int32)
        ends_array = np.empty(most + 1, np.uint32)
        cdef int32_t[::1] ids = ids_array
        cdef uint32_t[::1] ends = ends_array
        cdef int32_t *first_id = &ids[0]
        cdef uint32_t *first_end = &ends[0]
        with nogil:
            rt_spm_encode(self.spm, data, n, allow_special, first_id, first_end, &count, &work, &st)
        check(&st)
        return ids_array[:count], ends_array[:count], work

    def token(self, int64_t id):
        cdef size_t n = 0
        cdef const uint8_t *data = rt_spm_token(self.spm, id, &n)
        if data == NULL:
            raise IndexError(f"token id {id} is outside the vocabulary")
        return PyBytes_FromStringAndSize(<const char *> data, <Py_ssize_t> n)
