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
from collections.abc import Mapping
from pathlib import Path

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
  server {{
    listen 127.0.0.1:{port};
    root {folder};
{locations}
  }}
}}
"""


class Nginx:
    """A running nginx; ``answers`` maps each path to the answer whose size and headers it imitates."""

    def __init__(self, scratch: Path, answers: Mapping[str, Answer]) -> None:
        binary = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if binary is None:
            raise SystemExit("nginx is not installed: apt-get install nginx-light")
        self.folder = scratch / "nginx"
        self.folder.mkdir()
        self.folder.chmod(0o755)
        (self.http_port,) = free_ports(1)
        blocks = [self._location(path, answer) for path, answer in answers.items()]
        config = self.folder / "nginx.conf"
        user = "user root;" if os.geteuid() == 0 else ""
        locations = "\n".join(blocks)
        config.write_text(CONFIG.format(user=user, folder=self.folder, port=self.http_port, locations=locations))
        self.process = subprocess.Popen(
            [binary, "-c", str(config), "-p", str(self.folder), "-e", str(self.folder / "start.log")],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def _location(self, path: str, answer: Answer) -> str:
        """Plain filler of the same length, so that wrk reads as many bytes from both peers."""
        kept = {key.title(): value for key, value in answer.headers.items()}
        kind = kept.get("Content-Type", "application/octet-stream")
        extra = "Inference-Header-Content-Length"
        header = f'add_header {extra} "{kept[extra]}";' if extra in kept else ""
        filler = "x" * len(answer.body)
        if len(filler) <= MAX_STRING:
            return f'    location = {path} {{ default_type {kind}; {header} return 200 "{filler}"; }}'
        name = f"{path.strip('/')}.bin"
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
                socket.create_connection(("127.0.0.1", self.http_port), timeout=1).close()
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
