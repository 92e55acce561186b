"""Any TensorRT runtime on a GPU, also the lean one, which builds no engines: what is no plan is refused with its words.

Skipped where there is no runtime.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from triton_fast._native.cuda import driver
from triton_fast.backends.tensorrt import library
from triton_fast.backends.tensorrt.engine import open_engine
from triton_fast.backends.tensorrt.plan import RunPlan
from triton_fast.errors import Internal, Unavailable


def missing() -> str:
    try:
        library.module()
    except Unavailable as error:
        return str(error)
    return ""


pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "nothing is missing")


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    gc.collect()  # runtimes end here, and not in another test


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        (b"garbage" * 1000, ""),
        (b"ftrt" + bytes(4096), ""),
        (b"PK\x03\x04" + bytes(4096), "it is a zip archive"),
    ],
)
@pytest.mark.parametrize("trusted", [False, True])
def test_what_is_no_plan(data: bytes, hint: str, trusted: bool) -> None:
    driver.open_driver()
    with pytest.raises(Internal) as caught:
        open_engine("m", data, 0, -1, RunPlan(version_compatible=trusted))
    text = str(caught.value)
    assert text.startswith("unable to create TensorRT engine: ")
    assert len(text) > len("unable to create TensorRT engine: ") + 10
    assert hint in text
