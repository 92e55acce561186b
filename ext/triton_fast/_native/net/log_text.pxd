# Text from outside as a JSON string on one line that no terminal acts on: observability/escape.py, without the GIL.
from triton_fast._native.core.native cimport tf_buf


# Append text[0:n] in quotes, hidden characters as JSON escapes, bytes that are no UTF-8 as U+FFFD.
cdef void log_text_put(tf_buf* out, const char* text, size_t n) noexcept nogil
# How many bytes at the beginning of text[0:n] stand for themselves in there.
cdef size_t log_text_plain(const char* text, size_t n) noexcept nogil
