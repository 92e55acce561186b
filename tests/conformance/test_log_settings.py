"""The settings of the log over HTTP and gRPC: keys, types and texts, alike here and at the reference server.

The reference takes part where TRITON_REFERENCE is set (see reference.py).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.conformance import reference
from tests.helpers import raw
from tests.helpers.grpc_channel import Channel
from tests.helpers.server import ServerProcess, repository
from triton_fast import protos

FIXED = "log file location can not be updated through network protocol"
DEFAULTS = {
    "log_file": "", "log_info": True, "log_warning": True, "log_error": True, "log_verbose_level": 0,
    "log_format": "default",
}  # fmt: skip
NOT_BOOLEAN = "attempt to access JSON non-boolean as boolean"
NOT_UINT = "attempt to access JSON non-unsigned-integer as unsigned-integer"
INVALID_ARGUMENT, UNIMPLEMENTED = 3, 12
SWITCHES = ("log_info", "log_warning", "log_error")

# Body, what is then different from the defaults.
TAKEN: list[tuple[str, dict[str, Any]]] = [
    ("{}", {}), ("[]", {}), ('"log_info"', {}), ("3", {}), ("null", {}), ('{"unknown":1}', {}),
    *((f'{{"{name}":{value}}}', {name: value == "true"}) for name in SWITCHES for value in ("true", "false")),
    *((f'{{"{name}":null}}', {}) for name in DEFAULTS),
    ('{"log_verbose_level":2}', {"log_verbose_level": 2}),
    ('{"log_verbose_level":2147483648}', {}), ('{"log_verbose_level":4294967295}', {}),
    ('{"log_verbose_level":4294967297}', {"log_verbose_level": 1}),
    ('{"log_format":"ISO8601"}', {"log_format": "ISO8601"}), ('{"log_format":"default"}', {}),
    ('{"log_info":false,"other":[],"log_error":false,"log_verbose_level":1}',
     {"log_info": False, "log_error": False, "log_verbose_level": 1}),
]  # fmt: skip
# Body, status, text.
REFUSED: list[tuple[str, int, str]] = [
    ("", 500, "failed to parse the request JSON buffer: The document is empty. at 0"),
    *((f'{{"log_file":{value}}}', 501, FIXED) for value in ('"/tmp/x"', '""', "3", "{}", "false")),
    *((f'{{"{name}":{value}}}', 500, NOT_BOOLEAN) for name in SWITCHES for value in ('"true"', "1", "[]", "{}")),
    *((f'{{"log_verbose_level":{value}}}', 500, NOT_UINT)
      for value in ('"1"', "-1", "1.5", "true", "18446744073709551616", "{}")),
    *((f'{{"log_format":"{value}"}}', 503, f"invalid argument for --log_format, got: {value}")
      for value in ("", "x", "iso8601", "DEFAULT")),
    ('{"log_format":1}', 500, "attempt to access JSON non-string as string"),
    ('{"log_format":"x","log_file":"y"}', 501, FIXED),
    ('{"log_format":"x","log_info":1}', 500, NOT_BOOLEAN),
]  # fmt: skip
# Of gRPC: settings, what is then different.
GRPC_TAKEN: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}), ({"unknown": {"string_param": "x"}}, {}), ({"unknown": {}}, {}),
    *(({name: {"bool_param": False}}, {name: False}) for name in SWITCHES),
    ({"log_verbose_level": {"uint32_param": 3}}, {"log_verbose_level": 3}),
    ({"log_verbose_level": {"uint32_param": 2**31}}, {}), ({"log_verbose_level": {"uint32_param": 2**32 - 1}}, {}),
    ({"log_format": {"string_param": "ISO8601"}}, {"log_format": "ISO8601"}),
    ({"log_info": {"bool_param": False}, "log_verbose_level": {"uint32_param": 1}},
     {"log_info": False, "log_verbose_level": 1}),
]  # fmt: skip
GRPC_REFUSED: list[tuple[dict[str, Any], int, str]] = [
    *(({"log_file": value}, UNIMPLEMENTED, FIXED) for value in ({"string_param": "/x"}, {"uint32_param": 1}, {})),
    *(({name: value}, INVALID_ARGUMENT, f"expect boolean for '{name}'")
      for name in SWITCHES for value in ({"uint32_param": 1}, {"string_param": "true"}, {})),
    *(({"log_verbose_level": value}, INVALID_ARGUMENT, "expect int32 for 'log_verbose_level'")
      for value in ({"bool_param": True}, {"string_param": "1"}, {})),
    *(({"log_format": value}, INVALID_ARGUMENT, "expect string for 'log_format'")
      for value in ({"bool_param": True}, {"uint32_param": 1}, {})),
    *(({"log_format": {"string_param": value}}, INVALID_ARGUMENT, f"invalid argument for log_format, got: {value}")
      for value in ("", "x", "iso8601")),
]  # fmt: skip


class Peer(NamedTuple):
    http: tuple[str, int]
    grpc: Channel
    is_ours: bool

    def settings(self) -> Any:
        return raw.ask(self.http, raw.get("/v2/logging")).json()

    def post(self, body: str) -> raw.Answer:
        return raw.ask(self.http, raw.post("/v2/logging", body.encode()))

    def reset(self) -> None:
        wanted = {name: value for name, value in DEFAULTS.items() if name != "log_file"}
        assert self.post(json.dumps(wanted)).json() == DEFAULTS


@pytest.fixture(scope="module", params=["triton_fast", "reference"])
def peer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    root = tmp_path_factory.mktemp("logging")
    if request.param == "triton_fast":
        with ServerProcess(repository(root)) as process, Channel(process.grpc) as channel:
            yield Peer(process.http, channel, True)
        return
    if reference.VARIABLE not in os.environ:
        pytest.skip(f"{reference.VARIABLE} is not set: the path of the reference server")
    models = root / "models"
    models.mkdir()
    with (
        reference.Reference(models, root / "log", "--model-control-mode=explicit") as other,
        Channel(other.grpc) as channel,
    ):
        yield Peer(other.http, channel, False)


def told(message: Any) -> dict[str, Any]:
    return {name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in message.settings.items()}


def test_get(peer: Peer) -> None:
    answer = raw.ask(peer.http, raw.get("/v2/logging"))
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert list(answer.json().items()) == list(DEFAULTS.items())


@pytest.mark.parametrize(("body", "change"), TAKEN, ids=[body for body, _ in TAKEN])
def test_post(peer: Peer, body: str, change: dict[str, Any]) -> None:
    try:
        answer = peer.post(body)
        assert answer.status == 200
        assert list(answer.json().items()) == list({**DEFAULTS, **change}.items())
        assert peer.settings() == answer.json()
    finally:
        peer.reset()


@pytest.mark.parametrize(("body", "status", "text"), REFUSED, ids=[body or "empty" for body, *_ in REFUSED])
def test_refused_post(peer: Peer, body: str, status: int, text: str) -> None:
    answer = peer.post(body)
    assert (answer.status, answer.error) == (status, text)
    assert peer.settings() == DEFAULTS


def test_broken_json(peer: Peer) -> None:
    answer = peer.post('{"log_info":false')
    assert answer.status == 500
    assert answer.error.startswith("failed to parse the request JSON buffer: ")
    assert peer.settings() == DEFAULTS


@pytest.mark.parametrize(("settings", "change"), GRPC_TAKEN, ids=[str(row[0]) for row in GRPC_TAKEN])
def test_call(peer: Peer, settings: dict[str, Any], change: dict[str, Any]) -> None:
    try:
        reply = peer.grpc.ask("LogSettings", protos.LogSettingsRequest(settings=settings))
        assert reply.outcome == (0, "")
        assert told(reply.message) == {**DEFAULTS, **change}
        kinds = {name: value.WhichOneof("parameter_choice") for name, value in reply.message.settings.items()}
        assert kinds == {
            **dict.fromkeys(SWITCHES, "bool_param"), "log_verbose_level": "uint32_param",
            "log_file": "string_param", "log_format": "string_param",
        }  # fmt: skip
        assert peer.settings() == told(reply.message)
    finally:
        peer.reset()


@pytest.mark.parametrize(("settings", "status", "text"), GRPC_REFUSED, ids=[str(row[0]) for row in GRPC_REFUSED])
def test_refused_call(peer: Peer, settings: dict[str, Any], status: int, text: str) -> None:
    reply = peer.grpc.ask("LogSettings", protos.LogSettingsRequest(settings=settings))
    assert reply.outcome == (status, text)
    assert peer.settings() == DEFAULTS


def test_a_refused_change_leaves_all_as_it_was(peer: Peer) -> None:
    """The reference keeps what it had taken before the fault: docs/compatibility.md."""
    kept = DEFAULTS if peer.is_ours else {**DEFAULTS, "log_info": False}
    try:
        assert peer.post('{"log_info":false,"log_format":"x"}').status == 503
        assert peer.settings() == kept
        peer.reset()
        wanted = {"log_info": {"bool_param": False}, "log_format": {"string_param": "x"}}
        reply = peer.grpc.ask("LogSettings", protos.LogSettingsRequest(settings=wanted))
        assert reply.status == INVALID_ARGUMENT
        assert peer.settings() == kept
    finally:
        peer.reset()


def test_json_is_a_format_only_here(peer: Peer) -> None:
    try:
        answer = peer.post('{"log_format":"json"}')
        assert answer.status == (200 if peer.is_ours else 503)
        wanted = protos.LogSettingsRequest(settings={"log_format": {"string_param": "json"}})
        reply = peer.grpc.ask("LogSettings", wanted)
        assert reply.status == (0 if peer.is_ours else INVALID_ARGUMENT)
    finally:
        peer.reset()


def test_a_change_has_its_effect(tmp_path: Path) -> None:
    with ServerProcess(repository(tmp_path), "--log-format=ISO8601") as process:

        def change(**settings: Any) -> None:
            assert raw.ask(process.http, raw.post("/v2/logging", json.dumps(settings).encode())).status == 200

        assert raw.ask(process.http, raw.get("/v2/logging")).json()["log_format"] == "ISO8601"
        change(log_format="json", log_verbose_level=1)
        assert raw.ask(process.http, raw.get("/v2/health/live")).status == 200
        record = json.loads(process.wait_for_log(r'"path":"/v2/health/live"'))
        assert (record["message"], record["status"]) == ("access", 200)
        change(log_verbose_level=0)
        assert raw.ask(process.http, raw.get("/v2/health/ready")).status == 200
        change(log_verbose_level=1)
        assert raw.ask(process.http, raw.get("/v2")).status == 200
        process.wait_for_log(r'"path":"/v2","')
        assert "/v2/health/ready" not in process.log()
