"""Clients that take nothing or a byte at a time, pings both ways, the age of a connection, the end of a server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.h2attacks import Neighbour, beside
from tests.helpers.h2raw import (
    CANCEL,
    ENHANCE_YOUR_CALM,
    INITIAL_WINDOW,
    NO_ERROR,
    STREAM,
    STREAM_CALL,
    WATCH,
    Http2,
    block,
    bytes_message,
    data,
    head,
    infer_message,
    message,
    ping,
    repeat_message,
    request_fields,
    rst,
    settings,
    window,
)  # fmt: skip
from tests.helpers.server import ServerProcess, until
from triton_fast import protos

MIB = 1 << 20
BIG = (1 << 31) - 1
LAST = (BIG, NO_ERROR, b"")
UNAVAILABLE = 14
SHUTTING_DOWN = (UNAVAILABLE, "GRPC server is shutting down and has stopped accepting new requests.")
WATCH_CALL = block(request_fields(WATCH))


# ---- windows


def test_a_window_of_nothing(grpc: ServerProcess) -> None:
    """Answers that nobody takes end after --grpc-stall-timeout-secs; neighbours have theirs meanwhile."""

    def stall() -> None:
        with Http2(grpc.grpc, {INITIAL_WINDOW: 0}) as client:
            ids = [
                client.call(infer_message()),
                client.call(bytes_message(bytes(MIB // 2))),
                client.open(STREAM_CALL, message(infer_message()) * 3),
                client.open(STREAM_CALL, message(repeat_message(range(5))), end=True),
            ]
            for i in ids:
                answer = client.answer(i)
                assert (answer.reset, bytes(answer.body), answer.status) == (CANCEL, b"", None)
            client.send(settings({INITIAL_WINDOW: 65535}))
            assert client.ask(infer_message()).values() == [1.0]

    beside(grpc.grpc, stall, 100)


def test_many_answers_that_nobody_takes(grpc: ServerProcess) -> None:
    before = grpc.rss()
    with Http2(grpc.grpc, {INITIAL_WINDOW: 0}) as client:
        ids = [client.call(bytes_message(bytes(60_000))) for _ in range(500)]
        assert {client.answer(i).reset for i in ids} == {CANCEL}
        assert grpc.rss() < before + 64 * MIB


def test_a_stream_that_nobody_reads_stops_the_model(grpc: ServerProcess) -> None:
    """What a decoupled model makes for a reader that does not read is bounded before the stall ends it."""
    before = grpc.rss()
    with Http2(grpc.grpc, {INITIAL_WINDOW: 0}) as client:
        i = client.open(STREAM_CALL, message(repeat_message(range(10_000))))
        assert client.answer(i).reset == CANCEL
    assert grpc.rss() < before + 24 * MIB


def test_a_message_that_is_begun_and_not_ended(grpc: ServerProcess) -> None:
    with Http2(grpc.grpc) as client:
        whole = message(infer_message())
        ids = [client.open(block(request_fields(path)), whole[:n])
               for path in (STREAM, "/inference.GRPCInferenceService/ServerLive") for n in (1, 5, 9)]  # fmt: skip
        ids.append(client.open())
        quiet = client.open(STREAM_CALL)
        assert {client.answer(i).reset for i in ids} == {CANCEL}
        # A stream between two messages may be as quiet as it likes.
        assert quiet not in client.streams
        client.send(data(quiet, whole, end=True))
        assert client.answer(quiet).status == 0


@pytest.mark.parametrize("step", [1, 7])
def test_tiny_windows(grpc: ServerProcess, step: int) -> None:
    """The answer comes in pieces of the window's size, and whole."""
    payload = bytes(range(256)) * 20
    with Http2(grpc.grpc, {INITIAL_WINDOW: step}, credit=False) as client:
        i = client.call(bytes_message(payload))
        client.until(lambda: i in client.streams and len(client.streams[i].body) == step)
        while not client.streams[i].over:
            # No more windows than there may be frames: each is one.
            had = len(client.streams[i].body)
            client.send(window(i, step) * 50 + window(0, step * 50))
            client.until(lambda had=had: client.streams[i].over or len(client.streams[i].body) > had)  # type: ignore[misc]
        (raw,) = client.streams[i].messages
        assert protos.ModelInferResponse.FromString(raw).raw_output_contents[0] == payload
        assert client.seen["Data"] >= len(payload) // (step * 50)


