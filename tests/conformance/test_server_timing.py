"""Server-Timing: only for who asks, over HTTP and gRPC; its parts are consecutive, so their sum is the total."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.helpers import raw
from tests.helpers.grpc_channel import Channel, infer_request, repeat_request
from tests.helpers.server import Model, ServerProcess, repository, with_repeat

ASK = "triton-fast-timing: 1"
METADATA = {"triton-fast-timing": "1"}
NAMES = ("recv", "decode", "queue", "compute_input", "compute_infer", "compute_output", "deliver", "encode", "total")
DELAY_US = 20_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    models = (Model("m"), Model("late", delay_ms=DELAY_US // 1000), Model("text", datatype="BYTES"))
    root = with_repeat(repository(tmp_path_factory.mktemp("timing"), *models))
    with ServerProcess(root) as process:
        yield process


@pytest.fixture(scope="module")
def channel(server: ServerProcess) -> Iterator[Channel]:
    with Channel(server.grpc) as opened:
        yield opened


def parts(value: str | None) -> dict[str, int]:
    """Microseconds; the sum is checked."""
    assert value is not None
    found = dict(part.split(";dur=") for part in value.split(", "))
    assert tuple(found) == NAMES
    assert all(re.fullmatch(r"\d+\.\d{3}", text) for text in found.values()), value
    made = {name: int(text.replace(".", "")) for name, text in found.items()}
    assert sum(made.values()) == 2 * made["total"] > 0
    return made


def timing(answer: raw.Answer) -> dict[str, int]:
    return parts(answer.headers.get("server-timing"))


def trailer(channel: Channel, request: object, **named: object) -> tuple[int, str | None]:
    call = channel.infer_later(request, **named)
    return call.code().value[0], dict(call.trailing_metadata()).get("server-timing")


def test_where_the_time_went(server: ServerProcess) -> None:
    answer = raw.ask(server.http, raw.infer_json("late", [1], ASK))
    assert answer.status == 200
    found = timing(answer)
    assert found["compute_infer"] >= DELAY_US


def test_nobody_else_is_told(server: ServerProcess, channel: Channel) -> None:
    for headers in ((), ("triton-fast-timing: 0",), ("triton-fast-timing: 11",), ("triton-fast-timings: 1",)):
        assert "server-timing" not in raw.ask(server.http, raw.infer_json("m", [1], *headers)).headers
    for value in ("0", "true", ""):
        assert trailer(channel, infer_request("m"), metadata={"triton-fast-timing": value}) == (0, None)
    assert "server-timing" not in raw.ask(server.http, raw.get("/v2", ASK)).headers


def test_requests_alike_on_one_connection(server: ServerProcess) -> None:
    """Heads and answers are remembered: each answer has its own times, or none."""
    asking = raw.infer_binary("m", raw.fp32([1, 2]), [1, 2], ASK)
    plain = raw.infer_binary("m", raw.fp32([1, 2]), [1, 2])
    with raw.Client(server.http) as client:
        for request in [plain] * 4 + [asking] * 4 + [plain] * 4 + [asking, plain, asking, plain]:
            answer = client.ask(request)
            assert answer.status == 200
            assert answer.body.endswith(raw.fp32([1, 2]))
            if request is asking:
                timing(answer)
            else:
                assert "server-timing" not in answer.headers


def test_pipelined_requests(server: ServerProcess) -> None:
    asking, plain = raw.infer_json("m", [1], ASK), raw.infer_json("m", [1])
    with raw.Client(server.http) as client:
        client.send(asking + plain + asking)
        one, two, three = (client.answer() for _ in range(3))
    timing(one)
    timing(three)
    assert "server-timing" not in two.headers


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (raw.infer_json("nobody", [1], ASK), 404),
        (raw.post(raw.infer_path("m"), b"{}", ASK), 500),
        (raw.infer_json("m", [1], ASK, datatype="INT32"), 400),
        (raw.infer_json("m", [1.5] * 1000, ASK, "Accept-Encoding: gzip"), 200),
        (raw.infer_json("m", [1.5] * 100_000, ASK, "Accept-Encoding: gzip"), 200),
        (raw.infer_json("m", [1.5] * 300_000, ASK), 200),
        (raw.infer_json("m", [1], ASK, "Connection: close"), 200),
        (raw.generate("m", {"INPUT0": [1.0]}, ASK), 200),
        (raw.generate("m", {"INPUT0": [1.0]}, ASK, stream=True), 200),
        (raw.generate("repeat", {"IN": [1, 2], "DELAY": [0, 0], "WAIT": 0}, ASK, stream=True), 200),
        (raw.generate("m", {"INPUT0": ["x"]}, ASK), 500),
    ],
    ids=["unknown model", "no inputs", "wrong type", "packed", "packed elsewhere", "much JSON", "last", "generate",
         "one event", "events", "refused generate"],
)  # fmt: skip
def test_every_kind_of_answer(server: ServerProcess, request_: bytes, status: int) -> None:
    answer = raw.ask(server.http, request_)
    assert answer.status == status
    found = timing(answer)
    if status != 200:
        assert found["compute_infer"] == 0


def test_events_are_told_until_the_first_of_them(server: ServerProcess) -> None:
    delay_ms = DELAY_US // 1000
    body = {"IN": [1, 2], "DELAY": [delay_ms, 0], "WAIT": 0}
    answer = raw.ask(server.http, raw.generate("repeat", body, ASK, stream=True))
    assert [event["OUT"] for event in answer.events] == [1, 2]
    found = timing(answer)
    assert found["compute_infer"] >= DELAY_US


def test_grpc(channel: Channel) -> None:
    status, value = trailer(channel, infer_request("late"), metadata=METADATA)
    assert status == 0
    assert parts(value)["compute_infer"] >= DELAY_US


def test_grpc_errors(channel: Channel) -> None:
    status, value = trailer(channel, infer_request("nobody"), metadata=METADATA)
    assert status == 5
    assert parts(value)["compute_infer"] == 0
    status, value = trailer(channel, repeat_request([1]), metadata=METADATA)
    assert status == 12
    parts(value)


def test_a_large_grpc_answer(channel: Channel) -> None:
    status, value = trailer(channel, infer_request("m", [1.0] * 300_000), metadata=METADATA)
    assert status == 0
    parts(value)


def test_streams_are_not_told(channel: Channel) -> None:
    with channel.talk(metadata=METADATA) as talk:
        talk.send(infer_request("m"))
        talk.end()
        assert talk.rest().outcome == (0, "")
        assert "server-timing" not in dict(talk.call.trailing_metadata())


def test_off(tmp_path: object) -> None:
    root = repository(tmp_path, Model("m"))  # type: ignore[arg-type]
    with ServerProcess(root, "--server-timing=off") as process, Channel(process.grpc) as channel:
        assert "server-timing" not in raw.ask(process.http, raw.infer_json("m", [1], ASK)).headers
        assert trailer(channel, infer_request("m"), metadata=METADATA) == (0, None)


def test_the_access_log_does_not_need_it(tmp_path: object) -> None:
    root = repository(tmp_path, Model("m"))  # type: ignore[arg-type]
    with ServerProcess(root, "--access-log=1", "--log-format=json") as process:
        answer = raw.ask(process.http, raw.infer_json("m", [1], ASK, id="both"))
        found = timing(answer)
        line = json.loads(process.wait_for_log('"id":"both"'))
        assert line["us"] >= found["total"], "the line is written later than the header"
        assert line["queue_us"] <= found["queue"] + 1
        assert "server-timing" not in raw.ask(process.http, raw.infer_json("m", [1])).headers


def test_the_access_log_has_the_whole_stream(tmp_path: object) -> None:
    """The head tells the time to the first event; what comes after it is in the line, over both protocols."""
    root = with_repeat(repository(tmp_path, Model("m")))  # type: ignore[arg-type]
    delay_ms = DELAY_US // 1000
    with ServerProcess(root, "--access-log=1", "--log-format=json") as process, Channel(process.grpc) as channel:
        body = {"IN": [1, 2], "DELAY": [0, delay_ms], "WAIT": 0, "id": "events"}
        answer = raw.ask(process.http, raw.generate("repeat", body, ASK, stream=True))
        assert len(answer.events) == 2
        with channel.talk() as talk:
            talk.send(repeat_request([1, 2], [0, delay_ms], id="stream"))
            talk.end()
            assert talk.rest().outcome == (0, "")
        for name in ("events", "stream"):
            line = json.loads(process.wait_for_log(f'"id":"{name}"'))
            assert line["responses"] == 2
            assert line["us"] >= line["compute_us"] >= DELAY_US
