"""Restricted APIs over both ports: every RPC of every service against every category, and every route by every alias.

What an RPC's category is stands here as the protocol has it, not as the server's table has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.helpers import raw
from tests.helpers.grpc_channel import SERVICE, Channel, Talk, end_of, infer_request
from tests.helpers.server import LocalServer, Model, repository
from triton_fast import protos
from triton_fast.cli.values import RESTRICTED
from triton_fast.frontends.http.routes import ROUTES

CATEGORIES = {
    "health": ["ServerLive", "ServerReady", "ModelReady"],
    "metadata": ["ServerMetadata", "ModelMetadata"],
    "inference": ["ModelInfer", "ModelStreamInfer"],
    "shared-memory": [f"{kind}SharedMemory{verb}" for kind in ("System", "Cuda")
                      for verb in ("Status", "Register", "Unregister")],
    "model-config": ["ModelConfig"],
    "model-repository": ["RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"],
    "statistics": ["ModelStatistics"],
    "trace": ["TraceSetting"],
    "logging": ["LogSettings"],
}  # fmt: skip
RPCS = {f"/{SERVICE}/{name}": category for category, names in CATEGORIES.items() for name in names} | {
    "/grpc.health.v1.Health/Check": "health",
    "/grpc.health.v1.Health/Watch": "health",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": "metadata",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": "metadata",
}
KEY = "triton-grpc-protocol-key"
GRPC_DENIED = (14, f"This protocol is restricted, expecting header '{KEY}'")
WRONG: list[dict[str, str]] = [{}, {KEY: "Secret"}, {KEY: "secre"}, {KEY: "secrets"}, {KEY: ""}, {"key": "secret"}]


def start(channel: Channel, path: str, metadata: dict[str, str]) -> tuple[int, str]:
    """Make a call; (0, "") as soon as a message comes, else how it ended."""
    with Talk(channel, path, metadata=metadata) as talk:
        if path.endswith("ModelStreamInfer"):
            talk.send(infer_request("m"))
        elif path.endswith("ServerReflectionInfo"):
            talk.send(protos.message_class("grpc.reflection.v1.ServerReflectionRequest")(list_services="*"))
        else:
            talk.send(b"")
        talk.end()
        try:
            talk.next()
        except (grpc.RpcError, StopIteration):
            return end_of(talk.call, []).outcome
        return 0, ""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return repository(tmp_path_factory.mktemp("restricted"), Model("m"))


def test_the_list_has_every_rpc() -> None:
    services = [(file.package, service) for file in protos.FILES.values() for service in file.service]
    assert set(RPCS) == {
        f"/{package}.{service.name}/{method.name}" for package, service in services for method in service.method
    }
    assert set(CATEGORIES) == set(RESTRICTED)


@pytest.mark.parametrize("category", CATEGORIES)
def test_grpc(root: Path, category: str) -> None:
    """One category is restricted: its calls need the metadata, all others do not."""
    with LocalServer(root, f"--grpc-restricted-protocol={category}:key=secret") as server:
        with Channel(server.grpc) as channel:
            for path, its in RPCS.items():
                assert start(channel, path, {KEY: "secret"}) != GRPC_DENIED, path
                for metadata in WRONG if its == category else WRONG[:1]:
                    found = start(channel, path, metadata)
                    assert (found == GRPC_DENIED) is (its == category), (path, metadata, found)
            # Other spellings of a method name no method.
            for path in RPCS:
                for alias in (path + "/", path.lower(), "/" + path, path.replace("Model", "model")):
                    if alias not in RPCS:
                        assert start(channel, alias, {}) in ((12, ""), GRPC_DENIED)
        # A category is a protocol's own: HTTP is open.
        assert raw.ask(server.http, raw.get("/v2")).status == 200


def test_grpc_each_category_with_its_own_key(root: Path) -> None:
    flags = [f"--grpc-restricted-protocol={name}:k{n}=v{n}" for n, name in enumerate(RESTRICTED)]
    with LocalServer(root, *flags) as server, Channel(server.grpc) as channel:
        for path, category in RPCS.items():
            right = RESTRICTED.index(category)
            text = f"This protocol is restricted, expecting header 'triton-grpc-protocol-k{right}'"
            others = {f"triton-grpc-protocol-k{n}": f"v{n}" for n in range(len(RESTRICTED)) if n != right}
            assert start(channel, path, others) == (14, text)
            assert start(channel, path, {f"triton-grpc-protocol-k{right}": f"v{right}"}) != (14, text)


def test_a_restricted_stream_ends_before_any_request(root: Path) -> None:
    with LocalServer(root, "--grpc-restricted-protocol=inference:key=secret") as server:
        with Channel(server.grpc) as channel:
            reply = channel.stream([infer_request("m")] * 3)
            assert (reply.outcome, reply.messages) == (GRPC_DENIED, [])
            assert channel.infer(infer_request("m", [0] * 2_000_000)).outcome == GRPC_DENIED
            assert len(channel.stream([infer_request("m")] * 3, metadata={KEY: "secret"}).messages) == 3
        assert server.snapshot("m")["success"] == 3


# ---- HTTP

HTTP_DENIED = "This API is restricted, expecting header 'X-Key'"
PATHS = {
    "/v2/models/stats": "statistics", "/v2/logging": "logging", "/v2/models/m": "metadata",
    "/v2/models/m/versions/1": "metadata", "/v2/models/m/infer": "inference",
    "/v2/models/m/versions/1/infer": "inference", "/v2/models/m/generate": "inference",
    "/v2/models/m/generate_stream": "inference", "/v2/models/m/ready": "health",
    "/v2/models/m/versions/1/ready": "health", "/v2/models/m/config": "model-config",
    "/v2/models/m/stats": "statistics", "/v2/models/m/trace/setting": "trace", "/v2": "metadata",
    "/v2/health/live": "health", "/v2/health/ready": "health", "/v2/trace/setting": "trace",
    "/v2/repository/index": "model-repository", "/v2/repository/r/index": "model-repository",
    "/v2/repository/models/m/load": "model-repository", "/v2/repository/models/m/unload": "model-repository",
    "/v2/repository/r/models/m/load": "model-repository", "/v2/repository/r/models/m/unload": "model-repository",
    **{f"/v2/{kind}sharedmemory{region}/{verb}": "shared-memory" for kind in ("system", "cuda")
       for region in ("", "/region/r") for verb in ("status", "register", "unregister")},
}  # fmt: skip


def aliases(path: str) -> list[str]:
    """Spellings that some servers take for the same path."""
    head, _, tail = path.rpartition("/")
    return [
        path + "/", "/" + path, f"{head}//{tail}", path.upper(), path.title(), path + ";x=1", f"{head};x=1/{tail}",
        path + "%20", path + "%00", path + "?a=b", path + "#a", path.replace("v2", "%762"), f"{head}/./{tail}",
        f"{head}/x/../{tail}", f"http://other{path}", path + ".json", path.replace("/", "\\"), path.replace("/", "%2f"),
    ]  # fmt: skip


@pytest.fixture(scope="module", params=["HTTP/1.1", "HTTP/1.0"])
def closed(request: pytest.FixtureRequest, root: Path) -> Iterator[tuple[LocalServer, str]]:
    with LocalServer(root, f"--http-restricted-api={','.join(RESTRICTED)}:X-Key=secret") as server:
        yield server, request.param[-3:]


def test_the_list_has_every_route() -> None:
    for route in ROUTES:
        found = [category for path, category in PATHS.items() if route.pattern.fullmatch(path)]
        assert found
        assert set(found) <= {route.category, *(row.category for row in ROUTES if row is not route)}
    for path, category in PATHS.items():
        assert next(route for route in ROUTES if route.pattern.fullmatch(path)).category == category


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "PUT", "DELETE"])
def test_http(closed: tuple[LocalServer, str], method: str) -> None:
    """Without the key no spelling of a path is served, whatever the method: refused, or not known."""
    server, version = closed
    body = b"{}" if method in ("POST", "PUT") else b""
    length = [f"Content-Length: {len(body)}"] if body else []
    before = server.call(lambda: server.server.plane.native_model("m", -1))

    def ask(path: str, *headers: str) -> raw.Answer:
        return raw.ask(server.http, raw.get(path, *length, *headers, method=method, version=version) + body)

    for path in PATHS:
        answer = ask(path)
        assert answer.status == 403, path
        assert method == "HEAD" or answer.error == HTTP_DENIED
        assert ask(path, "X-Key: wrong").status == 403, path
        for alias in aliases(path) if version == "1.1" or method == "GET" else ():
            assert ask(alias).status in (400, 403, 404), alias
    assert server.call(lambda: server.server.plane.native_model("m", -1)) is before
    assert server.snapshot("m")["success"] == 0


@pytest.mark.parametrize("category", CATEGORIES)
def test_http_one_category(root: Path, category: str) -> None:
    with LocalServer(root, f"--http-restricted-api={category}:X-Key=secret") as server:
        for path, its in PATHS.items():
            if path.endswith(("load", "unload")) and its != category:
                continue
            assert (raw.ask(server.http, raw.get(path)).status == 403) is (its == category), path
            assert raw.ask(server.http, raw.get(path, "x-key: secret")).status != 403
        with Channel(server.grpc) as channel:
            assert channel.infer(infer_request("m")).outcome == (0, "")


# ---- reserved names

RESERVED = ["sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "headers", "binary_data_output",
            "triton_x", "triton_enable_empty_final_response"]  # fmt: skip


@pytest.fixture(scope="module")
def forwarding(root: Path) -> Iterator[LocalServer]:
    pattern = "SEQ|prio|^timeout$|^headers$|binary|triton_|x-"
    with LocalServer(root, f"--http-header-forward-pattern={pattern}", f"--grpc-header-forward-pattern={pattern}") as s:
        yield s


@pytest.mark.parametrize("name", RESERVED)
def test_reserved_names_are_not_forwarded(forwarding: LocalServer, name: str) -> None:
    text = f"Header '{name}' is reserved for Triton usage and cannot be forwarded."
    answer = raw.ask(forwarding.http, raw.infer_json("m", [1], f"{name}: 1"))
    assert (answer.status, answer.error) == (400, text)
    upper = raw.ask(forwarding.http, raw.infer_json("m", [1], f"{name.upper()}: 1"))
    assert (upper.status, upper.error) == (400, text.replace(name, name.upper()))
    with Channel(forwarding.grpc) as channel:
        assert channel.infer(infer_request("m"), metadata={name: "1"}).outcome == (3, text)
        reply = channel.stream([infer_request("m")] * 2, metadata={name: "1"})
        assert (reply.outcome, reply.messages) == ((3, text), [])
        # Not of an inference: not forwarded, so not refused.
        assert channel.ask("ServerLive", metadata={name: "1"}).message.live


def test_other_names_are_forwarded_and_the_rest_is_left_alone(forwarding: LocalServer) -> None:
    given = {"x-any": "1", "x-many": "a, b", "other": "2"}
    assert raw.ask(forwarding.http, raw.infer_json("m", [1], *(f"{k}: {v}" for k, v in given.items()))).status == 200
    with Channel(forwarding.grpc) as channel:
        assert channel.infer(infer_request("m"), metadata=given).outcome == (0, "")
        assert len(channel.stream([infer_request("m")] * 2, metadata=given).messages) == 2


@pytest.mark.parametrize("name", ["triton_x", "triton_", "triton_final_response", "triton_grpc_error"])
def test_reserved_parameters(forwarding: LocalServer, name: str) -> None:
    """As a parameter of the request a reserved name is refused by either protocol in its own words."""
    answer = raw.ask(forwarding.http, raw.infer_json("m", [1], parameters={name: 1}))
    text = "parameter keys starting with 'triton_' are reserved for Triton usage"
    assert (answer.status, answer.error) == (400, f"{text} and should not be specified.")
    allowed = "Only the following keys starting with 'triton_' are allowed: triton_enable_empty_final_response"
    with Channel(forwarding.grpc) as channel:
        for value in (1, True, "x"):
            reply = channel.infer(infer_request("m", parameters={name: value}))
            assert reply.outcome == (3, f"{text}. {allowed}")


def test_a_parameter_and_a_header_of_one_name(forwarding: LocalServer) -> None:
    with Channel(forwarding.grpc) as channel:
        request: Any = infer_request("m", parameters={"x-a": "parameter"})
        assert channel.infer(request, metadata={"x-a": "header"}).outcome == (0, "")
    answer = raw.ask(forwarding.http, raw.infer_json("m", [1], "x-a: header", parameters={"x-a": "parameter"}))
    assert answer.status == 200
