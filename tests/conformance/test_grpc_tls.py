"""TLS for the public clients: gRPC and HTTPS with and without client certificates; what is refused, and that the server
lives on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gevent.ssl
import grpc
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client

from tests.conformance.client_infer import fp32
from tests.helpers.certificates import Authority, Pair
from tests.helpers.grpc_channel import Channel, infer_request
from tests.helpers.server import Model, ServerProcess, repository


@dataclass(frozen=True)
class Secured:
    """A server, and what is needed to talk to it."""

    process: ServerProcess
    authority: Authority
    other: Authority
    client: Pair
    stranger: Pair
    mutual: bool

    def credentials(self, root: Path | None = None, pair: Pair | None = None) -> grpc.ChannelCredentials:
        """``root``: whom the client trusts; ``pair``: the certificate that it shows."""
        shown = (pair.key.read_bytes(), pair.cert.read_bytes()) if pair else (None, None)
        return grpc.ssl_channel_credentials((root or self.authority.root).read_bytes(), *shown)

    @property
    def right(self) -> grpc.ChannelCredentials:
        return self.credentials(pair=self.client if self.mutual else None)

    def works(self) -> bool:
        with Channel(self.process.grpc, self.right) as channel:
            return channel.infer(infer_request("m")).outcome == (0, "")


@pytest.fixture(scope="module", params=[False, True], ids=["tls", "mutual"])
def secured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    authority, other = Authority(folder / "ours"), Authority(folder / "other", "other")
    pair = authority.server()
    flags = [
        f"--{protocol}-{flag}" for protocol in ("grpc", "http")
        for flag in (f"server-cert={pair.cert}", f"server-key={pair.key}", f"root-cert={authority.root}")
    ]  # fmt: skip
    flags += ["--grpc-use-ssl-mutual=true" if request.param else "--grpc-use-ssl=true", "--http-use-ssl=true"]
    flags += ["--http-use-ssl-mutual=true"] if request.param else []
    root = repository(folder / "models", Model("m"))
    with ServerProcess(root, *flags) as process:
        yield Secured(process, authority, other, authority.client(), other.client("stranger"), request.param)


def test_calls_and_streams(secured: Secured) -> None:
    with Channel(secured.process.grpc, secured.right) as channel:
        assert channel.ask("ServerReady").message.ready
        for count in (1, 500_000):
            request = infer_request("m", [0.5] * count)
            assert channel.infer(request).message.raw_output_contents[0] == request.raw_input_contents[0]
            reply = channel.stream([request] * 3)
            assert reply.outcome == (0, "")
            assert [one.infer_response.raw_output_contents[0] for one in reply.messages] == [
                request.raw_input_contents[0]
            ] * 3


def test_tritonclient_grpc(secured: Secured) -> None:
    shown = secured.client if secured.mutual else None
    with grpc_client.InferenceServerClient(
        f"localhost:{secured.process.grpc[1]}", ssl=True, root_certificates=str(secured.authority.root),
        private_key=shown and str(shown.key), certificate_chain=shown and str(shown.cert),
    ) as client:  # fmt: skip
        assert client.is_server_live()
        assert client.infer("m", [fp32(1, 2).grpc()]).as_numpy("OUTPUT0").tolist() == [[1, 2]]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tritonclient_http(secured: Secured) -> None:
    def context() -> gevent.ssl.SSLContext:
        made = gevent.ssl.create_default_context(cafile=str(secured.authority.root))
        if secured.mutual:
            made.load_cert_chain(secured.client.cert, secured.client.key)
        return made

    address = f"localhost:{secured.process.http[1]}"
    with http_client.InferenceServerClient(address, ssl=True, ssl_context_factory=context) as client:
        assert client.is_server_live()
        assert client.infer("m", [fp32(1, 2).http()]).as_numpy("OUTPUT0").tolist() == [[1, 2]]


def test_refused_and_the_server_lives_on(secured: Secured) -> None:
    """A client that does not trust the server, one that shows nothing or a stranger's certificate, one without TLS."""
    attempts: list[grpc.ChannelCredentials | None] = [secured.credentials(secured.other.root), None]
    if secured.mutual:
        attempts += [secured.credentials(), secured.credentials(pair=secured.stranger)]
    for credentials in attempts:
        with Channel(secured.process.grpc, credentials) as channel:
            assert channel.infer(infer_request("m")).status == 14
        assert secured.works()
    assert secured.process.alive


def test_tls_to_a_port_without(served: ServerProcess, secured: Secured) -> None:
    with Channel(served.grpc, secured.right) as channel:
        assert channel.ask("ServerLive").status == 14
    with Channel(served.grpc) as channel:
        assert channel.ask("ServerLive").message.live
