"""Tokenizers over csrc/text: no logic here."""
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free

import numpy as np

from pyruntime._core.status cimport RT_OK, check, rt_code, rt_status


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
        bint ranked
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

cdef extern from "text/vocab.h" nogil:
    ctypedef struct rt_listed:
        uint32_t n_tokens
        const uint8_t *text
        const uint32_t *offset
        const uint8_t *kind
        bint spaces
        uint64_t seed
    ctypedef struct rt_vocab:
        pass
    const uint8_t *rt_vocab_token(const rt_vocab *vocab, int64_t id, size_t *n)

cdef extern from "text/chars.h" nogil:
    ctypedef struct rt_chars:
        pass
    ctypedef struct rt_chars_spec:
        rt_listed listed
        uint32_t n_merges
        const uint8_t *merge_text
        const uint32_t *merge_offset
        int32_t unknown
        bint fuse_unknown
        bint split_words
        bint ignore_merges
    rt_code rt_chars_build(const rt_chars_spec *spec, rt_chars **out, rt_status *st)
    void rt_chars_free(rt_chars *chars)
    rt_code rt_chars_encode(const rt_chars *chars, const uint8_t *text, size_t n, int32_t *ids, uint32_t *ends,
                            size_t *count, uint64_t *work, rt_status *st)
    const rt_vocab *rt_chars_vocab(const rt_chars *chars)

cdef extern from "text/unigram.h" nogil:
    ctypedef struct rt_unigram:
        pass
    ctypedef struct rt_unigram_spec:
        rt_listed listed
        const double *score
        double least
        int32_t unknown
        bint split_words
        bint single
    rt_code rt_unigram_build(const rt_unigram_spec *spec, rt_unigram **out, rt_status *st)
    void rt_unigram_free(rt_unigram *unigram)
    rt_code rt_unigram_encode(const rt_unigram *unigram, const uint8_t *text, size_t n, int32_t *ids, uint32_t *ends,
                              size_t *count, uint64_t *work, rt_status *st)
    const rt_vocab *rt_unigram_vocab(const rt_unigram *unigram)

cdef extern from "text/wordpiece.h" nogil:
    ctypedef struct rt_wordpiece:
        pass
    ctypedef struct rt_wordpiece_spec:
        rt_listed listed
        const uint8_t *prefix
        uint32_t prefix_n
        uint32_t most_chars
        int32_t unknown
    rt_code rt_wordpiece_build(const rt_wordpiece_spec *spec, rt_wordpiece **out, rt_status *st)
    void rt_wordpiece_free(rt_wordpiece *wordpiece)
    rt_code rt_wordpiece_encode(const rt_wordpiece *wordpiece, const uint8_t *text, size_t n, int32_t *ids, uint32_t *ends,
                                size_t *count, uint64_t *work, rt_status *st)
    const rt_vocab *rt_wordpiece_vocab(const rt_wordpiece *wordpiece)

cdef extern from "text/added.h" nogil:
    ctypedef struct rt_added:
        pass
    ctypedef struct rt_added_spec:
        uint32_t n
        const uint8_t *text
        const uint32_t *offset
        const uint8_t *flags
        uint64_t seed
    rt_code rt_added_build(const rt_added_spec *spec, rt_added **out, rt_status *st)
    void rt_added_free(rt_added *added)
    rt_code rt_added_find(const rt_added *added, const uint8_t *text, size_t n, bint allow_special, uint32_t *span,
                          size_t *count, uint64_t *work, rt_status *st)

cdef extern from "text/charsmap.h" nogil:
    ctypedef struct rt_charsmap:
        pass
    rt_code rt_charsmap_build(const uint8_t *map, size_t n, rt_charsmap **out, rt_status *st)
    void rt_charsmap_free(rt_charsmap *map)
    rt_code rt_charsmap_apply(const rt_charsmap *map, const uint8_t *text, size_t n, bint graphemes, uint8_t **out,
                              size_t *out_n, rt_status *st)


cdef list_tokens(rt_listed *listed, bytes text, const uint32_t[::1] offset, const uint8_t[::1] kind, bint spaces, uint64_t seed):
    cdef Py_ssize_t n = offset.shape[0] - 1
    if not 0 < n == kind.shape[0] < 0xFFFFFFFF or offset[n] != len(text):
        raise ValueError("text, offset and kind do not fit together")
    listed.n_tokens = <uint32_t> n
    listed.text = text
    listed.offset = &offset[0]
    listed.kind = &kind[0]
    listed.spaces = spaces
    listed.seed = seed


