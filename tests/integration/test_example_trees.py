"""examples/trees from training to answers: the served forests predict what scikit-learn predicts."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.server import ServerProcess
from tests.integration.examples import addresses, copied, run
from tests.integration.onnx_files import config, infer

if any(importlib.util.find_spec(name) is None for name in ("treelite", "sklearn", "tritonclient")):
    pytest.skip("treelite, scikit-learn or tritonclient is not installed", allow_module_level=True)

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copied("trees", tmp_path_factory.mktemp("example"))
    run(folder / "train.py")
    return folder


@pytest.fixture(scope="module")
def server(example: Path) -> Iterator[ServerProcess]:
    with ServerProcess(example / "models") as process:
        yield process


def test_the_client_finds_no_difference(server: ServerProcess, example: Path) -> None:
    said = run(example / "client.py", *addresses(server))
    right = [float(text) for text in re.findall(r"wine ([0-9.]+)% right", said)]
    error = [float(text) for text in re.findall(r"progression ([0-9]+)% of the error", said)]
    assert len(right) == len(error) == 2
    assert min(right) > 85
    assert max(error) < 90


def test_batches_and_rows_alike(server: ServerProcess, example: Path) -> None:
    spec = importlib.util.spec_from_file_location("example_trees_train", example / "train.py")
    assert spec is not None
    assert spec.loader is not None
    train = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(train)
    model, features, _ = train.wine()
    found = infer(server.http, "wine", {"input__0": features})["output__0"]
    assert np.allclose(found, model.predict_proba(features), atol=1e-6)
    assert (infer(server.http, "wine", {"input__0": features[3:4]})["output__0"] == found[3:4]).all()
    model, features, _ = train.progression()
    found = infer(server.http, "progression.fil", {"input__0": features})["output__0"]
    assert np.allclose(found[:, 0], model.predict(features), rtol=1e-5)


def test_configs_are_completed(server: ServerProcess) -> None:
    made = config(server.http, "progression.fil")
    assert (made["backend"], made["input"][0]["dims"], made["output"][0]["dims"]) == ("fil", [10], [1])
    made = config(server.http, "wine")
    assert (made["input"][0]["dims"], made["output"][0]["dims"]) == ([13], [3])
