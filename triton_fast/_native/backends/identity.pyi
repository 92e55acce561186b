"""The identity backend's instance. Source: ext/triton_fast/_native/backends/identity.pyx."""

from triton_fast._native.sched.instance import NativeInstance

class IdentityInstance(NativeInstance):
    """An instance that hands inputs back: output i is the memory of input i, without a copy.

    A wanted output whose optional input is absent fails the request with InvalidArg.

    Parameters
    ----------
    name
        The instance's name.
    delay_ns
        How long each execution takes at least.
    """

    def __init__(self, name: str = "", delay_ns: int = 0) -> None: ...
