"""Forests on GPUs: the backend over stand-ins of nvforest, cupy and the driver. Results are those of the CPU.

The stand-ins' signatures were compared with the sources in the wheel nvforest_cu12-26.10.0, see helpers/nvforests.py.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

treelite = pytest.importorskip("treelite", reason="needs treelite: pip install 'triton_fast[fil]'")

from sklearn import datasets, ensemble  # noqa: E402

from tests.helpers import nvforests, standin_cuda, xgboost_files  # noqa: E402
from tests.helpers.models import counters_at_base  # noqa: E402
from tests.native.test_fil import io, parameters, saved, write  # noqa: E402
from triton_fast import config as configs  # noqa: E402
from triton_fast._native.core.model import ModelHandle  # noqa: E402
from triton_fast._native.cuda import device_pool, driver, pinned  # noqa: E402
from triton_fast._native.cuda.device_pool import DeviceMemory  # noqa: E402
from triton_fast._native.ort import drive  # noqa: E402
from triton_fast.backends.base import InstanceSpec, LoadContext  # noqa: E402
from triton_fast.backends.fil import FilBackend, gpu_library  # noqa: E402
from triton_fast.backends.fil.backend import FilModel  # noqa: E402
from triton_fast.backends.host import Host  # noqa: E402
from triton_fast.config import io_specs  # noqa: E402
from triton_fast.errors import Internal, InvalidArg, ServerError, Unavailable  # noqa: E402
from triton_fast.types import DataType  # noqa: E402

__all__ = ["counters_at_base"]

Array = np.ndarray[Any, Any]
IRIS = datasets.load_iris(return_X_y=True)
CANCER = datasets.load_breast_cancer(return_X_y=True)
DIABETES = datasets.load_diabetes(return_X_y=True)
ON_GPU = "instance_group { kind: KIND_GPU }\n"


@pytest.fixture
def fake() -> Iterator[standin_cuda.StandIn]:
    with standin_cuda.opened() as made:
        yield made
        gc.collect()


@pytest.fixture
def forests(fake: standin_cuda.StandIn) -> Iterator[ModuleType]:
    with nvforests.installed() as made:
        yield made
        made.opened.clear()  # while there is a device


@dataclass
class Opened:
    model: FilModel
    handle: ModelHandle
    instance: Any
    config: Any
    lost: list[str]

    def run(self, *requests: Any, **options: Any) -> list[Any]:
        """Execute one batch; a request is an array, or (GPU, address, rows, features)."""
        made = [{"input__0": _tensor(one)} for one in requests]
        answers = drive.run_batch(self.instance, self.handle, made, **options)
        return [one if isinstance(one, Exception) else _array(one["output__0"]) for one in answers]

    def close(self) -> None:
        self.model.close()


def _tensor(given: Any) -> Any:
    if isinstance(given, tuple):
        gpu, address, rows, features = given
        return DataType.FP32, (rows, features), (gpu, address, rows * features * 4)
    return DataType.FP32, given.shape, np.ascontiguousarray(given, np.float32).tobytes()


def _array(output: Any) -> Array:
    dtype, shape, data, _ = output
    assert dtype == DataType.FP32
    return np.frombuffer(data, np.float32).reshape(shape)


def use(device: int) -> None:
    """As the server does: copies to and from pinned memory are not waited for by themselves."""
    driver.enter(device)
    pinned.start(device, 16 << 20)


def opened(model_dir: Path, *, kind: str = "KIND_GPU", device: int = 0, threads: int = 1) -> Opened:
    """Open what is in a model's directory as the repository does, with one instance."""
    parsed = configs.read_model_config(model_dir, strict=False)
    config, lost = parsed.config, []
    host = Host(gpus=(0, 1), use_gpu=use, changed=lambda: lost.append("changed"))
    context = LoadContext("m", 1, model_dir, model_dir / "1", config, {}, threads, given=parsed.given, host=host)
    FilBackend().complete_config(context)
    configs.normalize(config, cpu_count=2, gpus=(0, 1) if kind == "KIND_GPU" else ())
    configs.validate(config, model_dir, gpus=(0, 1))
    model = FilBackend().load(replace(context, config=config))
    assert isinstance(model, FilModel)
    inputs, outputs = io_specs(config)
    handle = ModelHandle("m", 1, config.max_batch_size, inputs, outputs)
    try:
        instance = model.create_instance(InstanceSpec("m_0", kind, device))
    except ServerError:
        model.close()
        raise
    return Opened(model, handle, instance, config, lost)


