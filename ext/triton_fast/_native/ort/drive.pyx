# Executes batches on an instance without a queue, for tests and instruction counts: the exact requests of one batch go
# in, what each would answer comes out. Works with any NativeInstance. Not used by the server.
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.string cimport memcpy, memset

from triton_fast._native.core.memory cimport Block, block_new, block_ref, block_unref
from triton_fast._native.core.native cimport MEM_GPU, TF_OK, now_ns
from triton_fast._native.core.model cimport ModelHandle
from triton_fast._native.core.request cimport Request, Response, request_alloc, request_free, request_new
from triton_fast._native.core.tensor cimport Tensor, Wanted
from triton_fast._native.sched.instance cimport Batch, NativeInstance

from triton_fast.errors import make

cdef enum:
    MAX_BATCH = 256


cdef Request* build(ModelHandle model, dict inputs, wanted, int misalign) except NULL:
    cdef Request* r = request_new(model.ptr)
    cdef Tensor* t
    cdef Py_ssize_t total = 0, at, k, i
    cdef const uint8_t[::1] view
    if r == NULL:
        raise MemoryError
    try:
        names = [model.ptr.inputs[i].name[:model.ptr.inputs[i].name_len].decode() for i in range(model.ptr.n_inputs)]
        outputs = [model.ptr.outputs[i].name[:model.ptr.outputs[i].name_len].decode()
                   for i in range(model.ptr.n_outputs)]
        for _dtype, _shape, data in inputs.values():
            total += len(data) + 72
        r.body = block_new(total)
        r.inputs = <Tensor*>request_alloc(r, (len(inputs) + 1) * sizeof(Tensor))
        r.by_index = <Tensor**>request_alloc(r, (len(names) + 1) * sizeof(void*))
        if r.body == NULL or r.inputs == NULL or r.by_index == NULL:
            raise MemoryError
        memset(r.by_index, 0, (len(names) + 1) * sizeof(void*))
        at = 0
        for i, (name, (dtype, shape, data)) in enumerate(inputs.items()):
            t = &r.inputs[i]
            memset(t, 0, sizeof(Tensor))
            t.index = names.index(name)
            t.dtype = int(dtype)
            t.ndim = len(shape)
            t.dims = <int64_t*>request_alloc(r, (len(shape) + 1) * sizeof(int64_t))
            if t.dims == NULL:
                raise MemoryError
            for k in range(len(shape)):
                t.dims[k] = shape[k]
            at = ((at + 63) & ~63) + misalign
            t.ptr = r.body.data + at
            if isinstance(data, tuple):
                t.device, address, t.nbytes = data
                t.kind = MEM_GPU
                t.ptr = <uint8_t*><size_t>address
            elif len(data):
                view = data
                t.nbytes = len(data)
                memcpy(t.ptr, &view[0], len(data))
                at += len(data)
            r.by_index[t.index] = t
            if model.ptr.max_batch > 0 and len(shape):
                r.batch = shape[0]
        r.n_inputs = <int32_t>len(inputs)
        if wanted:
            r.wanted = <Wanted*>request_alloc(r, len(wanted) * sizeof(Wanted))
            if r.wanted == NULL:
                raise MemoryError
            memset(r.wanted, 0, len(wanted) * sizeof(Wanted))
            for k in range(len(wanted)):
                r.wanted[k].index = outputs.index(wanted[k])
            r.n_wanted = <int32_t>len(wanted)
    except BaseException:
        request_free(r)
        raise
    return r


cdef object answer(Request* r):
    cdef Response* p = &r.response
    cdef Tensor* t
    cdef int32_t i
    if p.code != TF_OK:
        return make(p.code, p.text[:p.text_len].decode("utf-8", "replace"))
    result = {}
    for i in range(p.n_outputs):
        t = &p.outputs[i]
        result[t.name[:t.name_len].decode()] = (
            t.dtype, tuple([t.dims[k] for k in range(t.ndim)]), (<char*>t.ptr)[:t.nbytes] if t.nbytes else b"",
            <size_t>t.ptr)
    return result


def run_batch(NativeInstance instance not None, ModelHandle model not None, requests, *, wanted=None, int misalign=0,
              held=None, away=None):
    cdef Request* made[MAX_BATCH]
    cdef Batch batch
    cdef Py_ssize_t i, n = 0
    cdef int32_t k
    cdef Block* block
    if len(requests) > MAX_BATCH:
        raise ValueError(f"at most {MAX_BATCH} requests")
    try:
        for i in range(len(requests)):
            made[i] = build(model, requests[i], wanted[i] if wanted else None, misalign)
            n = i + 1
            for k in range(made[i].n_inputs):
                if away and model.ptr.inputs[made[i].inputs[k].index].name.decode() in away[i]:
                    made[i].inputs[k].kind = MEM_GPU
        batch.requests = made
        batch.n = <int32_t>n
        batch.rows = 0
        batch.t_input = 0
        batch.t_computed = 0
        for i in range(n):
            batch.rows += made[i].batch
        before = now_ns()
        with nogil:
            instance.execute(instance.state, &batch)
        if not before <= batch.t_input <= batch.t_computed <= now_ns():
            raise AssertionError("the stamps of the batch are out of order")
        if held is not None:
            for i in range(n):
                for k in range(made[i].response.n_outputs):
                    block = made[i].response.outputs[k].block
                    block_ref(block)
                    held.append((<size_t>block, <size_t>made[i].response.outputs[k].ptr,
                                 made[i].response.outputs[k].nbytes))
        return [answer(made[i]) for i in range(n)]
    finally:
        for i in range(n):
            request_free(made[i])


def read_held(held):
    cdef size_t p
    found = []
    for _block, p, n in held:
        found.append((<char*>p)[:n])
    return found


def release_held(held):
    cdef size_t p
    for p, _, _ in held:
        with nogil:
            block_unref(<Block*>p)
    held.clear()


def repeat(NativeInstance instance not None, ModelHandle model not None, requests, int64_t times):
    cdef Request* made[MAX_BATCH]
    cdef Batch batch
    cdef Py_ssize_t n = 0, i
    cdef int64_t _k
    cdef int64_t started
    cdef int32_t w
    cdef Response* p
    cdef int64_t failures = 0
    cdef char* arena[MAX_BATCH]
    cdef size_t left[MAX_BATCH]
    if len(requests) > MAX_BATCH:
        raise ValueError(f"at most {MAX_BATCH} requests")
    try:
        for i in range(len(requests)):
            made[i] = build(model, requests[i], None, 0)
            n = i + 1
            arena[i] = made[i].arena
            left[i] = made[i].arena_left
        batch.requests = made
        batch.n = <int32_t>n
        batch.rows = 0
        for i in range(n):
            batch.rows += made[i].batch
        with nogil:
            started = now_ns()
            for _k in range(times):
                instance.execute(instance.state, &batch)
                for i in range(n):
                    p = &made[i].response
                    if p.code != TF_OK:
                        failures += 1
                        p.code = TF_OK
                    for w in range(p.n_outputs):
                        block_unref(p.outputs[w].block)
                    p.n_outputs = 0
                    # What the answer took of the request's memory is used again by the next round.
                    made[i].arena = arena[i]
                    made[i].arena_left = left[i]
            started = now_ns() - started
        return started, failures
    finally:
        for i in range(n):
            request_free(made[i])
