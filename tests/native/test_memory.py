"""The block pool: size classes, reuse, budget, trim, counters, and many threads at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from triton_fast._native.core import memory, request, validate
from triton_fast._native.core import model as model_structs
from triton_fast.types import DataType

KIB = 1 << 10
MIB = 1 << 20


@pytest.fixture(autouse=True)
def empty_pool() -> Iterator[None]:
    memory.trim(0)
    before = memory.stats()
    assert before["cached_bytes"] == 0
    yield
    memory.set_keep_bytes(256 * MIB)
    memory.trim(0)
    assert memory.stats() == before


def expected_class(n: int) -> int:
    """The least of 2^k and 1.5 * 2^k from 512 that holds n."""
    sizes = sorted(base for k in range(9, 27) for base in (1 << k, (1 << k) + (1 << (k - 1))))
    return next(size for size in sizes if size >= n)


@pytest.mark.parametrize("k", range(9, 26))
def test_a_size_gets_the_least_class_that_holds_it(k: int) -> None:
    sizes = [(1 << k) + d for d in (-1, 0, 1)] + [(3 << (k - 1)) + d for d in (-1, 0, 1)]
    assert memory._self_test(sizes) == [expected_class(n) for n in sizes]


def test_smallest_and_largest_class() -> None:
    assert memory._self_test([0, 1, 512, 64 * MIB]) == [512, 512, 512, 64 * MIB]


def test_blocks_past_the_largest_class_are_exact_and_not_cached() -> None:
    assert memory._self_test([64 * MIB + 1]) == [64 * MIB + 1]
    assert memory.stats()["cached_bytes"] == 0


def test_absurd_sizes_are_refused() -> None:
    assert memory._self_test([(1 << 46) + 1, 1 << 62, (1 << 64) - 1]) == [None, None, None]


def test_a_freed_block_is_cached_and_used_again() -> None:
    memory._self_test([1000])
    assert memory.stats()["cached_bytes"] == 1024
    memory._self_test([1024])
    assert memory.stats()["cached_bytes"] == 1024, "the second block must be the first one again"
    memory._self_test([1000, 1000])
    assert memory.stats()["cached_bytes"] == 2048


def test_the_budget_bounds_what_is_cached() -> None:
    memory.set_keep_bytes(4 * KIB)
    memory._self_test([1024] * 10)
    assert memory.stats()["cached_bytes"] == 4 * KIB
    memory.set_keep_bytes(0)
    memory.trim(0)
    memory._self_test([1024] * 10)
    assert memory.stats()["cached_bytes"] == 0


def test_a_negative_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="must be >= 0, got -1"):
        memory.set_keep_bytes(-1)


def test_trim_gives_back_the_largest_first() -> None:
    memory._self_test([512, 4096, MIB])
    memory.trim(512 + 4096)
    assert memory.stats()["cached_bytes"] == 512 + 4096
    memory.trim(512)
    assert memory.stats()["cached_bytes"] == 512
    memory.trim(10 * MIB)
    assert memory.stats()["cached_bytes"] == 512


class Io:
    name, dtype, dims, reshape, optional, ragged = "S", DataType.STRING, (1,), None, False, False


def test_threads_share_the_pool() -> None:
    """A raw BYTES input takes a block without the GIL, so the threads really meet in the lists."""
    model = model_structs.ModelHandle("m", 1, 0, [Io()], [])
    base = memory.stats(), request.stats()
    texts = [bytes([65 + k]) * size for k, size in enumerate((0, 500, 511, 700, 5000, 5000, 70000, 70000))]
    wrong: list[object] = []
    gate = threading.Barrier(len(texts))

    def work(text: bytes) -> None:
        gate.wait()
        for _ in range(300):
            if validate.check_raw(model, text)["data"][4:] != text:
                wrong.append(text[:1])

    threads = [threading.Thread(target=work, args=(text,)) for text in texts]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    memory.trim(0)
    assert (memory.stats(), request.stats()) == base
