# The sequence batcher: a source of batches in which the requests of one sequence go one after another to one instance.
from triton_fast._native.sched.scheduler cimport NativeScheduler
from triton_fast._native.sched.sequence_types cimport Sequences


cdef class NativeSequences(NativeScheduler):
    cdef Sequences* q
