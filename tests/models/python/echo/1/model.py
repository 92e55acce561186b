"""What a request knows of itself, as JSON."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        tensor = pb_utils.get_input_tensor_by_name(request, "IN")
        parameters = json.loads(request.parameters())
        seen = {
            "id": request.request_id(),
            "correlation": [type(request.correlation_id()).__name__, request.correlation_id()],
            "flags": request.flags(),
            "timeout": request.timeout(),
            "parameters": {key: [type(value).__name__, value] for key, value in sorted(parameters.items())},
            "wanted": sorted(request.requested_output_names()),
            "trace": repr(request.trace().get_context()),
            "cancelled": request.is_cancelled(),
            "inputs": [[one.name(), list(one.shape()), one.is_cpu()] for one in request.inputs()],
            "type": type(request).__name__,
        }
        return pb_utils.InferenceResponse([
            pb_utils.Tensor("OUT", tensor.as_numpy()),
            pb_utils.Tensor("SEEN", np.array([json.dumps(seen)], dtype=object)),
        ])
