# csrc/rt.h, csrc/base/cpu.h, csrc/exec/ops.h
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from .status cimport rt_code, rt_status


cdef extern from "rt.h" nogil:
    enum:
        RT_OP_WORDS

    ctypedef struct rt_op:
        int32_t kind
        uint32_t words[20]

    ctypedef struct rt_slot:
        int32_t width, per_row

    ctypedef struct rt_weight:
        int32_t format, rows, k
        const uint8_t *packed
        const uint8_t *blocks
        size_t bytes

    ctypedef struct rt_group:
        int32_t kind, layers, kv_heads, head_dim, k_format, v_format, window, width, row, pages

    ctypedef struct rt_rope:
        const double *inv_freq
        int32_t pairs, interleaved
        double mscale

    ctypedef struct rt_plan:
        const rt_op *ops
        int32_t n_ops
        const rt_slot *slots
        int32_t n_slots
        const rt_weight *weights
        int32_t n_weights
        const rt_group *groups
        int32_t n_groups
        const rt_rope *ropes
        int32_t n_ropes
        int32_t vocab, width

    ctypedef struct rt_limits:
        int32_t max_tokens, max_rows, max_seqs, histories, threads, isa, pool, prompt_path, generated_path

    ctypedef struct rt_sampling:
        pass

    ctypedef struct rt_sampled:
        pass

    ctypedef struct rt_batch:
        int32_t n_tokens, n_seqs, n_rows, n_bias, n_masks, n_embeddings
        const int32_t *tokens
        const int32_t *positions
        const uint8_t *roles
        const int32_t *starts
        const int32_t *kv_lens
        const int32_t *adapters
        const int32_t *const *tables
        const int32_t *table_widths
        const int32_t *rows
        const rt_sampling *sampling
        const int32_t *bias_ids
        const float *bias_values
        const uint8_t *masks
        const float *embeddings
        const uint64_t *trees

    ctypedef struct rt_engine:
        pass

    rt_code rt_engine_new(const rt_plan *plan, const rt_limits *limits, rt_engine **out, rt_status *st)
    void rt_engine_free(rt_engine *e)
    rt_code rt_engine_run(rt_engine *e, const rt_batch *batch, int32_t first, int32_t last, rt_status *st)
    float *rt_engine_slot(rt_engine *e, int32_t slot)
    const rt_sampled *rt_engine_sampled(rt_engine *e)
    uint8_t *rt_engine_page(rt_engine *e, int32_t group, int32_t page, size_t *bytes)
    int32_t *rt_engine_seen(rt_engine *e, int32_t group, int32_t slot, int32_t *layers)
    void rt_engine_clock(rt_engine *e, int32_t on)
    const int64_t *rt_engine_times(rt_engine *e)
    const int64_t *rt_engine_weights_read(rt_engine *e)
    rt_code rt_engine_copy_page(rt_engine *e, int32_t group, int32_t source, int32_t target, rt_status *st)
    rt_code rt_state_truncate(rt_engine *e, int32_t group, int32_t slot, int32_t length, const int32_t *snapshots, int32_t n,
                              int32_t *left, rt_status *st)
    rt_code rt_history_reset(rt_engine *e, int32_t history, rt_status *st)
    rt_code rt_history_extend(rt_engine *e, int32_t history, const int32_t *tokens, int32_t n, int32_t generated, rt_status *st)
    rt_code rt_history_truncate(rt_engine *e, int32_t history, int32_t length, rt_status *st)


cdef extern from "base/cpu.h" nogil:
    enum:
        RT_MISSING_BYTES

    int32_t rt_isa_count()
    const char *rt_isa_name(int32_t isa)
    int32_t rt_cpu_best_isa()
    const char *rt_isa_missing(int32_t isa, char *missing)


cdef extern from "exec/ops.h" nogil:
    enum:
        RT_OPS

    ctypedef struct rt_op_info:
        const char *name
        const char *fields

    const rt_op_info rt_op_table[]
