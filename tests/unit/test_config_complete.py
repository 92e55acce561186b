"""Auto-complete from the model's own tensors, and configs that do not fit the model."""

from __future__ import annotations

import itertools

import pytest

from triton_fast import config as cfg
from triton_fast import protos
from triton_fast.config import parse
from triton_fast.config.complete import ModelTensor
from triton_fast.config.errors import ConfigError
from triton_fast.errors import Internal
from triton_fast.types import DataType

X = ModelTensor("x", DataType.FP32, (-1, 3, -1))
Y = ModelTensor("y", DataType.INT64, (-1,))


def parsed(text: str) -> parse.Parsed:
    return parse.parse_text(f'name: "m" backend: "onnxruntime" {text}'.encode(), "f")


def complete(
    text: str, inputs: tuple[ModelTensor, ...] = (X,), outputs: tuple[ModelTensor, ...] = (Y,), default: int = 4
) -> protos.ModelConfig:
    config, given = parsed(text)
    cfg.complete_from_model(config, inputs, outputs, default_max_batch_size=default, given=given)
    return config


def tensors(entries: object) -> list[tuple[str, int, list[int], list[int] | None]]:
    return [
        (t.name, t.data_type, list(t.dims), list(t.reshape.shape) if t.HasField("reshape") else None) for t in entries
    ]


def test_empty_config_of_a_batching_model() -> None:
    config = complete("")
    assert config.max_batch_size == 4
    assert tensors(config.input) == [("x", DataType.FP32, [3, -1], None)]
    # A scalar per item is dims [1], reshaped to nothing for the backend.
    assert tensors(config.output) == [("y", DataType.INT64, [1], [])]
    assert list(config.dynamic_batching.preferred_batch_size) == [4]
    cfg.check_against_model(config, [X], [Y])


def test_a_datatype_that_no_request_can_have() -> None:
    odd = ModelTensor("y8", DataType.INVALID, (-1,))
    text = "autofill failed for model 'm': 'y8' has a datatype that is not supported"
    with pytest.raises(ConfigError, match=text) as raised:
        complete("", outputs=(Y, odd))
    assert "without it" in raised.value.hint
    assert tensors(complete('output { name: "y" data_type: TYPE_INT64 dims: 1 }', outputs=(Y, odd)).output)
    with pytest.raises(ConfigError, match=text):
        complete("", inputs=(odd,))


def test_model_without_a_batch_dimension() -> None:
    scalar = ModelTensor("s", DataType.BOOL, ())
    config = complete("", (ModelTensor("x", DataType.FP32, (2, -1)),), (scalar,))
    assert config.max_batch_size == 0
    assert tensors(config.input) == [("x", DataType.FP32, [2, -1], None)]
    assert tensors(config.output) == [("s", DataType.BOOL, [1], None)]
    assert config.WhichOneof("scheduling_choice") is None
    cfg.check_against_model(config, [ModelTensor("x", DataType.FP32, (2, -1))], [scalar])


@pytest.mark.parametrize("default", [0, 1, 8])
def test_default_max_batch_size_of_the_backend(default: int) -> None:
    config = complete("", default=default)
    assert config.max_batch_size == default
    assert config.HasField("dynamic_batching") == (default > 1)


def test_batches_wanted_of_a_model_that_has_none() -> None:
    with pytest.raises(cfg.ConfigError) as caught:
        complete("max_batch_size: 8", (X, ModelTensor("z", DataType.FP32, (1, 3))))
    assert caught.value.text == (
        "autofill failed for model 'm': model does not support batching while non-zero max_batch_size is specified"
    )
    assert "'z' has shape [1,3]" in caught.value.hint


# Every combination of these lines is a config; whatever the user wrote must be there afterwards, unchanged.
LINES = {
    "max_batch_size": ["", "max_batch_size: 0", "max_batch_size: 1", "max_batch_size: 16"],
    "input": ["", "input { name: 'x' data_type: TYPE_FP32 dims: [ 3, 7 ] }"],
    "output": ["", "output { name: 'y' data_type: TYPE_INT64 dims: 1 reshape { shape: [ ] } }"],
    "scheduler": [
        "",
        "dynamic_batching { max_queue_delay_microseconds: 9 }",
        "dynamic_batching { preferred_batch_size: 1 }",
        "sequence_batching { max_sequence_idle_microseconds: 3 }",
    ],
}


