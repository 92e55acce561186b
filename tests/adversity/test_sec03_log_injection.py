"""SEC-03: whatever a client or a model puts into a text, one record stays one line, in every form of the log.

Names, ids, headers, parameters, bodies and the error texts of Python models hold CR, LF, escapes and what turns text
around; each also spells a whole record of the form, which a reader of the log would take for one.
"""

from __future__ import annotations

import contextlib
import json
import re
import urllib.parse
from collections.abc import Iterator

import pytest

from tests.helpers import raw
from tests.helpers.grpc_channel import Channel, infer_request
from tests.helpers.python_models import model_of
from tests.helpers.server import Model, ServerProcess, repository
from triton_fast import protos

FORGED = {
    "default": "I0101 00:00:00.000000 1 forged.py:1] ",
    "ISO8601": "2020-01-01T00:00:00Z I 1 forged.py:1] ",
    "json": '{"time":"2020-01-01T00:00:00.000000Z","level":"INFO","pid":1,"source":"forged.py:1","message":"forged"}',
}
RECORD = {
    "default": re.compile(r'[IWE]\d{4} \d\d:\d\d:\d\d\.\d{6} \d+ [\w.-]+:\d+\] ".*"(?: \w+=\S.*)?'),
    "ISO8601": re.compile(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ [IWE] \d+ [\w.-]+:\d+\] ".*"(?: \w+=\S.*)?'),
}
BREAKS = ("\n", "\r", "\r\n", "\x0b", "\x0c", "\x85", "\u2028", "\u2029", "\x1b[2J\x1b[1;1H", "\x1b]0;x\x07", "\x9b31m",
          "\b" * 50, "\u202e", "\u2066", "\u200b", "\ufeff", "\x00", '"\n', "\\\n")  # fmt: skip
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
# Says through every way that a model has what a request put into its tensor.
TALKER = """
class TritonPythonModel:
    def execute(self, requests):
        text = pb_utils.get_input_tensor_by_name(requests[0], "INPUT0").as_numpy().flatten()[0].decode()
        pb_utils.Logger.log_info(text)
        pb_utils.Logger.log_warn(text)
        print(text, flush=True)
        raise RuntimeError(text)
"""
CONFIG = """
input [{ name: "INPUT0" data_type: TYPE_STRING dims: [1] }]
output [{ name: "OUTPUT0" data_type: TYPE_STRING dims: [1] }]
"""


@pytest.fixture(scope="module", params=list(FORGED))
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ServerProcess, str]]:
    root = repository(tmp_path_factory.mktemp("injection"), Model("m"))
    model_of(root, "talker", TALKER, CONFIG)
    flags = (f"--log-format={request.param}", "--log-verbose=9", "--model-control-mode=explicit", "--load-model=m",
             "--load-model=talker", "--http-header-forward-pattern=x-", "--grpc-header-forward-pattern=x-")  # fmt: skip
    with ServerProcess(root, *flags) as server:
        yield server, request.param


def texts(form: str) -> list[str]:
    return [f"begin{cut}{FORGED[form]}end" for cut in BREAKS]


def records(log: str, form: str) -> int:
    """Count the records; every line must be one."""
    lines = log.split("\n")
    for line in lines:
        assert not HIDDEN.search(line), line.encode()
        if form == "json":
            assert {"time", "level", "pid", "source", "message"} <= set(json.loads(line)), line
            assert json.loads(line)["pid"] != 1
        else:
            assert RECORD[form].fullmatch(line), line
            assert "forged.py:1]" not in line.partition('"')[0]
    return len(lines)


def since(server: ServerProcess, before: int) -> str:
    """What was logged since then, to the last thing that was asked for."""
    last = f"last-after-{before}"
    raw.ask(server.http, raw.post(f"/v2/repository/models/{last}/load"))
    server.wait_for_log(last)
    return "\n".join(server._lines[before:])


def test_names(served: tuple[ServerProcess, str]) -> None:
    server, form = served
    before = len(server._lines)
    with Channel(server.grpc) as channel:
        for text in texts(form):
            assert channel.ask("RepositoryModelLoad", protos.RepositoryModelLoadRequest(model_name=text)).status
            channel.ask("RepositoryModelUnload", protos.RepositoryModelUnloadRequest(model_name=text))
            assert channel.infer(infer_request(text)).status
            for path in (urllib.parse.quote(text, safe=""), text.encode("ascii", "ignore").decode().split("\n")[0]):
                data = f"POST /v2/repository/models/{path}/load HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\n\r\n"
                with contextlib.suppress(raw.Closed):
                    raw.ask(server.http, data.encode())
            body = json.dumps({"parameters": {"config": json.dumps({"name": text, "backend": text})}}).encode()
            assert raw.ask(server.http, raw.post("/v2/repository/models/m/load", body)).status >= 400
    log = since(server, before)
    assert records(log, form) >= len(BREAKS), "nothing of it was logged"
    assert "begin" in log


def test_requests(served: tuple[ServerProcess, str]) -> None:
    server, form = served
    before = len(server._lines)
    with Channel(server.grpc) as channel:
        for text in texts(form):
            for more in ({"id": text}, {"parameters": {text: text, "x": text}}, {"parameters": {"sequence_id": text}}):
                raw.ask(server.http, raw.infer_json("m", [1], **more))
            safe = text.encode("ascii", "ignore").decode().translate({code: None for code in (*range(32), 127)})
            raw.ask(server.http, raw.infer_json("m", [1], f"X-Any: {safe}", f"User-Agent: {safe}", f"Referer: {safe}"))
            raw.ask(server.http, raw.get(f"/v2/{urllib.parse.quote(text)}?{urllib.parse.quote(text)}"))
            channel.infer(infer_request("m", id=text, parameters={text: text}), metadata={"x-any": safe})
            channel.stream([infer_request("m", id=text), infer_request(text, id=text)])
            for data in (b"\xff" + text.encode(), b'{"inputs": "' + text.encode() + b'"}'):
                raw.ask(server.http, raw.post("/v2/models/m/infer", data))
    records(since(server, before), form)


def test_what_models_say(served: tuple[ServerProcess, str]) -> None:
    server, form = served
    before = len(server._lines)
    for text in texts(form):
        if "\x00" in text:
            continue
        answer = raw.ask(server.http, raw.infer_json("talker", [text], datatype="BYTES", shape=[1]))
        assert answer.status == 500 and "begin" in answer.error
        answer.body.decode().encode("ascii", "ignore")
        assert b"\n" not in answer.body.rstrip(b"\n")
    log = since(server, before)
    assert records(log, form) >= 2 * (len(BREAKS) - 1)
    # What it prints has no form, but each line of it is a record of the server's.
    assert log.count("begin") >= 2 * (len(BREAKS) - 1)


def test_the_check_finds() -> None:
    for form in ("default", "ISO8601"):
        good = FORGED[form].replace(" 1 forged", " 7 real").replace("forged.py:1", "real.py:2") + '"text" model=m'
        assert records(good, form) == 1
        for bad in (good + "\nmore", good + "\x1b[2J", good + "\u202e", FORGED[form] + '"x"'):
            with pytest.raises(AssertionError):
                records(bad, form)
    with pytest.raises((AssertionError, ValueError)):
        records(FORGED["json"], "json")
