"""Compiles the stand-in for libcuda.so.1 (fake_cuda/) and tells how to reach it: by path, or by LD_LIBRARY_PATH.

What a test holds in it can be counted, calls can be made to fail; see the head of fake_cuda.c.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_name("fake_cuda") / "fake_cuda.c"
HELD = ("device", "pinned", "allocations", "mappings", "streams", "events", "graphs", "contexts")
OUT_OF_MEMORY, ILLEGAL_ADDRESS = 2, 700

_made: list[tempfile.TemporaryDirectory[str]] = []  # removed when the process ends


@cache
def library() -> Path:
    """Return the compiled ``libcuda.so.1``, made once in a process."""
    _made.append(tempfile.TemporaryDirectory(prefix="fake_cuda_"))
    target = Path(_made[0].name) / "libcuda.so.1"
    compiler = os.environ.get("CC", "gcc").split()
    flags = ["-std=gnu11", "-O1", "-g", "-shared", "-fPIC", "-fvisibility=hidden"]
    subprocess.run([*compiler, *flags, "-o", str(target), str(SOURCE), "-lpthread"], check=True)
    return target


def environment(devices: int = 2, **more: object) -> dict[str, str]:
    """Return the environment in which a process finds the stand-in; ``memory=1 << 20`` is ``FAKE_CUDA_MEMORY``."""
    path = f"{library().parent}{os.pathsep}{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(os.pathsep)
    settings = {f"FAKE_CUDA_{name.upper()}": str(value) for name, value in more.items()}
    return {**os.environ, "LD_LIBRARY_PATH": path, "FAKE_CUDA_DEVICES": str(devices), **settings}


class StandIn:
    """The stand-in in this process."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        for function in (self._library.fake_calls, self._library.fake_held, self._library.fake_thread):
            function.restype = ctypes.c_long
        self._library.fake_limit.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
        self._library.fake_fail.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int]
        self._library.fake_data.argtypes, self._library.fake_data.restype = [ctypes.c_uint64], ctypes.c_void_p

    def fail(self, function: str, code: int = OUT_OF_MEMORY, nth: int = 1) -> None:
        """Have the ``nth`` call of a function from now on return ``code``."""
        self._library.fake_fail(function.encode(), nth, code)

    def limit(self, memory: int = 1 << 30, pinned: int = 0) -> None:
        """Set the memory of each device, and the pinned memory that the system allows (0: any amount)."""
        self._library.fake_limit(memory, pinned)

    def calls(self, function: str) -> int:
        return int(self._library.fake_calls(function.encode()))

    @contextmanager
    def watched(self, function: str, call: Callable[[], object]) -> Iterator[None]:
        """Have ``call`` called within each call of a function, before it does anything."""

        def told() -> None:
            call()

        calls = ctypes.CFUNCTYPE(None)(told)
        self._library.fake_watch(function.encode(), calls)
        try:
            yield
        finally:
            self._library.fake_watch(None, None)

    def current(self) -> int | None:
        """Return the device whose context is current on the calling thread."""
        context = ctypes.POINTER(ctypes.c_int)()
        assert self._library.cuCtxGetCurrent(ctypes.byref(context)) == 0
        return int(context[0]) if context else None

    def thread(self, function: str) -> int:
        """Return the thread of the last call, by its number in the system."""
        return int(self._library.fake_thread(function.encode()))

    def last_priority(self) -> int:
        """Return the priority of the stream that was made last with one; less goes before more."""
        return int(self._library.fake_priority())

    def held(self) -> dict[str, int]:
        return {what: int(self._library.fake_held(what.encode())) for what in HELD}

    def peek(self, address: int, n: int) -> bytes:
        """Return what lies in device memory now, whatever streams have yet to do."""
        data = self._library.fake_data(address)
        if data is None:
            raise ValueError(f"{address:#x} is no device memory")
        return ctypes.string_at(data, n)

    def poke(self, address: int, data: bytes) -> None:
        target = self._library.fake_data(address)
        if target is None:
            raise ValueError(f"{address:#x} is no device memory")
        ctypes.memmove(target, data, len(data))


@contextmanager
def opened() -> Iterator[StandIn]:
    """Have the driver of this process be the stand-in, with two devices; closed again, and nothing may be held then."""
    from triton_fast._native.cuda import copies, device_pool, driver, pinned, regions

    fake = StandIn(library())
    fake.limit()
    driver.open_driver(str(library()))
    # Waits sleep at once: asking moves the stand-in on, so that how long they look would decide what a test sees.
    looks = copies.look(0)
    try:
        yield fake
    finally:
        copies.look(looks)
        regions.settle()
        fake._library.fake_fail_clear()
        fake.limit()
        pinned.stop()
        pinned.trim()  # forgets who went without
        device_pool.trim()
        copies.trim()
        held = {what: n for what, n in fake.held().items() if n and what != "contexts"}
        driver._close()
    assert not held, f"still held: {held}"
    assert fake.held()["contexts"] == 0
