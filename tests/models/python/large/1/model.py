"""Outputs of any size: N texts, N floats, a matrix of shape [N, 0] or [0, N]."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        n = int(pb_utils.get_input_tensor_by_name(request, "N").as_numpy()[0])
        wanted, made = request.requested_output_names(), []
        if "TEXTS" in wanted:
            made.append(pb_utils.Tensor("TEXTS", np.array([b"%d" % i for i in range(n)], dtype=object)))
        if "FLOATS" in wanted:
            made.append(pb_utils.Tensor("FLOATS", np.arange(n, dtype=np.float32)))
        if "SHAPED" in wanted:
            made.append(pb_utils.Tensor("SHAPED", np.zeros((n, 0), np.int8)))
        return pb_utils.InferenceResponse(made)
