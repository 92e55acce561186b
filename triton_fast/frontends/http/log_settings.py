"""GET and POST /v2/logging. Source: spec/http.md section 9; what the texts leave open is as the reference does it.

A refused POST changes nothing, where Triton keeps what stands before the faulty key.
"""

from __future__ import annotations

from typing import Any

from triton_fast.dataplane import LOG_FILE_FIXED, LOG_SWITCHES, Dataplane
from triton_fast.errors import Internal, Unavailable, Unsupported
from triton_fast.frontends.http.messages import Answer, Verb, json_answer
from triton_fast.observability import log

MAX_UINT = (1 << 64) - 1


def logging(plane: Dataplane, verb: Verb) -> Answer:
    if verb.method == "POST":
        given = verb.json_value()
        # What is no object has no keys: Triton looks for them and finds none.
        plane.change_log_settings(_changes(given if isinstance(given, dict) else {}))
    return json_answer(plane.log_settings())


def _changes(given: dict[str, Any]) -> dict[str, Any]:
    """Return the changes asked for; null, and keys that are not known, ask for none."""
    if given.get("log_file") is not None:
        raise Unsupported(LOG_FILE_FIXED)
    changes: dict[str, Any] = {}
    for name in LOG_SWITCHES:
        value = given.get(name)
        if value is not None:
            if not isinstance(value, bool):
                raise Internal("attempt to access JSON non-boolean as boolean")
            changes[name] = value
    level = given.get("log_verbose_level")
    if level is not None:
        if type(level) is not int or not 0 <= level <= MAX_UINT:
            raise Internal("attempt to access JSON non-unsigned-integer as unsigned-integer")
        changes["log_verbose_level"] = level
    form = given.get("log_format")
    if form is not None:
        if not isinstance(form, str):
            raise Internal("attempt to access JSON non-string as string")
        if form not in log.FORMATS:
            raise Unavailable(f"invalid argument for --log_format, got: {form}")
        changes["log_format"] = form
    return changes
