"""Depth 3 of three: decoupled, calls ``coroutine`` by an iterator and sends its value three times."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            tensor = pb_utils.get_input_tensor_by_name(request, "IN")
            call = pb_utils.InferenceRequest(model_name="coroutine", inputs=[tensor], requested_output_names=["OUT"])
            for response in call.exec(decoupled=True):
                for made in response.output_tensors():
                    for _ in range(3):
                        sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", made.as_numpy())]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
