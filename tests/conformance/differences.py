"""The known differences between this server and the reference release (2.51), each with its reason.

docs/compatibility.md lists the same rows; test_differential.py and test_differential_grpc.py hold both to what the
servers really answer.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "compatibility.md"

# Why; the texts of release 2.73 are the ones this server speaks.
NEWER = "2.73 answers so"
REASON = "the cause is added"
CHECKED = "2.51 takes the bad input for something else"
CLEARER = "the real name instead of an internal one"
JSON_TEXT = "another JSON parser's words"
ANY_ORDER = "2.51 names any of the inputs"
REPAIRED = "the answer stays valid JSON"

UNKNOWN = "Request for unknown model: 'nobody' is not found"
VERSION_0 = "Request for unknown model: 'versions' version 0 is not found"
VERSION_9 = "Request for unknown model: 'versions' version 9 is not found"
NOT_READY = "Model version not ready"
TOO_LARGE = "9" * 30
POLL = "failed to poll from model repository"
ANON = "[request id: <id_unknown>] "
NO_INPUTS = (
    "[request id: w] expected 3 inputs but got 1 inputs for model 'repeat'. Got input(s) ['INPUT0'], but missing "
    "required input(s) ['IN','DELAY','WAIT']. Please provide all required input(s)."
)
WRONG_TYPE = "[request id: wrong] inference input 'INPUT0' data-type is 'INT32', but model 'id_fp32' expects 'FP32'"


class Known(NamedTuple):
    """Statuses and error texts; an empty text stands for an answer that is no error."""

    reference_status: int
    reference: str
    status: int
    text: str
    why: str


# Requests that end the reference's process; sent to this server only, by test_http_spec.py.
FATAL = ("#15", "#25", "#32")

KNOWN: dict[str, Known] = {
    "/v2/models/nobody/ready": Known(400, NOT_READY, 404, UNKNOWN, NEWER),
    "/v2/models/versions/versions/9/ready": Known(400, NOT_READY, 404, VERSION_9, NEWER),
    "/v2/models/versions/versions/0/ready": Known(400, NOT_READY, 404, VERSION_0, NEWER),
    f"/v2/models/versions/versions/{TOO_LARGE}": Known(
        400, f"failed to get model version from specified version string '{TOO_LARGE}' (details: stol), version should "
        "be an integral value > 0",
        400, f"invalid model version specified '{TOO_LARGE}' , version should be an integral value > 0", NEWER,
    ),
    "index with a wrong ready": Known(
        500, "attempt to access JSON non-boolean as boolean",
        400, "Invalid value for 'ready': expected a boolean", NEWER,
    ),
    "index with a wrong body": Known(
        500, "failed to parse the request JSON buffer: Invalid value. at 1",
        500, "failed to parse the request JSON buffer: unexpected end of data: line 1 column 2 (char 1)", JSON_TEXT,
    ),
    "load of an unknown model": Known(
        500, f"failed to load 'nobody', {POLL}",
        500, f"failed to load 'nobody', {POLL}: model not found in any model repository", REASON,
    ),
    "load with a broken config": Known(
        500, f"failed to load 'control', {POLL}",
        400, "Invalid config override: unexpected end of data at line 1 column 2", NEWER,
    ),
    "load with a config of another type": Known(
        500, "attempt to access JSON non-string as string",
        500, "Unable to parse 'config': attempt to access JSON non-string as string", REASON,
    ),
    "unload with wrong dependents": Known(
        200, "", 500, "Unable to parse 'unload_dependents': attempt to access JSON non-boolean as boolean", NEWER,
    ),
    "raw of an odd size": Known(
        400, f"{ANON}input byte size mismatch for input 'raw_input' for model 'id_fp32'. Expected 0, got 3",
        400, f"{ANON}input byte size mismatch for input 'INPUT0' for model 'id_fp32'. Expected 0, got 3", CLEARER,
    ),
    "broken gzip": Known(
        200, "", 400, "the compressed request body is not valid: Error -3 while decompressing data: incorrect header "
        "check", CHECKED,
    ),
    "bytes that are no UTF-8": Known(200, "", 200, "", REPAIRED),
    "#1 header length is no number": Known(
        400, f"{ANON}input byte size mismatch for input 'raw_input' for model 'id_fp32'. Expected 84, got 85",
        400, "Unable to parse Inference-Header-Content-Length, got: abc", NEWER,
    ),
    "#2 header length too large": Known(
        400, "inference header size should be in range (0, 85), got: 2147483648",
        400, "Unable to parse Inference-Header-Content-Length, value is out of range [ -2147483648, 2147483647 ], got: "
        "2147483648", NEWER,
    ),
    "#5 empty document": Known(
        200, "", 500, "failed to parse the request JSON buffer: The document is empty. at 0", CHECKED,
    ),
    "#8 binary without the header": Known(
        400, "unexpected size for input 'INPUT0', expecting 8 additional bytes for model 'id_fp32'",
        400, "must specify valid 'Infer-Header-Content-Length' in request header and 'binary_data_size' when passing "
        "inputs in binary data format", NEWER,
    ),
    "#14 too few elements": Known(
        500, "Unable to parse 'data': Shape does not match true shape of 'data' field",
        500, "Failed to parse 'data' field: shape does not match true shape", NEWER,
    ),
    "#14 too deep": Known(
        200, "", 400, "Unable to parse 'data': JSON nesting depth exceeds maximum allowed limit (100)", NEWER,
    ),
    "#28 optional inputs": Known(
        200, "", 400, f"{ANON}expected number of inputs between 1 and 2 but got 1 inputs for model 'optional'. Got "
        "input(s) ['INPUT1'], but missing required input(s) ['INPUT0']. Please provide all required input(s).", NEWER,
    ),
    "#29 input twice": Known(
        400, f"{ANON}input 'INPUT0' already exists in request", 400, "input 'INPUT0' already exists in request", NEWER,
    ),
    "#29 output twice": Known(200, "", 400, "output 'OUTPUT0' already exists in request", NEWER),
    "#33 batches differ": Known(
        400, f"{ANON}input 'INPUT0' batch size does not match other inputs for 'two'",
        400, f"{ANON}input 'INPUT1' batch size does not match other inputs for 'two'", ANY_ORDER,
    ),
}  # fmt: skip

NOT_A_NUMBER = (
    "failed to get model version from specified version string '{}' (details: stol), version should be an integral "
    "value > 0"
)
NOT_POSITIVE = "invalid model version specified '{}' , version should be an integral value > 0"
LARGE = Known(3, NOT_A_NUMBER.format(TOO_LARGE), 3, NOT_POSITIVE.format(TOO_LARGE), NEWER)
STREAM_STATUS = "2.73 ends the stream with a status where the metadata ask for it"

# The same for calls over gRPC. Of a stream the status is that of the call, the text that of its first error.
GRPC_KNOWN: dict[str, Known] = {
    "load of an unknown model": Known(
        13, f"failed to load 'nobody', {POLL}",
        13, f"failed to load 'nobody', {POLL}: model not found in any model repository", REASON,
    ),
    "load of no model": Known(
        13, f"failed to load '', {POLL}", 3, "Model name cannot be empty. Please enter a valid name to deploy.", NEWER,
    ),
    "load with a broken config": Known(
        13, f"failed to load 'control', {POLL}",
        3, "Invalid config override: unexpected end of data at line 1 column 2", NEWER,
    ),
    **{f"{name} of versions {TOO_LARGE}": LARGE for name in ("Metadata", "Config", "Ready")},
    "Ready of versions 9": Known(0, "", 5, VERSION_9, NEWER),
    "Ready of versions 0": Known(0, "", 5, VERSION_0, NEWER),
    "Ready of nobody": Known(0, "", 5, UNKNOWN, NEWER),
    "Ready of no model": Known(0, "", 5, UNKNOWN.replace("nobody", ""), NEWER),
    "#6 a negative dimension": Known(
        3, f"{ANON}input byte size mismatch for input 'INPUT0' for model 'id_fp32'. Expected -8, got 8",
        3, "invalid shape for input 'INPUT0': shape [1,-2] contains one or more invalid dimensions", NEWER,
    ),
    "#28 optional inputs": Known(0, "", 3, KNOWN["#28 optional inputs"].text, NEWER),
    "#29 output twice": Known(0, "", 3, f"{ANON}output 'OUTPUT0' already exists in request", NEWER),
    "#33 batches differ": KNOWN["#33 batches differ"]._replace(reference_status=3, status=3),
    "FP32 negative": Known(
        3, f"{ANON}input byte size mismatch for input 'INPUT0' for model 'id_fp32'. Expected -16, got 16",
        3, "invalid shape for input 'INPUT0': shape [1,-4] contains one or more invalid dimensions", NEWER,
    ),
    "FP32 past everything": Known(
        3, f"{ANON}input byte size mismatch for input 'INPUT0' for model 'id_fp32'. Expected 0, got 16",
        3, f"{ANON}inference request batch-size must be <= 8 for 'id_fp32'", CHECKED,
    ),
    "unknown model on a stream, with statuses": Known(0, UNKNOWN, 5, UNKNOWN, STREAM_STATUS),
    "wrong request of a decoupled model, with statuses": Known(0, NO_INPUTS, 3, NO_INPUTS, STREAM_STATUS),
    "a version that is no number, with statuses": Known(
        0, NOT_A_NUMBER.format("x"), 3, NOT_A_NUMBER.format("x"), STREAM_STATUS,
    ),
    "errors first, with statuses": Known(0, WRONG_TYPE, 3, WRONG_TYPE, STREAM_STATUS),
}  # fmt: skip


def row(known: Known, name: str) -> str:
    """The row of a difference in a table of docs/compatibility.md."""
    cells = [_cell(known.reference_status, known.reference), _cell(known.status, known.text)]
    return f"| {name} | {cells[0]} | {cells[1]} | {known.why} |"


def _cell(status: int, text: str) -> str:
    return f"{status} `{text}`" if text else str(status)


def documented(title: str) -> list[str]:
    """The rows of the table under a heading of docs/compatibility.md."""
    text = DOCUMENT.read_text()
    section = text[text.index(f"## {title}\n") + 3 :].partition("\n## ")[0]
    return [line for line in section.splitlines() if re.match(r"\| (?!Request|---)", line)]
