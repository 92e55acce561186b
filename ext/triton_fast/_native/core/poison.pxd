# What pools keep is out of bounds for all others: seen by AddressSanitizer, free of cost elsewhere. Declarations only.
cdef extern from "tf_poison.h" nogil:
    void tf_poison(const void* p, size_t n)
    void tf_unpoison(const void* p, size_t n)
