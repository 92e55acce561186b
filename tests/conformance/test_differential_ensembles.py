"""The same ensembles loaded by this server and by the reference: statuses, texts, and shapes of what is answered.

Needs TRITON_REFERENCE (see reference.py). Our texts may go on where Triton's end: a hint in brackets.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.conformance import reference
from tests.helpers import raw
from tests.helpers.ensembles import Chain, ensembles
from tests.helpers.server import LocalServer, Model, repository

FOUR = {"dims": (4,)}
MEMBERS = (
    Model("a", **FOUR), Model("b", **FOUR), Model("five", dims=(5,)), Model("ints", "INT32", (4,)),
    Model("small", max_batch=2, **FOUR), Model("two", tensors=2, **FOUR), Model("flat", max_batch=0, **FOUR),
    Model("rows", max_batch=0, dims=(-1, 4)), Model("typo", extra="max_batchsize: 3", **FOUR),
)  # fmt: skip
CHAINS = (
    Chain("nobody", ("a", "nowhere"), dims="4"),
    Chain("unread", ("typo",), dims="4"),
    Chain("shape", ("five",), dims="4"),
    Chain("inner_shape", ("a", "five"), dims="4"),
    Chain("type", ("ints",), dims="4"),
    Chain("batch", ("a", "small"), dims="4"),
    Chain("unmapped", ("two",), dims="4"),
    Chain("version_3", ("a",), dims="4", version=3),
    Chain("version_0", ("a",), dims="4", version=0),
    Chain("no_input", ("a",), dims="4", takes="X"),
    Chain("no_output", ("a",), dims="4", gives="X"),
    Chain("self", ("self",), dims="4"),
    Chain("one", ("other",), dims="4"),
    Chain("other", ("one",), dims="4"),
    Chain("behind", ("shape",), dims="4"),
    Chain("good", ("a", "b", "a"), dims="4"),
    Chain("outer", ("good",), dims="4"),
    Chain("drops", ("flat",), dims="4"),
    Chain("as_rows", ("rows",), dims="4"),
    Chain("adds", ("a",), dims="4", max_batch=0),
    Chain("rows_to_batch", ("a",), dims="-1, 4", max_batch=0),
)
# Member of a cycle: each server tells of it at the first load.
LOADED = [chain.name for chain in CHAINS if chain.name != "other"]
ASKED = [("good", (3, 4)), ("outer", (1, 4)), ("drops", (1, 4)), ("as_rows", (3, 4)), ("as_rows", (1, 4)),
         ("adds", (4,)), ("rows_to_batch", (3, 4)), ("rows_to_batch", (1, 4))]  # fmt: skip


class Pair(NamedTuple):
    ours: tuple[str, int]
    theirs: tuple[str, int]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    if reference.VARIABLE not in os.environ:
        pytest.skip(f"{reference.VARIABLE} is not set: the path of the reference server")
    root = tmp_path_factory.mktemp("ensembles")
    ours = ensembles(repository(root / "ours", *MEMBERS), *CHAINS)
    theirs = reference.python_models(ours, root / "theirs", tuple(model.name for model in MEMBERS))
    ensembles(theirs, *CHAINS)
    flags = "--model-control-mode=explicit"
    with LocalServer(ours, flags) as near, reference.Reference(theirs, root / "log", flags) as far:
        yield Pair(near.http, far.http)


def load(address: tuple[str, int], name: str) -> tuple[int, str]:
    answer = raw.ask(address, raw.post(f"/v2/repository/models/{name}/load"))
    return answer.status, answer.json()["error"].rstrip("\n") if answer.body else ""


@pytest.mark.parametrize("name", LOADED)
def test_loading_an_ensemble(pair: Pair, name: str) -> None:
    ours, theirs = load(pair.ours, name), load(pair.theirs, name)
    assert ours[0] == theirs[0]
    assert ours[1] == theirs[1] or ours[1].startswith(f"{theirs[1]} (")


@pytest.mark.parametrize(("name", "shape"), ASKED)
def test_shapes_on_the_way_through(pair: Pair, name: str, shape: tuple[int, ...]) -> None:
    count = 1
    for dim in shape:
        count *= dim
    answers = []
    for address in pair:
        assert load(address, name) == (200, "")
        answer = raw.ask(address, raw.infer_json(name, [float(k) for k in range(count)], shape=shape))
        assert answer.status == 200, answer.body
        answers.append(answer.json()["outputs"])
    assert answers[0] == answers[1]
