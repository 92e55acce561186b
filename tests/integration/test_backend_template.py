"""The template of a backend: installed with pip and served by its entry point, or as a file of --backend-directory."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import raw
from tests.helpers.foreign_backends import package
from tests.helpers.server import ROOT, ServerProcess
from tests.integration.onnx_files import arrays, config, index, infer, request

# Asked of the installed packages: a finder that setuptools adds stops serving its distutils to this process, for good,
# once a module named pip is looked for, and PyTorch's compiler can then no longer import setuptools.
NEEDED = {"pip", "setuptools", "scikit-learn", "tritonclient"}
if not {found.name for found in importlib.metadata.distributions()} >= NEEDED:
    pytest.skip("pip, setuptools, scikit-learn or tritonclient is not installed", allow_module_level=True)

TEMPLATE = ROOT / "examples" / "backend_template"
CONFIG = (TEMPLATE / "models" / "tumours" / "config.pbtxt").read_text()


def python(*command: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run([sys.executable, *command], check=False, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def model(root: Path, name: str, data: bytes | None, text: str | None = CONFIG, filename: str = "model.npz") -> None:
    (root / name / "1").mkdir(parents=True)
    if data is not None:
        (root / name / "1" / filename).write_bytes(data)
    if text is not None:
        (root / name / "config.pbtxt").write_text(text)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template installed, beside a package with a broken backend and one that wants a built-in's name."""
    source, target = tmp_path_factory.mktemp("source") / "template", tmp_path_factory.mktemp("site")
    # A build leaves files in the folder it builds from.
    shutil.copytree(TEMPLATE, source, ignore=shutil.ignore_patterns("models"))
    python("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target",
           str(target), str(source))  # fmt: skip
    package(
        target, "broken", {"broken": "broken_backend:Backend"}, {"broken_backend": "raise SystemExit('no licence')"}
    )
    package(target, "thief", {"onnxruntime": "broken_backend:Backend"})
    return target


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("trained") / "model.npz"
    python(str(TEMPLATE / "train.py"), str(path))
    return path.read_bytes()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, trained: bytes) -> Path:
    root = tmp_path_factory.mktemp("models")
    model(root, "tumours", trained)
    model(root, "by_file", trained, None, "model.linear")
    model(root, "by_name.linear", trained, None)
    model(root, "single", trained, CONFIG + "max_batch_size: 0\n")
    model(root, "cut", trained[:100])
    model(root, "absent", None)
    model(root, "odd", trained, CONFIG.replace("softmax", "relu"))
    model(root, "wrong", trained, CONFIG + 'input { name: "x" data_type: TYPE_FP32 dims: 3 }')
    model(root, "streams", trained, CONFIG + "model_transaction_policy { decoupled: true }")
    model(root, "broken", trained, 'backend: "broken"')
    model(root, "unknown", trained, 'backend: "lineal"')
    return root


@pytest.fixture(scope="module")
def server(site: Path, root: Path) -> Iterator[ServerProcess]:
    flags = ("--exit-on-error=false", "--strict-readiness=false", "--backend-config=linear,default-max-batch-size=16",
             "--backend-config=default-max-batch-size=2")  # fmt: skip
    env = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(site)])}
    with ServerProcess(root, *flags, env=env) as process:
        yield process


def rows(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 20, (n, 30)).astype(np.float32)


def expected(trained: bytes, features: np.ndarray, tmp: Path) -> tuple[np.ndarray, list[bytes]]:
    """What numpy itself computes, in double precision."""
    (tmp / "own.npz").write_bytes(trained)
    with np.load(tmp / "own.npz") as archive:
        scores = features.astype(np.float64) @ archive["weights"] + archive["bias"]
        classes = archive["classes"]
    made = np.exp(scores - scores.max(axis=1, keepdims=True))
    return made / made.sum(axis=1, keepdims=True), [str(classes[n]).encode() for n in scores.argmax(axis=1)]


def test_the_client_of_the_example(server: ServerProcess) -> None:
    said = python(
        str(TEMPLATE / "client.py"), "--http", f"127.0.0.1:{server.http[1]}", "--grpc", f"127.0.0.1:{server.grpc[1]}"
    )
    assert "HTTP: 9" in said
    assert "gRPC: 9" in said


