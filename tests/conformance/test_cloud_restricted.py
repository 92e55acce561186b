"""Restricted APIs on the ports of clouds: every route by every method and spelling, with and without the key.

The categories of routes and redirects stand here as the specification has them, not as the servers' tables have them.
Whether something was reached is asked of the dataplane, every verb of which is watched, not of the answer.
"""

from __future__ import annotations

import itertools
import json
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.helpers import raw
from tests.helpers.clouds import AIP, HEALTH, PREDICT, REDIRECT, SAGEMAKER, TARGET, VERTEX
from tests.helpers.server import LocalServer, Model, repository
from triton_fast.cli.values import RESTRICTED
from triton_fast.dataplane import Dataplane
from triton_fast.frontends.http import sagemaker_models
from triton_fast.observability.metrics import Metrics
from triton_fast.shared_memory import SharedMemory

FLAGS = ("--allow-sagemaker=1", "--allow-vertex-ai=1", "--vertex-ai-default-model=m", "--model-control-mode=explicit",
         "--load-model=m", "--allow-client-shm=true")  # fmt: skip
ENV = {**AIP, "SAGEMAKER_TRITON_DEFAULT_MODEL_NAME": "m"}
METHODS = ("GET", "POST", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS")
DENIED = "This API is restricted, expecting header 'X-Key'"
KEY = "x-key: secret"
INFER = raw.infer_json("m", [1]).partition(b"\r\n\r\n")[2]
VERBS = ("server_live", "server_ready", "server_metadata", "native_model", "model_ready", "model_metadata",
         "model_config", "model_statistics", "repository_index", "load_model", "unload_model", "register_repository",
         "unregister_repository")  # fmt: skip
SHARED_MEMORY = {"status": "shared_memory_status", "check_allowed": "shared_memory_change"}


class Way(NamedTuple):
    """One way to a verb: ``method`` is the one that is served; ``port``: sagemaker or vertex."""

    port: str
    method: str
    path: str
    category: str
    headers: tuple[str, ...] = ()
    body: bytes = b""

    @property
    def name(self) -> str:
        return f"{self.port} {self.method} {self.path} {' '.join(self.headers)}"


def ways(models: Path) -> list[Way]:
    load = json.dumps({"model_name": "a", "url": f"{models}/h/model"}).encode()
    redirects = {
        "metrics": "statistics", "v2": "metadata", "v2/health/live": "health", "v2/health/ready": "health",
        "v2/models/m": "metadata", "v2/models/m/versions/1": "metadata", "v2/models/m/ready": "health",
        "v2/models/m/config": "model-config", "v2/models/m/stats": "statistics", "v2/models/stats": "statistics",
        "v2/models/m/infer": "inference", "v2/models/m/versions/1/infer": "inference",
        "v2/repository/index": "model-repository", "v2/repository/r/index": "model-repository",
        "v2/repository/models/m/load": "model-repository", "v2/repository/models/m/unload": "model-repository",
        **{f"v2/{kind}sharedmemory{region}/{verb}": "shared-memory" for kind in ("system", "cuda")
           for region in ("", "/region/r") for verb in ("status", "register", "unregister")},
    }  # fmt: skip
    return [
        Way("sagemaker", "GET", "/ping", "health"),
        Way("sagemaker", "POST", "/invocations", "inference", (), INFER),
        Way("sagemaker", "POST", "/invocations", "inference", (f"Content-Type: {SAGEMAKER}{len(INFER)}",), INFER),
        Way("sagemaker", "GET", "/models", "model-repository"),
        Way("sagemaker", "POST", "/models", "model-repository", (), load),
        Way("sagemaker", "POST", "/models", "model-repository", (f"{TARGET}: b",), load),
        Way("sagemaker", "GET", "/models/m", "model-repository"),
        Way("sagemaker", "DELETE", "/models/m", "model-repository"),
        Way("sagemaker", "POST", "/models/m/invoke", "inference", (), INFER),
        Way("sagemaker", "POST", "/models/m/invoke", "inference", (f"{TARGET}: m",), INFER),
        Way("vertex", "GET", HEALTH, "health"),
        Way("vertex", "POST", PREDICT, "inference", (), INFER),
        Way("vertex", "POST", PREDICT, "inference", (f"Content-Type: {VERTEX}{len(INFER)}",), INFER),
        *(Way("vertex", "POST", PREDICT, category, (f"{REDIRECT}: {to}",), INFER if to.endswith("infer") else b"{}")
          for to, category in redirects.items()),
    ]  # fmt: skip


# The same list for naming the cases; the directory is another in every run.
NAMES = [way.name for way in ways(Path("models"))]


def spellings(path: str) -> Iterator[str]:
    """Other ways to write a path, which must not lead past the check."""
    yield from ("/" + path, path + "/", path + "//", path.upper(), path + ";a=b", path + "?a=b", path + "#a")
    yield from (
        "/." + path,
        "/x/.." + path,
        path.replace("/", "/./"),
        path.replace("/", "\\"),
        path + "%00",
        path + "%20",
    )
    yield "".join(f"%{ord(char):02x}" if char != "/" else char for char in path)
    yield urllib.parse.quote(path, safe="")
    yield from (f"http://t{path}", f"http://t//{path}", path + "/..", path + "/../" + path.rpartition("/")[2])


class Spy:
    """What was called of the dataplane and of the metrics."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        verbs = {name: name for name in VERBS}
        for kind, names in ((Dataplane, verbs), (SharedMemory, SHARED_MEMORY), (Metrics, {"render": "render"})):
            for name, shown in names.items():
                patch.setattr(kind, name, self._watched(shown, getattr(kind, name)))

    def _watched(self, name: str, function: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            self.calls.append(name)
            return function(*arguments, **named)

        return call


class Served(NamedTuple):
    server: LocalServer
    spy: Spy
    ways: dict[str, Way]

    def ask(self, way: Way, *headers: str, method: str = "", path: str = "", version: str = "1.1") -> raw.Answer:
        method = method or way.method
        body = way.body if method not in ("GET", "HEAD", "OPTIONS") else b""
        length = (f"Content-Length: {len(body)}",) if body else ()
        head = raw.get(path or way.path, *way.headers, *length, *headers, method=method, version=version)
        return raw.ask(getattr(self.server, way.port), head + body)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = tmp_path_factory.mktemp("cloud_restricted")
    repository(base / "ml" / "h" / "model", Model("x"))
    return repository(base / "own", Model("m")), base / "ml"


def start(places: tuple[Path, Path], *flags: str) -> Iterator[Served]:
    root, models = places
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sagemaker_models, "ROOT", str(models))
        spy = Spy(patch)
        with LocalServer(root, *FLAGS, *flags, env=ENV) as server:
            yield Served(server, spy, dict(zip(NAMES, ways(models), strict=True)))


@pytest.fixture(scope="module")
def closed(places: tuple[Path, Path]) -> Iterator[Served]:
    """Everything is restricted."""
    yield from start(places, f"--http-restricted-api={','.join(RESTRICTED)}:X-Key=secret")


@pytest.fixture(scope="module")
def opened(places: tuple[Path, Path]) -> Iterator[Served]:
    yield from start(places)


def test_the_list_has_every_route(closed: Served) -> None:
    """Every row of either table is asked for, in the category that stands here."""
    endpoints = closed.server.server.endpoints
    assert endpoints.apps
    for app in endpoints.apps:
        port = "sagemaker" if "Sagemaker" in app.service else "vertex"
        found = [
            way for way in closed.ways.values() if way.port == port and not any(REDIRECT in h for h in way.headers)
        ]
        for route in app.table:
            matched = [w for w in found if route.pattern.fullmatch(w.path) and w.method in route.methods]
            assert matched, route
            assert {way.category for way in matched} == {route.category}
        for route in getattr(app, "redirects", ()):
            targets = {f"/{h.partition(': ')[2]}": way.category for way in closed.ways.values()
                       for h in way.headers if REDIRECT in h}  # fmt: skip
            matched_categories = {its for target, its in targets.items() if route.pattern.fullmatch(target)}
            assert route.category in matched_categories, route


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_reached_without_the_key(closed: Served, name: str) -> None:
    way = closed.ways[name]
    closed.spy.calls.clear()
    wrong = ((), ("x-key: Secret",), ("x-key: secret ,",), ("x-key:",), ("x_key: secret",), ("key: secret",))
    for headers in wrong:
        answer = closed.ask(way, *headers)
        assert (answer.status, answer.error) == (403, DENIED), headers
    for method, version in itertools.product(METHODS, ("1.1", "1.0")):
        assert closed.ask(way, method=method, version=version).status in (400, 403, 405, 501)
        if method in ("GET", "POST", "HEAD", "PUT", "DELETE") and not any(REDIRECT in h for h in way.headers):
            assert closed.ask(way, method=method, version=version).status in (400, 403)
        for path in spellings(way.path) if method in ("GET", "POST", "DELETE") else ():
            answer = closed.ask(way, method=method, path=path, version=version)
            assert answer.status in (400, 403, 404), path
    assert closed.spy.calls == []


# But for what would change what the other cases see.
HARMLESS = [name for name in NAMES if "load" not in name and "POST /models " not in name]


@pytest.mark.parametrize("name", HARMLESS)
def test_the_key_opens(closed: Served, name: str) -> None:
    """With the key the answer is what it is where nothing is restricted; asserted by what was called."""
    way = closed.ways[name]
    answer = closed.ask(way, KEY)
    assert answer.status != 403 or (answer.body == b"" and "register" in name), answer.body


def test_spellings_of_redirects(closed: Served) -> None:
    """The header's value too may be spelled otherwise."""
    closed.spy.calls.clear()
    for way in closed.ways.values():
        for header in (h for h in way.headers if h.startswith(REDIRECT)):
            to = header.partition(": ")[2]
            for spelled in spellings("/" + to):
                for value in (spelled, spelled[1:]):
                    for given in (REDIRECT, REDIRECT.upper(), REDIRECT.lower()):
                        request = raw.post(PREDICT, way.body, f"{given}: {value}")
                        assert raw.ask(closed.server.vertex, request).status in (400, 403), value
            twice = raw.post(PREDICT, way.body, header, f"{REDIRECT}: v2/nothing")
            assert raw.ask(closed.server.vertex, twice).status in (400, 403)
            twice = raw.post(PREDICT, way.body, f"{REDIRECT}: v2/nothing", header)
            assert raw.ask(closed.server.vertex, twice).status in (400, 403)
    assert closed.spy.calls == []


@pytest.mark.parametrize("category", RESTRICTED)
def test_one_category(places: tuple[Path, Path], category: str) -> None:
    """What is restricted is exactly what is on the HTTP port."""
    for served in start(places, f"--http-restricted-api={category}:X-Key=secret"):
        for way in served.ways.values():
            if way.port == "sagemaker" and way.path == "/models" and way.method == "POST" and way.category != category:
                continue
            served.spy.calls.clear()
            answer = served.ask(way)
            assert (answer.status == 403 and answer.body != b"" and answer.error == DENIED) is (
                way.category == category
            ), way.name
            if way.category == category:
                assert served.spy.calls == []
                answer = served.ask(way, KEY) if way.method != "DELETE" else None
                assert answer is None or answer.body != json.dumps({"error": DENIED}).encode()


def test_open_routes_are_reached(opened: Served) -> None:
    """The watch sees what is reached: else it would prove nothing above."""
    reached = set()
    for way in opened.ways.values():
        if way.path == "/models" and way.method == "POST":
            continue
        opened.spy.calls.clear()
        assert opened.ask(way).status in (200, 400, 403, 404), way.name
        reached.update(opened.spy.calls)
    assert reached >= {"server_live", "server_ready", "server_metadata", "native_model", "model_ready",
                       "model_metadata", "model_config", "model_statistics", "repository_index", "shared_memory_status",
                       "render"}  # fmt: skip


def test_a_large_body_is_not_taken(closed: Served) -> None:
    for port, path in (("sagemaker", "/invocations"), ("vertex", PREDICT)):
        with raw.Client(getattr(closed.server, port)) as client:
            client.send(raw.get(path, "Content-Length: 50000000", method="POST"))
            assert client.answer().status == 403
