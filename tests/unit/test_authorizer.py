"""Restricted APIs: who passes, and how each protocol words a refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.grpc_calls import SERVICE, Front
from tests.helpers.server import Model, repository
from tests.helpers.wire import Wire
from triton_fast import cli, protos
from triton_fast.frontends.authorizer import Authorizer
from triton_fast.frontends.grpc import health, reflection
from triton_fast.frontends.grpc.service import METHODS
from triton_fast.frontends.http.server import InferApp

GUARD = Authorizer({"health": ("X-Key", "s3cret"), "trace": ("é", "ü")})


def test_only_the_exact_value_passes() -> None:
    assert GUARD.missing("health", {"x-key": "s3cret"}) == ""
    for value in ("", "s3cre", "s3cretx", "S3CRET", " s3cret"):
        assert GUARD.missing("health", {"x-key": value}) == "X-Key"
    for headers in ({}, {"other": "s3cret"}):
        assert GUARD.missing("health", headers) == "X-Key"


def test_other_categories_are_open() -> None:
    assert GUARD.missing("metadata", {}) == ""
    assert Authorizer().missing("health", {}) == ""
    assert Authorizer({}).missing("health", {}) == ""


def test_values_that_are_not_ascii() -> None:
    """The flag is text; the wire's bytes come as latin-1."""
    assert GUARD.missing("trace", {"é": "ü".encode().decode("latin-1")}) == ""
    assert GUARD.missing("trace", {"é": "ü"}) == "é"
    for value in ("?", "\u20ac", "\udcff", "\udfff"):
        assert GUARD.missing("health", {"x-key": value}) == "X-Key"


FLAGS = [f"{name}:k{n}=v{n}" for n, name in enumerate(cli.values.RESTRICTED)]  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return repository(tmp_path_factory.mktemp("models"), Model("m"))


def test_grpc_calls_need_the_metadata_of_their_category(root: Path) -> None:
    categories = {path: method.category for path, method in METHODS.items()}
    categories[health.WATCH] = "health"
    categories |= dict.fromkeys(map(reflection.path, reflection.PACKAGES), "metadata")
    with Front(root, *(f"--grpc-restricted-protocol={flag}" for flag in FLAGS)) as front:
        for path, category in categories.items():
            n = cli.values.RESTRICTED.index(category)  # type: ignore[attr-defined]
            name = f"triton-grpc-protocol-k{n}"
            text = f"This protocol is restricted, expecting header '{name}'"
            for metadata in ({}, {name: f"v{n + 1}"}, {f"k{n}": f"v{n}"}):
                call = front.ask(path, metadata=metadata)
                assert (call.outcome, call.sent) == ((14, text), [])
        live = front.verb("ServerLive", protos.ServerLiveRequest(), **{"triton-grpc-protocol-k0": "v0"})
        assert live.outcome == (0, "")
        assert front.ask(SERVICE + "NoSuchCall").outcome == (12, "")
        assert front.app.denied("triton-grpc-protocol-x") == (
            14, "This protocol is restricted, expecting header 'triton-grpc-protocol-x'"
        )  # fmt: skip


def test_http_answers_in_its_own_words(root: Path) -> None:
    with Wire(root) as wire:
        app = InferApp(wire.server.plane, wire.server.work, wire.server.loads, {"health": ("X-Key", "v")})

        def ask(path: str, *headers: tuple[str, str]) -> Any:
            return app.control("GET", path, "", list(headers), b"")

        status, _, body = ask("/v2/health/live", ("X-Key", "w"))
        assert (status, body) == (403, b'{"error":"This API is restricted, expecting header \'X-Key\'"}')
        assert ask("/v2/health/live", ("x-KEY", "v"))[0] == 200
        assert ask("/v2")[0] == 200
