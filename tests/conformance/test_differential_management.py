"""Model control beside the reference: the same scenarios over HTTP and gRPC, statuses, texts and answers step by step.

Needs TRITON_REFERENCE (see reference.py). What differs stands, with its reason, in ``KNOWN``, and in
docs/compatibility.md.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.conformance import management, reference
from tests.conformance.differences import documented
from tests.conformance.grpc_client import plain
from tests.conformance.management import SCENARIOS, Step
from tests.helpers import raw
from tests.helpers.grpc_channel import Channel
from tests.helpers.server import ServerProcess, until

EXPLICIT = ("--model-control-mode=explicit",)
OURS = ("--allow-code-upload=true",)


class Side(NamedTuple):
    http: tuple[str, int]
    channel: Channel


Pair = tuple[Side, Side]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if reference.VARIABLE not in os.environ:
        pytest.skip(f"{reference.VARIABLE} is not set: the path of the reference server")
    return management.write(tmp_path_factory.mktemp("management") / "models")


def both(root: Path, *flags: str) -> Iterator[Pair]:
    with (
        reference.Reference(root, root.parent / f"log{len(flags[0])}", *flags) as other,
        ServerProcess(root, *flags, *OURS) as process, Channel(process.grpc) as near, Channel(other.grpc) as far,
    ):  # fmt: skip
        yield Side(process.http, near), Side(other.http, far)


@pytest.fixture(scope="module")
def pair(root: Path) -> Iterator[Pair]:
    yield from both(root, *EXPLICIT)


class Known(NamedTuple):
    """What may differ in the steps whose names match: status and text over HTTP and gRPC, there and here.

    No texts: the contents differ.
    """

    steps: str
    theirs: str
    ours: str
    why: str
    codes: tuple[int, ...] = ()
    # What must be the same of contents that differ.
    common: Callable[[Any], Any] = lambda content: None

    def fits(self, step: Step, ours: Answer, theirs: Answer) -> bool:
        return (
            re.fullmatch(self.steps, step.name) is not None
            and re.fullmatch(self.theirs, theirs.text) is not None and re.fullmatch(self.ours, ours.text) is not None
            and ours.status in self.codes and self.common(ours.content) == self.common(theirs.content)
        )  # fmt: skip

    @property
    def row(self) -> str:
        cells = (self.steps, self.theirs or "no error", self.ours or "no error")
        return "| " + " | ".join(f"`{cell}`".replace("|", "\\|") for cell in cells) + f" | {self.why} |"


def of_versions(index: Any) -> list[dict[str, Any]]:
    """The rows of an index that are about a version."""
    rows = index[0]["models"] if index and "models" in index[0] else index
    return [row for row in rows if row.get("version", "") not in ("", "-1")]


POLL = "failed to load '[a-z_]+', failed to poll from model repository"
MISSING = (
    r"Request for unknown model: '[a-z_]+' (version \d )?(is not found|has no available versions|is not at ready state)"
)
KNOWN = (
    Known("ready .*", "(Model version not ready)?", MISSING, "2.73 answers so", (404, 5, 14)),
    Known("load .*", POLL, POLL + ": .+", "the cause is added", (500, 13)),
    Known("load .* with config", POLL, "Invalid config override: .+", "2.73 answers so", (400, 3)),
    Known("load .* with file:1/model.py", POLL, "Load parameter 'config' must be specified for model file override",
          "2.73 answers so", (400, 3)),
    Known("load .* with config with file:../x", POLL, "Invalid file parameter 'file:../x' with normalized path '../x' "
          "must stay within model directory.", "2.73 answers so", (400, 3)),
    Known(r"(un)?load \.+", r"(failed to load '\.', failed to poll from model repository)?",
          r"invalid model name '\.+', model name must not contain path traversal characters", "2.73 answers so",
          (400, 3)),
    Known("infer config", r".* missing required input\(s\) \]\. .*", r".* missing required input\(s\) \[\]\. .*",
          "2.51 forgets a bracket", (400, 3)),
    Known("metadata config", "", "", "2.51 stays with the override when a load comes without one", (200, 0)),
    Known("infer files", "", "", "2.51 keeps the model that it has when files come with a load", (200, 0)),
    Known("index", "", "", "the index tells why a model could not be loaded, 2.51 does not", (200, 0),
          of_versions),
)  # fmt: skip


class Answer(NamedTuple):
    """``content`` is None for an error, whose text it has."""

    status: int
    text: str
    content: Any


def over_http(side: Side, step: Step) -> Answer:
    answer = raw.ask(side.http, step.http)
    if answer.status != 200:
        return Answer(answer.status, answer.error if answer.body else "", None)
    return Answer(200, "", comparable(answer.json() if answer.body else None))


def over_grpc(side: Side, step: Step) -> Answer:
    reply = side.channel.ask(*step.grpc)
    return Answer(reply.status, reply.text, comparable([plain(message) for message in reply.messages]))


def comparable(value: Any) -> Any:
    """Reasons of failures are compared as errors of loads; here it is enough that there is one."""
    if isinstance(value, dict):
        return {key: bool(item) if key == "reason" else comparable(item) for key, item in value.items()}
    return [comparable(item) for item in value] if isinstance(value, list) else value


def states(side: Side) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in raw.ask(side.http, raw.post("/v2/repository/index")).json():
        found.setdefault(row["name"], set()).add(row.get("state", ""))
    return found


def settled(side: Side) -> bool:
    return not any({"UNLOADING", "LOADING"} & now for now in states(side).values())


def tidy(text: str) -> str:
    """Without what no two servers share: paths, and what a traceback looks like."""
    text = re.sub(r"/[^ :',]*/(?=[^/ :',]*)", "", text)
    return re.sub(r"\s+At:\n(?:.*\n?)*", "", text).strip()


WAYS = pytest.mark.parametrize("way", [over_http, over_grpc], ids=["http", "grpc"])


def differing(pair: Pair, steps: list[Step], way: Callable[[Side, Step], Answer]) -> list[str]:
    """Take the steps on both sides; return what differs and is not known to."""
    wrong: list[str] = []
    for position, step in enumerate(steps):
        # Unloads go on behind their answers, and behind those of reloads.
        for side in pair:
            assert until(lambda side=side: settled(side)), states(side)  # type: ignore[misc]
        ours, theirs = (way(side, step) for side in pair)
        ours, theirs = (answer._replace(text=tidy(answer.text)) for answer in (ours, theirs))
        if ours != theirs and not any(rule.fits(step, ours, theirs) for rule in KNOWN):
            wrong.append(f"{position} {step.name}\n   ours {ours}\n theirs {theirs}")
    return wrong


@WAYS
@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(pair: Pair, name: str, way: Callable[[Side, Step], Answer]) -> None:
    wrong = differing(pair, SCENARIOS[name], way)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", management.FAILING)
def test_failing_load(root: Path, tmp_path: Path, name: str) -> None:
    for pair in both(only(root, tmp_path, name), *EXPLICIT):
        for way in (over_http, over_grpc):
            wrong = differing(pair, management.failing(name), way)
            assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("mode", ["none", "poll"])
def test_other_modes_refuse(root: Path, tmp_path: Path, mode: str) -> None:
    for pair in both(only(root, tmp_path, "plain"), f"--model-control-mode={mode}"):
        for way in (over_http, over_grpc):
            wrong = differing(pair, management.REFUSING, way)
            assert not wrong, "\n".join(wrong)


def only(root: Path, folder: Path, name: str) -> Path:
    repository = folder / "models"
    repository.mkdir()
    (repository / name).symlink_to(root / name)
    return repository


def test_the_document_lists_the_known_differences() -> None:
    assert documented("Answers of model control that differ") == [known.row for known in KNOWN]
