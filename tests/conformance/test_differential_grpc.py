"""The same calls over gRPC to this server and to the reference; what differs stands, with its reason, in
differences.py.

Needs TRITON_REFERENCE (see reference.py); without it only the document is checked.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import pytest

from tests.conformance import differences, grpc_cases, models, reference
from tests.conformance.grpc_client import plain
from tests.helpers.grpc_channel import Channel, Reply, infer_request, repeat_request
from tests.helpers.server import ServerProcess, until
from triton_fast import protos

FLAGS = ("--model-control-mode=explicit", "--load-model=*")
VERBS, MESSAGES, STREAMS = grpc_cases.verbs(), grpc_cases.messages(), grpc_cases.streams()
# What an identity model and a Python model with the same config must differ in.
OF_THE_BACKEND = ("platform", "backend", "default_model_filename")


class Pair(NamedTuple):
    ours: Channel
    theirs: Channel


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    if reference.VARIABLE not in os.environ:
        pytest.skip(f"{reference.VARIABLE} is not set: the path of the reference server")
    base = tmp_path_factory.mktemp("differential")
    ours = models.write(base / "ours")
    for folder in ours.iterdir():
        if folder.name not in grpc_cases.SERVED:
            shutil.rmtree(folder)
    theirs = reference.python_models(ours, base / "theirs", grpc_cases.SERVED)
    with (
        reference.Reference(theirs, base / "log") as other, ServerProcess(ours, *FLAGS) as process,
        Channel(process.grpc) as near, Channel(other.grpc) as far,
    ):  # fmt: skip
        yield Pair(near, far)


def comparable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: comparable(item) for key, item in value.items() if key not in OF_THE_BACKEND}
    return [comparable(item) for item in value] if isinstance(value, list) else value


def content(reply: Reply) -> list[Any]:
    return [comparable(plain(message)) for message in reply.messages]


def error(reply: Reply) -> str:
    """The text of a call, or of the first error on a stream."""
    return reply.text or next((text for one in reply.messages if (text := getattr(one, "error_message", ""))), "")


def compare(name: str, ours: Reply, theirs: Reply) -> None:
    if name in differences.GRPC_KNOWN:
        known = differences.GRPC_KNOWN[name]
        assert (ours.status, error(ours)) == (known.status, known.text)
        assert (theirs.status, error(theirs)) == (known.reference_status, known.reference)
        assert (ours.outcome, content(ours)) != (theirs.outcome, content(theirs)), "this is no difference any more"
        return
    assert ours.outcome == theirs.outcome
    assert content(ours) == content(theirs)


@pytest.mark.parametrize("name", VERBS)
def test_verb(pair: Pair, name: str) -> None:
    ours, theirs = (channel.ask(*VERBS[name]) for channel in pair)
    if name == "server":
        for reply in (ours, theirs):
            reply.message.version = ""
    compare(name, ours, theirs)


@pytest.mark.parametrize("name", MESSAGES)
def test_infer(pair: Pair, name: str) -> None:
    ours, theirs = (channel.infer(MESSAGES[name]) for channel in pair)
    compare(name, ours, theirs)


@pytest.mark.parametrize("name", STREAMS)
def test_stream(pair: Pair, name: str) -> None:
    metadata, requests = STREAMS[name]
    ours, theirs = (channel.stream(requests, metadata=metadata) for channel in pair)
    compare(name, ours, theirs)


def test_statistics_have_the_same_shape(pair: Pair) -> None:
    def shape(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shape(item) for key, item in value.items()}
        return [shape(item) for item in value] if isinstance(value, list) else type(value).__name__

    found = []
    for channel in pair:
        assert channel.infer(infer_request("id_fp32")).outcome == (0, "")
        request = VERBS["statistics of an unknown model"][1].__class__(name="id_fp32")
        found.append(shape(plain(channel.ask("ModelStatistics", request).message)))
    assert found[0] == found[1]


def test_a_client_that_cancels_a_stream(pair: Pair) -> None:
    for channel in pair:
        with channel.talk() as talk:
            talk.send(repeat_request([1, 2, 3], [0, 50, 50]))
            assert talk.next().infer_response.outputs
            talk.call.cancel()
        assert channel.infer(infer_request("id_fp32")).outcome == (0, "")


def test_readiness_around_an_unload(pair: Pair) -> None:
    """Both answer an unload before it has ended."""

    def is_in(channel: Channel, state: str) -> bool:
        rows = channel.ask("RepositoryIndex").message.models
        return ("control", state) in {(row.name, row.state) for row in rows}

    def states(channel: Channel) -> list[Any]:
        found = []
        for verb, state in (("RepositoryModelUnload", "UNAVAILABLE"), ("RepositoryModelLoad", "READY")):
            assert channel.ask(verb, getattr(protos, f"{verb}Request")(model_name="control")).outcome == (0, "")
            assert until(partial(is_in, channel, state))
            health = channel.unary("/grpc.health.v1.Health/Check", b"", protos.HealthCheckResponse)
            found.append((channel.ask("ServerReady").message.ready, health.message.status))
        return found

    assert states(pair.ours) == states(pair.theirs)


def test_the_document_lists_the_known_differences() -> None:
    rows = differences.documented("Answers that differ over gRPC")
    assert rows == [differences.row(known, name) for name, known in differences.GRPC_KNOWN.items()]
    assert set(differences.GRPC_KNOWN) <= {*VERBS, *MESSAGES, *STREAMS}
    assert len({*VERBS, *MESSAGES, *STREAMS}) == len(VERBS) + len(MESSAGES) + len(STREAMS)
