"""The program of a worker; its arguments are the descriptors that docs/python_worker.md lists."""

import ctypes
import signal
import sys

PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


if __name__ == "__main__":
    end_with_parent()
    arguments, sys.argv = sys.argv[1:], [""]
    if arguments[0] == "--template":
        from triton_fast_worker import template

        # Comes back only in a copy of this process: a worker.
        arguments = template.serve(int(arguments[1]), arguments[2], end_with_parent)
    from triton_fast_worker.main import main

    main(arguments)
