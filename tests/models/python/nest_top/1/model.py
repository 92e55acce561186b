"""Depth 1 of three: a plain call of ``nest_middle``; adds 100."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        tensor = pb_utils.get_input_tensor_by_name(request, "IN")
        call = pb_utils.InferenceRequest(model_name="nest_middle", inputs=[tensor], requested_output_names=["OUT"])
        response = call.exec()
        if response.has_error():
            return pb_utils.InferenceResponse(error=response.error())
        value = pb_utils.get_output_tensor_by_name(response, "OUT").as_numpy() + 100
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUT", value.astype(np.int32))])
