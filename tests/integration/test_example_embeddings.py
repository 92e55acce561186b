"""examples/embeddings from training to search: what is answered is what the parts compute, and it means something."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.helpers.server import ServerProcess
from tests.integration.examples import addresses, copied, run
from tests.integration.onnx_files import config, infer

if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime", "sklearn", "tritonclient")):
    pytest.skip("onnx, onnxruntime, scikit-learn or tritonclient is not installed", allow_module_level=True)

import onnxruntime

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copied("embeddings", tmp_path_factory.mktemp("example"))
    assert "encoder learned from" in run(folder / "train.py")
    return folder


@pytest.fixture(scope="module")
def server(example: Path) -> Iterator[ServerProcess]:
    with ServerProcess(example / "models") as process:
        yield process


def module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made
    spec.loader.exec_module(made)
    return made


def array(texts: list[str]) -> np.ndarray:
    return np.array([[text.encode() for text in texts]], object).T


def test_the_client_finds_by_meaning(server: ServerProcess, example: Path) -> None:
    said = run(example / "client.py", *addresses(server))
    subject, commonest, found, chance = (float(text) for text in re.findall(r"([0-9.]+)%", said))
    # The client's own limits are lower; it ends with code 1 below them.
    assert subject > 70 > 3 * commonest
    assert found > 70 > 20 * chance
    said = run(example / "client.py", *addresses(server), "solve", "a", "system", "of", "linear", "equations")
    assert "linalg.solve" in said


def test_the_ensemble_is_its_parts(server: ServerProcess, example: Path) -> None:
    bpe = module(example / "models" / "tokenizer" / "1" / "bpe.py")
    content = json.loads((example / "models" / "tokenizer" / "1" / "tokens.json").read_text())
    tokenizer = bpe.Tokenizer(content["tokens"], [tuple(pair) for pair in content["merges"]])
    texts = ["Compute the inverse of a matrix.", "", "xyzzy ☃ 42", "sort " * 500]
    ids = np.array([tokenizer.encode(text, content["length"]) for text in texts], np.int32)
    assert (infer(server.http, "tokenizer", {"text": array(texts)})["ids"] == ids).all()
    session = onnxruntime.InferenceSession(example / "models" / "encoder" / "1" / "model.onnx")
    expected = session.run(None, {"ids": ids})[0]
    found = infer(server.http, "embed", {"text": array(texts)})["embedding"]
    assert np.allclose(found, expected, atol=1e-5)
    lengths = np.linalg.norm(found, axis=1)
    assert np.allclose(lengths[[0, 2, 3]], 1, atol=1e-3)
    # One text alone, and bytes that are no UTF-8.
    assert np.allclose(infer(server.http, "embed", {"text": array(texts[:1])})["embedding"], expected[:1], atol=1e-5)
    broken = np.array([[b"\xff\xfe matrix"]], object)
    assert np.isfinite(infer(server.http, "embed", {"text": broken})["embedding"]).all()


def test_the_encoder_s_tensors_come_from_its_file(server: ServerProcess) -> None:
    made = config(server.http, "encoder")
    assert [(one["name"], one["dims"]) for one in made["input"] + made["output"]] == [
        ("ids", [128]),
        ("embedding", [96]),
    ]


def test_pairs_are_merged_by_how_often_they_are_seen(example: Path) -> None:
    bpe = module(example / "models" / "tokenizer" / "1" / "bpe.py")
    tokens, merges = bpe.learn(["low lower lowest low"] * 3 + ["slow"], 100)
    assert merges[:2] == [("l", "o"), ("lo", "w")]  # of equals the first
    tokenizer = bpe.Tokenizer(tokens, merges)
    numbers = tokenizer.encode("Low slower", 8)
    spelled = "".join(tokens[number] for number in numbers if number != bpe.PADDING)
    assert spelled.replace(bpe._END, " ") == "low slower "
    assert len(numbers) == 8
    assert tokenizer.encode("q", 3) == [bpe.UNKNOWN, tokens.index(bpe._END), bpe.PADDING]
    # All at most once, and the same every time.
    assert len(set(tokens)) == len(tokens)
    assert bpe.learn(["low lower lowest low"] * 3 + ["slow"], 100) == (tokens, merges)


def test_gradients(example: Path) -> None:
    encoder = module(example / "encoder.py")
    rng = np.random.default_rng(0)
    one, other = (rng.poisson(0.3, (6, 120)).astype(np.float64) for _ in range(2))
    params = {name: value.astype(np.float64) for name, value in encoder.initial(one + other, rng).items()}
    loss, grads = encoder.gradients(params, one, other)
    for name, value in params.items():
        at = tuple(rng.integers(0, size) for size in value.shape)
        before = value[at]
        value[at] = before + 1e-5
        assert abs((encoder.gradients(params, one, other)[0] - loss) / 1e-5 - grads[name][at]) < 1e-3, name
        value[at] = before