cdef class Encoder:
    """What the tokenizers share; each says how it encodes, and what a token is."""

    cdef rt_code run(self, const uint8_t *text, size_t n, bint allow_special, int32_t *ids, uint32_t *ends, size_t *count,
                     uint64_t *work, rt_status *st) noexcept nogil:
        count[0] = 0
        return RT_OK

    cdef const uint8_t *named(self, int64_t id, size_t *n) noexcept:
        return NULL

    cdef size_t most(self, size_t n) noexcept:
        """Tokens that n bytes may give."""
        return n

    cdef encoded(self, bytes text, bint allow_special):
        cdef rt_status st
        cdef size_t n = len(text), count = 0, most = self.most(n)
        cdef uint64_t work = 0
        cdef const uint8_t *data = text
        ids_array = np.empty(most + 1, np.int32)
        ends_array = np.empty(most + 1, np.uint32)
        cdef int32_t[::1] ids = ids_array
        cdef uint32_t[::1] ends = ends_array
        cdef int32_t *first_id = &ids[0]
        cdef uint32_t *first_end = &ends[0]
        with nogil:
            self.run(data, n, allow_special, first_id, first_end, &count, &work, &st)
        check(&st)
        return ids_array[:count], ends_array[:count], work

    def token(self, int64_t id):
        cdef size_t n = 0
        cdef const uint8_t *data = self.named(id, &n)
        if data == NULL:
            raise IndexError(f"token id {id} is outside the vocabulary")
        return PyBytes_FromStringAndSize(<const char *> data, <Py_ssize_t> n)


cdef class Bpe(Encoder):
    cdef rt_bpe *bpe

    def __cinit__(self, bytes text not None, const uint32_t[::1] offset, const uint8_t[::1] kind, bytes merge_text not None,
                  const uint32_t[::1] merge_offset, int split, bint ranked, bint ignore_merges, uint64_t seed):
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
        spec.ranked = ranked
        spec.ignore_merges = ignore_merges
        spec.seed = seed
        with nogil:
            rt_bpe_build(&spec, &self.bpe, &st)
        check(&st)

    def __dealloc__(self):
        rt_bpe_free(self.bpe)

    cdef rt_code run(self, const uint8_t *text, size_t n, bint allow_special, int32_t *ids, uint32_t *ends, size_t *count,
                     uint64_t *work, rt_status *st) noexcept nogil:
        return rt_bpe_encode(self.bpe, text, n, allow_special, ids, ends, count, work, st)

    cdef const uint8_t *named(self, int64_t id, size_t *n) noexcept:
        return rt_bpe_token(self.bpe, id, n)

    def encode(self, bytes text not None, bint allow_special):
        return self.encoded(text, allow_special)

    @property
    def known_bytes(self):
        return rt_bpe_known_bytes(self.bpe)


cdef class Spm(Encoder):
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

    cdef rt_code run(self, const uint8_t *text, size_t n, bint allow_special, int32_t *ids, uint32_t *ends, size_t *count,
                     uint64_t *work, rt_status *st) noexcept nogil:
        return rt_spm_encode(self.spm, text, n, allow_special, ids, ends, count, work, st)

    cdef const uint8_t *named(self, int64_t id, size_t *n) noexcept:
        return rt_spm_token(self.spm, id, n)

    cdef size_t most(self, size_t n) noexcept:
        return rt_spm_most(self.spm, n)

    def encode(self, bytes text not None, bint allow_special):
        return self.encoded(text, allow_special)


cdef class Chars(Encoder):
    cdef rt_chars *chars

    def __cinit__(self, bytes text not None, const uint32_t[::1] offset, const uint8_t[::1] kind, bint spaces, bytes merge_text not None,
                  const uint32_t[::1] merge_offset, int unknown, bint fuse_unknown, bint split_words, bint ignore_merges,
                  uint64_t seed):
        cdef rt_status st
        cdef rt_chars_spec spec
        cdef Py_ssize_t n_merges = merge_offset.shape[0] - 1
        list_tokens(&spec.listed, text, offset, kind, spaces, seed)
        if not 0 <= n_merges < 0xFFFFFFFF or merge_offset[n_merges] != len(merge_text):
            raise ValueError("an offset does not end where its text does")
        spec.n_merges = <uint32_t> n_merges
        spec.merge_text = merge_text
        spec.merge_offset = &merge_offset[0]
        spec.unknown = unknown
        spec.fuse_unknown = fuse_unknown
        spec.split_words = split_words
        spec.ignore_merges = ignore_merges
        with nogil:
            rt_chars_build(&spec, &self.chars, &st)
        check(&st)

    def __dealloc__(self):
        rt_chars_free(self.chars)

    cdef rt_code run(self, const uint8_t *text, size_t n, bint allow_special, int32_t *ids, uint32_t *ends, size_t *count,
                     uint64_t *work, rt_status *st) noexcept nogil:
        return rt_chars_encode(self.chars, text, n, ids, ends, count, work, st)

    cdef const uint8_t *named(self, int64_t id, size_t *n) noexcept:
        return rt_vocab_token(rt_chars_vocab(self.chars), id, n)

    def encode(self, bytes text not None):
        return self.encoded(text, False)


