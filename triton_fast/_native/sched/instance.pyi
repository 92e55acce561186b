"""Base class of what backends hand out. The contract of its C function: ext/triton_fast/_native/sched/instance.pxd."""

class NativeInstance:
    """One model instance: a C function that executes a batch, and its state.

    Backends subclass it in Cython; Python code only passes it on to ``NativeModel.start_instance``.

    Attributes
    ----------
    name : str
        ``<group>_<n>``; the end of it becomes the thread's name.
    takes_gpu : bool
        Numbers in memory of GPU ``device`` are given to it as they are; all else it finds in host memory. Set before
        its thread starts.
    device : int
        That GPU.
    copies_from : int
        From how many requests in a batch on it copies inputs before it looks at them; 0: never. Below, inputs that a
        client may change are copied for it.
    """

    name: str
    takes_gpu: bool
    device: int
    copies_from: int
    def __init__(self, *args: object, **kwargs: object) -> None: ...
