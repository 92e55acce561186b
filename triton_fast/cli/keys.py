"""``python -m triton_fast keys add|list|remove``: the file of --api-keys. A key is printed once, when it is made."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from triton_fast.errors import ServerError
from triton_fast.frontends import keyfile


def main(argv: Sequence[str]) -> int:
    """Return 0 when done, 1 when the file or what was asked for is no good."""
    parser = argparse.ArgumentParser(
        prog="python -m triton_fast keys", description="Change the file of API keys; a running server follows it."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    add = verbs.add_parser("add", help="make a key: print it, once, and write its hash")
    add.add_argument("--scope", required=True, help="comma list of " + ", ".join(keyfile.SCOPES))
    add.add_argument("--name", default="", help="what the list calls it")
    add.add_argument("--expires", default="", help="date or time, UTC, from which on it is refused")
    add.add_argument("--rate", default="0", help="requests a second that it may make; 0 is any number")
    show = verbs.add_parser("list", help="show ids, names, scopes, expiry and rates")
    remove = verbs.add_parser("remove", help="take a key out: it is refused within a second")
    remove.add_argument("key", metavar="ID_OR_NAME")
    for verb in (add, show, remove):
        verb.add_argument("--file", required=True, type=Path, help="the file, as given to --api-keys")
    given = parser.parse_args(argv)
    try:
        if given.verb == "add":
            _add(given)
        elif given.verb == "list":
            _list(keyfile.load(given.file))
        else:
            gone = keyfile.remove(given.file, given.key)
            print(f"removed {gone.id} {gone.name}".rstrip())
    except ServerError as error:
        print(f"error: {given.file}: {error}", file=sys.stderr)
        return 1
    return 0


def _add(given: argparse.Namespace) -> None:
    text, key = keyfile.make(
        keyfile.scopes_of(given.scope), name=given.name, rate=keyfile.rate_of(given.rate),
        expires=keyfile.moment(given.expires) if given.expires else None,
    )  # fmt: skip
    keyfile.check(key)
    keyfile.add(given.file, key)
    print(text)


def _list(keys: dict[str, keyfile.Key]) -> None:
    columns = ("id", "name", "scopes", "expires", "rate")
    rows = [columns, *(tuple(key.fields().get(column, "-") for column in columns) for key in keys.values())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
