"""Multi-model endpoints without a server: URLs, what is registered under which name, refusals, waiting for the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from triton_fast.errors import AlreadyExists, Internal, InvalidArg, NotFound
from triton_fast.frontends.http.sagemaker_models import LOOK_S, UNLOAD_S, SageMakerModels, place

SHAPE = 'backend: "identity"\n'
ENSEMBLE = 'platform: "ensemble"\n'


class Plane:
    """Notes what it is asked; ``fails``: verb -> what it raises."""

    exiting = False

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.fails: dict[str, Exception] = {}
        self.ready: set[str] = set()
        self.ends_after = 0

    def _note(self, verb: str, *arguments: object) -> None:
        self.calls.append((verb, *arguments))
        if verb in self.fails:
            raise self.fails[verb]

    def register_repository(self, path: str, mapping: Mapping[str, str]) -> None:
        self._note("register", path, dict(mapping))

    def unregister_repository(self, path: str) -> None:
        self._note("unregister", path)

    def load_model(self, name: str, parameters: Mapping[str, str | bytes]) -> None:
        self._note("load", name)
        self.ready.add(name)

    def unload_model(self, name: str, *, unload_dependents: bool = False) -> None:
        self._note("unload", name, unload_dependents)
        self.ready.discard(name)

    def model_ready(self, name: str, version: int) -> bool:
        assert version == 1
        if name not in self.ready:
            raise NotFound("Request for unknown model")
        return True

    def model_gone(self, name: str) -> bool:
        self.ends_after -= 1
        return self.ends_after < 0


class Time:
    now = 0.0

    def clock(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def plane() -> Plane:
    return Plane()


@pytest.fixture
def models(tmp_path: Path, plane: Plane, time: Time) -> SageMakerModels:
    return SageMakerModels(plane, str(tmp_path), clock=time.clock, pause=time.pause)


def write(folder: Path, config: str = SHAPE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.pbtxt").write_text(config)
    return folder


# ---- where


def test_a_directory_with_a_config_is_the_model(tmp_path: Path) -> None:
    assert place(str(write(tmp_path / "h" / "model"))) == (str(tmp_path / "h"), "model")
    assert place(str(write(tmp_path / "h" / "model" / "sub"))) == (str(tmp_path / "h" / "model"), "sub")


def test_a_directory_of_models_is_a_repository(tmp_path: Path) -> None:
    folder = tmp_path / "h" / "model"
    write(folder / "one")
    (folder / "a file").write_text("")
    assert place(str(folder)) == (str(folder), "one")
    write(folder / "two")
    with pytest.raises(InvalidArg, match="holds 2 models, of which exactly one must be an ensemble"):
        place(str(folder))
    write(folder / "all", ENSEMBLE)
    assert place(str(folder)) == (str(folder), "all")
    write(folder / "more", "ensemble_scheduling { step [] }")
    with pytest.raises(InvalidArg, match="holds 4 models"):
        place(str(folder))


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidArg, match=r"failed to read '.*': No such file or directory"):
        place(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidArg, match="holds no model"):
        place(str(tmp_path / "empty"))


@pytest.mark.parametrize("url", ["", "/", "model", "{root}", "{root}/", "{root}/h", "{root}/h/", "{root}/h/models",
    "{root}/h/model/a/b", "{root}/h/model//", "{root}//model", "{root}/../model", "{root}/./model", "{root}/h/model/..",
    "{root}/h/model/.", "{root}/h/../h/model", "{root}/h/model/../../x", "{root}x/h/model", "/dev/h/model",
    "/proc/self/model", "file://{root}/h/model", "s3://h/model", "{root}/h/model\0", "{root}/h/model\n",
    "{root}/h/model/%2e%2e", "{root}/h/model/a b", "{root}/h\\..\\model", "{root}/h/model/" + "a" * 300,
    "{root}/é/model", " {root}/h/model", "{root}/h/model/\u2025"])  # fmt: skip
def test_urls_that_are_none(models: SageMakerModels, plane: Plane, tmp_path: Path, url: str) -> None:
    write(tmp_path / "h" / "model")
    given = url.format(root=tmp_path)
    with pytest.raises(InvalidArg) as error:
        models.load("m", given, "m")
    assert str(error.value) == (
        f"Invalid \"url\" '{given[:256]}': expected a path of the form {tmp_path}/<hash>/model[/<subdir>]"
    )
    assert plane.calls == []


def test_the_text_names_the_directory_of_sagemaker(plane: Plane) -> None:
    with pytest.raises(InvalidArg) as error:
        SageMakerModels(plane).load("m", "/tmp/x", "m")  # noqa: S108
    form = "/opt/ml/models/<hash>/model[/<subdir>]"
    assert str(error.value) == f"Invalid \"url\" '/tmp/x': expected a path of the form {form}"


def test_a_link_out_of_the_directory(models: SageMakerModels, tmp_path: Path, plane: Plane) -> None:
    outside = write(tmp_path.parent / f"{tmp_path.name}-outside" / "model")
    (tmp_path / "h").mkdir()
    (tmp_path / "h" / "model").symlink_to(outside)
    with pytest.raises(InvalidArg, match="expected a path of the form"):
        models.load("m", f"{tmp_path}/h/model", "m")
    assert plane.calls == []


# ---- load, list, unload


def test_load_list_unload(models: SageMakerModels, plane: Plane, tmp_path: Path) -> None:
    write(tmp_path / "h" / "model")
    assert models.get("m") is None
    assert models.listing() == []
    models.load("m", f"{tmp_path}/h/model/", "m.tar.gz")
    assert plane.calls == [("register", f"{tmp_path}/h", {"model": "m.tar.gz"}), ("load", "m.tar.gz")]
    assert models.target("m") == "m.tar.gz"
    assert models.get("m") == {"modelName": "m", "modelUrl": f"{tmp_path}/h"}
    assert models.listing() == [{"modelName": "m", "modelUrl": f"{tmp_path}/h"}]
    plane.ready.clear()
    assert models.listing() == [{}]
    plane.calls.clear()
    assert models.unload("m")
    assert plane.calls == [("unload", "m.tar.gz", True), ("unregister", f"{tmp_path}/h")]
    assert models.listing() == []
    assert not models.unload("m")


def test_a_second_load_of_a_name(models: SageMakerModels, plane: Plane, tmp_path: Path) -> None:
    write(tmp_path / "h" / "model")
    write(tmp_path / "g" / "model")
    models.load("m", f"{tmp_path}/h/model", "m")
    plane.calls.clear()
    for url in ("h", "g"):
        with pytest.raises(AlreadyExists):
            models.load("m", f"{tmp_path}/{url}/model", "other")
    assert plane.calls == []
    plane.fails["register"] = AlreadyExists("there is a conflicting mapping")
    with pytest.raises(AlreadyExists, match="conflicting"):
        models.load("n", f"{tmp_path}/h/model", "n")
    assert plane.calls == [("register", f"{tmp_path}/h", {"model": "n"})]
    assert models.target("n") is None


def test_a_failed_load_leaves_nothing(models: SageMakerModels, plane: Plane, tmp_path: Path) -> None:
    write(tmp_path / "h" / "model")
    plane.fails["load"] = Internal("CUDA out of memory")
    with pytest.raises(Internal):
        models.load("m", f"{tmp_path}/h/model", "m")
    assert plane.calls[-1] == ("unregister", f"{tmp_path}/h")
    assert models.listing() == []
    del plane.fails["load"]
    models.load("m", f"{tmp_path}/h/model", "m")
    assert models.target("m") == "m"


def test_no_name(models: SageMakerModels, plane: Plane, tmp_path: Path) -> None:
    write(tmp_path / "h" / "model")
    with pytest.raises(InvalidArg, match="Model name cannot be empty"):
        models.load("", f"{tmp_path}/h/model", "")
    assert plane.calls == []


def test_an_unload_waits_for_the_end(models: SageMakerModels, plane: Plane, tmp_path: Path, time: Time) -> None:
    write(tmp_path / "h" / "model")
    models.load("m", f"{tmp_path}/h/model", "m")
    plane.ends_after = 7
    assert models.unload("m")
    assert time.now == pytest.approx(7 * LOOK_S)


def test_an_unload_waits_no_longer_than_sagemaker(
    models: SageMakerModels, plane: Plane, tmp_path: Path, time: Time
) -> None:
    write(tmp_path / "h" / "model")
    models.load("m", f"{tmp_path}/h/model", "m")
    plane.ends_after = 1 << 30
    assert models.unload("m")
    assert UNLOAD_S == 350
    assert UNLOAD_S <= time.now <= UNLOAD_S + LOOK_S
    assert models.target("m") is None
    assert plane.calls[-1] == ("unregister", f"{tmp_path}/h")


def test_an_unload_does_not_hold_up_the_end(models: SageMakerModels, plane: Plane, tmp_path: Path, time: Time) -> None:
    write(tmp_path / "h" / "model")
    models.load("m", f"{tmp_path}/h/model", "m")
    plane.ends_after, plane.exiting = 1 << 30, True
    assert models.unload("m")
    assert time.now == 0
