"""The native ModelInferResponse encoder, read back by protobuf."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triton_fast import protos
from triton_fast._native.core import memory, request
from triton_fast._native.core.model import ModelHandle
from triton_fast._native.wire.pb_reply import encode_error, encode_final, encode_reply
from triton_fast.types import DataType

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=300)
DIMS = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=9)
VALUE = st.one_of(st.booleans(), st.integers(-(2**63), 2**64 - 1), TEXT, st.floats(allow_nan=False))


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    before = (memory.stats()["live_blocks"], request.stats()["live_requests"])
    yield
    assert (memory.stats()["live_blocks"], request.stats()["live_requests"]) == before


def model_of(*names: str, name: str = "mlp", version: int = 1) -> ModelHandle:
    specs = [
        SimpleNamespace(name=n, dtype=DataType.FP32, dims=(-1,), reshape=None, optional=False, ragged=False)
        for n in names
    ]
    return ModelHandle(name, version, 0, [], specs)


def whole(model: ModelHandle, outputs: list[Any], before: bytes = b"", **how: Any) -> bytes:
    """The encoded message with the tensors put where they belong."""
    head, cuts, size = encode_reply(model, outputs, before=before, **how)
    assert head.startswith(before)
    assert cuts == sorted(cuts)
    out, at = [], len(before)
    for cut, (_, _, _, data) in zip(cuts, outputs, strict=True):
        out += [head[at:cut], data]
        at = cut
    text = b"".join([*out, head[at:]])
    assert len(text) == size
    return text


def response(model: ModelHandle, outputs: list[Any], **how: Any) -> Any:
    m = protos.ModelInferResponse.FromString(whole(model, outputs, **how))
    stream = protos.ModelStreamInferResponse.FromString(whole(model, outputs, stream=True, **how))
    assert stream.error_message == ""
    assert stream.infer_response == m
    return m


def test_the_usual_reply() -> None:
    data = struct.pack("<4f", 1, 2, 3, 4)
    outputs = [(0, DataType.FP32, (1, 4), data)]
    m = response(model_of("OUTPUT"), outputs, id="7")
    want = protos.ModelInferResponse(model_name="mlp", model_version="1", id="7", raw_output_contents=[data])
    want.outputs.add(name="OUTPUT", datatype="FP32", shape=[1, 4])
    assert m == want
    # Byte for byte what protobuf writes.
    assert whole(model_of("OUTPUT"), outputs, id="7") == want.SerializeToString(deterministic=True)
    assert whole(model_of("OUTPUT"), outputs, id="7", before=b"junk", stream=True) == (
        protos.ModelStreamInferResponse(infer_response=want).SerializeToString(deterministic=True)
    )


@pytest.mark.parametrize("final", [0, 1])
def test_the_final_flag(final: int) -> None:
    m = response(model_of("o"), [(0, DataType.INT8, (1,), b"1")], final=final)
    assert m.parameters["triton_final_response"].WhichOneof("parameter_choice") == "bool_param"
    assert m.parameters["triton_final_response"].bool_param == bool(final)
    assert not response(model_of("o"), []).parameters


def test_parameters() -> None:
    given_values = {"b": True, "f": False, "i": -(2**63), "z": 0, "u": 2**64 - 1, "d": 0.0, "s": "", "é": "x" * 200,
                    "": "y"}
    m = response(model_of(), [], parameters=given_values, final=1)
    assert m.parameters.pop("triton_final_response").bool_param is True
    assert {k: getattr(v, v.WhichOneof("parameter_choice")) for k, v in m.parameters.items()} == given_values
    assert {k: v.WhichOneof("parameter_choice") for k, v in m.parameters.items()} == {
        "b": "bool_param", "f": "bool_param", "i": "int64_param", "z": "int64_param", "u": "uint64_param",
        "d": "double_param", "s": "string_param", "é": "string_param", "": "string_param",
    }


def test_empty_outputs_keep_their_place() -> None:
    outputs = [(1, DataType.FP32, (0,), b""), (0, DataType.STRING, (), b"\0\0\0\0"), (2, DataType.BF16, (2, 0), b"")]
    m = response(model_of("a", "b", "c"), outputs)
    assert list(m.raw_output_contents) == [b"", b"\0\0\0\0", b""]
    assert [(o.name, o.datatype, list(o.shape)) for o in m.outputs] == [
        ("b", "FP32", [0]), ("a", "BYTES", []), ("c", "BF16", [2, 0])
    ]


@pytest.mark.parametrize("size", [0, 1, 20, 100, 127, 128, 5000, 20_000, 3_000_000])
def test_lengths_of_every_size(size: int) -> None:
    m = response(model_of("n" * size), [(0, DataType.UINT8, (size,), bytes(size))], id="i" * size)
    assert (m.outputs[0].name, m.id, m.raw_output_contents[0]) == ("n" * size, "i" * size, bytes(size))


@settings(max_examples=100, deadline=None)
@given(
    st.tuples(TEXT, TEXT, st.integers(1, 2**63 - 1)),
    st.sampled_from([-1, 0, 1]),
    st.lists(st.tuples(TEXT, st.sampled_from(list(DataType)[1:]), DIMS, st.binary(max_size=300)), max_size=6),
    st.dictionaries(TEXT, VALUE, max_size=4),
)
def test_any_reply(names: Any, final: int, outputs: list[Any], parameters: dict[str, Any]) -> None:
    name, id, version = names
    parameters.pop("triton_final_response", None)
    model = model_of(*(o[0] for o in outputs), name=name, version=version)
    m = response(model, [(i, *o[1:]) for i, o in enumerate(outputs)], id=id, final=final, parameters=parameters)
    assert (m.model_name, m.model_version, m.id) == (name, str(version), id)
    assert list(m.raw_output_contents) == [o[3] for o in outputs]
    assert [(o.name, DataType[{"BYTES": "STRING"}.get(o.datatype, o.datatype)], list(o.shape)) for o in m.outputs] == [
        o[:3] for o in outputs
    ]
    wanted = parameters if final < 0 else {**parameters, "triton_final_response": bool(final)}
    assert {k: getattr(v, v.WhichOneof("parameter_choice")) for k, v in m.parameters.items()} == wanted


def test_stream_error() -> None:
    read = protos.ModelStreamInferResponse.FromString
    want = protos.ModelStreamInferResponse(error_message="it failed", infer_response={"id": "7"})
    assert encode_error(b"it failed", "7") == want.SerializeToString()
    want.infer_response.model_name, want.infer_response.model_version = "mlp", "12"
    want.infer_response.parameters["triton_final_response"].bool_param = True
    assert read(encode_error(b"it failed", "7", model_of(version=12), 1)) == want
    assert read(encode_error(b"it failed")).HasField("infer_response")
    long = "é" * 40_000
    assert read(encode_error(long.encode(), long)).error_message == long


@pytest.mark.parametrize("text", [b"\xff", b"ok\xc3", b"\xed\xa0\x80x", b"\xe2\x82", b"a\x80\xc3\xa9", b"\x80" * 500])
def test_stream_error_is_always_utf8(text: bytes) -> None:
    got = protos.ModelStreamInferResponse.FromString(encode_error(text)).error_message
    kept, bad = "", 0
    for ch in text.decode("utf-8", "surrogateescape"):
        bad += "\udc80" <= ch <= "\udcff"
        kept += "\ufffd" if "\udc80" <= ch <= "\udcff" else ch
    assert got == kept
    assert bad


def test_stream_final() -> None:
    want = protos.ModelStreamInferResponse()
    want.infer_response.id, want.infer_response.model_name = "7", "mlp"
    want.infer_response.parameters["triton_final_response"].bool_param = True
    assert protos.ModelStreamInferResponse.FromString(encode_final("7", "mlp", "")) == want
    want.infer_response.model_version = "3"
    assert encode_final("7", "mlp", "3") == want.SerializeToString()


def test_a_buffer_is_reused() -> None:
    outputs = [(0, DataType.INT8, (1,), b"1")]
    for stream in (False, True):
        once = encode_reply(model_of("o"), outputs, stream=stream)
        assert encode_reply(model_of("o"), outputs, stream=stream, repeat=3) == once