def test_a_window_that_shrinks_below_nothing(grpc: ServerProcess) -> None:
    with Http2(grpc.grpc, credit=False) as client:
        i = client.call(bytes_message(bytes(200_000)))
        client.until(lambda: i in client.streams and len(client.streams[i].body) == 65535)
        client.send(settings({INITIAL_WINDOW: 0}) + window(i, 65535) + window(0, BIG - 65535))
        client.sync()
        assert len(client.streams[i].body) == 65535
        client.send(settings({INITIAL_WINDOW: 65535}))
        client.until(lambda: len(client.streams[i].body) == 2 * 65535)
        client.send(window(i, BIG - 65535))
        assert client.answer(i).status == 0


def test_the_connection_window(grpc: ServerProcess) -> None:
    """Calls that wait for it go on when it comes; one that is reset gives what it had to the others."""
    with Http2(grpc.grpc, {INITIAL_WINDOW: BIG}, credit=False) as client:
        first, second = (client.call(bytes_message(bytes(60_000))) for _ in range(2))
        client.until(lambda: sum(len(a.body) for a in client.streams.values()) == 65535)
        client.send(rst(first) + window(0, 120_000))
        assert client.answer(second).status == 0


def test_a_peer_that_reads_nothing_at_all(grpc: ServerProcess) -> None:
    """Its socket is full, so that it can not even be told: the connection is cut."""
    before = grpc.rss()
    fds = grpc.fds()
    with Neighbour(grpc.grpc) as neighbour, Http2(grpc.grpc, {INITIAL_WINDOW: BIG}, receive_buffer=4096) as client:
        client.send(window(0, BIG - 65535))
        body = message(bytes_message(bytes(MIB // 2)))
        client.send_until_refused(head(i) + data(i, body, end=True) for i in range(1, 60, 2))
        assert until(lambda: grpc.fds() <= fds + 1, step_s=0.01), "the connection is still there"
        assert neighbour.answered > 0
        assert grpc.rss() < before + 48 * MIB


# ---- keepalive


@pytest.fixture(scope="module")
def pinging(grpc_root: Path) -> object:
    flags = ["--grpc-keepalive-time=100", "--grpc-keepalive-timeout=300",
             "--grpc-http2-min-recv-ping-interval-without-data=100000", "--grpc-http2-max-ping-strikes=5"]  # fmt: skip
    with ServerProcess(grpc_root, *flags) as server:
        yield server


def test_the_server_pings_a_quiet_connection_that_has_a_call(pinging: ServerProcess) -> None:
    with Http2(pinging.grpc) as client:
        client.open(STREAM_CALL)
        client.until(lambda: client.seen["Ping"] >= 3)
        assert client.goaways == []


def test_pings_that_are_not_answered_end_the_connection(pinging: ServerProcess) -> None:
    with Http2(pinging.grpc, acks=False) as client:
        client.open(STREAM_CALL)
        client.drain()
        assert client.seen["Ping"] == 1


def test_without_a_call_there_are_no_pings(pinging: ServerProcess) -> None:
    """Long enough for the other connection to be pinged five times."""
    with Http2(pinging.grpc, acks=False) as quiet, Http2(pinging.grpc) as busy:
        quiet.send(ping())
        busy.open(STREAM_CALL)
        busy.until(lambda: busy.seen["Ping"] >= 5)
        quiet.until(lambda: quiet.seen["Ping ACK"] == 1)
        assert quiet.seen["Ping"] == 0
        quiet.send(settings(ack=True))
        assert quiet.ask(infer_message()).values() == [1.0]


def test_pings_idle_too_when_that_is_asked_for(grpc_root: Path) -> None:
    flags = ["--grpc-keepalive-time=50", "--grpc-keepalive-permit-without-calls=true",
             "--grpc-http2-max-pings-without-data=3"]  # fmt: skip
    with ServerProcess(grpc_root, *flags) as server, Http2(server.grpc) as client:
        client.until(lambda: client.seen["Ping"] == 3)
        with Http2(server.grpc) as later:
            later.until(lambda: later.seen["Ping"] == 3)
        # No more than that without data between them.
        client.sync()
        assert client.seen["Ping"] == 3
        assert client.ask(infer_message()).values() == [1.0]
        client.until(lambda: client.seen["Ping"] == 6)


def test_ping_strikes(pinging: ServerProcess) -> None:
    """The first ping and five that come too early are answered, the next ends it."""
    with Http2(pinging.grpc) as client:
        for _ in range(6):
            client.sync()
        client.send(ping())
        client.drain()
        assert client.goaways == [(0, ENHANCE_YOUR_CALM, b"too_many_pings")]


def test_calls_forgive_pings(pinging: ServerProcess) -> None:
    with Http2(pinging.grpc) as client:
        for _ in range(50):
            client.sync()
            assert client.ask(infer_message()).values() == [1.0]
        assert client.goaways == []


def test_strikes_are_off(grpc_root: Path) -> None:
    with ServerProcess(grpc_root, "--grpc-http2-max-ping-strikes=0") as server, Http2(server.grpc) as client:
        for _ in range(500):
            client.sync()
        assert client.goaways == []


# ---- age


def test_a_connection_of_age(grpc_root: Path) -> None:
    """Told to go, its call still answered, new ones too until it is named the last; then closed."""
    with ServerProcess(grpc_root, "--grpc-max-connection-age=300") as server, Http2(server.grpc) as client:
        first = client.ask(infer_message())
        assert first.values() == [1.0]
        slow = client.call(infer_message([2.0], "slow"))
        client.until(lambda: len(client.goaways) == 1)
        late = client.call(infer_message([3.0]))
        assert client.answer(late).values() == [3.0]
        assert client.answer(slow).values() == [2.0]
        client.drain()
        assert client.goaways == [LAST, (late, NO_ERROR, b"")]
        with Http2(server.grpc) as other:
            assert other.ask(infer_message()).values() == [1.0]


def test_a_connection_of_age_is_cut_after_its_grace(grpc_root: Path) -> None:
    flags = ["--grpc-max-connection-age=100", "--grpc-max-connection-age-grace=700"]
    with ServerProcess(grpc_root, *flags) as server, Http2(server.grpc) as client:
        endless = client.open(STREAM_CALL, message(infer_message()))
        client.drain()
        assert client.goaways == [LAST, (endless, NO_ERROR, b"")]
        assert not client.streams[endless].over


# ---- the end of the server


def ends(
    root: Path, begin: Callable[[Http2], int], later: Callable[[Http2, ServerProcess], object] | None = None
) -> tuple[Http2, int]:
    """Signal a server while a call is in hand; the connection after its end, and the call. The exit code is 0."""
    with ServerProcess(root) as server, Http2(server.grpc) as client:
        call = begin(client)
        client.sync()
        server.signal()
        client.until(lambda: bool(client.goaways))
        if later is not None:
            later(client, server)
        client.drain()
        assert server.wait() == 0
        assert client.goaways[0] == LAST
        assert "Exit timeout" not in server.log()
        return client, call


def test_shutdown_answers_what_is_in_flight_and_refuses_what_is_new(grpc_root: Path) -> None:
    def more(client: Http2, server: ServerProcess) -> None:
        new = [client.call(infer_message()), client.open(STREAM_CALL), client.open(WATCH_CALL)]
        for i in new:
            assert client.answer(i).outcome == SHUTTING_DOWN
        with pytest.raises(ConnectionRefusedError):
            Http2(server.grpc)

    client, slow = ends(grpc_root, lambda client: client.call(infer_message([4.0], "slow")), more)
    assert client.answer(slow).values() == [4.0]
    assert len(client.goaways) == 2


@pytest.mark.parametrize("body", [b"", b"\0\0", message(infer_message())[:9]])
@pytest.mark.parametrize("fields", [STREAM_CALL, block(request_fields())])
def test_shutdown_does_not_wait_for_half_a_message(grpc_root: Path, body: bytes, fields: bytes) -> None:
    client, half = ends(grpc_root, lambda client: client.open(fields, body))
    assert client.streams[half].outcome == SHUTTING_DOWN


@pytest.mark.parametrize("behind", [b"", b"\0\0"])
def test_shutdown_ends_a_stream_with_its_last_answer(grpc_root: Path, behind: bytes) -> None:
    """A stream whose client never ends it, with a request at work when the signal comes."""
    slow = message(infer_message([5.0], "slow"))
    client, stream = ends(grpc_root, lambda client: client.open(STREAM_CALL, slow + behind))
    assert len(client.streams[stream].messages) == 1
    assert client.streams[stream].outcome == SHUTTING_DOWN


def test_shutdown_takes_no_more_of_a_stream(grpc_root: Path) -> None:
    """Its requests after the last GOAWAY are not begun, and it does not end as if they had been."""
    slow = message(infer_message([5.0], "slow"))

    def more(client: Http2, server: ServerProcess) -> None:
        client.until(lambda: len(client.goaways) == 2)
        client.send(data(1, slow * 3, end=True))

    client, stream = ends(grpc_root, lambda client: client.open(STREAM_CALL, slow), more)
    assert len(client.streams[stream].messages) == 1
    assert client.streams[stream].outcome == SHUTTING_DOWN


def test_shutdown_does_not_wait_for_who_takes_no_answer(grpc_root: Path) -> None:
    """The answer is there and the client's window is shut: the call is reset long before the exit time-out."""

    def begin(client: Http2) -> int:
        client.send(settings({INITIAL_WINDOW: 0}))
        return client.call(infer_message())

    client, call = ends(grpc_root, begin)
    assert (client.streams[call].reset, bytes(client.streams[call].body)) == (CANCEL, b"")


def test_shutdown_ends_a_health_watch(grpc_root: Path) -> None:
    client, watch = ends(grpc_root, lambda client: client.open(WATCH_CALL, message(b""), end=True))
    assert client.streams[watch].status == UNAVAILABLE


def test_shutdown_of_a_connection_that_never_spoke(grpc_root: Path) -> None:
    with ServerProcess(grpc_root) as server, Http2(server.grpc, greet=False) as client:
        with Http2(server.grpc) as other:
            assert other.ask(infer_message()).values() == [1.0]
        server.signal()
        client.drain()
        assert server.wait() == 0


def test_a_stop_in_the_middle_of_everything(grpc_root: Path) -> None:
    """Connections at every stage when the signal comes; each is ended, and in time."""
    with ServerProcess(grpc_root) as server:
        clients = [Http2(server.grpc) for _ in range(12)]
        for k, client in enumerate(clients):
            for _ in range(k):
                client.call(infer_message([1.0], "slowish"))
            client.open(STREAM_CALL, message(repeat_message(range(20), 10)) + message(infer_message())[:k])
            client.open(block(request_fields()), message(infer_message())[: 2 * k])
        clients[0].sync()
        server.signal()
        for client in clients:
            client.drain()
            for answer in client.streams.values():
                assert answer.over
            client.close()
        assert server.wait() == 0
