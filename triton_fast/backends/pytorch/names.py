"""Which tensor of a config is which argument or result of a model: Triton's naming rules, as plain functions.

Inputs: the names of forward's arguments, all of them; else ``<name>__<index>``, all of them; else the order of the
config. Outputs: keys or paths of the results; else ``<name>__<index>``; else the order. Knows no tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from triton_fast.config import ConfigError
from triton_fast.errors import Internal
from triton_fast.observability import log


def index_of(name: str) -> int | None:
    """Return the index of ``<name>__<index>``, as Triton reads it: digits behind the first two underscores."""
    _, mark, digits = name.partition("__")
    return int(digits) if mark and digits.isascii() and digits.isdigit() and len(digits) < 6 else None


def by_name(names: Sequence[str], known: Sequence[Mapping[str, int]]) -> list[int] | None:
    """Return positions by the first table that has every name; None where none has."""
    for table in known:
        if all(name in table for name in names):
            return [table[name] for name in names]
    return None


def inputs(
    model: str, names: Sequence[str], known: Sequence[Mapping[str, int]], *, count: int, states: Sequence[str] = ()
) -> list[int]:
    """Return for each name the position of its argument.

    Parameters
    ----------
    names
        The config's inputs and those that its scheduler adds.
    known
        Tables of names to positions: forward's arguments, paths.
    count
        How many arguments the model has.
    states
        Those of ``names`` that are states of sequences; Triton wants ``<name>__<index>`` then.

    Raises
    ------
    ConfigError, Internal
        An argument that no name, or more than one name, stands for; states that are not named by index.
    """
    found = None if states else by_name(names, known)
    if found is None:
        found = _by_index(model, names, "input", states)
    _check(model, names, found, count)
    return found


def outputs(model: str, names: Sequence[str], states: Sequence[str] = ()) -> list[int]:
    """Return for each name the position of its result, where names of results are not known."""
    return _by_index(model, names, "output", states)


def _by_index(model: str, names: Sequence[str], side: str, states: Sequence[str]) -> list[int]:
    indices = [index_of(name) for name in names]
    found = [index for index in indices if index is not None]
    if len(found) == len(names):
        return found
    if states:
        raise ConfigError(
            f"PyTorch model '{model}' is using sequence batching with state but not all inputs and outputs follow the "
            "<name>__<index> naming convention. "
        )
    odd = names[indices.index(None)]
    rule = "are neither an input argument to the model nor do they follow" if side == "input" else "do not follow"
    log.verbose(
        1, f"{side} '{odd}' or previous {side}(s) {rule} the <name>__<index> naming convention: the order of the model "
        "configuration counts", model=model,
    )  # fmt: skip
    return list(range(len(names)))


def _check(model: str, names: Sequence[str], positions: Sequence[int], count: int) -> None:
    taken: dict[int, str] = {}
    for name, position in zip(names, positions, strict=True):
        if position >= count:
            raise ConfigError(
                f"unable to load model '{model}', input '{name}' refers to argument {position} and the model has "
                f"{count} arguments"
            )
        if position in taken:
            raise Internal(
                f"unable to load model '{model}', inputs '{taken[position]}' and '{name}' are the same argument "
                f"({position})"
            )
        taken[position] = name
