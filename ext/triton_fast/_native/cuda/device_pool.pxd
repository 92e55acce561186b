# Blocks of device memory (kind MEM_GPU, device set): the address in Block.data is no CPU's to follow.
from triton_fast._native.core.memory cimport Block
from triton_fast._native.core.native cimport tf_error


# At least n bytes on a device, 256-byte aligned, refs == 1; NULL with e, which says how much there was. Freed blocks
# are kept for reuse up to the device's budget. Whoever lets go of the last reference has waited for everything in a
# stream that touches the memory: the next owner gets it at once. The thread stays at that device, for what comes next.
cdef Block* device_block_new(int device, size_t n, tf_error* e) noexcept nogil