@pytest.mark.parametrize("lines", list(itertools.product(*LINES.values())), ids=lambda lines: " ".join(lines) or "-")
def test_nothing_the_user_gave_is_overridden(lines: tuple[str, ...]) -> None:
    text = " ".join(lines)
    config, given = parsed(text)
    before = protos.ModelConfig.FromString(config.SerializeToString())
    cfg.complete_from_model(config, [X], [Y], default_max_batch_size=4, given=given)
    cfg.normalize(config, cpu_count=4)
    if "max_batch_size" in given:
        assert config.max_batch_size == before.max_batch_size
    if before.input:
        assert list(config.input) == list(before.input)
    if before.output:
        assert list(config.output) == list(before.output)
    if before.WhichOneof("scheduling_choice"):
        choice = before.WhichOneof("scheduling_choice")
        assert config.WhichOneof("scheduling_choice") == choice
        for field, value in getattr(before, choice).ListFields():
            assert getattr(getattr(config, choice), field.name) == value
    if before.input and before.output:
        assert config.max_batch_size == before.max_batch_size, "a full config is left alone"
    else:
        assert config.input
        assert config.output


def test_shapes_written_with_their_batch_dimension_mean_no_batching() -> None:
    config = complete("input { name: 'x' data_type: TYPE_FP32 dims: [ -1, 3, -1 ] }")
    assert config.max_batch_size == 0
    assert tensors(config.output) == [("y", DataType.INT64, [-1], None)]
    cfg.check_against_model(config, [X], [Y])


def test_batch_inputs_count_as_inputs() -> None:
    config = complete("batch_input { target_name: 'x' source_input: 'q' data_type: TYPE_INT32 }")
    assert not config.input
    assert config.output


IN = "input { name: 'x' data_type: TYPE_FP32 dims: [ 3, -1 ] } "
OUT = "output { name: 'y' data_type: TYPE_INT64 dims: [ 1 ] reshape { } } "


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "max_batch_size: 2 " + IN + IN.replace("'x'", "'z'") + OUT,
            "unable to load model 'm', configuration expects 2 inputs, model provides 1",
        ),
        (
            "max_batch_size: 2 " + IN.replace("'x'", "'X0'") + OUT,
            "unexpected inference input 'X0', allowed inputs are: x",
        ),
        (
            "max_batch_size: 2 " + IN + OUT.replace("'y'", "'z'"),
            "unexpected inference output 'z', allowed outputs are: y",
        ),
        (
            "max_batch_size: 2 " + IN.replace("FP32", "FP16") + OUT,
            "unable to load model 'm', configuration expects datatype TYPE_FP16 for input 'x', "
            "model provides TYPE_FP32",
        ),
        (
            "max_batch_size: 2 " + IN + OUT.replace("INT64", "STRING"),
            "unable to load model 'm', configuration expects datatype TYPE_STRING for output 'y', "
            "model provides TYPE_INT64",
        ),
        (
            "max_batch_size: 2 " + IN.replace("3, -1", "-1, 3, -1") + OUT,
            "model 'm', tensor 'x': the model expects 3 dimensions (shape [-1,3,-1]) but the model configuration "
            "specifies 4 dimensions (an initial batch dimension because max_batch_size > 0 followed by the explicit "
            "tensor shape, making complete shape [-1,-1,3,-1])",
        ),
        (
            IN + OUT,
            "model 'm', tensor 'x': the model expects 3 dimensions (shape [-1,3,-1]) but the model configuration "
            "specifies 2 dimensions (shape [3,-1])",
        ),
        (
            "max_batch_size: 2 " + IN.replace("dims", "optional: true dims") + OUT,
            "unable to load model 'm', optional input 'x' is not supported for models that support batching",
        ),
        (
            "max_batch_size: 2 " + IN.replace("dims", "allow_ragged_batch: true dims") + OUT,
            "unable to load model 'm', configuration expects model provides input with shape [-1]  for ragged input "
            "'x', model provides [-1,3,-1]",
        ),
        (
            "max_batch_size: 2 " + IN + OUT + "sequence_batching { control_input { name: 'x' control { "
            "int32_false_true: [ 0, 1 ] } } }",
            "unable to load model 'm', sequence control 'x' in model has dims [3,-1] but dims [1] is expected",
        ),
    ],
)
def test_config_that_does_not_fit_the_model(text: str, expected: str) -> None:
    with pytest.raises(cfg.ConfigError) as caught:
        cfg.check_against_model(parsed(text).config, [X], [Y])
    assert caught.value.text == expected


