"""Opens a model's file in a process of its own first: what crashes or hangs there does not take the server with it.

A module that serves for it is run as ``python -m MODULE FILE ARGUMENTS``: it ends with 0 when the file is good, or with
``REFUSED`` and the cause as JSON in the last line that it prints. Knows no framework and no config.
"""

from __future__ import annotations

import fcntl
import hashlib
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
_PIECE = 1 << 20
_LIMIT_VARIABLE = "TRITON_FAST_TRIAL_SECONDS"


class Held:
    """A file that stays the one that it is now, whatever is put in its place: what was tried is what is opened.

    What is written into the file itself can still come between, unless it is ``copied``, and a library that first looks
    where its name leads opens what is there then: ``unchanged`` tells it afterwards. What fails over a file that was
    changed says that.

    Parameters
    ----------
    copied
        Take its bytes into memory that nobody can write to: for libraries that a file which passed no trial may crash.

    Attributes
    ----------
    name
        By which it is opened, here and in the process that tries it.
    state
        What changes when the file does.
    tried
        What tells what passed a trial from what did not.

    Raises
    ------
    Unavailable
        It can not be opened.
    """

    def __init__(self, path: str, *, copied: bool = False) -> None:
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise Unavailable(f"can not open the file: {error.strerror}") from None
        self._path = path
        self.state = _state(os.fstat(self.fd))
        self.tried: tuple[object, ...] = self.state
        if copied:
            try:
                copy, self.tried = _copy(self.fd)
            except OSError as error:
                raise Unavailable(f"can not read the file: {error.strerror}") from None
            finally:
                os.close(self.fd)
            self.fd = copy
        name = f"/proc/self/fd/{self.fd}"
        self.name = name if os.path.exists(name) else os.path.abspath(path)

    def __enter__(self) -> Held:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        os.close(self.fd)
        if isinstance(error, Exception):
            self.unchanged()

    def unchanged(self) -> None:
        """Raise InvalidArg when the file is not what it was, or is no longer what its path leads to."""
        if self._now()[:_SAME] != self.state[:_SAME]:
            raise InvalidArg("the file was changed while it was opened: load the model again once it is whole")

    def is_as_it_was(self) -> bool:
        """Whether not even its names have changed."""
        return self._now() == self.state

    def _now(self) -> State:
        try:
            return _state(os.stat(self._path))
        except OSError:
            return ()


def check(
    module: str, file: Held, arguments: Sequence[str], *, timeout: float, crashed: str,
    environment: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Return when the file passes, or has passed before and is still the same.

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
    key = (module, *arguments, *file.tried)
    if key in _passed:
        return
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(dict.fromkeys([*filter(None, sys.path), root]))
    own = {"PYTHONPATH": paths, _LIMIT_VARIABLE: str(math.ceil(timeout) + 1)}
    try:
        made = subprocess.run(
            [sys.executable, "-m", module, file.name, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, env={**os.environ, **own, **(environment or {})}, timeout=timeout, check=False,
            cwd=os.sep,  # Python looks there for modules first, and anybody might write where the server was started
            pass_fds=[file.fd],
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise InvalidArg(f"the file is corrupt, or reading it takes more than {timeout:g} s") from None
    except OSError as error:
        raise Unavailable(f"can not start the process that checks the file: {error.strerror}") from None
    last = made.stdout.rpartition(b"\n")[2]
    # The code alone may come from elsewhere: of a child that somebody else has waited for Python says 0.
    if made.returncode == 0 and last == _PASSED:
        file.unchanged()
        # Where the bytes are what is known by, it does not matter what becomes of the file.
        if file.tried != file.state or file.is_as_it_was():
            _passed[key] = None
            while len(_passed) > _KEPT:
                _passed.popitem(last=False)
        return
    if made.returncode < 0:
        raise InvalidArg(crashed.format(_signal(-made.returncode)))
    try:
        # A library may have printed something before.
        cause = json.loads(last) if made.returncode == REFUSED else None
    except ValueError:
        cause = None
    raise InvalidArg(str(cause or f"the file is corrupt: the process that checked it ended with {made.returncode}"))


def _copy(fd: int) -> tuple[int, tuple[object, ...]]:
    """Return memory with the bytes of a file, which nobody can change, and what tells them from others."""
    made = os.memfd_create("model", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        digest = hashlib.blake2b()
        with open(made, "wb", closefd=False) as target, open(fd, "rb", closefd=False) as source:
            while piece := source.read(_PIECE):
                digest.update(piece)
                target.write(piece)
        os.lseek(made, 0, os.SEEK_SET)
        fcntl.fcntl(made, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    except BaseException:
        os.close(made)
        raise
    return made, (digest.digest(),)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _state(found: os.stat_result) -> State:
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
