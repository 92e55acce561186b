# Chunked bodies of HTTP/1.1, sans-IO: bytes in, payload out. It knows nothing of heads, sockets or routes. Called by
# the connection code, without the GIL.

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

cdef enum:
    HTTP_MAX_CHUNK_EXT = 4096       # bytes of chunk extensions in one whole body
    HTTP_MAX_TRAILER = 8192         # bytes of trailer section
    HTTP_MAX_CHUNKS = 65536         # non-empty chunks; the usual max_chunks of chunked_init

cdef struct Chunked:                # incremental decoder; may be copied, moved or dropped at any time
    uint8_t state
    uint8_t digits                  # of the current chunk-size
    int32_t error_status            # 0, else 400, 413 or 431
    uint32_t n_chunks               # non-empty chunks so far
    uint32_t max_chunks
    uint32_t ext_bytes              # of chunk extensions so far
    uint32_t trailer_bytes
    uint64_t chunk_left             # payload bytes of the current chunk still to come
    uint64_t body                   # payload bytes announced by all chunk sizes so far
    uint64_t max_body
    char error_text[128]

cdef void chunked_init(Chunked* c, uint64_t max_body, uint32_t max_chunks) noexcept nogil

# 1 body and trailers finished, 0 need more input or dst full, -1 error (then also on every later call). Copies
# payload to dst (no overlap with src; dst NULL: count only). consumed and produced are set on every return.
cdef int chunked_feed(Chunked* c, const uint8_t* src, size_t n, uint8_t* dst, size_t dst_cap,
                      size_t* consumed, size_t* produced) noexcept nogil
