"""Connections that are slow, many, half closed, gone or unwelcome, and what the others notice of them: nothing."""

from __future__ import annotations

import json
import re
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.raw import (
    Client,
    Closed,
    ask,
    chunked,
    fp32,
    get,
    infer_binary,
    infer_json,
    infer_object,
    infer_path,
    post,
    several,
    values_of,
)
from tests.helpers.scrape import pending
from tests.helpers.server import Model, ServerProcess, repository, until
from tests.helpers.wire import Wire

INFER = infer_path("m")
JSON = json.dumps(infer_object([1.5])).encode()
BINARY = infer_binary("m", fp32([1, 2]), [1, 2])
MIB = 1 << 20
EXCEPT_INFER = "health,metadata,shared-memory,model-config,model-repository,statistics,trace,logging"


def failures(server: ServerProcess, model: str, reason: str) -> int:
    text = ask(server.metrics, get("/metrics")).body.decode()
    found = re.search(rf'nv_inference_request_failure{{model="{model}",reason="{reason}",version="1"}} ([0-9.]+)', text)
    assert found, text
    return int(float(found[1]))


def quiet(client: Client) -> bool:
    """Whether nothing has come for this client yet."""
    return not select.select([client.sock], [], [], 0)[0]


# ---- slow ones


def test_large_answer_to_a_slow_reader(server: ServerProcess) -> None:
    """100 MB waits for its reader in the one block it came in, and holds up nobody."""
    size = 100 * MIB
    data = bytes(range(256)) * (size // 256)
    base = server.rss()
    with Client(server.http, receive_buffer=4096) as slow:
        slow.send(infer_binary("big", data, [size], datatype="UINT8"))
        assert until(lambda: not quiet(slow))
        for i in range(50):
            assert values_of(ask(server.http, infer_json("m", [i]))) == [i]
        assert server.rss() < base + 1.3 * size
        answer = slow.answer()
        assert answer.body[int(answer.headers["inference-header-content-length"]) :] == data
        assert slow.ask(get("/v2/health/live")).status == 200


def test_pipelined_behind_a_large_answer(server: ServerProcess) -> None:
    """Requests that arrived while the socket was full are answered once it is not, without another byte sent."""
    large = infer_binary("big", bytes(8 * MIB), [8 * MIB], datatype="UINT8")
    with Client(server.http, receive_buffer=4096) as client:
        client.send(large + infer_json("m", [1]) + get("/v2") + infer_json("m", [2]))
        assert len(client.answer().body) > 8 * MIB
        assert values_of(client.answer()) == [1]
        assert client.answer().status == 200
        assert values_of(client.answer()) == [2]


def test_a_client_that_reads_nothing_is_not_read_from_for_ever(server: ServerProcess) -> None:
    """Endless pipelining without reading: the server stops taking bytes, and memory stays bounded."""
    base = server.rss()
    with Client(server.http, receive_buffer=4096) as client:
        client.sock.setblocking(False)
        piece = get("/v2/models/m/config") * 500
        sent, stuck = 0, 0
        while stuck < 200 and sent < 64 * MIB:
            try:
                sent += client.sock.send(piece)
                stuck = 0
            except BlockingIOError:
                stuck += 1
                assert values_of(ask(server.http, infer_json("m", [1]))) == [1]
        assert stuck == 200, "the server read 64 MiB of requests without an answer being taken"
    assert server.rss() < base + 16 * MIB


@pytest.fixture
def wire(root: Path) -> Iterator[Wire]:
    with Wire(root) as wire:
        yield wire
        assert wire.app.errors == []


def test_timeout_of_a_head(wire: Wire) -> None:
    wire.native.head_timeout_ns = 0
    connection = wire.connect()
    connection.feed(b"GET /v2 HT")
    wire.native.tick()
    assert connection.transport.out.startswith(b"HTTP/1.1 408 ")
    assert connection.transport.eof
    connection.lose()


@pytest.mark.parametrize("request_", [post(INFER, JSON), chunked(INFER, [JSON, JSON])], ids=["length", "chunked"])
def test_timeout_of_a_body(wire: Wire, request_: bytes) -> None:
    wire.native.body_timeout_ns = 0
    connection = wire.connect()
    connection.feed(request_[:-40])
    wire.native.tick()
    assert connection.transport.out.startswith(b"HTTP/1.1 408 ")
    connection.lose()


@pytest.mark.parametrize("cut", [1, 30, len(BINARY) - 1])
def test_idle_connections_are_closed_without_a_word(wire: Wire, cut: int) -> None:
    """Also after heads that were recognised without parsing, whole or in pieces."""
    connection = wire.connect()
    for _ in range(4):
        connection.feed(BINARY[:cut])
        connection.feed(BINARY[cut:])
        wire.pump()
    wire.native.idle_timeout_ns = 0
    connection.feed(BINARY)
    wire.pump()
    before = len(connection.transport.out)
    wire.native.tick()
    assert connection.transport.closed
    assert len(connection.transport.out) == before
    connection.lose()


def test_a_head_after_recognised_ones_has_its_own_time(wire: Wire) -> None:
    connection = wire.connect()
    for _ in range(3):
        connection.feed(BINARY[:50])
        connection.feed(BINARY[50:])
        wire.pump()
    wire.native.head_timeout_ns = 0
    connection.feed(b"GET")
    before = len(connection.transport.out)
    wire.native.tick()
    assert connection.transport.out[before:].startswith(b"HTTP/1.1 408 ")
    connection.lose()


def test_an_answer_that_nobody_takes_is_given_up(wire: Wire) -> None:
    wire.native.body_timeout_ns = 0
    connection = wire.connect()
    connection.transport.room = 10
    connection.feed(BINARY)
    wire.pump()
    assert connection.transport.held
    wire.native.tick()
    assert connection.transport.aborted
    connection.lose()


def test_timeouts_end_to_end(tmp_path: Path) -> None:
    flags = ["--http-header-timeout-secs=1", "--http-body-timeout-secs=1", "--http-idle-timeout-secs=1"]
    with (
        ServerProcess(repository(tmp_path, Model()), *flags) as server,
        Client(server.http) as idle, Client(server.http) as head, Client(server.http) as body,
        Client(server.http) as stalled,
    ):  # fmt: skip
        head.send(b"POST /v2/models/m/infer HTTP/1.1\r\nHos")
        body.send(post(INFER, JSON)[:-5])
        stalled.send(chunked(INFER, [JSON])[:-9])
        assert idle.closed()
        for client, what in ((head, "head"), (body, "body"), (stalled, "body")):
            answer = client.answer()
            assert (answer.status, answer.closes) == (408, True)
            assert what in answer.error
            assert client.closed()
        assert values_of(ask(server.http, infer_json("m", [5]))) == [5]


# ---- those that leave


def test_half_closed_client_gets_what_runs(server: ServerProcess) -> None:
    with Client(server.http) as client:
        client.send(post(infer_path("slow"), JSON))
        assert until(lambda: pending(server, "slow") == 0)
        client.half_close()
        answer = client.answer()
        assert (answer.status, values_of(answer)) == (200, [1.5])
        assert client.closed()


@pytest.mark.parametrize("how", ["close", "reset"])
def test_queued_requests_of_clients_that_left_are_dropped_at_once(server: ServerProcess, how: str) -> None:
    before = failures(server, "slow", "CANCELED")
    with Client(server.http) as running:
        running.send(post(infer_path("slow"), JSON))
        assert until(lambda: pending(server, "slow") == 0)
        with several(server.http, 5) as queued:
            for client in queued:
                client.send(post(infer_path("slow"), JSON))
            assert until(lambda: pending(server, "slow") == 5)
            for client in queued:
                getattr(client, how)()
        assert until(lambda: failures(server, "slow", "CANCELED") == before + 5)
        assert pending(server, "slow") == 0
        assert quiet(running), "the queued requests were dropped only when the instance was free"
        assert running.answer().status == 200


def test_clients_that_leave_at_every_point(server: ServerProcess) -> None:
    """Close or reset after any prefix of a request, and before or while the answer is read."""
    base = server.fds()
    request = infer_binary("m", fp32([1, 2, 3]), [1, 3]) + chunked(INFER, [JSON])
    for at in range(0, len(request) + 1, 7):
        client = Client(server.http)
        client.send(request[:at])
        if at % 2:
            client.reset()
        else:
            client.close()
    assert until(lambda: server.fds() <= base)


def test_a_thousand_idle_connections(server: ServerProcess) -> None:
    base_fds, base_rss = server.fds(), server.rss()
    with several(server.http, 1000) as clients:
        for client in clients[::50]:
            assert values_of(client.ask(infer_json("m", [1]))) == [1]
        assert until(lambda: server.connections(server.http) >= 1000)
        assert server.rss() < base_rss + 20 * MIB
    assert until(lambda: server.fds() <= base_fds)


def test_max_connections(tmp_path: Path) -> None:
    flag = "--http-max-connections=3"
    with ServerProcess(repository(tmp_path, Model()), flag) as server, several(server.http, 3) as clients:
        for client in clients:
            assert client.ask(get("/v2")).status == 200
        for _ in range(5):
            with Client(server.http) as more:
                assert more.closed()
        assert clients[0].ask(get("/v2")).status == 200
        clients.pop().close()

        def accepted() -> bool:
            try:
                return ask(server.http, get("/v2")).status == 200
            except (Closed, ConnectionError):
                return False

        assert until(accepted)


# ---- restricted APIs

RESTRICTED = [
    (get("/v2"), "metadata"), (get("/v2", method="HEAD"), "metadata"), (get("/v2/health/live"), "health"),
    (get("/v2/health/ready"), "health"),
    (get("/v2/models/m/ready"), "health"), (get("/v2/models/m"), "metadata"),
    (get("/v2/models/m/versions/1"), "metadata"),
    (get("/v2/models/m/config"), "model-config"), (get("/v2/models/m/stats"), "statistics"),
    (get("/v2/models/stats"), "statistics"),
    (post("/v2/repository/index"), "model-repository"), (post("/v2/repository/x/index"), "model-repository"),
    (post("/v2/repository/models/m/load"), "model-repository"),
    (post("/v2/repository/models/m/unload"), "model-repository"),
    (get("/v2/systemsharedmemory/status"), "shared-memory"),
    (post("/v2/cudasharedmemory/region/r/register"), "shared-memory"),
    (get("/v2/trace/setting"), "trace"), (post("/v2/models/m/trace/setting"), "trace"), (get("/v2/logging"), "logging"),
    (infer_json("m", [1]), "inference"), (BINARY, "inference"), (chunked(INFER, [JSON]), "inference"),
    (infer_json("absent", [1]), "inference"), (post("/v2/models/m/versions/1/infer", JSON), "inference"),
    (post("/v2/models/m/versions/" + "9" * 40 + "/infer", JSON), "inference"), (get(INFER), "inference"),
    (post("/v2/models/m/generate", b"{}"), "inference"), (post("/v2/models/m/generate_stream", b"{}"), "inference"),
    (get("http://other/v2"), "metadata"), (get("/v2?key=secret"), "metadata"), (get("/v2", version="1.0"), "metadata"),
    (get("/v2", method="DELETE"), "metadata"),
]  # fmt: skip
DENIED = "This API is restricted, expecting header 'X-Key'"


@pytest.fixture(scope="module")
def closed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = repository(tmp_path_factory.mktemp("restricted"), Model())
    with ServerProcess(root, f"--http-restricted-api={EXCEPT_INFER},inference:X-Key=secret") as server:
        yield server


def with_header(request: bytes, line: bytes) -> bytes:
    return request.replace(b"\r\n", b"\r\n" + line + b"\r\n", 1)


@pytest.mark.parametrize(("request_", "category"), RESTRICTED, ids=range(len(RESTRICTED)))
def test_restricted_api(closed_server: ServerProcess, request_: bytes, category: str) -> None:
    head_only = request_.startswith(b"HEAD")
    with Client(closed_server.http) as client:
        for line in (
            None,
            b"X-Key: Secret",
            b"X-Key: secret2",
            b"X-Key:",
            b"X-Keys: secret",
            b"Key: secret",
            b"X-Key: secre",
        ):
            answer = ask(closed_server.http, with_header(request_, line) if line else request_)
            assert answer.status == 403, line
            assert head_only or answer.error == DENIED
        allowed = client.ask(with_header(request_, b"x-kEY: secret"))
        assert allowed.status != 403


def test_other_categories_stay_open(tmp_path: Path) -> None:
    with ServerProcess(repository(tmp_path, Model()), "--http-restricted-api=model-repository:k=v") as server:
        assert ask(server.http, post("/v2/repository/index")).status == 403
        assert ask(server.http, get("/v2")).status == 200
        assert values_of(ask(server.http, infer_json("m", [1]))) == [1]


def test_restricted_infer_on_one_connection(closed_server: ServerProcess) -> None:
    """A head that was accepted before is recognised by all its bytes: without the key it is another head."""
    allowed = with_header(BINARY, b"X-Key: secret")
    with Client(closed_server.http) as client:
        for _ in range(3):
            for _ in range(4):
                assert values_of(client.ask(allowed)) == [1, 2]
            assert client.ask(BINARY).error == DENIED
            assert client.ask(with_header(BINARY, b"X-Key: secreT")).error == DENIED
        client.send(allowed + BINARY + allowed + allowed + BINARY)
        assert [client.answer().status for _ in range(5)] == [200, 403, 200, 200, 403]


def test_large_bodies_are_not_taken_without_the_key(closed_server: ServerProcess) -> None:
    """Refused by the head: neither an invitation to send the body nor memory for it."""
    size = "Inference-Header-Content-Length: 50"
    for request in (
        get(INFER, f"Content-Length: {1 << 33}", size, method="POST"),
        get(INFER, "Transfer-Encoding: chunked", size, method="POST"),
        get(INFER, "Content-Length: 99", "Expect: 100-continue", method="POST"),
    ):
        with Client(closed_server.http) as client:
            answer = client.ask(request)
            assert (answer.status, answer.error, answer.interim, answer.closes) == (403, DENIED, [], True)


# ---- the end


def test_sigterm_answers_what_runs_and_what_waits(tmp_path: Path) -> None:
    root = repository(tmp_path, Model(), Model("slow", delay_ms=300))
    with ServerProcess(root) as server, Client(server.http) as idle, several(server.http, 4) as clients:
        assert idle.ask(get("/v2")).status == 200
        for client in clients:
            client.send(post(infer_path("slow"), JSON))
        assert until(lambda: pending(server, "slow") == 3)
        server.signal(signal.SIGTERM)
        assert idle.closed()
        for client in clients:
            answer = client.answer()
            assert (answer.status, values_of(answer), answer.closes) == (200, [1.5], True)
            assert client.closed()
        assert server.wait() == 0


@pytest.mark.parametrize("stuck", [b"POST /v2/mod", post(INFER, JSON)[:-3], chunked(INFER, [JSON])[:-3]])
def test_sigterm_with_a_request_that_never_comes_whole(tmp_path: Path, stuck: bytes) -> None:
    """A client that stopped in the middle cannot turn an orderly end into a failure."""
    with ServerProcess(repository(tmp_path, Model()), "--exit-timeout-secs=1") as server, Client(server.http) as client:
        client.send(get("/v2") + stuck)
        assert client.answer().status == 200
        assert server.stop() == 0


def test_a_body_is_given_time_for_bytes_that_came_not_in_advance(wire: Wire) -> None:
    """A client that sent much and then stands still is cut after one time-out, however much it sent."""
    connection = wire.connect()
    wire.native.body_timeout_ns = 0
    connection.feed(b"POST /v2/repository/index HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b" " * 50000)
    wire.native.tick()
    assert connection.transport.out == b""  # it moved since the last look
    wire.native.tick()
    assert connection.transport.out.startswith(b"HTTP/1.1 408 ")
    connection.lose()
