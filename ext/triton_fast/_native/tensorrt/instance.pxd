# One instance of a TensorRT model: the execute function of sched/instance.pxd over execution contexts, one for each
# optimization profile. Copies, graphs and waiting (run.pxd) need no GIL; the calls of TensorRT's Python API do.
from libc.stdint cimport int32_t, uint64_t

from triton_fast._native.sched.instance cimport NativeInstance
from triton_fast._native.tensorrt.run cimport TrtRun
from triton_fast._native.tensorrt.shapes cimport Profile, Seen


cdef class TrtInstance(NativeInstance):
    cdef TrtRun run
    cdef list input_names
    cdef list output_names
    cdef list contexts          # of the profiles, in their order in run.shapes
    cdef list rooms             # of outputs: what TensorRT asks for memory and tells the shape; mostly None
    cdef list graph_specs
    cdef object complain        # what TensorRT has said since it was asked last
    cdef object warn

    cdef bint has_values(self)
    cdef int refuse(self) noexcept
    cdef int enqueue(self, Seen* seen) noexcept
    cdef int prepare(self, Seen* seen) except -1
    cdef int bind(self, object context, Profile* p, int32_t i, uint64_t address, object name) except -1
    cdef int infer(self, object context, Seen* seen) except -1
    cdef int note_shape(self, Seen* seen, int32_t i, object dims) except -1
    cdef int take_unknown(self, Seen* seen) except -1
    cdef bint is_in_graph_specs(self, Seen* seen) except -1
    cdef int capture(self, Seen* seen) except -1
    cdef object failure(self, str text)
