"""Counts that the client chooses: none of them buys more than linear work or memory beyond the message itself.

Work is compared by ratios of the server's CPU time for n and 4n of the same thing, never by a clock's limit.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.helpers.raw import Client, fp32, get, infer_json, infer_object, infer_path, post, values_of
from tests.helpers.server import ServerProcess

INFER = infer_path("m")
MIB = 1 << 20
HUGE = [2**31 - 1, 2**31, 2**32, 2**32 + 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30]


def ask_object(client: Client, model: str, body: Any) -> Any:
    return client.ask(post(infer_path(model), json.dumps(body).encode()))


def many_inputs(n: int) -> Any:
    one = {"datatype": "FP32", "shape": [1, 1], "data": [1]}
    return {"inputs": [{"name": f"I{i}", **one} for i in range(n)]}


def same_inputs(n: int) -> Any:
    return {"inputs": infer_object([1])["inputs"] * n}


def many_outputs(n: int) -> Any:
    return infer_object([1], outputs=[{"name": f"O{i}"} for i in range(n)])


def same_outputs(n: int) -> Any:
    return infer_object([1], outputs=[{"name": "OUTPUT0"}] * n)


def classified_outputs(n: int) -> Any:
    return infer_object([1], outputs=[{"name": "OUTPUT0", "parameters": {"classification": 1}}] * n)


def many_parameters(n: int) -> Any:
    return infer_object([1], parameters={f"p{i}": i for i in range(n)})


def input_parameters(n: int) -> Any:
    body = infer_object([1])
    body["inputs"][0]["parameters"] = {f"p{i}": "v" for i in range(n)}
    return body


def output_parameters(n: int) -> Any:
    return infer_object([1], outputs=[{"name": "OUTPUT0", "parameters": {f"p{i}": True for i in range(n)}}])


def many_dims(n: int) -> Any:
    return infer_object([1], shape=[1] * n)


def unknown_members(n: int) -> Any:
    return infer_object([1], **{f"k{i}": [i] for i in range(n)})


def data_of(n: int) -> Any:
    return infer_object([1] * n)


def strings_of(n: int) -> Any:
    return infer_object(["s"] * n, datatype="BYTES")


def long_id(n: int) -> Any:
    return infer_object([1], id="i" * n)


def escaped_id(n: int) -> Any:
    return infer_object([1], id='"\\\n' * n)


def long_name(n: int) -> Any:
    body = infer_object([1])
    body["inputs"][0]["name"] = "n" * n
    return body


# name -> (model, body of n, statuses that may come)
GROWING = {
    "inputs": ("m", many_inputs, {400}), "equal inputs": ("m", same_inputs, {400}),
    "outputs": ("m", many_outputs, {400}), "equal outputs": ("m", same_outputs, {400}),
    "classified": ("m", classified_outputs, {400}), "parameters": ("m", many_parameters, {200, 400}),
    "input parameters": ("m", input_parameters, {200, 400}), "output parameters": ("m", output_parameters, {200, 400}),
    "dims": ("m", many_dims, {400, 500}), "unknown members": ("m", unknown_members, {200, 400}),
    "data": ("m", data_of, {200}), "strings": ("text", strings_of, {200}), "id": ("m", long_id, {200, 400}),
    "escaped id": ("m", escaped_id, {200, 400}), "name": ("m", long_name, {400}),
}  # fmt: skip


def cpu(server: ServerProcess) -> float:
    times = server.ps.cpu_times()
    return float(times.user + times.system)


@pytest.mark.parametrize("name", GROWING)
def test_work_grows_with_the_message(server: ServerProcess, name: str) -> None:
    """Four times the count costs at most some ten times: quadratic work would cost sixteen and grow further."""
    model, make, statuses = GROWING[name]
    small, large = (post(infer_path(model), json.dumps(make(n)).encode()) for n in (20_000, 80_000))
    before = server.rss()
    with Client(server.http) as client:
        client.ask(large)
        spent = []
        # The same number of bytes, about, in each batch: ticks of CPU time are coarse.
        for request, repeat in ((small, 40), (large, 10)):
            start = cpu(server)
            for _ in range(repeat):
                answer = client.ask(request)
                assert answer.status in statuses, answer.body[:300]
                if answer.status != 200:
                    assert len(answer.body) < 4096
            spent.append(cpu(server) - start)
        assert spent[1] < 2.5 * spent[0] + 0.15, f"{spent}: more than linear"
        assert values_of(client.ask(infer_json("m", [1]))) == [1]
    assert server.rss() < before + 64 * MIB


@pytest.mark.parametrize("k", [1, 2, 3, 10**6, *HUGE])
def test_classification(server: ServerProcess, k: int) -> None:
    """k past the row is the row; the number is never a size of memory."""
    before = server.rss()
    with Client(server.http) as client:
        answer = ask_object(
            client, "m", infer_object([3, 1], outputs=[{"name": "OUTPUT0", "parameters": {"classification": k}}])
        )
        if answer.status == 200:
            assert len(values_of(answer)) == min(k, 2)
        else:
            assert answer.status in {400, 500}
            assert k >= 2**31
    assert server.rss() < before + 4 * MIB


@pytest.mark.parametrize("k", [0, -1, 1.5, "1", True, None, [], {}])
def test_classification_of_another_kind(server: ServerProcess, k: Any) -> None:
    with Client(server.http) as client:
        output = {"name": "OUTPUT0", "parameters": {"classification": k}}
        answer = ask_object(client, "m", infer_object([3, 1], outputs=[output]))
        assert answer.status in ({200} if k == 0 and k is not False else {400, 500}), answer


@pytest.mark.parametrize("size", [0, 1, 3, 5, 8, 100, *HUGE, -1, -(2**63)])
def test_binary_data_size(server: ServerProcess, size: int) -> None:
    """Only the true size serves: 4 bytes follow."""
    head = json.dumps(
        {"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 1], "parameters": {"binary_data_size": size}}]}
    ).encode()
    before = server.rss()
    with Client(server.http) as client:
        answer = client.ask(post(INFER, head + fp32([1]), f"Inference-Header-Content-Length: {len(head)}"))
        assert answer.status in {400, 500}, answer
        assert answer.error
    assert server.rss() < before + 4 * MIB


@pytest.mark.parametrize("name", ["priority", "timeout", "sequence_id", "sequence_start", "sequence_end"])
@pytest.mark.parametrize("value", [0, 1, -1, *HUGE, 1.5, "1", "x" * 1000, True, None, [1], {"a": 1}])
def test_reserved_parameters(server: ServerProcess, name: str, value: Any) -> None:
    with Client(server.http) as client:
        answer = ask_object(client, "m", infer_object([1], parameters={name: value}))
        assert answer.status in {200, 400, 500, 501}, answer
        if answer.status == 200:
            assert values_of(answer) == [1]
        assert values_of(client.ask(infer_json("m", [1]))) == [1]


@pytest.mark.parametrize("count", [1, 8, 9, 1000, *HUGE])
def test_batch_sizes(server: ServerProcess, count: int) -> None:
    """A batch of 8 is the limit; the first dimension alone reserves nothing."""
    values = [1.0] * min(count, 1000)
    with Client(server.http) as client:
        answer = ask_object(client, "m", infer_object(values, shape=[count, 1]))
        assert answer.status == (200 if count <= 8 else answer.status)
        assert answer.status in {200, 400, 500}
        if count > 8:
            assert answer.status != 200


@pytest.mark.parametrize("count", [1, 99, 100, 101, 5000])
def test_headers(server: ServerProcess, count: int) -> None:
    """One of them is Host: 100 in all."""
    with Client(server.http) as client:
        answer = client.ask(get("/v2", *(f"h{i}: v" for i in range(count - 1))))
        assert answer.status == (200 if count <= 100 else 431)


def test_many_outputs_of_one_name_do_not_multiply_the_answer(server: ServerProcess) -> None:
    """A request for the same megabyte a thousand times is refused, not answered with a gigabyte."""
    body = infer_object([1.5] * 100_000, outputs=[{"name": "OUTPUT0"}] * 1000)
    with Client(server.http) as client:
        answer = ask_object(client, "m", body)
        assert (answer.status, answer.error) == (400, "output 'OUTPUT0' already exists in request")


def test_json_verbs_with_many_parts(server: ServerProcess) -> None:
    before = server.rss()
    bodies = {
        "lists": b'{"ready":[' + b"[]," * 300_000 + b"[]]}",
        "members": b"{" + b",".join(b'"%d":1' % i for i in range(70_000)) + b"}",
        "numbers": b'{"x":[' + b"1," * 400_000 + b"1]}",
        "large": b'{"x":"' + b"y" * (2 * MIB) + b'"}',
        "very large": b'{"x":[' + b"1," * (16 * MIB) + b"1]}",
    }
    with Client(server.http) as client:
        for name, body in bodies.items():
            for path in ("/v2/repository/index", "/v2/repository/models/m/load", "/v2/repository/models/m/unload"):
                answer = client.ask(post(path, body))
                assert answer.status in {200, 400, 500, 503}, (name, path, answer)
        assert values_of(client.ask(infer_json("m", [1]))) == [1]
    assert server.rss() < before + 100 * MIB
