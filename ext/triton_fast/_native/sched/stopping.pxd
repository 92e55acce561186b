# What a request reads that comes when its model stops, whichever scheduler says it. Declarations only.

cdef extern from * nogil:
    """
    #define TF_STOPPING "Server is stopping, scheduler for model has stopped accepting new inference requests"
    """
    const char* STOPPING "TF_STOPPING"
