"""ModelStreamInfer: order, interleaving, final responses, errors, the ways a stream ends, slow readers, a server that
ends. Unary calls beside it where they differ.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.conformance import models
from tests.helpers import raw
from tests.helpers.grpc_channel import Channel, infer_request, repeat_request, unpacked, value_of
from tests.helpers.server import LocalServer, Model, ServerProcess, repository, until
from triton_fast._native.core import memory, request

FINAL = "triton_final_response"
EMPTY_FINAL = {"triton_enable_empty_final_response": True}
GRPC_ERRORS = {"triton_grpc_error": "true"}
TWO = "instance_group [{ count: 2 kind: KIND_CPU }]\n"
UNKNOWN = "Request for unknown model: 'nobody' is not found"


def write_repeat(root: Path, name: str = "repeat", more: str = "") -> Path:
    (root / name / "1").mkdir(parents=True)
    (root / name / "config.pbtxt").write_text(models.REPEAT + more)
    return root


def write(root: Path) -> Path:
    repository(
        root, Model("fast"), Model("slow", delay_ms=150), Model("slower", delay_ms=300, max_batch=0),
        Model("texts", "BYTES"), Model("one", delay_ms=300, max_batch=0),
    )  # fmt: skip
    write_repeat(root, "repeat", TWO)
    return write_repeat(root, "single")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(write(tmp_path_factory.mktemp("streams"))) as process:
        yield process


@pytest.fixture
def channel(server: ServerProcess) -> Iterator[Channel]:
    with Channel(server.grpc) as made:
        yield made


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    with LocalServer(write(tmp_path_factory.mktemp("local"))) as made:
        yield made


@pytest.fixture
def near(local: LocalServer) -> Iterator[Channel]:
    with Channel(local.grpc) as made:
        yield made


def single(*arguments: Any, **more: Any) -> Any:
    """A request of the model that has one instance."""
    return repeat_request(*arguments, model="single", **more)


def final(message: Any) -> bool | None:
    parameters = message.infer_response.parameters
    return parameters[FINAL].bool_param if FINAL in parameters else None


def shown(message: Any) -> tuple[str, Any, bool | None]:
    """id, error text or the values of the first output, and the final flag of a response."""
    response = message.infer_response
    if message.error_message:
        return response.id, message.error_message, final(message)
    if not response.outputs:
        return response.id, None, final(message)
    kind = response.outputs[0].datatype
    return response.id, unpacked(response.raw_output_contents[0], kind), final(message)


def count(local: LocalServer, model: str, what: str) -> Any:
    return local.snapshot(model)[what]


# ---- order


def test_a_faster_request_waits_for_the_slower_one_before_it(channel: Channel) -> None:
    asked = ["slower", "slow", "fast", "slow", "fast", "fast"]
    requests = [infer_request(model, [k], id=str(k), shape=[1] if model == "slower" else [1, 1])
                for k, model in enumerate(asked)]  # fmt: skip
    reply = channel.stream(requests)
    assert reply.outcome == (0, "")
    assert [shown(one) for one in reply.messages] == [(str(k), [k], True) for k in range(len(asked))]
    assert [one.infer_response.model_name for one in reply.messages] == asked


def test_errors_keep_their_place_too(channel: Channel) -> None:
    requests = [infer_request("slow", [1], id="a"), infer_request("nobody", [2], id="b"),
                infer_request("fast", [3], id="c")]  # fmt: skip
    messages = channel.stream(requests).messages
    assert [one.infer_response.id for one in messages] == ["a", "b", "c"]
    assert messages[1].error_message == UNKNOWN


def test_a_decoupled_request_does_not_wait_for_others(channel: Channel) -> None:
    requests = [infer_request("slower", [1], shape=[1], id="slow"), repeat_request([7, 8], id="rep")]
    messages = channel.stream(requests).messages
    assert [shown(one) for one in messages] == [("rep", [7], False), ("rep", [8], False), ("slow", [1], True)]


def test_streams_do_not_wait_for_each_other(channel: Channel) -> None:
    with channel.talk() as slow, channel.talk() as fast:
        slow.send(infer_request("slower", [1], shape=[1]))
        fast.send(infer_request("fast", [2]))
        assert shown(fast.next()) == ("", [2], True)
        fast.end()
        assert fast.rest().outcome == (0, "")
        slow.end()
        assert len(slow.rest().messages) == 1


def test_many_requests_in_one_go(channel: Channel) -> None:
    """More than a stream may have in hand: none is lost, none overtakes."""
    reply = channel.stream(infer_request("fast", [k], id=str(k)) for k in range(3000))
    assert reply.outcome == (0, "")
    assert [shown(one) for one in reply.messages] == [(str(k), [k], True) for k in range(3000)]


# ---- decoupled models


def test_repeat(channel: Channel) -> None:
    reply = channel.stream([repeat_request([4, 2, 0, 1], id="r")])
    assert reply.outcome == (0, "")
    assert [shown(one) for one in reply.messages] == [("r", [k], False) for k in (4, 2, 0, 1)]
    assert [value_of(one, "IDX", "UINT32") for one in reply.messages] == [[0], [1], [2], [3]]
    names = {(one.infer_response.model_name, one.infer_response.model_version) for one in reply.messages}
    assert names == {("repeat", "1")}


def test_no_response_at_all(channel: Channel) -> None:
    reply = channel.stream([repeat_request([], id="none"), repeat_request([1], id="one")])
    assert reply.outcome == (0, "")
    assert [shown(one) for one in reply.messages] == [("one", [1], False)]


@pytest.mark.parametrize("values", [[], [1], [1, 2, 3]])
@pytest.mark.parametrize("version", ["", "1"])
def test_empty_final_response(channel: Channel, values: list[int], version: str) -> None:
    request = repeat_request(values, id="e", parameters=EMPTY_FINAL, model_version=version)
    reply = channel.stream([request])
    assert reply.outcome == (0, "")
    assert [shown(one) for one in reply.messages] == [*(("e", [k], False) for k in values), ("e", None, True)]
    last = reply.messages[-1].infer_response
    assert (last.model_name, last.model_version, list(last.raw_output_contents)) == ("repeat", version, [])


def test_empty_final_response_of_a_model_that_answers_once(channel: Channel) -> None:
    (message,) = channel.stream([infer_request("fast", [1], parameters=EMPTY_FINAL)]).messages
    assert shown(message) == ("", [1], True)


def test_requested_outputs(channel: Channel) -> None:
    request = repeat_request([5, 6])
    request.outputs.add(name="IDX")
    messages = channel.stream([request]).messages
    assert [[output.name for output in one.infer_response.outputs] for one in messages] == [["IDX"]] * 2
    assert [value_of(one, "IDX", "UINT32") for one in messages] == [[0], [1]]


def test_two_requests_take_turns(channel: Channel) -> None:
    """Two instances: the responses of one request come between those of the other, each in its own order."""
    with channel.talk() as talk:
        talk.send(repeat_request(range(3), [0, 100, 100], id="a"))
        assert shown(talk.next())[0] == "a"
        talk.send(repeat_request(range(10, 13), [0, 0, 0], id="b"))
        talk.end()
        found = [shown(one) for one in talk.rest().messages]
    assert [row for row in found if row[0] == "b"] == [("b", [k], False) for k in (10, 11, 12)]
    assert [row for row in found if row[0] == "a"] == [("a", [k], False) for k in (1, 2)]
    assert found.index(("b", [12], False)) < found.index(("a", [2], False))


def test_a_decoupled_model_is_for_streams(channel: Channel) -> None:
    text = "ModelInfer RPC doesn't support models with decoupled transaction policy"
    assert channel.infer(repeat_request([1])).outcome == (12, text)


# ---- errors


def test_the_stream_outlives_errors(channel: Channel) -> None:
    mismatch = "expected IN and DELAY shape to match, got [2] and [1]"
    requests = [
        infer_request("fast", [1], id="good"),
        infer_request("nobody", [1], id="unknown"),
        infer_request("fast", [1], "INT32", id="type"),
        infer_request("fast", [1], id="version", model_version="x"),
        repeat_request([1, 2], [0], id="backend"),
        b"\xff\xff",
        infer_request("fast", [2], id="end"),
    ]
    reply = channel.stream(requests)
    assert reply.outcome == (0, "")
    by_id = {one.infer_response.id: one for one in reply.messages}
    assert len(reply.messages) == len(requests)
    assert shown(by_id["good"]) == ("good", [1], True)
    assert shown(by_id["end"]) == ("end", [2], True)
    # What is wrong before the model is asked has an id and nothing else.
    assert shown(by_id["unknown"]) == ("unknown", UNKNOWN, None)
    assert shown(by_id["version"])[2] is None
    assert "version should be an integral value > 0" in by_id["version"].error_message
    text = "[request id: type] inference input 'INPUT0' data-type is 'INT32', but model 'fast' expects 'FP32'"
    assert shown(by_id["type"]) == ("type", text, None)
    assert by_id["type"].infer_response.model_name == ""
    # What the model itself answers names it.
    assert shown(by_id["backend"]) == ("backend", mismatch, True)
    failed = by_id["backend"].infer_response
    assert (failed.model_name, failed.model_version) == ("repeat", "1")
    assert by_id[""].error_message


@pytest.mark.parametrize(
    ("bad", "status", "text"),
    [
        (infer_request("nobody", [1]), 5, UNKNOWN),
        (infer_request("fast", [1], "INT32"), 3,
         "[request id: <id_unknown>] inference input 'INPUT0' data-type is 'INT32', but model 'fast' expects 'FP32'"),
        (repeat_request([1, 2], [0]), 3, "expected IN and DELAY shape to match, got [2] and [1]"),
    ],
    ids=["model", "datatype", "backend"],
)  # fmt: skip
def test_grpc_error_mode(channel: Channel, bad: Any, status: int, text: str) -> None:
    with channel.talk(metadata=GRPC_ERRORS) as talk:
        talk.send(infer_request("fast", [1]))
        assert shown(talk.next()) == ("", [1], True)
        talk.send(bad)
        reply = talk.rest()
    assert reply.outcome == (status, text)
    assert reply.messages == []


def test_grpc_error_mode_and_an_output_that_can_not_be_encoded(channel: Channel) -> None:
    asked = infer_request("texts", [b"a", b"b"], "BYTES", shape=[1, 2])
    asked.outputs.add(name="OUTPUT0").parameters["classification"].int64_param = 1
    text = "class result not available for output due to unsupported type 'BYTES'"
    assert channel.stream([asked, asked], metadata=GRPC_ERRORS).outcome == (3, text)
    assert channel.infer(asked).outcome == (3, text)
    messages = channel.stream([asked, infer_request("fast", [1])]).messages
    assert [shown(one) for one in messages] == [("", text, True), ("", [1], True)]


@pytest.mark.parametrize("value", ["false", "True", "1", ""])
def test_grpc_error_mode_has_one_word(channel: Channel, value: str) -> None:
    reply = channel.stream([infer_request("nobody", [1])], metadata={"triton_grpc_error": value})
    assert reply.outcome == (0, "")
    assert [one.error_message for one in reply.messages] == [UNKNOWN]


def test_grpc_error_mode_gives_up_what_is_queued(local: LocalServer, near: Channel) -> None:
    before = count(local, "one", "failures")["CANCELED"]
    requests = [infer_request("one", [k], shape=[1]) for k in range(4)]
    reply = near.stream([*requests, infer_request("nobody", [1])], metadata=GRPC_ERRORS)
    assert reply.outcome == (5, UNKNOWN)
    assert until(lambda: count(local, "one", "pending") == 0)
    assert until(lambda: count(local, "one", "failures")["CANCELED"] >= before + 3)


# ---- ends


def test_half_close_gets_everything(channel: Channel) -> None:
    requests = [repeat_request([1, 2, 3], [50] * 3, id="r"), infer_request("slower", [9], shape=[1], id="s")]
    reply = channel.stream(requests)
    assert reply.outcome == (0, "")
    assert sorted(map(repr, map(shown, reply.messages))) == sorted(
        map(repr, [*(("r", [k], False) for k in (1, 2, 3)), ("s", [9.0], True)])
    )


def test_an_empty_stream(channel: Channel) -> None:
    reply = channel.stream([])
    assert (reply.outcome, reply.messages) == ((0, ""), [])


def test_cancel_reaches_what_runs_and_what_waits(local: LocalServer, near: Channel) -> None:
    """One instance: the first request is between two responses, the others wait."""
    before = count(local, "single", "failures")["CANCELED"]
    with near.talk() as talk:
        talk.send(single([1, 2], [0, 60_000], id="runs"))
        assert shown(talk.next()) == ("runs", [1], False)
        for k in range(3):
            talk.send(single([k]))
        assert until(lambda: count(local, "single", "pending") == 3)
        talk.call.cancel()
    # Without the cancel the model would be busy for a minute.
    assert until(lambda: count(local, "single", "failures")["CANCELED"] == before + 4)
    assert count(local, "single", "pending") == 0
    assert shown(near.stream([single([5])]).messages[0]) == ("", [5], False)


def test_a_lost_connection_is_a_cancel(local: LocalServer) -> None:
    before = count(local, "single", "failures")["CANCELED"]
    with Channel(local.grpc) as lost:
        talk = lost.talk()
        talk.send(single([1, 2], [0, 60_000]))
        talk.send(single([3]))
        assert shown(talk.next()) == ("", [1], False)
        assert until(lambda: count(local, "single", "pending") == 1)
    assert until(lambda: count(local, "single", "failures")["CANCELED"] == before + 2)
    talk.end()


def test_deadline_of_a_stream(local: LocalServer, near: Channel) -> None:
    before = count(local, "single", "failures")["CANCELED"]
    with near.talk(timeout=0.2) as talk:
        talk.send(single([1, 2], [0, 60_000]))
        reply = talk.rest()
    assert reply.status == 4
    assert [shown(one) for one in reply.messages] == [("", [1], False)]
    assert until(lambda: count(local, "single", "failures")["CANCELED"] == before + 1)


# ---- slow readers


@pytest.mark.parametrize("pool", [1, 8])
def test_a_reader_that_is_slow_loses_nothing(tmp_path: Path, pool: int) -> None:
    """The model waits for the reader: memory does not grow with what the model would like to send."""
    responses, each, bound = 30_000, 2000, 20 << 20
    with ServerProcess(write_repeat(tmp_path), f"--grpc-max-response-pool-size={pool}") as process:
        window = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65536))
        with Channel(process.grpc) as other, Channel(process.grpc, options=window) as channel, channel.talk() as talk:
            assert other.ask("ServerLive").message.live
            before = process.rss()
            process.reset_peak()
            talk.send(repeat_request(range(responses), id="x" * each))
            assert value_of(talk.next(), "OUT") == [0]
            # Time for the model to send what it can, and proof that the server is not held up.
            for _ in range(500):
                assert other.ask("ServerLive").message.live
            assert process.peak_rss() - before < bound
            talk.end()
            assert [value_of(message, "OUT")[0] for message in talk] == list(range(1, responses))
            assert process.peak_rss() - before < bound < responses * each // 2


# ---- the end of the server


def test_drain_waits_for_streams_in_use_and_ends_idle_ones(tmp_path: Path) -> None:
    with ServerProcess(write_repeat(tmp_path)) as process:
        with (
            Channel(process.grpc) as busy, Channel(process.grpc) as idle, busy.talk() as talk, idle.talk() as waiting
        ):  # fmt: skip
            waiting.send(repeat_request([1]))
            assert shown(waiting.next()) == ("", [1], False)
            talk.send(repeat_request([1, 2], [0, 1500]))
            assert shown(talk.next()) == ("", [1], False)
            process.signal(signal.SIGTERM)
            end = waiting.rest()
            assert (end.status, end.messages) == (14, [])
            assert shown(talk.next()) == ("", [2], False)
            # Nothing more can come of it, whether its client ends it or not.
            end = talk.rest()
            assert (end.status, end.messages) == (14, [])
        assert process.wait() == 0


def test_a_draining_server_takes_no_new_connection(tmp_path: Path) -> None:
    with ServerProcess(write_repeat(tmp_path)) as process:
        with Channel(process.grpc) as channel, channel.talk() as talk:
            talk.send(repeat_request([1, 2], [0, 1000]))
            assert shown(talk.next()) == ("", [1], False)
            process.signal(signal.SIGTERM)

            def refused() -> bool:
                try:
                    socket.create_connection(process.grpc).close()
                except ConnectionRefusedError:
                    return True
                return False

            assert until(refused)
            with Channel(process.grpc) as late:
                assert late.ask("ServerLive").status == 14
            talk.end()
            reply = talk.rest()
            assert (reply.outcome, [shown(one) for one in reply.messages]) == ((0, ""), [("", [2], False)])
        assert process.wait() == 0


# ---- counters


def test_statistics_of_a_decoupled_model(server: ServerProcess, channel: Channel) -> None:
    def stats() -> Any:
        return raw.ask(server.http, raw.get("/v2/models/repeat/stats")).json()["model_stats"][0]

    before = stats()["inference_stats"]
    channel.stream([repeat_request(range(5)), repeat_request([])])
    assert until(lambda: stats()["inference_stats"]["success"]["count"] == before["success"]["count"] + 2)
    assert stats()["inference_stats"]["fail"]["count"] == before["fail"]["count"]


def test_large_tensors_on_a_stream(channel: Channel) -> None:
    arrays = [np.full(300_000, k, np.float32) for k in range(6)]
    with channel.talk() as talk:
        for array in arrays:
            talk.send(infer_request("fast", array, shape=[1, len(array)]))
        for array in arrays:
            assert talk.next().infer_response.raw_output_contents[0] == array.tobytes()
        talk.end()
        assert talk.rest().outcome == (0, "")


def test_nothing_is_left(tmp_path: Path) -> None:
    """Streams and calls that end in every way give back every request, response and block."""
    def held() -> tuple[int, int]:
        return memory.stats()["live_blocks"], request.stats()["live_requests"]

    before = held()
    with LocalServer(write(tmp_path)) as local:
        for k in range(30):
            with Channel(local.grpc) as channel:
                talks = [channel.talk(metadata=GRPC_ERRORS if k % 3 == 0 else None) for _ in range(3)]
                for talk in talks:
                    talk.send(repeat_request(range(50), [0] * 49 + [60_000]))
                    talk.send(infer_request("fast", [k]))
                    talk.send(infer_request("slower", [k], shape=[1]))
                    talk.send(infer_request("nobody", [k]))
                calls = [channel.infer_later(infer_request("slow", [k])) for _ in range(3)]
                if k % 2:
                    try:
                        talks[0].next()
                    except grpc.RpcError:
                        # grpcio keeps no message for who reads only after the call has ended with an error.
                        assert k % 3 == 0
                    calls[0].cancel()
                    talks[1].call.cancel()
            for talk in talks:
                talk.end()
        native: Any = local.server.endpoints.grpc.native  # type: ignore[union-attr]
        assert until(lambda: local.call(lambda: native.in_flight) == 0)
        with Channel(local.grpc) as channel:
            assert channel.infer(infer_request("fast", [1])).outcome == (0, "")
    assert until(lambda: held() == before)


def test_status_codes_are_grpcs() -> None:
    """The numbers that these tests compare with."""
    assert [grpc.StatusCode[name].value[0] for name in ("OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNAVAILABLE")] == [
        0, 3, 5, 14,
    ]  # fmt: skip
