"""The same requests to Python models of this server and of the reference; what differs stands in python_answers.py.

Needs TRITON_REFERENCE (see reference.py); without it only the document is checked. What the reference does not survive
is sent to this server alone, by test_python_backend.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests.conformance import differences, python_answers, reference
from tests.conformance.python_answers import KNOWN, NEEDS
from tests.conformance.python_cases import CASES
from tests.conformance.test_python_backend import LOADS, comparable
from tests.helpers.grpc_channel import Channel
from tests.helpers.server import ServerProcess

TITLE = "Answers of Python models that differ"
ASKED = [name for name in CASES if name not in KNOWN or not KNOWN[name].fatal]
LOADED = [name for name in LOADS if name not in KNOWN or not KNOWN[name].fatal]


class Side:
    """One server; models are loaded when a case needs them."""

    def __init__(self, http: tuple[str, int], channel: Channel, root: Any) -> None:
        self.http, self.channel, self.root = http, channel, root
        self.here: set[str] = set()

    def asked(self, name: str) -> dict[str, Any]:
        case = CASES[name]
        for needed in (*NEEDS.get(case.model, ()), case.model):
            if needed not in self.here:
                assert python_answers.load(self.http, needed)["status"] == 200
                self.here.add(needed)
        return python_answers.asked(self.http, self.channel, case, self.root)


class Pair(NamedTuple):
    ours: Side
    theirs: Side


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    if reference.VARIABLE not in os.environ:
        pytest.skip(f"{reference.VARIABLE} is not set: the path of the reference server")
    with (
        python_answers.served_reference(tmp_path_factory.mktemp("differential")) as (other, root, _),
        ServerProcess(root, "--model-control-mode=explicit") as process,
        Channel(process.grpc) as near, Channel(other.grpc) as far,
    ):  # fmt: skip
        yield Pair(Side(process.http, near, root), Side(other.http, far, root))


@pytest.mark.parametrize("name", ASKED)
def test_same_answer(pair: Pair, name: str) -> None:
    theirs, ours = pair.theirs.asked(name), pair.ours.asked(name)
    if name not in KNOWN:
        assert ours == theirs
        return
    protocol = "grpc" if CASES[name].decoupled else "http"
    assert python_answers.like(python_answers.summary(theirs[protocol]), KNOWN[name].reference)
    assert python_answers.like(python_answers.summary(ours[protocol]), KNOWN[name].text)
    assert ours != theirs, "this is no difference any more"


@pytest.mark.parametrize("name", LOADED)
def test_same_load(pair: Pair, name: str) -> None:
    theirs, ours = (python_answers.loaded(side.http, name, side.root) for side in (pair.theirs, pair.ours))
    if name not in KNOWN:
        assert comparable(ours) == comparable(theirs)
        return
    assert python_answers.like(python_answers.summary(theirs), KNOWN[name].reference)
    assert python_answers.like(python_answers.summary(ours), KNOWN[name].text)
    assert ours != theirs, "this is no difference any more"


def test_the_document_lists_the_known_differences() -> None:
    assert differences.documented(TITLE) == [python_answers.row(name) for name in KNOWN]
