"""Python models of every kind, over HTTP and gRPC: outputs, statuses and texts are those of the record, and where this
server differs by choice (python_answers.KNOWN) those that stand there.

tests/models/python has the models, python_cases.py and python_loads.py what is asked of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client
from tritonclient.utils import InferenceServerException

from tests.conformance import python_answers, python_loads
from tests.conformance.python_answers import KNOWN
from tests.conformance.python_cases import CASES, Case, named, one
from tests.helpers import python_models, raw, workers
from tests.helpers.grpc_channel import Channel
from tests.helpers.server import ServerProcess, until

EXPECTED: dict[str, Any] = json.loads(python_answers.RECORD.read_text())
LOADS = [f"{kind}_{name}" for kind, table in
         (("complete", python_loads.COMPLETE), ("wrong", python_loads.WRONG), ("late", python_loads.LATE))
         for name in table]  # fmt: skip


class Served(NamedTuple):
    process: ServerProcess
    channel: Channel
    root: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    base = tmp_path_factory.mktemp("python")
    root = python_models.write(base / "models", marker=base)
    python_loads.write(root)
    flags = [f"--load-model={name}" for name in sorted(path.name for path in root.iterdir())
             if name not in LOADS and name not in python_models.ON_DEMAND]  # fmt: skip
    with ServerProcess(root, "--model-control-mode=explicit", *flags) as process, Channel(process.grpc) as channel:
        yield Served(process, channel, root)


@pytest.mark.parametrize("name", CASES)
def test_case(served: Served, name: str) -> None:
    case = CASES[name]
    found = python_answers.asked(served.process.http, served.channel, case, served.root)
    if name not in KNOWN:
        assert found == EXPECTED[name]
        return
    for protocol, answer in found.items():
        if protocol == "http" or case.decoupled:
            assert python_answers.like(python_answers.summary(answer), KNOWN[name].text), answer
        assert "is not healthy" not in answer.get("error", ""), answer


@pytest.mark.parametrize("name", LOADS)
def test_load(served: Served, name: str) -> None:
    found = python_answers.loaded(served.process.http, name, served.root)
    if name in KNOWN:
        assert python_answers.like(python_answers.summary(found), KNOWN[name].text), found
    else:
        assert comparable(found) == comparable(EXPECTED[name])
    assert raw.ask(served.process.http, named("forward", "still here").http()).status == 200


def comparable(found: dict[str, Any]) -> dict[str, Any]:
    """Without members of a configuration that only say their default."""

    def told(value: Any) -> Any:
        if isinstance(value, dict):
            kept = {key: told(item) for key, item in value.items()}
            return {key: item for key, item in kept.items() if item not in (0, "", False, [], {}, None, "FORMAT_NONE")}
        return [told(item) for item in value] if isinstance(value, list) else value

    return {key: told(value) if key == "config" else value for key, value in found.items()}


def test_every_case_has_an_expectation() -> None:
    names = {*CASES, *LOADS}
    assert set(KNOWN) <= names
    assert {name for name in names if name not in KNOWN} <= set(EXPECTED)
    assert set(EXPECTED) <= names


# ---- with tritonclient


@pytest.mark.parametrize("kind", python_models.ALL_TYPES)
def test_every_datatype_comes_back(served: Served, kind: str) -> None:
    """Raw bytes in, the same bytes out, over both clients; BF16 goes through DLPack."""
    datatype = "BYTES" if kind == "STRING" else kind
    model = "identity" if kind == "FP32" else f"identity_{kind.lower()}"
    rng = np.random.default_rng(5)
    if datatype == "BYTES":
        values = np.array([[rng.bytes(n) for n in (0, 1, 300)]], dtype=object)
    elif datatype == "BF16":
        values = rng.integers(-8, 8, (2, 5)).astype(np.float32)
    else:
        types = {"BOOL": "?", "FP16": "e", "FP32": "f", "FP64": "d"}
        numbers = rng.integers(0, 2 if datatype == "BOOL" else 100, (2, 5))
        values = numbers.astype(types.get(datatype, datatype.lower()))
    for module, address in ((http_client, served.process.http), (grpc_client, served.process.grpc)):
        with module.InferenceServerClient(f"{address[0]}:{address[1]}") as client:
            tensor = module.InferInput("INPUT0", values.shape, datatype)
            tensor.set_data_from_numpy(values)
            found = client.infer(model, [tensor]).as_numpy("OUTPUT0")
            assert found.shape == values.shape
            assert np.array_equal(found, values)


@pytest.mark.parametrize("n", [2 * 1024 * 1024, 100])
def test_large_tensors(served: Served, n: int) -> None:
    """8 MiB of floats, and small ones after them."""
    values = np.arange(n, dtype=np.float32)[None, :]
    for module, address in ((http_client, served.process.http), (grpc_client, served.process.grpc)):
        with module.InferenceServerClient(f"{address[0]}:{address[1]}") as client:
            tensor = module.InferInput("INPUT0", values.shape, "FP32")
            tensor.set_data_from_numpy(values)
            assert np.array_equal(client.infer("identity", [tensor]).as_numpy("OUTPUT0"), values)


def test_very_many_texts(served: Served) -> None:
    n = 70_000
    values = np.array([[b"%d" % i for i in range(n)]], dtype=object)
    with http_client.InferenceServerClient(":".join(map(str, served.process.http))) as client:
        tensor = http_client.InferInput("INPUT0", values.shape, "BYTES")
        tensor.set_data_from_numpy(values)
        assert np.array_equal(client.infer("identity_string", [tensor]).as_numpy("OUTPUT0"), values)
        count = http_client.InferInput("N", [1], "INT64")
        count.set_data_from_numpy(np.array([n]))
        outputs = [http_client.InferRequestedOutput("TEXTS")]
        assert np.array_equal(client.infer("large", [count], outputs=outputs).as_numpy("TEXTS"), values[0])


def test_sequence_arguments(served: Served) -> None:
    with grpc_client.InferenceServerClient(":".join(map(str, served.process.grpc))) as client:
        tensor = grpc_client.InferInput("IN", [1], "INT32")
        tensor.set_data_from_numpy(np.array([1], np.int32))
        made = client.infer(
            "echo", [tensor], request_id="r", sequence_id="text", sequence_start=True, timeout=7_000_000, priority=2,
            parameters={"mine": "x"},
        )  # fmt: skip
        seen = json.loads(made.as_numpy("SEEN")[0])
        assert (seen["id"], seen["correlation"], seen["flags"]) == ("r", ["str", "text"], 1)
        assert seen["timeout"] == 7_000_000
        assert seen["parameters"] == {"mine": ["str", "x"]}
        with pytest.raises(InferenceServerException, match="with NOT_FOUND") as error:
            case = grpc_client.InferInput("CASE", [1], "BYTES")
            case.set_data_from_numpy(np.array(["code_NOT_FOUND"], dtype=object))
            client.infer("errors", [case])
        assert error.value.status() == "StatusCode.NOT_FOUND"


def test_a_coroutine_goes_on_beside_the_next_request(served: Served) -> None:
    """The first waits in ``await`` for the second, which the same instance takes meanwhile."""
    with served.channel.talk() as first, served.channel.talk() as second:
        first.send(one("coroutine_decoupled", 0).grpc())
        second.send(one("coroutine_decoupled", 2).grpc())
        assert [second.next().infer_response.outputs[0].name for _ in range(2)] == ["OUT", "OUT"]
        assert first.next().infer_response.outputs[0].name == "OUT"


# ---- state, isolation


def test_a_request_sees_only_its_own_input(served: Served) -> None:
    """Writing into a view reaches nobody else, and views kept after ``execute`` keep their values."""
    address = served.process.http
    with raw.several(address, 4) as clients:
        for i in range(40):
            for k, client in enumerate(clients):
                values = [(-1) ** k * (i + 1), k]
                client.send(Case("isolation", [("IN", "INT32", [1, 2], values)]).http())
            for k, client in enumerate(clients):
                outputs = {item["name"]: item["data"] for item in client.answer().json()["outputs"]}
                assert outputs["OUT"] == [(-1) ** k * (i + 1), k]
                assert outputs["SAME"][0] is True, "a view that was kept has changed"


def test_state_is_kept_until_the_reload(served: Served) -> None:
    address = served.process.http

    def add(n: int) -> int:
        return int(raw.ask(address, one("controlled", n, "INT64").http()).json()["outputs"][0]["data"][0])

    for _ in range(2):
        assert python_answers.load(address, "controlled") == {"status": 200}
        assert [add(5), add(6)] == [5, 11]
        assert raw.ask(address, raw.post("/v2/repository/models/controlled/unload")).status == 200
        assert until(lambda: raw.ask(address, raw.get("/v2/models/controlled/ready")).status != 200)


# ---- metrics, readiness


def samples(process: ServerProcess, name: str) -> dict[str, float]:
    text = raw.ask(process.metrics, raw.get("/metrics")).body.decode()
    return {labels: float(value) for labels, value in re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", text, re.M)}


def test_custom_metrics_are_on_the_page(served: Served) -> None:
    for name in ("values", "gauge", "histogram"):
        answer = raw.ask(served.process.http, named("metrics", name).http())
        assert answer.status == 200, answer.body
    labels = 'model="metrics",version="1"'
    before = samples(served.process, "suite_requests")[labels]
    assert raw.ask(served.process.http, named("metrics", "values").http()).status == 200
    assert samples(served.process, "suite_requests")[labels] == before + 1
    assert samples(served.process, "suite_level")['which="high"'] == 3.5
    text = raw.ask(served.process.metrics, raw.get("/metrics")).body.decode()
    for line in ("# HELP suite_requests requests seen", "# TYPE suite_requests counter", "# TYPE suite_level gauge",
                 "# TYPE suite_times histogram"):
        assert line in text


def test_what_the_reference_does_not_survive_in_metrics(served: Served) -> None:
    def found(name: str) -> Any:
        answer = raw.ask(served.process.http, named("metrics", name).http())
        assert answer.status == 200, answer.body
        return json.loads(answer.json()["outputs"][0]["data"][0])

    wrong = found("counter_errors")
    assert wrong[0].startswith("TritonModelException: Failed to increment metric value: ")
    assert wrong[1].startswith("TritonModelException: Failed to set metric value: ")
    assert wrong[2] == 0.0
    assert wrong[3].startswith("TritonModelException: Failed to observe metric value: ")
    assert found("labels")[0].endswith("Labels must be a dictionary.")
    assert found("same_family_again") == [True]
    for name in ("other_kind", "bad_names"):
        assert all(text.startswith("TritonModelException: Error when creating MetricFamily: ") for text in found(name))
    wrong = found("histogram")
    assert wrong[0].startswith("TritonModelException: Failed to increment metric value: ")
    assert wrong[3].endswith("Missing required buckets.")
    assert wrong[4].endswith("Buckets must be a list.")
    assert wrong[7].endswith("Unexpected buckets found.")


READY = {
    "true": ("return True", True), "false": ("return False", False), "number": ("return 1", False),
    "none": ("pass", False), "raises": ("raise ValueError('no')", False),
}  # fmt: skip


@pytest.mark.parametrize("asynchronous", [False, True], ids=["def", "async def"])
@pytest.mark.parametrize("name", READY)
def test_is_ready(tmp_path: Path, name: str, asynchronous: bool) -> None:
    body, ready = READY[name]
    keyword = "async def" if asynchronous else "def"
    code = f"{python_loads.CLASS}\n    {keyword} is_ready(self):\n        {body}\n"
    python_models.model_of(tmp_path / "models", "checked", code, python_loads.PLAIN)
    with ServerProcess(tmp_path / "models", "--strict-readiness=true", exit_code=None) as process:
        answer = raw.ask(process.http, raw.get("/v2/models/checked/ready"))
        assert (answer.status == 200) is ready
        assert raw.ask(process.http, one("checked", 1).http()).status == 200


# ---- instances


def test_each_instance_has_a_worker(tmp_path: Path) -> None:
    root = tmp_path / "models"
    python_models.add(root, "crash", replace={"count: 1": "count: 3"}, parameters={"marker": str(tmp_path / "seen")})
    with ServerProcess(root) as process:
        pids = {line.split()[1] for line in (tmp_path / "seen").read_text().splitlines()}
        assert len(pids) == 3
        assert sorted(map(int, pids)) == workers.workers(process.process.pid)


def test_a_batch_is_one_execution(tmp_path: Path) -> None:
    """Requests that wait together are executed together, and each gets its own answer."""
    root = tmp_path / "models"
    python_models.add(root, "add_sub", replace={"dynamic_batching { }": "dynamic_batching "
                                                "{ preferred_batch_size: [4] max_queue_delay_microseconds: 5000000 }",
                                                "max_batch_size: 8": "max_batch_size: 4"})  # fmt: skip
    with ServerProcess(root) as process, raw.several(process.http, 4) as clients:
        for i, client in enumerate(clients):
            client.send(Case("add_sub", [("INPUT0", "FP32", [1, 1], [i]), ("INPUT1", "FP32", [1, 1], [1])]).http())
        for i, client in enumerate(clients):
            found = {item["name"]: item["data"] for item in client.answer().json()["outputs"]}
            assert found == {"OUTPUT0": [i + 1], "OUTPUT1": [i - 1]}
        stats = raw.ask(process.http, raw.get("/v2/models/add_sub/stats")).json()["model_stats"][0]
        assert (int(stats["inference_count"]), int(stats["execution_count"])) == (4, 1)
