"""SEC-01: every hostile name through every sink of the server: refused, and nothing outside the repository is touched.

What the server and its children ask of the kernel is read from a trace of their system calls. The same names through
the repository and the configs in one process: tests/unit/test_repository_hostile.py.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.adversity.hostile_names import NAMES, as_text
from tests.helpers import raw
from tests.helpers.grpc_channel import Channel, infer_request
from tests.helpers.server import Model, repository
from tests.helpers.strace import TracedServer, outside, possible
from tests.unit.test_repository_hostile import only_below
from triton_fast import config, protos
from triton_fast.backends.python import archive
from triton_fast.errors import ServerError

MARK = "what-nobody-may-read"
SHM = "/dev/shm"  # noqa: S108 - where the system has its regions
traced = pytest.mark.skipif(not possible(), reason="strace is not installed or may not trace")


def test_the_corpus_is_large() -> None:
    assert len(NAMES) >= 300


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one model, and beside and above it what must not be reached."""
    root = tmp_path_factory.mktemp("sec01")
    repository(root / "models", Model("m"))
    (root / "tmp").mkdir()
    for folder in (root, root / "models" / "m" / "1"):
        (folder / "etc").mkdir()
    for path in ("secret", "secret.txt", "etc/passwd"):
        if path != "secret":
            (root / path).write_text(MARK)
    repository(root, Model("secret"), Model("outside"))
    (root / "outside" / "1" / "model.onnx").write_text(MARK)
    return root


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[TracedServer]:
    flags = (
        "--model-control-mode=explicit",
        "--load-model=m",
        "--allow-client-shm=true",
        "--log-verbose=2",
        f"--backend-directory={place / 'backends'}",
    )
    with TracedServer(place / "models", place / "trace", *flags, env={"TMPDIR": str(place / "tmp")}) as server:
        # What is imported when it is first needed comes before the mark.
        for data in (
            raw.post("/v2/repository/models/none/load"),
            raw.get("/v2/models/m/config"),
            raw.infer_json("m", [1]),
        ):
            raw.ask(server.http, data)
        load(server, {"label_filename": "none"})
        load(server, {"backend": "onnxruntime"})
        with Channel(server.grpc) as channel:
            channel.ask("RepositoryIndex")
        yield server


