"""What mixed load is checked with: what the clients did, and what became of it in every version of every model."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from triton_fast.scheduling.runtime import ModelRuntime


class Tally:
    """What the clients did and saw. ``sent``: valid infer requests that reached the server whole."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.counts: Counter[str] = Counter()

    def add(self, name: str, n: int = 1) -> None:
        with self.lock:
            self.counts[name] += n


class Versions:
    """The counters of every version that was started: a reload begins anew, and the old version goes away."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.natives: list[Any] = []
        self.ends: Counter[str] = Counter()
        self.by_model: Counter[str] = Counter()  # all ends

    def add(self, native: Any) -> None:
        with self.lock:
            self.natives.append(native)

    def harvest(self, *, everything: bool = False) -> None:
        """Take over the counters of versions that have ended."""
        with self.lock:
            ended = [n for n in self.natives if everything or n.n_instances == 0]
            for native in ended:
                taken = native.snapshot()
                assert taken["pending"] == 0
                self.ends["success"] += taken["success"]
                self.ends.update(taken["failures"])
                self.by_model[native.name] += taken["success"] + sum(taken["failures"].values())
                self.natives.remove(native)


@contextmanager
def every_version(monkeypatch: pytest.MonkeyPatch) -> Iterator[Versions]:
    versions = Versions()
    start = ModelRuntime.start

    def kept(*arguments: Any, **named: Any) -> ModelRuntime:
        runtime = start(*arguments, **named)
        versions.add(runtime.native)
        return runtime

    with monkeypatch.context() as patch:
        patch.setattr(ModelRuntime, "start", kept)
        yield versions
