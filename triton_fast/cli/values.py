"""How the text of one flag becomes a value: C++ number rules, booleans, pairs, and Triton's texts for each failure.

Knows nothing of flag rows, of the command line or of what a value is used for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

INT32 = (-(2**31), 2**31 - 1)
INT64 = (-(2**63), 2**63 - 1)
UINT32 = (0, 2**32 - 1)
UINT64 = (0, 2**64 - 1)
# A C++ number never needs more digits; Python refuses to convert some 4300 and more.
_MAX_DIGITS = 64
_INTEGER = re.compile(r"[ \t\n\v\f\r]*([+-]?)0*([0-9]+)")
_FLOAT = re.compile(r"[ \t\n\v\f\r]*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)")
RESTRICTED = (
    "health",
    "metadata",
    "inference",
    "shared-memory",
    "model-config",
    "model-repository",
    "statistics",
    "trace",
    "logging",
)


class BadValue(ValueError):
    """The text of one flag is wrong; the message is what Triton prints below ``Bad option``."""


def last(_old: Any, new: Any) -> Any:
    """A flag given twice: the last one counts."""
    return new


def append(old: Any, new: Any) -> Any:
    return (*old, new)


def append_sorted(old: Any, new: Any) -> Any:
    """Triton keeps repositories and start-up models in an ordered set."""
    return tuple(sorted({*old, new}))


def _merge_pair(old: Any, new: Any) -> Any:
    return MappingProxyType({**old, new[0]: new[1]})


def _merge_setting(old: Any, new: Any) -> Any:
    group, setting, value = new
    inner = MappingProxyType({**old.get(group, {}), setting: value})
    return MappingProxyType({**old, group: inner})


@dataclass(frozen=True)
class Kind:
    """One type of flag: the word in the usage text, text to value, and what a repeated flag does."""

    word: str
    convert: Callable[[str], Any]
    merge: Callable[[Any, Any], Any] = last


def to_int(text: str, limits: tuple[int, int] = INT32) -> int:
    """Return what C++ ``stoi`` would: leading blanks and digits count, the rest is ignored.

    Raises BadValue with Triton's text when there is no digit or the number does not fit ``limits``.
    """
    found = _INTEGER.match(text)
    if found is None:
        raise BadValue(f"Invalid option value. Got {text}\n")
    sign, digits = found.groups()
    if len(digits) <= _MAX_DIGITS:
        value = int(sign + digits)
        if limits[0] <= value <= limits[1]:
            return value
    raise BadValue(f"Provided option value is out of bound. Got {text}\n")


def to_float(text: str) -> float:
    """Return what C++ ``stod`` would for a decimal number; infinities and NaN are refused."""
    found = _FLOAT.match(text)
    if found is None:
        raise BadValue(f"Invalid option value. Got {text}\n")
    value = float(found.group(1))
    if value in (float("inf"), float("-inf")):
        raise BadValue(f"Provided option value is out of bound. Got {text}\n")
    return value


def to_bool(text: str) -> bool:
    low = text.lower()
    if low in ("true", "on", "1"):
        return True
    if low in ("false", "off", "0"):
        return False
    raise BadValue(f"invalid value for bool option: {text}")


def to_verbose(text: str) -> int:
    """Triton takes true and false for levels 1 and 0."""
    low = text.lower()
    return int(low == "true") if low in ("true", "false") else to_int(text)


def split_three(text: str, first: str, second: str, error: str) -> tuple[str, str, str]:
    """Return ``(name, setting, value)`` of ``name<first>setting<second>value``; an empty part raises ``error``."""
    name, has_first, rest = text.partition(first)
    setting, has_second, value = rest.partition(second)
    if not (has_first and has_second and name and setting and value):
        raise BadValue(error)
    return name, setting, value


def _named_setting(text: str, option: str, noun: str, missing: str, is_global: bool) -> tuple[str, str, str]:
    """``<name>,<setting>=<value>``; where ``is_global``, also ``<setting>=<value>`` under the name ''."""
    form = f"--{option} option format is '<{noun}>,<setting>=<value>'. Got {text}\n"
    name, comma, rest = text.partition(",")
    if not comma and is_global:
        name, rest = "", text
    elif not comma or not name:
        raise BadValue(missing)
    setting, _, value = rest.partition("=")
    if not setting or not value:
        raise BadValue(form)
    return name, setting, value


def _backend(text: str) -> tuple[str, str, str]:
    missing = (
        "No backend specified. --backend-config option format is <backend name>,<setting>=<value> or "
        f"<setting>=<value>. Got {text}\n"
    )
    return _named_setting(text, "backend-config", "backend name", missing, is_global=True)


def _cache(text: str) -> tuple[str, str, str]:
    missing = f"No cache specified. --cache-config option format is <cache name>,<setting>=<value>. Got {text}\n"
    return _named_setting(text, "cache-config", "cache name", missing, is_global=False)


def _trace(text: str) -> tuple[str, str, str]:
    missing = (
        "No trace mode specified. --trace-config option format is <trace mode>,<setting>=<value> or "
        f"<setting>=<value>. Got {text}\n"
    )
    mode, comma, _ = text.partition(",")
    name = to_trace_mode(mode) if comma and mode else ""
    _, setting, value = _named_setting(text, "trace-config", "trace mode", missing, is_global=True)
    return name, setting, value


def _metrics(text: str) -> tuple[str, str]:
    setting, _, value = text.partition("=")
    if not setting or not value or "," in setting:
        raise BadValue(f"--metrics-config option format is <setting>=<value>. Got {text}\n")
    return setting, value


def to_trace_mode(text: str) -> str:
    if text.lower() in ("triton", "opentelemetry"):
        return text.lower()
    raise BadValue(
        f'invalid value for trace mode option: {text.lower()}. Available options are "triton" and "opentelemetry"'
    )


def to_trace_level(text: str) -> str:
    low = text.lower()
    if low in ("false", "off"):
        return "OFF"
    if low in ("true", "on", "min", "max", "timestamps"):
        return "TIMESTAMPS"
    if low == "tensors":
        return "TENSORS"
    raise BadValue(f"invalid value for trace level option: {low}")


def _host_policy(text: str) -> tuple[str, str, str]:
    error = f"--host-policy option format is '<policy name>,<setting>=<value>'. Got {text}\n"
    return split_three(text, ",", "=", error)


def _rate_resource(text: str) -> tuple[str, int, int]:
    parts = text.split(":")
    if len(parts) not in (2, 3):
        raise BadValue(
            "--rate-limit-resource option format is '<resource_name>:<count>:<device>' or "
            f"'<resource_name>:<count>'. Got {text}"
        )
    return parts[0], to_int(parts[1]), to_int(parts[2]) if len(parts) == 3 else -1


def _pair(first: Callable[[str], Any], second: Callable[[str], Any], delim: str = ":") -> Callable[[str], Any]:
    def convert(text: str) -> tuple[Any, Any]:
        one, found, two = text.partition(delim)
        if not found:
            raise BadValue(
                "Cannot parse pair option due to incorrect number of inputs.--<pair option> argument requires "
                f"format <first>{delim}<second>. Found: {text}\n"
            )
        return first(one), second(two)

    return convert


def _regex(text: str) -> str:
    try:
        re.compile("(?i)" + text)
    except (re.error, RecursionError, OverflowError) as error:
        raise BadValue(f"invalid regular expression '{text}': {error}") from None
    return text


def choice(option: str, *allowed: str, fold: bool = True) -> Kind:
    """One of ``allowed``; with ``fold`` the case does not matter."""

    def convert(text: str) -> str:
        value = text.lower() if fold else text
        if value not in allowed:
            raise BadValue(f"invalid argument for --{option}")
        return value

    return Kind("string", convert)


def bounded(low: int, high: int, error: str = "", limits: tuple[int, int] = INT32) -> Kind:
    """An integer in ``[low, high]``; outside it raises ``error`` or Triton's out-of-bound text."""

    def convert(text: str) -> int:
        value = to_int(text, limits)
        if not low <= value <= high:
            raise BadValue(error or f"Provided option value is out of bound. Got {text}\n")
        return value

    return Kind("integer", convert)


