"""Text to ModelConfig: config.pbtxt by protobuf's text format, load overrides by JSON.

Every refusal names file, line, column and the fix. Must not know where models live or what a field means.
"""

from __future__ import annotations

import json
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from google.protobuf import json_format, text_format

from triton_fast import protos
from triton_fast.config import hints
from triton_fast.config.errors import ConfigError, quote_line
from triton_fast.config.files import read_regular

# A config of 1000 tensors is about 100 kB; the text parser is slow, so a runaway file must not reach it.
MAX_BYTES = 4 << 20
MAX_JSON_DEPTH = 64
# Bytes of a config.pbtxt that is remembered: most reloads bring the same text, and an ensemble's is read twice.
MEMO_BYTES = 8192

_ENCODINGS = ((b"\xff\xfe\x00\x00", "UTF-32"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"))
# Not strings as a whole: a repetition in the pattern would keep a hundred bytes for each of theirs.
_MARK = re.compile(rb'\\.|["\[\]{}]', re.DOTALL)
_PREFIX = re.compile(r"^\d+:\d+ : ")
_TWICE = re.compile(r'should not have multiple "(\w+)" fields')
_QUOTED_LINE = re.compile(r"^'.*': ", re.DOTALL)


class Parsed(NamedTuple):
    """A config and the names of the top-level fields that its author wrote, zero values included."""

    config: Any
    given: frozenset[str]


def read_file(path: Path, label: str) -> bytes:
    """Return the content of a regular file of at most ``MAX_BYTES``; ``label`` names it in errors."""
    try:
        data = read_regular(path, MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"failed to open text file for read {label}: {error.strerror}", hint=_similar(path), file=label
        ) from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"failed to read text proto from {label}: larger than {MAX_BYTES} bytes", file=label)
    return data


def readable(path: Path) -> str | None:
    """Return a config to look for a place in, whatever is wrong with it; None where nothing can be read."""
    try:
        data = read_file(path, path.name)
    except ConfigError:
        return None
    return _normal(data).decode("utf-8", "replace")


def parse_text(data: bytes, label: str) -> Parsed:
    """Parse the content of a config.pbtxt. Raises ConfigError with file, line and column."""
    if len(data) > MEMO_BYTES:
        return _parse_text(data, label)
    try:
        content, given = _remembered(data)
    except ConfigError:
        return _parse_text(data, label)  # which raises it with the file's own name
    return Parsed(protos.ModelConfig.FromString(content), given)


@lru_cache(maxsize=256)
def _remembered(data: bytes) -> tuple[bytes, frozenset[str]]:
    config, given = _parse_text(data, "")
    return config.SerializeToString(), given


def _parse_text(data: bytes, label: str) -> Parsed:
    text = _decode(data, label)
    message = protos.presence_class("inference.ModelConfig")()
    try:
        text_format.Parse(text, message)
    except text_format.ParseError as error:
        raise _located(error, text, label) from None
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ConfigError(f"failed to read text proto from {label}: {error}", file=label) from None
    return _plain(message)


def parse_json(text: str | bytes) -> Parsed:
    """Parse the ``config`` parameter of a load request. Raises ConfigError, ``Invalid config override: ...``."""
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else bytes(text)
    if len(data) > MAX_BYTES:
        raise _override(f"{len(data)} bytes of JSON, the limit is {MAX_BYTES}")
    _check_depth(data)
    try:
        document = orjson.loads(data)
    except json.JSONDecodeError as error:
        raise _override(f"{error.msg} at line {error.lineno} column {error.colno}") from None
    if not isinstance(document, dict):
        raise _override(": Root element must be a message.", hint="the override is a JSON object: {...}")
    message = protos.presence_class("inference.ModelConfig")()
    document = _known_fields(message.DESCRIPTOR, document, "")
    try:
        json_format.ParseDict(document, message)
    except (json_format.ParseError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise _override(" ".join(str(error).split())) from None
    return _plain(message)


def _plain(message: Any) -> Parsed:
    # Through the wire format from the class with presence to the proto3 one; unknown enum numbers were refused above.
    config = protos.ModelConfig.FromString(message.SerializeToString())
    given = frozenset(field.name for field, _ in message.ListFields())
    return Parsed(config, given)


def _decode(data: bytes, label: str) -> str:
    for mark, name in _ENCODINGS:
        if data.startswith(mark):
            raise ConfigError(
                f"failed to read text proto from {label}: the file is {name}", hint="save it as UTF-8", file=label
            )
    data = _normal(data)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        at, byte, why = error.start, f"0x{data[error.start]:02x}", "is not UTF-8"
    else:
        if "\0" not in text:
            return text
        at, byte, why = data.index(b"\0"), "0x00", "cannot be in a text file"
    line = data.count(b"\n", 0, at) + 1
    column = len(data[data.rfind(b"\n", 0, at) + 1 : at].decode()) + 1
    raise ConfigError(
        f"failed to read text proto from {label}:{line}:{column}: byte {byte} {why}",
        hint="save the file as UTF-8 text", file=label, line=line, column=column,
    ) from None  # fmt: skip


def _normal(data: bytes) -> bytes:
    return data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")


def _located(error: text_format.ParseError, text: str, label: str) -> ConfigError:
    line, column = error.GetLine() or 1, error.GetColumn() or 1  # type: ignore[no-untyped-call, unused-ignore]
    what = _QUOTED_LINE.sub("", _PREFIX.sub("", str(error)), count=1)
    if len(what) > 300:
        what = what[:300] + "..."
    lines = text.split("\n")
    line, column = _of_field(what, lines, line, column)
    if line > len(lines):
        line, column = len(lines), len(lines[-1]) + 1
    shown = quote_line(lines[line - 1], column)
    where = f"{label}:{line}:{column}"
    return ConfigError(
        f"failed to read text proto from {where}: {' '.join(what.split())}" + (f" In line: {shown}" if shown else ""),
        hint=hints.for_error(what, text, line, column), file=label, line=line, column=column,
    )  # fmt: skip


def _of_field(what: str, lines: list[str], line: int, column: int) -> tuple[int, int]:
    """Return where the field stands that is there twice: the parser knows only after its value."""
    found = _TWICE.search(what)
    if found is None or line > len(lines):
        return line, column
    name = re.compile(rf"(?<![\w.]){re.escape(found[1])}(?![\w.])")
    for at in range(line, 0, -1):
        before = lines[at - 1] if at < line else lines[at - 1][: column - 1]
        places = [match.start() for match in name.finditer(before)]
        if places:
            return at, places[-1] + 1
    return line, column


def _similar(path: Path) -> str:
    """Name a file that was probably meant: ``config.pbtxt.txt``, ``Config.pbtxt``, a trailing space."""
    try:
        with os.scandir(path.parent) as entries:
            names = sorted(entry.name for entry in entries if not entry.is_dir(follow_symlinks=False))
    except OSError:
        return ""
    for name in names:
        bare = name.strip().lower()
        if bare.startswith("config.pb") and name != path.name:
            return f"found '{name}': rename it to '{path.name}'"
    return ""


def _override(text: str, hint: str = "") -> ConfigError:
    return ConfigError(f"Invalid config override: {text}", hint=hint)


def _check_depth(data: bytes) -> None:
    depth = 0
    in_string = False
    for match in _MARK.finditer(data):
        token = match[0]
        if token == b'"':
            in_string = not in_string
        elif in_string:
            continue
        elif token in b"[{":
            depth += 1
            if depth > MAX_JSON_DEPTH:
                raise _override(
                    f"JSON nested deeper than {MAX_JSON_DEPTH} at byte {match.start()}",
                    hint="a model configuration never nests deeper than 12",
                )
        elif token in b"]}":
            depth -= 1


def _known_fields(descriptor: Any, value: Any, path: str) -> Any:
    """Return ``value`` with enum names in upper case, as Triton accepts them; refuse names that do not exist."""
    if not isinstance(value, dict):
        return value
    by_name = {name: field for field in descriptor.fields for name in (field.name, field.json_name)}
    result = {}
    for name, item in value.items():
        field = by_name.get(name)
        here = f"{path}.{name}".lstrip(".")
        if field is None:
            raise _override(f"{here[:200]}: Cannot find field.", hint=hints.field_hint(descriptor, name))
        result[name] = _known_value(field, item, here)
    return result


def _known_value(field: Any, value: Any, path: str) -> Any:
    if isinstance(value, list):
        return [_known_value(field, item, f"{path}[{index}]") for index, item in enumerate(value)]
    if field.enum_type is not None and isinstance(value, str):
        name = value.upper()
        if name not in field.enum_type.values_by_name:
            raise _override(
                f'({path}): invalid value "{value[:100]}" for type type.googleapis.com/{field.enum_type.full_name}',
                hint=hints.enum_hint(field.enum_type, value[:100]),
            )
        return name
    if field.message_type is None or not isinstance(value, dict):
        return value
    if field.message_type.GetOptions().map_entry:
        item_field = field.message_type.fields_by_name["value"]
        return {key: _known_value(item_field, item, f'{path}["{key}"]') for key, item in value.items()}
    return _known_fields(field.message_type, value, path)
