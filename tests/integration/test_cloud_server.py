"""Servers whose models lie in S3: they answer, share a cache, take load requests, and show their keys to nobody.

Source: spec/security.md SEC-17.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers import raw
from tests.helpers.emulators import KEY_ID, S3, SECRET_KEY
from tests.helpers.ensembles import Chain, ensembles
from tests.helpers.server import ROOT, Model, ServerProcess, repository
from tests.integration.onnx_files import index, infer

EXPLICIT = "--model-control-mode=explicit"
TOKEN = "sessiontokenmarker/of+the/tests"  # noqa: S105 - what is looked for


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with S3(tmp_path_factory.mktemp("s3")) as made:
        assert isinstance(made, S3)
        yield made


@pytest.fixture
def url(s3: S3, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A repository with the models a, b and the ensemble e of both."""
    bucket = f"t{abs(hash(request.node.nodeid)):x}"
    root = repository(tmp_path / "repo", Model("a"), Model("b"))
    ensembles(root, Chain("e", ("a", "b")))
    s3.make_bucket(bucket)
    s3.put_tree(bucket, root, "models/")
    return s3.url(bucket, "models")


def env_of(s3: S3, tmp_path: Path) -> dict[str, str]:
    return {**s3.env, "AWS_SESSION_TOKEN": TOKEN, "TRITON_AWS_MOUNT_DIRECTORY": str(tmp_path / "mount")}


def control(process: ServerProcess, verb: str, name: str, **parameters: Any) -> raw.Answer:
    body = json.dumps({"parameters": parameters}).encode() if parameters else b""
    return raw.ask(process.http, raw.post(f"/v2/repository/models/{name}/{verb}", body))


def echoes(process: ServerProcess, name: str) -> None:
    given = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.array_equal(infer(process.http, name, {"INPUT0": given})["OUTPUT0"], given)


def blobs(tmp_path: Path) -> set[Path]:
    return {path for path in (tmp_path / "mount").rglob("blobs/*/*") if path.is_file()}


def test_models_and_an_ensemble_are_served_and_downloaded_once(s3: S3, url: str, tmp_path: Path) -> None:
    env = env_of(s3, tmp_path)
    with ServerProcess(url, env=env) as process:
        assert {name: row["state"] for name, row in index(process.http).items()} == dict.fromkeys("abe", "READY")
        for name in "abe":
            echoes(process, name)
        assert "downloading 1 files" in process.log()
    assert len(blobs(tmp_path)) == 3
    # Nothing of a run is left but the files for the next.
    assert not list((tmp_path / "mount").rglob("trees/*"))
    with ServerProcess(url, env=env) as process:
        echoes(process, "e")
        assert "downloading" not in process.log()


def test_two_servers_share_what_is_in_use(s3: S3, url: str, tmp_path: Path) -> None:
    env = env_of(s3, tmp_path)
    with ServerProcess(url, env=env) as first, ServerProcess(url, "--repository-cache-size=1", env=env) as second:
        assert len(blobs(tmp_path)) == 3
        assert all(path.stat().st_nlink >= 3 for path in blobs(tmp_path))
        echoes(first, "e")
        echoes(second, "e")
    # The second one's limit took what nobody used any more, or nothing while the first one was there.
    with ServerProcess(url, "--repository-cache-size=1", EXPLICIT, env=env):
        assert blobs(tmp_path) == set()