# How the value of a restricted group may be said elsewhere than on the command line.
FROM_ELSEWHERE = ("file:", "env:")


def restricted(option: str, feature: str, prefix: str = "") -> Kind:
    """``<api>,<api>:<key>=<value>`` to ``{api: (header, value)}``; an API may stand in one group only."""

    def convert(text: str) -> dict[str, tuple[str, str]]:
        error = f"--{option} option format is '<config name>:<setting>=<value>'. Got {text}\n"
        names, key, value = split_three(text, ":", "=", error)
        found: dict[str, tuple[str, str]] = {}
        for name in names.split(","):
            if name not in RESTRICTED:
                raise BadValue(f"unknown restricted {feature} '{name}' \n")
            _refuse_twice(name, found)
            found[name] = (prefix + key, value)
        return found

    def _refuse_twice(name: str, groups: Any) -> None:
        if name in groups:
            raise BadValue(f"restricted {feature} '{name}' can not be specified in multiple config groups\n")

    def merge(old: Any, new: Any) -> Any:
        for name in new:
            _refuse_twice(name, old)
        return MappingProxyType({**old, **new})

    return Kind("<string>:<string>=<string>", convert, merge)


def secret(option: str, value: str, environ: Mapping[str, str]) -> str:
    """Return what ``file:<path>`` or ``env:<name>`` stands for, else the value. Raises BadValue without the secret."""
    if value.startswith("file:"):
        try:
            found = Path(value.removeprefix("file:")).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "not UTF-8"
            raise BadValue(f"--{option}: '{value.removeprefix('file:')}' can not be read: {why}\n") from None
    elif value.startswith("env:"):
        found = environ.get(value.removeprefix("env:"), "")
    else:
        return value
    if not found or not found.isprintable():
        raise BadValue(f"--{option}: '{value}' is not one line of text\n")
    return found


