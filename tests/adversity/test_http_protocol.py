"""HTTP/1.1 as a client meets it: persistence, methods, limits, and messages built to confuse."""

from __future__ import annotations

import json
import re

import pytest

from tests.helpers.raw import (
    Client,
    Closed,
    ask,
    chunked,
    fp32,
    get,
    infer_binary,
    infer_json,
    infer_object,
    infer_path,
    post,
    values_of,
)
from tests.helpers.server import ServerProcess

INFER = infer_path("m")
JSON = json.dumps(infer_object([1.5])).encode()
ROUTES = {
    "/v2": "GET",
    "/v2/health/live": "GET",
    "/v2/health/ready": "GET",
    "/v2/models/m": "GET",
    "/v2/models/m/versions/1": "GET",
    "/v2/models/m/ready": "GET",
    "/v2/models/m/config": "GET",
    "/v2/models/m/stats": "GET",
    "/v2/models/m/infer": "POST",
    "/v2/models/m/versions/1/infer": "POST",
    "/v2/models/m/generate": "POST",
    "/v2/models/m/generate_stream": "POST",
    "/v2/models/stats": "GET",
    "/v2/models/m/trace/setting": "GET, POST",
    "/v2/trace/setting": "GET, POST",
    "/v2/logging": "GET, POST",
    "/v2/repository/index": "POST",
    "/v2/repository/r/index": "POST",
    "/v2/repository/models/m/load": "POST",
    "/v2/repository/models/m/unload": "POST",
    "/v2/systemsharedmemory/status": "GET",
    "/v2/systemsharedmemory/region/r/status": "GET",
    "/v2/systemsharedmemory/region/r/register": "POST",
    "/v2/cudasharedmemory/region/r/unregister": "POST",
}


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "get", "BREW"])
def test_wrong_methods_name_the_right_ones(server: ServerProcess, path: str, method: str) -> None:
    if method in ROUTES[path].split(", "):
        return
    with Client(server.http) as client:
        answer = client.ask(get(path, method=method))
        assert (answer.status, answer.error, answer.headers["allow"]) == (405, "Method Not Allowed", ROUTES[path])
        assert client.ask(get("/v2/health/live")).status == 200


@pytest.mark.parametrize("path", [
    "/", "/v2/", "/V2", "/v3", "//v2", "/v2/models", "/v2/models/", "/v2/models//infer", "/v2/models/m/",
    "/v2/models/m/x",
    "/v2/models/m/infer/", "/v2/models/m/infer/x", "/v2/models/m/versions", "/v2/models/m/versions/",
    "/v2/models/m/versions/x",
    "/v2/models/m/versions/1/", "/v2/models/m/versions/-1/infer", "/v2/models/m/versions/1/trace/setting", "/v2/health",
    "/v2/health/liveness", "/v2/repository", "/v2/repository/a/b/index", "/v2/repository/models//load",
    "/v2/%6dodels/m",
    "/v2/models/m;x/y", "*", "/v2/systemsharedmemory/region//status", "/metrics", "/v2/models/a/b/infer",
    "/" + "a" * 8000,
])  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_unknown_paths(server: ServerProcess, path: str, method: str) -> None:
    if path == "*":
        method = "OPTIONS"
    answer = ask(server.http, get(path, method=method))
    assert (answer.status, answer.error) == (404, "Not Found")


@pytest.mark.parametrize("name", ["..", "%2e%2e", "a%20b", "m%00", "m\\n", "'", '"', "m?x", "{}"])
def test_odd_model_names_are_only_unknown(server: ServerProcess, name: str) -> None:
    for path in (f"/v2/models/{name}/config", f"/v2/models/{name}/infer", f"/v2/models/{name}/versions/7/ready"):
        answer = ask(server.http, post(path, JSON) if path.endswith("infer") else get(path))
        if "?" in name:
            assert answer.status in {200, 405}  # the model m, and a query
        else:
            assert answer.status == 404
            assert answer.error.startswith("Request for unknown model: '")


