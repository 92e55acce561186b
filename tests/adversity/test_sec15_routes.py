"""SEC-15: no spelling of a request reaches what is closed, whether by restricted groups, by keys, or by both.

The table is built here: every route, by every method, version and alias, with every header that some server takes for
another method, path or protocol. tests/conformance/test_restricted.py has the calls of gRPC.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.test_cloud_restricted import ENV, NAMES
from tests.conformance.test_cloud_restricted import FLAGS as CLOUD_FLAGS
from tests.conformance.test_cloud_restricted import ways as cloud_ways
from tests.conformance.test_restricted import PATHS, RPCS, aliases, start
from tests.helpers import raw
from tests.helpers.grpc_channel import Channel
from tests.helpers.server import LocalServer, Model, repository
from triton_fast.cli.values import RESTRICTED
from triton_fast.frontends import keyfile
from triton_fast.frontends.http.routes import ROUTES
from triton_fast.frontends.keys import REACH

METHODS = ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "get", "CONNECT")
# What other servers and proxies obey.
TRICKS: tuple[Sequence[str], ...] = (
    (),
    ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
     "Sec-WebSocket-Version: 13"),
    ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"),
    ("X-HTTP-Method-Override: GET", "X-HTTP-Method: POST", "X-Method-Override: POST"),
    ("X-Original-URL: /v2/health/live", "X-Rewrite-URL: /v2/health/live", "X-Original-URI: /"),
    ("X-Forwarded-For: 127.0.0.1", "X-Real-IP: 127.0.0.1", "X-Forwarded-Host: localhost", "Forwarded: for=127.0.0.1"),
    ("Content-Type: application/grpc", "TE: trailers"),
    ("Expect: 100-continue",),
)  # fmt: skip
CLOSED = {400, 401, 403, 404, 405, 417, 501, 505}


def encoded(path: str) -> list[str]:
    """Percent-encodings of it, and other versions of the same idea."""
    whole = "".join(f"%{ord(c):02x}" for c in path[1:])
    return [
        f"/{whole}", path.replace("/", "%2F"), path.replace("e", "%65"), path.replace("v", "%2576"), path + "%2f",
        path + "%3b", path + "/%2e", path + "/%2e%2e/" + path.rpartition("/")[2], path.replace("v2", "V2"),
        path.replace("v2", "v2;x"), path + "\\", path + "..;/", "/." + path, "/%2e%2e" + path, path + "?X-Key=secret",
        path.replace("/v2", "/v2/v2"), path.replace("/v2", "/api/v2"), path + "/..;" + path, "*", path[1:],
    ]  # fmt: skip


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    path = tmp_path_factory.mktemp("keys") / "keys"
    texts = {}
    for scope in keyfile.SCOPES:
        texts[scope], key = keyfile.make((scope,))
        keyfile.add(path, key)
    return path, texts


@pytest.fixture(scope="module", params=["groups", "keys", "both"])
def closed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, keys: tuple[Path, dict[str, str]]
) -> Iterator[LocalServer]:
    root = repository(tmp_path_factory.mktemp("closed"), Model("m"))
    everything = ",".join(RESTRICTED)
    flags = []
    if request.param != "keys":
        flags += [f"--http-restricted-api={everything}:X-Key=secret", f"--grpc-restricted-protocol={everything}:key=s"]
    if request.param != "groups":
        flags.append(f"--api-keys={keys[0]}")
    with LocalServer(root, *flags) as server:
        before = server.call(lambda: server.server.plane.native_model("m", -1))
        yield server
        assert server.call(lambda: server.server.plane.native_model("m", -1)) is before
        assert server.snapshot("m")["success"] == 0


def status(server: LocalServer, data: bytes) -> int:
    try:
        return raw.ask(server.http, data).status
    except raw.Closed as closed:
        assert closed.got == b""
        return 400


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("method", METHODS)
def test_every_route(closed: LocalServer, method: str, version: str) -> None:
    for path in PATHS:
        for trick in TRICKS if method in ("GET", "POST") else TRICKS[:3]:
            body = b"{}" if method in ("POST", "PUT", "PATCH") and "Expect: 100-continue" not in trick else b""
            length = [f"Content-Length: {len(body)}"]
            found = status(closed, raw.get(path, *length, *trick, method=method, version=version) + body)
            assert found in CLOSED, (path, trick)
            if method in ("GET", "POST", "HEAD"):
                assert found in (401, 403), (path, trick, found)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_every_alias(closed: LocalServer, method: str) -> None:
    for path in PATHS:
        for alias in (*aliases(path), *encoded(path)):
            found = status(closed, raw.get(alias, "Content-Length: 0", method=method))
            assert found in CLOSED, (alias, found)


def test_other_protocols_on_the_port(closed: LocalServer) -> None:
    for data in (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET /v2\r\n", b"GET /v2\r\n\r\n", b"\x16\x03\x01\x02\x00\x01",
                 b"GET /v2 HTTP/2.0\r\nHost: t\r\n\r\n", b"GET /v2 HTTP/0.9\r\nHost: t\r\n\r\n"):  # fmt: skip
        with raw.Client(closed.http) as client:
            client.send(data)
            client.half_close()
            try:
                assert client.answer().status in CLOSED, data
            except raw.Closed as ended:
                assert ended.got == b""


def test_smuggled_behind_another(closed: LocalServer) -> None:
    """A second request in what may be taken for the body of a first is refused as any other."""
    inner = raw.get("/v2")
    for head in (f"Content-Length: {len(inner)}", "Content-Length: 0", "Transfer-Encoding: identity"):
        with raw.Client(closed.http) as client:
            client.send(raw.get("/v2", head, method="POST") + inner)
            client.half_close()
            answers = []
            try:
                while True:
                    answers.append(client.answer().status)
            except raw.Closed:
                pass
            assert answers and set(answers) <= CLOSED


def test_grpc(closed: LocalServer) -> None:
    with Channel(closed.grpc) as channel:
        for path in RPCS:
            for metadata in ({}, {"authorization": "Bearer x"}, {"x-api-key": "x"}, {"triton-grpc-protocol-key": "x"}):
                assert start(channel, path, metadata)[0] in (14, 16), path
            for alias in (path + "/", path.upper(), "/" + path, path.replace("/", "//"), path + "%00", path + "?a"):
                assert start(channel, alias, {})[0] in (12, 13, 14, 16), alias


def test_a_key_reaches_its_scope_and_no_more(tmp_path: Path, keys: tuple[Path, dict[str, str]]) -> None:
    """The whole table again: every route and call, by a key of every scope."""
    root = repository(tmp_path / "models", Model("m"))
    with LocalServer(root, f"--api-keys={keys[0]}") as server, Channel(server.grpc) as channel:
        for scope, text in keys[1].items():
            for path, category in PATHS.items():
                for method in ("GET", "POST"):
                    data = raw.get(path, f"X-Api-Key: {text}", "Content-Length: 0", method=method)
                    assert (status(server, data) in (401, 403)) is (category not in REACH[scope]), (scope, path)
            for path, category in RPCS.items():
                found, text_of_it = start(channel, path, {"authorization": f"Bearer {text}"})
                denied = found in (7, 16) and "API key" in text_of_it
                assert denied is (category not in REACH[scope]), (scope, path)
            scrape = raw.ask(server.metrics, raw.get("/metrics", f"X-Api-Key: {text}")).status
            assert scrape == (200 if scope == "metrics" else 403)


def test_keys_on_the_ports_of_clouds(tmp_path: Path, keys: tuple[Path, dict[str, str]]) -> None:
    root = repository(tmp_path / "models", Model("m"))
    with LocalServer(root, *CLOUD_FLAGS, f"--api-keys={keys[0]}", env=ENV) as server:
        for way in cloud_ways(tmp_path):
            length = (f"Content-Length: {len(way.body)}",) if way.body else ()

            def ask(*headers: str, way: Any = way, length: Sequence[str] = length) -> raw.Answer:
                head = raw.get(way.path, *way.headers, *length, *headers, method=way.method)
                return raw.ask(getattr(server, way.port), head + (way.body if way.method != "GET" else b""))

            for wrong in ((), ("Authorization: Bearer x",), ("X-Api-Key: x",), ("Authorization: Basic x",)):
                answer = ask(*wrong)
                assert answer.status == 401 and "API key" in answer.error, (way.name, wrong)
            for scope, text in keys[1].items():
                if "load" in way.name or way.method == "DELETE" or way.name.startswith("sagemaker POST /models "):
                    if scope == "admin":
                        continue  # it would be done
                answer = ask(f"Authorization: Bearer {text}")
                denied = answer.status == 403 and b"API key" in answer.body
                assert denied is (way.category not in REACH[scope]), (way.name, scope)
    assert NAMES


def test_the_table_has_every_route() -> None:
    for route in ROUTES:
        assert any(route.pattern.fullmatch(path) for path in PATHS), route.pattern
