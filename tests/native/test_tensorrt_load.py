"""Opening plans: what is no plan, what needs another TensorRT, what TensorRT says, what is given back."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.helpers import trt_plans
from tests.helpers.models import counters_at_base  # noqa: F401
from tests.helpers.trt_models import StandIns, context, on_stand_ins
from tests.helpers.trt_plans import add_sub, spread, swap, write
from triton_fast._native.core import memory
from triton_fast._native.cuda import driver
from triton_fast._native.tensorrt.shapes import ShapeTable
from triton_fast.backends.tensorrt import TensorRtBackend, engine, files, library
from triton_fast.errors import Internal, InvalidArg, ServerError, Unavailable
from triton_fast.observability import log


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[StandIns]:
    with on_stand_ins(tmp_path) as opener:
        yield opener


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(log, "error", lambda text, **_: found.append(text))
    return found


def refusal(opened: StandIns, data: bytes, config: str = "", **settings: str) -> str:
    with pytest.raises(ServerError) as caught:
        opened(data, config, **settings)
    text = str(caught.value)
    assert str(opened.root) not in text
    return text


NO_PLANS = [
    (b"ftrt" + bytes(100), "Magic tag does not match"),
    (b"PK\x03\x04" + bytes(100), "it is a zip archive, such as PyTorch writes"),
    (b'<?xml version="1.0"?><net/>', "it is an XML file, such as OpenVINO's IR"),
    (b"\x08\x0a\x12\x07pytorch" + bytes(50), "it looks like an ONNX model: build a plan from it with trtexec"),
    (b"\x7fELF" + bytes(50), "it is a shared library or program"),
    (swap()[:-9], "plan is truncated"),
]


@pytest.mark.parametrize(("data", "cause"), NO_PLANS)
def test_what_is_no_plan(opened: StandIns, told: list[str], data: bytes, cause: str) -> None:
    text = refusal(opened, data)
    assert text.startswith("unable to create TensorRT engine: IRuntime::deserializeCudaEngine")
    assert cause in text
    assert all(line.startswith("TensorRT: ") for line in told)


def test_files_that_can_not_be_read(opened: StandIns) -> None:
    assert refusal(opened, b"") == "unable to load model 'm', 'm/1/model.plan' is empty"
    assert "Git LFS pointer" in refusal(opened, b"version https://git-lfs.github.com/spec/v1\n")
    (opened.root / "m/1/model.plan").unlink()
    with pytest.raises(Unavailable, match=r"unable to find 'm/1/model\.plan' for model instance 'm'"):
        context(opened.root / "m")


def test_a_plan_of_another_version(opened: StandIns) -> None:
    text = refusal(opened, swap(version="10.9.0"))
    assert "not compatible with this version of TensorRT, expecting library version" in text
    assert "got 10.9.0, please rebuild" in text
    # Plans that bring their own runtime are opened only where the operator trusts them.
    assert "please rebuild" in refusal(opened, swap(version="10.9.0", compatible=True))
    opened(swap(version="10.9.0", compatible=True), version_compatible="true")


def test_the_file_for_the_gpu(opened: StandIns) -> None:
    folder = write(opened.root, swap())
    (folder / "1/h100.plan").write_bytes(swap("INT32"))
    config = 'backend: "tensorrt"\ncc_model_filenames { key: "9.0" value: "h100.plan" }\n'
    assert opened(swap(), config).config.input[0].data_type == 8
    assert opened(swap(), config.replace("9.0", "8.6")).config.input[0].data_type == 11
    made = context(write(opened.root, swap(), 'backend: "tensorrt"\ndefault_model_filename: "h100.plan"\n'))
    assert files.plan_path(made, (9, 0)).name == "h100.plan"


def test_plugins(opened: StandIns, told: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    missing = str(tmp_path_factory.mktemp("of_the_operator") / "missing.so")
    opened(swap(), plugins=f"{trt_plans.kernels()};{missing}")  # one that is there, one that is not
    assert len(told) == 1
    assert told[0].startswith(f"unable to load plugin library: {missing}: ")
    text = refusal(opened, swap(plugin="Mine_TRT"), plugins=missing)
    assert "Cannot find plugin: Mine_TRT" in text
    assert text.endswith("; unable to load plugin library 'missing.so'"), "whoever loads a model sees no directory"
    assert len([line for line in told if line.startswith("unable to load plugin")]) == 1


def test_libraries_that_a_model_names_are_not_loaded(opened: StandIns, monkeypatch: pytest.MonkeyPatch) -> None:
    warned: list[str] = []
    monkeypatch.setattr(log, "warning", lambda text, **_: warned.append(text))
    opened(swap(), f'model_operations {{ op_library_filename: "{opened.root}/evil.so" }}\n')
    assert "plugins are named by --backend-config=tensorrt,plugins=" in warned[0]


def test_a_runtime_that_has_no_device(opened: StandIns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened.trt, "_device_is_current", lambda: False)
    with pytest.raises(Internal, match="unable to create TensorRT runtime: createInferRuntime: Error Code 6"):
        context(write(opened.root, swap()))
    gc.collect()
    assert opened.trt.crashes == []


def test_a_gpu_that_is_not_there(opened: StandIns) -> None:
    with pytest.raises(InvalidArg, match="invalid or unsupported gpu id 7"):
        opened(swap(), "instance_group [{ kind: KIND_GPU gpus: [7] }]\n")
    made = context(write(opened.root, swap()))
    made.config.instance_group[0].gpus[:] = [7]
    with pytest.raises(ServerError, match="there is no GPU 7"):
        TensorRtBackend().load(made)


# --- TensorRT itself -------------------------------------------------------------------------------------------------


@pytest.fixture
def importing(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """A list of what the imports of TensorRT give or raise, in order."""
    found: list[Any] = []

    def given(name: str) -> Any:
        answer = found.pop(0) if found else ModuleNotFoundError(f"No module named '{name}'", name=name)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    monkeypatch.setattr(library.importlib, "import_module", given)
    library.module.cache_clear()
    yield found
    library.module.cache_clear()


def test_without_tensorrt(importing: list[Any]) -> None:
    with pytest.raises(Unavailable) as caught:
        TensorRtBackend()
    assert str(caught.value) == "TensorRT is not installed: pip install 'triton_fast[tensorrt]'"


@pytest.mark.parametrize(
    "error",
    [OSError("libnvinfer.so.11: cannot open shared object file"), ModuleNotFoundError("no numpy", name="numpy")],
)
def test_with_a_broken_tensorrt(importing: list[Any], error: Exception) -> None:
    importing.append(error)
    with pytest.raises(Unavailable, match=r"TensorRT can not be used, .*: pip install"):
        TensorRtBackend()


def test_with_the_lean_runtime(importing: list[Any]) -> None:
    lean = ModuleType("tensorrt_lean")
    lean.__version__ = "11.4.0.106"
    importing += [ModuleNotFoundError("No module named 'tensorrt'", name="tensorrt"), lean]
    assert TensorRtBackend().version == "11.4.0.106"


def test_with_an_old_tensorrt(importing: list[Any]) -> None:
    importing.append(ModuleType("tensorrt"))
    importing[0].__version__ = "8.6.1"
    with pytest.raises(Unavailable, match=r"TensorRT 8\.6\.1 is too old, 10\.0 is needed"):
        TensorRtBackend()


def test_the_logger_keeps_errors_by_thread(opened: StandIns, told: list[str]) -> None:
    logger = library.make_logger("m")
    for level in opened.trt.ILogger.Severity:
        logger.log(level, f"{level.name} of\n this thread")
    logger.kept.append((1, "of another thread"))
    assert logger.complaints() == "INTERNAL_ERROR of this thread; ERROR of this thread"
    assert logger.complaints() == ""
    logger.kept.append((1, "of another thread"))
    assert logger.complaints() == "of another thread"
    assert len(told) == 2


# --- what is given back ----------------------------------------------------------------------------------------------


def test_all_is_given_back(opened: StandIns) -> None:
    made = opened(add_sub(memory=4096), "optimization { cuda { graphs: true } }\ninstance_group [{ count: 3 }]\n")
    for of in range(3):
        for _ in range(3):
            made.run({"A": np.ones((8, 4), np.float32), "B": np.ones((8, 4), np.float32)}, of=of)
    held = opened.cuda.held()
    assert (held["streams"], held["graphs"]) == (3, 3)
    made.model.close()
    opened.opened.clear()
    for instance in made.instances:
        instance.close()  # once more does nothing
    del made, instance
    gc.collect()
    held = opened.cuda.held()
    assert (held["streams"], held["graphs"]) == (0, 0)


@pytest.mark.parametrize(("is_exclusive", "engines"), [(False, 1), (True, 2)])
def test_each_is_given_back_on_its_own_gpu(opened: StandIns, is_exclusive: bool, engines: int) -> None:
    """Contexts, then their engine, then its runtime; whatever GPU the thread that unloads was at work on."""
    made = opened(swap(exclusive=is_exclusive), "instance_group [{ count: 2 }]\n", gpus=(0, 1))
    opened.opened.clear()
    gc.collect()
    del opened.trt.freed[:]
    driver.enter(0)
    made.model.close()
    assert {(on, current) for _, on, current in opened.trt.freed} == {(0, 0), (1, 1)}
    for device in (0, 1):
        freed = [what for what, on, _ in opened.trt.freed if on == device]
        assert freed == ["context"] * 2 + ["engine", "runtime"] * engines


def test_an_instance_that_can_not_be_made_leaves_nothing(opened: StandIns) -> None:
    blocks = memory.stats()["live_blocks"]
    for function in ("cuStreamCreate", "cuMemAlloc_v2", "cuMemsetD8Async"):
        opened.cuda.fail(function, 700)
        with pytest.raises(ServerError):
            opened(spread())
        gc.collect()
        assert (opened.cuda.held()["streams"], memory.stats()["live_blocks"]) == (0, blocks), function
    opened(spread())


def test_contexts_share_an_engine(opened: StandIns, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    real = engine.Engine.__init__

    def counted(self: Any, *arguments: Any) -> None:
        made.append(1)
        real(self, *arguments)

    monkeypatch.setattr(engine.Engine, "__init__", counted)
    opened(swap(), "instance_group [{ count: 4 }]\n", gpus=(0, 1))
    assert len(made) == 3  # one to complete the config, one for each device


# --- which profile ---------------------------------------------------------------------------------------------------


def test_the_nearest_profile_is_taken() -> None:
    table = ShapeTable(2, [((1, 1), (2, 2), (8, 8)), ((1, 1), (6, 6), (8, 8)), ((9, 1), (9, 1), (9, 1))])
    assert table.seek((1, 3)) == (0, 1)
    assert table.seek((7, 5)) == (1, 2)
    assert table.seek((9, 1)) == (2, 3)
    assert table.seek((1, 3)) == (0, 1)
    assert table.seek((9, 2)) is None
    assert table.seek((0, 1)) is None


def test_places_of_the_table_are_used_again() -> None:
    table = ShapeTable(1, [((0,), (0,), (10_000,))])
    first = [table.seek((i,)) for i in range(256)]
    assert [found[1] for found in first if found] == list(range(1, 257))
    assert table.seek((300,)) == (0, 257)  # in the place of the first
    assert table.seek((1,)) == (0, 2)
    assert table.seek((0,)) == (0, 258)
    with pytest.raises(InvalidArg):
        table.seek((1, 2))
