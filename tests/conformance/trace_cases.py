"""Every trace-setting request, good and bad, in the order in which they are made, with the answer of a server that was
started with level TIMESTAMPS, rate 100 and a file. Knows no server. Source: spec/http.md section 8, grpc.md section 7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FILE = "trace file location can not be updated through network protocol"
INVALID = "Attempting to set invalid trace setting :"
ARRAY = "attempt to access JSON non-array as array"
STRING = "attempt to access JSON non-string as string"
ONE_OFF = "Expect only one trace level 'OFF' is specified"
EMPTY = "failed to parse the request JSON buffer: The document is empty. at 0"
UNKNOWN = "Request for unknown model : none"


@dataclass(frozen=True)
class Case:
    """``body`` is JSON text, or a mapping for gRPC; ``error`` "" is none; ``now``: what of the settings holds then.

    ``differs``: why the reference, an older server, answers otherwise.
    """

    body: Any
    status: int = 200
    error: str = ""
    now: tuple[tuple[str, Any], ...] = ()
    model: str = ""
    differs: str = ""


def ok(body: Any, model: str = "", differs: str = "", **now: Any) -> Case:
    return Case(body, now=tuple(now.items()), model=model, differs=differs)


def bad(body: Any, error: str, status: int = 400, model: str = "", differs: str = "") -> Case:
    return Case(body, status, error, (), model, differs)


def range_of(name: str, text: str) -> str:
    span = "[ -1, 2147483647 ]" if name == "trace_count" else "[ 0, 4294967295 ]"
    return f"Unable to parse '{name}', value is out of range {span}, got: {text}"


STOI = "it reads an unsigned number as a signed one"
HTTP = [
    ok(None, trace_level=["TIMESTAMPS"], trace_rate="100", trace_count="-1", log_frequency="0", trace_mode="triton"),
    ok(None, "one", trace_rate="100"),
    bad("", EMPTY, 500), ok("{}"), ok("[]"), ok("null"), ok('{"unknown":1}'), ok('{"trace_mode":"opentelemetry"}'),
    bad('{"trace_level":"TIMESTAMPS"}', ARRAY, 500), bad('{"trace_level":[1]}', STRING, 500),
    bad('{"trace_level":["OFF","TIMESTAMPS"]}', ONE_OFF), bad('{"trace_level":["OFF","OFF"]}', ONE_OFF),
    ok('{"trace_level":["TENSORS"]}', trace_level=["TENSORS"]), ok('{"trace_level":["BAD"]}', trace_level=["TENSORS"]),
    ok('{"trace_level":[]}', trace_level=["TENSORS"]), ok('{"trace_level":["tensors"]}', trace_level=["TENSORS"]),
    ok('{"trace_level":["TENSORS","TIMESTAMPS"]}', trace_level=["TIMESTAMPS", "TENSORS"]),
    ok('{"trace_level":["OFF"]}', trace_level=["OFF"]), ok('{"trace_level":["MAX"]}', trace_level=["OFF"]),
    ok('{"trace_level":null}', trace_level=["TIMESTAMPS"]),
    bad('{"trace_rate":1}', STRING, 500), bad('{"trace_rate":["5"]}', STRING, 500),
    bad('{"trace_rate":"x"}', "Unable to parse 'trace_rate', got: x"),
    bad('{"trace_rate":""}', "Unable to parse 'trace_rate', got: "),
    bad('{"trace_rate":"4294967296"}', range_of("trace_rate", "4294967296")),
    bad('{"trace_rate":"' + "9" * 30 + '"}', range_of("trace_rate", "9" * 30)),
    bad('{"trace_rate":"-1"}', range_of("trace_rate", "-1"), differs=STOI),
    ok('{"trace_rate":"4294967295"}', trace_rate="4294967295", differs=STOI),
    bad('{"trace_rate":"0"}', INVALID + "sample rate must be non-zero"),
    ok('{"trace_rate":"12x"}', trace_rate="12"), ok('{"trace_rate":" 5"}', trace_rate="5"),
    ok('{"trace_rate":null}', trace_rate="100"),
    bad('{"trace_count":7}', STRING, 500), bad('{"trace_count":"x"}', "Unable to parse 'trace_count', got: x"),
    bad('{"trace_count":"-2"}', "Unable to parse 'trace_count'. Expecting value >= -1, got:-2"),
    bad('{"trace_count":"2147483648"}', range_of("trace_count", "2147483648")),
    bad('{"trace_count":"-99999999999"}', range_of("trace_count", "-99999999999")),
    bad('{"trace_count":"0"}', INVALID), ok('{"trace_count":"2147483647"}', trace_count="2147483647"),
    ok('{"trace_count":"5z"}', trace_count="5"), ok('{"trace_count":null}', trace_count="-1"),
    ok('{"log_frequency":"10"}', log_frequency="10"), bad('{"log_frequency":10}', STRING, 500),
    bad('{"log_frequency":"x"}', "Unable to parse 'log_frequency', got: x"),
    bad('{"log_frequency":"4294967296"}', range_of("log_frequency", "4294967296")),
    bad('{"log_frequency":"-1"}', range_of("log_frequency", "-1"), differs=STOI),
    ok('{"log_frequency":null}', log_frequency="0"),
    *(bad(f'{{"trace_file":{value}}}', FILE, 501) for value in ('"x"', '""', "null", '"../x"')),
    bad('{"trace_file":"x"}', FILE, 501, "one"),
    bad('{"trace_rate":"7","trace_count":"x"}', "Unable to parse 'trace_count', got: x"),
    bad('{"trace_level":["TENSORS"],"trace_rate":"x"}', "Unable to parse 'trace_rate', got: x"),
    ok(None, trace_level=["TIMESTAMPS"], trace_rate="100"),
    # A model's own settings, and those that it inherits.
    ok('{"trace_rate":"3"}', "one", trace_rate="3"), ok(None, trace_rate="100"),
    ok('{"trace_rate":"9"}', trace_rate="9"),
    ok(None, "one", trace_rate="3"), ok(None, "two", trace_rate="9"), ok('{"trace_rate":null}', "one", trace_rate="9"),
    ok('{"trace_level":["TENSORS"]}', "one", trace_level=["TENSORS"]), ok('{"trace_level":["OFF"]}', "one"),
    ok('{"trace_count":"5"}', "one", trace_level=["OFF"], trace_count="5"), ok(None, trace_count="-1"),
    ok('{"log_frequency":"2"}', "one", log_frequency="2"), ok(None, "two", log_frequency="0"),
    bad(None, UNKNOWN, model="none"), bad("{}", UNKNOWN, model="none"),
    bad('{"trace_rate":"1"}', UNKNOWN, model="none"),
]  # fmt: skip

INVALID_ARGUMENT, UNIMPLEMENTED = 3, 12
QUIRK = "newer servers answer with nothing, this one with an error"
GRPC = [
    ok({}, trace_rate=["9"]),
    bad({"trace_rate": ["1", "2"]}, "expect only 1 value for 'trace_rate'", INVALID_ARGUMENT),
    bad({"trace_count": ["1", "2"]}, "expect only 1 value for 'trace_count'", INVALID_ARGUMENT),
    bad({"log_frequency": ["1", "2"]}, "expect only 1 value for 'log_frequency'", INVALID_ARGUMENT),
    bad({"trace_rate": ["x"]}, "Unable to parse 'trace_rate', got: x", INVALID_ARGUMENT),
    bad({"trace_rate": [""]}, "Unable to parse 'trace_rate', got: ", INVALID_ARGUMENT),
    bad({"trace_rate": ["0"]}, INVALID + "sample rate must be non-zero", INVALID_ARGUMENT),
    bad({"trace_rate": ["4294967296"]}, range_of("trace_rate", "4294967296"), INVALID_ARGUMENT),
    ok({"trace_rate": []}, trace_rate=["100"]),
    ok({"trace_level": ["TENSORS"]}, trace_level=["TENSORS"]), ok({"trace_level": ["BAD"]}, trace_level=["TENSORS"]),
    ok({"trace_level": []}, trace_level=["TIMESTAMPS"]),
    bad({"trace_level": ["OFF", "TIMESTAMPS"]}, ONE_OFF, INVALID_ARGUMENT),
    bad({"trace_count": ["x"]}, "Unable to parse 'trace_count', got: x", INVALID_ARGUMENT),
    bad({"trace_count": ["-2"]}, "Unable to parse 'trace_count'. Expecting value >= -1, got: -2", INVALID_ARGUMENT),
    bad({"trace_count": ["2147483648"]}, range_of("trace_count", "2147483648"), INVALID_ARGUMENT),
    bad({"log_frequency": ["x"]}, "Unable to parse 'log_frequency', got: x", INVALID_ARGUMENT),
    *(bad({"trace_file": values}, FILE, UNIMPLEMENTED) for values in ([], ["x"], ["a", "b"])),
    bad({"trace_file": ["x"]}, FILE, UNIMPLEMENTED, "one"),
    ok({"trace_mode": ["x"]}), ok({"unknown": ["x"]}),
    ok({"trace_rate": ["5"], "log_frequency": ["3"]}, trace_rate=["5"], log_frequency=["3"]),
    ok({"trace_rate": ["4"]}, "one", trace_rate=["4"], trace_level=["OFF"]), ok({}, trace_rate=["5"]),
    Case({}, model="none", differs=QUIRK), Case({"trace_rate": ["4"]}, model="none", differs=QUIRK),
]  # fmt: skip
