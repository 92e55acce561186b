"""How long the kernel lets a thread run before one that wakes may take its core.

With the 3 ms that Linux gives by default, the loop or an instance waits that long behind a model that is loaded or a
worker that starts. Linux 6.12 and later take another length from anybody; older ones ignore it. Knows no models.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

# The shortest that the kernel takes.
SLICE_NS = 100_000
# sched_setattr
_CALLS = {"x86_64": 314, "aarch64": 274}
# size, policy, flags, nice, priority, runtime, deadline, period
_ATTRIBUTES = struct.Struct("=IIQiIQQQ")


def shorten(slice_ns: int = SLICE_NS) -> bool:
    """Give this thread, and all that it starts from now on, short slices; return whether the kernel took the call.

    Its share of the cores stays what it was. A thread under another policy than the default is left alone.
    """
    number = _CALLS.get(platform.machine())
    if number is None or not hasattr(os, "sched_getscheduler"):
        return False
    try:
        if os.sched_getscheduler(0) != os.SCHED_OTHER:
            return False
    except OSError:
        return False  # a C library without the call, or a filter of calls
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    given = _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_OTHER, 0, nice, 0, slice_ns, 0, 0)
    return int(ctypes.CDLL(None).syscall(number, 0, given, 0)) == 0
