"""The same generate requests to this server and to the reference: types, bodies and statuses of the answers.

Needs TRITON_REFERENCE (see reference.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.conformance import generate_cases, python_answers, reference
from tests.conformance.generate_cases import CASES
from tests.helpers import raw
from tests.helpers.server import Address, ServerProcess

# 2.51 answers every failed response with 400, 2.73 with the status of its code.
FAILED = 400


class Pair(NamedTuple):
    ours: Address
    theirs: Address


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    if reference.VARIABLE not in os.environ:
        pytest.skip(f"{reference.VARIABLE} is not set: the path of the reference server")
    folder = tmp_path_factory.mktemp("generate")
    root = generate_cases.write(folder / "models")
    flags = ("--model-control-mode=explicit", "--load-model=*")
    with (
        reference.Reference(root, folder / "log", *flags, *python_answers.FLAGS[1:]) as theirs,
        ServerProcess(root, *flags) as ours,
    ):
        yield Pair(ours.http, theirs.http)


@pytest.mark.parametrize("name", CASES)
def test_same_answer(pair: Pair, name: str) -> None:
    for request in CASES[name].requests():
        ours, theirs = (raw.ask(address, request) for address in pair)
        assert generate_cases.cleaned(ours) == generate_cases.cleaned(theirs)
        assert ours.headers.get("transfer-encoding") == theirs.headers.get("transfer-encoding")
        if theirs.status == FAILED and "transfer-encoding" in theirs.headers:
            assert ours.status >= FAILED
        else:
            assert ours.status == theirs.status
