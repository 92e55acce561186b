# Inputs that lie in GPU memory, brought to the host, and those in a client's, copied out: by the thread of the instance
# that needs them, all of a batch at once, before the backend sees them. So whatever lies before may pass such a tensor
# on and must not look at its bytes.
from libc.stdint cimport int32_t

from triton_fast._native.core.native cimport tf_error
from triton_fast._native.core.request cimport Request
from triton_fast._native.core.tensor cimport Tensor


# n requests of a batch, some with FLAG_DEVICE or FLAG_LENT. Numbers stay on `device` (-1: nothing does), where the
# backend takes them, and if it gets `copies_from` or more in memory of the host that others may write. A request whose
# inputs can not be had is failed and moved behind the others; with `placed`, where its place in the batch has a
# meaning, it stays where it is with zeros for its inputs. Returns how many to execute; of fewer than n, Request.order
# says where each stood.
cdef int32_t fetch_batch(Request** requests, int32_t n, int32_t device, bint placed,
                         int32_t copies_from) noexcept nogil
# Each where it stood before the others, but for those that the backend kept (NULL), which are last.
cdef void fetch_restore(Request** requests, int32_t n) noexcept nogil
# The same at once for the inputs of r that are texts, for who must know their lengths. 0, or -1 with e.
cdef int fetch_texts(Request* r, tf_error* e) noexcept nogil
# One tensor, at once, into a block of its own that counts as memory of requests. 0, or -1 with e.
cdef int fetch_tensor(Tensor* t, tf_error* e) noexcept nogil
