"""Refusals of the native v2 JSON decoder: codes, texts and offsets as the real server gives them.

SYNTAX was recorded from the real server, but for its first rows: release 2.73 parses without recursion and calls a
stray bracket or comma at the start an empty document.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from triton_fast import errors
from triton_fast._native.core import memory, request
from triton_fast._native.wire.json_infer import decode

EMPTY = "The document is empty."
ROOT = "The document root must not be followed by other values."
VALUE = "Invalid value."
NAME = "Missing a name for object member."
COLON = "Missing a colon after a name of object member."
CURLY = "Missing a comma or '}' after an object member."
SQUARE = "Missing a comma or ']' after an array element."
HEX = "Incorrect hex digit after \\u escape in string."
PAIR = "The surrogate pair in string is invalid."
ESCAPE = "Invalid escape character in string."
QUOTE = "Missing a closing quotation mark in string."
BIG = "Number too big to be stored in double."
FRACTION = "Miss fraction part in number."
EXPONENT = "Miss exponent in number."

SYNTAX = [
    (b"}", EMPTY, 0), (b"]", EMPTY, 0), (b",", EMPTY, 0), (b":", EMPTY, 0),
    (b"", EMPTY, 0), (b" ", EMPTY, 1), (b"  \n", EMPTY, 3), (b"{", NAME, 1), (b"[", VALUE, 1), (b"x", VALUE, 0),
    (b'{"a"', COLON, 4), (b'{"a":', VALUE, 5), (b'{"a":}', VALUE, 5), (b'{"a":1', CURLY, 6), (b'{"a":1,', NAME, 7),
    (b'{"a":1,}', NAME, 7), (b'{"a":1 "b":2}', CURLY, 7), (b"{a:1}", NAME, 1), (b'{"a" 1}', COLON, 5),
    (b'{"a":[1,2', SQUARE, 9), (b'{"a":[1,]}', VALUE, 8), (b'{"a":[1 2]}', SQUARE, 8), (b'{"a":[,1]}', VALUE, 6),
    (b'{"a":nul}', VALUE, 8), (b'{"a":nulx}', VALUE, 8), (b'{"a":tru', VALUE, 8), (b'{"a":fals3}', VALUE, 9),
    (b'{"a":truee}', CURLY, 9), (b'{"a":"x', QUOTE, 7), (b'{"a":"x\n"}', ESCAPE, 7), (b'{"a":"x\x01"}', ESCAPE, 7),
    (b'{"a":"\\x"}', ESCAPE, 6), (b'{"a":"\\u12g4"}', HEX, 6), (b'{"a":"\\u12', HEX, 6),
    (b'{"a":"\\ud800"}', PAIR, 6),
    (b'{"a":"\\ud800x"}', PAIR, 6), (b'{"a":"\\ud800\\n"}', PAIR, 6), (b'{"a":"\\ud800\\u0041"}', PAIR, 6),
    (b'{"a":"\\ud800\\u00g1"}', HEX, 6), (b'{"a":01}', CURLY, 6), (b'{"a":1.}', FRACTION, 7),
    (b'{"a":1.x}', FRACTION, 7),
    (b'{"a":-}', VALUE, 6), (b'{"a":+1}', VALUE, 5), (b'{"a":.5}', VALUE, 5), (b'{"a":1e}', EXPONENT, 7),
    (b'{"a":1e+}', EXPONENT, 8), (b'{"a":1e400}', BIG, 5), (b'{"a":-1e309}', BIG, 5), (b'{"a":0e400}', BIG, 5),
    (b'{"a":' + b"9" * 400 + b"}", BIG, 5), (b'{"a":Nan}', VALUE, 7), (b'{"a":N}', VALUE, 6),
    (b'{"a":Infinit}', VALUE, 12),
    (b'{"a":infinity}', VALUE, 5), (b'{"a":1} x', ROOT, 8), (b'{"a":1}{', ROOT, 7), (b'{"a":1\0}', CURLY, 6),
    (b'{"a":"x\0y"}', QUOTE, 7), (b'\xef\xbb\xbf{"a":1,}', NAME, 10), (b'\xff\xfe{"a":1}', VALUE, 0),
    (b'{"a":1}//c', ROOT, 7), (b'/*c*/{"a":1}', VALUE, 0), (b"{'a':1}", NAME, 1), (b'{"a":1,,"b":2}', NAME, 7),
    (b'{"a"::1}', VALUE, 5), (b'{"a":[1}', SQUARE, 7), (b'{"a":{"b":1]}', CURLY, 11), (b'{"a":1.5e3.2}', CURLY, 10),
    (b'{"a":0x1}', CURLY, 6), (b'{"a":--1}', VALUE, 6), (b'{"a":1e5555555555555}', BIG, 5), (b'{"a":[[[]', SQUARE, 9),
    (b'{"a":[{"b"', COLON, 10), (b"\x0c{}", VALUE, 0), (b'{"a":True}', VALUE, 5),
    # The real server takes what follows a NUL for nothing; we do not.
    (b'{"a":1}\0x', ROOT, 7),
]
NO_INPUTS = "Unable to parse 'inputs': attempt to access non-existing object member 'inputs'"
ONE_OF = (
    "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters', "
    "'shared_memory_region' in 'parameters'. But "
)
NON = {
    "string": "attempt to access JSON non-string as string",
    "bool": "attempt to access JSON non-boolean as boolean",
    "int": "attempt to access JSON non-signed-integer as signed-integer",
    "uint": "attempt to access JSON non-unsigned-integer as unsigned-integer",
    "double": "attempt to access JSON non-number as double",
    "array": "attempt to access JSON non-array as array",
}
INTERNAL, INVALID, MISSING, UNSUPPORTED = errors.Internal, errors.InvalidArg, errors.NotFound, errors.Unsupported


def one(member: str) -> str:
    return '{"inputs":[{' + member + "}]}"


def tensor(datatype: str, shape: str, data: str) -> str:
    return one(f'"name":"x","shape":{shape},"datatype":"{datatype}","data":{data}')


def binary(size: str, shape: str = "[2]") -> str:
    return one(f'"name":"x","shape":{shape},"datatype":"FP32","parameters":{{"binary_data_size":{size}}}')


def output(text: str) -> str:
    return '{"inputs":[],"outputs":' + text + "}"


def params(text: str) -> str:
    return '{"inputs":[],"parameters":' + text + "}"


MEANING: list[tuple[str, type[errors.ServerError], str]] = [
    ("{}", INTERNAL, NO_INPUTS), ("[1,2]", INTERNAL, NO_INPUTS), ("5", INTERNAL, NO_INPUTS), ('"x"', INTERNAL,
     NO_INPUTS),
    ("null", INTERNAL, NO_INPUTS), ('{"a":-NaN}', INTERNAL, NO_INPUTS), ('{"a":1e-5555555555555}', INTERNAL,
     NO_INPUTS),
    ('{"inputs":5}', INTERNAL, f"Unable to parse 'inputs': {NON['array']}"),
    ('{"inputs":[5]}', INVALID, ONE_OF + "no field is set"), ('{"inputs":[{}]}', INVALID, ONE_OF + "no field is set"),
    (one('"data":[],"parameters":{"binary_data_size":1}'), INVALID, ONE_OF + "set 'data' 'binary_data_size'"),
    (one('"data":[],"parameters":{"binary_data_size":1,"shared_memory_region":"r"}'), INVALID,
     ONE_OF + "set 'data' 'binary_data_size' 'shared_memory_region'"),
    (one('"data":[1]'), INTERNAL, "Unable to parse 'name': attempt to access non-existing object member 'name'"),
    (one('"data":[1],"name":5'), INTERNAL, f"Unable to parse 'name': {NON['string']}"),
    (one('"data":[1],"name":"x"'), INTERNAL,
     "Unable to parse 'datatype': attempt to access non-existing object member 'datatype'"),
    (one('"data":[1],"name":"x","datatype":null'), INTERNAL, f"Unable to parse 'datatype': {NON['string']}"),
    (one('"data":[1],"name":"x","datatype":"FP32"'), INTERNAL,
     "Unable to parse 'shape': attempt to access non-existing object member 'shape'"),
    *[(tensor("FP32", s, "[1]"), INTERNAL, f"Unable to parse 'shape': {NON['uint']}")
      for s in ("[-1]", "[1.5]", '["1"]', "[-2]", "[18446744073709551616]", "[[1]]", "[0,-1]", "[1,null]", "[NaN]")],
    *[(tensor("FP32", s, "[1]"), INTERNAL, f"Unable to parse 'shape': {NON['array']}") for s in ("5", "null", "{}")],
    (tensor("FP32", "[9223372036854775808]", "[1]"), INVALID,
     "invalid shape for input 'x': shape [-9223372036854775808] contains one or more invalid dimensions"),
    (tensor("FP32", "[4294967296,4294967296]", "[1]"), INVALID,
     "invalid shape for input 'x': shape [4294967296,4294967296] "
     "causes total element count to exceed maximum size of 9223372036854775807"),
    (tensor("FP32", "[4611686018427387904]", "[1]"), INVALID, "byte size overflow for input 'x': element count "
     "(4611686018427387904) * data type size (4) exceeds maximum allowed size (9223372036854775807)"),
    (tensor("FP32", "[" + ",".join(["1"] * 65) + "]", "[1]"), INVALID,
     "invalid shape for input 'x': it has more than 64 dimensions"),
    *[(tensor(d, "[1]", f"[{v}]"), INTERNAL, f"Unable to parse 'data': {NON[n]}") for d, v, n in (
        ("UINT8", "-1", "uint"), ("INT64", "9223372036854775808", "int"), ("INT64", "-9223372036854775809", "int"),
        ("UINT64", "18446744073709551616", "uint"), ("UINT64", "99999999999999999999", "uint"),
        ("INT32", "1.0", "int"), ("INT32", "1e2", "int"), ("INT32", "true", "int"), ("INT32", '"1"', "int"),
        ("INT32", "null", "int"), ("INT32", "NaN", "int"), ("INT8", "{}", "int"), ("BOOL", "1", "bool"),
        ("BOOL", "null", "bool"), ("FP32", '"NaN"', "double"), ("FP32", "null", "double"), ("FP64", "true", "double"),
        ("FP32", "{}", "double"))],
    *[(tensor("FP32", "[1]", d), INTERNAL, f"Unable to parse 'data': {NON['array']}")
      for d in ("5", "null", "{}", '"a"')],
    (tensor("FP16", "[1]", "[1]"), INVALID,
     "receiving FP16 data via JSON is not supported. Please use the binary data format for input x"),
    (tensor("BF16", "[1]", "[1]"), INVALID,
     "receiving BF16 data via JSON is not supported. Please use the binary data format for input x"),
    *[(tensor(d, "[1]", "[1]"), INVALID, "invalid datatype for input x") for d in ("FOO", "fp32", "STRING", "")],
    (tensor("BYTES", "[1]", "[1]"), INTERNAL, f"Unable to parse JSON bytes array: {NON['string']}"),
    (tensor("BYTES", "[2]", '["a",[null]]'), INTERNAL, f"Unable to parse JSON bytes array: {NON['string']}"),
    (tensor("FP32", "[1]", "[1,2]"), INTERNAL,
     "Unable to parse 'data': Shape does not match true shape of 'data' field"),
    (tensor("FP32", "[2]", "[1]"), INTERNAL, "Failed to parse 'data' field: shape does not match true shape"),
    (tensor("INT8", "[2,2]", "[[1,2],[3]]"), INTERNAL,
     "Failed to parse 'data' field: shape does not match true shape"),
    (tensor("BYTES", "[2]", '["a"]'), INVALID,
     "[request id: <id_unknown>] expected 2 string elements for inference input 'x' for model '', got 1"),
    (tensor("BYTES", "[1]", '["a","b","c"]')[:-1] + ',"id":"7"}', INVALID,
     "[request id: 7] unexpected number of string elements 2 for inference input 'x' for model '', expecting 1"),
    ('{"inputs":[{"name":"x","shape":[1],"datatype":"INT8","data":[1]},'
     '{"name":"x","shape":[1],"datatype":"INT8","data":[1]}]}', INVALID, "input 'x' already exists in request"),
    (binary("8"), INVALID, "unexpected size for input 'x', expecting 3 additional bytes for model ''"),
    (binary("4"), INVALID, "unexpected additional input data for model ''"),
    (binary("0"), INVALID, "unexpected additional input data for model ''"),
    (binary("18446744073709551615"), INVALID,
     "unexpected size for input 'x', expecting 18446744073709551610 additional bytes for model ''"),
    *[(binary(s), INTERNAL, f"Unable to parse 'binary_data_size': {NON['uint']}")
      for s in ("-1", '"8"', "8.0", "18446744073709551616", "null")],
    (binary("5", "[18446744073709551615]"), INVALID,
     "invalid shape for input 'x': shape [-1] contains one or more invalid dimensions"),
    (one('"name":"x","shape":[1],"datatype":"INT8","parameters":{"shared_memory_region":"r\\"eg"}'), MISSING,
     "Unable to find shared memory region: 'r\"eg'"),
    (one('"name":"x","shape":[1],"datatype":"INT8","parameters":{"shared_memory_region":5}'), INTERNAL,
     f"Unable to parse 'shared_memory_region': {NON['string']}"),
    (one('"name":"x","shape":[1],"datatype":"INT8","data":[1],"parameters":{"shared_memory_offset":"a"}'), INTERNAL,
     f"Unable to parse 'shared_memory_offset': {NON['uint']}"),
    (one('"name":"x","shape":[1],"datatype":"INT8","data":[1],"parameters":{"shared_memory_byte_size":-1}'), INTERNAL,
     f"Unable to parse 'shared_memory_byte_size': {NON['uint']}"),
    *[(output(o), INTERNAL, f"Unable to parse 'outputs': {NON['array']}") for o in ("5", "null", "{}")],
    *[(output(o), INTERNAL, "Unable to parse 'name': attempt to access non-existing object member 'name'")
      for o in ("[5]", "[{}]", "[[]]")],
    (output('[{"name":5}]'), INTERNAL, f"Unable to parse 'name': {NON['string']}"),
    (output('[{"name":"o"},{"name":"o"}]'), INVALID, "output 'o' already exists in request"),
    (output('[{"name":"o","parameters":{"binary_data":1}}]'), INTERNAL,
     f"Unable to parse 'binary_data': {NON['bool']}"),
    (output('[{"name":"o","parameters":{"classification":-1}}]'), INTERNAL,
     f"Unable to set 'classification': {NON['uint']}"),
    (output('[{"name":"o","parameters":{"shared_memory_region":"r","classification":1}}]'), INVALID,
     "Output can't set both 'shared_memory_region' and 'classification'"),
    (output('[{"name":"o","parameters":{"shared_memory_region":"r","binary_data":true}}]'), INVALID,
     "Output can't set both 'shared_memory_region' and 'binary_data'"),
    (output('[{"name":"o","parameters":{"shared_memory_region":"r","binary_data":1}}]'), INTERNAL,
     f"Unable to set 'binary_data': {NON['bool']}"),
    (output('[{"name":"o","parameters":{"shared_memory_region":"r","binary_data":false}}]'), MISSING,
     "Unable to find shared memory region: 'r'"),
    (output('[{"name":"o","parameters":{"shared_memory_offset":-5}}]'), INTERNAL,
     f"Unable to parse 'shared_memory_offset': {NON['uint']}"),
    *[(params(p), INTERNAL, "failed to get request params.: attempt to get members for non-object")
      for p in ("5", "[]", "null", '"a"')],
    *[(params('{"sequence_id":' + v + "}"), INTERNAL, f"Unable to parse 'sequence_id': {NON['string']}")
      for v in ("-1", "1.5", "null", "true", "18446744073709551616")],
    (params('{"sequence_id":"' + "x" * 129 + '"}'), UNSUPPORTED,
     "string correlation ID cannot be longer than 128 characters"),
    (params('{"sequence_start":1}'), INTERNAL, f"Unable to parse 'sequence_start': {NON['bool']}"),
    (params('{"sequence_end":"true"}'), INTERNAL, f"Unable to parse 'sequence_end': {NON['bool']}"),
    (params('{"priority":-1}'), INTERNAL, f"Unable to parse 'priority': {NON['uint']}"),
    (params('{"timeout":"x"}'), INTERNAL, f"Unable to parse 'timeout': {NON['uint']}"),
    (params('{"binary_data_output":1}'), INTERNAL, f"Unable to parse 'binary_data_output': {NON['bool']}"),
    (params('{"triton_x":1}'), INVALID,
     "parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified."),
    *[(params('{"a":' + v + "}"), INVALID,
       "parameter 'a' has invalid type. It should be either 'int', 'bool', or 'string'.")
      for v in ("{}", "[]", "null", "[1]")],
    ('{"id":5,"inputs":[]}', INTERNAL, f"Unable to parse 'id': {NON['string']}"),
    ('{"id":null,"inputs":[]}', INTERNAL, f"Unable to parse 'id': {NON['string']}"),
    # Which of two errors is told: syntax anywhere, then id, parameters, inputs, outputs, wherever they stand.
    ('{"outputs":5,"inputs":5,"parameters":5,"id":5}', INTERNAL, f"Unable to parse 'id': {NON['string']}"),
    ('{"outputs":5,"inputs":5,"parameters":5}', INTERNAL,
     "failed to get request params.: attempt to get members for non-object"),
    ('{"outputs":5,"inputs":[{}]}', INVALID, ONE_OF + "no field is set"),
    ('{"outputs":5,"id":"x"}', INTERNAL, NO_INPUTS),
    (one('"data":[null],"datatype":"FP32"') + "x", INTERNAL,
     f"failed to parse the request JSON buffer: {ROOT} at 46"),
    (one('"name":"x","shape":[1],"datatype":"FP32","data":[null],"parameters":{"binary_data_size":1}'), INVALID,
     ONE_OF + "set 'data' 'binary_data_size'"),
    (tensor("FP32", "[1]", '["a"')[:-1], INTERNAL, f"failed to parse the request JSON buffer: {SQUARE} at 64"),
    (tensor("BYTES", "[2]", '["a"]')[:-1] + ',"outputs":5}', INTERNAL, f"Unable to parse 'outputs': {NON['array']}"),
]


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    before = (memory.stats()["live_blocks"], request.stats()["live_requests"])
    yield
    assert (memory.stats()["live_blocks"], request.stats()["live_requests"]) == before


@pytest.mark.parametrize(("text", "reason", "offset"), SYNTAX)
def test_syntax(text: bytes, reason: str, offset: int) -> None:
    with pytest.raises(errors.Internal) as e:
        decode(text)
    assert e.value.message == f"failed to parse the request JSON buffer: {reason} at {offset}"


@pytest.mark.parametrize(("text", "kind", "message"), MEANING)
def test_meaning(text: str, kind: type[errors.ServerError], message: str) -> None:
    with pytest.raises(errors.ServerError) as e:
        decode(text.encode(), b"12345" if "binary_data_size" in text else b"")
    assert (type(e.value), e.value.message) == (kind, message)


def test_binary_without_the_header() -> None:
    with pytest.raises(errors.InvalidArg, match="must specify valid 'Infer-Header-Content-Length' in request header"):
        decode(binary("5").encode(), b"12345", has_header_len=False)
    assert decode(binary("0").encode(), b"", has_header_len=False)["inputs"][0]["data"] == b""


def test_every_prefix_and_every_single_byte_change_is_answered() -> None:
    good = (
        b'{"id":"i\\u0041","inputs":[{"name":"a","shape":[1,3],"datatype":"FP32","data":[[1.5,-2e-3,Inf]]},'
        b'{"datatype":"BYTES","data":["x","\\ud83d\\ude00"],"name":"b","shape":[2]},'
        b'{"name":"c","shape":[300],"datatype":"INT8","data":[' + b"7," * 299 + b"7]}],"
        b'"outputs":[{"name":"o","parameters":{"binary_data":true}}],"parameters":{"p":"q","n":1}}'
    )
    decode(good)
    for n in range(len(good)):
        with pytest.raises(errors.Internal, match=r"^failed to parse the request JSON buffer: .* at \d+$"):
            decode(good[:n])
    for n in range(len(good)):
        for byte in b'\0 "\\{}[],:-0e.N\xff':
            try:
                decode(good[:n] + bytes([byte]) + good[n + 1 :])
            except errors.ServerError as e:
                assert e.message


def test_long_names_are_cut_in_texts() -> None:
    name = "n" * 100_000
    for text in (
        tensor("FP16", "[1]", "[1]").replace('"x"', f'"{name}"'),
        params(f'{{"{name}":null}}'),
        one(f'"name":"x","shape":[1],"datatype":"INT8","parameters":{{"shared_memory_region":"{name}"}}'),
    ):
        with pytest.raises(errors.ServerError) as e:
            decode(text.encode())
        assert "n" * 200 in e.value.message
        assert len(e.value.message) < 600
