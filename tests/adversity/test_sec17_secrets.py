"""SEC-17: no secret that a server is given comes out of it: not in its log at any level, not in answers, not in ``ps``.

Each secret is a marker that stands nowhere else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
import pytest

from tests.helpers import raw
from tests.helpers.certificates import Authority
from tests.helpers.grpc_channel import Channel, infer_request
from tests.helpers.server import Model, ServerProcess, repository
from triton_fast import cli, protos
from triton_fast.cli.hide import secrets
from triton_fast.frontends import keyfile

GROUP = "restricted-5e1f0c"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIAMARK5E1F0CIDID", "AWS_SECRET_ACCESS_KEY": "awsmark-5e1f0c",
    "AWS_SESSION_TOKEN": "sesmark-5e1f0c",
    "AZURE_STORAGE_KEY": "azuremark-5e1f0c", "TRITONCACHE_REDIS_USERNAME": "redisuser-5e1f0c",
    "TRITONCACHE_REDIS_PASSWORD": "redispass-5e1f0c",
}  # fmt: skip


@dataclass
class Served:
    server: ServerProcess
    root: Path  # the certificate of the authority
    keys: dict[str, str]
    secrets: dict[str, list[str]]  # what -> markers

    def clean(self, text: str) -> None:
        found = [what for what, marks in self.secrets.items() if any(mark in text for mark in marks)]
        assert found == []


@pytest.fixture(scope="module", params=["default", "json"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    place = tmp_path_factory.mktemp("secrets")
    keys = {}
    for scope in keyfile.SCOPES:
        keys[scope], key = keyfile.make((scope,))
        keyfile.add(place / "keys", key)
    authority = Authority(place / "tls")
    pair = authority.server()
    secrets = {
        "restricted group": [GROUP],
        "API key": [text.split("_", 2)[2] for text in keys.values()],
        "hash of a key": [key.digest.hex() for key in keyfile.load(place / "keys").values()],
        "TLS key": [line for line in pair.key.read_text().splitlines() if "-----" not in line],
        **{name: [value] for name, value in ENVIRONMENT.items()},
    }
    root = repository(place / "models", Model("m", extra="response_cache { enable: true }"))
    flags = (
        f"--log-format={request.param}", "--log-verbose=9", f"--api-keys={place / 'keys'}",
        f"--http-restricted-api=statistics,logging:X-Group={GROUP}", f"--grpc-restricted-protocol=statistics:g={GROUP}",
        "--grpc-use-ssl=true", f"--grpc-server-cert={pair.cert}", f"--grpc-server-key={pair.key}",
        "--cache-config=redis,host=127.0.0.1", "--cache-config=redis,port=1", "--model-control-mode=explicit",
        "--load-model=m", "--http-header-forward-pattern=.*",
    )  # fmt: skip
    with ServerProcess(root, *flags, env=ENVIRONMENT) as server:
        yield Served(server, authority.root, keys, secrets)


def requests(served: Served) -> Iterator[bytes]:
    """Good and bad ones, each with a secret in it."""
    group = f"X-Group: {GROUP}"
    paths = ["/v2", "/v2/models/m", "/v2/models/m/config", "/v2/models/m/stats", "/v2/models/stats", "/v2/logging",
             "/v2/trace/setting", "/v2/health/ready", "/v2/nothing"]  # fmt: skip
    for text in (*served.keys.values(), served.keys["infer"][:-1] + "!"):
        for line in (f"Authorization: Bearer {text}", f"X-Api-Key: {text}"):
            yield raw.infer_json("m", [1], line)
            yield raw.infer_json("m", ["x"], line)
            yield raw.infer_json("none", [1], line)
            yield raw.post("/v2/repository/index", b"{}", line, group)
            yield raw.post("/v2/repository/models/none/load", b"{", line)
            yield raw.post("/v2/repository/models/m/load", json.dumps({"parameters": {"config": "{"}}).encode(), line)
            for path in paths:
                yield raw.get(path, line, group)
                yield raw.get(path, line, group[:-1])
            yield raw.get("/v2", line, line)
            yield raw.get("/v2", line + "\x01")
            yield raw.get("/v2", line, "Content-Length: x")
            yield raw.get("/v2", line.replace(": ", " : "))
            yield raw.get("/v2", " " + line)


def test_answers_and_log(served: Served) -> None:
    statuses = set()
    for data in requests(served):
        answer = raw.ask(served.server.http, data)
        statuses.add(answer.status)
        served.clean(answer.body.decode("latin-1") + str(answer.headers))
    assert {200, 400, 401, 403, 404} <= statuses
    for text in served.keys.values():
        scrape = raw.ask(served.server.metrics, raw.get("/metrics", f"X-Api-Key: {text}"))
        served.clean(scrape.body.decode())
    credentials = grpc.ssl_channel_credentials(served.root.read_bytes())
    options = (("grpc.ssl_target_name_override", "localhost"),)
    with Channel(served.server.grpc, credentials, options) as channel:
        for text in (*served.keys.values(), "wrong"):
            metadata = {"authorization": f"Bearer {text}", "triton-grpc-protocol-g": GROUP}
            served.clean(str(channel.infer(infer_request("m"), metadata=metadata)))
            served.clean(str(channel.infer(infer_request("none"), metadata=metadata)))
            served.clean(str(channel.stream([infer_request("m")] * 2, metadata=metadata)))
            for name in ("ModelStatistics", "RepositoryIndex", "ServerMetadata", "LogSettings"):
                served.clean(str(channel.ask(name, metadata=metadata)))
            request = protos.RepositoryModelLoadRequest(model_name="none")
            served.clean(str(channel.ask("RepositoryModelLoad", request, metadata=metadata)))
    with raw.Client(served.server.grpc) as client:  # not TLS
        client.send(raw.get("/v2", f"X-Api-Key: {served.keys['infer']}"))
        client.half_close()
        client.closed()
    log = served.server.log()
    assert "redis cache does not answer" in log
    served.clean(log)


def test_lists_of_processes(served: Served) -> None:
    """A command line and a process's name are for everybody to see."""
    process = psutil.Process(served.server.process.pid)
    for one in (process, *process.children(recursive=True)):
        served.clean("\0".join([*one.cmdline(), one.name()]))
    for path in ("comm", "status", "stat"):
        served.clean(Path(f"/proc/{process.pid}/{path}").read_text())
    shown = process.cmdline()
    masked = "*" * len(GROUP)
    assert f"--http-restricted-api=statistics,logging:X-Group={masked}" in shown
    assert f"--grpc-restricted-protocol=statistics:g={masked}" in shown
    # Nothing else was touched.
    given = [word.replace(GROUP, masked) for word in served.server.argv]
    assert shown[-len(given) + 1 :] == given[1:]


