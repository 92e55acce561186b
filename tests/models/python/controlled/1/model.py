"""State in the object: the sum of all inputs so far."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.total = 0

    def execute(self, requests):
        responses = []
        for request in requests:
            self.total += int(pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()[0])
            made = pb_utils.Tensor("OUT", np.array([self.total], np.int64))
            responses.append(pb_utils.InferenceResponse([made]))
        return responses
