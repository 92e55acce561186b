"""``tritonserver --model-repository=...``; ``triton_fast check REPOSITORY``; ``triton_fast keys add|list|remove``.

Both names, and ``python -m triton_fast``, are this one program.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Parse the command line, serve until a signal, exit with the server's code."""
    if sys.argv[1:2] == ["check"]:
        from triton_fast.cli import check

        sys.exit(check.main(sys.argv[2:]))

    if sys.argv[1:2] == ["keys"]:
        from triton_fast.cli import keys

        sys.exit(keys.main(sys.argv[2:]))

    from triton_fast import cli

    argv = sys.argv[1:]
    hidden = cli.hide(argv)
    options = cli.parse_or_exit(argv)
    if not hidden:
        print("Warning: secrets of the command line can be read with ps: give them as file:<path>", file=sys.stderr)

    from triton_fast.app import run

    sys.exit(run(options))


if __name__ == "__main__":
    main()
