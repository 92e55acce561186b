"""The program of a worker; its arguments are the descriptors that docs/python_worker.md lists."""

import ctypes
import signal
import sys

PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    arguments, sys.argv = sys.argv[1:], [""]
    from triton_fast_worker.main import main

    main(arguments)
