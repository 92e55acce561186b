"""Models that are no good, for every backend: the error tells the cause, and the server and its other models go on.

Files that are cut, flipped, empty, another framework's; sizes that lie; configs that do not fit; and models whose runs
fail, which end the requests of that run only.
"""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.adversity import broken_models as models
from tests.adversity.broken_models import FAULTS, KINDS, MISSING, Kind
from tests.conformance.backend_forms import environment
from tests.helpers import raw
from tests.helpers.server import ServerProcess
from tests.integration.onnx_files import arrays, infer, request

pytestmark = pytest.mark.timeout(300)
X = np.array([[1, 2, 3, 4]], np.float32)
# What a config that fits no more is told.
MISFIT = (
    "|configuration expects|unexpected inference|the model expects|Model configuration provided|can not be served|"
    "the model makes"
)


def kinds() -> list[Any]:
    return [
        pytest.param(name, marks=[pytest.mark.skip(reason=kind.missing)] if kind.missing else [])
        for name, kind in KINDS.items()
    ]


class Repository:
    """A server in explicit mode with a good model of every kind; one more model, "broken", is the tests'."""

    def __init__(self, root: Path, server: ServerProcess) -> None:
        self.root, self.server = root, server
        self.folder = root / "broken" / "1"

    def load(self, files: models.Files | None, config: str) -> raw.Answer:
        if files is not None:
            models.put(self.folder, files)
        (self.folder.parent / "config.pbtxt").write_text(config)
        return raw.ask(self.server.http, raw.post("/v2/repository/models/broken/load"))

    def error(self, files: models.Files | None, config: str) -> str:
        """Load what must not load; return the error, which shows no path and harms nobody."""
        answer = self.load(files, config)
        assert answer.status == 400, answer
        assert str(self.root) not in answer.error
        assert "broken" in answer.error
        return answer.error

    def others(self) -> None:
        """Every other model answers."""
        assert self.server.alive
        for name, kind in KINDS.items():
            if not kind.missing:
                self.ask(name, f"good_{name}")

    def ask(self, name: str, model: str) -> None:
        kind = KINDS[name]
        x, y = kind.names
        found = infer(self.server.http, model, {x: X})[y]
        if kind.backend == "fil":
            assert float(found.sum()) == pytest.approx(1)
        else:
            assert (found == 2 * X).all()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    root = tmp_path_factory.mktemp("broken_models")
    loads = []
    for name, kind in KINDS.items():
        if not kind.missing:
            models.put(root / f"good_{name}" / "1", kind.files())
            (root / f"good_{name}" / "config.pbtxt").write_text(kind.config())
            loads.append(f"--load-model=good_{name}")
    for name, (backend, files, *_) in FAULTS.items():
        if not MISSING[backend]:
            folder = root / model_of(name)
            models.put(folder / "1", files())
            (folder / "config.pbtxt").write_text(models.fault_config(name))
            loads.append(f"--load-model={model_of(name)}")
    (root / "broken" / "1").mkdir(parents=True)
    flags = ["--model-control-mode=explicit", *loads, "--backend-config=fil,probe-timeout-s=20"]
    with ServerProcess(root, *flags, env=environment(), start_s=110) as server:
        yield Repository(root, server)


def harmed(kind: Kind, data: bytes) -> models.Files:
    first, *rest = kind.files().items()
    return {first[0]: data, **dict(rest)}


def good_file(kind: Kind) -> bytes:
    return next(iter(kind.files().values()))


def mended(repository: Repository, name: str) -> None:
    """The same model with its good file serves."""
    kind = KINDS[name]
    answer = repository.load(kind.files(), kind.config())
    assert answer.status == 200, answer
    repository.ask(name, "broken")
    repository.others()


@pytest.mark.parametrize("name", kinds())
def test_truncated(repository: Repository, name: str) -> None:
    kind = KINDS[name]
    good = good_file(kind)
    for part in kind.cuts:
        text = repository.error(harmed(kind, models.cut(good, part)), kind.config())
        assert re.search(kind.cause, text), (part, text)
    mended(repository, name)