@pytest.mark.parametrize(("version", "status"), [
    ("1", 200), ("01", 200), ("0", 404), ("2", 404), ("9" * 18, 404), ("9" * 19, 400), ("9" * 400, 400),
    ("0" * 30 + "1", 200),
])  # fmt: skip
def test_versions_in_paths(server: ServerProcess, version: str, status: int) -> None:
    path = f"/v2/models/m/versions/{version}"
    assert ask(server.http, get(path)).status == status
    assert ask(server.http, post(path + "/infer", JSON)).status == status


def test_keep_alive_pipelining_and_order(server: ServerProcess) -> None:
    """300 requests at once on one connection, each kind answered in its turn."""
    with Client(server.http) as client:
        sent = []
        for i in range(100):
            sent += [infer_json("m", [i]), infer_binary("m", fp32([i, -i]), [1, 2]), get(f"/v2/models/none{i}")]
        client.send(b"".join(sent))
        for i in range(100):
            assert values_of(client.answer()) == [i]
            assert values_of(client.answer()) == [i, -i]
            assert client.answer().error == f"Request for unknown model: 'none{i}' is not found"


@pytest.mark.parametrize("path", ["/v2", "/v2/models/m/config", "/v2/models/absent", "/nothing", INFER])
def test_head_is_get_without_a_body(server: ServerProcess, path: str) -> None:
    with Client(server.http) as client:
        whole = client.ask(get(path))
        head = client.ask(get(path, method="HEAD"))
        assert (head.status, head.headers, head.body) == (whole.status, whole.headers, b"")
        assert client.ask(get("/v2/health/live")).status == 200


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("wish", ["", "close", "Keep-Alive"])
def test_persistence(server: ServerProcess, version: str, wish: str) -> None:
    stays = wish == "Keep-Alive" or (version == "1.1" and wish != "close")
    line = [f"Connection: {wish}"] if wish else []
    for request in (get("/v2", *line, version=version), post(INFER, JSON, *line, version=version)):
        with Client(server.http) as client:
            for _ in range(4):
                answer = client.ask(request)
                assert answer.status == 200
                kept = None if version == "1.1" else "keep-alive"
                assert answer.headers.get("connection") == (kept if stays else "close")
                if not stays:
                    assert client.closed()
                    break