def test_values_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "value").write_text(f"{GROUP}\n")
    options = cli.parse(
        ["--model-repository=/m", f"--http-restricted-api=health:X=file:{tmp_path / 'value'}",
         "--grpc-restricted-protocol=trace:y=env:MARK"],
        {"MARK": GROUP},
    )
    assert options.http_restricted_api["health"] == ("X", GROUP)
    assert options.grpc_restricted_protocol["trace"] == ("triton-grpc-protocol-y", GROUP)
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "lines").write_text(f"{GROUP}\n{GROUP}\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for value in (*(f"file:{tmp_path / name}" for name in ("none", "empty", "lines", "binary")), "env:NONE"):
        with pytest.raises(cli.CliError) as caught:
            cli.parse([f"--http-restricted-api=health:X={value}"], {})
        assert 'Bad option: "--http-restricted-api"' in str(caught.value)
        assert GROUP not in str(caught.value)


def test_what_is_hidden() -> None:
    argv = [
        "--http-restricted-api", "health:X=one", "--grpc-restricted-protocol=trace:y=two=2", "--log-verbose=1",
        "--cache-config=redis,password=three", "--cache-config=redis,host=h", "--http-restricted-api=trace:X=file:/x",
    ]  # fmt: skip
    assert [value for _, value in secrets(argv)] == ["one", "two=2", "three"]
    assert list(secrets(["--nothing"])) == []


def test_a_start_that_fails_tells_nothing(served: Served, tmp_path: Path) -> None:
    bad = tmp_path / "keys"
    bad.write_text(f"{served.keys['infer']} infer\n")
    key = next(argument for argument in served.server.argv if argument.startswith("--grpc-server-key"))
    for flags in (
        (f"--api-keys={bad}",),
        ("--grpc-use-ssl=true", f"--grpc-server-cert={bad}", key),
        (f"--http-restricted-api=nothing:X={GROUP}",),
        (f"--http-restricted-api=health:X={GROUP}", f"--http-restricted-api=health:Y={GROUP}", "--log-verbose=9"),
    ):
        server = ServerProcess(tmp_path, *flags, exit_code=None, env=ENVIRONMENT)
        with pytest.raises(AssertionError), server:
            pass
        # Triton repeats a flag that it does not understand; these it does.
        served.clean(server.log())


def test_options_do_not_show_secrets(served: Served) -> None:
    options = cli.parse([argument for argument in served.server.argv[3:]])
    served.clean(repr(options))
    served.clean(str(options))


def test_the_search_finds(served: Served) -> None:
    for marks in served.secrets.values():
        assert marks and all(len(mark) >= 8 for mark in marks)
        with pytest.raises(AssertionError):
            served.clean(f"x{marks[0]}y")
