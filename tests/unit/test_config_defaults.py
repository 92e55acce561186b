"""What the server fills in: the backend by file, the normal form, the instance groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from triton_fast import config as cfg
from triton_fast import protos
from triton_fast.config import parse


def model(tmp_path: Path, *entries: str, text: str | None = None, name: str = "m") -> Path:
    path = tmp_path / name
    path.mkdir()
    for entry in entries:
        target = path / entry
        target.parent.mkdir(parents=True, exist_ok=True)
        if entry.endswith("/"):
            target.mkdir()
        else:
            target.touch()
    if text is not None:
        (path / "config.pbtxt").write_text(text)
    return path


def filled(path: Path, strict: bool = False) -> tuple[str, str, str]:
    config = cfg.load_model_config(path, strict=strict)
    assert config.name == path.name
    return config.backend, config.platform, config.default_model_filename


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("1/model.savedmodel/", ("tensorflow", "tensorflow_savedmodel", "model.savedmodel")),
        ("1/model.graphdef", ("tensorflow", "tensorflow_graphdef", "model.graphdef")),
        ("1/model.plan", ("tensorrt", "tensorrt_plan", "model.plan")),
        ("1/model.onnx", ("onnxruntime", "onnxruntime_onnx", "model.onnx")),
        ("1/model.onnx/", ("onnxruntime", "onnxruntime_onnx", "model.onnx")),
        ("1/model.xml", ("openvino", "", "model.xml")),
        ("1/model.pt", ("pytorch", "pytorch_libtorch", "model.pt")),
        ("1/model.pt2", ("pytorch", "torch_aoti", "model.pt2")),
        ("1/model.py", ("python", "", "model.py")),
    ],
)
def test_backend_by_file(entry: str, expected: tuple[str, str, str], tmp_path: Path) -> None:
    assert filled(model(tmp_path, entry)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('platform: "onnxruntime_onnx"', ("onnxruntime", "onnxruntime_onnx", "model.onnx")),
        ('backend: "onnxruntime"', ("onnxruntime", "onnxruntime_onnx", "model.onnx")),
        (
            'backend: "onnxruntime" default_model_filename: "net.onnx"',
            ("onnxruntime", "onnxruntime_onnx", "net.onnx"),
        ),
        ('default_model_filename: "model.plan"', ("tensorrt", "tensorrt_plan", "model.plan")),
        ('platform: "tensorflow_savedmodel"', ("tensorflow", "tensorflow_savedmodel", "model.savedmodel")),
        ('platform: "libtorch"', ("pytorch", "libtorch", "model.pt")),
        ('backend: "python" platform: "mine"', ("python", "mine", "model.py")),
        ('backend: "identity"', ("identity", "", "")),
        ('platform: "ensemble"', ("", "ensemble", "")),
        ('platform: "unknown"', ("", "unknown", "")),
    ],
)
def test_given_fields_decide_and_stay(text: str, expected: tuple[str, str, str], tmp_path: Path) -> None:
    # The file in the version directory says something else and must not win.
    assert filled(model(tmp_path, "1/model.py", text=text), strict=True) == expected


def test_first_version_directory_as_text_decides(tmp_path: Path) -> None:
    entries = ["10/model.onnx", "9/model.py", "configs/a.pbtxt", "warmup/x", "05/model.pt", "x/model.pt"]
    path = model(tmp_path, *entries)
    assert cfg.version_dirs(path) == ["10", "9"]
    assert filled(path)[0] == "onnxruntime"


def test_backend_by_model_name(tmp_path: Path) -> None:
    assert filled(model(tmp_path, "1/", name="net.mybackend")) == ("mybackend", "", "model.mybackend")


def test_override_replaces_the_file_and_name_may_differ_from_the_directory(tmp_path: Path) -> None:
    path = model(tmp_path, "1/model.onnx", text="max_batch_size: 7 broken", name="tmp123")
    parsed = cfg.read_model_config(path, strict=True, override_json='{"max_batch_size": 2}', name="m")
    assert (parsed.config.name, parsed.config.max_batch_size, parsed.config.backend) == ("m", 2, "onnxruntime")
    assert parsed.given == {"max_batch_size"}


@pytest.mark.parametrize(
    ("entries", "text", "hint"),
    [
        ([], None, "there is no version directory: put the model file into 'm/1/'"),
        (["1/"], None, "'m/1/' is empty"),
        (
            ["1/resnet.onnx"], None,
            "'m/1/' holds 'resnet.onnx': rename it to 'model.onnx', or set default_model_filename",
        ),
        (
            ["1/model.onnx "], None,
            "'m/1/' holds 'model.onnx ': rename it to 'model.onnx', or set default_model_filename",
        ),
        (["1/readme"], None, "'m/1/' holds readme"),
        (["1/"], "ensemble_scheduling { }", 'an ensemble needs platform: "ensemble"'),
    ],
)  # fmt: skip
def test_unknown_backend_says_what_was_found(entries: list[str], text: str | None, hint: str, tmp_path: Path) -> None:
    with pytest.raises(cfg.ConfigError) as caught:
        cfg.load_model_config(model(tmp_path, *entries, text=text), strict=False)
    assert caught.value.text == (
        "Invalid model name: Could not determine backend for model 'm' with no backend in model configuration. "
        "Expected model name of the form 'model.<backend_name>'."
    )
    assert caught.value.hint == hint


def test_unexpected_platform_names_the_backend_to_write(tmp_path: Path) -> None:
    path = model(tmp_path, "1/", text='default_model_filename: "net.onnx"')
    config = cfg.load_model_config(path, strict=False)
    cfg.normalize(config, cpu_count=1)
    with pytest.raises(cfg.ConfigError) as caught:
        cfg.validate(config, path)
    assert str(caught.value) == "unexpected platform type '' for m (add backend: \"onnxruntime\")"


def normal(text: str, cpu_count: int = 8, gpus: tuple[int, ...] = ()) -> object:
    config = parse.parse_text(f'name: "m" {text}'.encode(), "f").config
    cfg.normalize(config, cpu_count=cpu_count, gpus=gpus)
    once = config.SerializeToString(deterministic=True)
    cfg.normalize(config, cpu_count=cpu_count, gpus=gpus)
    assert config.SerializeToString(deterministic=True) == once, "normalize is idempotent"
    return config


def test_normal_form_of_blocks() -> None:
    config = normal("max_batch_size: 8 dynamic_batching { }")
    assert config.version_policy.latest.num_versions == 1
    assert list(config.dynamic_batching.preferred_batch_size) == [8]
    assert config.optimization.input_pinned_memory.enable
    assert config.optimization.output_pinned_memory.enable
    sequence = normal("max_batch_size: 3 sequence_batching { oldest { } }").sequence_batching
    assert sequence.max_sequence_idle_microseconds == 1_000_000
    assert list(sequence.oldest.preferred_batch_size) == [3]
    assert list(normal("dynamic_batching { }").dynamic_batching.preferred_batch_size) == []


def test_given_values_of_blocks_stay() -> None:
    config = normal(
        "version_policy { all { } } max_batch_size: 8 dynamic_batching { preferred_batch_size: 2 } "
        "optimization { input_pinned_memory { enable: false } }"
    )
    assert config.version_policy.WhichOneof("policy_choice") == "all"
    assert list(config.dynamic_batching.preferred_batch_size) == [2]
    assert not config.optimization.input_pinned_memory.enable
    kept = normal("sequence_batching { max_sequence_idle_microseconds: 5 }").sequence_batching
    assert kept.max_sequence_idle_microseconds == 5


def test_an_ensemble_has_no_groups_and_no_optimization() -> None:
    config = normal('platform: "ensemble" ensemble_scheduling { }')
    assert not config.instance_group
    assert not config.HasField("optimization")


@pytest.mark.parametrize(
    ("text", "cpu_count", "gpus", "expected"),
    [
        ('backend: "onnxruntime"', 8, (), [("m", "KIND_CPU", 2, [])]),
        ('backend: "onnxruntime"', 1, (), [("m", "KIND_CPU", 1, [])]),
        ('backend: "onnxruntime"', 8, (0, 1), [("m", "KIND_GPU", 1, [0, 1])]),
        ('backend: "python"', 8, (), [("m", "KIND_CPU", 1, [])]),
        ('backend: "python"', 8, (0, 1), [("m", "KIND_GPU", 1, [0, 1])]),
        ('backend: "tensorrt"', 8, (0,), [("m", "KIND_GPU", 1, [0])]),
        ('backend: "tensorrt"', 8, (), [("m", "KIND_CPU", 1, [])]),
        (
            'backend: "onnxruntime" instance_group { count: 3 } instance_group { name: "g" kind: KIND_MODEL }',
            8, (), [("m_0", "KIND_CPU", 3, []), ("g", "KIND_MODEL", 1, [])],
        ),
        ('backend: "openvino" instance_group { kind: KIND_CPU }', 8, (0,), [("m_0", "KIND_CPU", 1, [])]),
        ('backend: "x" instance_group { gpus: [ 0, 5 ] }', 8, (0,), [("m_0", "KIND_CPU", 1, [0, 5])]),
        ('backend: "x" instance_group { kind: KIND_GPU }', 8, (), [("m_0", "KIND_GPU", 1, [])]),
    ],
)  # fmt: skip
def test_instance_groups(
    text: str, cpu_count: int, gpus: tuple[int, ...], expected: list[tuple[str, str, int, list[int]]]
) -> None:
    config = normal(text, cpu_count, gpus)
    kind = protos.ModelInstanceGroup.Kind
    assert [(g.name, kind.Name(g.kind), g.count, list(g.gpus)) for g in config.instance_group] == expected
