"""What a streamed event of /generate_stream costs the event loop: processor time of its thread, for each event.

``python -m bench.server.generate [--streams N] [--events N] [--delay MS]`` runs the repeat backend, one instance for
each stream, and reads everything from one thread without parsing it. Knows nothing of the other benchmarks.
"""

from __future__ import annotations

import argparse
import json
import selectors
import socket
import tempfile
import time
from pathlib import Path

from tests.helpers.raw import post
from tests.helpers.server import ServerProcess, with_repeat

END = b"\r\n0\r\n\r\n"
NS_PER_US = 1000


def loop_ns(pid: int) -> int:
    """Processor time of the main thread, which runs the loop."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0])


def read_all(address: tuple[str, int], request: bytes, streams: int) -> int:
    """Ask on ``streams`` connections at once and return how many events came."""
    events = 0
    tails: dict[socket.socket, bytes] = {}
    with selectors.DefaultSelector() as selector:
        for _ in range(streams):
            sock = socket.create_connection(address)
            selector.register(sock, selectors.EVENT_READ)
            tails[sock] = b""
        for sock in tails:
            sock.sendall(request)
        while tails:
            for key, _ in selector.select():
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                data = sock.recv(1 << 16)
                assert data, "the server closed a stream"
                # An event that was cut is counted with its second part.
                whole = tails[sock] + data
                events += whole.count(b"data: ") - tails[sock].count(b"data: ")
                tails[sock] = whole[-16:]
                if whole.endswith(END):
                    selector.unregister(sock)
                    del tails[sock]
                    sock.close()
    return events


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--events", type=int, default=500)
    parser.add_argument("--delay", type=int, default=5, help="ms between two events of a stream")
    given = parser.parse_args()
    body = {"IN": [1] * given.events, "DELAY": [given.delay] * given.events, "WAIT": 0}
    request = post("/v2/models/repeat/generate_stream", json.dumps(body).encode())
    with tempfile.TemporaryDirectory() as folder:
        root = with_repeat(Path(folder))
        config = root / "repeat" / "config.pbtxt"
        config.write_text(config.read_text() + f"instance_group [{{ count: {given.streams} kind: KIND_CPU }}]\n")
        with ServerProcess(root) as server:
            read_all(server.http, request, given.streams)
            before, began = loop_ns(server.process.pid), time.monotonic()
            events = read_all(server.http, request, given.streams)
            used, took = loop_ns(server.process.pid) - before, time.monotonic() - began
    assert events == given.streams * given.events, f"{events} events of {given.streams * given.events}"
    print(
        f"{given.streams} streams, {events} events in {took:.2f} s ({events / took:.0f}/s): "
        f"{used / events / NS_PER_US:.2f} us of the loop's thread an event"
    )


if __name__ == "__main__":
    main()
