"""Loads and unloads other models."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


def failure(function, *arguments, **named):
    try:
        function(*arguments, **named)
    except TypeError:
        return "TypeError"  # the words are those of whatever checks the arguments
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return "nothing was raised"

class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        name = pb_utils.get_input_tensor_by_name(request, "CASE").as_numpy()[0].decode()
        text = json.dumps(getattr(self, name)(request))
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([text], dtype=object))])

    def ready(self, request):
        ask = pb_utils.is_model_ready
        return [ask("counter"), ask(model_name="counter"), ask("counter", "1"), ask("counter", "9"), ask("nobody")]

    def bad_version(self, request):
        return failure(pb_utils.is_model_ready, "counter", "x")

    def cycle(self, request):
        ready, found = pb_utils.is_model_ready, []
        pb_utils.load_model(model_name="controlled")
        found.append(ready("controlled"))
        pb_utils.unload_model("controlled")
        return [*found, ready("controlled")]

    def with_config(self, request):
        config = json.dumps({
            "backend": "python", "max_batch_size": 4, "input": [{"name": "IN", "data_type": "TYPE_INT64", "dims": [1]}],
            "output": [{"name": "OUT", "data_type": "TYPE_INT64", "dims": [1]}],
        })
        pb_utils.load_model(model_name="controlled", config=config)
        found = pb_utils.is_model_ready("controlled")
        pb_utils.unload_model("controlled", False)
        return found

    def unknown(self, request):
        return failure(pb_utils.load_model, "nobody")

    def unload_unknown(self, request):
        return failure(pb_utils.unload_model, "nobody")

    def bad_config(self, request):
        return failure(pb_utils.load_model, "controlled", "{")

    def files_without_config(self, request):
        return failure(pb_utils.load_model, "controlled", files={"file:1/model.py": b"x"})

    def files_wrong(self, request):
        return failure(pb_utils.load_model, "controlled", "{}", [1])

    def broken(self, request):
        return failure(pb_utils.load_model, "broken_here")
