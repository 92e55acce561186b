"""Forests by nvforest on a real GPU, through a server: the same answers as on the CPU, device memory, faults, figures.

``TF_GPU_TESTS_ON=cpu`` runs them on the stand-ins of tests/helpers, to try the tests themselves.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if importlib.util.find_spec("treelite") is None or importlib.util.find_spec("sklearn") is None:
    pytest.skip("treelite and scikit-learn are not installed: pip install nvforest-cu13", allow_module_level=True)

# What releases of these warn of is no fault of the server.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import treelite
    from sklearn import ensemble

from tests.helpers import nvforests, raw, xgboost_files
from tests.helpers.binary_http import BinaryClient
from tests.helpers.server import ROOT, ServerProcess

ON_CPU = os.environ.get("TF_GPU_TESTS_ON") == "cpu"
if not ON_CPU and importlib.util.find_spec("nvforest") is None:
    pytest.skip("nvforest is not installed: pip install nvforest-cu13", allow_module_level=True)

needs_gpu = pytest.mark.skipif(ON_CPU, reason="it needs a GPU")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(240)]
Array = np.ndarray[Any, Any]
GPU, CPU = "instance_group { kind: KIND_GPU gpus: [ 0 ] }\n", "instance_group { kind: KIND_CPU count: 1 }\n"
RANDOM = np.random.default_rng(5)
ROWS = RANDOM.normal(size=(2000, 16)).astype(np.float32)
SCORE = ROWS[:, 0] * 2 + np.abs(ROWS[:, 1]) - ROWS[:, 2] * ROWS[:, 3]
TWO, THREE = (SCORE > 0.5).astype(int), np.digitize(SCORE, [0.0, 1.5])
HOLES = ROWS.copy()
HOLES[::3, ::5] = np.nan


def saved(model: Any) -> Callable[[Path], object]:
    return lambda path: treelite.sklearn.import_model(model).serialize(path)


def forests() -> dict[str, tuple[str, Callable[[Path], object]]]:
    """Name -> file and what writes it: of 64-bit and of 32-bit thresholds, of leaves with one and many numbers."""
    boosted = ensemble.GradientBoostingClassifier(n_estimators=20, random_state=1).fit(ROWS, TWO)
    many = ensemble.GradientBoostingClassifier(n_estimators=10, random_state=1).fit(ROWS, THREE)
    trees = ensemble.RandomForestClassifier(n_estimators=20, max_depth=8, random_state=1).fit(ROWS, THREE)
    pair = ensemble.RandomForestClassifier(n_estimators=20, max_depth=8, random_state=1).fit(ROWS, TWO)
    number = ensemble.RandomForestRegressor(n_estimators=20, max_depth=8, random_state=1).fit(ROWS, SCORE)
    holes = ensemble.HistGradientBoostingRegressor(max_iter=20, random_state=1).fit(HOLES, SCORE)
    outlier = ensemble.IsolationForest(n_estimators=10, random_state=1).fit(ROWS)
    return {
        "boosted": ("checkpoint.tl", saved(boosted)), "many": ("checkpoint.tl", saved(many)),
        "trees": ("checkpoint.tl", saved(trees)), "pair": ("checkpoint.tl", saved(pair)),
        "number": ("checkpoint.tl", saved(number)), "holes": ("checkpoint.tl", saved(holes)),
        "outlier": ("checkpoint.tl", saved(outlier)),
        "json": ("xgboost.json", lambda path: path.write_bytes(xgboost_files.as_json(boosted, "binary:logistic"))),
        "ubj": ("xgboost.ubj", lambda path: path.write_bytes(xgboost_files.as_ubjson(boosted, "binary:logistic"))),
    }  # fmt: skip


NAMES = ("boosted", "trees", "number", "holes", "outlier", "ubj")
# With every kind of output; the others' is that which the model says.
KINDS: dict[str, dict[str, object]] = {"proba": {"predict_proba": "true"}, "score": {"output_class": "false"}}
CASES = {
    **{name: (name, "") for name in NAMES}, **{f"{name}_proba": (name, "proba") for name in ("many", "trees", "pair",
     "json")}, **{f"{name}_score": (name, "score") for name in ("boosted", "pair")},
}  # fmt: skip
CLASSES = ("boosted", "trees", "ubj")
OPTIONS: dict[str, dict[str, object]] = {
    "layered": {"layout": "layered", "chunk_size": 8}, "breadth": {"algo": "NAIVE", "chunk_size": 32},
    "threads": {"threads_per_tree": 4}, "small": {"chunk_size": 1}, "threshold": {"transfer_threshold": 2},
}  # fmt: skip


def add(root: Path, name: str, form: tuple[str, Callable[[Path], object]], text: str, **parameters: object) -> None:
    (root / name / "1").mkdir(parents=True)
    form[1](root / name / "1" / form[0])
    text = 'backend: "fil"\nmax_batch_size: 65536\ndynamic_batching { }\n' + text
    text += "".join(f'parameters {{ key: "{k}" value {{ string_value: "{v}" }} }}\n' for k, v in parameters.items())
    (root / name / "config.pbtxt").write_text(text)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("fil_gpu")
    made = forests()
    for name, (form, kind) in CASES.items():
        for group, where in ((GPU, "gpu"), (CPU, "cpu")):
            add(root, f"{name}_{where}", made[form], group, **KINDS.get(kind, {}))
    for name, given in OPTIONS.items():
        add(root, name, made["trees"], GPU, predict_proba="true", **given)
    add(root, "auto", made["trees"], "", predict_proba="true")
    add(root, "instances", made["trees"], GPU.replace("{", "{ count: 2"), predict_proba="true")
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH", "")])])
    env = nvforests.environment(1) if ON_CPU else {"PYTHONPATH": paths}
    # Models are loaded by who needs them: each file is read in a process of its own first.
    with ServerProcess(root, "--model-control-mode=explicit", "--allow-client-shm=true", env=env) as process:
        yield process


@pytest.fixture
def client(server: ServerProcess) -> Iterator[BinaryClient]:
    made = BinaryClient(server.http)
    yield made
    made.close()


def load(address: tuple[str, int], *models: str) -> None:
    for model in models:
        if raw.ask(address, raw.get(f"/v2/models/{model}/ready")).status != 200:
            told = raw.ask(address, raw.post(f"/v2/repository/models/{model}/load"))
            assert told.status == 200, told.body


def answer(client: BinaryClient, model: str, rows: Array) -> Array:
    load(client.address, model)
    status, found = client.infer(model, {"input__0": rows})
    assert status == 200, found
    made: Array = found["output__0"]
    return made


@needs_gpu
def test_the_package_is_the_one_that_the_stand_in_is_of() -> None:
    nvforests.check_signatures(importlib.import_module("nvforest"), exact=False)


@pytest.mark.parametrize("name", CASES)
def test_answers_are_those_of_the_cpu(client: BinaryClient, name: str) -> None:
    given = HOLES if name == "holes" else ROWS
    for rows in (given, given[:1], given[3:100]):
        found, expected = (answer(client, f"{name}_{where}", rows) for where in ("gpu", "cpu"))
        assert found.shape == expected.shape
        if name in CLASSES:
            # Sums of another order may fall on the other side of a threshold.
            assert np.mean(found != expected) < 0.002
        else:
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*OPTIONS, "auto", "instances"])
def test_parameters_change_no_answer(client: BinaryClient, name: str) -> None:
    for rows in (ROWS, ROWS[:2]):
        expected = answer(client, "trees_proba_cpu", rows)
        np.testing.assert_allclose(answer(client, name, rows), expected, rtol=1e-4, atol=1e-5)


def test_kind_auto_is_a_gpu(server: ServerProcess) -> None:
    load(server.http, "auto")
    (group,) = raw.ask(server.http, raw.get("/v2/models/auto/config")).json()["instance_group"]
    assert group["kind"] == "KIND_GPU"


def test_many_clients(server: ServerProcess, client: BinaryClient) -> None:
    expected = answer(client, "trees_proba_cpu", ROWS)
    load(server.http, "instances")

    def one(at: int) -> None:
        mine = BinaryClient(server.http)
        for start in range(at, 1900, 97):
            status, found = mine.infer("instances", {"input__0": ROWS[start : start + 5]})
            assert status == 200, found
            np.testing.assert_allclose(found["output__0"], expected[start : start + 5], rtol=1e-4, atol=1e-5)
        mine.close()

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one, range(16)))


@needs_gpu
@pytest.mark.parametrize("offset", [0, 2], ids=["aligned", "misaligned"])
def test_rows_in_cuda_shared_memory(server: ServerProcess, client: BinaryClient, offset: int) -> None:
    from tests.helpers.cuda_memory import DeviceBytes

    expected = answer(client, "trees_proba_cpu", ROWS)
    load(server.http, "trees_proba_gpu")
    with DeviceBytes(ROWS.nbytes + offset) as memory:
        memory.write(ROWS.tobytes(), offset)
        body = {"raw_handle": {"b64": memory.raw_handle.decode()}, "device_id": 0, "byte_size": memory.size}
        path = f"/v2/cudasharedmemory/region/rows{offset}"
        assert raw.ask(server.http, raw.post(f"{path}/register", json.dumps(body).encode())).status == 200
        place = {"shared_memory_region": f"rows{offset}", "shared_memory_byte_size": ROWS.nbytes}
        if offset:
            place["shared_memory_offset"] = offset
        tensor = {"name": "input__0", "shape": list(ROWS.shape), "datatype": "FP32", "parameters": place}
        asked = raw.post(raw.infer_path("trees_proba_gpu"), json.dumps({"inputs": [tensor]}).encode())
        for _ in range(3):
            told = raw.ask(server.http, asked)
            assert told.status == 200, told.body
            found = np.asarray(told.json()["outputs"][0]["data"], np.float32).reshape(expected.shape)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        assert raw.ask(server.http, raw.post(f"{path}/unregister")).status == 200


def test_unloading_and_loading_again(server: ServerProcess, client: BinaryClient) -> None:
    expected = answer(client, "json_proba_gpu", ROWS)
    told = raw.ask(server.http, raw.post("/v2/repository/models/json_proba_gpu/unload"))
    assert told.status == 200, told.body
    np.testing.assert_array_equal(answer(client, "json_proba_gpu", ROWS), expected)


def test_figures(client: BinaryClient, gpu_table: Callable[[str, object], None]) -> None:
    for rows in (1, 256, 32768):
        given = np.resize(ROWS, (rows, ROWS.shape[1]))
        for where in ("cpu", "gpu"):
            answer(client, f"trees_proba_{where}", given)
            times = []
            for _ in range(20):
                began = time.perf_counter()
                answer(client, f"trees_proba_{where}", given)
                times.append(time.perf_counter() - began)
            gpu_table(f"FIL, 20 trees of depth 8, {rows} rows, one client, {where}", f"{np.median(times) * 1e6:.0f} us")
