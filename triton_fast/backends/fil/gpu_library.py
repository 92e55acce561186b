"""What runs forests on GPUs: nvforest, else cuML, imported where there is a GPU and a model that may use it.

Their Python interfaces are the only ones they have. They have no types here: the server is checked, and runs, without.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from triton_fast._native.cuda import driver
from triton_fast.errors import Unavailable

_LIMIT = 500
# The folders of an absolute path; its last part stays.
_FOLDERS = re.compile(r"(?<![\w.:/])/(?:[^/\s'\"(),:;]+/)+")


class Opened(NamedTuple):
    """A forest on a GPU: numbers of a row, and what makes them, a cupy array, of a cupy array of rows."""

    width: int
    scores: Callable[[Any], Any]


@dataclass(frozen=True)
class Library:
    """``make`` opens a treelite model: (package, model, device, layout, chunk size)."""

    name: str
    version: str
    package: Any
    cupy: Any
    make: Callable[[Any, Any, int, str, int | None], Opened]

    def open(self, checkpoint: bytes, device: int, layout: str, chunk: int | None) -> Opened:
        """Put a forest on a GPU. Raises what the library raises."""
        treelite = importlib.import_module("treelite")
        with self.on(device):
            return self.make(self.package, treelite.Model.deserialize_bytes(checkpoint), device, layout, chunk)

    def on(self, device: int) -> AbstractContextManager[Any]:
        """Return a context in which this thread works on a device."""
        # Where a thread has no device, cupy goes back to the first one, which makes a context there.
        driver.enter(device)
        made: AbstractContextManager[Any] = self.cupy.cuda.Device(device)
        return made

    def settle(self, device: int) -> None:
        """Wait for whatever is queued on a device, after an error: it may use memory that is about to be freed."""
        with suppress(Exception), self.on(device):
            self.cupy.cuda.Device(device).synchronize()

    def clean(self, device: int) -> None:
        """Give memory that cupy keeps for its next array back to the device."""
        with suppress(Exception), self.on(device):
            self.cupy.get_default_memory_pool().free_all_blocks()


def library() -> Library:
    """Return the library. Raises Unavailable where there is none that can be used."""
    found = _find()
    if isinstance(found, str):
        raise Unavailable(found)
    return found


def why_not() -> str:
    """Return why forests can not run on GPUs, and what to do; empty where they can."""
    found = _find()
    return found if isinstance(found, str) else ""


def lost(device: int) -> str:
    """Return the error after which CUDA refuses everything on a GPU until the process ends; empty: it is well."""
    return next((why for number, why in driver.lost() if number == device), "")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU, or the pool of cupy on it, had too little memory."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "bad_alloc" in text


def short(error: BaseException) -> str:
    """Return the first line of what an exception says, as clients may see it; the name of its type where that is
    nothing."""
    try:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    except Exception:  # of the error's own __str__
        lines = []
    return _FOLDERS.sub("", lines[0])[:_LIMIT] if lines else type(error).__name__


@cache
def _find() -> Library | str:
    reasons = []
    for name, make in (("nvforest", _of_nvforest), ("cuml", _of_cuml)):
        try:
            if importlib.util.find_spec(name) is None:
                continue
            package = importlib.import_module(name)
            if name == "cuml" and not hasattr(importlib.import_module("cuml.fil").ForestInference, "optimize"):
                reasons.append(f"cuML {package.__version__} is too old: {_install()}")
                continue
            cupy = importlib.import_module("cupy")
            return Library(name, str(getattr(package, "__version__", "")), package, cupy, make)
        except Exception as error:  # they open libraries, and look for GPUs, as they are imported
            reasons.append(f"the installed {name} can not be imported: {type(error).__name__}: {short(error)}")
    return reasons[0] if reasons else f"nvforest is not installed: {_install()}"


def _install() -> str:
    release, _ = driver.version()
    if not release:
        return "pip install nvforest-cu12 or nvforest-cu13, as the driver is for"
    return f"pip install nvforest-cu{'13' if release >= 13 else '12'}"


def _of_nvforest(package: Any, model: Any, device: int, layout: str, chunk: int | None) -> Opened:
    made = package.load_from_treelite_model(
        model, device="gpu", device_id=device, layout=layout, default_chunk_size=chunk, precision=None
    )
    # A classifier's predict gives class numbers by a threshold of its own.
    return Opened(int(made.num_outputs), made.predict_proba if made.is_classifier else made.predict)


def _of_cuml(package: Any, model: Any, device: int, layout: str, chunk: int | None) -> Opened:
    made = package.fil.ForestInference(
        treelite_model=model, is_classifier=False, output_type="cupy", layout=layout, default_chunk_size=chunk,
        precision=None, device_id=device,
    )  # fmt: skip
    # What is no classifier for it gives the scores as they are.
    return Opened(int(made.num_outputs()), made.predict)
