"""An ensemble against its members: every text, and the plan that comes out."""

from __future__ import annotations

from typing import Any

import pytest

from triton_fast import config as cfg
from triton_fast.config import ConfigError, EnsemblePlan, check_members, member_names, parse
from triton_fast.config.ensemble_members import REQUEST, Batch
from triton_fast.config.validate_ensemble import check_ensemble

Maps = dict[str, str]


def tensor(side: str, name: str, dims: str = "4", kind: str = "FP32", extra: str = "") -> str:
    return f'{side} {{ name: "{name}" data_type: TYPE_{kind} dims: [{dims}] {extra} }}\n'


def model(name: str, *tensors: str, batch: int = 0, decoupled: bool = False) -> Any:
    policy = "model_transaction_policy { decoupled: true }" if decoupled else ""
    text = f'name: "{name}" backend: "b" max_batch_size: {batch} {policy}\n' + "".join(tensors)
    return parse.parse_text(text.encode(), "f").config


def plain(name: str = "m", dims: str = "4", batch: int = 0, *, kind: str = "FP32", decoupled: bool = False) -> Any:
    """IN -> OUT, alike."""
    return model(
        name, tensor("input", "IN", dims, kind), tensor("output", "OUT", dims, kind), batch=batch, decoupled=decoupled
    )


def step(name: str, inputs: Maps, outputs: Maps, version: int = -1) -> str:
    maps = [f'input_map {{ key: "{key}" value: "{value}" }}' for key, value in inputs.items()]
    maps += [f'output_map {{ key: "{key}" value: "{value}" }}' for key, value in outputs.items()]
    return f'step {{ model_name: "{name}" model_version: {version} {" ".join(maps)} }}\n'


def one(name: str, source: str, result: str) -> str:
    return step(name, {"IN": source}, {"OUT": result})


def ensemble(*parts: str, batch: int = 0, name: str = "e", scheduling: str = "") -> Any:
    """``parts``: tensors and steps, in any order. Valid by itself, or the test is wrong."""
    steps = "".join(part for part in parts if part.startswith("step"))
    tensors = "".join(part for part in parts if not part.startswith("step"))
    text = (
        f'name: "{name}" platform: "ensemble" max_batch_size: {batch}\n{tensors}'
        f"ensemble_scheduling {{ {scheduling} {steps} }}"
    )
    config = parse.parse_text(text.encode(), "f").config
    check_ensemble(config)
    return config


def plan(config: Any, *members: Any) -> EnsemblePlan:
    by_name = {member.name: member for member in members}
    return check_members(
        config,
        {(s.model_name, s.model_version): by_name[s.model_name] for s in config.ensemble_scheduling.step},
    )


