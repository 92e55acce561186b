# Traces of sampled requests: whether one is taken, its records on their way, the queue to who writes them. A record
# hangs at Request.record and ends when its request is freed, so that no way out of the engine must think of it. Whoever
# watches costs nothing else: a request that is not sampled has watch 0. Knows no protocol, file format or exporter.
from libc.stdint cimport int32_t, int64_t

from triton_fast._native.core.model cimport Model
from triton_fast._native.core.request cimport Request, Response
from triton_fast._native.core.trace_context cimport TraceContext
from triton_fast._native.core.trace_types cimport Collector, Trace, TracePoint, TraceRecord


# A record for a request of m that is about to be decoded, if it is sampled. c: the context that it brought, or NULL.
# The caller attaches it, or drops it.
cdef TraceRecord* trace_sample(Model* m, TraceContext* c, int32_t origin) noexcept nogil


# The same, and all that is done where nothing is traced.
cdef inline TraceRecord* trace_begin(Model* m, TraceContext* c, int32_t origin) noexcept nogil:
    if m.tracing == NULL or (<TracePoint*>m.tracing).now == NULL:
        return NULL
    return trace_sample(m, c, origin)


# r is decoded, and not submitted yet: it is watched from now on.
cdef void trace_attach(TraceRecord* t, Request* r) noexcept nogil
# r goes no further, and another is made in its place: its record, to be attached again, or NULL.
cdef TraceRecord* trace_detach(Request* r) noexcept nogil
# No request was made of what came at received_ns: who looks for it finds a failed span. t is given up; it may be NULL.
cdef void trace_refused(TraceRecord* t, int64_t received_ns, int32_t code) noexcept nogil
# The record of a request that came to nothing; NULL is allowed.
cdef void trace_drop(TraceRecord* t) noexcept nogil
# c is about to be submitted for r, which is watched, as one step of it.
cdef void trace_child(Request* r, Request* c) noexcept nogil
# A model is about to make request c, with r.trace from a request of its own: a step of that, if that is traced still.
cdef void trace_adopt(Request* c) noexcept nogil
# What r, which is watched, is found by: its trace's id at the collector, or its number in the trace file; the length.
cdef size_t trace_label(Request* r, char* text32) noexcept nogil
# p, the final response or one before, is about to be sent to the client.
cdef void trace_answer(Response* p) noexcept nogil

cdef void trace_free(Trace* t) noexcept nogil
cdef void collector_unref(Collector* c) noexcept nogil
