"""Parameters of responses: every kind, and what is refused."""

import numpy as np
import triton_python_backend_utils as pb_utils

GIVEN = {
    "all": {"b": True, "i": -(2**40), "s": "h\u00e9", "zero": 0, "empty": ""},
    "none": {},
    "float": {"f": 1.5},
    "key": {1: "x"},
    "list": {"l": [1]},
    "large": {"i": 2**70},
    "value_none": {"n": None},
}


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        name = pb_utils.get_input_tensor_by_name(request, "CASE").as_numpy()[0].decode()
        text = name
        try:
            made = pb_utils.InferenceResponse(
                [pb_utils.Tensor("OUT", np.array([text], dtype=object))], parameters=GIVEN[name]
            )
            text = made.parameters()
        except TypeError:
            text, made = "TypeError", None
        except Exception as error:
            text, made = f"{type(error).__name__}: {str(error).splitlines()[0]}", None
        tensors = [pb_utils.Tensor("OUT", np.array([text], dtype=object))]
        return pb_utils.InferenceResponse(tensors, **({"parameters": GIVEN[name]} if made else {}))
