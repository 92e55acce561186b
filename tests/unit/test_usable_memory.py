"""What the process may use: the machine's memory cut by the cgroup's limit, whatever of it can be read."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from triton_fast.observability.host import usable_memory

GIB = 1 << 30
MEMINFO = "MemTotal:       16777216 kB\nMemFree:         1000 kB\nMemAvailable:    8388608 kB\n"
V2 = "/sys/fs/cgroup/memory.max"
V1 = "/sys/fs/cgroup/memory/memory.limit_in_bytes"


def files(**texts: str) -> Callable[[str], str]:
    known = {"/proc/meminfo": texts.get("meminfo"), V2: texts.get("v2"), V1: texts.get("v1")}

    def read(path: str) -> str:
        text = known[path]
        if text is None:
            raise FileNotFoundError(path)
        return text

    return read


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ({"meminfo": MEMINFO}, 16 * GIB),
        ({"meminfo": MEMINFO, "v2": "max\n"}, 16 * GIB),
        ({"meminfo": MEMINFO, "v2": f"{4 * GIB}\n"}, 4 * GIB),
        ({"meminfo": MEMINFO, "v1": f"{2 * GIB}\n"}, 2 * GIB),
        ({"meminfo": MEMINFO, "v1": "9223372036854771712\n"}, 16 * GIB),
        ({"v2": f"{GIB}\n"}, GIB),
        ({"meminfo": "nothing of use\n"}, 0),
        ({}, 0),
    ],
)
def test_the_least_of_what_is_known(texts: dict[str, str], expected: int) -> None:
    assert usable_memory(files(**texts)) == expected


def test_this_machine_tells() -> None:
    assert usable_memory() > GIB // 4
