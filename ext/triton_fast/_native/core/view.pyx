# See view.pxd.
from cpython.buffer cimport PyBuffer_FillInfo

from triton_fast._native.core.memory cimport block_unref


cdef class BlockView:
    """A buffer over one tensor's data, writable unless others have it too; the memory lives while any view does."""

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, self.data, self.size, self.fixed, flags)

    def __releasebuffer__(self, Py_buffer* view):
        pass

    def __len__(self):
        return self.size

    def __dealloc__(self):
        block_unref(self.block)
