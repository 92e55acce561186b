# See lent.pxd. Requests without such memory never come here.
from libc.stdint cimport int32_t
from libc.string cimport memcpy, memmove

from triton_fast._native.core.marks cimport FLAG_DEVICE, FLAG_LENT
from triton_fast._native.core.memory cimport Block, block_new, block_unref
from triton_fast._native.core.native cimport (
    MEM_CLIENT, MEM_GPU, TF_INTERNAL, TF_OK, TF_UNAVAILABLE, tf_error, tf_fail,
)
from triton_fast._native.core.regions cimport lent_check
from triton_fast._native.core.request cimport Request, Response, Sink, request_alloc, response_fail_error
from triton_fast._native.core.tensor cimport Lent, Tensor
from triton_fast._native.cuda.flow cimport Flow, flow_begin, flow_between, flow_end, flow_in
from triton_fast._native.sched.fetch cimport fetch_tensor
from triton_fast._native.sched.tap cimport Tap, tap_begin, tap_pass

cdef enum:
    NAME_CUT = 256          # bytes of a model's name that an error repeats


# The place that r's client gave for output k of the model; NULL: it wants it in the response.
cdef inline Lent* place_of(Request* r, int32_t k) noexcept nogil:
    cdef Lent* lent = r.lent
    while lent != NULL:
        if lent.wanted >= 0 and r.wanted[lent.wanted].index == k:
            return lent
        lent = lent.next
    return NULL


cdef int too_small(Request* r, Tensor* t, Lent* lent, tf_error* e) noexcept nogil:
    cdef const char* name = r.model.outputs[t.index].name
    cdef int n = <int>min(r.model.outputs[t.index].name_len, <unsigned int>NAME_CUT)
    return tf_fail(e, TF_INTERNAL, b"shared memory size specified with the request for output '%.*s' (%llu bytes) "
                   b"should be at least %llu bytes to hold the results", n, name, <unsigned long long>lent.nbytes,
                   <unsigned long long>t.nbytes)


# Have t lie in memory that its client can not change.
cdef int own(Tensor* t, tf_error* e) noexcept nogil:
    cdef Block* block = block_new(t.nbytes)
    if block == NULL:
        return tf_fail(e, TF_UNAVAILABLE, b"out of memory while writing the response")
    memcpy(block.data, t.ptr, t.nbytes)
    block_unref(t.block)
    t.block = block
    t.ptr = block.data
    return 0


# t went to its place.
cdef void written(Tensor* t) noexcept nogil:
    block_unref(t.block)
    t.block = NULL
    t.ptr = NULL
    t.nbytes = 0
    t.kind = MEM_CLIENT


cdef int write_output(Request* r, Tensor* t, tf_error* e) noexcept nogil:
    cdef Lent* lent = place_of(r, t.index)
    if lent != NULL:
        if t.nbytes > lent.nbytes:
            return too_small(r, t, lent, e)
        if t.nbytes:
            memmove(lent.ptr, t.ptr, t.nbytes)      # it may be an input that the model handed back
        written(t)
        return 0
    if t.block != NULL and t.block.kind == MEM_CLIENT:
        return own(t, e)
    return 0


# Begin to write t to its place in GPU memory, if it has one there; t is not to be touched before the flow's end. What
# lies in a GPU's memory and has its place elsewhere is fetched.
cdef int write_device(Request* r, Tensor* t, Flow* flow, tf_error* e) noexcept nogil:
    cdef Lent* lent = place_of(r, t.index)
    if lent == NULL or lent.block.kind != MEM_GPU:
        return fetch_tensor(t, e) if t.kind == MEM_GPU else 0
    if t.nbytes > lent.nbytes:
        return too_small(r, t, lent, e)
    if t.kind == MEM_GPU:
        return flow_between(flow, lent.block.device, lent.ptr, t.device, t.ptr, t.nbytes, e)
    # Files that get smaller are not for the driver to read: what becomes of that is not known.
    if t.block != NULL and t.block.kind == MEM_CLIENT and own(t, e) != 0:
        return -1
    return flow_in(flow, lent.block.device, lent.ptr, t.ptr, t.nbytes, e)


cdef int write_devices(Request* r, Response* p, tf_error* e) noexcept nogil:
    cdef Flow flow
    cdef Lent* lent
    cdef tf_error later
    cdef int32_t i = 0
    cdef int status = 0
    flow_begin(&flow)
    while i < p.n_outputs and status == 0:
        status = write_device(r, &p.outputs[i], &flow, e)
        i += 1
    if flow_end(&flow, &later if status != 0 else e) != 0:
        status = -1
    for i in range(p.n_outputs if status == 0 else 0):
        lent = place_of(r, p.outputs[i].index)
        if lent != NULL and lent.block.kind == MEM_GPU:
            written(&p.outputs[i])
    return status


cdef void write_outputs(Request* r, Response* p) noexcept nogil:
    cdef tf_error e
    cdef int32_t i
    if p.code == TF_OK:
        if r.flags & FLAG_DEVICE and write_devices(r, p, &e) != 0:
            response_fail_error(p, &e)
            return
        for i in range(p.n_outputs):
            if p.outputs[i].kind != MEM_CLIENT and write_output(r, &p.outputs[i], &e) != 0:
                response_fail_error(p, &e)
                return
        # Looked at behind the copies: they too may have met the end of the file.
        if lent_check(r, &e) != 0:
            response_fail_error(p, &e)


cdef void deliver(Sink* sink, Response* first, Response* last) noexcept nogil:
    cdef Tap* tap = <Tap*>sink
    cdef Response* p = first
    while True:
        write_outputs(tap.request, p)
        if p == last:
            break
        p = p.next
    tap_pass(tap, first, last)


cdef int lent_begin(Request* r, tf_error* e) noexcept nogil:
    cdef Tap* tap = <Tap*>request_alloc(r, sizeof(Tap))
    cdef Lent* lent = r.lent
    if tap == NULL:
        return tf_fail(e, TF_UNAVAILABLE, b"out of memory while decoding the request")
    while lent != NULL:
        if lent.block.kind == MEM_GPU:
            r.flags |= FLAG_DEVICE
        elif lent.wanted < 0:
            r.flags |= FLAG_LENT
        lent = lent.next
    tap_begin(tap, r, deliver)
    return 0
