"""Writes to a file when it begins and when it ends; the parameter ``finalize`` makes its end raise."""

import json
import os

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        self.marker, self.end = (parameters[key]["string_value"] for key in ("marker", "finalize"))
        self.note("initialized")

    def note(self, text):
        descriptor = os.open(self.marker, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, text.encode() + b"\n")
        os.close(descriptor)

    def execute(self, requests):
        return [
            pb_utils.InferenceResponse([
                pb_utils.Tensor("OUT", pb_utils.get_input_tensor_by_name(request, "CASE").as_numpy())
            ])
            for request in requests
        ]

    def finalize(self):
        self.note("finalized")
        if self.end:
            raise ValueError(self.end)
