"""``python -m triton_fast.cli`` prints docs/flags.md."""

from __future__ import annotations

from triton_fast.cli.usage import markdown

if __name__ == "__main__":
    print(markdown(), end="")
