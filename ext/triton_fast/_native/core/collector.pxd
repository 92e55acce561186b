# The Python side of tracing: settings that hold for models, and the ended traces for a thread that writes them.
from triton_fast._native.core.trace_types cimport Collector, Sampling, TracePoint


cdef class TraceCollector:
    cdef Collector* ptr


cdef class TraceSetting:
    cdef Sampling sampling
    cdef TraceCollector collector


cdef class TraceSwitch:
    cdef TracePoint point
    cdef TraceSetting setting
