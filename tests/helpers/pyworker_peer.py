"""The server's side of a worker's region in plain Python (struct, mmap): the oracle for docs/python_worker.md.

Knows the wire from that page alone, and nothing of the native code on either side.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import Any

RINGS_AT, RING_BYTES, SLOTS_AT, SLOTS = 0x1000, 0x21000, 0x1000, 4096
CANCEL_AT, HOLD_AT, CONTROL = 0x90000, 0xD0000, 0x110000
WORK, ANSWERS, DONE, EVENTS = range(4)
MESSAGE, TENSOR = struct.Struct("<IIQQQ"), struct.Struct("<HHiQQ")
REQUEST, RESPONSE = struct.Struct("<IIIIQQQIIIIII"), struct.Struct("<IIIIiIIIII")
BLS = struct.Struct("<IIIIQQqIIIIIIII")


def pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


def strings(*texts: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


class Peer:
    """A region with its rings; ``worker_fds`` are what a worker is started with. Use as a context manager."""

    def __init__(self, in_bytes: int = 1 << 20, out_bytes: int = 1 << 20) -> None:
        self.in_off, self.out_off = CONTROL, CONTROL + in_bytes
        self.in_bytes, self.out_bytes = in_bytes, out_bytes
        self.size = CONTROL + in_bytes + out_bytes
        self.fd = os.memfd_create("peer")
        os.ftruncate(self.fd, self.size)
        self.map(self.fd)
        struct.pack_into("<IIQQQQQ", self.memory, 0, 0x31574654, 1, self.size, self.in_off, in_bytes, self.out_off,
                         out_bytes)
        self.fds = [os.eventfd(0) for _ in range(4)]
        self.bump = self.in_off
        self.taken = [0] * 4

    @property
    def worker_fds(self) -> tuple[int, ...]:
        return (self.fd, *self.fds)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.unmap()
        for fd in self.worker_fds:
            os.close(fd)

    def map(self, fd: int) -> None:
        self.memory = mmap.mmap(fd, self.size)
        self.words, self.quads = memoryview(self.memory).cast("I"), memoryview(self.memory).cast("Q")

    def unmap(self) -> None:
        self.words.release()
        self.quads.release()
        self.memory.close()

    # ---- words: each put is one store, for the other side looks at any moment ----

    def u32(self, off: int) -> int:
        return struct.unpack_from("<I", self.memory, off)[0]

    def u64(self, off: int) -> int:
        return struct.unpack_from("<Q", self.memory, off)[0]

    def put32(self, off: int, value: int) -> None:
        self.words[off >> 2] = value

    def put64(self, off: int, value: int) -> None:
        self.quads[off >> 3] = value

    def in_use(self, off: int) -> int:
        """The word before the data at off."""
        return self.u32(off - 64)

    def release(self, off: int) -> None:
        self.put32(off - 64, 0)

    # ---- rings ----

    def ring(self, k: int) -> int:
        return RINGS_AT + k * RING_BYTES

    def publish(self, k: int, kind: int, number: int, off: int = 0, size: int = 0, *, arg: int = 0) -> None:
        ring = self.ring(k)
        head = self.u64(ring)
        assert head - self.u64(ring + 64) < SLOTS
        MESSAGE.pack_into(self.memory, ring + SLOTS_AT + head % SLOTS * 32, kind, number, off, size, arg)
        self.put64(ring, head + 1)
        if self.u32(ring + 128):
            os.eventfd_write(self.fds[k], 1)

    def take(self, k: int) -> tuple[int, ...] | None:
        ring = self.ring(k)
        if self.u64(ring) == self.taken[k]:
            return None
        message = MESSAGE.unpack_from(self.memory, ring + SLOTS_AT + self.taken[k] % SLOTS * 32)
        self.taken[k] += 1
        self.put64(ring + 64, self.taken[k])
        return message

    # ---- inbound ----

    def inbound(self, data: bytes) -> int:
        off = self.bump + 64
        self.bump = off + (len(data) + 63) // 64 * 64
        assert self.bump <= self.in_off + self.in_bytes
        struct.pack_into("<IIQ", self.memory, off - 64, 1, 0, self.bump - off)
        self.memory[off : off + len(data)] = data
        return off

    def place(self, parts: list[Any]) -> tuple[int, int]:
        """Records (bytes) and, as (tensor record, data), tensors whose offsets are filled in here. Offset and bytes."""
        records = b"".join(part if isinstance(part, bytes) else part[0] for part in parts)
        first = (len(records) + 63) // 64 * 64
        off = self.bump + 64
        filled, data = b"", b""
        for part in parts:
            if isinstance(part, bytes):
                filled += part
                continue
            record, tensor = part
            filled += record[:8] + struct.pack("<Q", off + first + len(data)) + record[16:]
            data += tensor + bytes(-len(tensor) % 64)
        assert self.inbound(filled.ljust(first, b"\0") + data) == off
        return off, first + len(data)

    @staticmethod
    def tensor(name: int | str, dtype: int, dims: tuple[int, ...], data: bytes) -> tuple[bytes, bytes]:
        text = name.encode() if isinstance(name, str) else b""
        number = -1 - len(text) if isinstance(name, str) else name
        head = TENSOR.pack(dtype, len(dims), number, 0, len(data))
        return head + struct.pack(f"<{len(dims)}q", *dims) + pad(text), data

    def request(self, inputs, *, slot=0, generation=1, flags=0, correlation: int | str = 0, timeout=0, wanted=(0,),
                request_id=b"", params=b"", trace=b"") -> list[Any]:
        tensors = [self.tensor(*tensor) for tensor in inputs]
        text = correlation.encode() if isinstance(correlation, str) else b""
        tail = pad(struct.pack(f"<{len(wanted)}i", *wanted)) + pad(request_id) + pad(text) + pad(params) + pad(trace)
        total = REQUEST.size + sum(len(record) for record, _ in tensors) + len(tail)
        number = 0 if isinstance(correlation, str) else correlation
        head = REQUEST.pack(total, slot, generation, flags, number, timeout, 0, len(request_id), len(text), len(params),
                            len(trace), len(tensors), len(wanted))
        return [head, *tensors, tail]

    def execution(self, *requests: list[Any]) -> tuple[int, int]:
        return self.place([struct.pack("<II", len(requests), 0), *(part for request in requests for part in request)])

    def answer(self, outputs, *, kind=0, code=-1, error=b"", params=b"", flags=1) -> tuple[int, int]:
        tensors = [self.tensor(*tensor) for tensor in outputs]
        tail = pad(error) + pad(params)
        total = RESPONSE.size + sum(len(record) for record, _ in tensors) + len(tail)
        head = RESPONSE.pack(total, kind, 0, 0, code, len(error), len(params), len(tensors), flags, 0)
        return self.place([head, *tensors, tail])

    # ---- outbound ----

    def tensors(self, at: int, count: int) -> tuple[list[tuple[Any, ...]], int]:
        """(name, dtype, dims, data, offset) of each tensor record from ``at``, and where they end."""
        found = []
        for _ in range(count):
            dtype, ndim, name, off, nbytes = TENSOR.unpack_from(self.memory, at)
            dims = struct.unpack_from(f"<{ndim}q", self.memory, at + 24)
            at += 24 + 8 * ndim
            label: int | str = name
            if name < 0:
                label = self.memory[at : at - 1 - name].decode()
                at += (-1 - name + 7) // 8 * 8
            heap = (self.out_off, self.out_bytes) if off >= self.out_off or not nbytes else (self.in_off, self.in_bytes)
            assert not nbytes or heap[0] + 64 <= off <= off + nbytes <= sum(heap)
            found.append((label, dtype, dims, self.memory[off : off + nbytes], off))
        return found, at

    def params(self, at: int, size: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if not size:
            return found
        end, count = at + size, self.u32(at)
        at += 8
        for _ in range(count):
            kind, key_bytes, value = struct.unpack_from("<IIq", self.memory, at)
            at += 16
            key = self.memory[at : at + key_bytes].decode()
            at += (key_bytes + 7) // 8 * 8
            if kind == 0:
                found[key] = self.memory[at : at + value].decode()
                at += (value + 7) // 8 * 8
            else:
                found[key] = bool(value) if kind == 2 else value
        assert at == end
        return found

    def response(self, at: int) -> tuple[dict[str, Any], int]:
        total, kind, slot, generation, code, error, params, outputs, flags, _ = RESPONSE.unpack_from(self.memory, at)
        tensors, here = self.tensors(at + RESPONSE.size, outputs)
        text = self.memory[here : here + error].decode()
        here += (error + 7) // 8 * 8
        found = {"kind": kind, "slot": slot, "generation": generation, "code": code, "error": text, "flags": flags,
                 "outputs": tensors, "params": self.params(here, params)}
        assert here + params == at + total
        return found, at + total

    def done(self, off: int) -> list[dict[str, Any]] | tuple[int, str]:
        count, code, error, _ = struct.unpack_from("<IiII", self.memory, off)
        if code != -1:
            assert count == 0
            return code, self.memory[off + 16 : off + 16 + error].decode()
        at, found = off + 16, []
        for _ in range(count):
            record, at = self.response(at)
            found.append(record)
        return found

    def bls(self, off: int) -> dict[str, Any]:
        (total, options, flags, inputs, correlation, timeout, version, wanted, model, request_id, text, params, trace,
         slot, generation) = BLS.unpack_from(self.memory, off)
        tensors, at = self.tensors(off + BLS.size, inputs)
        names = []
        for _ in range(wanted):
            size = self.u32(at)
            names.append(self.memory[at + 4 : at + 4 + size].decode())
            at += (4 + size + 7) // 8 * 8
        texts = []
        for size in (model, request_id, text):
            texts.append(self.memory[at : at + size].decode())
            at += (size + 7) // 8 * 8
        found = {"options": options, "flags": flags, "correlation": texts[2] or correlation, "timeout": timeout,
                 "version": version, "model": texts[0], "id": texts[1], "inputs": tensors, "wanted": names,
                 "params": self.params(at, params), "parent": (slot, generation)}
        at += (params + 7) // 8 * 8
        found["trace"] = self.memory[at : at + trace].decode()
        assert at + (trace + 7) // 8 * 8 == off + total
        return found
