"""TensorRT configs: what auto-complete fills in, what is refused and with which words, how a plan is chosen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import standin_cuda, trt_plans
from tests.helpers.trt_models import Opener, context
from tests.helpers.trt_plans import add_sub, between, plan, spread, swap, tensor, write
from triton_fast.backends.tensorrt.check import largest_dims, outside
from triton_fast.backends.tensorrt.engine import Range
from triton_fast.backends.tensorrt.plan import GraphSpec, make_plan
from triton_fast.errors import Internal, InvalidArg, ServerError, Unsupported

COPY = [{"op": "copy", "in": ["IN"], "out": "OUT"}]
IN = 'input [{ name: "IN" data_type: TYPE_FP32 dims: [2, 3] }]\n'
PREFERRED = "max_batch_size: 8 dynamic_batching { preferred_batch_size: [4] }\n"
OUT = 'output [{ name: "OUT" data_type: TYPE_FP32 dims: [3, 2] }]\n'


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    with standin_cuda.opened(), trt_plans.installed():
        yield tmp_path


@pytest.fixture
def opened(root: Path) -> Iterator[Opener]:
    opener = Opener(root)
    yield opener
    opener.close()


def completed(root: Path, data: bytes, config: str = "", **settings: str) -> Any:
    return context(write(root, data, f'backend: "tensorrt"\n{config}'), **settings).config


def copy(shape: tuple[int, ...], kind: str = "FP32", **more: Any) -> bytes:
    tensors = [tensor("IN", kind, shape, given=True, **more), tensor("OUT", kind, shape, given=False, **more)]
    ranges = {"IN": between([1 if dim < 0 else dim for dim in shape], [6 if dim < 0 else dim for dim in shape])}
    return plan(tensors, COPY, [ranges])


# --- auto-complete ---------------------------------------------------------------------------------------------------


def test_everything_is_filled_in(root: Path) -> None:
    config = completed(root, swap("FP16"))
    assert (config.platform, config.max_batch_size, config.WhichOneof("scheduling_choice")) == (
        "tensorrt_plan", 8, "dynamic_batching",
    )  # fmt: skip
    assert [(one.name, one.data_type, list(one.dims)) for one in (*config.input, *config.output)] == [
        ("IN", 10, [2, 3]), ("OUT", 10, [3, 2]),
    ]  # fmt: skip
    assert [(group.kind, list(group.gpus), group.count) for group in config.instance_group] == [(1, [0, 1], 1)]


@pytest.mark.parametrize(
    ("shape", "size", "dims"),
    [
        ((-1, 4), 6, [4]),
        ((5, 4), 5, [4]),  # a first dimension that is fixed is taken for a batch, as in Triton
        ((1, 4), 1, [4]),
        ((-1,), 6, [1]),
        ((), 0, [1]),
    ],
)
def test_the_batch_size_is_that_of_the_profile(root: Path, shape: tuple[int, ...], size: int, dims: list[int]) -> None:
    config = completed(root, copy(shape))
    assert (config.max_batch_size, list(config.input[0].dims)) == (size, dims)
    assert config.input[0].HasField("reshape") == (shape == (-1,))
    assert config.HasField("dynamic_batching") == (size > 1)


def test_a_written_batch_size_stays(root: Path) -> None:
    assert list(completed(root, swap(), "max_batch_size: 0\n").input[0].dims) == [-1, 2, 3]
    config = completed(root, swap(), "max_batch_size: 3\n")
    assert (config.max_batch_size, list(config.input[0].dims)) == (3, [2, 3])
    with pytest.raises(Internal, match="specified max-batch 9 but TensorRT engine only supports max-batch 8"):
        completed(root, swap(), "max_batch_size: 9\n")


def test_first_dimensions_that_differ_are_no_batch(root: Path) -> None:
    tensors = [
        tensor("IN", "FP32", (-1, 4), given=True), tensor("W", "FP32", (3, 4), given=True),
        tensor("OUT", "FP32", (-1, 4), given=False),
    ]  # fmt: skip
    config = completed(root, plan(tensors, COPY, [{"IN": between((1, 4), (8, 4))}]))
    assert (config.max_batch_size, [list(one.dims) for one in config.input]) == (0, [[-1, 4], [3, 4]])
    with pytest.raises(Internal, match="hints for dynamic batching but the underlying engine doesn't support batching"):
        completed(
            root, plan(tensors, COPY, [{"IN": between((1, 4), (8, 4))}]),
            'input [{ name: "IN" data_type: TYPE_FP32 dims: [4] }]\n',
        )  # fmt: skip


def test_dims_tell_whether_batches_are_meant(root: Path) -> None:
    assert completed(root, swap(), IN).max_batch_size == 8
    whole = 'input [{ name: "IN" data_type: TYPE_FP32 dims: [-1, 2, 3] }]\n'
    config = completed(root, swap(), whole)
    assert (config.max_batch_size, list(config.output[0].dims)) == (0, [-1, 3, 2])
    with pytest.raises(Internal, match="contradicting each other in terms of whether batching is supported"):
        completed(root, swap(), IN + 'output [{ name: "OUT" data_type: TYPE_FP32 dims: [-1, 3, 2] }]\n')


def test_half_written_tensors_are_completed(root: Path) -> None:
    config = completed(root, swap("INT8"), 'input [{ name: "IN" }]\n')
    assert (config.input[0].data_type, list(config.input[0].dims)) == (6, [2, 3])


def test_the_largest_batch_of_the_profiles_in_use(root: Path) -> None:
    ranges = [between((1, 4), (2, 4)), between((1, 4), (16, 4)), between((1, 4), (64, 4))]
    assert completed(root, add_sub(profiles=ranges)).max_batch_size == 2
    assert completed(root, add_sub(profiles=ranges), 'instance_group [{ profile: ["0", "1"] }]\n').max_batch_size == 16
    with pytest.raises(Internal, match=r"invalid profile 3 \. Number of profiles supported by TensorRT engine: 3"):
        completed(root, add_sub(profiles=ranges), 'instance_group [{ profile: ["3"] }]\n')


def test_shape_tensors_are_marked(root: Path) -> None:
    config = completed(root, spread())
    assert [(one.name, one.is_shape_tensor, list(one.dims)) for one in (*config.input, *config.output)] == [
        ("IN", False, [1]), ("S", True, [2]), ("OUT", False, [-1, -1]), ("AS", True, [2]),
    ]  # fmt: skip
    with pytest.raises(InvalidArg, match="'IN' is incorrectly specified as a shape tensor"):
        completed(root, swap(), 'input [{ name: "IN" is_shape_tensor: true }]\n')


def test_layouts_are_marked(root: Path) -> None:
    config = completed(root, copy((-1, 8, 2, 2), "INT8", format="CHW4", vector=(1, 4)))
    assert [one.is_non_linear_format_io for one in (*config.input, *config.output)] == [True, True]
    with pytest.raises(InvalidArg, match="'IN' uses a linear IO format, but 'is_non_linear_format_io' is incorrectly"):
        completed(root, copy((-1, 8, 2, 2)), 'input [{ name: "IN" is_non_linear_format_io: true }]\n')


def test_controls_and_states_are_not_completed(opened: Opener) -> None:
    tensors = [
        tensor("IN", "FP32", (-1, 4), given=True), tensor("START", "FP32", (-1, 1), given=True),
        tensor("OUT", "FP32", (-1, 4), given=False),
    ]  # fmt: skip
    ranges = {"IN": between((1, 4), (8, 4)), "START": between((1, 1), (8, 1))}
    control = "control [{ kind: CONTROL_SEQUENCE_START fp32_false_true: [0, 1] }]"
    text = f'sequence_batching {{ control_input [{{ name: "START" {control} }}] }}\n'
    made = opened(plan(tensors, COPY, [ranges]), text)
    assert [one.name for one in made.config.input] == ["IN"]
    with pytest.raises(
        InvalidArg, match="unexpected datatype TYPE_FP32 for inference input 'START', expecting TYPE_INT32"
    ):
        opened(plan(tensors, COPY, [ranges]), text.replace("fp32_false", "int32_false"))


# --- what does not fit -----------------------------------------------------------------------------------------------

REFUSED = [
    (IN.replace("IN", "IM") + OUT, InvalidArg, "unexpected inference input 'IM', allowed inputs are: IN"),
    (IN + OUT.replace("OUT", "OUCH"), InvalidArg, "unexpected inference output 'OUCH', allowed outputs are: OUT"),
    (
        IN.replace("FP32", "FP16") + OUT, InvalidArg,
        "unexpected datatype TYPE_FP32 for inference input 'IN', expecting TYPE_FP16 for m",
    ),
    (IN.replace("FP32", "STRING") + OUT, Internal, "unsupported datatype TYPE_STRING for input 'IN' for model 'm'"),
    (
        IN.replace("[2, 3]", "[2, 4]") + OUT, InvalidArg,
        "model 'm', tensor 'IN': the model expects 3 dimensions (shape [-1,2,3]) but the model configuration specifies "
        "3 dimensions (an initial batch dimension because max_batch_size > 0 followed by the explicit tensor shape, "
        "making complete shape [-1,2,4])",
    ),
    (
        f"{IN}{IN.replace('IN', 'OUT')}{OUT}", InvalidArg,
        "unexpected inference input 'OUT', allowed inputs are: IN",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "kind", "message"), REFUSED)
def test_what_the_engine_does_not_have(opened: Opener, text: str, kind: type[ServerError], message: str) -> None:
    with pytest.raises(kind) as caught:
        opened(swap(), f"max_batch_size: 8\n{text}")
    assert message in str(caught.value)


def test_every_tensor_of_the_engine_needs_a_place(opened: Opener) -> None:
    with pytest.raises(InvalidArg, match="expected configuration for output 'DIFFERENCE' for m"):
        opened(add_sub(), 'output [{ name: "SUM" data_type: TYPE_FP32 dims: [4] }]\n')


def test_dims_outside_of_a_profile(opened: Opener) -> None:
    text = "".join(f'input [{{ name: "{name}" data_type: TYPE_FP32 dims: [9] }}]\n' for name in "AB")
    text += "".join(f'output [{{ name: "{name}" data_type: TYPE_FP32 dims: [9] }}]\n' for name in ("SUM", "DIFFERENCE"))
    with pytest.raises(InvalidArg) as caught:
        opened(add_sub("FP32", (-1, -1), [between((1, 1), (8, 8))]), f"max_batch_size: 8\n{text}")
    assert str(caught.value) == (
        "model configuration specified invalid shape for input 'A' for model m. Error details: model expected the "
        "shape of dimension 1 to be between 1 and 8 but received 9"
    )


def test_a_profile_that_is_not_there(opened: Opener) -> None:
    text = f'max_batch_size: 8\n{IN}{OUT}instance_group [{{ profile: ["4"] }}]\n'
    with pytest.raises(ServerError, match="4"):
        opened(swap(), text)


def test_marks_that_are_wrong(opened: Opener) -> None:
    text = 'input [{ name: "IN" data_type: TYPE_FP32 dims: [1] }, { name: "S" data_type: TYPE_INT32 dims: [2] }]\n'
    with pytest.raises(InvalidArg, match="is incorrectly specified as a shape tensor"):
        opened(swap(), f"max_batch_size: 8\n{IN.replace('dims', 'is_shape_tensor: true dims')}{OUT}")
    assert opened(spread(), f"max_batch_size: 8\n{text}").config.input[1].is_shape_tensor


def test_a_layout_that_is_filled_up_is_not_served(opened: Opener) -> None:
    opened(copy((-1, 8, 2, 2), "INT8", format="CHW4", vector=(1, 4)))
    with pytest.raises(Unsupported, match="has layout CHW4 with dimension 1 filled up to a multiple of 4"):
        opened(copy((-1, 3, 2, 2), "INT8", format="CHW4", vector=(1, 4)))


def test_datatypes_that_no_client_can_send(opened: Opener) -> None:
    with pytest.raises(InvalidArg, match="input 'IN' has a datatype without counterpart in the v2 protocol"):
        opened(copy((-1, 4), "FP8"))


def test_only_gpus(opened: Opener) -> None:
    text = f"max_batch_size: 8\n{IN}{OUT}instance_group [{{ kind: KIND_CPU }}]\n"
    with pytest.raises(InvalidArg) as caught:
        opened(swap(), text)
    assert str(caught.value) == "unable to load model 'm', TensorRT backend supports only GPU device"


def test_dla_cores(opened: Opener) -> None:
    text = "instance_group [{ kind: KIND_GPU secondary_devices [{ kind: KIND_NVDLA device_id: 1 }] }]\n"
    with pytest.raises(InvalidArg, match="with DLA Core ID: 1, available number of DLA cores: 0"):
        opened(swap(), text)
    twice = text.replace("device_id: 1 }", "device_id: 0 }, { kind: KIND_NVDLA device_id: 1 }")
    with pytest.raises(InvalidArg, match="must have either zero or or one secondary devices"):
        opened(swap(), twice)


# --- how it runs -----------------------------------------------------------------------------------------------------


def graphs_of(root: Path, text: str) -> tuple[GraphSpec, ...]:
    return make_plan(context(write(root, swap(), f'backend: "tensorrt"\n{text}'))).graphs


def test_which_batches_are_captured(root: Path) -> None:
    on = "optimization { cuda { graphs: true } }\n"
    assert graphs_of(root, "") == ()
    assert [spec.rows for spec in graphs_of(root, on)] == [1, 8]
    assert [spec.rows for spec in graphs_of(root, f"{on}{PREFERRED}")] == [1, 4, 8]
    assert [spec.rows for spec in graphs_of(root, f"{on}max_batch_size: 0\n")] == [0]
    spec = (
        'optimization { cuda { graphs: true graph_spec { batch_size: 2 input { key: "IN" value { dim: [2, 3] } } } } }'
    )
    assert graphs_of(root, spec) == (GraphSpec(2, (("IN", (2, 3)),)),)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("batch_size: 9", "graph spec expects 'batch_size' to be >= 1 and <= 8"),
        ("batch_size: 0", "graph spec expects 'batch_size' to be >= 1 and <= 8"),
        ("batch_size: 2 graph_lower_bound { batch_size: 3 }", "to be <= graph spec 'batch_size'"),
        (
            'batch_size: 2 input { key: "IN" value { dim: [2] } } graph_lower_bound { batch_size: 1 }',
            "graph lower bound spec expects shape for input 'IN'",
        ),
        (
            'batch_size: 2 input { key: "IN" value { dim: [2] } } '
            'graph_lower_bound { batch_size: 1 input { key: "IN" value { dim: [3] } } }',
            "graph lower bound spec expects input 'IN' to have dimension <= 2",
        ),
    ],
)
def test_graph_specs_that_can_not_be(root: Path, spec: str, message: str) -> None:
    with pytest.raises(InvalidArg) as caught:
        graphs_of(root, f"optimization {{ cuda {{ graphs: true graph_spec {{ {spec} }} }} }}\n")
    assert message in str(caught.value)


def test_settings(root: Path) -> None:
    made = context(write(root, swap()), version_compatible="true", plugins="a.so;b.so")
    assert make_plan(made).version_compatible
    assert make_plan(made).plugins == "a.so;b.so"
    for setting in ({"version_compatible": "perhaps"}, {"execution_policy": "NONE"}, {"coalesce_request_input": "x"}):
        with pytest.raises(InvalidArg, match="backend setting"):
            context(write(root, swap()), **setting)
    strategy = 'parameters { key: "execution_context_allocation_strategy" value { string_value: "%s" } }\n'
    assert make_plan(context(write(root, swap(), strategy % "ON_PROFILE_CHANGE"))).strategy == "ON_PROFILE_CHANGE"
    with pytest.raises(InvalidArg, match="Supported values are 'STATIC' and 'ON_PROFILE_CHANGE'"):
        context(write(root, swap(), strategy % "USER_MANAGED"))
    with pytest.raises(Unsupported, match="Multi-Device"):
        context(write(root, swap(), 'parameters { key: "enable_multi_device" value { string_value: "true" } }\n'))


def test_ranges() -> None:
    allowed = Range((1, 4), (2, 4), (8, 16))
    assert outside((3, 5), allowed) == outside((-1, 16), allowed) == ""
    assert outside((9, 5), allowed) == "model expected the shape of dimension 0 to be between 1 and 8 but received 9"
    assert outside((1,), allowed) == "model expected 2 dimensions but received 1 dimensions"

    class Config:
        max_batch_size = 4

    assert largest_dims(Config, (-1,), allowed) == (4, 16)
    assert largest_dims(Config, (6,), allowed) == (4, 6)
