"""Split a command line as GNU getopt_long does: ``--flag=value``, ``--flag value``, unique prefixes, ``--``.

Knows the names of flags and whether each takes a value; nothing of what values mean.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence

from triton_fast.cli.table import OURS, Flag


class GetoptError(ValueError):
    """A flag that cannot be resolved: ``line`` is what getopt prints, ``hint`` a flag that may have been meant."""

    def __init__(self, line: str, hint: str = "") -> None:
        super().__init__(line)
        self.line = line
        self.hint = hint


def resolve(name: str, word: str, flags: Sequence[Flag]) -> Flag:
    """Return the flag called ``name``, or the only one that starts so; ``word`` is shown in the error.

    Of Triton's flags first: what is short for one of them stays so, whatever flags we have besides.

    Raises GetoptError when nothing fits, or when several flags with different meaning do.
    """
    for flag in flags:
        if flag.name == name:
            return flag
    fits = [flag for flag in flags if flag.name.startswith(name)]
    theirs = [flag for flag in fits if flag.group != OURS]
    if len({flag.field for flag in theirs}) == 1:
        return theirs[0]
    if not fits:
        close = difflib.get_close_matches(name, [flag.name for flag in flags], 1)
        raise GetoptError(f"unrecognized option '{word}'", close[0] if close else "")
    if len({flag.field for flag in fits}) > 1:
        names = " ".join(f"'--{flag.name}'" for flag in fits)
        raise GetoptError(f"option '{word}' is ambiguous; possibilities: {names}")
    return fits[0]


def split(argv: Iterable[str], flags: Sequence[Flag]) -> Iterator[tuple[Flag | None, str]]:
    """Yield ``(flag, value)`` in order, then ``(None, argument)`` for each word that belongs to no flag."""
    words = iter(argv)
    rest: list[str] = []
    for word in words:
        if word == "--":
            rest.extend(words)
        elif not word.startswith("-") or word == "-":
            rest.append(word)
        elif not word.startswith("--"):
            raise GetoptError(f"invalid option -- '{word[1]}'")
        else:
            name, has_value, value = word[2:].partition("=")
            flag = resolve(name, word, flags)
            takes_value = bool(flag.kind.word)
            if has_value and not takes_value:
                raise GetoptError(f"option '--{flag.name}' doesn't allow an argument")
            if takes_value and not has_value:
                following = next(words, None)
                if following is None:
                    raise GetoptError(f"option '--{flag.name}' requires an argument")
                value = following
            yield flag, value
    for word in rest:
        yield None, word
