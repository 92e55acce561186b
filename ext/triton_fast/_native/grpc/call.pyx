# See call.pxd. Everything here runs on the loop's thread.
from cpython.ref cimport Py_XDECREF
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from triton_fast._native.core.memory cimport Block
from triton_fast._native.core.native cimport tf_buf_free
from triton_fast._native.core.poison cimport tf_poison, tf_unpoison
from triton_fast._native.grpc.message cimport message_begin
from triton_fast._native.grpc.out cimport Out, Segment, chain_free, chain_put, out_free, outs_alive

cdef enum:
    KEEP_CALLS = 1024           # structs kept for reuse

cdef Call* spare_calls = NULL
cdef int32_t n_spare = 0
cdef int64_t live_calls = 0
cdef int64_t live_items = 0


cdef Call* call_new(void* connection, int32_t stream_id) noexcept:
    global spare_calls, n_spare, live_calls
    cdef Call* call = spare_calls
    if call != NULL:
        tf_unpoison(call, sizeof(Call))
        spare_calls = call.next
        n_spare -= 1
    else:
        call = <Call*>malloc(sizeof(Call))
        if call == NULL:
            return NULL
    memset(call, 0, sizeof(Call))
    call.refs = 1
    call.connection = connection
    call.stream_id = stream_id
    live_calls += 1
    return call


cdef void call_ref(Call* call) noexcept:
    call.refs += 1


cdef void call_unref(Call* call) noexcept:
    global spare_calls, n_spare, live_calls
    call.refs -= 1
    if call.refs:
        return
    drop_outs(call)
    message_begin(&call.message)
    tf_buf_free(&call.stash)
    free(call.text)
    Py_XDECREF(call.forwarded)
    Py_XDECREF(call.metadata)
    Py_XDECREF(call.handler)
    Py_XDECREF(call.key)
    live_calls -= 1
    if n_spare < KEEP_CALLS:
        call.next = spare_calls
        spare_calls = call
        n_spare += 1
        tf_poison(call, sizeof(Call))
    else:
        free(call)


cdef void drop_outs(Call* call) noexcept:
    chain_free(call.out_head)
    call.out_head = NULL
    call.out_tail = NULL
    call.out_bytes = 0


cdef Item* item_new(Call* call) noexcept:
    global live_items
    cdef Item* item = <Item*>calloc(1, sizeof(Item))
    if item == NULL:
        return NULL
    call_ref(call)
    item.call = call
    item.prev = call.items_tail
    if call.items_tail != NULL:
        call.items_tail.next = item
    else:
        call.items = item
    call.items_tail = item
    call.n_items += 1
    live_items += 1
    return item


cdef void item_free(Item* item) noexcept:
    global live_items
    cdef Call* call = item.call
    chain_free(item.head)
    chain_free(item.raw_head)
    if item.prev != NULL:
        item.prev.next = item.next
    else:
        call.items = item.next
    if item.next != NULL:
        item.next.prev = item.prev
    else:
        call.items_tail = item.prev
    call.n_items -= 1
    call.item_bytes -= item.nbytes
    live_items -= 1
    free(item)
    call_unref(call)


cdef void call_put(Call* call, Out* out) noexcept:
    chain_put(&call.out_head, &call.out_tail, out)
    call.out_bytes += out.left


cdef size_t call_peek(Call* call, size_t room, const uint8_t** ptr, Block** block) noexcept:
    cdef Out* out = call.out_head
    cdef Segment* s
    cdef size_t n
    if out == NULL:
        return 0
    s = &out.segments[out.at]
    ptr[0] = s.ptr + out.offset
    block[0] = s.block
    n = s.n - out.offset
    return n if n < room else room


cdef void call_skip(Call* call, size_t n) noexcept:
    cdef Out* out = call.out_head
    out.offset += n
    out.left -= n
    call.out_bytes -= n
    if out.offset == out.segments[out.at].n:
        out.at += 1
        out.offset = 0
    if out.left == 0:
        call.out_head = out.next
        if call.out_head == NULL:
            call.out_tail = NULL
        out_free(out)


cdef size_t call_read(Call* call, uint8_t* buf, size_t room) noexcept:
    cdef size_t n, done = 0
    cdef const uint8_t* ptr
    cdef Block* block
    while done < room:
        n = call_peek(call, room - done, &ptr, &block)
        if n == 0:
            break
        memcpy(buf + done, ptr, n)
        call_skip(call, n)
        done += n
    return done


def stats():
    """Return the debug counters: live_calls, live_items, live_outs."""
    return {"live_calls": live_calls, "live_items": live_items, "live_outs": outs_alive()}
