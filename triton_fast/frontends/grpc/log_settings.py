"""The call LogSettings. Source: spec/grpc.md section 7. A refused call changes nothing, where Triton keeps a part."""

from __future__ import annotations

from typing import Any

from triton_fast import protos
from triton_fast.dataplane import LOG_FILE_FIXED, LOG_SWITCHES, Dataplane
from triton_fast.errors import InvalidArg, Unsupported
from triton_fast.observability import log

# The message classes are made at run time; see triton_fast/protos.
Message = Any
# Setting -> the field its value must come in, and what Triton calls that.
KINDS = {
    **dict.fromkeys(LOG_SWITCHES, ("bool_param", "boolean")),
    "log_verbose_level": ("uint32_param", "int32"),
    "log_format": ("string_param", "string"),
}


def log_settings(plane: Dataplane, message: Message) -> Message:
    if "log_file" in message.settings:
        raise Unsupported(LOG_FILE_FIXED)
    changes: dict[str, Any] = {}
    for name, (field, word) in KINDS.items():
        if name not in message.settings:
            continue
        value = message.settings[name]
        if value.WhichOneof("parameter_choice") != field:
            raise InvalidArg(f"expect {word} for '{name}'")
        changes[name] = getattr(value, field)
    form = changes.get("log_format", "default")
    if form not in log.FORMATS:
        raise InvalidArg(f"invalid argument for log_format, got: {form}")
    plane.change_log_settings(changes)
    answer = protos.LogSettingsResponse()
    for name, value in plane.log_settings().items():
        setattr(answer.settings[name], KINDS.get(name, ("string_param",))[0], value)
    return answer
