"""Forests of every kind of file through the whole server: values are those of the library that grew them, parameters.

XGBoost's files are made from scikit-learn's trees; its own package and LightGBM take part where they are installed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

treelite = pytest.importorskip("treelite", reason="needs treelite: pip install 'triton_fast[fil]'")

from sklearn import datasets, ensemble  # noqa: E402

from tests.helpers import raw, xgboost_files  # noqa: E402
from tests.helpers.server import ServerProcess  # noqa: E402
from tests.integration.onnx_files import config, index, infer, request  # noqa: E402

Array = np.ndarray[Any, Any]
CANCER = datasets.load_breast_cancer(return_X_y=True)
DIABETES = datasets.load_diabetes(return_X_y=True)
ROWS, TARGET = CANCER[0].astype(np.float32), CANCER[1]
CLASSIFIER = ensemble.GradientBoostingClassifier(n_estimators=6, random_state=1).fit(ROWS, TARGET)
REGRESSOR = ensemble.GradientBoostingRegressor(n_estimators=6, random_state=1).fit(
    DIABETES[0].astype(np.float32), DIABETES[1]
)
CHANCE = CLASSIFIER.predict_proba(ROWS)[:, 1]
LIMIT = float(np.median(CHANCE)) + 1e-4
LOGISTIC = "binary:logistic"
# Accepted and without effect on the CPU.
GPU = {"storage_type": "AUTO", "algo": "ALGO_AUTO", "blocks_per_sm": "0", "threads_per_tree": "1",
       "transfer_threshold": "0", "use_experimental_optimizations": "false"}  # fmt: skip
Write = Callable[[Path], object]


def bytes_of(data: bytes) -> Write:
    return lambda path: path.write_bytes(data)


# Kind of file -> its name and what writes the classifier.
FILES: dict[str, tuple[str, Write]] = {
    "xgboost_json": ("xgboost.json", bytes_of(xgboost_files.as_json(CLASSIFIER, LOGISTIC))),
    "xgboost_ubj": ("xgboost.ubj", bytes_of(xgboost_files.as_ubjson(CLASSIFIER, LOGISTIC))),
    "xgboost": ("xgboost.model", bytes_of(xgboost_files.as_binary(CLASSIFIER, LOGISTIC))),
    "treelite_checkpoint": (
        "checkpoint.tl", lambda path: treelite.sklearn.import_model(CLASSIFIER).serialize(path)
    ),
}  # fmt: skip
# Parameters -> what the output is of all rows.
OUTPUTS: dict[str, tuple[dict[str, str], Array]] = {
    "class": ({"output_class": "true", "threshold": "0.5"}, (CHANCE > 0.5)[:, None]),
    "threshold": ({"output_class": "true", "threshold": repr(LIMIT)}, (CHANCE > LIMIT)[:, None]),
    "proba": ({"output_class": "true", "predict_proba": "true"}, np.stack([1 - CHANCE, CHANCE], 1)),
    "score": ({"output_class": "false"}, CHANCE[:, None]),
}


# All outputs of two kinds; of the others one, since each file is first read in a process of its own.
CASES = [(kind, output) for kind in ("xgboost_json", "treelite_checkpoint") for output in OUTPUTS]
CASES += [("xgboost_ubj", "proba"), ("xgboost", "proba")]


def add(root: Path, name: str, filename: str, fill: Write, **parameters: str) -> None:
    folder = root / name / "1"
    folder.mkdir(parents=True)
    fill(folder / filename)
    text = 'backend: "fil"\n'
    text += "".join(f'parameters {{ key: "{k}" value {{ string_value: "{v}" }} }}\n' for k, v in parameters.items())
    (root / name / "config.pbtxt").write_text(text)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("forests")
    for kind, output in CASES:
        add(root, f"{kind}_{output}", *FILES[kind], model_type=kind, **OUTPUTS[output][0], **GPU)
    for kind, data in (("xgboost_json", xgboost_files.as_json(REGRESSOR)),
                       ("xgboost", xgboost_files.as_binary(REGRESSOR))):  # fmt: skip
        add(root, f"{kind}_regressor", FILES[kind][0], bytes_of(data), model_type=kind, output_class="false")
    (root / "named.fil" / "1").mkdir(parents=True)
    FILES["xgboost_json"][1](root / "named.fil" / "1" / "xgboost.json")
    add(root, "missing", "xgboost.json", FILES["xgboost_json"][1], model_type="xgboost")
    for package, write in PACKAGES.items():
        if importlib.util.find_spec(package) is not None:
            write(root)
    with ServerProcess(root, "--exit-on-error=false") as process:
        yield process


@pytest.mark.parametrize(("kind", "output"), CASES)
def test_every_file_and_output(server: ServerProcess, kind: str, output: str) -> None:
    found = infer(server.http, f"{kind}_{output}", {"input__0": ROWS})["output__0"]
    expected = OUTPUTS[output][1]
    assert found.dtype == np.float32
    # The sums of the libraries are of 32 and 64 bits.
    np.testing.assert_allclose(found, expected, atol=1e-6)
    shown = config(server.http, f"{kind}_{output}")
    assert shown["output"][0]["dims"] == [expected.shape[1]]
    assert shown["input"][0]["dims"] == [ROWS.shape[1]]


@pytest.mark.parametrize("kind", ["xgboost_json", "xgboost"])
def test_regression(server: ServerProcess, kind: str) -> None:
    rows = DIABETES[0].astype(np.float32)
    found = infer(server.http, f"{kind}_regressor", {"input__0": rows})["output__0"]
    np.testing.assert_allclose(found[:, 0], REGRESSOR.predict(rows), rtol=1e-6)


def test_a_directory_that_ends_in_fil_needs_no_config(server: ServerProcess) -> None:
    found = infer(server.http, "named.fil", {"input__0": ROWS[:9]})["output__0"]
    assert (found.shape, config(server.http, "named.fil")["backend"]) == ((9, 1), "fil")


def test_rows_of_another_width(server: ServerProcess) -> None:
    answer = raw.ask(server.http, request("xgboost_json_class", {"input__0": ROWS[:2, :7]}))
    assert answer.status == 400
    assert "unexpected shape for input 'input__0'" in answer.error
    row = index(server.http)["missing"]
    assert row["state"] == "UNAVAILABLE"
    assert "unable to find 'missing/1/xgboost.model' for model instance 'missing'" in row["reason"]


# ---- models of the packages themselves


def write_xgboost(root: Path) -> None:
    import xgboost

    model = xgboost.XGBClassifier(n_estimators=6, max_depth=3, n_jobs=1).fit(ROWS, TARGET)
    EXPECTED["xgboost"] = model.predict_proba(ROWS)
    for kind in ("xgboost_json", "xgboost_ubj"):
        name = f"package_{FILES[kind][0].replace('.', '_')}"
        add(root, name, FILES[kind][0], model.save_model, model_type=kind, predict_proba="true")


def write_lightgbm(root: Path) -> None:
    import lightgbm

    options = {"objective": "binary", "verbose": -1, "num_threads": 1}
    model = lightgbm.train(options, lightgbm.Dataset(ROWS, TARGET), 6)
    chance = model.predict(ROWS)
    EXPECTED["lightgbm"] = np.stack([1 - chance, chance], 1)
    add(root, "package_lightgbm", "model.txt", model.save_model, model_type="lightgbm", predict_proba="true")


PACKAGES = {"xgboost": write_xgboost, "lightgbm": write_lightgbm}
EXPECTED: dict[str, Array] = {}


@pytest.mark.parametrize(("package", "name"), [
    ("xgboost", "package_xgboost_json"), ("xgboost", "package_xgboost_ubj"), ("lightgbm", "package_lightgbm"),
])  # fmt: skip
def test_models_of_the_package(server: ServerProcess, package: str, name: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}: pip install {package}")
    found = infer(server.http, name, {"input__0": ROWS})["output__0"]
    np.testing.assert_allclose(found, EXPECTED[package], atol=1e-5)
