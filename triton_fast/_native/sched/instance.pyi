"""Base class of what backends hand out. The contract of its C function: ext/triton_fast/_native/sched/instance.pxd."""

class NativeInstance:
    """One model instance: a C function that executes a batch, and its state.

    Backends subclass it in Cython; Python code only passes it on to ``NativeModel.start_instance``.

    Attributes
    ----------
    name : str
        ``<group>_<n>``; the end of it becomes the thread's name.
    """

    name: str
    def __init__(self, *args: object, **kwargs: object) -> None: ...
