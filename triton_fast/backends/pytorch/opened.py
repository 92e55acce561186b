"""A model as the rest of the backend sees it, whatever its file was. Knows no file and no config."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from triton_fast.types import DataType


class Argument(NamedTuple):
    """An input or output that a model declares. ``dtype`` INVALID, ``dims`` None: it does not tell.

    ``names``: all names that a config may use for it, the one that auto-complete takes first. ``texts``: a list of str,
    not a tensor. ``needed``: it has no default. ``constant``: what stands in this place of every result instead of a
    tensor, as text; such an output has its place and is nobody's.
    """

    names: tuple[str, ...]
    dtype: DataType = DataType.INVALID
    dims: tuple[int, ...] | None = None
    texts: bool = False
    needed: bool = True
    constant: str = ""


@dataclass
class Opened:
    """Attributes

    inputs
        In the order in which ``run`` takes them.
    outputs
        None: it is not known before it runs.
    is_dict
        forward takes one dict, and ``run`` too; ``inputs`` is empty.
    stateless
        Calls leave nothing behind: instances may share the model, and outputs may be lent instead of copied.
    writes_inputs
        It may write to the memory of its inputs.
    run
        Takes tensors, and lists of texts, by position (or one dict). May run on several threads if ``stateless``.
    """

    inputs: tuple[Argument, ...]
    run: Callable[..., Any]
    outputs: tuple[Argument, ...] | None = None
    is_dict: bool = False
    stateless: bool = False
    writes_inputs: bool = True
    device: Any = None
    module: Any = None
    notes: dict[str, str] = field(default_factory=dict)


def tables(arguments: Sequence[Argument]) -> list[Mapping[str, int]]:
    """Return tables of names to positions, one for each kind of name."""
    longest = max((len(argument.names) for argument in arguments), default=0)
    return [
        {argument.names[k]: at for at, argument in enumerate(arguments) if len(argument.names) > k}
        for k in range(longest)
    ]


def flatten(value: Any, path: str = "RESULT") -> list[tuple[str, str, Any]]:
    """Return (path, key, leaf) of what a model returned, in order; ``key``: that of the innermost dict.

    A list of str is a leaf. Triton's paths: RESULT, RESULT[0], RESULT[key][1].
    """
    if isinstance(value, dict):
        return [leaf for key, one in value.items() for leaf in _named(flatten(one, f"{path}[{key}]"), str(key))]
    if isinstance(value, tuple) or (isinstance(value, list) and not (value and isinstance(value[0], str))):
        if isinstance(value, list) and not value:
            return [(path, "", value)]
        return [leaf for at, one in enumerate(value) for leaf in flatten(one, f"{path}[{at}]")]
    return [(path, "", value)]


def _named(leaves: list[tuple[str, str, Any]], key: str) -> list[tuple[str, str, Any]]:
    if len(leaves) == 1 and not leaves[0][1]:
        return [(leaves[0][0], key, leaves[0][2])]
    return leaves
