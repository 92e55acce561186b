/* What only newer versions of libnghttp2 have, called where the library that is linked has it. */
#ifndef TF_NGHTTP2_H
#define TF_NGHTTP2_H
#include <nghttp2/nghttp2.h>

extern void nghttp2_option_set_stream_reset_rate_limit(nghttp2_option *option, uint64_t burst, uint64_t rate)
    __attribute__((weak));

static inline void tf_nghttp2_reset_limit(nghttp2_option *option, uint64_t burst, uint64_t rate) {
    if (nghttp2_option_set_stream_reset_rate_limit) nghttp2_option_set_stream_reset_rate_limit(option, burst, rate);
}
#endif
