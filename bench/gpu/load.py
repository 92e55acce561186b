"""Many connections that send one request again and again, from processes of their own: for machines without wrk.

``run`` starts the processes: ``python -m bench.gpu.load`` with its part as JSON on the command line. Knows bytes only.
"""

from __future__ import annotations

import json
import selectors
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROCESSES = 4


def run(address: tuple[str, int], request: Path, connections: int, seconds: float, warm: float) -> dict[str, float]:
    """Requests answered in ``seconds`` after ``warm`` seconds, and how many were not answered with status 200."""
    processes = min(PROCESSES, connections)
    begin = time.time() + 0.5 + warm
    parts = []
    for number in range(processes):
        mine = connections // processes + (number < connections % processes)
        part = {"address": address, "request": str(request), "connections": mine, "begin": begin, "seconds": seconds}
        argv = [sys.executable, "-m", "bench.gpu.load", json.dumps(part)]
        parts.append(subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True))
    total = {"requests": 0.0, "errors": 0.0, "seconds": seconds}
    for part_ in parts:
        out, _ = part_.communicate(timeout=seconds + warm + 60)
        found = json.loads(out)
        for key in ("requests", "errors"):
            total[key] += found[key]
    return total


class Connection:
    def __init__(self, address: tuple[str, int], request: bytes) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.request = request
        self.left = -1  # bytes of the answer that are still to come; -1: its head is
        self.head = b""
        self.good = False

    def send(self) -> None:
        self.left, self.head = -1, b""
        self.socket.sendall(self.request)

    def receive(self) -> bool:
        """Whether the answer is whole."""
        data = self.socket.recv(1 << 20)
        if not data:
            raise ConnectionError("the server has closed the connection")
        if self.left >= 0:
            self.left -= len(data)
            return self.left == 0
        self.head += data
        end = self.head.find(b"\r\n\r\n")
        if end < 0:
            return False
        top = self.head[:end].lower()
        at = top.index(b"\r\ncontent-length:") + 17
        self.good = top.startswith(b"http/1.1 200")
        self.left = int(top[at:].split(b"\r\n", 1)[0]) - (len(self.head) - end - 4)
        return self.left == 0


def work(address: tuple[str, int], request: str, connections: int, begin: float, seconds: float) -> dict[str, int]:
    data = Path(request).read_bytes()
    poll = selectors.DefaultSelector()
    for _ in range(connections):
        made = Connection(address, data)
        poll.register(made.socket, selectors.EVENT_READ, made)
        made.send()
    done = errors = 0
    while (now := time.time()) < begin + seconds:
        for key, _ in poll.select(timeout=0.2):
            if key.data.receive():
                if now >= begin:
                    done += 1
                    errors += not key.data.good
                key.data.send()
    return {"requests": done, "errors": errors}


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    given["address"] = tuple(given["address"])
    print(json.dumps(work(**given)))