def test_hints_give_the_line_to_write() -> None:
    with pytest.raises(cfg.ConfigError) as caught:
        cfg.check_against_model(parsed("max_batch_size: 2 " + IN.replace("3, -1", "-1, 3, -1") + OUT).config, [X], [Y])
    assert caught.value.hint == "write dims: [3,-1]"
    fixed = ModelTensor("x", DataType.FP32, (1, 3, -1))
    with pytest.raises(cfg.ConfigError) as caught:
        cfg.check_against_model(parsed("max_batch_size: 2 " + IN + OUT).config, [fixed], [Y])
    assert caught.value.text == (
        "model 'm', tensor 'x': for the model to support batching the shape should have at least 1 dimension and the "
        "first dimension must be -1; but shape expected by the model is [1,3,-1]"
    )
    assert caught.value.hint == "set max_batch_size: 0 and write the whole shape in dims"


def test_fixed_input_dims_may_stand_for_variable_ones_but_not_in_outputs() -> None:
    wide = ModelTensor("y", DataType.INT64, (-1, -1))
    out = "output { name: 'y' data_type: TYPE_INT64 dims: [ 5 ] } "
    text = "max_batch_size: 2 " + IN.replace("3, -1", "3, 9")
    with pytest.raises(cfg.ConfigError, match="tensor 'y': the model expects 2 dimensions"):
        cfg.check_against_model(parsed(text + out).config, [X], [wide])
    scattered = out + "batch_output { target_name: 'y' source_input: 'x' }"
    cfg.check_against_model(parsed(text + scattered).config, [X], [wide])


def test_optional_inputs_are_initializers() -> None:
    weight = ModelTensor("w", DataType.FP32, (2,))
    text = IN.replace("3, -1", "-1, 3, -1") + OUT.replace("1 ] reshape { }", "-1 ]")
    extra = "input { name: 'w' data_type: TYPE_FP32 dims: 2 optional: true } "
    cfg.check_against_model(parsed(text + extra).config, [X], [Y], optional=[weight])
    with pytest.raises(cfg.ConfigError, match="optional input 'w' is not supported for models that support batching"):
        cfg.check_against_model(parsed("max_batch_size: 1 " + IN + OUT + extra).config, [X], [Y], optional=[weight])


def test_sequence_controls_and_states_count_as_inputs() -> None:
    start = ModelTensor("START", DataType.INT32, (-1, 1))
    state_in = ModelTensor("si", DataType.FP32, (-1, 2))
    state_out = ModelTensor("so", DataType.FP32, (-1, 2))
    body = (
        "control_input { name: 'START' control { int32_false_true: [ 0, 1 ] } } "
        "state { input_name: 'si' output_name: 'so' data_type: TYPE_FP32 dims: 2 } "
    )
    text = "max_batch_size: 2 " + IN + OUT + "sequence_batching { " + body + "}"
    cfg.check_against_model(parsed(text).config, [X, start, state_in], [Y, state_out])
    with pytest.raises(Internal, match="sequence control 'START', but model does not provide that input"):
        cfg.check_against_model(parsed(text).config, [X, state_in], [Y, state_out])
    with pytest.raises(cfg.ConfigError, match="the model expects data-type TYPE_INT32 but"):
        other = text.replace("int32_false", "fp32_false")
        cfg.check_against_model(parsed(other).config, [X, start, state_in], [Y, state_out])
    with pytest.raises(cfg.ConfigError, match="unexpected inference output 'so', allowed outputs are: y"):
        cfg.check_against_model(parsed(text).config, [X, start, state_in], [Y])
