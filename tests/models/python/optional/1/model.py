"""Optional inputs: which came, in which order."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        came = [f"{tensor.name()} {tensor.as_numpy().tolist()}" for tensor in request.inputs()]
        missing = [name for name in "ABC" if pb_utils.get_input_tensor_by_name(request, name) is None]
        made = pb_utils.Tensor("OUT", np.array([*sorted(came), f"without {missing}"], dtype=object))
        return pb_utils.InferenceResponse([made])
