"""Finds TensorRT once per process, loads the plugins that the operator names, and keeps what its logger says.

Knows TensorRT's module and log; no model, no config.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import threading
from collections import deque
from functools import cache
from typing import Any

from triton_fast.errors import ServerError, Unavailable
from triton_fast.observability import log

INSTALL = "pip install 'triton_fast[tensorrt]'"
RUNTIMES = ("tensorrt", "tensorrt_lean", "tensorrt_dispatch")
OLDEST = 10  # its major version: before, tensors had numbers and not names
KEPT = 16  # messages of a logger that nobody has asked for yet
LONGEST = 600  # characters of a message that go into an error

_plugins: dict[str, str] = {}  # path -> "" or why it could not be loaded
_lock = threading.Lock()


@cache
def module() -> Any:
    """Return the package ``tensorrt``, else its lean or dispatch runtime, which open version-compatible plans alone.

    Raises
    ------
    Unavailable
        There is none that can be used, with what to do.
    """
    for name in RUNTIMES:
        try:
            return _usable(importlib.import_module(name))
        except ModuleNotFoundError as error:
            if error.name is None or not error.name.startswith("tensorrt"):
                raise Unavailable(f"TensorRT can not be used, {_plain(error)}: {INSTALL}") from None
        except ServerError:
            raise
        except Exception as error:  # the package opens its libraries in many ways
            raise Unavailable(f"TensorRT can not be used, {_plain(error)}: {INSTALL}") from None
    raise Unavailable(f"TensorRT is not installed: {INSTALL}")


def _usable(found: Any) -> Any:
    version = str(getattr(found, "__version__", ""))
    major = version.partition(".")[0]
    if not major.isdecimal() or int(major) < OLDEST:
        raise Unavailable(f"TensorRT {version or '(no version)'} is too old, {OLDEST}.0 is needed: {INSTALL}")
    return found


def version() -> str:
    return str(module().__version__)


def load_plugins(paths: str) -> tuple[str, ...]:
    """Load libraries of plugins, once each: paths with ``;`` between them. Return why, for those that can not be.

    As in Triton a library that can not be opened is logged and no more: plans that need it fail with TensorRT's words.
    """
    faults = []
    with _lock:
        _register_own()
        for path in filter(None, (part.strip() for part in paths.split(";"))):
            if path not in _plugins:
                try:
                    ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
                    _plugins[path] = ""
                    log.info(f"loaded TensorRT plugin library {path}")
                except OSError as error:
                    # The loader's text has the path, which is the operator's.
                    log.error(f"unable to load plugin library: {error}")
                    _plugins[path] = f"unable to load plugin library '{os.path.basename(path)}'"
            if _plugins[path]:
                faults.append(_plugins[path])
    return tuple(faults)


@cache
def _register_own() -> None:
    """Register the plugins that come with TensorRT. The lean and dispatch runtimes have none."""
    register = getattr(module(), "init_libnvinfer_plugins", None)
    if register is not None and not register(make_logger("plugins"), ""):
        log.error("Failed to register TensorRT Plugins")


def make_logger(model: str) -> Any:
    """Return a new ``ILogger`` that passes on to the server's log and keeps errors for `complaints`."""
    return _logger_class()(model)


@cache
def _logger_class() -> type:
    trt = module()
    severity = trt.ILogger

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        """TensorRT calls ``log`` on its own threads too; it must never raise."""

        def __init__(self, model: str) -> None:
            super().__init__()
            self.model = model
            self.kept: deque[tuple[int, str]] = deque(maxlen=KEPT)

        def log(self, level: Any, message: str) -> None:
            with contextlib.suppress(Exception):  # one would end the process
                if level in (severity.INTERNAL_ERROR, severity.ERROR):
                    self.kept.append((threading.get_ident(), message))
                    log.error(f"TensorRT: {message}", model=self.model)
                elif level == severity.WARNING:
                    log.warning(f"TensorRT: {message}", model=self.model)
                else:
                    log.verbose(1 if level == severity.INFO else 2, f"TensorRT: {message}", model=self.model)

        def complaints(self) -> str:
            """Return, and forget, the errors of this thread, else those of any; "" when there are none."""
            ours = threading.get_ident()
            kept = list(self.kept)
            texts = [text for thread, text in kept if thread == ours] or [text for _, text in kept]
            self.kept.clear()
            return "; ".join(dict.fromkeys(_short(text) for text in texts))

    return Logger


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."


def _plain(error: BaseException) -> str:
    return f"{type(error).__name__}: {_short(str(error))}"
