"""Opens a model's file in a process of its own first: what crashes or hangs there does not take the server with it.

A module that serves for it is run as ``python -m MODULE ARGUMENTS``: it ends with 0 when the file is good, or with
``REFUSED`` and the cause as JSON on its standard output. Knows no framework and no config.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from triton_fast.errors import InvalidArg, Unavailable

REFUSED = 3
# Files that passed, as they were: a load asks twice, first for the config and then for the model.
_passed: OrderedDict[tuple[object, ...], None] = OrderedDict()
_KEPT = 256


def check(
    module: str, arguments: Sequence[str], path: str, *, timeout: float, crashed: str,
    environment: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Return when the file at ``path`` passes, or has passed before and is still the same.

    Parameters
    ----------
    module, arguments
        What to run.
    timeout
        Seconds it may take.
    crashed
        Said of a signal: ``{}`` stands for its name.
    environment
        Of the process, besides the server's own.

    Raises
    ------
    InvalidArg
        It does not pass, with the cause.
    Unavailable
        There is no process to be had.
    """
    state = _state(path)
    key = (module, *arguments, *state)
    if state and key in _passed:
        return
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join([root, *filter(None, sys.path)])
    try:
        made = subprocess.run(
            [sys.executable, "-m", module, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": paths, **(environment or {})}, timeout=timeout,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise InvalidArg(f"the file is corrupt, or reading it takes more than {timeout:g} s") from None
    except OSError as error:
        raise Unavailable(f"can not start the process that checks the file: {error.strerror}") from None
    if made.returncode == 0:
        if state and _state(path) == state:
            _passed[key] = None
            while len(_passed) > _KEPT:
                _passed.popitem(last=False)
        return
    if made.returncode == REFUSED:
        raise InvalidArg(json.loads(made.stdout))
    if made.returncode < 0:
        raise InvalidArg(crashed.format(signal.Signals(-made.returncode).name))
    raise InvalidArg(f"the file is corrupt: the process that checked it ended with {made.returncode}")


def _state(path: str) -> tuple[int, ...]:
    """What changes when the file does; nothing where that can not be told."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def end(cause: str | None) -> NoReturn:
    """End the process that tries a file: nothing is torn down, which could crash too."""
    if cause is not None:
        sys.stdout.write(json.dumps(cause))
        sys.stdout.flush()
    os._exit(0 if cause is None else REFUSED)
