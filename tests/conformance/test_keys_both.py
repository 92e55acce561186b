"""API keys over all three ports: inference on its native way, every verb, streams, rotation, rates, forwarding."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import raw
from tests.helpers.grpc_channel import SERVICE, Channel, infer_request
from tests.helpers.python_models import model_of
from tests.helpers.server import LocalServer, Model, ServerProcess, repository
from triton_fast import protos
from triton_fast.frontends import keyfile
from triton_fast.frontends.keys import KeyRing

REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"


class Keys:
    """A file with one key of each scope; ``h`` a header line, ``m`` metadata for a key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.of = {scope: self.add(scope) for scope in keyfile.SCOPES}

    def add(self, scope: str, **more: Any) -> str:
        text, key = keyfile.make((scope,), **more)
        keyfile.add(self.path, key)
        return text

    def remove(self, text: str) -> None:
        keyfile.remove(self.path, keyfile.id_of(text.encode()))


def m(text: str) -> dict[str, str]:
    return {"authorization": f"Bearer {text}"}


def h(text: str) -> str:
    return f"Authorization: Bearer {text}"


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "keys")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return repository(tmp_path / "models", Model("m"))


@pytest.fixture
def server(root: Path, keys: Keys) -> Iterator[LocalServer]:
    with LocalServer(root, f"--api-keys={keys.path}", "--model-control-mode=explicit", "--load-model=m") as server:
        yield server


def ring(server: LocalServer) -> KeyRing:
    found = server.server.endpoints._keys
    assert found is not None
    return found


def turn(server: LocalServer) -> None:
    """What the watch does once a second."""

    def take() -> None:
        fresh = ring(server).read()
        if fresh is not None:
            ring(server).adopt(fresh)

    server.call(take)


def test_http(server: LocalServer, keys: Keys) -> None:
    infer, admin = keys.of["infer"], keys.of["admin"]
    with raw.Client(server.http) as client:
        none = client.ask(raw.infer_json("m", [1]))
        assert (none.status, none.headers["www-authenticate"]) == (401, 'Bearer realm="triton_fast"')
        wrong = client.ask(raw.infer_json("m", [1], h(infer[:-1])))
        assert wrong.status == 401 and "invalid_token" in wrong.headers["www-authenticate"]
        scope = client.ask(raw.infer_json("m", [1], h(admin)))
        assert scope.status == 403 and "insufficient_scope" in scope.headers["www-authenticate"]
        for header in (h(infer), f"authorization: bearer  {infer}", f"X-Api-Key: {infer}", f"x-api-key: {infer}"):
            for _ in range(3):  # the third head equals one that was parsed
                assert raw.values_of(client.ask(raw.infer_json("m", [1], header))) == [1.0]
            assert client.ask(raw.infer_json("m", [1], header[:-1])).status == 401
        assert client.ask(raw.infer_json("m", [1], h(admin), f"X-Api-Key: {infer}")).status == 200
        assert client.ask(raw.infer_json("m", [1], h(infer), f"X-Api-Key: {admin}")).status == 403
        assert client.ask(raw.infer_json("m", [1], "Authorization: Basic " + infer)).status == 401
        assert client.ask(raw.infer_json("m", [1], "X-Api-Key: ")).status == 401
        unload = "/v2/repository/models/m/unload"
        assert client.ask(raw.post(unload, b"")).status == 401
        assert client.ask(raw.post(unload, b"", h(infer))).status == 403
        assert client.ask(raw.post(unload, b"", h(admin))).status == 200
        assert client.ask(raw.get("/v2/health/live")).status == 401
        for text in keys.of.values():
            assert client.ask(raw.get("/v2/health/live", h(text))).status == 200


def test_a_large_body_is_not_taken_without_a_key(server: LocalServer, keys: Keys) -> None:
    body = json.dumps(raw.infer_object([1.0] * 100_000)).encode()
    with raw.Client(server.http) as client:
        client.send(raw.get("/v2/models/m/infer", f"Content-Length: {len(body)}", method="POST"))
        answer = client.answer()
        assert (answer.status, answer.closes) == (401, True)
    assert raw.ask(server.http, raw.post("/v2/models/m/infer", body, h(keys.of["infer"]))).status == 200


def test_metrics(server: LocalServer, keys: Keys) -> None:
    for path in ("/metrics", "/", "/v2"):
        assert raw.ask(server.metrics, raw.get(path)).status == 401
        assert raw.ask(server.metrics, raw.get(path, h(keys.of["infer"]))).status == 403
        assert raw.ask(server.metrics, raw.get(path, method="POST")).status == 401
    answer = raw.ask(server.metrics, raw.get("/metrics", h(keys.of["metrics"])))
    assert answer.status == 200 and b"nv_inference_count" in answer.body


