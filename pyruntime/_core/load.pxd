# csrc/quant/formats.h, csrc/load/*.h, csrc/base/region.h, csrc/base/half.h
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from .status cimport rt_code, rt_status


cdef extern from "quant/formats.h" nogil:
    ctypedef enum rt_format:
        RT_FORMATS

    ctypedef struct rt_format_info:
        const char *name
        uint32_t ggml_type, block_weights, block_bytes, tile_k, packed_bytes, form, sub, bits, offset

    const rt_format_info rt_format_table[]


cdef extern from "base/half.h" nogil:
    float rt_f16_to_f32(uint16_t h)
    uint16_t rt_f32_to_f16(float x)
    float rt_bf16_to_f32(uint16_t h)
    uint16_t rt_f32_to_bf16(float x)


cdef extern from "base/region.h" nogil:
    ctypedef struct rt_region:
        uint8_t *base
        size_t size, used

    rt_code rt_region_make(size_t bytes, rt_region *region, rt_status *st)
    void rt_region_free(rt_region *region)
    uint8_t *rt_region_take(rt_region *region, size_t bytes)


cdef extern from "load/pack.h" nogil:
    size_t rt_file_bytes(rt_format format, uint64_t rows, uint64_t k)
    size_t rt_packed_bytes(rt_format format, uint64_t rows, uint64_t k)
    rt_code rt_pack(rt_format format, uint64_t rows, uint64_t k, const uint8_t *blocks, size_t blocks_bytes,
                    uint8_t *dst, size_t dst_bytes, int threads, rt_status *st)
    void rt_unpack_row(rt_format format, uint64_t k, const uint8_t *packed, uint64_t row, float *out)
    rt_code rt_decode(rt_format format, uint64_t rows, uint64_t k, const uint8_t *blocks, float *out, int threads, rt_status *st)


cdef extern from "load/file.h" nogil:
    ctypedef struct rt_text:
        const char *bytes
        uint64_t length

    ctypedef struct rt_file:
        const uint8_t *map
        uint64_t size

    ctypedef struct rt_file_packing:
        rt_format format
        uint64_t rows, k, offset
        uint8_t *dst
        size_t dst_bytes

    rt_code rt_file_unchanged(const rt_file *file, rt_status *st)
    rt_code rt_file_read(const rt_file *file, uint64_t at, uint64_t bytes, uint8_t *to, rt_status *st)
    rt_code rt_file_pack(const rt_file *file, const rt_file_packing *jobs, uint64_t n, int threads, rt_status *st)


cdef extern from "load/gguf.h" nogil:
    ctypedef enum rt_gguf_type:
        RT_GGUF_UINT8
        RT_GGUF_INT8
        RT_GGUF_UINT16
        RT_GGUF_INT16
        RT_GGUF_UINT32
        RT_GGUF_INT32
        RT_GGUF_FLOAT32
        RT_GGUF_BOOL
        RT_GGUF_STRING
        RT_GGUF_ARRAY
        RT_GGUF_UINT64
        RT_GGUF_INT64
        RT_GGUF_FLOAT64

    ctypedef struct rt_gguf_value:
        uint32_t type, item_type
        uint64_t count, at, bytes
        rt_text text

    ctypedef struct rt_gguf_field:
        rt_text key
        uint32_t type
        uint64_t at

    ctypedef struct rt_gguf_tensor:
        rt_text name
        uint32_t n_dims
        uint64_t dims[4]
        uint32_t ggml_type
        rt_format format
        uint64_t offset, bytes

    ctypedef struct rt_gguf:
        rt_file file
        uint32_t version, alignment
        uint64_t n_fields, n_tensors
        rt_gguf_field *fields
        rt_gguf_tensor *tensors

    rt_code rt_gguf_open(const char *path, rt_gguf **file, rt_status *st)
    void rt_gguf_close(rt_gguf *file)
    rt_code rt_gguf_read(const rt_gguf *file, uint64_t *at, uint32_t type, rt_gguf_value *value, rt_status *st)
    rt_code rt_gguf_text_offsets(const rt_gguf *file, uint64_t *at, uint64_t count, uint64_t *offset, rt_status *st)
    void rt_gguf_text_bytes(const rt_gguf *file, uint64_t at, uint64_t count, const uint64_t *offset, uint8_t *to)
    const char *rt_ggml_type_name(uint32_t ggml_type, char *unnamed)
    rt_code rt_gguf_supported(const rt_gguf *file, const rt_gguf_tensor *tensor, rt_status *st)
    ctypedef struct rt_gguf_packing:
        uint64_t tensor
        uint8_t *dst
        size_t dst_bytes

    rt_code rt_gguf_pack(const rt_gguf *file, const rt_gguf_packing *jobs, uint64_t n, int threads, rt_status *st)


cdef extern from "load/safetensors.h" nogil:
    enum: RT_SAFETENSORS_DIMS

    ctypedef struct rt_safetensors_tensor:
        rt_text name
        const char *dtype
        rt_format format
        uint32_t n_dims
        uint64_t dims[RT_SAFETENSORS_DIMS]
        uint64_t offset, bytes

    ctypedef struct rt_safetensors_field:
        rt_text key, text

    ctypedef struct rt_safetensors:
        rt_file file
        uint64_t n_tensors, n_fields
        rt_safetensors_tensor *tensors
        rt_safetensors_field *fields

    rt_code rt_safetensors_open(const char *path, rt_safetensors **file, rt_status *st)
    void rt_safetensors_close(rt_safetensors *file)
    rt_code rt_safetensors_supported(const rt_safetensors *file, const rt_safetensors_tensor *tensor, rt_status *st)


cdef extern from "load/quantize.h" nogil:
    bint rt_can_quantize(rt_format format)
    rt_code rt_quantize(rt_format format, uint64_t rows, uint64_t k, const float *x, uint8_t *blocks, int threads, rt_status *st)
