"""``python -m triton_fast --model-repository=...``"""

from __future__ import annotations

import sys


def main() -> None:
    """Parse the command line, serve until a signal, exit with the server's code."""
    from triton_fast import cli

    options = cli.parse_or_exit(sys.argv[1:])

    from triton_fast.app import run

    sys.exit(run(options))


if __name__ == "__main__":
    main()
