"""The worker's parts on their own: heap, gate, serialized BYTES."""

from __future__ import annotations

import importlib
import mmap
import os
import random
import struct
import sys
import threading

import numpy as np
import pytest

from tests.helpers.worker_peer import START, serialize

SIZE = 1 << 20
OUT = 0x110000


@pytest.fixture
def part(monkeypatch):
    """Imports a module of the worker as its own interpreter does."""
    monkeypatch.syspath_prepend(str(START.parent))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return lambda name: importlib.import_module(f"triton_fast_worker.{name}")


@pytest.fixture
def heap(part):
    fd = os.memfd_create("heap")
    os.ftruncate(fd, OUT + SIZE)
    with mmap.mmap(fd, OUT + SIZE) as header:
        struct.pack_into("<IIQQQQQ", header, 0, 0x31574654, 1, OUT + SIZE, OUT, 0, OUT, SIZE)
    region = part("region").Region(fd)
    os.close(fd)
    return part("heap").Heap(region)


def free(heap, off):
    heap._region.words[(off - 64) // 4] = 0


def test_size_classes_waste_little(part):
    size_class = part("heap").size_class
    for nbytes in (*range(1, 9000, 7), 65535, 65536, 1 << 20, (1 << 20) + 1, 12345678):
        size = size_class(nbytes)
        assert size >= nbytes + 64
        assert size % 64 == 0
        assert size == 4096 or size <= (nbytes + 64) * 1.25 + 1024
        assert size_class(size - 64) == size


def test_blocks_do_not_overlap_and_come_back(heap):
    chance, live = random.Random(7), {}
    for _ in range(5000):
        if live and chance.random() < 0.52:
            free(heap, live.pop(chance.choice(list(live)))[0])
        elif len(live) < 20:
            nbytes = chance.choice((10, 5000, 20000))
            off = heap.allocate(nbytes)
            assert off > OUT
            assert off + nbytes <= OUT + SIZE
            assert off % 64 == 0
            assert all(off + nbytes <= start or off >= start + its for start, its in live.values())
            live[len(live) + chance.random()] = (off, nbytes)
    for off, _ in live.values():
        free(heap, off)
    heap.sweep()
    assert heap.outstanding() == 0
    assert heap.allocate(SIZE - 70000) == OUT + 64


def test_exhaustion_says_so_and_passes(heap, part):
    taken = [heap.allocate(200000) for _ in range(4)]
    with pytest.raises(part("errors").TritonModelException, match=r"^Failed to increase the shared memory pool size"):
        heap.allocate(400000)
    free(heap, taken[1])
    assert heap.allocate(200000) == taken[1]
    for off in taken:
        free(heap, off)
    assert heap.allocate(400000) == OUT + 64


def test_trim_punches_what_is_free(heap):
    first, second = heap.allocate(100000), heap.allocate(100000)
    memory = heap._region.map
    for off in (first, second):
        memory[off : off + 100000] = b"x" * 100000
    free(heap, second)
    heap.trim(0)
    assert memory[first : first + 100000] == b"x" * 100000
    assert b"x" not in memory[second + 4096 : second + 90000]


def test_gate_does_what_finalizers_noted(part):
    gate = part("gate").Gate()
    done = []
    gate.later(done.append, 1)
    with gate:
        gate.later(done.append, 2)
        assert done == [1]
    assert done == [1, 2]


def test_gate_loses_nothing_between_threads(part):
    gate, done = part("gate").Gate(), []

    def work():
        for i in range(2000):
            gate.later(done.append, i)
            with gate:
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == sorted(list(range(2000)) * 4)


@pytest.mark.parametrize("items", [[], [b""], [b"", b""], [b"ab"] * 100, [b"\0" * 300, b"x"], [b"a\0", b"b\0"]])
def test_bytes_both_ways(part, items):
    module = part("byte_tensors")
    array = np.empty(len(items), object)
    array[:] = items
    assert module.encode_bytes(array) == serialize(items)
    for count in (0, len(items)):
        decoded = module.decode_bytes(np.frombuffer(serialize(items), np.uint8), count)
        assert decoded.tolist() == items
        assert decoded.shape == (len(items),)


def test_what_is_not_bytes_is_printed(part):
    array = np.array([["é", 1], [None, b"\xff"]], object)
    assert part("byte_tensors").encode_bytes(array) == serialize(["é".encode(), b"1", b"None", b"\xff"])


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\1", "incomplete length field"),
        (b"\1\0\0\0", "string extends beyond buffer"),
        (b"\1\0\0\0a\1\0", "incomplete length field"),
        (b"\1\0\0\0a\2\0\0\0b", "string extends beyond buffer"),
        (b"\xff\xff\xff\xffab", "string extends beyond buffer"),
    ],
)
def test_broken_bytes(part, data, text):
    with pytest.raises(part("errors").TritonModelException, match=f"^Invalid bytes tensor data: {text}$"):
        part("byte_tensors").decode_bytes(data, 2)