def test_grpc(server: LocalServer, keys: Keys) -> None:
    infer, admin = keys.of["infer"], keys.of["admin"]
    with Channel(server.grpc) as channel:
        for metadata, status in (({}, 16), (m(infer[:-1]), 16), (m(admin), 7), (m(infer), 0),
                                 ({"x-api-key": infer}, 0), ({**m(admin), "x-api-key": infer}, 0),
                                 ({**m(infer), "x-api-key": admin}, 7)):  # fmt: skip
            for _ in range(2):
                assert channel.infer(infer_request("m"), metadata=metadata).status == status
                reply = channel.stream([infer_request("m")] * 2, metadata=metadata)
                assert (reply.status, len(reply.messages)) == (status, 0 if status else 2)
        assert channel.ask("RepositoryIndex").status == 16
        assert channel.ask("RepositoryIndex", metadata=m(infer)).status == 7
        assert channel.ask("RepositoryIndex", metadata=m(admin)).status == 0
        assert channel.unary("/grpc.health.v1.Health/Check", b"").status == 16
        assert channel.unary("/grpc.health.v1.Health/Check", b"", metadata=m(keys.of["metrics"])).status == 0


def test_rotation_reaches_open_connections(server: LocalServer, keys: Keys) -> None:
    old = keys.of["infer"]
    with raw.Client(server.http) as client, Channel(server.grpc) as channel:
        request = raw.infer_json("m", [1], h(old))
        for _ in range(3):
            assert client.ask(request).status == 200
        with channel.talk(metadata=m(old)) as talk:
            talk.send(infer_request("m"))
            assert talk.next().error_message == ""
            new = keys.add("infer")
            assert client.ask(raw.infer_json("m", [1], h(new))).status == 401
            turn(server)
            talk.send(infer_request("m"))  # still good, and looked up anew
            assert talk.next().error_message == ""
            assert client.ask(request).status == 200
            keys.remove(old)
            turn(server)
            talk.send(infer_request("m"))
            end = talk.rest()
            assert (end.status, end.messages) == (16, [])
        assert client.ask(request).status == 401
        assert channel.infer(infer_request("m"), metadata=m(old)).status == 16
        for _ in range(3):
            assert client.ask(raw.infer_json("m", [1], h(new))).status == 200
        # What was refused before its key came is asked about again.
        late, entry = keyfile.make(("infer",))
        for _ in range(3):
            assert client.ask(raw.infer_json("m", [1], h(late))).status == 401
        keyfile.add(keys.path, entry)
        turn(server)
        assert client.ask(raw.infer_json("m", [1], h(late))).status == 200


def test_a_stream_of_questions_ends_with_its_key(server: LocalServer, keys: Keys) -> None:
    question = protos.message_class("grpc.reflection.v1.ServerReflectionRequest")(list_services="*")
    with Channel(server.grpc) as channel, channel_talk(channel, m(keys.of["infer"])) as talk:
        for _ in range(2):
            talk.send(question)
            talk.next()
        keys.remove(keys.of["infer"])
        turn(server)
        talk.send(question)
        assert talk.rest().status == 16


def channel_talk(channel: Channel, metadata: dict[str, str]) -> Any:
    from tests.helpers.grpc_channel import Talk

    return Talk(channel, REFLECTION, metadata=metadata)


def test_rates_hold_over_both_protocols(server: LocalServer, keys: Keys) -> None:
    slow = keys.add("infer", rate=4)
    turn(server)
    server.call(lambda: setattr(ring(server).gate, "now", 10**15))
    with raw.Client(server.http) as client, Channel(server.grpc) as channel:
        request = raw.infer_json("m", [1], h(slow))
        assert [client.ask(request).status for _ in range(2)] == [200, 200]
        reply = channel.stream([infer_request("m")], metadata=m(slow))
        assert (reply.status, len(reply.messages)) == (0, 1)
        assert client.ask(raw.get("/v2", h(slow))).status == 200
        refused = client.ask(request)
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        assert client.ask(raw.get("/v2", h(slow))).status == 429
        assert channel.infer(infer_request("m"), metadata=m(slow)).status == 8
        assert channel.stream([infer_request("m")], metadata=m(slow)).status == 8
        assert client.ask(raw.infer_json("m", [1], h(keys.of["infer"]))).status == 200
        server.call(lambda: setattr(ring(server).gate, "now", 10**15 + 250_000_000))
        assert [client.ask(request).status for _ in range(2)] == [200, 429]
    assert server.snapshot("m")["success"] == 5


