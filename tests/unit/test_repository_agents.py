"""Repository agents: what they see, when they act, and how a load ends that one of them refuses."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tests.unit.test_repository_support import (
    CONFIG,
    FakeBackend,
    FakeEngine,
    FakeRuntime,
    error_of,
    rows,
    settle,
    write_model,
)
from triton_fast.errors import Internal, InvalidArg
from triton_fast.repository import Agents, ControlMode, LocalSource, ModelRepositoryManager, Preparer

# Writes what it is asked to do into the file that its parameter names.
RECORDER = """
class RepoAgent:
    def action(self, action, model):
        given = dict(model.parameters)
        with open(given["log"], "a") as log:
            log.write(f"{model.name} {given.get('who', '')} {action}\\n")
        if action == given.get("refuse"):
            raise ValueError("no, not this one")
        if action == "LOAD" and "text" in given:
            made = model.acquire()
            (made / "1").mkdir()
            (made / "1" / "model.fake").write_text(given["text"])
            (made / "config.pbtxt").write_text((model.location / "config.pbtxt").read_text())
            model.state = made
            model.update(made)
        if action == "LOAD_COMPLETE" and "late" in given:
            model.update(model.location)
"""


def agents(*named: tuple[str, dict[str, str]]) -> str:
    """The part of a config that names agents."""
    texts = []
    for name, parameters in named:
        given = "".join(f"parameters {{ key: {json.dumps(k)} value: {json.dumps(v)} }} " for k, v in parameters.items())
        texts.append(f'agents {{ name: "{name}" {given}}}')
    return f"model_repository_agents {{ {' '.join(texts)} }}\n"


class Place:
    def __init__(self, root: Path) -> None:
        self.repo, self.directory, self.log = root / "repo", root / "repoagents", root / "log"
        self.repo.mkdir()
        self.engine = FakeEngine()
        self.agents = Agents(self.directory)
        preparer = Preparer({"fake": FakeBackend()}.get, cpu_count=2, agents=self.agents)
        self.manager: ModelRepositoryManager[FakeRuntime] = ModelRepositoryManager(
            [LocalSource(self.repo)], preparer, self.engine.start, mode=ControlMode.EXPLICIT
        )

    def add(self, name: str, source: str = RECORDER) -> None:
        (self.directory / name).mkdir(parents=True)
        (self.directory / name / "agent.py").write_text(source)

    def acted(self) -> list[str]:
        settle(self.manager)
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def digest(text: str, kind: str = "md5") -> str:
    return hashlib.new(kind, text.encode()).hexdigest()


# ---- checksum


def test_a_model_whose_sums_are_right_is_loaded(place: Place) -> None:
    sums = {
        "MD5:1/model.fake": digest("ok").upper(),
        "SHA256:labels.txt": digest("cat\n", "sha256"),
    }
    write_model(place.repo, "m", config=CONFIG + agents(("checksum", sums)))
    (place.repo / "m" / "labels.txt").write_text("cat\n")
    place.manager.load("m")
    assert place.manager.resolve("m").text == "ok"
    assert ("checksum", "built in") in place.agents.rows()


def test_a_model_whose_sum_is_wrong_is_not(place: Place) -> None:
    write_model(place.repo, "m", config=CONFIG + agents(("checksum", {"MD5:1/model.fake": "invalid_checksum"})))
    cause = f"Mismatched MD5 hash for file 1/model.fake, expecting: invalid_checksum, got: {digest('ok')}"
    text = error_of(Internal, place.manager.load, "m")
    assert text == f"failed to load 'm', failed to poll from model repository: {cause}"
    assert rows(place.manager) == [("m", -1, "UNAVAILABLE", cause)]
    assert place.engine.started == []


def test_a_wrong_sum_keeps_what_is_served(place: Place) -> None:
    path = write_model(place.repo, "m", config=CONFIG + agents(("checksum", {"MD5:1/model.fake": digest("ok")})))
    place.manager.load("m")
    (path / "1" / "model.fake").write_text("ok but different")
    error_of(Internal, place.manager.load, "m")
    assert place.manager.resolve("m").text == "ok"


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("MD5:../other/1/model.fake", "checksum file '../other/1/model.fake' of model 'm' is outside model directory"),
        ("MD5:/etc/hostname", "checksum file '/etc/hostname' of model 'm' is an absolute path"),
        ("MD5:link", "checksum file 'link' of model 'm' is outside model directory"),
        ("MD5:none", "failed to open checksum file 'none' of model 'm': no such file"),
        ("MD5:1", "failed to open checksum file '1' of model 'm': no such file"),
        ("CRC:1/model.fake", "unsupported hash function 'CRC' of checksum parameter 'CRC:1/model.fake'"),
        ("1/model.fake", "unexpected checksum parameter '1/model.fake', expecting <hash function>:<file path>"),
    ],
)
def test_sums_are_taken_of_files_of_the_model_only(place: Place, key: str, text: str) -> None:
    write_model(place.repo, "other")
    path = write_model(place.repo, "m", config=CONFIG + agents(("checksum", {key: digest("ok")})))
    (path / "link").symlink_to(place.repo / "other" / "1" / "model.fake")
    assert text in error_of(Internal, place.manager.load, "m")


# ---- agents in Python


def test_agents_act_in_turn_over_a_models_life(place: Place) -> None:
    place.add("recorder")
    both = [("recorder", {"log": str(place.log), "who": who}) for who in ("first", "second")]
    write_model(place.repo, "m", config=CONFIG + agents(*both))
    place.manager.load("m")
    assert place.acted() == [
        "m first LOAD", "m second LOAD", "m second LOAD_COMPLETE", "m first LOAD_COMPLETE",
    ]  # fmt: skip
    # Nothing has changed: no load, and nobody acts.
    place.manager.load("m")
    assert len(place.acted()) == 4
    place.manager.unload("m")
    assert place.acted()[4:] == [
        "m first UNLOAD", "m second UNLOAD", "m second UNLOAD_COMPLETE", "m first UNLOAD_COMPLETE",
    ]  # fmt: skip
    assert ("recorder", str(place.directory / "recorder" / "agent.py")) in place.agents.rows()


def test_a_reload_is_a_life_of_its_own(place: Place) -> None:
    place.add("recorder")
    path = write_model(place.repo, "m", config=CONFIG + agents(("recorder", {"log": str(place.log)})))
    place.manager.load("m")
    (path / "1" / "model.fake").write_text("ok changed")
    place.manager.load("m")
    assert sorted(place.acted()) == sorted(
        ["m  LOAD", "m  LOAD_COMPLETE", "m  LOAD", "m  LOAD_COMPLETE", "m  UNLOAD", "m  UNLOAD_COMPLETE"]
    )


def test_an_agent_may_give_another_directory(place: Place) -> None:
    place.add("recorder")
    given = {"log": str(place.log), "text": "ok unpacked"}
    write_model(place.repo, "m", {"1": "packed"}, CONFIG + agents(("recorder", given)))
    place.manager.load("m")
    runtime = place.manager.resolve("m")
    assert runtime.text == "ok unpacked"
    made = runtime.context.model_dir
    assert made.parent != place.repo
    assert made.is_dir()
    place.manager.unload("m")
    assert place.acted()[-1] == "m  UNLOAD_COMPLETE"
    assert not made.exists()


def test_an_agent_that_refuses_fails_the_load_and_those_before_it_hear_of_it(place: Place) -> None:
    place.add("recorder")
    first = {"log": str(place.log), "who": "first", "text": "ok"}
    second = {"log": str(place.log), "who": "second", "refuse": "LOAD"}
    write_model(place.repo, "m", config=CONFIG + agents(("recorder", first), ("recorder", second)))
    assert error_of(Internal, place.manager.load, "m").endswith("ValueError: no, not this one")
    assert place.acted() == ["m first LOAD", "m second LOAD", "m first LOAD_FAIL"]


def test_agents_hear_of_a_model_that_fails_after_them(place: Place) -> None:
    place.add("recorder")
    write_model(place.repo, "m", {"1": "broken"}, CONFIG + agents(("recorder", {"log": str(place.log)})))
    error_of(InvalidArg, place.manager.load, "m")
    assert place.acted() == ["m  LOAD", "m  LOAD_FAIL"]


def test_what_an_agent_raises_later_is_only_logged(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    place.add("recorder")
    write_model(place.repo, "m", config=CONFIG + agents(("recorder", {"log": str(place.log), "late": "1"})))
    place.manager.load("m")
    assert place.manager.resolve("m").text == "ok"
    assert (
        "location can only be updated during TRITONREPOAGENT_ACTION_LOAD, current action type is "
        "TRITONREPOAGENT_ACTION_LOAD_COMPLETE" in capfd.readouterr().err
    )


def test_an_unknown_agent_is_named(place: Place) -> None:
    write_model(place.repo, "m", config=CONFIG + agents(("nobody", {})))
    text = error_of(Internal, place.manager.load, "m")
    assert text.endswith(
        f"unable to find 'libtritonrepoagent_nobody.so' for repo agent 'nobody', searched: {place.directory}/nobody"
    )


@pytest.mark.parametrize("name", ["../recorder", "a/b", ".."])
def test_an_agents_name_is_no_path(place: Place, name: str) -> None:
    place.add("recorder")
    (place.repo / "agent.py").write_text(RECORDER)
    write_model(place.repo, "m", config=CONFIG + agents((name, {})))
    assert "path traversal" in error_of(Internal, place.manager.load, "m")


def test_an_agent_that_can_not_be_started_fails_the_load(place: Place) -> None:
    place.add("broken", "import nothing_of_that_name")
    write_model(place.repo, "m", config=CONFIG + agents(("broken", {})))
    assert "repository agent 'broken' could not be started: ModuleNotFoundError" in error_of(
        Internal, place.manager.load, "m"
    )


def test_a_config_that_comes_with_the_load_has_its_agents(place: Place) -> None:
    write_model(place.repo, "m")
    override = {
        "backend": "fake", "max_batch_size": 4,
        "input": [{"name": "I", "data_type": "TYPE_FP32", "dims": [1]}],
        "output": [{"name": "O", "data_type": "TYPE_FP32", "dims": [1]}],
        "model_repository_agents": {"agents": [{"name": "checksum", "parameters": {"MD5:1/model.fake": "0"}}]},
    }  # fmt: skip
    assert "Mismatched MD5" in error_of(Internal, place.manager.load, "m", config_json=json.dumps(override))
