"""Every backend, datatype, kind of config and protocol: the server's outputs are those of the framework run directly.

The models only move and add, so outputs are equal bit for bit. Requests that are to share a batch fill it, and the
statistics tell that they did. The datatypes are those that each backend says it has.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conformance.backend_forms import PLAIN_ROWS, ROWS, Array, Arrays, Form, all_forms, environment, numpy_of
from tests.helpers import raw
from tests.helpers.grpc_channel import Channel
from tests.helpers.onnx_repository import text_array, wire_strings
from tests.helpers.server import ServerProcess
from tests.integration.onnx_files import WIRE, arrays, config, index, request
from triton_fast import backends, protos
from triton_fast.types import BY_WIRE, TYPES, DataType

pytestmark = pytest.mark.timeout(600)  # making and loading all the models, where PyTorch compiles one of them
FORMS = all_forms()
# A full batch is executed at once; nothing waits for as long as this.
TOGETHER = f"dynamic_batching {{ preferred_batch_size: [{ROWS}] max_queue_delay_microseconds: 20000000 }}"
# Variant -> batched, tensors in the config, a config at all, requests that share a batch.
VARIANTS: dict[str, tuple[bool, bool, bool, bool]] = {
    "full": (True, True, True, True),
    "completed": (True, False, True, True),
    "no config": (True, False, False, False),
    "plain": (False, True, True, False),
    "plain, no config": (False, False, False, False),
}
# What has tests of its own: tensors that are always the same, and what needs a GPU.
ELSEWHERE = {"repeat", "tensorrt"}
NEEDS = {"nothing": ("full", "plain"), "file": tuple(VARIANTS)}


def variants(form: Form) -> tuple[str, ...]:
    return NEEDS[form.alone]


def model_of(form: Form, variant: str) -> str:
    name = f"{form.name}_{variant.replace(', ', '_').replace(' ', '_')}"
    return form.folder.format(name=name)


def write(root: Path, form: Form, variant: str) -> None:
    batched, tensors, has_config, together = VARIANTS[variant]
    folder = root / model_of(form, variant) / "1"
    folder.mkdir(parents=True)
    form.write(folder, form.kinds(), batched)
    text = form.config(batched=batched, tensors=tensors, scheduling=TOGETHER if together else "")
    if form.backend == "fil" and not has_config:
        # Its type of output is a parameter, and its models always have a batch dimension.
        has_config, text = True, form.more + ("" if batched else "\nmax_batch_size: 0") + "\n"
    if has_config:
        (folder.parent / "config.pbtxt").write_text(text)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("matrix")
    for form in FORMS.values():
        if not form.missing:
            for variant in variants(form):
                write(root, form, variant)
    return root


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[ServerProcess]:
    with ServerProcess(root, env=environment(), start_s=110) as process:
        yield process


# ---- protocols


def over_http(server: ServerProcess, model: str, given: Arrays, names: dict[str, str]) -> Arrays:
    del names
    return arrays(raw.ask(server.http, request(model, given)))


def over_json(server: ServerProcess, model: str, given: Arrays, names: dict[str, str]) -> Arrays:
    """What JSON can say as JSON; FP16 and BF16, which Triton's JSON does not have, as bytes in the same request."""
    tensors, blobs = [], []
    for name, array in given.items():
        tensor: dict[str, Any] = {"name": name, "datatype": WIRE[array.dtype], "shape": list(array.shape)}
        if WIRE[array.dtype] in ("FP16", "BF16"):
            blobs.append(array.tobytes())
            tensor["parameters"] = {"binary_data_size": len(blobs[-1])}
        elif array.dtype == object:
            tensor["data"] = [text.decode() for text in array.flat]
        else:
            tensor["data"] = array.reshape(-1).tolist()
        tensors.append(tensor)
    outputs = [
        {"name": made, "parameters": {"binary_data": WIRE[given[name].dtype] in ("FP16", "BF16")}}
        for name, made in names.items()
    ]
    head = json.dumps({"inputs": tensors, "outputs": outputs}).encode()
    length = (f"Inference-Header-Content-Length: {len(head)}",) if blobs else ()
    answer = raw.ask(server.http, raw.post(raw.infer_path(model), head + b"".join(blobs), *length))
    size = int(answer.headers.get("inference-header-content-length", len(answer.body)))
    if answer.status == 200:
        for output in json.loads(answer.body[:size])["outputs"]:
            assert ("data" in output) == (output["datatype"] not in ("FP16", "BF16"))
    return arrays(answer)


def over_grpc(server: ServerProcess, model: str, given: Arrays, names: dict[str, str]) -> Arrays:
    del names
    made = protos.ModelInferRequest(model_name=model)
    for name, array in given.items():
        made.inputs.add(name=name, datatype=WIRE[array.dtype], shape=array.shape)
        made.raw_input_contents.append(wire_strings(list(array.flat)) if array.dtype == object else array.tobytes())
    with Channel(server.grpc) as channel:
        answer = channel.infer(made).message
    found = {}
    for output, data in zip(answer.outputs, answer.raw_output_contents, strict=True):
        found[output.name] = _array(data, BY_WIRE[output.datatype], tuple(output.shape))
    return found


def _array(data: bytes, kind: DataType, shape: tuple[int, ...]) -> Array:
    if kind == DataType.STRING:
        return text_array(data, shape)
    return np.frombuffer(data, numpy_of(kind.name)).reshape(shape)