def tree(root: Path) -> dict[str, str]:
    """Every file but what the server may write, with a hash of what it holds."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*") if path.is_file() and not path.is_relative_to(root / "tmp") and path.name != "trace"
    }  # fmt: skip


@pytest.fixture
def bounded(server: TracedServer, place: Path) -> Iterator[TracedServer]:
    """The server; after the test it has looked nowhere but into the repository, and changed nothing."""
    before = tree(place)
    server.mark()
    yield server
    raw.ask(server.http, raw.get("/v2/health/live"))
    # A region's key names one object, directly in the directory of those.
    paths = [(call, path) for call, path in server.paths() if os.path.dirname(path) != SHM]
    assert outside(paths, place / "models", place / "tmp", place / "backends") == []
    assert tree(place) == before
    assert server.alive
    assert MARK not in server.log()


def send(client: raw.Client, server: TracedServer, data: bytes) -> tuple[raw.Client, int, bytes]:
    """Ask on a connection that is used again while it lasts."""
    try:
        answer = client.ask(data)
    except (raw.Closed, ConnectionError):
        client.close()
        return raw.Client(server.http), 400, b""
    if answer.closes:
        client.close()
        client = raw.Client(server.http)
    return client, answer.status, answer.body


def raw_path(before: str, name: str, after: str, method: str = "POST", body: bytes = b"") -> bytes:
    """A request whose target holds the name as it is, whatever bytes those are."""
    target = before.encode() + name.encode("utf-8", "surrogatepass") + after.encode()
    return b"%s %s HTTP/1.1\r\nHost: t\r\nContent-Length: %d\r\n\r\n%s" % (method.encode(), target, len(body), body)


def override(fields: dict[str, Any]) -> dict[str, Any]:
    """A whole config of m; ``fields`` go over it, those of an output into the output."""
    tensor = {"data_type": "TYPE_FP32", "dims": [-1]}
    output = {"name": "OUTPUT0", **tensor}
    made = {"backend": "identity", "max_batch_size": 8, "input": [{"name": "INPUT0", **tensor}], "output": [output]}
    if "label_filename" in fields:
        output["label_filename"] = fields.pop("label_filename")
    return {**made, **fields}


def load_body(fields: dict[str, Any], files: dict[str, bytes] | None = None) -> bytes:
    parameters = {"config": json.dumps(override(dict(fields)))}
    parameters |= {name: base64.b64encode(data).decode() for name, data in (files or {}).items()}
    return json.dumps({"parameters": parameters}).encode()


def load(server: TracedServer, fields: dict[str, Any]) -> int:
    return raw.ask(server.http, raw.post("/v2/repository/models/m/load", load_body(fields))).status


# ---- names in targets and messages


@traced
@pytest.mark.parametrize(
    ("method", "before", "after"),
    [
        ("POST", "/v2/repository/models/", "/load"), ("POST", "/v2/repository/models/", "/unload"),
        ("GET", "/v2/models/", "/config"), ("GET", "/v2/models/", ""), ("GET", "/v2/models/", "/stats"),
        ("GET", "/v2/models/", "/ready"), ("POST", "/v2/models/", "/infer"), ("POST", "/v2/models/", "/generate"),
        ("POST", "/v2/models/", "/trace/setting"), ("POST", "/v2/repository/", "/index"),
        ("POST", "/v2/systemsharedmemory/region/", "/register"), ("GET", "/v2/systemsharedmemory/region/", "/status"),
    ],
)  # fmt: skip
def test_targets(bounded: TracedServer, method: str, before: str, after: str) -> None:
    body = b'{"key": "/none", "byte_size": 4}' if after == "/register" else b"{}" if method == "POST" else b""
    client = raw.Client(bounded.http)
    for name in NAMES:
        client, status, answer = send(client, bounded, raw_path(before, name, after, method, body))
        assert MARK.encode() not in answer
        # An unload of what is not loaded is done; a repository's name in an index is not looked at, as in Triton.
        if after not in ("/unload", "/index") and not (before == "/v2/models/" and name in ("", "m?", "m#")):
            assert status >= 400, name
    client.close()


@traced
def test_grpc_messages(bounded: TracedServer) -> None:
    with Channel(bounded.grpc) as channel:
        for name in map(as_text, NAMES):
            assert channel.ask("RepositoryModelLoad", protos.RepositoryModelLoadRequest(model_name=name)).status
            assert channel.infer(infer_request(name)).status
            assert channel.ask("ModelConfig", protos.ModelConfigRequest(name=name)).status
            assert channel.ask("ModelMetadata", protos.ModelMetadataRequest(name=name)).status
            for key in (name, f"/{name}"):
                region = protos.SystemSharedMemoryRegisterRequest(name=name, key=key, byte_size=4)
                assert channel.ask("SystemSharedMemoryRegister", region).status, key
            request = infer_request("m")
            request.inputs[0].parameters["shared_memory_region"].string_param = name
            assert channel.infer(request).status


@traced
def test_regions_over_http(bounded: TracedServer) -> None:
    client = raw.Client(bounded.http)
    for name in NAMES:
        for key in (name, f"/{name}"):
            body = json.dumps({"key": key, "byte_size": 4}).encode()
            client, status, _ = send(client, bounded, raw.post("/v2/systemsharedmemory/region/r/register", body))
            assert status >= 400, key
    client.close()


# ---- names in configs that come over the network


def warm(name: str) -> dict[str, Any]:
    tensor = {"data_type": "TYPE_FP32", "dims": [1], "input_data_file": name}
    return {"model_warmup": [{"name": "w", "batch_size": 1, "inputs": {"INPUT0": tensor}}]}


def state(name: str) -> dict[str, Any]:
    initial = {"name": "i", "data_type": "TYPE_FP32", "dims": [1], "data_file": name}
    return {"sequence_batching": {"state": [{
        "input_name": "IN", "output_name": "OUT", "data_type": "TYPE_FP32", "dims": [1], "initial_state": [initial],
    }]}}  # fmt: skip


def ensemble(name: str) -> dict[str, Any]:
    step = {"model_name": name, "model_version": -1, "input_map": {"INPUT0": "INPUT0"},
            "output_map": {"OUTPUT0": "OUTPUT0"}}  # fmt: skip
    return {"backend": "", "platform": "ensemble", "ensemble_scheduling": {"step": [step]}}


# Sink -> the config, and whether a name that is only strange must be refused, too: no such file is there.
SINKS: dict[str, tuple[Callable[[str], dict[str, Any]], bool]] = {
    "label_filename": (lambda name: {"label_filename": name}, True),
    "default_model_filename": (lambda name: {"backend": "onnxruntime", "default_model_filename": name}, True),
    "cc_model_filenames": (lambda name: {"cc_model_filenames": {"7.5": name}}, False),
    "input_data_file": (warm, True),
    "initial_state": (state, True),
    "backend": (lambda name: {"backend": name}, True),
    "platform": (lambda name: {"backend": "", "platform": name}, True),
    "ensemble": (ensemble, True),
    "name": (lambda name: {"name": name}, False),
    "profile": (
        lambda name: {"optimization": {"graph": {"level": 1}}, "parameters": {"x": {"string_value": name}}},
        False,
    ),
    "metric_tags": (lambda name: {"metric_tags": {"x": name}}, False),
}


@traced
@pytest.mark.parametrize("sink", SINKS)
def test_configs(bounded: TracedServer, sink: str) -> None:
    make, must_fail = SINKS[sink]
    client = raw.Client(bounded.http)
    for name in filter(None, NAMES):
        body = load_body(make(name))
        client, status, answer = send(client, bounded, raw.post("/v2/repository/models/m/load", body))
        assert MARK.encode() not in answer
        assert status >= 400 or not must_fail, name
    client.close()


@traced
def test_links_in_the_repository_are_not_followed_by_names(server: TracedServer, place: Path) -> None:
    """A link that the model's author made: a name in a config does not go through it."""
    model = place / "models" / "m"
    links = {"link": place / "secret.txt", "link_dir": place / "etc"}
    for name, target in links.items():
        (model / name).symlink_to(target)
        (model / "1" / name).symlink_to(target)
        (model / "warmup").mkdir(exist_ok=True)
        (model / "warmup" / name).symlink_to(target)
        (model / "initial_state").mkdir(exist_ok=True)
        (model / "initial_state" / name).symlink_to(target)
    server.mark()
    for sink in ("label_filename", "input_data_file", "initial_state"):
        for name in ("link", "link_dir/passwd", "link_dir/../secret.txt"):
            assert load(server, SINKS[sink][0](name)) >= 400, (sink, name)
    assert load(server, SINKS["default_model_filename"][0]("link_dir/passwd")) >= 400
    opened = [path for call, path in server.paths() if call in ("open", "openat", "openat2", "creat")]
    assert not [path for path in opened if os.path.basename(path) in ("link", "passwd", "secret.txt")]
    for path in (model, model / "1", model / "warmup", model / "initial_state"):
        for name in links:
            (path / name).unlink()


