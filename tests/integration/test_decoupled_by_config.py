"""Models whose config says decoupled, in backends that answer each request once: served, as Triton serves them."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import helper

from tests.helpers import raw
from tests.helpers.grpc_channel import Channel, infer_request, value_of
from tests.helpers.server import Model, ServerProcess, repository
from tests.integration.onnx_files import add

DECOUPLED = "model_transaction_policy { decoupled: true }\n"


def test_each_request_is_answered_by_one_final_response(tmp_path: Path) -> None:
    repository(tmp_path, Model("own", dims=(2,), extra=DECOUPLED))
    tensors = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 2]) for name in ("INPUT0", "OUTPUT0")
    ]
    graph = helper.make_graph([helper.make_node("Neg", ["INPUT0"], ["OUTPUT0"])], "g", tensors[:1], tensors[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    add(tmp_path, "neg", model.SerializeToString(), DECOUPLED)
    with ServerProcess(tmp_path) as process, Channel(process.grpc) as channel:
        for name, sign in (("own", 1), ("neg", -1)):
            with channel.talk() as talk:
                for number in range(1, 4):
                    talk.send(infer_request(name, [number, 2.0], id=str(number)))
                talk.end()
                reply = talk.rest()
            assert reply.status == 0
            got = [message.infer_response for message in reply.messages]
            assert {one.id: value_of(one, "OUTPUT0", "FP32") for one in got} == {
                str(number): [sign * number, sign * 2.0] for number in range(1, 4)
            }
            assert len(got) == 3
            with channel.talk() as talk:
                empty = {"triton_enable_empty_final_response": True}
                talk.send(infer_request(name, [1.0, 2.0], parameters=empty))
                talk.end()
                (only,) = talk.rest().messages
            assert only.infer_response.parameters["triton_final_response"].bool_param
            text = "ModelInfer RPC doesn't support models with decoupled transaction policy"
            assert channel.infer(infer_request(name, [1.0, 2.0])).text == text
            # As every decoupled model over HTTP: by generate alone.
            answer = raw.ask(process.http, raw.infer_json(name, [1.0, 2.0]))
            assert (answer.status, "decoupled" in answer.error) == (501, True)
