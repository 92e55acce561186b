"""The program that a worker process runs; its directory is what ``import triton_python_backend_utils`` finds."""

import sys

from triton_fast_worker.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