def test_no_python_is_asked_about_a_known_key(server: LocalServer, keys: Keys) -> None:
    asked: list[bytes] = []
    gate = ring(server).gate
    judge = gate.judge
    assert judge is not None
    server.call(lambda: setattr(gate, "judge", lambda text, counts: (asked.append(text), judge(text, counts))[1]))
    infer = keys.of["infer"]
    with raw.Client(server.http) as client, Channel(server.grpc) as channel:
        for n in range(20):
            assert client.ask(raw.infer_json("m", [n], h(infer), f"X-N: {n // 5}")).status == 200
            assert channel.infer(infer_request("m"), metadata=m(infer)).status == 0
        assert len(channel.stream([infer_request("m")] * 20, metadata=m(infer)).messages) == 20
    assert asked == [infer.encode()]


def test_with_restricted_groups_both_must_pass(root: Path, keys: Keys) -> None:
    flags = ("--http-restricted-api=inference,metadata:X-Group=g", "--grpc-restricted-protocol=inference,metadata:g=g")
    infer = keys.of["infer"]
    group = {"triton-grpc-protocol-g": "g"}
    with LocalServer(root, f"--api-keys={keys.path}", *flags) as server:
        for make in (lambda *lines: raw.infer_json("m", [1], *lines), lambda *lines: raw.get("/v2", *lines)):
            for _ in range(2):
                assert raw.ask(server.http, make("X-Group: g")).status == 401
                denied = raw.ask(server.http, make(h(infer)))
                text = "This API is restricted, expecting header 'X-Group'"
                assert (denied.status, denied.error) == (403, text)
                assert raw.ask(server.http, make(h(infer), "X-Group: g")).status == 200
        with Channel(server.grpc) as channel:
            for _ in range(2):
                assert channel.infer(infer_request("m"), metadata=group).status == 16
                assert channel.infer(infer_request("m"), metadata=m(infer)).status == 14
                assert channel.infer(infer_request("m"), metadata={**group, **m(infer)}).status == 0
                assert channel.ask("ServerMetadata", metadata=m(infer)).status == 14


def test_exempt_categories(root: Path, keys: Keys) -> None:
    with LocalServer(root, f"--api-keys={keys.path}", "--api-keys-open=health,inference,metrics") as server:
        assert raw.ask(server.http, raw.get("/v2/health/ready")).status == 200
        assert raw.ask(server.http, raw.infer_json("m", [1])).status == 200
        assert raw.ask(server.metrics, raw.get("/metrics")).status == 200
        assert raw.ask(server.http, raw.get("/v2")).status == 401
        with Channel(server.grpc) as channel:
            assert channel.unary("/grpc.health.v1.Health/Check", b"").status == 0
            assert channel.infer(infer_request("m")).status == 0
            assert channel.ask("ServerMetadata").status == 16


SEEN = """
class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([[r.parameters()]], dtype=object))])
                for r in requests]
"""


@pytest.mark.parametrize("wire", ["http", "grpc"])
def test_a_key_is_not_forwarded_to_models(tmp_path: Path, keys: Keys, wire: str) -> None:
    model_of(
        tmp_path / "seen", "seen", SEEN,
        'max_batch_size: 8\ninput [{ name: "INPUT0" data_type: TYPE_FP32 dims: [-1] }]\n'
        'output [{ name: "OUT" data_type: TYPE_STRING dims: [1] }]\n',
    )  # fmt: skip
    infer = keys.of["infer"]
    flags = (f"--api-keys={keys.path}", "--http-header-forward-pattern=.*", "--grpc-header-forward-pattern=.*")
    with ServerProcess(tmp_path / "seen", *flags) as server:
        if wire == "http":
            lines = (f"X-Api-Key: {infer}", "Authorization: Basic c2VjcmV0", "X-Seen: yes")
            text = raw.ask(server.http, raw.infer_json("seen", [1], *lines)).body.decode()
        else:
            with Channel(server.grpc) as channel:
                metadata = {"x-api-key": infer, "authorization": "Basic c2VjcmV0", "x-seen": "yes"}
                text = (
                    channel.infer(infer_request("seen"), metadata=metadata).message.raw_output_contents[0][4:].decode()
                )
        assert "yes" in text
        assert infer[17:] not in text and "c2VjcmV0" not in text


def test_a_running_server_follows_the_file(root: Path, keys: Keys) -> None:
    with ServerProcess(root, f"--api-keys={keys.path}") as server:
        assert "API keys: on" in server.log()
        new = keys.add("infer")
        server.wait_for_log("4 API keys read anew")
        assert raw.ask(server.http, raw.infer_json("m", [1], h(new))).status == 200
        path = f"/{SERVICE}/ServerLive"
        with Channel(server.grpc) as channel:
            assert channel.unary(path, b"", metadata=m(new)).status == 0
        keys.path.write_text("broken")
        server.wait_for_log("the keys before it stay")
        assert raw.ask(server.http, raw.infer_json("m", [1], h(new))).status == 200
        assert new[17:] not in server.log()
