"""Writes into a copy-free view where it may, and keeps every view of earlier executions, to see that they stay."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.kept = []

    def execute(self, requests):
        same = all(np.array_equal(view, copy) for view, copy in self.kept)
        responses = []
        for request in requests:
            view = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
            before = view.copy()
            if view.flags.writeable and view.size and view.flat[0] < 0:
                view[...] = -view
            self.kept.append((view, view.copy()))
            flags = np.array([[same, bool(view.flags.writeable)]] * len(view))
            responses.append(pb_utils.InferenceResponse([
                pb_utils.Tensor("OUT", before), pb_utils.Tensor("SAME", flags)
            ]))
        del self.kept[:-64]
        return responses
