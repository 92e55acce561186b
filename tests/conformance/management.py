"""Scenarios of model control, told once, for HTTP and gRPC: loads, unloads, overrides, what the index says between.

Knows the messages of both protocols; knows nothing of servers. The models are Python ones, the same for every server.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.helpers import raw
from tests.helpers.python_models import IMPORTS
from triton_fast import protos

BODY = """class TritonPythonModel:
    def execute(self, requests):
        made = []
        for request in requests:
            array = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
            made.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", array + ADD)]))
        return made
"""
CONFIG = """backend: "python"
max_batch_size: 4
input [{ name: "IN" data_type: TYPE_INT32 dims: [1] }]
output [{ name: "OUT" data_type: TYPE_INT32 dims: [1] }]
instance_group [{ count: 1 kind: KIND_CPU }]
"""


def source(add: int) -> str:
    return f"{IMPORTS}ADD = {add}\n\n\n{BODY}"


def chain(*members: str) -> str:
    steps, last = [], "IN"
    for k, member in enumerate(members):
        made = "OUT" if k == len(members) - 1 else f"t{k}"
        steps.append(
            f'{{ model_name: "{member}" model_version: -1 input_map {{ key: "IN" value: "{last}" }} '
            f'output_map {{ key: "OUT" value: "{made}" }} }}'
        )
        last = made
    return CONFIG.replace('backend: "python"', 'platform: "ensemble"').split("instance_group")[0] + (
        f"ensemble_scheduling {{ step [{', '.join(steps)}] }}\n"
    )


def write(root: Path) -> Path:
    """Write the repository all scenarios use; each has its own models, by its prefix."""

    def model(name: str, config: str, versions: Mapping[str, str | None]) -> None:
        for version, text in versions.items():
            (root / name / version).mkdir(parents=True)
            if text is not None:
                (root / name / version / "model.py").write_text(text)
        (root / name).mkdir(exist_ok=True)
        if config:
            (root / name / "config.pbtxt").write_text(config)

    for name in ("plain", "config", "files", "chain_a", "chain_b", "chain_c", "both_a", "both_b", "ready_a"):
        model(name, CONFIG, {"1": source(1)})
    model("chain", chain("chain_a", "chain_b"), {"1": None})
    model("chain_of_chain", chain("chain", "chain_c"), {"1": None})
    model("both", chain("both_a", "both_b"), {"1": None})
    model("versions", CONFIG, {"1": source(1), "2": source(2), "3": source(3)})
    model("some", CONFIG + "version_policy { specific { versions: [1, 3] } }\n",
          {"1": source(1), "2": source(2), "3": source(3)})  # fmt: skip
    model("no_version", CONFIG, {})
    model("no_such_version", CONFIG + "version_policy { specific { versions: [7] } }\n", {"1": source(1)})
    model(
        "raises", CONFIG, {"1": source(1) + "\n    def initialize(self, args):\n        raise ValueError('no data')\n"}
    )
    model("broken_source", CONFIG, {"1": "def ("})
    model("broken_config", CONFIG + "max_batch: 3\n", {"1": source(1)})
    model("no_backend", CONFIG.replace("python", "nobody_has_this"), {"1": source(1)})
    model("other_name", 'name: "somebody"\n' + CONFIG, {"1": source(1)})
    model("negative", CONFIG.replace("max_batch_size: 4", "max_batch_size: -1"), {"1": source(1)})
    return root


class Step(NamedTuple):
    """One call. ``name`` stands for it in a table of differences."""

    name: str
    http: bytes
    grpc: tuple[str, Any]


def load(model: str, **parameters: Any) -> Step:
    """``file_X`` is the file parameter for path X, with ``__`` for slashes and ``_py`` for the suffix."""
    named = {_key(key): value for key, value in parameters.items()}
    body = {
        key: base64.b64encode(value).decode() if isinstance(value, bytes) else value for key, value in named.items()
    }
    request = protos.RepositoryModelLoadRequest(model_name=model)
    for key, value in named.items():
        if isinstance(value, bytes):
            request.parameters[key].bytes_param = value
        else:
            request.parameters[key].string_param = value
    content = json.dumps({"parameters": body}).encode() if body else b""
    shown = "".join(f" with {key}" for key in named)
    return Step(f"load {model}{shown}", raw.post(f"/v2/repository/models/{model}/load", content),
                ("RepositoryModelLoad", request))  # fmt: skip


def _key(key: str) -> str:
    if not key.startswith("file_"):
        return key
    path = key[5:].replace("__", "/")
    return f"file:{path[:-3]}.py" if path.endswith("_py") else f"file:{path}"


def unload(model: str, dependents: bool | None = None) -> Step:
    request = protos.RepositoryModelUnloadRequest(model_name=model)
    content = b""
    if dependents is not None:
        request.parameters["unload_dependents"].bool_param = dependents
        content = json.dumps({"parameters": {"unload_dependents": dependents}}).encode()
    shown = {None: "", True: " with dependents", False: " without dependents"}[dependents]
    return Step(f"unload {model}{shown}", raw.post(f"/v2/repository/models/{model}/unload", content),
                ("RepositoryModelUnload", request))  # fmt: skip


def index(ready: bool = False) -> Step:
    content = b'{"ready":true}' if ready else b""
    request = protos.RepositoryIndexRequest(ready=ready)
    return Step(f"index{' of what is ready' if ready else ''}", raw.post("/v2/repository/index", content),
                ("RepositoryIndex", request))  # fmt: skip


def infer(model: str, version: str = "") -> Step:
    body = {"inputs": [{"name": "IN", "datatype": "INT32", "shape": [1, 1], "data": [10]}]}
    where = f"/v2/models/{model}{f'/versions/{version}' if version else ''}/infer"
    request = protos.ModelInferRequest(model_name=model, model_version=version)
    tensor = request.inputs.add(name="IN", datatype="INT32", shape=[1, 1])
    tensor.contents.int_contents.append(10)
    return Step(f"infer {model} {version}".strip(), raw.post(where, json.dumps(body).encode()), ("ModelInfer", request))


def ready(model: str, version: str = "") -> Step:
    where = f"/v2/models/{model}{f'/versions/{version}' if version else ''}/ready"
    return Step(f"ready {model} {version}".strip(), raw.get(where),
                ("ModelReady", protos.ModelReadyRequest(name=model, version=version)))  # fmt: skip


def metadata(model: str) -> Step:
    return Step(f"metadata {model}", raw.get(f"/v2/models/{model}"),
                ("ModelMetadata", protos.ModelMetadataRequest(name=model)))  # fmt: skip


def server_ready() -> Step:
    return Step("server ready", raw.get("/v2/health/ready"), ("ServerReady", protos.ServerReadyRequest()))


def config_of(**changes: Any) -> str:
    tensor = {"data_type": "TYPE_INT32", "dims": [1]}
    return json.dumps({
        "backend": "python", "max_batch_size": 4, "input": [{"name": "IN", **tensor}],
        "output": [{"name": "OUT", **tensor}], "instance_group": [{"count": 1, "kind": "KIND_CPU"}], **changes,
    })  # fmt: skip


# What a load that fails is asked afterwards.
def failing(model: str) -> list[Step]:
    return [load(model), ready(model), infer(model), metadata(model), index(), load(model), unload(model), index()]


SCENARIOS: dict[str, list[Step]] = {
    "nothing loaded": [index(), index(True), server_ready(), ready("plain"), infer("plain"), metadata("plain")],
    "load, use, unload": [
        load("plain"), ready("plain"), infer("plain"), metadata("plain"), index(True), load("plain"), infer("plain"),
        unload("plain"), index(), ready("plain"), infer("plain"), metadata("plain"), unload("plain"), load("plain"),
        infer("plain"), unload("plain"),
    ],
    "names nobody has": [load("nobody"), unload("nobody"), index(), load("."), unload("..")],
    "config override": [
        load("config", config=config_of(max_batch_size=2)), metadata("config"), infer("config"),
        load("config", config=config_of(max_batch_size=0, input=[], output=[])), infer("config"), metadata("config"),
        load("config", config="{}"), infer("config"), load("config", config="["), infer("config"),
        load("config", config=config_of(name="somebody")), load("config", config=config_of(nothing=1)),
        load("config", config=config_of(max_batch_size="x")), load("config"), metadata("config"), unload("config"),
    ],
    "file override": [
        load("files"), infer("files"),
        load("files", file_1__model_py=source(5).encode()),
        load("files", config=config_of(), file_1__model_py=source(5).encode()), infer("files"), index(),
        load("files", config=config_of(), file_7__model_py=source(7).encode()), infer("files"), infer("files", "1"),
        load("files", config=config_of(), **{"file_..__x": b"x"}), infer("files"),
        load("files", config=config_of(), file_1__model_py=b"def ("), infer("files"),
        load("files"), infer("files"), unload("files"),
    ],
    "parameters": [
        load("plain", other="x"), load("plain", config=""), load("plain", file_1__model_py="text"),
        unload("plain"),
    ],
    "versions": [
        load("versions"), ready("versions"), ready("versions", "1"), ready("versions", "3"), infer("versions"),
        infer("versions", "2"), index(), metadata("versions"),
        load("versions", config=config_of(version_policy={"all": {}})), infer("versions", "1"), infer("versions"),
        index(), metadata("versions"),
        load("versions", config=config_of(version_policy={"latest": {"num_versions": 2}})), index(),
        infer("versions", "1"), unload("versions"), index(),
        load("some"), index(), infer("some", "2"), infer("some"), unload("some"),
    ],
    "ensemble": [
        load("chain"), infer("chain"), index(True), unload("chain"), index(True), infer("chain_a"),
        load("chain"), unload("chain", True), index(True), infer("chain_a"),
        load("chain_of_chain"), infer("chain_of_chain"), index(True), unload("chain_of_chain", False), index(True),
        load("chain_of_chain"), unload("chain_of_chain", True), index(True),
    ],
    "members": [
        load("both_a"), load("both"), index(True), infer("both"), unload("both", True), index(True), infer("both_a"),
        load("both"), unload("both_a"), ready("both"), infer("both"), index(), load("both_a"), infer("both"),
        unload("both", True), unload("both_a"),
    ],
    "server readiness": [load("ready_a"), server_ready(), unload("ready_a"), server_ready()],
}  # fmt: skip
# Each loaded by servers of its own. Not among them: a version without model.py, of which the reference never tells.
FAILING = ("no_version", "no_such_version", "raises", "broken_source", "broken_config", "no_backend", "other_name",
           "negative")  # fmt: skip
REFUSING = [load("plain"), unload("plain"), load("nobody"), unload("nobody"), unload("plain", True), index(True)]