Ask = Callable[[ServerProcess, str, Arrays, dict[str, str]], Arrays]
PROTOCOLS: dict[str, Ask] = {"http": over_http, "json": over_json, "grpc": over_grpc}


# ---- checks


def names_of(form: Form) -> dict[str, str]:
    return dict(form.names(kind) for kind in form.kinds())


class Direct:
    """What the framework itself makes, kept for the other protocols."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._made: dict[Any, Arrays] = {}

    def __call__(self, form: Form, variant: str, given: Arrays, key: Any) -> Arrays:
        made = self._made.get((form.name, variant, key))
        if made is None:
            folder = self._root / model_of(form, variant) / "1"
            made = self._made[form.name, variant, key] = form.direct(folder, given, VARIANTS[variant][0])
        return made


@pytest.fixture(scope="module")
def direct(root: Path) -> Direct:
    return Direct(root)


def check(form: Form, found: Arrays, expected: Arrays) -> None:
    assert set(found) == {form.names(kind)[1] for kind in form.kinds()}
    wrong = []
    for kind in form.kinds():
        name = form.names(kind)[1]
        a, b = found[name], expected[name]
        same = a.dtype == b.dtype and a.shape == b.shape
        same = same and (list(a.flat) == list(b.flat) if a.dtype == object else a.tobytes() == b.tobytes())
        if not same:
            wrong.append((kind, a, b))
    assert not wrong


def counts(server: ServerProcess, model: str) -> tuple[int, int, dict[int, int]]:
    """Inferences, executions, and executions by size of batch."""
    answer = raw.ask(server.http, raw.get(f"/v2/models/{model}/stats"))
    (row,) = answer.json()["model_stats"]
    sizes = {one["batch_size"]: one["compute_infer"]["count"] for one in row["batch_stats"]}
    return row["inference_count"], row["execution_count"], sizes


def every(*, together: bool = False) -> list[Any]:
    """All (form, variant) as parameters."""
    found = []
    for form in FORMS.values():
        for variant in variants(form):
            if together and not VARIANTS[variant][3]:
                continue
            marks = [pytest.mark.skip(reason=form.missing)] if form.missing else []
            found.append(pytest.param(form, variant, id=f"{form.name}-{variant.replace(', ', '+')}", marks=marks))
    return found


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("form", "variant"), every())
def test_a_request_by_itself(server: ServerProcess, direct: Direct, form: Form, variant: str, protocol: str) -> None:
    batched, _, _, together = VARIANTS[variant]
    for rows in (ROWS,) if together else (1, 3, ROWS) if batched else (PLAIN_ROWS,):
        given = form.sample(rows, seed=rows, batched=batched)
        found = PROTOCOLS[protocol](server, model_of(form, variant), given, names_of(form))
        check(form, found, direct(form, variant, given, rows))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("form", "variant"), every(together=True))
def test_requests_that_share_a_batch(
    server: ServerProcess, direct: Direct, form: Form, variant: str, protocol: str
) -> None:
    model, ask = model_of(form, variant), PROTOCOLS[protocol]
    for sizes in ((1,) * ROWS, (1, ROWS - 1)):
        before = counts(server, model)
        given = [form.sample(rows, seed=10 * at + rows, batched=True) for at, rows in enumerate(sizes)]
        found: list[Any] = [None] * len(sizes)

        def client(at: int, given: list[Arrays] = given, found: list[Any] = found) -> None:
            try:
                found[at] = ask(server, model, given[at], names_of(form))
            except BaseException as error:
                found[at] = error

        threads = [threading.Thread(target=client, args=(at,)) for at in range(len(sizes))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        whole = {name: np.concatenate([one[name] for one in given]) for name in given[0]}
        expected, at = direct(form, variant, whole, sizes), 0
        for rows, one in zip(sizes, found, strict=True):
            assert isinstance(one, dict), one
            check(form, one, {name: array[at : at + rows] for name, array in expected.items()})
            at += rows
        after = counts(server, model)
        # One execution for all of them, of a batch of all their rows.
        assert (after[0] - before[0], after[1] - before[1]) == (ROWS, 1)
        assert after[2][ROWS] - before[2].get(ROWS, 0) == 1


@pytest.mark.parametrize(("form", "variant"), every())
def test_configs(server: ServerProcess, form: Form, variant: str) -> None:
    """A completed config says what a written one says."""
    found = config(server.http, model_of(form, variant))
    batched, _, _, _ = VARIANTS[variant]
    if form.backend != "fil" or variant != "no config":
        assert found["max_batch_size"] == (ROWS if batched else 0)
    kinds = {tensor["name"]: tensor["data_type"] for side in ("input", "output") for tensor in found[side]}
    assert kinds == {name: f"TYPE_{kind}" for kind in form.kinds() for name in form.names(kind)}
    assert index(server.http)[model_of(form, variant)]["state"] == "READY"


def test_every_datatype_of_every_backend_has_a_model() -> None:
    """A backend or datatype that comes anew fails here until the matrix has it."""
    assert {form.backend for form in FORMS.values()} == set(backends.NAMES) - ELSEWHERE
    for name in set(backends.NAMES) - ELSEWHERE:
        forms = [form for form in FORMS.values() if form.backend == name and not form.missing]
        if not forms:
            continue
        backend = backends.get(name)
        assert backend is not None
        covered = {kind for form in forms for kind in form.kinds()}
        assert covered == {kind.name for kind in backend.datatypes()}
        assert backend.datatypes() <= set(TYPES)
