"""Configs that parse and cannot be served: Triton's text for each, and what the server fills in before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from triton_fast import config as cfg
from triton_fast.config import parse
from triton_fast.errors import Code, Internal, ServerError, Unsupported

IO = 'input { name: "A" data_type: TYPE_FP32 dims: [ 4 ] } output { name: "B" data_type: TYPE_FP32 dims: [ 4 ] } '
SEQUENCE = "max_batch_size: 4 sequence_batching { "
STATE = "state { input_name: 'S' output_name: 'T' data_type: TYPE_FP32 dims: [ 2 ] "
ENSEMBLE = (
    'platform: "ensemble" input { name: "I" data_type: TYPE_FP32 dims: 1 } '
    'output { name: "O" data_type: TYPE_FP32 dims: 1 } '
)


def step(source: str, result: str, model: str = "x") -> str:
    return (
        f'step {{ model_name: "{model}" input_map {{ key: "a" value: "{source}" }} '
        f'output_map {{ key: "b" value: "{result}" }} }} '
    )


def control(name: str, body: str) -> str:
    return f'control_input {{ name: "{name}" control {{ {body} }} }} '


def check(text: str, model_dir: Path = Path("m"), gpus: tuple[int, ...] = (), io: bool = True) -> None:
    config = parse.parse_text(text.encode(), "m/config.pbtxt").config
    if not config.backend and config.platform != "ensemble":
        config.backend = "python"
    config.name = config.name or "m"
    cfg.normalize(config, cpu_count=4, gpus=gpus)
    cfg.validate(config, model_dir, gpus=gpus, io=io)


# config -> Triton's text, which is the whole message but for a hint in brackets
REFUSED = {
    'name: "other"': "unexpected directory name 'm' for model 'other', directory name must equal model name",
    'backend: "onnxruntime"': "unexpected 'platform' and 'backend' pair, got:, onnxruntime",
    'backend: "tensorrt" platform: "x"': "unexpected 'platform' and 'backend' pair, got:x, tensorrt",
    "max_batch_size: -1": "'max_batch_size' must be non-negative value for m",
    # Tensors
    "input { }": "model input must specify 'name' for m",
    'output { name: "B" }': "model output 'B' must specify 'data_type' for m",
    'input { name: "A" data_type: TYPE_INT8 }': "model input 'A' must specify 'dims' for m",
    'input { name: "A" data_type: TYPE_INT8 dims: [ 2, 0 ] }':
        "model input 'A' dimension must be integer >= 1, or -1 to indicate a variable-size dimension for m",
    'input { name: "A" data_type: TYPE_INT8 dims: -2 }':
        "model input 'A' dimension must be integer >= 1, or -1 to indicate a variable-size dimension for m",
    'output { name: "B" data_type: TYPE_INT8 dims: 4 reshape { shape: [ 0 ] } }':
        "model output 'B' reshape dimensions must be integer >= 1, or -1 to indicate a variable-size dimension for m",
    'input { name: "A" data_type: TYPE_INT8 dims: 1 reshape { } }':
        "model input 'A' cannot have empty reshape for non-batching model as scalar tensors are not supported for m",
    f'input {{ name: "A" data_type: TYPE_INT8 dims: [ {"1, " * 64}2 ] }}':
        "model input 'A' dimension must be at most 64 integers for m",
    f'output {{ name: "B" data_type: TYPE_INT8 dims: 2 reshape {{ shape: [ {"1, " * 64}2 ] }} }}':
        "model output 'B' reshape dimensions must be at most 64 integers for m",
    'output { name: "B" data_type: TYPE_INT8 dims: [ 2, 2 ] reshape { shape: [ 3 ] } }':
        "model output 'B' has different size for dims and reshape for m",
    'input { name: "A" data_type: TYPE_INT8 dims: [ -1, 4 ] reshape { shape: [ -1, -1, 4 ] } }':
        "model input 'A' has different number of variable-size dimensions for dims and reshape for m",
    'input { name: "A" data_type: TYPE_INT8 dims: [ 2, -1, 4 ] reshape { shape: [ 4, -1, 2 ] } }':
        "model input 'A' has different size for dims and reshape for m",
    'input { name: "A" data_type: TYPE_INT8 dims: [ 9223372036854775807, 2 ] }':
        "element count for tensor 'A dims' exceeds maximum size of 9223372036854775807 for m",
    'input { name: "A" data_type: TYPE_INT8 dims: [ 1, 3, 8, 8 ] format: FORMAT_NCHW }':
        "model input NHWC/NCHW require 3 dims for m",
    'input { name: "A" data_type: TYPE_INT8 dims: 1 is_shape_tensor: true }':
        "shape tensors are only supported for TensorRT platform for m",
    'output { name: "A" data_type: TYPE_INT8 dims: 1 is_non_linear_format_io: true }':
        "Non-linear IO format is only supported for the TensorRT platform for m",
    'backend: "tensorrt" platform: "tensorrt_plan" '
    'input { name: "A" data_type: TYPE_INT8 dims: 1 is_non_linear_format_io: true }':
        "Non-linear IO format input requires 3 dims for m",
    IO + 'input { name: "A" data_type: TYPE_INT8 dims: 1 }': "model input 'A' is specified more than once for m",
    # Batch tensors
    IO + 'batch_input { target_name: "X" data_type: TYPE_INT32 }':
        "batch input kind 'BATCH_ELEMENT_COUNT' expects 1 source input, got 0 for m",
    IO + 'batch_input { target_name: "X" data_type: TYPE_INT64 source_input: "A" }':
        "batch input data type must be TYPE_INT32 or TYPE_FP32 for m",
    IO + 'batch_input { target_name: "X" data_type: TYPE_INT32 source_input: "Q" }':
        "unknown source input name 'Q' for m",
    IO + 'batch_output { target_name: "X" source_input: "A" }': "unknown target output name 'X' for m",
    IO + 'batch_output { target_name: [ "B", "B" ] source_input: "A" }':
        "target output name 'B' can only be specified once for m",
    IO + 'batch_output { target_name: "B" }':
        "batch output kind 'BATCH_SCATTER_WITH_INPUT_SHAPE' expects 1 source input, got 0 for m",
    # Dynamic batching
    "max_batch_size: 4 dynamic_batching { preferred_batch_size: 0 }":
        "dynamic batching preferred size must be positive for m",
    "max_batch_size: 4 dynamic_batching { preferred_batch_size: [ 4, 8 ] }":
        "dynamic batching preferred size must be <= max batch size for m",
    "dynamic_batching { priority_levels: 2 }": "default priority level must be in range [1, 2] for m",
    "dynamic_batching { priority_levels: 2 default_priority_level: 1 priority_queue_policy { key: 3 value { } } }":
        "priority queue policy must have priority level in range [1, 2] for m",
    "dynamic_batching { priority_levels: 2 default_priority_level: 1 preserve_ordering: true }":
        "Only one priority level is allowed when 'preserve_ordering' is true for m",
    "dynamic_batching { preserve_ordering: true "
    "default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 1 } }":
        "Queue policy can not have DELAY as timeout action when 'preserve_ordering' is true for m",
    # Sequences
    SEQUENCE + "} response_cache { enable: true }":
        "Response Cache does not currently support model m with sequence batching scheduler. "
        "Please disable the response cache.",
    SEQUENCE + "control_input { } }": "sequence batching control tensor must have a name for m",
    SEQUENCE + "control_input { name: 'X' } control_input { name: 'X' } }":
        "sequence batching control tensor 'X' is specified for multiple control kinds for m",
    SEQUENCE + control("X", "int32_false_true: [ 0, 1 ]") + control("Y", "int32_false_true: [ 0, 1 ]") + "}":
        "sequence batching specifies multiple CONTROL_SEQUENCE_START tensors for m",
    SEQUENCE + control("X", "kind: CONTROL_SEQUENCE_READY") + "}":
        "sequence batching must specify either 'int32_false_true', 'fp32_false_true' or 'bool_false_true' for "
        "CONTROL_SEQUENCE_READY for m",
    SEQUENCE + control("X", "fp32_false_true: [ 0, 1 ] bool_false_true: [ false, true ]") + "}":
        "sequence batching specifies more than one from 'int32_false_true', 'fp32_false_true' and 'bool_false_true' "
        "for CONTROL_SEQUENCE_START for m",
    SEQUENCE + control("X", "kind: CONTROL_SEQUENCE_END int32_false_true: [ 0 ]") + "}":
        "sequence batching control 'int32_false_true' must have exactly 2 entries for CONTROL_SEQUENCE_END for m",
    SEQUENCE + control("X", "kind: CONTROL_SEQUENCE_CORRID int32_false_true: [ 0, 1 ]") + "}":
        "sequence batching must not specify either 'int32_false_true', 'fp32_false_true' or 'bool_false_true' for "
        "CONTROL_SEQUENCE_CORRID for m",
    SEQUENCE + control("X", "kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_FP32") + "}":
        "unexpected data type for control CONTROL_SEQUENCE_CORRID for m. Allowed data types are TYPE_UINT64, "
        "TYPE_INT64, TYPE_UINT32, TYPE_INT32 and TYPE_STRING",
    SEQUENCE + "oldest { preferred_batch_size: 5 } }":
        "sequence batching preferred batch size must be <= max batch size for m",
    SEQUENCE + "direct { minimum_slot_utilization: 1.5 } }":
        "sequence batching minimum slot utilization must be in range (0.0, 1.0] for m",
    SEQUENCE + STATE + "initial_state { data_type: TYPE_INT8 } } }":
        "The data type used for 'initial_state' field of state 'S' does not match the state data type.",
    SEQUENCE + STATE + "initial_state { data_type: TYPE_FP32 } } }":
        "Field 'name' must be set when using initial_state for state input 'S'.",
    SEQUENCE + STATE + "initial_state { data_type: TYPE_FP32 name: 'i' } } }":
        "Number of dimensions in 'initial_state' doesn't match the size of 'state' dimensions for state input 'S'. "
        "0 != 1",
    SEQUENCE + STATE + "initial_state { data_type: TYPE_FP32 name: 'i' dims: -1 } } }":
        "'initial_state' field for state input name 'S' contains variable dimensions.",
    SEQUENCE + STATE + "initial_state { data_type: TYPE_FP32 name: 'i' dims: 3 } } }":
        "'initial_state' dim for input name 'S' doesn't match 'state' dim description. 3 != 2",
    SEQUENCE + STATE + "initial_state { data_type: TYPE_FP32 name: 'i' dims: 2 } } }":
        "initial_state setting expects state'S' to have state_data set",
    # Ensembles
    'platform: "ensemble"': "ensemble scheduling must be set for ensemble m whose platform is ensemble",
    'platform: "ensemble" backend: "python"':
        "Ensemble model 'm' must have platform type 'ensemble' and empty backend type",
    "ensemble_scheduling { }": "ensemble scheduling cannot be set for model 'm' whose platform is not ensemble",
    ENSEMBLE + "ensemble_scheduling { }": "must specify 'step' for ensemble 'm'",
    ENSEMBLE + "ensemble_scheduling { } instance_group { }":
        "instance group should not be specified for ensemble 'm'",
    ENSEMBLE + "ensemble_scheduling { } optimization { }": "optimization should not be specified for ensemble 'm'",
    ENSEMBLE + "ensemble_scheduling { } model_warmup { }": "model_warmup can not be specified for ensemble 'm'",
    ENSEMBLE + "ensemble_scheduling { step { } }": "must specify 'model_name' in step 0 of ensemble 'm'",
    ENSEMBLE + "ensemble_scheduling { step { model_name: 'x' } }":
        "must specify 'input_map' in step 0 of ensemble 'm'",
    ENSEMBLE + "ensemble_scheduling { " + step("I", "O") + step("I", "O") + "}":
        "ensemble tensor 'O' can appear in an output map only once for ensemble 'm' step 1",
    ENSEMBLE + "ensemble_scheduling { " + step("i", "O") + "}": "ensemble input 'I' for ensemble m' is not used",
    ENSEMBLE + "ensemble_scheduling { " + step("I", "o") + "}": "ensemble output 'O' for ensemble m' is not used",
    ENSEMBLE + "ensemble_scheduling { " + step("I", "P") + step("Q", "O") + "}":
        "output 'O' for ensemble 'm' is not written: at least one of its depending tensors, 'Q', is not connected",
    ENSEMBLE + "ensemble_scheduling { " + step("I", "O") + step("I", "Z") + "}":
        "ensemble tensor 'Z' is unused in ensemble 'm'",
    ENSEMBLE + "ensemble_scheduling { " + step("I", "W") + step("P", "Q") + step("Q", "P") + step("P", "O") + "}":
        "output 'O' for ensemble 'm' is not written: at least one of its depending tensors, 'Q', is not connected",
    # Groups
    "instance_group { kind: KIND_GPU }":
        "instance group m_0 of model m has kind KIND_GPU but no GPUs are available",
    "instance_group { kind: KIND_CPU gpus: 0 }":
        "instance group m_0 of model m has kind KIND_CPU but specifies one or more GPUs",
    "instance_group { kind: KIND_MODEL gpus: 0 }":
        "instance group m_0 of model m has kind KIND_MODEL but specifies one or more GPUs",
    "instance_group { name: 'g' profile: '0' }":
        "instance group g of model m and platform specifies profile field which is only supported for TensorRT models",
    "instance_group { count: 1000000000 }": "model m asks for 1000000000 instances, the limit is 1024",
    # Cache, metrics, warm-up
    "response_cache { enable: true } model_transaction_policy { decoupled: true }":
        "Response Cache does not currently support model m with 'decoupled' transaction policy. "
        "Please disable the response cache.",
    "model_metrics { metric_control { } }": "metric control must specify 'metric_identifier'",
    "model_metrics { metric_control { metric_identifier { } } }":
        "metric identifier must specify non-empty 'family'",
    "model_metrics { metric_control { metric_identifier { family: 'f' } } }":
        "metric control must specify 'histogram_options'",
    "model_metrics { metric_control { metric_identifier { family: 'f' } histogram_options { } } }":
        "histogram options must specify non-empty 'buckets'",
    "model_warmup { batch_size: 1 inputs { key: 'A' value { data_type: TYPE_FP32 dims: -1 zero_data: true } } }":
        "warmup setting expects all variable-size dimensions are specified for input 'A'",
    "model_warmup { batch_size: 1 inputs { key: 'A' value { data_type: TYPE_FP32 dims: 1 } } }":
        "warmup setting expects input 'A' to have input_data_type set",
    "model_warmup { batch_size: 1 inputs { key: 'A' value { data_type: TYPE_FP64 dims: [ 4611686018427387904 ] } } }":
        "byte size for tensor 'A' exceeds maximum size of 9223372036854775807",
}  # fmt: skip


@pytest.mark.parametrize("text", REFUSED, ids=[str(number) for number in range(len(REFUSED))])
def test_refused_with_the_text_of_triton(text: str) -> None:
    with pytest.raises(cfg.ConfigError) as caught:
        check(text)
    assert caught.value.text == REFUSED[text]
    assert caught.value.code is Code.INVALID_ARG
    assert str(caught.value).startswith(REFUSED[text])


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ('name: "m "', "the name begins or ends with white space"),
        ('name: "${model}"', "a template variable in 'name' was not filled in"),
        ('name: "x"', "remove 'name' from the config or write name: \"m\""),
        ('backend: "onnxruntime" platform: "onnx"', "for backend 'onnxruntime' the platform is onnxruntime_onnx"),
        (IO + "batch_input { data_type: TYPE_INT32 source_input: 'a' }", "did you mean 'A'?"),
        ("max_batch_size: 4 dynamic_batching { preferred_batch_size: 8 }", "got 8, max_batch_size is 4"),
        (ENSEMBLE + "ensemble_scheduling { " + step("i", "O") + "}", "did you mean 'i'?"),
        ("instance_group { kind: KIND_GPU }", "use KIND_CPU or KIND_AUTO"),
    ],
)
def test_hint(text: str, hint: str) -> None:
    with pytest.raises(cfg.ConfigError) as caught:
        check(text)
    assert caught.value.hint.startswith(hint)
    assert str(caught.value) == f"{caught.value.text} ({caught.value.hint})"


@pytest.mark.parametrize(
    "text",
    [
        IO,
        'backend: "pytorch" platform: "torch_aoti"',
        'backend: "my_backend" platform: "anything"',
        'max_batch_size: 1 input { name: "A" data_type: TYPE_INT8 dims: 1 reshape { } }',
        'input { name: "A" data_type: TYPE_INT8 dims: [ 2, 4, -1, 6 ] reshape { shape: [ 8, -1, 1, 6 ] } }',
        "max_batch_size: 4 dynamic_batching { preferred_batch_size: [ 2, 4 ] preserve_ordering: true }",
        SEQUENCE + "direct { } " + control("C", "kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_STRING") + "}",
        SEQUENCE + STATE + "initial_state { data_type: TYPE_FP32 name: 'i' dims: 2 zero_data: true } } }",
        ENSEMBLE + "ensemble_scheduling { " + step("I", "P") + step("P", "O") + "}",
        "model_warmup { inputs { key: 'A' value { dims: -1 } } }",
    ],
)
def test_accepted(text: str) -> None:
    check(text)


def test_tensors_wait_for_auto_complete() -> None:
    check("input { }", io=False)


def test_groups_against_gpus() -> None:
    check("instance_group { kind: KIND_GPU gpus: [ 0, 1 ] }", gpus=(0, 1))
    with pytest.raises(cfg.ConfigError, match=r"m_0 of model m specifies invalid or unsupported gpu id 7\. .* 0, 1"):
        check("instance_group { kind: KIND_GPU gpus: 7 }", gpus=(0, 1))
    config = parse.parse_text(b'name: "m" backend: "x" instance_group { kind: KIND_GPU gpus: 0 }', "f").config
    cfg.normalize(config, cpu_count=1)
    with pytest.raises(cfg.ConfigError, match=r"kind KIND_GPU but no GPUs are available"):
        cfg.check_groups(config, (), on_gpu=False)
    with pytest.raises(cfg.ConfigError, match=r"kind KIND_GPU but backend 'x' as installed runs on the CPU only"):
        cfg.check_groups(config, (0,), on_gpu=False)
    config = parse.parse_text(b'name: "m" instance_group { name: "g" }', "f").config
    with pytest.raises(Internal, match="instance group g of model m has unexpected kind KIND_AUTO"):
        cfg.check_groups(config)


# --- file names -----------------------------------------------------------------------------------------------------

# {up} is one folder up for names that begin in a version directory.
ESCAPES = ["{up}../x", "a/../{up}../x", "{up}..", "{up}out/x", "/etc/passwd", "a\\..\\..\\..\\x", "C:\\x", "a\0b"]
LABEL_ESCAPES = ["../x", "a/../../x", "..", "out/x", "/etc/passwd", "a\0b"]
NAMES = {
    "default_model_filename: @": "../",
    "cc_model_filenames { key: '7.5' value: @ }": "../",
    "model_warmup { batch_size: 1 inputs { key: 'A' value { dims: 1 input_data_file: @ } } }": "../",
    SEQUENCE + STATE + "initial_state { data_type: TYPE_FP32 name: 'i' dims: 2 data_file: @ } } }": "../",
}
LABEL = 'output { name: "B" data_type: TYPE_FP32 dims: 1 label_filename: @ }'
CASES = [(text, name.format(up=up)) for text, up in NAMES.items() for name in (*ESCAPES, "x/" * 600)]
CASES += [(LABEL, name) for name in LABEL_ESCAPES]


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    path = tmp_path / "repository" / "m"
    for folder in ("1", "warmup", "initial_state"):
        (path / folder).mkdir(parents=True)
    (path.parent / "x").write_text("secret")
    (path / "out").symlink_to(path.parent)
    return path


@pytest.mark.parametrize(("text", "name"), CASES)
def test_no_file_name_leaves_the_model_directory(text: str, name: str, model_dir: Path) -> None:
    literal = '"' + name.replace("\\", "\\\\").replace("\0", "\\000") + '"'
    with pytest.raises(ServerError) as caught:
        check(text.replace("@", literal), model_dir)
    assert caught.value.code in (Code.INVALID_ARG, Code.UNSUPPORTED)
    assert str(model_dir.parent) not in str(caught.value)
    assert "\0" not in str(caught.value)


def test_links_inside_the_model_directory_are_fine(model_dir: Path) -> None:
    # As a mounted Kubernetes config map has them.
    (model_dir / "..data").mkdir()
    (model_dir / "..data" / "labels.txt").write_text("cat\ndog\n")
    (model_dir / "labels.txt").symlink_to("..data/labels.txt")
    # And the model file itself may be a link to a store.
    (model_dir / "1" / "model.onnx").symlink_to(model_dir.parent / "x")
    text = IO.replace("} output { ", '} output { label_filename: "labels.txt" ')
    check(text + 'default_model_filename: "model.onnx"', model_dir)
    config = parse.parse_text(text.encode(), "f").config
    inputs, outputs = cfg.io_specs(config, model_dir)
    assert outputs[0].labels == (b"cat", b"dog")
    assert inputs[0] == cfg.IoSpec("A", cfg.DataType.FP32, (4,))


def test_label_file_outside_has_the_text_of_triton(model_dir: Path) -> None:
    config = parse.parse_text((IO.replace("} output { ", '} output { label_filename: "../x" ')).encode(), "f").config
    config.name = "m"
    with pytest.raises(Unsupported) as caught:
        cfg.io_specs(config, model_dir)
    assert str(caught.value) == "label file path 'm/../x' for output 'B' in model 'm' is outside model directory"


def test_label_file_that_cannot_be_read(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = parse.parse_text((IO.replace("} output { ", '} output { label_filename: "l" ')).encode(), "f").config
    config.name = "m"
    with pytest.raises(Internal, match=r"^failed to open text file for read m/l: No such file or directory$"):
        cfg.io_specs(config, model_dir)
    os.mkfifo(model_dir / "l")
    with pytest.raises(Internal, match=r"m/l: not a regular file"):
        cfg.io_specs(config, model_dir)
    (model_dir / "l").unlink()
    (model_dir / "l").write_bytes(b"a\r\n\nb")
    assert cfg.io_specs(config, model_dir)[1][0].labels == (b"a", b"", b"b")
    monkeypatch.setattr("triton_fast.config.paths.MAX_LABELS", 2)
    with pytest.raises(cfg.ConfigError, match="label file m/l has 3 lines, the limit is 2"):
        cfg.io_specs(config, model_dir)
    monkeypatch.setattr("triton_fast.config.paths.MAX_LABEL_BYTES", 3)
    with pytest.raises(cfg.ConfigError, match="label file m/l is larger than 3 bytes"):
        cfg.io_specs(config, model_dir)
