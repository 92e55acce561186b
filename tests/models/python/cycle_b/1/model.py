"""Calls ``cycle_a``, which calls ``cycle_b``: with one instance each, a call that nobody can ever serve."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        tensor = pb_utils.get_input_tensor_by_name(request, "IN")
        if int(tensor.as_numpy()[0]) == 0:
            return pb_utils.InferenceResponse([pb_utils.Tensor("OUT", tensor.as_numpy())])
        call = pb_utils.InferenceRequest(model_name="cycle_a", inputs=[tensor], requested_output_names=["OUT"])
        response = call.exec()
        if response.has_error():
            return pb_utils.InferenceResponse(error=response.error())
        return pb_utils.InferenceResponse(response.output_tensors())
