"""Executions through a real worker: datatypes, memory, what requests say, what execute may return and the texts."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers import worker_peer
from tests.helpers.worker_peer import BF16, KINDS, Peer, Request, Tensor, serialize, tensor

HEAD = """
import numpy as np
import triton_python_backend_utils as pb_utils
R, T = pb_utils.InferenceResponse, pb_utils.Tensor
def given(request, name="IN"):
    return pb_utils.get_input_tensor_by_name(request, name)
"""
IDENTITY = (
    HEAD
    + """
class TritonPythonModel:
    def execute(self, requests):
        return [R([T("OUT", given(r).as_numpy())]) for r in requests]
"""
)
# Runs the text that it is sent: with a result as an expression, else as statements that set ``out``.
PROBE = (
    HEAD
    + """
class TritonPythonModel:
    def execute(self, requests):
        r, request = requests[0], requests[0]
        text = given(r, "CODE").as_numpy()[0].decode()
        if text.startswith("return "):
            return eval(text[7:])
        try:
            value = repr(eval(text))
        except Exception as error:
            value = f"{type(error)}|{error}"
        return [R([T("OUT", np.array([value], object))])]
"""
)


def probe(peer: Peer, code: str, *inputs: Tensor, **fields: object) -> str:
    response = peer.one(tensor("CODE", [code.encode()]), *inputs, **fields)
    return response.outputs["OUT"].value[0].decode()


@pytest.fixture(scope="module")
def prober(tmp_path_factory, transport):
    with Peer(tmp_path_factory.mktemp("probe"), PROBE, ("CODE", "IN"), ("OUT", "OTHER")) as peer:
        peer.init()
        yield peer


@pytest.fixture(scope="module")
def identity(tmp_path_factory, transport):
    with Peer(tmp_path_factory.mktemp("identity"), IDENTITY) as peer:
        peer.init()
        yield peer


@pytest.mark.parametrize("kind", [kind for kind in KINDS[1:13]])
def test_numeric_tensors_come_back_unchanged_and_uncopied(identity, kind):
    # So many that the compiled client refers to them, too: it copies what is small.
    values = (np.arange(24 << 10) % 7).astype(kind).reshape(2, 3, 4096)
    output = identity.one(tensor("IN", values)).outputs["OUT"]
    assert output.dims == (2, 3, 4096)
    assert output.value.dtype == values.dtype
    assert np.array_equal(output.value, values)
    # Sent by reference: it lies where the input lay.
    assert identity.in_off <= output.off < identity.out_off


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,)])
def test_odd_shapes(identity, shape):
    output = identity.one(tensor("IN", np.zeros(shape, "f4"))).outputs["OUT"]
    assert output.dims == shape


@pytest.mark.parametrize(
    "items",
    [[], [b""], [b"a", b"", b"\0\xff" * 9], [b"equal%04d" % i for i in range(500)], [b"x" * i for i in range(300)]],
)
def test_bytes_tensors(identity, items):
    output = identity.one(tensor("IN", items)).outputs["OUT"]
    assert output.data == serialize(items)
    assert output.dims == (len(items),)


def test_a_batch_has_its_own_answers(identity):
    done = identity.infer(*[Request([tensor("IN", np.full(3, i, "i4"))], slot=i, generation=i + 7) for i in range(5)])
    assert [(r.slot, r.generation) for r in done.responses] == [(i, i + 7) for i in range(5)]
    assert [r.outputs["OUT"].value.tolist() for r in done.responses] == [[i] * 3 for i in range(5)]
    assert all(r.final and r.kind == 0 for r in done.responses)


def test_bf16_goes_through_dlpack(tmp_path):
    source = HEAD + (
        "class TritonPythonModel:\n"
        "    def execute(self, requests):\n"
        "        tensor = given(requests[0])\n"
        "        try:\n            tensor.as_numpy()\n"
        "        except pb_utils.TritonModelException as error:\n            text = str(error)\n"
        "        return [R([T.from_dlpack('OUT', tensor), T('TEXT', np.array([text], object))])]\n"
    )
    bits = np.array([[0x3F80, 0x4000], [0, 0xFF]], "u2")
    with Peer(tmp_path, source, outputs=("OUT", "TEXT")) as peer:
        peer.init()
        response = peer.one(tensor("IN", bits, BF16))
        assert response.outputs["OUT"].dtype == BF16
        assert np.array_equal(response.outputs["OUT"].value, bits)
        assert response.outputs["TEXT"].value == [
            b"Tensor dtype is BF16 and cannot be converted to NumPy. Use to_dlpack() and from_dlpack() instead."
        ]


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("given(r).as_numpy().flags.writeable", "True"),
        ("np.shares_memory(given(r).as_numpy(), given(r).as_numpy()[1:])", "True"),
        ("type(given(r).as_numpy())", "<class 'numpy.ndarray'>"),
        ("given(r).shape(), given(r).triton_dtype(), given(r).is_cpu(), given(r).name()", "([4], 11, True, 'IN')"),
        ("given(r, 'NONE')", "None"),
        ("r.request_id(), r.correlation_id(), r.flags(), r.timeout()", "('id', 7, 3, 99)"),
        ("r.parameters(), r.trace().get_context()", """('{"a":1.5}', '{"t":1}')"""),
        ("sorted(r.requested_output_names())", "['OTHER', 'OUT']"),
        ("r.is_cancelled(), r.get_response_sender().is_cancelled()", "(False, False)"),
        ("__name__", "'1.model'"),
        ("np.from_dlpack(given(r)).tolist()", "[0.0, 1.0, 2.0, 3.0]"),
        ("T.from_dlpack('A', np.zeros((3, 4), bool)).triton_dtype()", "1"),
        ("T.from_dlpack('A', T('B', np.array([True])).to_dlpack()).as_numpy()", "array([ True])"),
        ("T('A', np.arange(6).reshape(2, 3).T).as_numpy().flags.c_contiguous", "True"),
        ("T('A', np.zeros(1)).__dlpack_device__()", "(1, 0)"),
        ("pb_utils.TritonError('x').code()", "<__ErrorCode.INTERNAL: 1>"),
        ("int(pb_utils.TritonError.CANCELLED), pb_utils.TritonError.INTERNAL", "(7, <__ErrorCode.INTERNAL: 1>)"),
        ("R(parameters={'a': 1, 'b': True}).parameters()", """'{"a": 1, "b": true}'"""),
        ("pb_utils.serialize_byte_tensor(np.array([])), pb_utils.serialize_byte_tensor(np.zeros(2))", "((), None)"),
        ("pb_utils.serialize_byte_tensor(np.array([b'ab', 3], object))", r"b'\x02\x00\x00\x00ab\x01\x00\x00\x003'"),
        ("pb_utils.deserialize_bytes_tensor(b'\\x01\\0\\0\\0a').tolist()", "[b'a']"),
        ("pb_utils.triton_string_to_numpy('TYPE_FP16')", "<class 'numpy.float16'>"),
        ("pb_utils.triton_to_numpy_type(14)", "None"),
        ("pb_utils.numpy_to_triton_type(np.bytes_), pb_utils.numpy_to_triton_type(np.int8)", "(13, 6)"),
        ("pb_utils.using_decoupled_model_transaction_policy({})", "False"),
        ("pb_utils.get_input_config_by_name({'input': [{'name': 'A'}]}, 'A')", "{'name': 'A'}"),
        ("pb_utils.Logger.INFO, int(pb_utils.Logger.VERBOSE)", "(<LogLevel.INFO: 0>, 3)"),
        ("__import__('c_python_backend_utils').Tensor is T", "True"),
    ],
)  # fmt: skip
def test_what_a_model_sees(prober, code, value):
    texts = {"request_id": "id", "params": '{"a":1.5}', "trace": '{"t":1}'}
    fields = {"correlation": 7, "flags": 3, "timeout": 99, **texts}
    assert probe(prober, code, tensor("IN", np.arange(4, dtype="f4")), **fields) == value


def test_text_correlation_id(prober):
    assert probe(prober, "r.correlation_id()", correlation="seq") == "'seq'"


TME = "<class 'c_python_backend_utils.TritonModelException'>|"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("T('', np.zeros(1))", TME + "Tensor name cannot be an empty string."),
        ("T('A', np.zeros(1, 'c8'))", TME + "NumPy dtype is not supported."),
        ("T('A', np.array(['a']))", TME + "NumPy dtype is not supported."),
        ("T('A', np.array([b'a'], object)).to_dlpack()", TME + "DLPack does not have support for string tensors."),
        ("T.from_dlpack('', np.zeros(1))", TME + "Tensor name cannot be an empty string."),
        ("T.from_dlpack('A', np.zeros((3, 4)).T)",
         TME + "DLPack tensor is not contiguous. Only contiguous DLPack tensors that are stored in C-Order are "
         "supported."),
        ("T.from_dlpack('A', 3)",
         TME + "Provided tensor is not supported. Tensor must be a DLPack capsule         or have `__dlpack__` and "
         "`__dlpack_device__` attributes"),
        ("R([None])", TME + "Output tensor for inference response should not be empty."),
        ("R(parameters={'a': 1.5})",
         TME + "Expect parameters values to have type bool/int/str, found type <class 'float'>"),
        ("R([], parameters={'k': 1 << 70})", TME + "Parameter 'k' is not within 64 bits"),
        ("R(parameters={1: 1})", TME + "Expect parameters keys to have type str, found type <class 'int'>"),
        ("r.get_response_sender().send(flags=5)", TME + "Unable to send response. Unsupported flag provided."),
        ("r.get_response_sender().send()",
         TME + "Inference Response object must be provided when the response flags is set to zero."),
        ("r.get_response_sender().send(flags=1)",
         TME + "Unable to send response. Non-decoupled model cannot send complete final before sending a response."),
        ("pb_utils.InferenceRequest(inputs=[], requested_output_names=['A'], model_name='m')"
         ".get_response_sender().send(R())",
         TME + "Unable to send response. Response sender has no reference to the decoupled state of the model."),
        ("pb_utils.InferenceRequest(inputs=[None], requested_output_names=['A'], model_name='m', request_id='i')",
         TME + "Input tensor for request with id 'i' and model name 'm' should not be empty."),
        ("pb_utils.InferenceRequest(inputs=[], requested_output_names=[''], model_name='m', request_id='i')",
         TME + "Requested output name for request with id 'i' and model name 'm' should not be empty."),
        ("pb_utils.InferenceRequest(inputs=[], requested_output_names=['A'], model_name='m', correlation_id=1.5)",
         TME + "Correlation ID must be integer or string"),
        ("T('A', [1, 2])",
         "<class 'TypeError'>|__init__(): incompatible constructor arguments. The following argument types are "
         "supported:\n    1. c_python_backend_utils.Tensor(arg0: str, arg1: numpy.ndarray)\n\n"
         "Invoked with: 'A', [1, 2]"),
        ("pb_utils.TritonError(3)",
         "<class 'TypeError'>|__init__(): incompatible constructor arguments. The following argument types are "
         "supported:\n    1. c_python_backend_utils.TritonError(message: str, code: "
         "c_python_backend_utils.TritonError.__ErrorCode = <__ErrorCode.INTERNAL: 1>)\n\nInvoked with: 3"),
        ("pb_utils.Logger()", "<class 'TypeError'>|c_python_backend_utils.Logger: No constructor defined!"),
        ("pb_utils.load_model('x', files=3)",
         TME + "failed to load model 'x', files should be a dictionary of file paths and file contents"),
    ],
)  # fmt: skip
def test_texts_of_wrong_use(prober, code, text):
    assert probe(prober, code) == text


FAILED = "Failed to process the request(s) for model 'm_0', message: "


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("3", "Expected a list in the execute return, found type '<class 'int'>'."),
        ("()", "Expected a list in the execute return, found type '<class 'tuple'>'."),
        ("[]", "Number of InferenceResponse objects do not match the number of InferenceRequest objects. "
               "InferenceRequest(s) size is:1, and InferenceResponse(s) size is:0\n"),
        ("[1]", "Expected an 'InferenceResponse' object in the execute function return list, found type "
                "'<class 'int'>'."),
        ("[(r.set_release_flags(2), R())[1]]",
         "Expected a None object in the execute function return list for reschduled request, found type "
         "'<class 'c_python_backend_utils.InferenceResponse'>'."),
        ("[(r.get_response_sender().send(R(), 1), R())[1]]",
         "Unable to send response. Non-decoupled model cannot send more than one response."),
    ],
)  # fmt: skip
def test_wrong_returns_fail_the_batch(prober, code, text):
    done = prober.infer(Request([tensor("CODE", [b"return " + code.encode()])]))
    assert (done.code, done.error, done.responses) == (1, FAILED + text, [])
    while not prober.events.empty():
        prober.events.get()


def test_exception_texts_are_the_bindings(tmp_path):
    source = (
        "import json\n"
        "class Own(Exception):\n    pass\n"
        "def deep(n):\n    if n:\n        deep(n - 1)\n    raise Own('below')\n"
        "class TritonPythonModel:\n"
        "    def execute(self, requests):\n"
        "        name = requests[0].inputs()[0].as_numpy()[0]\n"
        "        if name == b'own':\n            deep(1)\n"
        "        if name == b'empty':\n            raise ValueError\n"
        "        if name == b'chain':\n"
        "            try:\n                {}['k']\n            except KeyError as error:\n"
        "                raise ValueError('from') from error\n"
        "        raise SystemExit(3)\n"
    )
    with Peer(tmp_path, source) as peer:
        peer.init()
        file = "m/1/model.py"
        for name, text in {
            b"own": f"Own: below\n\nAt:\n  {file}(7): deep\n  {file}(6): deep\n  {file}(12): execute\n",
            b"empty": f"ValueError: <EMPTY MESSAGE>\n\nAt:\n  {file}(14): execute\n",
            b"chain": f"ValueError: from\n\nAt:\n  {file}(19): execute\n",
            b"exit": f"SystemExit: 3\n\nAt:\n  {file}(20): execute\n",
        }.items():
            assert peer.infer(Request([tensor("IN", [name])])).error == FAILED + text
        assert peer.message("log")["level"] == 2


def test_execute_is_missed_only_when_it_is_needed(tmp_path):
    with Peer(tmp_path, "class TritonPythonModel:\n    pass\n") as peer:
        peer.init()
        done = peer.infer(Request([]))
        assert done.error == f"{FAILED}Python model {peer.path} does not implement `execute` method."


def test_outputs_that_nobody_wants_are_left_out(prober):
    code = "return [R([T('OUT', np.zeros(1)), T('OTHER', np.ones(2)), T('UNKNOWN', np.zeros(1))])]"
    assert list(prober.one(tensor("CODE", [code.encode()]), wanted=["OTHER"]).outputs) == ["OTHER", "UNKNOWN"]


def test_errors_and_parameters_of_responses(prober):
    code = b"return [R([T('OUT', np.zeros(1))], pb_utils.TritonError('gone', pb_utils.TritonError.CANCELLED))]"
    response = prober.one(tensor("CODE", [code]))
    assert (response.code, response.error, response.outputs) == (7, "gone", {})
    code = b"return [R([], None, {'i': -5, 'b': True, 's': 'text', 'n': 1 << 40})]"
    assert prober.one(tensor("CODE", [code])).params == {"i": -5, "b": True, "s": "text", "n": 1 << 40}


def test_copies_are_made_of_what_is_not_an_input(prober):
    code = b"return [R([T('OUT', given(r).as_numpy() * 2), T('OTHER', given(r).as_numpy()[1:3001])])]"
    values = np.arange(4000, dtype="f8")
    outputs = prober.one(tensor("CODE", [code]), tensor("IN", values)).outputs
    assert np.array_equal(outputs["OUT"].value, values * 2)
    assert outputs["OUT"].off >= prober.out_off
    assert np.array_equal(outputs["OTHER"].value, values[1:3001])
    assert outputs["OTHER"].off < prober.out_off


def test_large_outputs_and_exhausted_memory(prober):
    output = prober.one(tensor("CODE", [b"return [R([T('OUT', np.ones(1 << 20, 'u1'))])]"])).outputs["OUT"]
    assert output.data == b"\1" * (1 << 20)
    done = prober.infer(Request([tensor("CODE", [b"return [R([T('OUT', np.ones(1 << 24, 'u1'))])]"])]))
    assert done.error.startswith(FAILED + "Failed to increase the shared memory pool size to ")
    # It goes on, however often.
    for _ in range(40):
        prober.one(tensor("CODE", [b"return [R([T('OUT', np.ones(1 << 20, 'u1'))])]"]))


def test_kept_views_keep_their_memory(tmp_path):
    source = HEAD + (
        "class TritonPythonModel:\n"
        "    kept = None\n"
        "    def execute(self, requests):\n"
        "        old = 0 if self.kept is None else int(self.kept.sum())\n"
        "        self.kept = given(requests[0]).as_numpy()[::2].reshape(-1)[1:]\n"
        "        return [R([T('OUT', np.array([old]))])]\n"
        "    def finalize(self):\n        self.kept = None\n"
    )
    with Peer(tmp_path, source) as peer:
        peer.init()
        for index, expected in enumerate((0, 8, 8)):
            assert peer.one(tensor("IN", np.full(10, 2, "i8"))).outputs["OUT"].value.tolist() == [expected]
            assert len(peer.in_use()) == 1, index
        assert peer.finalize()["error"] is None
        assert peer.in_use() == []
        assert peer.outbound_in_use() == 0


def test_no_lease_is_left(tmp_path):
    with Peer(tmp_path, IDENTITY) as peer:
        peer.init()
        for count in range(1, 60):
            peer.infer(*[Request([tensor("IN", np.zeros(count, "f4"))])] * (count % 3 + 1))
        peer.one(tensor("IN", [b"text"]))
        peer.publish(0, 3, arg=0)
        peer.finalize()
        assert peer.in_use() == []
        assert peer.outbound_in_use() == 0


def test_trim_gives_memory_back(prober):
    prober.one(tensor("CODE", [b"return [R([T('OUT', np.ones(1 << 21, 'u1'))])]"]))
    prober.publish(0, 3, arg=0)
    prober.one(tensor("CODE", [b"1"]))
    assert not any(prober.map[prober.out_off + (1 << 20) : prober.out_off + (1 << 21)])


def test_the_client_is_what_was_asked_for(prober, transport):
    code = "type(r).__mro__[-2].__module__"
    assert ("client" in probe(prober, code)) == (transport == "compiled")


def test_a_client_that_does_not_load_is_done_without(tmp_path, monkeypatch):
    broken = tmp_path / "client.so"
    broken.write_bytes(b"\x7fELF of another machine")
    for path in (broken, tmp_path / "none.so"):
        monkeypatch.setattr(worker_peer, "client", str(path))
        with Peer(tmp_path, IDENTITY) as peer:
            peer.init()
            assert peer.one(tensor("IN", np.arange(3))).outputs["OUT"].value.tolist() == [0, 1, 2]
