"""One nginx worker that takes the same POST and answers a body of the same size. It knows nothing of models.

Small bodies are `return 200`, as in the targets; a string of more than some kilobytes is no valid nginx configuration,
so larger ones come from a file.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.server.cases import Case
from bench.server.grpc_cases import GrpcCase
from bench.server.load import Answer
from scripts.server_process import cpu_seconds, free_ports, rss_bytes

MAX_STRING = 3000

CONFIG = """{user}
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log error;
events {{ worker_connections 512; }}
http {{
  access_log off;
  server_tokens off;
  keepalive_requests 1000000000;
  keepalive_timeout 600s;
  client_max_body_size 16m;
  client_body_buffer_size 1m;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  http2_recv_buffer_size 1m;
  http2_max_concurrent_streams 1024;
{servers}
}}
"""

HTTP_SERVER = """  server {{
    listen 127.0.0.1:{port};
    root {folder};
{locations}
  }}
"""

# nginx answers at once, and a client may stop sending a body then: only as much of it travels as it may send ahead, so
# the window has room for all. The chunk is the largest frame that h2load takes.
GRPC_SERVER = """  server {{
    listen 127.0.0.1:{port} http2;
    root {folder};
    http2_body_preread_size 1m;
    http2_chunk_size 16k;
    output_buffers 2 1m;
{locations}
  }}
"""


class Nginx:
    """A running nginx; ``answers`` has, for each case, the answer whose size and headers it imitates."""

    def __init__(self, scratch: Path, answers: Sequence[tuple[Case | GrpcCase, Answer]]) -> None:
        binary = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if binary is None:
            raise SystemExit("nginx is not installed: apt-get install nginx-light")
        self.folder = scratch / "nginx"
        self.folder.mkdir()
        self.folder.chmod(0o755)
        self._endpoints: dict[str, tuple[int, str]] = {}
        servers = "".join(self._servers(answers))
        config = self.folder / "nginx.conf"
        user = "user root;" if os.geteuid() == 0 else ""
        config.write_text(CONFIG.format(user=user, folder=self.folder, servers=servers))
        self.process = subprocess.Popen(
            [binary, "-c", str(config), "-p", str(self.folder), "-e", str(self.folder / "start.log")],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def _servers(self, answers: Sequence[tuple[Case | GrpcCase, Answer]]) -> Iterator[str]:
        """HTTP cases differ by path; gRPC has one path for all, so each case has a port and the very same request."""
        http_port, *grpc_ports = free_ports(1 + len(answers))
        locations = []
        for port, (case, answer) in zip(grpc_ports, answers, strict=True):
            if case.protocol == "grpc":
                self._endpoints[case.name] = (port, case.path)
                yield GRPC_SERVER.format(
                    port=port, folder=self.folder, locations=self._location(case.name, case.path, answer)
                )
            else:
                self._endpoints[case.name] = (http_port, f"/{case.name}")
                locations.append(self._location(case.name, f"/{case.name}", answer))
        if locations:
            yield HTTP_SERVER.format(port=http_port, folder=self.folder, locations="\n".join(locations))

    def endpoint(self, case: Case | GrpcCase) -> tuple[int, str]:
        """Port and path that answer a case."""
        return self._endpoints[case.name]

    def _location(self, case: str, path: str, answer: Answer) -> str:
        """Plain filler of the same length, so that the client reads as many bytes from both peers."""
        kept = {key.title(): value for key, value in answer.headers.items()}
        kind = kept.get("Content-Type", "application/octet-stream")
        extra = "Inference-Header-Content-Length"
        header = f'add_header {extra} "{kept[extra]}";' if extra in kept else ""
        filler = "x" * len(answer.body)
        if len(filler) <= MAX_STRING:
            return f'    location = {path} {{ default_type {kind}; {header} return 200 "{filler}"; }}'
        name = f"{case}.bin"
        (self.folder / name).write_text(filler)
        # A file takes no POST; the error page turns it into a GET of the file, after the body was read and dropped.
        return (
            f"    location = {path} {{ error_page 405 =200 /{name}; return 405; }}\n"
            f"    location = /{name} {{ default_type {kind}; {header} }}"
        )

    def _wait(self) -> None:
        deadline = time.monotonic() + 10
        while True:
            if self.process.poll() is not None or time.monotonic() > deadline:
                logs = [log.read_text(errors="replace") for log in self.folder.glob("*.log")]
                raise RuntimeError("nginx did not start: " + "".join(logs)[-1000:])
            try:
                for port, _ in self._endpoints.values():
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.01)

    def _worker(self) -> int:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])

    def cpu_seconds(self) -> float:
        """User and system time of the worker."""
        return cpu_seconds(self._worker())

    def rss_bytes(self) -> int:
        return rss_bytes(self._worker())

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(10)

    def __enter__(self) -> Nginx:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
