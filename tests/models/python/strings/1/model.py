"""Texts: decimal numbers are added, and both inputs are joined; outputs from object, bytes and str arrays."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        a, b = (pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("INPUT0", "INPUT1"))
        added = np.array([str(int(x) + int(y)) for x, y in zip(a.flat, b.flat, strict=True)]).reshape(a.shape)
        joined = np.array([x + b"|" + y for x, y in zip(a.flat, b.flat, strict=True)], dtype=object).reshape(a.shape)
        made = [pb_utils.Tensor("SUM", added.astype(object)), pb_utils.Tensor("JOINED", joined)]
        return pb_utils.InferenceResponse(made)
