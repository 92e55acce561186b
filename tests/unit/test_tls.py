"""TLS contexts: what they accept on the wire, and which file and flag an error names. HTTPS over a real listener."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.certificates import Authority, Pair, encrypt_key
from tests.helpers.server import Address, LocalServer, Model, ServerProcess, repository, until
from triton_fast.errors import InvalidArg
from triton_fast.frontends.tls import server_context

TIMEOUT_S = 30.0


class Files:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority(folder)
        self.server = self.authority.server()
        self.client = self.authority.client()
        self.stranger = Authority(folder / "other", "other").client("stranger")

    @property
    def root(self) -> str:
        return str(self.authority.root)

    def flags(self, *more: str) -> list[str]:
        return [
            "--http-use-ssl=true", f"--http-server-cert={self.server.cert}", f"--http-server-key={self.server.key}",
            f"--http-root-cert={self.root}", *more,
        ]  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("certificates"))


def client_context(files: Files, shown: Pair | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=files.root)
    if shown:
        context.load_cert_chain(shown.cert, shown.key)
    return context


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str = "localhost") -> ssl.SSLObject:
    """Run a handshake through memory and let the server read one byte; return the server's side."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    theirs = client.wrap_bio(to_client, to_server, server_hostname=name)
    # With TLS 1.3 the server judges the client's certificate after the client is done.
    steps: list[Callable[[], object]] = [
        theirs.do_handshake, ours.do_handshake, theirs.do_handshake, ours.do_handshake, lambda: theirs.write(b"x"),
        lambda: ours.read(1),
    ]  # fmt: skip
    for step in steps:
        try:
            step()
        except ssl.SSLWantReadError:
            continue
    return ours


# --- contexts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_modern_versions_and_ciphers_of_http2(files: Files, version: ssl.TLSVersion) -> None:
    context = server_context(str(files.server.cert), str(files.server.key), alpn=["h2"])
    client = client_context(files)
    client.minimum_version = client.maximum_version = version
    client.set_alpn_protocols(["http/1.1", "h2"])
    side = handshake(context, client)
    assert side.version() == {ssl.TLSVersion.TLSv1_2: "TLSv1.2", ssl.TLSVersion.TLSv1_3: "TLSv1.3"}[version]
    assert side.selected_alpn_protocol() == "h2"
    cipher = side.cipher()
    assert cipher is not None
    assert "GCM" in cipher[0] or "CHACHA20" in cipher[0]


