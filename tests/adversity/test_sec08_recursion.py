"""Deep nesting: refused by depth, on a parser whose stack does not grow with the input."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.helpers.raw import Client, infer_json, infer_object, infer_path, post, values_of
from tests.helpers.server import ServerProcess

DEPTHS = [66, 102, 10**5, 10**6]
INFER = infer_path("m")


def nested_list(n: int) -> str:
    return "[" * n + "]" * n


def nested_object(n: int) -> str:
    return '{"a":' * n + "1" + "}" * n


def mixed(n: int) -> str:
    return '[{"a":' * (n // 2) + "1" + "}]" * (n // 2)


SHAPES = {"lists": nested_list, "objects": nested_object, "mixed": mixed}


def tensor(data: str = "[1]", more: str = "", shape: str = "[1,1]") -> str:
    return f'{{"name":"INPUT0","datatype":"FP32","shape":{shape},"data":{data}{more}}}'


PLACES: dict[str, Callable[[str], tuple[str, str]]] = {
    "whole": lambda deep: (INFER, deep),
    "data": lambda deep: (INFER, f'{{"inputs":[{tensor(deep)}]}}'),
    "shape": lambda deep: (INFER, f'{{"inputs":[{tensor(shape=deep)}]}}'),
    "parameters": lambda deep: (INFER, f'{{"parameters":{{"x":{deep}}},"inputs":[{tensor()}]}}'),
    "input parameters": lambda deep: (INFER, f'{{"inputs":[{tensor(more=f""","parameters":{{"x":{deep}}}""")}]}}'),
    "outputs": lambda deep: (INFER, f'{{"outputs":{deep},"inputs":[{tensor()}]}}'),
    "unknown key": lambda deep: (INFER, f'{{"unknown":{deep},"inputs":[{tensor()}]}}'),
    "unknown key of an input": lambda deep: (INFER, f'{{"inputs":[{tensor(more=f""","u":{deep}""")}]}}'),
    "after the inputs": lambda deep: (INFER, f'{{"inputs":[{tensor()}],"z":{deep}}}'),
    "index": lambda deep: ("/v2/repository/index", f'{{"x":{deep}}}'),
    "index, whole": lambda deep: ("/v2/repository/index", deep),
    "load": lambda deep: ("/v2/repository/models/m/load", f'{{"parameters":{{"config":{deep}}}}}'),
    "load, config": lambda deep: (
        "/v2/repository/models/m/load", json.dumps({"parameters": {"config": f'{{"parameters":{deep}}}'}})),
    "unload": lambda deep: ("/v2/repository/models/m/unload", f'{{"parameters":{{"unload_dependents":{deep}}}}}'),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("place", PLACES)
def test_deep_nesting_is_refused(server: ServerProcess, place: str, shape: str) -> None:
    before = server.rss()
    with Client(server.http) as client:
        for depth in DEPTHS:
            path, body = PLACES[place](SHAPES[shape](depth))
            answer = client.ask(post(path, body.encode()))
            assert answer.status in {400, 500, 503}, (depth, answer)
            assert len(answer.error) < 400
            assert "internal error" not in answer.error
        assert values_of(client.ask(infer_json("m", [1]))) == [1]
    assert server.rss() < before + 30 * (1 << 20)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("opener", ["[", '{"a":', '[{"a":', '"', "[1,", '{"a":[', "\\"])
def test_openers_without_an_end(server: ServerProcess, place: str, opener: str) -> None:
    with Client(server.http) as client:
        path, body = PLACES[place](opener * 100_000)
        answer = client.ask(post(path, body.encode()))
        assert answer.status in {400, 500, 503}
        assert values_of(client.ask(infer_json("m", [1]))) == [1]


def test_reasonable_nesting_serves(server: ServerProcess) -> None:
    """Data may be nested as the shape is; brackets inside strings are no nesting."""
    with Client(server.http) as client:
        body = {"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 2], "data": [[1, 2]]}]}
        assert values_of(client.ask(post(INFER, json.dumps(body).encode()))) == [1, 2]
        text = "[" * 1000 + '"{' * 1000
        strings = infer_object([text], datatype="BYTES")
        assert values_of(client.ask(post(infer_path("text"), json.dumps(strings).encode()))) == [text]
        answer = client.ask(post("/v2/repository/index", json.dumps({"ready": True, "note": text}).encode()))
        assert answer.status == 200