@pytest.mark.parametrize("name", ["tumours", "by_file", "by_name.linear"])
def test_answers_in_batches(server: ServerProcess, trained: bytes, tmp_path: Path, name: str) -> None:
    def ask(n: int) -> bool:
        features = rows(1 + n % 5, n)
        found = infer(server.http, name, {"features": features})
        close = np.allclose(found["scores"], scores[n], atol=1e-3)
        return close and found["label"][:, 0].tolist() == labels[n]

    made = [expected(trained, rows(1 + n % 5, n), tmp_path) for n in range(40)]
    scores, labels = [one for one, _ in made], [one for _, one in made]
    if name != "tumours":  # no parameter says softmax
        for n in range(5):
            found = infer(server.http, name, {"features": rows(1 + n, n)})
            assert found["label"][:, 0].tolist() == labels[n]
        return
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(40)))


def test_the_config_is_completed(server: ServerProcess) -> None:
    made = config(server.http, "tumours")
    assert (made["backend"], made["max_batch_size"]) == ("linear", 16)
    assert [(one["name"], one["data_type"], one["dims"]) for one in made["input"] + made["output"]] == [
        ("features", "TYPE_FP32", [30]), ("scores", "TYPE_FP32", [2]), ("label", "TYPE_STRING", [1])
    ]  # fmt: skip
    assert "dynamic_batching" in made
    single = config(server.http, "single")
    assert (single["max_batch_size"], single["input"][0]["dims"]) == (0, [-1, 30])
    assert infer(server.http, "single", {"features": rows(3)})["scores"].shape == (3, 2)


def test_one_request_fails_alone(server: ServerProcess) -> None:
    def ask(n: int) -> raw.Answer:
        features = rows(1, n)
        features[0, 0] = np.nan if n % 2 else 1
        return raw.ask(server.http, request("tumours", {"features": features}))

    with ThreadPoolExecutor(8) as pool:
        for n, answer in enumerate(pool.map(ask, range(40))):
            assert answer.status == (400 if n % 2 else 200)
            assert not n % 2 or answer.json() == {"error": "features must be finite"}
            assert n % 2 or arrays(answer)["scores"].shape == (1, 2)


def test_what_can_not_be_served_is_told_and_harms_nothing(server: ServerProcess, root: Path, site: Path) -> None:
    found = index(server.http)
    said = {
        "cut": "model 'cut' is no linear model: ",
        "absent": "unable to find 'absent/1/model.npz' for model instance 'absent'",
        "odd": "parameter 'activation' must be none or softmax, got 'relu'",
        "wrong": "unexpected inference input 'x', allowed inputs are: features",
        "streams": "model 'streams' is decoupled, which this version does not serve with backend 'linear'",
        "broken": "unable to load backend 'broken' of package broken: SystemExit: no licence (broken_back",
        "unknown": "unable to find backend library for backend 'lineal'",
    }
    for name, text in said.items():
        assert found[name]["state"] == "UNAVAILABLE"
        assert text in found[name]["reason"]
        assert str(root) not in found[name]["reason"]
        assert str(site) not in found[name]["reason"]
    assert {found[name]["state"] for name in ("tumours", "by_file", "by_name.linear", "single")} == {"READY"}


def test_the_start_table(server: ServerProcess) -> None:
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in server.log().splitlines()]
    found = {row[0]: row[1:] for row in cells if len(row) == 4}
    assert found["Backend"] == ["Path", "Config", "Version"]
    assert found["linear"][0] == "package triton-fast-linear"
    assert found["linear"][1:] == ['{"default-max-batch-size": "16"}', "1.0"]
    assert found["identity"][:2] == ["built in", '{"default-max-batch-size": "2"}']
    server.wait_for_log("backend 'onnxruntime' of package thief is not used: the name is that of a built-in one")


def test_the_same_file_in_a_backend_directory(tmp_path: Path, trained: bytes) -> None:
    (tmp_path / "backends" / "straight").mkdir(parents=True)
    shutil.copy(TEMPLATE / "triton_fast_linear.py", tmp_path / "backends" / "straight" / "backend.py")
    model(tmp_path / "models", "tumours", trained, CONFIG.replace("linear", "straight"))
    with ServerProcess(tmp_path / "models", f"--backend-directory={tmp_path / 'backends'}") as process:
        found = infer(process.http, "tumours", {"features": rows(2)})
        assert np.allclose(found["scores"], expected(trained, rows(2), tmp_path)[0], atol=1e-3)
        assert config(process.http, "tumours")["max_batch_size"] == 4
        path = f"{tmp_path / 'backends'}/straight/backend.py"
        assert path in process.wait_for_log(r"\| straight")
