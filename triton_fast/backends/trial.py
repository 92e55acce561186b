"""Opens a model's file in a process of its own first: what crashes or hangs there does not take the server with it.

A module that serves for it is run as ``python -m MODULE ARGUMENTS``: it ends with 0 when the file is good, or with
``REFUSED`` and the cause as JSON in the last line that it prints. Knows no framework and no config.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from triton_fast.errors import InvalidArg, Unavailable

# What a file that passes ends with: no cause.
_PASSED = b"null"
REFUSED = 3
State = tuple[int, ...]
# So many numbers of a state tell whether a file is the same; the last changes with its names too.
_SAME = 4
# Files that passed, as they were: a load asks twice, first for the config and then for the model.
_passed: OrderedDict[tuple[object, ...], None] = OrderedDict()
_KEPT = 256
_LIMIT_VARIABLE = "TRITON_FAST_TRIAL_SECONDS"


def check(
    module: str, arguments: Sequence[str], path: str, *, timeout: float, crashed: str,
    environment: Mapping[str, str] | None = None,
) -> State:  # fmt: skip
    """Return when the file at ``path`` passes, or has passed before and is still the same.

    What it gives is for ``unchanged``, to be asked after the file was opened here: one that was put in its place
    meanwhile has not passed.

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
        It does not pass, with the cause; or it was changed meanwhile.
    Unavailable
        There is no process to be had.
    """
    state = _state(path)
    key = (module, *arguments, *state)
    if state and key in _passed:
        return state[:_SAME]
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(dict.fromkeys([*filter(None, sys.path), root]))
    own = {"PYTHONPATH": paths, _LIMIT_VARIABLE: str(math.ceil(timeout) + 1)}
    try:
        made = subprocess.run(
            [sys.executable, "-m", module, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, env={**os.environ, **own, **(environment or {})}, timeout=timeout, check=False,
            cwd=os.sep,  # Python looks there for modules first, and anybody might write where the server was started
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise InvalidArg(f"the file is corrupt, or reading it takes more than {timeout:g} s") from None
    except OSError as error:
        raise Unavailable(f"can not start the process that checks the file: {error.strerror}") from None
    last = made.stdout.rpartition(b"\n")[2]
    # The code alone may come from elsewhere: of a child that somebody else has waited for Python says 0.
    if made.returncode == 0 and last == _PASSED:
        unchanged(path, state[:_SAME])
        if state and _state(path) == state:
            _passed[key] = None
            while len(_passed) > _KEPT:
                _passed.popitem(last=False)
        return state[:_SAME]
    if made.returncode < 0:
        raise InvalidArg(crashed.format(_signal(-made.returncode)))
    try:
        # A library may have printed something before.
        cause = json.loads(last) if made.returncode == REFUSED else None
    except ValueError:
        cause = None
    raise InvalidArg(str(cause or f"the file is corrupt: the process that checked it ended with {made.returncode}"))


def unchanged(path: str, state: State) -> None:
    """Raise InvalidArg when the file is not the one of which ``check`` gave ``state``."""
    if _state(path)[:_SAME] != state:
        raise InvalidArg("the file was changed while it was opened: load the model again once it is whole")


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _state(path: str) -> State:
    """What changes when the file does; nothing where that can not be told."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def begin() -> None:
    """Called first by the module that is run: without a server to end it, it ends by itself, and it leaves no core."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(int(os.environ[_LIMIT_VARIABLE]))


def end(cause: str | None) -> NoReturn:
    """End the process that tries a file: nothing is torn down, which could crash too."""
    sys.stdout.write("\n" + json.dumps(cause))
    sys.stdout.flush()
    os._exit(0 if cause is None else REFUSED)
