/* Datatypes by number (those of inference.DataType): bytes of one element, and the v2 protocol's name. */
#ifndef TF_TYPES_H
#define TF_TYPES_H
#include <stdint.h>

#define TF_TYPE_COUNT 15

/* 0 for STRING, whose elements vary, and for numbers that are no datatype. */
static inline int32_t dtype_size(int32_t dtype) {
    static const int8_t size[TF_TYPE_COUNT] = {0, 1, 1, 2, 4, 8, 1, 2, 4, 8, 2, 4, 8, 0, 2};
    return (uint32_t)dtype < TF_TYPE_COUNT ? size[dtype] : 0;
}

static inline const char *dtype_name(int32_t dtype) {
    static const char *const name[TF_TYPE_COUNT] = {
        "<invalid>", "BOOL",  "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16",
        "INT32",     "INT64", "FP16",  "FP32",   "FP64",   "BYTES",  "BF16"};
    return (uint32_t)dtype < TF_TYPE_COUNT ? name[dtype] : name[0];
}
#endif