def refusal(config: Any, *members: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        plan(config, *members)
    return str(caught.value)


IN = tensor("input", "I")
OUT = tensor("output", "O")


# ---- refused


@pytest.mark.parametrize(
    ("config", "members", "text"),
    [
        (
            ensemble(IN, OUT, step("m", {"INN": "I"}, {"OUT": "O"})),
            [plain()],
            "in ensemble e, ensemble tensor I is mapping to non-existing input INN in model m (did you mean 'IN'?)",
        ),
        (
            ensemble(IN, OUT, step("m", {"IN": "I"}, {"RESULT": "O"})),
            [plain()],
            "in ensemble e, ensemble tensor O is mapped from non-existing output RESULT in model m",
        ),
        (
            ensemble(IN, OUT, one("m", "I", "O")),
            [model("m", tensor("input", "IN"), tensor("input", "IN2"), tensor("output", "OUT"))],
            "in ensemble e, input IN2 in model m is not mapped to any ensemble tensors",
        ),
        (
            ensemble(IN, OUT, one("m", "I", "O")),
            [plain(kind="INT32")],
            "in ensemble e, ensemble tensor I: inconsistent data type: TYPE_FP32 is inferred from model e while "
            "TYPE_INT32 is inferred from model m",
        ),
        (
            ensemble(IN, tensor("output", "O", kind="STRING"), one("m", "I", "O")),
            [plain()],
            "in ensemble e, ensemble tensor O: inconsistent data type: TYPE_STRING is inferred from model e while "
            "TYPE_FP32 is inferred from model m",
        ),
        (
            ensemble(IN, OUT, one("a", "I", "T"), one("b", "T", "O")),
            [model("a", tensor("input", "IN"), tensor("output", "OUT", "7")), plain("b")],
            "in ensemble e, ensemble tensor T: inconsistent shape: [7] is inferred from model a while [4] is inferred "
            "from model b",
        ),
        (
            ensemble(IN, OUT, one("m", "I", "O"), batch=4),
            [plain(dims="5", batch=8)],
            "in ensemble e, ensemble tensor I: inconsistent shape: [-1,4] is inferred from model e while [-1,5] is "
            "inferred from model m",
        ),
        (
            # The batch dimension of one is a fixed dimension of the other, and the ranks differ.
            ensemble(IN, OUT, one("m", "I", "O"), batch=4),
            [plain(dims="2, 4, 3")],
            "in ensemble e, ensemble tensor I: inconsistent shape: [-1,4] is inferred from model e while [2,4,3] is "
            "inferred from model m",
        ),
        (
            ensemble(IN, OUT, one("a", "I", "T"), one("b", "T", "O"), batch=8),
            [plain("a", batch=8), plain("b", batch=4)],
            "ensemble e allows maximum batch size 8, but it contains model b which only allows maximum batch size to "
            "be 4 (also where the model has batch_splitting: the ensemble can have that itself)",
        ),
        (
            # Its input has its shape by the ensemble's reshape.
            ensemble(tensor("input", "I", "4", extra="reshape { shape: [2, 2] }"), OUT, one("m", "I", "O")),
            [plain()],
            "in ensemble e, ensemble tensor I: inconsistent shape: [2,2] is inferred from model e while [4] is "
            "inferred from model m",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit(config, members, text):
    assert refusal(config, *members) == text


JOIN = model("join", tensor("input", "A"), tensor("input", "B"), tensor("output", "OUT"))


@pytest.mark.parametrize(
    ("config", "members", "blamed"),
    [
        # Two decoupled models.
        (
            ensemble(IN, OUT, one("d1", "I", "S"), one("d2", "I", "T"),
             step("join", {"A": "S", "B": "T"}, {"OUT": "O"})),
            [plain("d1", decoupled=True), plain("d2", decoupled=True), JOIN],
            "join",
        ),
        # One tensor of a decoupled model and one of the request.
        (
            ensemble(IN, OUT, one("d1", "I", "S"), step("join", {"A": "S", "B": "I"}, {"OUT": "O"})),
            [plain("d1", decoupled=True), JOIN],
            "join",
        ),
        # A decoupled step behind a decoupled step is an origin of its own.
        (
            ensemble(IN, OUT, one("d1", "I", "S"), one("d2", "S", "T"),
             step("join", {"A": "S", "B": "T"}, {"OUT": "O"})),
            [plain("d1", decoupled=True), plain("d2", decoupled=True), JOIN],
            "join",
        ),
        # The same model twice is two steps.
        (
            ensemble(IN, OUT, one("d1", "I", "S"), one("d1", "I", "T"),
             step("join", {"A": "S", "B": "T"}, {"OUT": "O"})),
            [plain("d1", decoupled=True), JOIN],
            "join",
        ),
        # The answer itself.
        (
            ensemble(IN, OUT, tensor("output", "P"), one("d1", "I", "O"), one("m", "I", "P")),
            [plain("d1", decoupled=True), plain("m")],
            "e",
        ),
    ],
)  # fmt: skip
def test_what_comes_from_different_decoupled_models(config, members, blamed):
    assert refusal(config, *members) == (
        f"in ensemble e, step of model '{blamed}' receives inputs originated from different decoupled models"
    )


# ---- accepted


@pytest.mark.parametrize(
    ("own", "own_batch", "dims", "batch", "fit"),
    [
        ("4", 0, "4", 0, (Batch.KEEP, Batch.KEEP)),
        ("4", 8, "4", 8, (Batch.KEEP, Batch.KEEP)),
        ("4", 4, "4", 8, (Batch.KEEP, Batch.KEEP)),
        ("-1", 8, "4", 8, (Batch.KEEP, Batch.KEEP)),
        ("4", 8, "4", 0, (Batch.DROP, Batch.ADD)),
        ("4", 8, "-1, 4", 0, (Batch.DROP, Batch.ADD)),
        ("4", 8, "3, 4", 0, (Batch.DROP, Batch.ADD)),
        ("4", 0, "4", 8, (Batch.ADD, Batch.DROP)),
        ("-1, 4", 0, "4", 8, (Batch.ADD, Batch.DROP)),
    ],
)
def test_batching_of_ensemble_and_member(own, own_batch, dims, batch, fit):
    config = ensemble(tensor("input", "I", own), tensor("output", "O", own), one("m", "I", "O"), batch=own_batch)
    made = plan(config, plain(dims=dims, batch=batch))
    assert made.batching is (own_batch > 0)
    assert made.steps[0].batching is (batch > 0)
    assert (made.steps[0].inputs[0].batch, made.outputs[0].batch) == fit
    assert made.steps[0].inputs[0].dims == tuple(int(dim) for dim in dims.split(","))
    assert made.outputs[0].dims == tuple(int(dim) for dim in own.split(","))
    assert [one.batched for one in made.tensors] == [own_batch > 0, batch > 0]


def test_the_plan_of_a_diamond_that_answers_what_it_uses():
    config = ensemble(
        IN, OUT, tensor("output", "T"), tensor("input", "J", extra="optional: true"),
        one("m", "I", "T"),
        one("m", "T", "U"),
        step("join", {"A": "T", "B": "T"}, {"OUT": "V"}, version=7),
        step("three", {"X": "U", "Y": "V", "Z": "J"}, {"R": "O"}),
        scheduling="max_inflight_requests: 5",
    )  # fmt: skip
    three = model(
        "three",
        tensor("input", "Z", extra="optional: true"),
        tensor("input", "Y"),
        tensor("input", "X"),
        tensor("input", "UNUSED", extra="optional: true"),
        tensor("output", "MORE"),
        tensor("output", "R"),
    )
    made = plan(config, plain(), JOIN, three)
    names = [one.name for one in made.tensors]
    assert sorted(names) == ["I", "J", "O", "T", "U", "V"]
    assert [names[slot] for slot in made.inputs] == ["I", "J"]
    assert [names[slot] for slot in made.optional] == ["J"]
    assert {one.name: one.writer for one in made.tensors} == {
        "I": REQUEST, "J": REQUEST, "T": 0, "U": 1, "V": 2, "O": 3,
    }  # fmt: skip
    assert {one.name: one.readers for one in made.tensors} == {
        "I": (0,), "J": (3,), "T": (1, 2), "U": (3,), "V": (3,), "O": (),
    }  # fmt: skip
    assert [one.name for one in made.tensors if one.is_output] == ["T", "O"]
    assert [(one.name, one.tensor) for one in made.outputs] == [("O", "O"), ("T", "T")]
    assert [(one.model, one.version) for one in made.steps] == [("m", -1), ("m", -1), ("join", 7), ("three", -1)]
    assert [(one.name, one.tensor, one.optional) for one in made.steps[3].inputs] == [
        ("Z", "J", True), ("Y", "V", False), ("X", "U", False),
    ]  # fmt: skip
    assert [(one.name, one.tensor) for one in made.steps[2].inputs] == [("A", "T"), ("B", "T")]
    assert [(one.name, one.tensor) for one in made.steps[3].outputs] == [("R", "O")]
    assert all(names[wire.slot] == wire.tensor for s in made.steps for wire in (*s.inputs, *s.outputs))
    assert not made.decoupled
    assert made.max_inflight == 5
    assert made.members == {("m", -1), ("join", 7), ("three", -1)}
    assert member_names(config) == ["m", "join", "three"]


def test_flows_of_decoupled_steps():
    config = ensemble(
        IN, OUT, one("a", "I", "S"), one("d", "S", "T"), one("b", "T", "U"),
        step("join", {"A": "U", "B": "T"}, {"OUT": "O"}),
    )  # fmt: skip
    made = plan(config, plain("a"), plain("d", decoupled=True), plain("b"), JOIN)
    assert made.decoupled
    assert [one.decoupled for one in made.steps] == [False, True, False, False]
    assert {one.name: one.flow for one in made.tensors} == {"I": 0, "S": 0, "T": 1, "U": 1, "O": 1}


def test_steps_may_be_written_in_any_order():
    config = ensemble(IN, OUT, one("b", "T", "O"), one("a", "I", "T"))
    made = plan(config, plain("a"), plain("b"))
    assert {one.name: (one.writer, one.readers) for one in made.tensors} == {
        "I": (REQUEST, (1,)), "T": (1, (0,)), "O": (0, ()),
    }  # fmt: skip


def test_an_ensemble_in_an_ensemble_is_a_member_like_any():
    inner = ensemble(tensor("input", "IN"), tensor("output", "OUT"), one("m", "IN", "OUT"), name="inner", batch=4)
    inner.model_transaction_policy.decoupled = True
    made = plan(ensemble(IN, OUT, one("inner", "I", "O"), batch=4), inner)
    assert made.decoupled
    assert made.steps[0].batching


def test_equal_inputs_give_equal_plans():
    config = ensemble(IN, OUT, one("m", "I", "O"))
    assert plan(config, plain()) == plan(config, plain())
    assert plan(config, plain()) != plan(config, plain(decoupled=True))


def test_a_member_with_several_versions_is_checked_as_it_is_asked_for():
    config = ensemble(IN, OUT, step("m", {"IN": "I"}, {"OUT": "T"}, 1), step("m", {"IN": "T"}, {"OUT": "O"}, 2))
    check_members(config, {("m", 1): plain(), ("m", 2): plain()})
    with pytest.raises(ConfigError, match=r"ensemble tensor T: inconsistent shape: \[4\] .* model m while \[9\]"):
        check_members(config, {("m", 1): plain(), ("m", 2): plain(dims="9")})


def test_member_names_on_disk(tmp_path):
    (tmp_path / "config.pbtxt").write_text('platform: "ensemble" ensemble_scheduling { ' + one("m", "I", "O") + "}")
    assert cfg.read_member_names(tmp_path) == ["m"]
    assert cfg.read_member_names(tmp_path, override_json='{"backend": "x"}') == []
    override = '{"ensembleScheduling": {"step": [{"modelName": "z"}]}}'
    assert cfg.read_member_names(tmp_path, override_json=override) == ["z"]
    (tmp_path / "config.pbtxt").write_text('backend: "x" nonsense {')
    assert cfg.read_member_names(tmp_path) == []  # nothing of an ensemble in it: not even parsed
    (tmp_path / "config.pbtxt").unlink()
    assert cfg.read_member_names(tmp_path) == []