# ---- files that come over the network


@traced
def test_uploaded_files(place: Path, tmp_path: Path) -> None:
    flags = ("--model-control-mode=explicit", "--load-model=m", "--allow-code-upload=true")
    (tmp_path / "tmp").mkdir()
    before = tree(place)
    with TracedServer(place / "models", tmp_path / "trace", *flags, env={"TMPDIR": str(tmp_path / "tmp")}) as server:
        load(server, {"label_filename": "none"})
        raw.ask(server.http, raw.post("/v2/repository/models/up/load", load_body({}, {"file:1/x": b"x"})))
        server.mark()
        client = raw.Client(server.http)
        for name in NAMES:
            for file in (f"file:{name}", f"file:1/{name}", f"file:/{name}"):
                body = load_body({}, {file: b"uploaded"})
                client, status, answer = send(client, server, raw.post("/v2/repository/models/up/load", body))
                path = file.removeprefix("file:")
                if ".." in path.split("/") or path.startswith("/") or "\\" in path or "\0" in path:
                    assert status >= 400, file
                assert b"uploaded" not in answer
        client.close()
        assert outside(server.paths(), place / "models", tmp_path / "tmp") == []
    assert tree(place) == before
    assert not list((tmp_path / "tmp").glob("triton_fast_*"))


# ---- in one process, watched by an audit hook


def packed(path: Path, name: str, kind: bytes, link: str = "") -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo()
        info.name, info.type, info.linkname = name, kind, link
        info.size = len(MARK) if kind == tarfile.REGTYPE else 0
        tar.addfile(info, io.BytesIO(MARK.encode()) if info.size else None)
    return path


@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "hardlink", "through"])
def test_members_of_environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    (tmp_path / "secret").write_text(MARK)
    for number, name in enumerate(NAMES):
        target = tmp_path / f"out{number}"
        path = tmp_path / "env.tar"
        try:
            if kind == "symlink":
                packed(path, "l", tarfile.SYMTYPE, name)
            elif kind == "hardlink":
                packed(path, "h", tarfile.LNKTYPE, name)
            elif kind == "through":
                packed(path, f"{name}/x", tarfile.REGTYPE)
            else:
                packed(path, name, tarfile.DIRTYPE if kind == "directory" else tarfile.REGTYPE)
        except (ValueError, UnicodeEncodeError):
            continue  # no archive can hold such a name
        with only_below(monkeypatch, target, path):
            try:
                archive.extract(path, target)
            except ServerError as error:
                assert MARK not in str(error)
        root = os.path.realpath(target)
        for folder, folders, files in os.walk(target):
            for entry in (*folders, *files):
                assert os.path.realpath(os.path.join(folder, entry)).startswith(root), name
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith("out")) == ["env.tar", "secret"]


def test_names_of_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--model-config-name: one file in configs/, or the plain config."""
    root = repository(tmp_path / "models", Model("m"))
    (tmp_path / "secret.pbtxt").write_text(f'name: "{MARK}"')
    (root / "m" / "configs").mkdir()
    for name in filter(None, NAMES):
        with only_below(monkeypatch, root):
            try:
                found = config.load_model_config(root / "m", strict=True, config_name=name)
            except (ServerError, OSError) as error:
                assert MARK not in str(error)
            else:
                assert found.name != MARK
