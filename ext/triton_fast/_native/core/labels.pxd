# Names of an output's elements, for classification. A struct only; no extension of its own.
from libc.stdint cimport uint32_t


# labels[output index] of a model is NULL or a table of n texts.
cdef struct LabelTable:
    uint32_t n
    char** text
    uint32_t* text_len
