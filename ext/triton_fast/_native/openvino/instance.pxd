# One instance of an OpenVINO model: the execute function of sched/instance.pxd over an infer request.
from libc.stdint cimport int32_t, int64_t

from triton_fast._native.arrays.arrays cimport Arrays
from triton_fast._native.core.memory cimport Block
from triton_fast._native.openvino.capi cimport ov_request, ov_tensor, tf_ov
from triton_fast._native.openvino.model cimport Compiled
from triton_fast._native.sched.instance cimport NativeInstance


# A tensor of the model, in the place that the config gives it.
cdef struct OvIo:
    size_t port             # its number in the model
    int element
    int32_t dtype
    int32_t rank
    int64_t* dims           # of the model, the batch dimension with them; 0 where they vary
    int64_t row_bytes       # of an output: bytes of a row, or of the whole without batching; -1: known after the run
    int32_t given           # of an output: the input that it is, unchanged; -1: it is computed

cdef struct OvRun:
    const tf_ov* api
    ov_request* request
    Arrays arrays
    OvIo* inputs
    OvIo* outputs
    ov_tensor** made        # outputs that OpenVINO allocates in this run
    int64_t fixed_batch     # rows that each run must have; 0: any
    bint pad                # fill up to fixed_batch with zeros
    bint direct             # infer on this thread, see infer()
    int64_t runs
    int64_t bound           # outputs written straight into a response's block
    int64_t lent            # outputs whose memory OpenVINO made and responses keep
    int64_t copied_outputs  # bytes of outputs that were copied


cdef class OvInstance(NativeInstance):
    cdef OvRun run
    cdef Compiled compiled
