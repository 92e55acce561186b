"""What probably went wrong at one place of a config.pbtxt: the fix, in a few words.

Looks at text and descriptors only; called after the parser has refused the text, never before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from triton_fast import protos
from triton_fast.config.errors import did_you_mean
from triton_fast.types import BY_WIRE, TYPES

TEMPLATE = re.compile(r"\$\{\s*[A-Za-z_][\w.:-]*\s*\}?")
_FIELD = re.compile(r'Message type "([\w.]+)" has no field named "([^"]*)"')
_ENUM = re.compile(r'Enum type "([\w.]+)" has no value (?:named|with number) ([\w.-]*\w)')
_SMART = "\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb\uff02"
_INVISIBLE = "\u00a0\u200b\u200c\u200d\u2060\ufeff\u00ad\u3000"
_TOKEN = re.compile(r"""#[^\n]*|"(?:[^"\\\n]|\\.)*"?|'(?:[^'\\\n]|\\.)*'?|[{}\[\]<>]|\n""")
_PAIRS = {"}": "{", "]": "[", ">": "<"}
# Names people use for the datatypes of other tools.
_ALIASES = {
    "FLOAT": "FP32", "FLOAT32": "FP32", "SINGLE": "FP32", "DOUBLE": "FP64", "FLOAT64": "FP64", "HALF": "FP16",
    "FLOAT16": "FP16", "BFLOAT16": "BF16", "INT": "INT32", "LONG": "INT64", "SHORT": "INT16", "CHAR": "INT8",
    "BYTE": "UINT8", "BOOLEAN": "BOOL", "STR": "STRING", "OBJECT": "STRING", "TEXT": "STRING", "BYTES": "STRING",
}  # fmt: skip


def for_error(message: str, text: str, line: int, column: int) -> str:
    """Return the fix for the parser's ``message`` at ``line``, ``column`` (from 1) of ``text``, or ``""``."""
    lines = text.split("\n")
    here = lines[line - 1] if 0 < line <= len(lines) else ""
    rest = here[column - 1 :]
    return (
        _from_message(message)
        or _characters(here, rest)
        or _unclosed(message, text)
        or _punctuation(message, here, rest)
    )


def field_hint(descriptor: Any, name: str) -> str:
    """Return the nearest field of a message, or the message where a field of exactly this name belongs."""
    fields = [field.name for field in descriptor.fields]
    typo = did_you_mean(name, fields, cutoff=0.8)
    owner = next((path for path, found in _all_fields() if found == name), None)
    if typo or owner is None:
        return typo or did_you_mean(name, fields) or (f"one of {', '.join(fields)}" if len(fields) <= 8 else "")
    place = f"in '{owner}'" if owner else "at the top level, outside of these braces"
    return f"'{name}' belongs {place}"


def enum_hint(descriptor: Any, value: str) -> str:
    """Return the nearest value of an enum; datatypes also by the names other tools use."""
    names = [item.name for item in descriptor.values]
    if descriptor.name == "DataType":
        bare = value.upper().removeprefix("TYPE_")
        bare = _ALIASES.get(bare, bare)
        if bare in BY_WIRE or bare == "STRING":
            return f"did you mean '{TYPES[BY_WIRE['BYTES' if bare == 'STRING' else bare]].config}'?"
        names.remove("TYPE_INVALID")
    return did_you_mean(value, names) or f"one of {', '.join(names)}"


def templates(text: str) -> list[tuple[int, int, str]]:
    """Return line, column (from 1) and text of every unfilled ``${...}`` outside of comments."""
    code = _TOKEN.sub(lambda match: "" if match[0].startswith("#") else match[0], text)
    return [
        (number, match.start() + 1, match[0])
        for number, line in enumerate(code.split("\n"), 1)
        for match in TEMPLATE.finditer(line)
    ]


def _from_message(message: str) -> str:
    match = _FIELD.search(message)
    if match and match[1].startswith("inference."):
        return field_hint(protos.message_class(match[1]).DESCRIPTOR, match[2])
    match = _ENUM.search(message)
    if match:
        return enum_hint(protos.POOL.FindEnumTypeByName(match[1]), match[2])
    if "should not have multiple" in message:
        return "keep one of them"
    if "another member of oneof" in message:
        return "keep one of the two"
    return ""


def _characters(here: str, rest: str) -> str:
    match = TEMPLATE.match(rest.lstrip())
    if match:
        return f"the template variable {match[0]} was not filled in"
    smart = next((c for c in here if c in _SMART), "")
    if smart:
        return f'replace the typographic quote {smart} (U+{ord(smart):04X}) by a straight one: "'
    hidden = next((c for c in here if c in _INVISIBLE), "")
    if hidden:
        return f"remove the invisible character U+{ord(hidden):04X} from this line"
    return ""


def _unclosed(message: str, text: str) -> str:
    if "ending quote" in message:
        return "close the string with the same quote on the same line"
    if "Expected" not in message:
        return ""
    opened: list[tuple[str, int]] = []
    number = 1
    for match in _TOKEN.finditer(text):
        mark = match[0]
        if mark == "\n":
            number += 1
        elif mark in "{[<":
            opened.append((mark, number))
        elif mark in _PAIRS:
            if not opened:
                return f"the '{mark}' on line {number} closes nothing"
            if opened[-1][0] != _PAIRS[mark]:
                return f"the '{opened[-1][0]}' of line {opened[-1][1]} is closed by '{mark}' on line {number}"
            opened.pop()
    if opened:
        return f"the '{opened[-1][0]}' of line {opened[-1][1]} is never closed"
    return ""


def _punctuation(message: str, here: str, rest: str) -> str:
    if here.lstrip().startswith(("//", "/*")):
        return "comments begin with #"
    if rest.startswith("="):
        return "write 'name: value' with a colon"
    if rest.startswith("{") and "identifier" in message:
        return "no braces around the whole file; and no JSON: write 'name: value'"
    word = re.match(r"[\w./-]+", rest)
    if "Expected string" in message and word:
        return f'put the value in quotes: "{word[0]}"'
    if "Couldn't parse integer" in message or "parse float" in message:
        quoted = re.match(r"""["'](-?\d+)["']""", rest)
        return f"remove the quotes: {quoted[1]}" if quoted else "a whole number is expected here"
    if 'Expected "true" or "false"' in message:
        return "write true or false"
    if message.endswith('Expected "{".'):
        return "this field is a message: write { ... } after its name"
    if "Expected ','" in message or 'Expected ",".' in message:
        return "separate the items of a [ ... ] list by commas"
    return ""


def _all_fields() -> Iterator[tuple[str, str]]:
    """Yield (dotted path of the message from the top, field name), outermost first."""
    level: list[tuple[str, Any]] = [("", protos.ModelConfig.DESCRIPTOR)]
    while level:
        deeper: list[tuple[str, Any]] = []
        for path, descriptor in level:
            for field in descriptor.fields:
                if not descriptor.GetOptions().map_entry:
                    yield path, field.name
                if field.message_type is not None and field.message_type.full_name.startswith("inference."):
                    deeper.append((f"{path}.{field.name}".lstrip("."), field.message_type))
        level = deeper
