"""Waits until its request is cancelled, for some seconds at most, and says in a file what it saw."""

import json
import os
import time

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.marker = json.loads(args["model_config"])["parameters"]["marker"]["string_value"]

    def note(self, text):
        if self.marker:
            descriptor = os.open(self.marker, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(descriptor, text.encode() + b"\n")
            os.close(descriptor)

    def execute(self, requests):
        responses = []
        for request in requests:
            value = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
            deadline = time.monotonic() + int(value[0])
            self.note("began")
            while not request.is_cancelled() and time.monotonic() < deadline:
                time.sleep(0.002)
            if request.is_cancelled():
                self.note("cancelled")
                error = pb_utils.TritonError("was cancelled", pb_utils.TritonError.CANCELLED)
                responses.append(pb_utils.InferenceResponse(error=error))
            else:
                self.note("not cancelled")
                responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", value)]))
        return responses