def both(tmp_path: Path, fill: Any, rows: Array, name: str = "checkpoint.tl", config: str = "") -> Array:
    """Answers of the CPU and of the GPU are the same, in one request and in many of a batch; returns them."""
    folder = write(tmp_path, fill, name, config)
    found: list[Array] = []
    for kind in ("KIND_CPU", "KIND_GPU"):
        one = opened(folder, kind=kind)
        (whole,) = one.run(rows)
        several = one.run(rows[:1], rows[1:5], rows[5:8])
        np.testing.assert_array_equal(np.concatenate(several), whole[:8])
        found.append(whole)
        one.close()
    assert found[0].shape == found[1].shape
    np.testing.assert_allclose(found[1], found[0], rtol=1e-6, atol=1e-6)
    return found[1]


# ---- the stand-in itself


def test_the_stand_in_has_the_signatures_of_the_real_package(forests: ModuleType) -> None:
    nvforests.check_signatures(forests)


# ---- results


@pytest.mark.parametrize("config", [
    "", parameters(predict_proba="true"), parameters(output_class="false"), parameters(threshold="0.7"),
    parameters(predict_proba="true", output_class="true"),
], ids=["class", "proba", "score", "threshold", "both"])  # fmt: skip
@pytest.mark.parametrize("data", [IRIS, CANCER], ids=["iris", "cancer"])
@pytest.mark.parametrize("kind", [ensemble.RandomForestClassifier, ensemble.GradientBoostingClassifier])
def test_classifiers(
    tmp_path: Path, forests: ModuleType, kind: Any, data: tuple[Array, Array], config: str
) -> None:  # fmt: skip
    model = kind(n_estimators=5, random_state=1).fit(*data)
    rows = data[0].astype(np.float32)
    found = both(tmp_path, saved(model), rows, config=config)
    if config == "" or "threshold" in config:
        assert found.shape == (len(rows), 1)
    if config == "":
        np.testing.assert_array_equal(found[:, 0], model.predict(rows))
    elif config == parameters(predict_proba="true"):
        np.testing.assert_allclose(found, model.predict_proba(rows), atol=1e-5)
    assert {name for name, _ in forests.calls} == {"predict_proba"}


def test_regression_and_missing_values(tmp_path: Path, forests: ModuleType) -> None:
    rows = DIABETES[0].astype(np.float32)
    rows[::3, 2] = np.nan
    model = ensemble.HistGradientBoostingRegressor(max_iter=8, random_state=1).fit(rows, DIABETES[1])
    found = both(tmp_path, saved(model), rows)
    np.testing.assert_allclose(found[:, 0], model.predict(rows), rtol=1e-5)
    assert {name for name, _ in forests.calls} == {"predict"}


