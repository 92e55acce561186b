# Classification: the k greatest elements of an output as "<value>:<index>[:<label>]" strings. Any protocol's encoder
# calls it before it encodes; knows no protocol.
from libc.stdint cimport int32_t

from triton_fast._native.core.native cimport tf_error
from triton_fast._native.core.request cimport Response
from triton_fast._native.core.labels cimport LabelTable


# Replace every output whose Wanted has classes > 0 by its STRING tensor of shape [batch?, min(classes, n)], in a block
# of its own, and clear that Wanted's classes, so that a second call does nothing; not for a carrier, whose list is its
# whole family's. labels may be NULL.
# Returns 0, or -1 with e filled; outputs done before the failure stay replaced.
cdef int reply_classify(Response* p, LabelTable** labels, tf_error* e) noexcept nogil