def test_the_remembered_reply_is_not_given_to_another_kind_of_request(server: ServerProcess) -> None:
    """Equal bodies share a prepared reply; encoding, version and persistence belong to the request."""
    data, shape = fp32([1, 2]), [1, 2]
    plain = infer_binary("m", data, shape)
    with Client(server.http) as client:
        for _ in range(4):
            assert set(client.ask(plain).headers) == {
                "content-type",
                "content-length",
                "inference-header-content-length",
            }
        zipped = client.ask(infer_binary("m", data, shape, "Accept-Encoding: gzip"))
        assert zipped.headers["content-encoding"] == "gzip"
        old = client.ask(infer_binary("m", data, shape, "Connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert old.headers["connection"] == "keep-alive"
        assert client.ask(plain).headers.keys() == {"content-type", "content-length", "inference-header-content-length"}
        assert client.ask(infer_binary("m", data, shape, "Connection: close")).closes
        assert client.closed()


@pytest.mark.parametrize(("wish", "got"), [
    ("gzip", "gzip"), ("deflate", "deflate"), ("identity", None), ("br", None), ("*", None), ("gzip;q=0", None),
    ("gzip;q=0.5, deflate;q=0.6", "deflate"), ("identity, gzip", None), ("gzip, deflate", "gzip"), ("", None),
    ("gzip;q=nan", None), ("gzip;q=1e400", None), (",;,;=," * 200, None), ("gzip;q=-1,deflate;q=2", None),
])  # fmt: skip
def test_accept_encoding(server: ServerProcess, wish: str, got: str | None) -> None:
    answer = ask(server.http, post(INFER, JSON, f"Accept-Encoding: {wish}"))
    assert (answer.status, answer.headers.get("content-encoding")) == (200, got)


def test_expect(server: ServerProcess) -> None:
    with Client(server.http) as client:
        head, _, body = post(INFER, JSON, "Expect: 100-continue").partition(b"\r\n\r\n")
        client.send(head + b"\r\n\r\n")
        assert client.sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert values_of(client.ask(body)) == [1.5]
    # What is refused by its head alone gets no invitation to send the rest.
    for request, status in (
        (get(INFER, "Content-Length: 99999999", "Expect: 100-continue", method="POST"), 400),
        (get("/v2/repository/index", "Content-Length: 99999999", "Expect: 100-continue", method="POST"), 413),
        (get(INFER, "Content-Length: 5", "Expect: 200-ok", method="POST"), 417),
    ):
        with Client(server.http) as client:
            answer = client.ask(request)
            assert (answer.status, answer.interim) == (status, [])
            assert client.closed()


LIMITS = {
    "longest target": (get("/" + "a" * 8192), 414, "request target"),
    "non-ASCII target": (get("/v2/models/\xe9"), 400, "percent-encode"),
    "too many headers": (get("/v2", *(f"H{i}: v" for i in range(101))), 431, "header"),
    "head too large": (get("/v2", *(f"H{i}: {'v' * 2000}" for i in range(40))), 431, "head"),
    "method": (get("/v2", method="M" * 33), 501, "method"),
    "transfer coding": (get(INFER, "Transfer-Encoding: gzip, chunked", method="POST"), 501, "ransfer"),
    "version 2": (get("/v2", version="2.0"), 505, "use HTTP/1.1"),
    "preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "HTTP"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200) + b"\r\n\r\n", 400,
        "TLS handshake on a plain HTTP port"),
    "body": (get("/v2/repository/index", "Content-Length: 67108865", method="POST"), 413, "67108864"),
    "json body": (get(INFER, "Content-Length: 67108865", method="POST"), 400, "http-max-input-size"),
    "json part": (
        get(INFER, "Content-Length: 99999999", "Inference-Header-Content-Length: 67108865", method="POST"),
        400, "request JSON size of 67108865 bytes"),
    "raw body": (
        get(INFER, "Content-Length: 67108865", "Inference-Header-Content-Length: 0", method="POST"), 400, "Raw input"),
    "compressed body": (
        get(INFER, "Content-Length: 67108865", "Content-Encoding: gzip", "Inference-Header-Content-Length: 9",
            method="POST"), 400, "compressed"),
    "binary body": (
        get(INFER, f"Content-Length: {(1 << 36) + 1}", "Inference-Header-Content-Length: 9", method="POST"), 413,
        "limit"),
    "content length": (get(INFER, "Content-Length: 1" + "0" * 20, method="POST"), 400, "Content-Length"),
}  # fmt: skip


@pytest.mark.parametrize("name", LIMITS)
def test_limits(server: ServerProcess, name: str) -> None:
    """Refused by its head: one answer that says which limit, then the end, although more was on its way."""
    request, status, text = LIMITS[name]
    with Client(server.http) as client:
        client.send_until_refused([request, b"x" * 5000])
        answer = client.answer()
        assert answer.status == status, answer.body
        assert text in answer.error
        assert answer.closes
        assert client.closed()


SMUGGLED = get("/v2/health/live")
SMUGGLING = {
    "both lengths": get(INFER, "Content-Length: 4", "Transfer-Encoding: chunked", method="POST") + b"0\r\n\r\n",
    "both, other order": get(INFER, "Transfer-Encoding: chunked", "Content-Length: 4", method="POST") + b"0\r\n\r\n",
    "two content lengths": get(INFER, "Content-Length: 0", "Content-Length: 6", method="POST"),
    "content length list": get(INFER, "Content-Length: 0, 6", method="POST"),
    "content length sign": get(INFER, "Content-Length: +6", method="POST"),
    "content length negative": get(INFER, "Content-Length: -1", method="POST"),
    "content length hex": get(INFER, "Content-Length: 0x6", method="POST"),
    "content length empty": get(INFER, "Content-Length: ", method="POST"),
    "content length spaces": get(INFER, "Content-Length: 1 0", method="POST"),
    "unknown coding": get(INFER, "Transfer-Encoding: xchunked", method="POST"),
    "chunked not last": get(INFER, "Transfer-Encoding: chunked, identity", method="POST"),
    "chunked twice": get(INFER, "Transfer-Encoding: chunked, chunked", method="POST"),
    "coding in two lines": get(INFER, "Transfer-Encoding: identity", "Transfer-Encoding: chunked", method="POST"),
    "coding quoted": get(INFER, 'Transfer-Encoding: "chunked"', method="POST"),
    "coding with 1.0": get(INFER, "Transfer-Encoding: chunked", method="POST", version="1.0"),
    "space before colon": get(INFER, "Content-Length : 5", method="POST"),
    "space before name": get(INFER, " Content-Length: 5", method="POST"),
    "folded line": get(INFER, "X: a", "\tTransfer-Encoding: chunked", method="POST"),
    "bare LF": get(INFER, "X: a\nContent-Length: 5", method="POST"),
    "bare CR": get(INFER, "X: a\rContent-Length: 5", method="POST"),
    "LF only": get(INFER, "Content-Length: 5", method="POST").replace(b"\r\n", b"\n"),
    "NUL in a value": get(INFER, "X: a\x00b", method="POST"),
    "NUL in a name": get(INFER, "X\x00: a", method="POST"),
    "no name": get(INFER, ": a", method="POST"),
    "no colon": get(INFER, "Content-Length 5", method="POST"),
    "no host": f"POST {INFER} HTTP/1.1\r\n\r\n".encode(),
    "two hosts": get(INFER, "Host: other", method="POST"),
    "bad host": get(INFER, method="POST").replace(b"Host: t", b"Host: t/x y"),
    "vertical tab": get(INFER, "Transfer-Encoding:\x0bchunked", method="POST"),
    "space in the target": get("/v2 HTTP/1.1 /v2"),
    "two spaces": b"GET  /v2 HTTP/1.1\r\nHost: t\r\n\r\n",
    "lower-case version": b"GET /v2 http/1.1\r\nHost: t\r\n\r\n",
    "chunk size sign": get(INFER, "Transfer-Encoding: chunked", method="POST") + b"+0\r\n\r\n",
    "chunk size prefix": get(INFER, "Transfer-Encoding: chunked", method="POST") + b"0x0\r\n\r\n",
    "chunk size space": get(INFER, "Transfer-Encoding: chunked", method="POST") + b" 0\r\n\r\n",
    "chunk LF": get(INFER, "Transfer-Encoding: chunked", method="POST") + b"0\n\n",
    "chunk extension LF": get(INFER, "Transfer-Encoding: chunked", method="POST") + b"0;a\nb\r\n\r\n",
    "chunk size overflow": get(INFER, "Transfer-Encoding: chunked", method="POST") + b"10000000000000000\r\n\r\n",
    "chunk longer than said": get(INFER, "Transfer-Encoding: chunked", method="POST") + b"1\r\nab\r\n0\r\n\r\n",
    "trailer without colon": get(INFER, "Transfer-Encoding: chunked", method="POST") + b"0\r\nabc\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("name", SMUGGLING)
def test_ambiguous_messages_end_the_connection(server: ServerProcess, name: str) -> None:
    """One refusal and nothing more: what follows is never taken for a request."""
    with Client(server.http) as client:
        client.send_until_refused([SMUGGLED, SMUGGLING[name], SMUGGLED * 2])
        assert client.answer().status == 200
        answer = client.answer()
        assert answer.status in {400, 413, 501}, answer
        assert re.search(r"[a-z]{3}", answer.error)
        assert answer.closes
        with pytest.raises(Closed):
            client.answer()


def test_body_of_a_get_is_not_the_next_request(server: ServerProcess) -> None:
    with Client(server.http) as client:
        client.send(get("/v2", f"Content-Length: {len(SMUGGLED)}") + SMUGGLED + get("/v2/models/m"))
        assert client.answer().json()["name"] == "triton"
        assert client.answer().json()["name"] == "m"
    with Client(server.http) as client:
        client.send(chunked("/nothing", [SMUGGLED]) + get("/v2/models/m"))
        assert client.answer().status == 404
        assert client.answer().json()["name"] == "m"


def test_metrics_port(server: ServerProcess) -> None:
    with Client(server.metrics) as client:
        text = client.ask(get("/metrics"))
        assert text.status == 200
        assert b"nv_inference_request_success" in text.body
        assert client.ask(post("/metrics")).status == 405
        assert client.ask(get("/other")).body == b""
        assert client.ask(post(INFER, JSON)).status == 405
        client.send(get("/metrics") * 20 + get("/x"))
        for _ in range(20):
            assert client.answer().body.startswith(b"# HELP")
        assert client.answer().body == b""