def test_what_is_older_is_refused(files: Files) -> None:
    context = server_context(str(files.server.cert), str(files.server.key))
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    client = client_context(files)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    client.set_ciphers("ECDHE-ECDSA-AES128-SHA256:ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError):
        handshake(context, client)


def test_no_protocol_on_offer(files: Files) -> None:
    client = client_context(files)
    client.set_alpn_protocols(["h2"])
    plain = server_context(str(files.server.cert), str(files.server.key))
    assert handshake(plain, client).selected_alpn_protocol() is None


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_mutual(files: Files, version: ssl.TLSVersion) -> None:
    mutual = server_context(str(files.server.cert), str(files.server.key), files.root, True)
    one_way = server_context(str(files.server.cert), str(files.server.key), files.root, False)

    def shake(context: ssl.SSLContext, shown: Pair | None) -> ssl.SSLObject:
        client = client_context(files, shown)
        client.maximum_version = version
        return handshake(context, client)

    assert shake(mutual, files.client).getpeercert()
    for shown in (None, files.stranger):
        with pytest.raises(ssl.SSLError):
            shake(mutual, shown)
        assert shake(one_way, shown).version()


@pytest.fixture
def odd(files: Files, tmp_path: Path) -> Path:
    """A folder with files of every wrong kind."""
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("hello")
    (tmp_path / "der").write_bytes(ssl.PEM_cert_to_DER_cert(files.server.cert.read_text()))
    begin, _, end = files.server.cert.read_text().strip().splitlines()[:3], 0, "-----END CERTIFICATE-----"
    (tmp_path / "cut").write_text("\n".join([*begin, end, ""]))
    (tmp_path / "key-cut").write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    encrypt_key(files.server.key, b"password", tmp_path / "encrypted")
    return tmp_path


@pytest.mark.parametrize(
    ("role", "name", "text"),
    [
        ("cert", "", "--grpc-server-cert is needed for TLS"),
        ("key", "", "--grpc-server-key is needed for TLS"),
        ("root", "", "--grpc-root-cert is needed to verify the certificates of clients"),
        ("cert", "gone", "--grpc-server-cert: cannot read '{}': No such file or directory"),
        ("key", "gone", "--grpc-server-key: cannot read '{}': No such file or directory"),
        ("root", "gone", "--grpc-root-cert: cannot read '{}': No such file or directory"),
        ("cert", ".", "--grpc-server-cert: cannot read '{}': Is a directory"),
        ("cert", "empty", "--grpc-server-cert: there is no PEM certificate in '{}'"),
        ("cert", "text", "--grpc-server-cert: there is no PEM certificate in '{}'"),
        ("cert", "der", "--grpc-server-cert: there is no PEM certificate in '{}'"),
        ("key", "text", "--grpc-server-key: there is no PEM private key in '{}'"),
        ("root", "text", "--grpc-root-cert: there is no PEM certificate in '{}'"),
        ("root", "cut", "--grpc-root-cert: '{}' cannot be used: "),
        ("cert", "cut", "--grpc-server-cert '{}' and --grpc-server-key "),
        ("key", "key-cut", "and --grpc-server-key '{}' cannot be used: "),
        ("key", "encrypted", "--grpc-server-key: '{}' is encrypted; give a key without a password"),
        ("cert", "nul\0", "--grpc-server-cert: cannot read "),
    ],
)
def test_a_bad_file_is_named_with_its_flag(files: Files, odd: Path, role: str, name: str, text: str) -> None:
    given = {"cert": str(files.server.cert), "key": str(files.server.key), "root": files.root}
    given[role] = str(odd / name) if name else ""
    with pytest.raises(InvalidArg) as caught:
        server_context(given["cert"], given["key"], given["root"], True)
    assert text.format(given[role]) in str(caught.value)


def test_a_key_of_another_certificate(files: Files) -> None:
    with pytest.raises(InvalidArg) as caught:
        server_context(str(files.server.cert), str(files.client.key), protocol="http")
    assert str(caught.value) == (
        f"--http-server-key: the key in '{files.client.key}' is not that of the certificate in '{files.server.cert}'"
    )


def test_swapped_files(files: Files) -> None:
    with pytest.raises(InvalidArg, match="--grpc-server-cert: there is no PEM certificate in"):
        server_context(str(files.server.key), str(files.server.cert))


# --- HTTPS ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return repository(tmp_path_factory.mktemp("models"), Model("m"), Model("slow", delay_ms=300))


@pytest.fixture(scope="module")
def server(root: Path, files: Files) -> Iterator[ServerProcess]:
    with ServerProcess(root, *files.flags("--http-use-ssl-mutual=true")) as server:
        yield server


def connect(address: Address, context: ssl.SSLContext) -> http.client.HTTPSConnection:
    return http.client.HTTPSConnection("localhost", address[1], context=context, timeout=TIMEOUT_S)


def infer_body(values: list[float]) -> str:
    tensor = {"name": "INPUT0", "datatype": "FP32", "shape": [1, len(values)], "data": values}
    return json.dumps({"inputs": [tensor]})


@pytest.mark.parametrize("n", [1, 3, 200_000])
def test_requests_over_tls(server: ServerProcess, files: Files, n: int) -> None:
    """Bodies and answers of one record and of many, on one connection."""
    context = client_context(files, files.client)
    context.set_alpn_protocols(["h2", "http/1.1"])
    connection = connect(server.http, context)
    try:
        for value in (1.5, 2.5):
            connection.request("POST", "/v2/models/m/infer", infer_body([value] * n))
            answer = connection.getresponse()
            assert json.loads(answer.read())["outputs"][0]["data"] == [value] * n
            assert answer.status == 200
        assert connection.sock.selected_alpn_protocol() == "http/1.1"
    finally:
        connection.close()


def test_binary_tensors_over_tls(server: ServerProcess, files: Files) -> None:
    """The body goes straight into the block of its tensors, the answer's tensors out of theirs."""
    data = bytes(range(256)) * 16384
    tensor = {"name": "INPUT0", "datatype": "FP32", "shape": [1, len(data) // 4]}
    head = json.dumps({
        "inputs": [tensor | {"parameters": {"binary_data_size": len(data)}}],
        "parameters": {"binary_data_output": True},
    }).encode()  # fmt: skip
    connection = connect(server.http, client_context(files, files.client))
    try:
        headers = {"Inference-Header-Content-Length": str(len(head))}
        connection.request("POST", "/v2/models/m/infer", head + data, headers)
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 200
        assert body[int(answer.headers["Inference-Header-Content-Length"]) :] == data
    finally:
        connection.close()


def test_pipelined_requests_over_tls(server: ServerProcess, files: Files) -> None:
    raw = socket.create_connection(server.http, TIMEOUT_S)
    with client_context(files, files.client).wrap_socket(raw, server_hostname="localhost") as client:
        client.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: t\r\n\r\n" * 50)
        got = b""
        while got.count(b"HTTP/1.1 200 OK") < 50:
            piece = client.recv(65536)
            assert piece
            got += piece


def test_clients_without_a_good_certificate_get_nothing(server: ServerProcess, files: Files) -> None:
    for shown in (None, files.stranger):
        connection = connect(server.http, client_context(files, shown))
        with pytest.raises((ssl.SSLError, ConnectionError)):
            connection.request("GET", "/v2")
            connection.getresponse()
        connection.close()


@pytest.mark.parametrize(
    "data", [b"GET /v2 HTTP/1.1\r\nHost: t\r\n\r\n", b"\x16\x03\x01\x02\x00" + b"\0" * 600, b"\0" * 100]
)
def test_bytes_that_are_no_tls_end_the_connection(server: ServerProcess, data: bytes) -> None:
    with socket.create_connection(server.http, TIMEOUT_S) as client:
        client.sendall(data)
        got = b""
        while piece := _received(client):
            got += piece
    assert b"HTTP" not in got
    assert server.alive


def _received(client: socket.socket) -> bytes:
    try:
        return client.recv(65536)
    except ConnectionError:
        return b""


def test_a_client_that_leaves_while_it_is_served(root: Path, files: Files, caplog: pytest.LogCaptureFixture) -> None:
    """Its goodbye ends the connection without a word in the log, and without harm to the next."""
    with LocalServer(root, *files.flags()) as server:
        raw = socket.create_connection(server.http, TIMEOUT_S)
        client = client_context(files).wrap_socket(raw, server_hostname="localhost")
        body = infer_body([1.0]).encode()
        head = b"POST /v2/models/slow/infer HTTP/1.1\r\nHost: t\r\nContent-Length: %d\r\n\r\n"
        client.sendall(head % len(body) + body)
        assert until(lambda: server.native.in_flight == 1)  # type: ignore[attr-defined]
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            client.unwrap()
        client.close()
        raw.close()
        assert until(lambda: not server.native.connections)  # type: ignore[attr-defined]
        assert until(lambda: server.native.in_flight == 0)  # type: ignore[attr-defined]
        connection = connect(server.http, client_context(files))
        connection.request("GET", "/v2/health/ready", headers={"Connection": "close"})
        assert connection.getresponse().status == 200
        connection.close()
    assert caplog.text == ""


def test_drain_answers_what_is_in_hand(root: Path, files: Files) -> None:
    with LocalServer(root, *files.flags()) as server:
        connection = connect(server.http, client_context(files))
        connection.request("POST", "/v2/models/slow/infer", infer_body([1.0]))
        assert until(lambda: server.native.in_flight == 1)  # type: ignore[attr-defined]
        assert server.server.endpoints.http is not None
        server.call(server.server.endpoints.http.begin_drain)
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["outputs"][0]["data"]) == (200, [1.0])
        connection.close()
        assert until(lambda: server.server.endpoints.http.open_connections == 0)  # type: ignore[union-attr]


def test_a_bad_file_stops_the_start(root: Path, files: Files) -> None:
    flags = files.flags()
    flags[2] = f"--http-server-key={files.client.key}"
    with pytest.raises(InvalidArg, match="--http-server-key: the key in"), LocalServer(root, *flags):
        pass
