"""Reads a model file in a process of its own first: treelite may crash over a corrupt one, or never end.

Run as ``python -m triton_fast.backends.fil.probe PATH LIBRARY KIND UNKNOWN``; backends/trial says what it answers.
Knows no config.
"""

from __future__ import annotations

import os
import resource
import sys

from triton_fast._native.fil import treelite
from triton_fast._native.fil.forest import Forest
from triton_fast._native.fil.instance import predict
from triton_fast.backends import trial
from triton_fast.errors import ServerError

# Bytes that reading may take: some, and a multiple of the file's.
ROOM = 2 << 30
TIMES = 64
MAX_ROW = 1 << 20  # features of the row that is tried
ZERO = (
    "trees that take zeros for missing values (zero_as_missing=True) are not supported: treelite lets them go the "
    "other way"
)


def check(library: str, file: trial.Held, kind: str, *, unknown_fields: bool, timeout: float) -> None:
    """Raise a ServerError with the cause when the file can not be served."""
    trial.check(
        "triton_fast.backends.fil.probe", file, [library, kind, str(int(unknown_fields))], timeout=timeout,
        crashed="the file is corrupt: treelite ended with {} while it read the file",
        environment={"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def main(path: str, library: str, kind: str, unknown: str) -> str | None:
    """Return why the file can not be served, or None."""
    trial.begin()
    treelite.open_library(library)
    limit = ROOM + TIMES * os.stat(path).st_size
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    try:
        if kind == "lightgbm" and zero_is_missing(path):
            return ZERO
        forest = Forest(path, kind, unknown == "1")
        if forest.features <= MAX_ROW:
            predict(forest, bytes(4 * forest.features))
    except ServerError as error:
        return error.message
    except MemoryError:
        return "the file is corrupt: reading it takes too much memory"
    return None


def zero_is_missing(path: str) -> bool:
    """Whether a LightGBM model has a split of numbers with zero as its missing value, which treelite lets pass."""
    with open(path, "rb") as file:
        for line in file:
            key, _, values = line.partition(b"=")
            # Bit 0: a split of categories; bits 2 and 3: what is missing, 1 is zero.
            if key == b"decision_type" and any(not value & 1 and value >> 2 & 3 == 1 for value in numbers(values)):
                return True
    return False


def numbers(texts: bytes) -> set[int]:
    return {int(text) for text in texts.split() if len(text) <= 3 and text.isdigit()}


if __name__ == "__main__":
    trial.end(main(*sys.argv[1:]))