@pytest.mark.parametrize("name", kinds())
def test_flipped_bits(repository: Repository, name: str) -> None:
    """What a flip left readable may load, and then answers; everything else says why it does not."""
    kind = KINDS[name]
    good, refused = good_file(kind), 0
    for seed in range(8):
        answer = repository.load(harmed(kind, models.flipped(good, seed)), kind.config())
        if answer.status == 200:
            x, _ = kind.names
            assert raw.ask(repository.server.http, request("broken", {x: X})).status in (200, 400, 500)
            continue
        assert answer.status == 400
        assert re.search(kind.cause + MISFIT, answer.error), answer.error
        refused += 1
    assert refused or kind.backend == "pytorch"  # whose archives are mostly padding
    mended(repository, name)


@pytest.mark.parametrize("name", kinds())
def test_other_files_under_that_name(repository: Repository, name: str) -> None:
    kind = KINDS[name]
    for what, data in models.foreign(name).items():
        text = repository.error(harmed(kind, data), kind.config())
        assert re.search(kind.cause, text), (what, text)
    mended(repository, name)


@pytest.mark.parametrize("name", kinds())
def test_empty_a_directory_and_nothing(repository: Repository, name: str) -> None:
    kind = KINDS[name]
    first = next(iter(kind.files()))
    if kind.backend != "python":  # an empty module is one without a class
        assert "is empty" in repository.error(harmed(kind, b""), kind.config())
    models.put(repository.folder, {})
    (repository.folder / first).mkdir()
    text = repository.error(None, kind.config())
    assert re.search(kind.cause + "|is not a regular file|directory|No such file|failed", text)
    shutil.rmtree(repository.folder / first)
    text = repository.error(None, kind.config())
    assert re.search("unable to find|No such file|failed", text)
    mended(repository, name)


@pytest.mark.parametrize("name", kinds())
def test_sizes_that_lie(repository: Repository, name: str) -> None:
    kind = KINDS[name]
    if kind.claims is None:
        assert kind.backend == "python"  # source code claims nothing
        return
    repository.server.reset_peak()
    before = repository.server.rss()
    text = repository.error(harmed(kind, kind.claims(good_file(kind))), kind.config())
    assert re.search(kind.cause, text), text
    assert repository.server.peak_rss() < before + (256 << 20)
    mended(repository, name)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        pytest.param(name, what, marks=[pytest.mark.skip(reason=kind.missing)] if kind.missing else [])
        for name, kind in KINDS.items()
        for what in kind.configs
    ],
)
def test_configs_that_do_not_fit(repository: Repository, name: str, what: str) -> None:
    kind = KINDS[name]
    old, new, expected = kind.configs[what]
    assert old in kind.config()
    assert expected in repository.error(kind.files(), kind.config().replace(old, new))
    mended(repository, name)


def test_a_failed_reload_leaves_the_old_version(repository: Repository) -> None:
    for name, kind in KINDS.items():
        if kind.missing:
            continue
        mended(repository, name)
        repository.error(harmed(kind, models.cut(good_file(kind), 0.5)), kind.config())
        repository.ask(name, "broken")


# ---- runs that fail


def model_of(fault: str) -> str:
    return "fault_" + fault.replace(" ", "_")


def faults() -> list[Any]:
    return [
        pytest.param(name, marks=[pytest.mark.skip(reason=MISSING[row[0]])] if MISSING[row[0]] else [])
        for name, row in FAULTS.items()
    ]


@pytest.mark.parametrize("fault", faults())
def test_a_run_that_fails_ends_its_request_only(repository: Repository, fault: str) -> None:
    _, _, _, dims, good, bad, expected = FAULTS[fault]
    http, model = repository.server.http, model_of(fault)
    stop, wrong = threading.Event(), []

    def neighbour(at: int) -> None:
        """Other models are asked all the while."""
        names = [name for name, kind in KINDS.items() if not kind.missing]
        try:
            while not stop.is_set():
                repository.ask(names[at], f"good_{names[at]}")
                at = (at + 1) % len(names)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=neighbour, args=(at,)) for at in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            answer = raw.ask(http, request(model, {"x": np.array([bad], np.int64)}))
            assert answer.status == 500, answer
            assert expected in answer.error
            # The next request of the same model finds it whole.
            found = arrays(raw.ask(http, request(model, {"x": np.array([good], np.int64)})))["y"]
            assert len(found) == (1 if dims == "1" else good)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong
    repository.others()
