"""A scheduler that answers within submit. Source: sched/inline.pyx."""

from triton_fast._native.sched.scheduler import NativeScheduler

class InlineEcho(NativeScheduler):
    """Answers each request within its submit: output k is input k, by reference. For tests and bench/micro."""

    def __init__(self) -> None: ...
