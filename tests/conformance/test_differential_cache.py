"""The response cache beside the reference's local cache: the same requests, the same counts and families; and the two
cases where the reference gives wrong answers, which is why ours has another key.

Needs TRITON_REFERENCE (see reference.py).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance import reference
from tests.helpers import python_models, raw
from tests.helpers.server import ServerProcess, until

CONFIG = """
backend: "python"
max_batch_size: 8
input { name: "IN" data_type: TYPE_INT32 dims: [ -1 ] }
output { name: "OUT" data_type: TYPE_INT32 dims: [ -1 ] }
dynamic_batching { }
response_cache { enable: true }
instance_group { kind: KIND_CPU }
"""
CODE = """
class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            numbers = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
            if numbers.flat[0] == 13:
                answers.append(pb_utils.InferenceResponse(error=pb_utils.TritonError("unlucky")))
            else:
                answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", numbers + 1)]))
        return answers
"""
FLAGS = ("--cache-config=local,size=1048576", "--model-control-mode=explicit", "--load-model=*")
NAMES = ("counts", "shapes", "errors")
Peer = Any


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Peer]]:
    if reference.VARIABLE not in os.environ:
        pytest.skip(f"{reference.VARIABLE} is not set: the path of the reference server")
    root: Path = tmp_path_factory.mktemp("cached")
    for name in NAMES:
        python_models.model_of(root, name, CODE, CONFIG)
    with (
        ServerProcess(root, *FLAGS) as ours,
        reference.Reference(root, tmp_path_factory.mktemp("log") / "log", *FLAGS) as theirs,
    ):
        yield {"ours": ours, "theirs": theirs}


def ask(peer: Peer, model: str, *values: int, shape: tuple[int, int] | None = None) -> tuple[int, Any]:
    shape = shape or (1, len(values))
    body = {"inputs": [{"name": "IN", "shape": shape, "datatype": "INT32", "data": values}]}
    answer = raw.ask(peer.http, raw.post(raw.infer_path(model), json.dumps(body).encode()))
    return answer.status, answer.json()


def counts(peer: Peer, model: str) -> dict[str, int]:
    (found,) = raw.ask(peer.http, raw.get(f"/v2/models/{model}/stats")).json()["model_stats"]
    return {
        **{name: value["count"] for name, value in found["inference_stats"].items()},
        "inference_count": found["inference_count"], "execution_count": found["execution_count"],
        "batches": sum(row["compute_infer"]["count"] for row in found["batch_stats"]),
    }  # fmt: skip


def families(peer: Peer) -> dict[str, str]:
    text = raw.ask(peer.metrics, raw.get("/metrics")).body.decode()
    return dict(re.findall(r"^# HELP (nv_cache_\S+) (.*)$", text, re.MULTILINE))


def test_counts_and_families_are_the_same(peers):
    answers = {
        name: [ask(peer, "counts", *values) for values in ((1,), (1,), (2, 3), (1,), (2, 3), (1, 1))]
        for name, peer in peers.items()
    }
    assert answers["ours"] == answers["theirs"]
    ours = counts(peers["ours"], "counts")
    # The reference counts some time after it has answered.
    until(lambda: counts(peers["theirs"], "counts") == ours)
    assert ours == counts(peers["theirs"], "counts")
    assert ours["cache_hit"] == 3
    assert ours["success"] == ours["queue"] == 6
    assert families(peers["ours"]) == families(peers["theirs"])


def test_the_reference_answers_another_shape_with_the_first(peers):
    for peer in peers.values():
        assert ask(peer, "shapes", 1, 2)[1]["outputs"][0]["shape"] == [1, 2]
    assert ask(peers["ours"], "shapes", 1, 2, shape=(2, 1))[1]["outputs"][0]["shape"] == [2, 1]
    assert ask(peers["theirs"], "shapes", 1, 2, shape=(2, 1))[1]["outputs"][0]["shape"] == [1, 2]


def test_the_reference_stores_errors_as_empty_answers(peers):
    for peer in peers.values():
        assert ask(peer, "errors", 13)[1] == {"error": "unlucky"}
    assert ask(peers["ours"], "errors", 13)[1] == {"error": "unlucky"}
    status, answer = ask(peers["theirs"], "errors", 13)
    assert (status, answer["outputs"]) == (200, [])