def _fraction(text: str) -> float:
    value = to_float(text)
    if not 0.0 <= value <= 1.0:
        raise BadValue(f"must be in the range 0 to 1. Got {text}\n")
    return value


def _path_name(text: str) -> str:
    if not text:
        raise BadValue("Error: empty argument for --model-config-name")
    return text


def _open(text: str) -> tuple[str, ...]:
    names = text.split(",")
    for name in names:
        if name not in (*RESTRICTED, "metrics"):
            raise BadValue(f"unknown api '{name}' \n")
    return tuple(names)


NONE = Kind("", lambda _text: True)
STR = Kind("string", str)
STRS = Kind("string", str, append_sorted)
BOOL = Kind("boolean", to_bool)
INT = Kind("integer", to_int)
SECONDS = bounded(1, 86400)
COUNT = bounded(1, INT32[1])
PORT = bounded(0, 65535)
SIZE = Kind("integer", lambda text: to_int(text, INT64))
FLOAT = Kind("float", to_float)
INTERVAL = Kind("float", to_int)
FRACTION = Kind("float", _fraction)
VERBOSE = Kind("integer", to_verbose)
REGEX = Kind("string", _regex)
CONFIG_NAME = Kind("string", _path_name)
OPEN = Kind("string", _open)
BACKEND = Kind("<string>,<string>=<string>", _backend, _merge_setting)
CACHE = Kind("<string>,<string>=<string>", _cache, _merge_setting)
TRACE = Kind("<string>,<string>=<string>", _trace, append)
TRACE_LEVEL = Kind("string", to_trace_level, append)
HOST_POLICY = Kind("<string>,<string>=<string>", _host_policy, _merge_setting)
METRICS = Kind("<string>=<string>", _metrics, append)
RATE_RESOURCE = Kind("<string>:<integer>:<integer>", _rate_resource, append)
DEVICE_BYTES = Kind("<integer>:<integer>", _pair(to_int, lambda text: to_int(text, UINT64)), _merge_pair)
DEVICE_FRACTION = Kind("<device_id>:<fraction>", _pair(to_int, to_float), _merge_pair)
PORT_RANGE = Kind("<integer>-<integer>", _pair(to_int, to_int, "-"))
EMPTY: MappingProxyType[Any, Any] = MappingProxyType({})
