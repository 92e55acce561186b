"""Opening ONNX models: auto-complete, parameters, providers, broken files, log lines."""

from __future__ import annotations

import gc
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers import onnx_models as models
from tests.helpers.onnx_repository import Opened, context, open_model, open_written, write
from triton_fast import config as configs
from triton_fast._native.ort import capi, session
from triton_fast.backends.base import InstanceSpec, LoadContext
from triton_fast.backends.onnxruntime import OnnxRuntimeBackend, library, plan
from triton_fast.config import ConfigError
from triton_fast.errors import Internal, InvalidArg, ServerError, Unavailable, Unsupported
from triton_fast.observability import log


@pytest.fixture(autouse=True)
def no_session_is_left() -> Iterator[None]:
    gc.collect()
    before = session.live()
    yield
    gc.collect()
    assert session.live() == before


def plan_of(tmp_path: Path, config: str, *, threads: int = 1, settings: dict[str, str] | None = None,
            available: tuple[str, ...] = ("CPUExecutionProvider",)) -> plan.SessionPlan:  # fmt: skip
    """The plan of a config as it stands, for a build of ORT that has these providers."""
    model_dir = write(tmp_path, None, config + '\nbackend: "onnxruntime"')
    read = configs.load_model_config(model_dir, strict=False)
    made = LoadContext("m", 1, model_dir, model_dir / "1", read, settings or {}, threads)
    return plan.make_plan(made, available=available, global_pool=False)


def parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}\n'


# --- auto-complete ---------------------------------------------------------------------------------------------------


def test_complete_config(tmp_path: Path) -> None:
    config = context(write(tmp_path, models.add_sub())).config
    assert config.max_batch_size == 4
    assert config.HasField("dynamic_batching")
    assert [(t.name, t.data_type, list(t.dims)) for t in config.input] == [("INPUT0", 8, [16]), ("INPUT1", 8, [16])]
    assert [t.name for t in config.output] == ["OUTPUT0", "OUTPUT1"]
    settings = {"default-max-batch-size": "32"}
    assert context(write(tmp_path, models.add_sub()), settings=settings).config.max_batch_size == 32
    config = context(write(tmp_path, models.identity("FP32", (2, 3)))).config
    assert (config.max_batch_size, list(config.input[0].dims)) == (0, [2, 3])


def test_given_fields_are_kept_without_opening_the_model(tmp_path: Path) -> None:
    text = """
    backend: "onnxruntime"
    input { name: "X" data_type: TYPE_FP32 dims: 2 }
    output { name: "Y" data_type: TYPE_FP32 dims: 2 }
    """
    config = context(write(tmp_path, b"no model at all", text)).config
    assert [t.name for t in (*config.input, *config.output)] == ["X", "Y"]


def test_config_that_contradicts_the_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model does not support batching while non-zero max_batch_size"):
        context(write(tmp_path, models.identity("FP32", (2,)), "max_batch_size: 4"))
    text = """
    input { name: "INPUT0" data_type: TYPE_INT32 dims: 4 }
    output { name: "OUTPUT0" data_type: TYPE_FP32 dims: 4 }
    max_batch_size: 4
    """
    with pytest.raises(ConfigError, match="configuration expects datatype TYPE_INT32 for input 'INPUT0', model"):
        open_model(tmp_path, models.identity(), text)


