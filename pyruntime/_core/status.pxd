# The one place where a C status becomes a Python exception.
cdef extern from "base/status.h" nogil:
    ctypedef enum rt_code:
        RT_OK
        RT_INVALID
        RT_BAD_FILE
        RT_NOT_FOUND
        RT_IO
        RT_NO_MEMORY
        RT_FAILED

    ctypedef struct rt_status:
        rt_code code
        char message[480]


cdef inline int check(rt_status *st) except -1:
    """Raise what *st says; 0 when it says RT_OK."""
    if st.code == RT_OK:
        return 0
    from pyruntime import errors
    message = (<bytes> st.message).decode("utf-8", "replace")
    if st.code == RT_INVALID:
        raise errors.FieldInvalid(message)
    if st.code == RT_BAD_FILE:
        raise errors.ModelInvalid(message)
    if st.code == RT_NOT_FOUND:
        raise errors.ModelNotFound(message)
    if st.code == RT_IO:
        raise OSError(message)
    if st.code == RT_NO_MEMORY:
        raise MemoryError(message)
    raise errors.EngineFailed(message)