cdef class Unigram(Encoder):
    cdef rt_unigram *unigram

    def __cinit__(self, bytes text not None, const uint32_t[::1] offset, const uint8_t[::1] kind, bint spaces,
                  const double[::1] score, double least, int unknown, bint split_words, bint single, uint64_t seed):
        cdef rt_status st
        cdef rt_unigram_spec spec
        list_tokens(&spec.listed, text, offset, kind, spaces, seed)
        if score.shape[0] != kind.shape[0]:
            raise ValueError("kind and score do not fit together")
        spec.score = &score[0]
        spec.least = least
        spec.unknown = unknown
        spec.split_words = split_words
        spec.single = single
        with nogil:
            rt_unigram_build(&spec, &self.unigram, &st)
        check(&st)

    def __dealloc__(self):
        rt_unigram_free(self.unigram)

    cdef rt_code run(self, const uint8_t *text, size_t n, bint allow_special, int32_t *ids, uint32_t *ends, size_t *count,
                     uint64_t *work, rt_status *st) noexcept nogil:
        return rt_unigram_encode(self.unigram, text, n, ids, ends, count, work, st)

    cdef const uint8_t *named(self, int64_t id, size_t *n) noexcept:
        return rt_vocab_token(rt_unigram_vocab(self.unigram), id, n)

    def encode(self, bytes text not None):
        return self.encoded(text, False)


cdef class WordPiece(Encoder):
    cdef rt_wordpiece *wordpiece

    def __cinit__(self, bytes text not None, const uint32_t[::1] offset, const uint8_t[::1] kind, bytes prefix not None,
                  uint32_t most_chars, int unknown, uint64_t seed):
        cdef rt_status st
        cdef rt_wordpiece_spec spec
        list_tokens(&spec.listed, text, offset, kind, False, seed)
        spec.prefix = prefix
        spec.prefix_n = <uint32_t> len(prefix)
        spec.most_chars = most_chars
        spec.unknown = unknown
        with nogil:
            rt_wordpiece_build(&spec, &self.wordpiece, &st)
        check(&st)

    def __dealloc__(self):
        rt_wordpiece_free(self.wordpiece)

    cdef rt_code run(self, const uint8_t *text, size_t n, bint allow_special, int32_t *ids, uint32_t *ends, size_t *count,
                     uint64_t *work, rt_status *st) noexcept nogil:
        return rt_wordpiece_encode(self.wordpiece, text, n, ids, ends, count, work, st)

    cdef const uint8_t *named(self, int64_t id, size_t *n) noexcept:
        return rt_vocab_token(rt_wordpiece_vocab(self.wordpiece), id, n)

    def encode(self, bytes text not None):
        return self.encoded(text, False)


cdef class Added:
    cdef rt_added *added

    def __cinit__(self, bytes text not None, const uint32_t[::1] offset, const uint8_t[::1] flags, uint64_t seed):
        cdef rt_status st
        cdef rt_added_spec spec
        cdef Py_ssize_t n = flags.shape[0]
        if not n == offset.shape[0] - 1 < 0xFFFFFFFF or offset[n] != len(text):
            raise ValueError("text, offset and flags do not fit together")
        spec.n = <uint32_t> n
        spec.text = text
        spec.offset = &offset[0]
        spec.flags = &flags[0] if n else NULL
        spec.seed = seed
        with nogil:
            rt_added_build(&spec, &self.added, &st)
        check(&st)

    def __dealloc__(self):
        rt_added_free(self.added)

    def find(self, bytes text not None, bint allow_special):
        cdef rt_status st
        cdef size_t n = len(text), count = 0
        cdef uint64_t work = 0
        cdef const uint8_t *data = text
        spans_array = np.empty((n + 1, 3), np.uint32)
        cdef uint32_t[:, ::1] spans = spans_array
        cdef uint32_t *first = &spans[0, 0]
        with nogil:
            rt_added_find(self.added, data, n, allow_special, first, &count, &work, &st)
        check(&st)
        return spans_array[:count], work


cdef class CharsMap:
    cdef rt_charsmap *map

    def __cinit__(self, bytes data not None):
        cdef rt_status st
        rt_charsmap_build(data, len(data), &self.map, &st)
        check(&st)

    def __dealloc__(self):
        rt_charsmap_free(self.map)

    def apply(self, bytes text not None, bint graphemes):
        cdef rt_status st
        cdef size_t n = len(text), count = 0
        cdef const uint8_t *data = text
        cdef uint8_t *out = NULL
        with nogil:
            rt_charsmap_apply(self.map, data, n, graphemes, &out, &count, &st)
        check(&st)
        try:
            return PyBytes_FromStringAndSize(<const char *> out, <Py_ssize_t> count)
        finally:
            free(out)
