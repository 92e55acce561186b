"""Forests against the frameworks that grew them: scores, classes, probabilities, configs, broken files."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

treelite = pytest.importorskip("treelite", reason="needs treelite: pip install 'triton_fast[fil]'")

from sklearn import datasets, ensemble  # noqa: E402

from tests.helpers.models import LONG_S, counters_at_base, served  # noqa: E402
from triton_fast import config as configs  # noqa: E402
from triton_fast._native.fil.forest import Forest  # noqa: E402
from triton_fast._native.fil.instance import ForestInstance  # noqa: E402
from triton_fast._native.sched.inprocess import InferCall  # noqa: E402
from triton_fast.backends.base import InstanceSpec, LoadContext  # noqa: E402
from triton_fast.backends.fil import FilBackend, backend, library, probe  # noqa: E402
from triton_fast.backends.trial import Held  # noqa: E402
from triton_fast.config import io_specs  # noqa: E402
from triton_fast.errors import InvalidArg, ServerError, Unavailable, Unsupported  # noqa: E402
from triton_fast.types import DataType  # noqa: E402

__all__ = ["counters_at_base"]

Array = np.ndarray[Any, Any]
IRIS = datasets.load_iris(return_X_y=True)
CANCER = datasets.load_breast_cancer(return_X_y=True)
DIABETES = datasets.load_diabetes(return_X_y=True)


def parameters(**given: object) -> str:
    return "".join(f'parameters {{ key: "{k}" value {{ string_value: "{v}" }} }}\n' for k, v in given.items())


def write(root: Path, fill: Callable[[Path], object] | bytes, name: str = "checkpoint.tl", config: str = "") -> Path:
    folder = root / "m" / "1"
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(fill, bytes):
        (folder / name).write_bytes(fill)
    else:
        fill(folder / name)
    (root / "m" / "config.pbtxt").write_text('backend: "fil"\n' + config)
    return root / "m"


def opened(model_dir: Path, threads: int = 1) -> tuple[Any, ForestInstance]:
    """The completed config and an instance, by the steps of the repository."""
    config = configs.load_model_config(model_dir, strict=False)
    configs.normalize(config, cpu_count=2)
    configs.validate(config, model_dir, io=False)
    made = LoadContext("m", 1, model_dir, model_dir / "1", config, {}, threads)
    FilBackend().complete_config(made)
    configs.normalize(config, cpu_count=2)
    configs.validate(config, model_dir)
    instance = FilBackend().load(made).create_instance(InstanceSpec("m_0", "KIND_CPU"))
    assert isinstance(instance, ForestInstance)
    return config, instance


def answers(model_dir: Path, *requests: Array, threads: int = 1) -> tuple[list[Array], ForestInstance]:
    config, instance = opened(model_dir, threads)
    inputs, outputs = io_specs(config)
    with served(instance, inputs=inputs, outputs=outputs, max_batch=config.max_batch_size) as model:
        calls = [InferCall(model, [("input__0", DataType.FP32, r.shape, r.tobytes())]) for r in requests]
        found = []
        for call in calls:
            _, shape, data = call.wait(LONG_S)["output__0"]
            found.append(np.frombuffer(data, np.float32).reshape(shape))
    return found, instance


def run(model_dir: Path, rows: Array) -> Array:
    """One request with all rows, and one a row: the same numbers."""
    rows = np.ascontiguousarray(rows, np.float32)
    (whole,), _ = answers(model_dir, rows)
    single, _ = answers(model_dir, *[rows[i : i + 1] for i in range(8)])
    np.testing.assert_array_equal(np.concatenate(single), whole[:8])
    return whole


def saved(model: Any) -> Callable[[Path], object]:
    return lambda path: treelite.sklearn.import_model(model).serialize(path)


# --- scikit-learn ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [
    ensemble.RandomForestRegressor, ensemble.ExtraTreesRegressor, ensemble.GradientBoostingRegressor,
    ensemble.HistGradientBoostingRegressor,
])  # fmt: skip
def test_regression(tmp_path: Path, kind: Any) -> None:
    x = DIABETES[0].astype(np.float32)
    more = {"max_iter": 5} if "Hist" in kind.__name__ else {"n_estimators": 5}
    model = kind(random_state=1, **more).fit(x, DIABETES[1])
    found = run(write(tmp_path, saved(model)), x)
    assert found.shape == (len(x), 1)
    np.testing.assert_allclose(found[:, 0], model.predict(x), rtol=1e-5)


@pytest.mark.parametrize("data", [IRIS, CANCER], ids=["iris", "cancer"])
@pytest.mark.parametrize("kind", [
    ensemble.RandomForestClassifier, ensemble.ExtraTreesClassifier, ensemble.GradientBoostingClassifier,
])  # fmt: skip
def test_classification(tmp_path: Path, kind: Any, data: tuple[Array, Array]) -> None:
    x = data[0].astype(np.float32)
    model = kind(n_estimators=5, random_state=1).fit(x, data[1])
    found = run(write(tmp_path / "proba", saved(model), config=parameters(predict_proba="true")), x)
    np.testing.assert_allclose(found, model.predict_proba(x), atol=1e-5)
    assert found.shape == (len(x), len(set(data[1])))
    found = run(write(tmp_path / "class", saved(model)), x)
    assert found.shape == (len(x), 1)
    np.testing.assert_array_equal(found[:, 0], model.predict(x))
    scores = run(write(tmp_path / "scores", saved(model), config=parameters(output_class="false")), x)
    np.testing.assert_allclose(scores, model.predict_proba(x)[:, -scores.shape[1] :], atol=1e-5)


def test_threshold(tmp_path: Path) -> None:
    x = CANCER[0].astype(np.float32)
    model = ensemble.GradientBoostingClassifier(n_estimators=5, random_state=1).fit(x, CANCER[1])
    chance = model.predict_proba(x)[:, 1]
    limit = float(np.median(chance)) + 1e-4
    given = parameters(output_class="true", threshold=limit, model_type="treelite_checkpoint")
    found = run(write(tmp_path, saved(model), config=given), x)
    np.testing.assert_array_equal(found[:, 0], chance > limit)


def test_missing_values(tmp_path: Path) -> None:
    x = DIABETES[0].astype(np.float32)
    x[::3, 2] = np.nan
    model = ensemble.HistGradientBoostingRegressor(max_iter=8, random_state=1).fit(x, DIABETES[1])
    np.testing.assert_allclose(run(write(tmp_path, saved(model)), x)[:, 0], model.predict(x), rtol=1e-5)


# --- config ----------------------------------------------------------------------------------------------------------


def forest(root: Path, config: str = "") -> Path:
    model = ensemble.RandomForestClassifier(n_estimators=3, random_state=1).fit(*IRIS)
    return write(root, saved(model), config=config)


def io(features: int = 4, out: str = "1", kind: str = "FP32", output: str = "output__0") -> str:
    return (
        f'input [{{ name: "input__0" data_type: TYPE_{kind} dims: [{features}] }}]\n'
        f'output [{{ name: "{output}" data_type: TYPE_FP32 dims: [{out}] }}]\n'
    )


def test_complete_config(tmp_path: Path) -> None:
    config, _ = opened(forest(tmp_path, parameters(predict_proba="true")))
    assert config.max_batch_size == 8192
    assert config.HasField("dynamic_batching")
    assert [(t.name, t.data_type, list(t.dims)) for t in config.input] == [("input__0", 11, [4])]
    assert [(t.name, t.data_type, list(t.dims)) for t in config.output] == [("output__0", 11, [3])]


def test_no_batch_dimension_and_gpu_parameters(tmp_path: Path) -> None:
    text = "max_batch_size: 0\n" + io(4, "-1, 3").replace("dims: [4]", "dims: [-1, 4]")
    ignored = parameters(predict_proba="true", storage_type="AUTO", algo="NAIVE", blocks_per_sm=2, threads_per_tree=4,
                         use_experimental_optimizations="true", xgboost_allow_unknown_field="true")  # fmt: skip
    x = IRIS[0].astype(np.float32)
    (found,), _ = answers(forest(tmp_path, text + ignored), x)
    model = ensemble.RandomForestClassifier(n_estimators=3, random_state=1).fit(*IRIS)
    np.testing.assert_allclose(found, model.predict_proba(x), atol=1e-6)


def test_a_lone_request_is_not_copied(tmp_path: Path) -> None:
    _, instance = answers(forest(tmp_path), IRIS[0][:5].astype(np.float32), threads=2)
    assert instance.counters() == {"calls": 1, "borrowed": 1, "copied_bytes": 0}


@pytest.mark.parametrize(("config", "kind", "text"), [
    (io(5), InvalidArg, "the model expects 4 features but the model configuration specifies dims [5]"),
    (io(4, "2"), InvalidArg, "the model makes 1 values of a row but the model configuration specifies dims [2]"),
    (io(kind="INT32"), InvalidArg, "expects datatype TYPE_INT32 for input 'input__0', model provides TYPE_FP32"),
    (io(output="scores"), InvalidArg, "unexpected inference output 'scores', allowed outputs are: output__0"),
    (io(output="treeshap_output"), Unsupported, "'treeshap_output' (Shapley values) is not supported"),
    (parameters(model_type="catboost"), InvalidArg, "parameter 'model_type' must be one of xgboost, xgboost_json"),
    (parameters(threshold="high"), InvalidArg, "parameter 'threshold' must be a number, got 'high'"),
    (parameters(predict_proba="maybe"), InvalidArg, "parameter 'predict_proba' must be true or false, got 'maybe'"),
    (parameters(model_type="lightgbm"), Unavailable, "unable to find 'm/1/model.txt' for model instance 'm'"),
    (parameters(model_type="lightgbm") + 'default_model_filename: "checkpoint.tl"', InvalidArg,
     "'m/1/checkpoint.tl' is no lightgbm model that can be read: "),
    (parameters(model_type="xgboost_json") + 'default_model_filename: "checkpoint.tl"', InvalidArg,
     "'m/1/checkpoint.tl' is no xgboost_json model that can be read: "),
])  # fmt: skip
def test_refused_configs(tmp_path: Path, config: str, kind: type[Exception], text: str) -> None:
    with pytest.raises(ServerError) as raised:
        opened(forest(tmp_path, "max_batch_size: 8\n" + config))
    assert isinstance(raised.value, kind)
    assert text in str(raised.value)
    assert str(tmp_path) not in str(raised.value)


# --- broken files ----------------------------------------------------------------------------------------------------


def test_truncated_and_empty(tmp_path: Path) -> None:
    good = (forest(tmp_path) / "1" / "checkpoint.tl").read_bytes()
    for size, text in (
        (0, "is empty"),
        (3, "no treelite_checkpoint model"),
        (len(good) // 2, "no treelite_checkpoint"),
    ):
        with pytest.raises(InvalidArg, match=text):
            opened(write(tmp_path, good[:size]))


def mutated(good: bytes, rng: random.Random) -> bytes:
    broken = bytearray(good)
    if rng.random() < 0.2:
        return bytes(broken[: rng.randrange(len(broken))])
    for _ in range(rng.choice((1, 2, 8))):
        broken[rng.randrange(len(broken))] = rng.randrange(256)
    return bytes(broken)


def test_mutations_end_in_an_answer(tmp_path: Path) -> None:
    """Where the probe lets a file pass, this process reads it and runs it, and lives."""
    from triton_fast._native.fil.instance import predict

    opened_library = library.open_library()
    good = (forest(tmp_path) / "1" / "checkpoint.tl").read_bytes()
    rng = random.Random(7)
    path = tmp_path / "broken.tl"
    passed = refused = 0
    for _ in range(24):
        path.write_bytes(mutated(good, rng))
        try:
            with Held(str(path)) as file:
                probe.check(opened_library, file, "treelite_checkpoint", unknown_fields=False, timeout=20)
        except InvalidArg:
            refused += 1
            continue
        made = Forest(str(path), "treelite_checkpoint")
        if made.features < 1 << 20:
            predict(made, bytes(4 * made.features))
        passed += 1
    assert refused > 5
    assert passed + refused == 24


def test_a_crash_while_reading_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "no.so").write_bytes(b"")
    library = str(tmp_path / "no.so")
    with Held(library) as file, pytest.raises(InvalidArg, match="the process that checked it ended with"):
        probe.check(library, file, "xgboost", unknown_fields=False, timeout=30)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_file_that_is_exchanged_after_it_was_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_place: bool
) -> None:
    """What is read is what was tried, and then refused: a worse one in its place could crash the server."""
    folder, check = forest(tmp_path), probe.check
    path = folder / "1" / "checkpoint.tl"
    good, read = path.read_bytes(), []

    def exchanging(*arguments: Any, **named: Any) -> None:
        check(*arguments, **named)
        target = path if in_place else path.with_suffix(".new")
        target.write_bytes(b"no forest")
        target.rename(path)

    def reading(name: str, *more: Any) -> Forest:
        read.append(Path(name).read_bytes())
        return Forest(name, *more)

    monkeypatch.setattr(probe, "check", exchanging)
    monkeypatch.setattr(backend, "Forest", reading)
    with pytest.raises(InvalidArg, match="the file was changed while it was opened: load the model again"):
        opened(folder)
    assert read == [good]


# --- XGBoost and LightGBM --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), [("xgboost_json", "xgboost.json"), ("xgboost_ubj", "xgboost.ubj")])
def test_xgboost(tmp_path: Path, kind: str, name: str) -> None:
    xgboost = pytest.importorskip("xgboost", reason="needs xgboost: pip install xgboost")
    given = parameters(model_type=kind, predict_proba="true")
    for number, (rows, y) in enumerate((IRIS, CANCER)):
        x = rows.astype(np.float32)
        x[::5, 1] = np.nan
        model = xgboost.XGBClassifier(n_estimators=6, max_depth=3).fit(x, y)
        found = run(write(tmp_path / f"p{number}", model.save_model, name, given), x)
        np.testing.assert_allclose(found, model.predict_proba(x), atol=1e-5)
        found = run(write(tmp_path / f"c{number}", model.save_model, name, parameters(model_type=kind)), x)
        np.testing.assert_array_equal(found[:, 0], model.predict(x))
    x = DIABETES[0].astype(np.float32)
    regressor = xgboost.XGBRegressor(n_estimators=6, max_depth=3).fit(x, DIABETES[1])
    found = run(write(tmp_path / "r", regressor.save_model, name, parameters(output_class="false")), x)
    np.testing.assert_allclose(found[:, 0], regressor.predict(x), rtol=1e-5)


def test_lightgbm(tmp_path: Path) -> None:
    lightgbm = pytest.importorskip("lightgbm", reason="needs lightgbm: pip install lightgbm")
    x, y = IRIS[0].astype(np.float32), IRIS[1]
    x[:, 3] = np.arange(len(x)) % 7
    options = {"verbose": -1, "min_data_per_group": 1, "cat_smooth": 0.1}
    table = lightgbm.Dataset(x, y, categorical_feature=[3])
    model = lightgbm.train({"objective": "multiclass", "num_class": 3, **options}, table, 6)
    given = parameters(model_type="lightgbm", predict_proba="true")
    found = run(write(tmp_path, model.save_model, "model.txt", given), x)
    np.testing.assert_allclose(found, model.predict(x), atol=1e-5)


@pytest.mark.parametrize("zero", [True, False])
def test_zeros_as_missing_values(tmp_path: Path, zero: bool) -> None:
    """Treelite reads such trees and lets zeros go by the threshold, not to where missing values go."""
    lightgbm = pytest.importorskip("lightgbm", reason="needs lightgbm: pip install lightgbm")
    rng = np.random.default_rng(3)
    x = np.where(rng.random((500, 4)) < 0.4, 0, rng.random((500, 4))).astype(np.float32)
    options = {"objective": "regression", "verbose": -1, "zero_as_missing": zero}
    model = lightgbm.train(options, lightgbm.Dataset(x, (x[:, 0] == 0) + x[:, 1]), 6)
    folder = write(tmp_path, model.save_model, "model.txt", parameters(model_type="lightgbm"))
    if zero:
        with pytest.raises(InvalidArg, match=r"no lightgbm model that can be read: trees that take zeros for missing"):
            opened(folder)
    else:
        np.testing.assert_allclose(run(folder, x)[:, 0], model.predict(x), rtol=1e-5)