def test_load_requests(s3: S3, url: str, tmp_path: Path) -> None:
    bucket = re.search(r"/(t[0-9a-f]+)/models", url)
    assert bucket is not None
    with ServerProcess(
        url, EXPLICIT, "--load-model=a", "--allow-code-upload=true", env=env_of(s3, tmp_path)
    ) as process:
        assert control(process, "load", "c").status == 500
        s3.put(bucket[1], "models/c/config.pbtxt", Model("c").config().encode())
        s3.put(bucket[1], "models/c/1/", b"")
        assert control(process, "load", "c").status == 200
        echoes(process, "c")
        override = {"backend": "identity", "max_batch_size": 2, "input": [
            {"name": "INPUT0", "data_type": "TYPE_FP32", "dims": [-1]}], "output": [
            {"name": "OUTPUT0", "data_type": "TYPE_FP32", "dims": [-1]}]}  # fmt: skip
        assert control(process, "load", "c", config=json.dumps(override)).status == 200
        assert raw.ask(process.http, raw.get("/v2/models/c/config")).json()["max_batch_size"] == 2
        content = base64.b64encode(b"x").decode()
        answer = control(process, "load", "c", config=json.dumps(override), **{"file:1/any.bin": content})
        assert answer.status == 200
        echoes(process, "c")
        assert control(process, "load", "c").status == 200
        assert raw.ask(process.http, raw.get("/v2/models/c/config")).json()["max_batch_size"] == 8
        assert control(process, "unload", "c").status == 200
        s3.put(bucket[1], "models/d/config.pbtxt", b"backend: 7")
        answer = control(process, "load", "d")
        assert answer.status == 500
        assert str(tmp_path) not in answer.error


def test_keys_are_shown_to_nobody(s3: S3, url: str, tmp_path: Path) -> None:
    secrets = (SECRET_KEY, TOKEN, KEY_ID)
    with ServerProcess(url, EXPLICIT, "--load-model=*", "--log-verbose=9", env=env_of(s3, tmp_path)) as process:
        control(process, "load", "none")
        paths = ["/v2", "/v2/models/a", "/v2/models/a/config", "/v2/models/stats", "/v2/logging", "/v2/trace/setting"]
        shown = [raw.ask(process.http, raw.get(path)).body.decode() for path in paths]
        shown.append(raw.ask(process.http, raw.post("/v2/repository/index")).body.decode())
        shown.append(raw.ask(process.metrics, raw.get("/metrics")).body.decode())
        shown.append(" ".join(process.ps.cmdline()))
    shown.append(process.log())
    assert "model_repository_path[0]" in shown[-1]
    assert not [text for text in shown for secret in secrets if secret in text]
    kept = [path for path in (tmp_path / "mount").rglob("*") if path.is_file()]
    assert kept and not any(secret.encode() in path.read_bytes() for path in kept for secret in secrets)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("s3://{endpoint}/no-such-bucket", "error: creating server: Internal - model repository .* does not exist"),
        ("s3://user:{secret}@host/bucket", "credentials do not belong into a path"),
        ("s3://", "it names no bucket"),
    ],
)
def test_a_server_that_can_not_start_says_why(s3: S3, tmp_path: Path, path: str, text: str) -> None:
    given = path.format(endpoint=s3.endpoint, secret="sEcReT")  # noqa: S106
    found = subprocess.run(
        [sys.executable, "-m", "triton_fast", f"--model-repository={given}"], capture_output=True, text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env_of(s3, tmp_path)}, timeout=60,
    )  # fmt: skip
    assert found.returncode == 1
    assert re.search(text, found.stderr)
    assert "sEcReT" not in found.stdout + found.stderr and SECRET_KEY not in found.stdout + found.stderr


def test_check_downloads_and_checks(s3: S3, url: str, tmp_path: Path) -> None:
    bucket = re.search(r"/(t[0-9a-f]+)/models", url)
    assert bucket is not None

    def check() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "triton_fast", "check", url], capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT), **env_of(s3, tmp_path)}, timeout=60,
        )  # fmt: skip

    found = check()
    assert (found.returncode, found.stdout.splitlines()[-1]) == (0, "3 models, 0 with errors: 0 errors, 0 warnings")
    s3.put(bucket[1], "models/b/config.pbtxt", b"max_batchsize: 4")
    found = check()
    assert found.returncode == 1
    assert "b/config.pbtxt:1:1: error:" in found.stdout
    assert not list((tmp_path / "mount").rglob("trees/*"))