XGB = ensemble.GradientBoostingClassifier(n_estimators=6, random_state=1).fit(CANCER[0].astype(np.float32), CANCER[1])
FORMS: dict[str, Callable[[Any, str], bytes]] = {
    "xgboost.json": xgboost_files.as_json, "xgboost.ubj": xgboost_files.as_ubjson,
    "xgboost.model": xgboost_files.as_binary,
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_forms_of_files(tmp_path: Path, forests: ModuleType, name: str) -> None:
    rows = CANCER[0].astype(np.float32)
    config = parameters(predict_proba="true")
    found = both(tmp_path, FORMS[name](XGB, "binary:logistic"), rows, name, config)
    np.testing.assert_allclose(found, XGB.predict_proba(rows), atol=1e-5)
    # 32-bit thresholds: nothing is widened.
    assert forests.opened[-1]._forest.dtype == np.float32


def test_lightgbm(tmp_path: Path, forests: ModuleType) -> None:
    lightgbm = pytest.importorskip("lightgbm", reason="needs lightgbm: pip install lightgbm")
    x, y = IRIS[0].astype(np.float32), IRIS[1]
    x[:, 3] = np.arange(len(x)) % 7
    options = {"objective": "multiclass", "num_class": 3, "verbose": -1, "min_data_per_group": 1, "num_threads": 1}
    model = lightgbm.train(options, lightgbm.Dataset(x, y, categorical_feature=[3]), 6)
    found = both(tmp_path, model.save_model, x, "model.txt", parameters(predict_proba="true"))
    np.testing.assert_allclose(found, model.predict(x), atol=1e-5)


def forest(root: Path, config: str = ON_GPU) -> Path:
    return write(root, saved(ensemble.RandomForestClassifier(n_estimators=3, random_state=1).fit(*IRIS)), config=config)


EXPECTED = ensemble.RandomForestClassifier(n_estimators=3, random_state=1).fit(*IRIS).predict_proba(IRIS[0])
ROWS = IRIS[0].astype(np.float32)
PROBA = ON_GPU + parameters(predict_proba="true")


def test_without_a_batch_dimension(tmp_path: Path, forests: ModuleType) -> None:
    text = "max_batch_size: 0\n" + io(4, "-1, 3").replace("dims: [4]", "dims: [-1, 4]")
    one = opened(forest(tmp_path, text + PROBA))
    (found,) = one.run(ROWS)
    np.testing.assert_allclose(found, EXPECTED, atol=1e-6)
    (found,) = one.run(ROWS[:0])
    assert found.shape == (0, 3)
    one.close()


@pytest.mark.parametrize("rows", [1, 20_000])
def test_small_and_large_batches(tmp_path: Path, forests: ModuleType, rows: int) -> None:
    one = opened(forest(tmp_path, "max_batch_size: 50000\n" + PROBA))
    given = np.resize(ROWS, (rows, 4))
    (found,) = one.run(given)
    np.testing.assert_allclose(found, np.resize(EXPECTED, (rows, 3)), atol=1e-6)
    one.close()


def test_outputs_that_nobody_wants_are_not_made(tmp_path: Path, forests: ModuleType) -> None:
    one = opened(forest(tmp_path))
    before = len(forests.calls)
    call = one.model._calls[0]
    assert call([None], (False,)) == [None]
    assert len(forests.calls) == before
    with pytest.raises(InvalidArg, match="the model needs its input"):
        call([None], (True,))
    one.close()


# ---- memory of the device


@pytest.fixture
def memory(fake: standin_cuda.StandIn) -> Iterator[Callable[..., Any]]:
    held = []

    def place(rows: Array, device: int = 0, offset: int = 0) -> tuple[int, int, int, int]:
        held.append(DeviceMemory(device, rows.nbytes + offset))
        address = held[-1].address + offset
        fake.poke(address, rows.tobytes())
        return device, address, *rows.shape

    yield place
    held.clear()


def test_rows_in_device_memory_are_not_copied(
    tmp_path: Path, forests: ModuleType, fake: standin_cuda.StandIn, memory: Any
) -> None:
    one = opened(forest(tmp_path, PROBA))
    copies = ("cuMemcpyHtoDAsync_v2", "cuMemcpyDtoDAsync_v2", "cuMemcpyPeerAsync")
    before = [fake.calls(name) for name in copies]
    (found,) = one.run(memory(ROWS))
    np.testing.assert_allclose(found, EXPECTED, atol=1e-6)
    assert [fake.calls(name) for name in copies] == before
    # Elements that lie apart from their alignment, and several requests, are copied within the device.
    for given in ([memory(ROWS, offset=2)], [memory(ROWS[:50]), memory(ROWS[50:])]):
        np.testing.assert_allclose(np.concatenate(one.run(*given)), EXPECTED, atol=1e-6)
    now = [fake.calls(name) for name in copies]
    assert [now[i] - before[i] for i in range(3)] == [0, 3, 0]
    one.close()


def test_rows_of_host_and_devices_in_one_batch(tmp_path: Path, forests: ModuleType, memory: Any) -> None:
    one = opened(forest(tmp_path, PROBA))
    found = one.run(ROWS[:40], memory(ROWS[40:90]), memory(ROWS[90:120], device=1), ROWS[120:])
    np.testing.assert_allclose(np.concatenate(found), EXPECTED, atol=1e-6)
    one.close()


def test_another_gpu_alone(tmp_path: Path, forests: ModuleType, fake: standin_cuda.StandIn) -> None:
    before = fake.held()["contexts"]
    one = opened(forest(tmp_path, PROBA), device=1)
    (found,) = one.run(ROWS)
    np.testing.assert_allclose(found, EXPECTED, atol=1e-6)
    assert fake.held()["contexts"] == before + 1
    one.close()


def test_instances_of_one_gpu_share_the_forest(tmp_path: Path, forests: ModuleType) -> None:
    one = opened(forest(tmp_path, PROBA))
    for device in (0, 1, 1):
        one.model.create_instance(InstanceSpec("m_x", "KIND_GPU", device))
    assert [made.device_id for made in forests.opened] == [0, 1]
    one.close()


def test_closing_gives_everything_back(tmp_path: Path, forests: ModuleType, fake: standin_cuda.StandIn) -> None:
    import cupy  # type: ignore[import-not-found]

    one = opened(forest(tmp_path, PROBA))
    one.run(ROWS)
    cleaned = cupy.counts["cleaned"]
    one.model.trim(0)
    assert cupy.counts["cleaned"] == cleaned + 1
    forests.opened.clear()
    one.close()
    assert cupy.counts["cleaned"] == cleaned + 2
    device_pool.trim()
    held = fake.held()
    assert (held["device"], held["streams"]) == (0, 0)
    (found,) = one.run(ROWS)
    assert isinstance(found, Unavailable)
    assert found.message == "the model is unloaded"


# ---- parameters


@pytest.mark.parametrize(("given", "layout", "chunk"), [
    ({}, "depth_first", None), ({"layout": "layered", "algo": "NAIVE"}, "layered", None),
    ({"algo": "NAIVE"}, "breadth_first", None), ({"algo": "BATCH_TREE_REORG"}, "layered", None),
    ({"algo": "ALGO_AUTO", "storage_type": "SPARSE8", "blocks_per_sm": "2"}, "depth_first", None),
    ({"chunk_size": "8", "threads_per_tree": "4"}, "depth_first", 8), ({"threads_per_tree": "4"}, "depth_first", 4),
    ({"threads_per_tree": "1"}, "depth_first", None), ({"chunk_size": "1"}, "depth_first", 1),
])  # fmt: skip
def test_parameters_that_reach_the_library(
    tmp_path: Path, forests: ModuleType, given: dict[str, str], layout: str, chunk: int | None
) -> None:
    one = opened(forest(tmp_path, PROBA + parameters(**given)))
    (found,) = one.run(ROWS)
    np.testing.assert_allclose(found, EXPECTED, atol=1e-6)
    assert (forests.opened[-1].layout, forests.opened[-1].default_chunk_size) == (layout, chunk)
    one.close()


@pytest.mark.parametrize(("given", "text"), [
    ({"layout": "flat"}, "parameter 'layout' must be one of depth_first, breadth_first, layered, got 'flat'"),
    ({"algo": "FAST"}, "parameter 'algo' must be one of ALGO_AUTO, NAIVE, TREE_REORG, BATCH_TREE_REORG, got 'FAST'"),
    ({"chunk_size": "3"}, "parameter 'chunk_size' must be a power of 2 from 1 to 32, got '3'"),
    ({"threads_per_tree": "many"}, "parameter 'threads_per_tree' must be a power of 2 from 1 to 32, got 'many'"),
    ({"transfer_threshold": "-1"}, "parameter 'transfer_threshold' must be a number of rows, got '-1'"),
])  # fmt: skip
def test_parameters_that_are_wrong(
    tmp_path: Path, forests: ModuleType, given: dict[str, str], text: str
) -> None:  # fmt: skip
    folder = forest(tmp_path, PROBA + parameters(**given))
    with pytest.raises(InvalidArg) as raised:
        opened(folder)
    assert raised.value.message == text
    # On the CPU they have no effect.
    (folder / "config.pbtxt").write_text((folder / "config.pbtxt").read_text().replace("KIND_GPU", "KIND_CPU"))
    opened(folder, kind="KIND_CPU").close()


def test_transfer_threshold(tmp_path: Path, forests: ModuleType, memory: Any) -> None:
    one = opened(forest(tmp_path, PROBA + parameters(transfer_threshold="4")))
    ran = len(forests.calls)
    for given, on_gpu in (([ROWS[:4]], 0), ([ROWS[:1], ROWS[1:4]], 0), ([ROWS[:5]], 1), ([memory(ROWS[:2])], 1)):
        answers = one.run(*given)
        assert not [answer for answer in answers if isinstance(answer, Exception)], given
        found = np.concatenate(answers)
        np.testing.assert_allclose(found, EXPECTED[: len(found)], atol=1e-6)
        assert len(forests.calls) - ran == on_gpu
        ran = len(forests.calls)
    one.close()


# ---- faults


def again(one: Opened) -> None:
    (found,) = one.run(ROWS)
    np.testing.assert_allclose(found, EXPECTED, atol=1e-6)
    assert one.model.is_ready()
    one.close()


@pytest.mark.parametrize(("said", "text", "cleans"), [
    ((RuntimeError, "CUDA error encountered at: file=/opt/x/y/infer.cu line=7: call='launch'\nmore"),
     "CUDA error encountered at: file=infer.cu line=7: call='launch'", 0),
    ((MemoryError, "std::bad_alloc: out_of_memory"), "std::bad_alloc: out_of_memory", 1),
    ((RuntimeError, "cudaErrorMemoryAllocation out of memory"), "cudaErrorMemoryAllocation out of memory", 1),
    ((ValueError, ""), "ValueError", 0),
])  # fmt: skip
def test_an_error_of_the_library_ends_one_batch(
    tmp_path: Path, forests: ModuleType, said: tuple[type[Exception], str], text: str, cleans: int
) -> None:
    import cupy

    one = opened(forest(tmp_path, PROBA))
    before = cupy.counts["cleaned"]
    forests.faults[len(forests.calls) + 1] = said[0](said[1])
    for answer in one.run(ROWS[:2], ROWS[2:4]):
        assert isinstance(answer, Internal)
        assert answer.message == f"FIL execute failure: {text}"
    assert cupy.counts["cleaned"] == before + cleans
    again(one)


@pytest.mark.parametrize(("function", "kind"), [
    ("cuMemcpyHtoDAsync_v2", Internal), ("cuMemcpyDtoHAsync_v2", Internal), ("cuMemAlloc_v2", Unavailable),
])  # fmt: skip
def test_an_error_of_the_driver_ends_one_batch(
    tmp_path: Path, forests: ModuleType, fake: standin_cuda.StandIn, function: str, kind: type[Exception]
) -> None:
    one = opened(forest(tmp_path, PROBA))
    device_pool.trim()
    code = standin_cuda.OUT_OF_MEMORY if kind is Unavailable else 1
    # Memory is asked for again when what was kept has been given back.
    for nth in (2, 1) if kind is Unavailable else (1,):
        fake.fail(function, code, nth)
    (answer,) = one.run(ROWS)
    assert isinstance(answer, kind), answer
    again(one)


def test_what_is_queued_is_waited_for(
    tmp_path: Path, forests: ModuleType, fake: standin_cuda.StandIn, memory: Any
) -> None:
    """The loading thread's kernels, before other threads use the forest; copies into memory that is given back."""
    import cupy

    folder, before = forest(tmp_path, PROBA), cupy.counts["synchronized"]
    one = opened(folder)
    assert cupy.counts["synchronized"] == before + 1
    rows = memory(ROWS[70:])
    fake.fail("cuMemcpyDtoDAsync_v2", 1)
    assert all(isinstance(answer, Internal) for answer in one.run(ROWS[:70], rows))
    assert cupy.counts["synchronized"] == before + 2
    again(one)


def test_memory_that_results_lack(tmp_path: Path, forests: ModuleType, fake: standin_cuda.StandIn) -> None:
    one = opened(forest(tmp_path, PROBA))
    device_pool.trim()
    # The first is the server's for the rows, the second widens them to the model's datatype.
    fake.fail("cuMemAlloc_v2", nth=2)
    (answer,) = one.run(ROWS)
    assert isinstance(answer, Internal)
    assert answer.message.startswith("FIL execute failure: Out of memory allocating ")
    again(one)


def test_a_gpu_that_is_lost(tmp_path: Path, forests: ModuleType, fake: standin_cuda.StandIn) -> None:
    one = opened(forest(tmp_path, PROBA))
    fake.fail("cuMemcpyHtoDAsync_v2", standin_cuda.ILLEGAL_ADDRESS)
    (answer,) = one.run(ROWS)
    assert isinstance(answer, Internal)
    assert one.lost == ["changed"]
    assert not one.model.is_ready()
    ran = len(forests.calls)
    (answer,) = one.run(ROWS)
    assert isinstance(answer, Unavailable)
    assert "the server can not use GPU 0 until it is started again" in answer.message
    assert len(forests.calls) == ran
    one.close()


def test_shapes_that_do_not_fit(tmp_path: Path, forests: ModuleType) -> None:
    text = "max_batch_size: 0\n" + io(4, "-1, 3").replace("dims: [4]", "dims: [-1, 4]")
    one = opened(forest(tmp_path, text.replace("-1, 3", "2, 3").replace("-1, 4", "2, 4") + PROBA))
    (answer,) = one.run(ROWS[:3])
    assert isinstance(answer, InvalidArg)
    assert "3 rows of 3 values do not fit the shape of the output" in answer.message
    (answer,) = one.run(ROWS[:1].reshape(4)[:3])
    assert isinstance(answer, InvalidArg)
    assert answer.message == "the input has 12 bytes, expected rows of 4 features"
    one.close()


# ---- loading


def test_a_forest_that_the_library_refuses(tmp_path: Path, forests: ModuleType) -> None:
    model = ensemble.RandomForestRegressor(n_estimators=2, random_state=1).fit(ROWS, ROWS[:, :2])
    folder = write(tmp_path, saved(model), config=ON_GPU)
    with pytest.raises(Internal) as raised:
        opened(folder)
    assert raised.value.message == (
        "unable to load model 'm', nvforest can not run this forest on GPU 0: nvForest does not support multi-target "
        "model"
    )


@pytest.mark.parametrize("error", [0.1, float("nan")])
def test_a_forest_whose_results_differ_is_not_served(
    tmp_path: Path, forests: ModuleType, error: float
) -> None:  # fmt: skip
    forests.error = error
    with pytest.raises(InvalidArg, match="on GPU 0: its results differ from those on the CPU"):
        opened(forest(tmp_path))


def test_memory_that_loading_lacks(tmp_path: Path, forests: ModuleType, fake: standin_cuda.StandIn) -> None:
    forests.faults[len(forests.calls) + 1] = MemoryError("std::bad_alloc: out_of_memory: 77 bytes")
    folder = forest(tmp_path, PROBA)
    with pytest.raises(Internal, match="can not run this forest on GPU 0: std::bad_alloc: out_of_memory: 77 bytes"):
        opened(folder)
    again(opened(folder))


def test_a_load_that_fails_keeps_nothing(
    tmp_path: Path, forests: ModuleType, fake: standin_cuda.StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cupy

    def cleaned(self: object) -> None:
        forests.opened.clear()
        device_pool.trim()
        held.append(fake.held()["device"])

    held: list[int] = []
    monkeypatch.setattr(cupy._Pool, "free_all_blocks", cleaned)
    folder = forest(tmp_path, PROBA)
    # An exception that is kept here would keep its frames, and they what is looked for.
    for kind, text in ((MemoryError, "std::bad_alloc: out_of_memory"), (RuntimeError, "no such kernel")):
        forests.faults[len(forests.calls) + 1] = kind(text)
        with pytest.raises(Internal):
            opened(folder)
    assert held == [0, 0]


# ---- which library


def test_cuml_of_before_nvforest(tmp_path: Path, fake: standin_cuda.StandIn) -> None:
    with nvforests.installed(older=True) as forests:
        assert gpu_library.library().name == "cuml"
        assert FilBackend().gpu
        rows = CANCER[0].astype(np.float32)
        both(tmp_path / "class", saved(XGB), rows)
        found = both(tmp_path / "proba", saved(XGB), rows, config=parameters(predict_proba="true"))
        np.testing.assert_allclose(found, XGB.predict_proba(rows), atol=1e-5)
        assert {name for name, _ in forests.calls} == {"predict"}


def test_without_a_library(monkeypatch: pytest.MonkeyPatch, fake: standin_cuda.StandIn) -> None:
    with nvforests.installed():
        monkeypatch.setattr(gpu_library.importlib.util, "find_spec", lambda _: None)
        gpu_library._find.cache_clear()
        backend = FilBackend()
        assert not backend.gpu
        release = driver.version()[0]
        assert backend.no_gpu == f"nvforest is not installed: pip install nvforest-cu{13 if release >= 13 else 12}"
        with pytest.raises(Unavailable, match="nvforest is not installed"):
            gpu_library.library()


def test_a_library_that_can_not_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise OSError(f"/usr/lib/x/lib{name}.so: cannot open shared object file")

    with nvforests.installed():
        monkeypatch.setattr(gpu_library.importlib, "import_module", broken)
        gpu_library._find.cache_clear()
        assert gpu_library.why_not() == (
            "the installed nvforest can not be imported: OSError: libnvforest.so: cannot open shared object file"
        )
