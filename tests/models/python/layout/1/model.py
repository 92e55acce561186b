"""What a model module sees of its surroundings: names, paths, the arguments of ``initialize``."""

import json
import os
import sys

import numpy as np
import sibling
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.args = args

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        name = pb_utils.get_input_tensor_by_name(request, "CASE").as_numpy()[0].decode()
        text = json.dumps(getattr(self, name)(), sort_keys=True)
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([text], dtype=object))])

    def arguments(self):
        return {key: [type(value).__name__, "" if key == "model_config" else value] for key, value in self.args.items()}

    def config(self):
        return json.loads(self.args["model_config"])

    def module(self):
        here = os.path.dirname(os.path.abspath(__file__))
        # Absolute, whatever the directory that the server was started in.
        found = {os.path.abspath(path) for path in sys.path}
        return {
            "name": __name__,
            "file": __file__,
            "sibling": sibling.VALUE,
            "sibling's file": sibling.__file__,
            "model_dir": pb_utils.get_model_dir(),
            "version directory in sys.path": here in found,
            "model directory in sys.path": os.path.dirname(here) in found,
            "in sys.modules": __name__ in sys.modules,
        }

    def process(self):
        return {"argv": len(sys.argv) > 0, "main": "__main__" in sys.modules, "stdin": sys.stdin is not None}