def test_metadata_and_names(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(models.identity(metadata={"author": "Zoë", "stage": ""}))
    library.prepare({})
    made = session.Session(str(path), session.SessionOptions())
    assert made.metadata == {"author": "Zoë", "stage": ""}
    assert made.inputs == (("INPUT0", 11, 1, (-1, 4), ("batch", "")),)
    path.write_bytes(models.overridable())
    made = session.Session(str(path), session.SessionOptions())
    assert [row[0] for row in made.initializers] == ["BIAS"]


def test_directory_with_external_data(tmp_path: Path) -> None:
    models.write_external(tmp_path / "m" / "1" / "model.onnx")
    opened: Opened = open_written(write(tmp_path, None))
    (answer,) = opened.run({"INPUT0": np.zeros((1, 64), np.float32)})
    assert not answer["OUTPUT0"].any()
    os.remove(tmp_path / "m" / "1" / "model.onnx" / "weights.bin")
    with pytest.raises(Internal, match=r"weights\.bin") as caught:
        open_written(write(tmp_path, None))
    assert str(tmp_path) not in str(caught.value)


def test_other_file_name(tmp_path: Path) -> None:
    text = 'default_model_filename: "net.onnx" backend: "onnxruntime"'
    folder = write(tmp_path, models.mlp(), text, filename="net.onnx")
    assert context(folder).config.input[0].name == "INPUT"


# --- broken files ----------------------------------------------------------------------------------------------------


def bare(model_dir: Path) -> LoadContext:
    made = configs.load_model_config(model_dir, strict=False)
    made.backend = "onnxruntime"
    made.default_model_filename = "model.onnx"
    return LoadContext("m", 1, model_dir, model_dir / "1", made)


def refused(root: Path, blob: bytes | None) -> ServerError:
    """The error that opening these bytes gives, from complete_config and from load alike."""
    backend = OnnxRuntimeBackend()
    given = 'backend: "onnxruntime" default_model_filename: "model.onnx"'
    made = bare(write(root, blob, given))
    with pytest.raises(ServerError) as first:
        backend.complete_config(made)
    with pytest.raises(ServerError) as second:
        backend.load(made)
    for caught in (first, second):
        assert str(root) not in str(caught.value)
        assert str(root.resolve()) not in str(caught.value)
    assert type(first.value) is type(second.value)
    return second.value


def test_truncations(tmp_path: Path) -> None:
    whole = models.mlp()
    step = max(1, len(whole) // 97)
    for n in (*range(1, len(whole), step), len(whole) - 1):
        error = refused(tmp_path, whole[:n])
        assert isinstance(error, Internal | Unsupported | InvalidArg), n
        assert re.match(r"onnx runtime error \d+: |unable to load model 'm', |autofill failed", str(error)), (n, error)


def test_random_bytes(tmp_path: Path) -> None:
    rng = random.Random(20)
    for size in (1, 2, 7, 64, 1000, 100_000):
        error = refused(tmp_path, rng.randbytes(size))
        assert "m/1/model.onnx" in str(error)
        assert str(error).startswith("onnx runtime error 7: ")


def test_flipped_bytes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A damaged model is refused or loads; it never brings the process down, and nothing reaches stderr raw."""
    whole = models.mlp()
    rng = random.Random(4)
    outcomes = set()
    backend = OnnxRuntimeBackend()
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        made = bare(write(tmp_path, bytes(damaged), 'backend: "onnxruntime"'))
        try:
            backend.load(LoadContext("m", 1, made.model_dir, made.version_dir, backend.complete_config(made))).close()
            outcomes.add("loads")
        except ServerError as error:
            assert str(tmp_path) not in str(error)
            outcomes.add("refused")
    assert outcomes == {"loads", "refused"}
    assert "onnxruntime:" not in capfd.readouterr().err


def test_files_that_are_no_model(tmp_path: Path) -> None:
    assert "'m/1/model.onnx' is empty" in str(refused(tmp_path / "a", b""))
    assert "run git lfs pull" in str(refused(tmp_path / "b", b"version https://git-lfs.github.com/spec/v1\noid ..."))
    error = refused(tmp_path / "c", None)
    assert isinstance(error, Unavailable)
    assert str(error) == "unable to find 'm/1/model.onnx' for model instance 'm'"
    (tmp_path / "d" / "m" / "1" / "model.onnx").mkdir(parents=True)
    assert str(refused(tmp_path / "d", None)) == "unable to find 'm/1/model.onnx/model.onnx' for model instance 'm'"
    (tmp_path / "e" / "m" / "1").mkdir(parents=True)
    os.mkfifo(tmp_path / "e" / "m" / "1" / "model.onnx")
    assert "is not a regular file" in str(refused(tmp_path / "e", None))
    assert "Unsupported ONNX Type 'sequence'" in str(refused(tmp_path / "f", models.sequence_output()))


# --- parameters ------------------------------------------------------------------------------------------------------


def test_plan_defaults(tmp_path: Path) -> None:
    made = plan_of(tmp_path, "", threads=3)
    assert (made.intra, made.inter, made.parallel, made.graph_level) == (3, 3, False, 99)
    assert made.entries == {"session.intra_op.allow_spinning": "0", "session.inter_op.allow_spinning": "0"}
    assert not made.shareable
    assert plan_of(tmp_path, "").shareable


def test_plan_from_parameters(tmp_path: Path) -> None:
    text = "".join(
        parameter(key, value)
        for key, value in {
            "intra_op_thread_count": "2", "inter_op_thread_count": "4", "execution_mode": "1", "enable_mem_arena": "0",
            "enable_mem_pattern": "true", "memory.enable_memory_arena_shrinkage": "cpu:0",
            "session.intra_op.allow_spinning": "1", "session.use_device_allocator_for_initializers": "1",
        }.items()
    )  # fmt: skip
    made = plan_of(tmp_path, text, threads=8)
    assert (made.intra, made.inter, made.parallel) == (2, 4, True)
    assert (made.mem_arena, made.mem_pattern) == (False, True)
    assert made.run_entries(gpu=False, device=0) == {"memory.enable_memory_arena_shrinkage": "cpu:0"}
    assert made.entries["session.intra_op.allow_spinning"] == "1"
    assert made.entries["session.use_device_allocator_for_initializers"] == "1"


def test_thread_count_of_the_server_holds_where_the_model_says_nothing(tmp_path: Path) -> None:
    settings = {"intra_op_thread_count": "5"}
    assert plan_of(tmp_path, "", settings=settings).intra == 5
    assert plan_of(tmp_path, parameter("intra_op_thread_count", "2"), settings=settings).intra == 2


@pytest.mark.parametrize(("level", "expected"), [(-1, 1), (0, 99), (1, 2), (2, 0), (7, 99)])
def test_graph_level(tmp_path: Path, level: int, expected: int) -> None:
    assert plan_of(tmp_path, f"optimization {{ graph {{ level: {level} }} }}").graph_level == expected


@pytest.mark.parametrize(
    "text",
    [
        *(f"optimization {{ graph {{ level: {level} }} }}" for level in (-1, 0, 1, 2)),
        parameter("execution_mode", "1") + parameter("inter_op_thread_count", "2"),
        parameter("intra_op_thread_count", "2"),
        parameter("enable_mem_arena", "false"),
        parameter("enable_mem_arena", "1") + parameter("memory.enable_memory_arena_shrinkage", "cpu:0"),
        parameter("enable_mem_pattern", "0"),
        parameter("session.set_denormal_as_zero", "1"),
    ],
)
def test_parameters_work(tmp_path: Path, text: str) -> None:
    opened = open_model(tmp_path, models.add_sub("FP32"), text)
    x = np.arange(16, dtype=np.float32).reshape(1, 16)
    for _ in range(3):
        (answer,) = opened.run({"INPUT0": x, "INPUT1": x})
        np.testing.assert_array_equal(answer["OUTPUT0"], 2 * x)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("execution_mode", "2", "Expected values for  execution_mode are 0 or 1 but got 2 ."),
        ("intra_op_thread_count", "-1", "'intra_op_thread_count' must be a whole number"),
        ("inter_op_thread_count", "x", "'inter_op_thread_count' must be a whole number"),
        ("intra_op_thread_count", "99999999999", "'intra_op_thread_count' must be a whole number"),
        ("enable_mem_arena", "maybe", "'enable_mem_arena' must be true or false"),
    ],
)
def test_bad_parameters(tmp_path: Path, key: str, value: str, message: str) -> None:
    with pytest.raises(InvalidArg, match=re.escape(message)):
        plan_of(tmp_path, parameter(key, value))


def test_bad_entries_are_errors_of_ort(tmp_path: Path) -> None:
    with pytest.raises(Internal, match=r"^onnx runtime error \d+: "):
        open_model(tmp_path, models.mlp(), parameter("session." + "k" * 5000, "1"))
    with pytest.raises(Internal, match=r"^onnx runtime error \d+: .*no_such_ops"):
        open_model(tmp_path, models.mlp(), 'model_operations { op_library_filename: "no_such_ops.so" }')


ACCELERATOR = "optimization {{ execution_accelerators {{ {side}_execution_accelerator {{ name: '{name}' {more} }} }} }}"


def test_cpu_accelerator_that_this_build_lacks(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="'openvino' is requested but the installed ONNX Runtime has only CPUE"):
        plan_of(tmp_path, ACCELERATOR.format(side="cpu", name="openvino", more=""))


@pytest.mark.parametrize("name", ["tensorrt", "cuda"])
def test_gpu_accelerators_mean_nothing_on_the_cpu(tmp_path: Path, name: str) -> None:
    """A model for both: as in Triton it runs on a CPU as if they were not there; a GPU instance says what lacks."""
    opened = open_model(tmp_path, models.mlp(), ACCELERATOR.format(side="gpu", name=name, more=""))
    (answer,) = opened.run({"INPUT": np.ones((1, 16), np.float32)})
    assert answer["OUTPUT"].shape == (1, 4)
    message = "unable to load model 'm', KIND_GPU is requested but the installed ONNX Runtime has only "
    with pytest.raises(Unsupported, match=message + ".*; install onnxruntime-gpu"):
        opened.model.create_instance(InstanceSpec("m_1", "KIND_GPU"))


@pytest.mark.parametrize(("side", "name"), [("gpu", "openvino"), ("cpu", "cuda"), ("gpu", "magic")])
def test_unknown_accelerator(tmp_path: Path, side: str, name: str) -> None:
    with pytest.raises(InvalidArg, match=f"^unknown Execution Accelerator '{name}' is requested$"):
        plan_of(tmp_path, ACCELERATOR.format(side=side, name=name, more=""))


def test_accelerator_options(tmp_path: Path) -> None:
    more = (
        "parameters { key: 'precision_mode' value: 'FP16' } parameters { key: 'max_workspace_size_bytes' value: '99' }"
    )
    available = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
    made = plan_of(tmp_path, ACCELERATOR.format(side="gpu", name="tensorrt", more=more), available=available)
    assert [(p.name, dict(p.options), p.gpu) for p in made.providers] == [
        ("TensorRT", {"trt_fp16_enable": "1", "trt_max_workspace_size": "99"}, True), ("CUDA", {}, True),
    ]  # fmt: skip
    for more, message in (
        ("parameters { key: 'precision_mode' value: 'FP7' }", "unsupported precision mode 'FP7' is requested"),
        ("parameters { key: 'speed' value: '1' }", "unknown parameter 'speed' is provided for TensorRT"),
    ):
        with pytest.raises(InvalidArg, match=message):
            plan_of(tmp_path, ACCELERATOR.format(side="gpu", name="tensorrt", more=more), available=available)
    cuda = ACCELERATOR.format(side="gpu", name="cuda", more="") + parameter("gpu_mem_limit", "5")
    made = plan_of(tmp_path, cuda, available=available)
    assert [(p.name, dict(p.options)) for p in made.providers] == [("CUDA", {"gpu_mem_limit": "5"})]


def test_cuda_is_the_provider_of_gpu_instances_without_any_config(tmp_path: Path) -> None:
    made = plan_of(tmp_path, "", settings={"gpu_mem_limit": "6", "intra_op_thread_count": "1"})
    assert [(p.name, dict(p.options), p.gpu) for p in made.providers] == [("CUDA", {"gpu_mem_limit": "6"}, True)]
    assert made.shareable  # on the CPU


def test_cuda_graphs_are_not_replayed_on_old_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(log, "warning", lambda text, **_: lines.append(text))
    for value, count in (("0", 0), ("1", 1)):
        made = plan_of(tmp_path, parameter("enable_cuda_graph", value) + parameter("use_tf32", "0"))
        assert [dict(p.options) for p in made.providers] == [{"use_tf32": "0"}]
        assert len(lines) == count
    assert lines[0].startswith("enable_cuda_graph has no effect")


def test_bad_options_of_a_gpu_are_errors_on_the_cpu_too(tmp_path: Path) -> None:
    for key, value, message in (
        ("gpu_mem_limit", "lots", "'gpu_mem_limit' must be a whole number"),
        ("cudnn_conv_algo_search", "5", "unsupported cudnn_conv_algo_search value '5' is requested"),
        ("memory.enable_memory_arena_shrinkage", "gpu", "must be a list as 'gpu:0;cpu:0', got 'gpu'"),
    ):
        with pytest.raises(InvalidArg, match=message):
            open_model(tmp_path, models.mlp(), parameter(key, value))


def test_arenas_of_gpus_are_not_shrunk_on_the_cpu(tmp_path: Path) -> None:
    text = parameter("memory.enable_memory_arena_shrinkage", "gpu:0;cpu:0")
    (answer,) = open_model(tmp_path, models.mlp(), text).run({"INPUT": np.ones((1, 16), np.float32)})
    assert answer["OUTPUT"].shape == (1, 4)


def test_placement_with_a_build_for_the_cpu(tmp_path: Path) -> None:
    assert "CUDAExecutionProvider" not in capi.providers()
    backend = OnnxRuntimeBackend()
    assert not backend.gpu
    assert "pip install onnxruntime-gpu" in backend.no_gpu
    opened = open_model(tmp_path, models.mlp())
    with pytest.raises(Unsupported, match="unable to load model 'm', KIND_GPU is requested but the installed ONNX Run"):
        opened.model.create_instance(InstanceSpec("m_1", "KIND_GPU"))


# --- sessions and threads --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("threads", "sessions"), [(1, 1), (2, 3)])
def test_instances_share_a_session_unless_it_has_threads(tmp_path: Path, threads: int, sessions: int) -> None:
    before = session.live()
    tasks = set(os.listdir("/proc/self/task"))
    opened = open_model(tmp_path, models.mlp(), threads=threads)
    more = [opened.model.create_instance(InstanceSpec(f"m_{n}", "KIND_CPU")) for n in (1, 2)]
    assert session.live() - before == sessions
    # A session with n threads has n - 1 of its own; the instance thread is the n-th. Others may be ending.
    assert len(set(os.listdir("/proc/self/task")) - tasks) == sessions * (threads - 1)
    opened.model.close()
    del more


def test_log_lines_carry_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    lines: list[tuple[str, str, Any]] = []
    monkeypatch.setattr(log, "warning", lambda text, **fields: lines.append(("W", text, fields.get("model"))))
    monkeypatch.setattr(log, "error", lambda text, **fields: lines.append(("E", text, fields.get("model"))))
    opened = open_model(tmp_path, models.overridable())
    library.flush_log()
    assert [(letter, model) for letter, _, model in lines] == [("W", "m")]
    assert "BIAS" in lines[0][1]
    lines.clear()
    gather = open_model(tmp_path / "g", models.gather(), "max_batch_size: 4")
    gather.run({"INDEX": np.array([[77]], np.int64)})
    library.flush_log()
    assert [(letter, model) for letter, _, model in lines] == [("E", "m")]
    del opened
    assert capfd.readouterr().err == ""


def test_lost_log_lines_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    library.flush_log()
    lost: list[int] = []
    dropped = [0]
    monkeypatch.setattr(log, "warning", lambda text, **fields: lost.append(fields["lines"]))
    monkeypatch.setattr(library, "_told_dropped", 0)
    monkeypatch.setattr(library.capi, "log_dropped", lambda: dropped[0])
    for dropped[0] in (0, 3, 3, 5):
        library.flush_log()
    assert lost == [3, 2]
