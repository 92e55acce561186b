"""Opens a package of AOTInductor in a process of its own first: it is machine code, and begins to run as it is opened.

Run as ``python -m triton_fast.backends.pytorch.probe PATH INDEX``, INDEX being that of a GPU, or -1; backends/trial
says what it answers.
"""

from __future__ import annotations

import sys

from triton_fast.backends import trial
from triton_fast.backends.pytorch import library
from triton_fast.backends.pytorch.texts import short

# Starting PyTorch and a GPU takes most of what it takes.
TIMEOUT_S = 300.0


def check(file: trial.Held, index: int) -> None:
    """Raise a ServerError with the cause when the package can not be opened."""
    trial.check(
        "triton_fast.backends.pytorch.probe", file, [str(index)], timeout=TIMEOUT_S,
        crashed="its code ended the process that opened it on trial with {}: compile it again with the release of "
        "PyTorch and the C++ library that the server runs with",
    )  # fmt: skip


def main(path: str, index: str) -> str | None:
    """Return why the package can not be opened, or None."""
    trial.begin()
    torch = library.torch()
    try:
        torch._C._aoti.AOTIModelPackageLoader(path, "model", False, 1, int(index)).get_call_spec()
    except Exception as error:
        return short(error)
    return None


if __name__ == "__main__":
    trial.end(main(*sys.argv[1:]))
