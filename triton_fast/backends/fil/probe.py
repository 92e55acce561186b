"""Reads a model file in a process of its own first: treelite may crash over a corrupt one, or never end.

Run as ``python -m triton_fast.backends.fil.probe LIBRARY PATH KIND UNKNOWN``, it prints why the file is refused, as
JSON, and ends with 0 when it is good. Knows no config.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

from triton_fast._native.fil import treelite
from triton_fast._native.fil.forest import Forest
from triton_fast._native.fil.instance import predict
from triton_fast.errors import InvalidArg, ServerError, Unavailable

REFUSED = 3
# Bytes that reading may take: some, and a multiple of the file's.
ROOM = 2 << 30
TIMES = 64
MAX_ROW = 1 << 20  # features of the row that is tried
# Files that passed, as they were: a load asks twice, first for the config and then for the model.
_passed: OrderedDict[tuple[object, ...], None] = OrderedDict()
_KEPT = 256


def check(library: str, path: str, kind: str, *, unknown_fields: bool, timeout: float) -> None:
    """Raise a ServerError with the cause when the file can not be served."""
    state = _state(path)
    key = (library, path, kind, unknown_fields, *state)
    if state and key in _passed:
        return
    root = str(Path(__file__).resolve().parents[3])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *filter(None, sys.path)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "triton_fast.backends.fil.probe", library, path, kind, str(int(unknown_fields))]
    try:
        made = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
            timeout=timeout, check=False,
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
        name = signal.Signals(-made.returncode).name
        raise InvalidArg(f"the file is corrupt: treelite ended with {name} while it read the file")
    raise InvalidArg(f"the file is corrupt: the process that checked it ended with {made.returncode}")


def _state(path: str) -> tuple[int, ...]:
    """What changes when the file does; nothing where that can not be told."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def main(library: str, path: str, kind: str, unknown: str) -> int:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    treelite.open_library(library)
    limit = ROOM + TIMES * os.stat(path).st_size
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    try:
        forest = Forest(path, kind, unknown == "1")
        if forest.features <= MAX_ROW:
            predict(forest, bytes(4 * forest.features))
    except ServerError as error:
        sys.stdout.write(json.dumps(error.message))
        return REFUSED
    except MemoryError:
        sys.stdout.write(json.dumps("the file is corrupt: reading it takes too much memory"))
        return REFUSED
    return 0


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)
