/* Datatypes by number (those of inference.DataType): bytes of one element, and the v2 protocol's name, both ways. */
#ifndef TF_TYPES_H
#define TF_TYPES_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>

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

/* The number of the datatype that p[0:n] names; 0 when it names none. */
static inline int32_t dtype_from_name(const void *p, size_t n) {
    char name[8] = {0};
    uint64_t packed, known;
    int32_t i;
    if (n - 4 > 2) return 0;
    /* Copies of fixed size: two that overlap in the middle. */
    memcpy(name + n - 4, (const char *)p + n - 4, 4);
    memcpy(name, p, 4);
    memcpy(&packed, name, 8);
    static const char names[TF_TYPE_COUNT][8] = {"",     "BOOL",  "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16",
                                                 "INT32", "INT64", "FP16",  "FP32",   "FP64",   "BYTES",  "BF16"};
    memcpy(&known, names[11], 8);
    if (packed == known) return 11;
    for (i = 1; i < TF_TYPE_COUNT; i++) {
        memcpy(&known, names[i], 8);
        if (packed == known) return i;
    }
    return 0;
}
#endif
