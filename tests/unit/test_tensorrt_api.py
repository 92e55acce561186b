"""The stand-in for TensorRT against the real package, where one is installed: names, arguments, enumerations.

``tensorrt`` or its lean runtime: both have the API that runs plans, and are imported without a GPU.
"""

from __future__ import annotations

import enum
import importlib
import importlib.util
import inspect
import re
from types import ModuleType

import pytest

from tests.helpers import standin_cuda, trt_plans
from triton_fast.backends.tensorrt import rooms

CANDIDATES = ("tensorrt", "tensorrt_lean", "tensorrt_lean_bindings", "tensorrt_dispatch_bindings")
CLASSES = ("ICudaEngine", "IExecutionContext", "Runtime", "ILogger", "IOutputAllocator", "Dims")
ENUMS = ("DataType", "TensorIOMode", "TensorLocation", "ExecutionContextAllocationStrategy")


def real() -> ModuleType | None:
    name = next((one for one in CANDIDATES if importlib.util.find_spec(one) is not None), None)
    return importlib.import_module(name) if name else None


REAL = real()
pytestmark = pytest.mark.skipif(
    REAL is None, reason="no TensorRT: pip install tensorrt, or tensorrt-lean-cu13-bindings"
)


def methods(of: type) -> list[str]:
    return [name for name, value in vars(of).items() if callable(value) and not name.startswith("_")]


@pytest.mark.parametrize("name", CLASSES)
def test_classes_have_what_the_stand_in_has(name: str) -> None:
    fake, given = getattr(trt_plans.module(), name), getattr(REAL, name)
    missing = [one for one in vars(fake) if not one.startswith("_") and not hasattr(given, one)]
    assert missing == []


@pytest.mark.parametrize("name", CLASSES)
def test_methods_take_the_same_arguments(name: str) -> None:
    fake, given = getattr(trt_plans.module(), name), getattr(REAL, name)
    for method in methods(fake):
        if inspect.isclass(getattr(fake, method)):
            continue
        mine = list(inspect.signature(getattr(fake, method)).parameters)
        text = getattr(given, method).__doc__
        # Each overload's line: method(self: Class, argument: type, ...) -> type
        lines = re.findall(rf"\b{method}\((self: [^\n]*)\) ->", text)
        found = [[part.partition(":")[0].strip() for part in split(line)] for line in lines]
        assert any(one[: len(mine)] == mine for one in found), f"{name}.{method}: {mine} is none of {found}"


def split(arguments: str) -> list[str]:
    """Cut at the commas outside of brackets."""
    parts, depth = [""], 0
    for character in arguments:
        depth += (character in "[(<") - (character in "])>")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return parts


@pytest.mark.parametrize("name", ENUMS)
def test_enumerations(name: str) -> None:
    fake, given = getattr(trt_plans.module(), name), getattr(REAL, name)
    assert issubclass(fake, enum.Enum)
    for member in fake:
        assert getattr(given, member.name).name == member.name


def test_severities_and_limits() -> None:
    fake = trt_plans.module()
    assert REAL is not None
    for severity in fake.ILogger.Severity:
        assert getattr(REAL.ILogger, severity.name).name == severity.name
    assert REAL.Dims.MAX_DIMS == fake.Dims.MAX_DIMS
    assert tuple(REAL.Dims([2, -1, 3])) == (2, -1, 3)


def test_what_the_backend_derives_from_can_be_derived_from() -> None:
    assert REAL is not None
    said: list[str] = []

    class Logger(REAL.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()

        def log(self, level: object, message: str) -> None:
            said.append(message)

    class Room(REAL.IOutputAllocator):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()

    Logger().log(REAL.ILogger.ERROR, "heard")
    assert said == ["heard"]
    assert Room() is not None


def test_output_allocators_are_called_as_ours_expects() -> None:
    assert REAL is not None
    with standin_cuda.opened(), trt_plans.installed():
        ours = rooms._room_class()
        for method in ("reallocate_output", "reallocate_output_async", "notify_shape"):
            names = ", ".join(inspect.signature(getattr(ours, method)).parameters)
            assert f"def {method}({names})" in str(REAL.IOutputAllocator.__doc__)
