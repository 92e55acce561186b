"""Each way in which ``execute`` can fail or return what it may not, chosen by the input."""

import numpy as np
import triton_python_backend_utils as pb_utils


def said(text):
    return pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([text], dtype=object))])


class Own(Exception):
    def __str__(self):
        return "own text"


class Case:
    def fine(self, requests):
        return [said("fine") for _ in requests]

    def raises(self, requests):
        raise ValueError("a reason")

    def raises_empty(self, requests):
        raise ValueError

    def raises_deep(self, requests):
        def inner():
            return {}["missing"]

        return inner()

    def raises_chained(self, requests):
        try:
            return 1 / 0
        except ZeroDivisionError as error:
            raise RuntimeError("outer") from error

    def raises_own(self, requests):
        raise Own

    def raises_lines(self, requests):
        raise ValueError('two\nlines and "quotes" \u00e9')

    def raises_model_exception(self, requests):
        raise pb_utils.TritonModelException("a model exception")

    def raises_in_library(self, requests):
        return np.zeros(3).reshape(2, 2)

    def keyboard_interrupt(self, requests):
        raise KeyboardInterrupt("stop")

    def recursion(self, requests):
        return self.recursion(requests)

    def returns_none(self, requests):
        return None

    def returns_dict(self, requests):
        return {}

    def returns_tuple(self, requests):
        return tuple(said("x") for _ in requests)

    def returns_response(self, requests):
        return said("x")

    def returns_generator(self, requests):
        return (said("x") for _ in requests)

    def too_few(self, requests):
        return []

    def too_many(self, requests):
        return [said("x") for _ in [*requests, 1]]

    def wrong_element(self, requests):
        return [1 for _ in requests]

    def wrong_element_tensor(self, requests):
        return [pb_utils.Tensor("OUT", np.array(["x"], dtype=object)) for _ in requests]

    def none_element(self, requests):
        return [None for _ in requests]

    def error_response(self, requests):
        return [pb_utils.InferenceResponse(error=pb_utils.TritonError("an error")) for _ in requests]

    def error_with_tensors(self, requests):
        tensor = pb_utils.Tensor("OUT", np.array(["x"], dtype=object))
        return [pb_utils.InferenceResponse([tensor], pb_utils.TritonError("ignores tensors")) for _ in requests]

    def error_empty(self, requests):
        return [pb_utils.InferenceResponse(error=pb_utils.TritonError("")) for _ in requests]

    def error_lines(self, requests):
        text = 'two\nlines "quoted" \u00e9 ' + "x" * 5000
        return [pb_utils.InferenceResponse(error=pb_utils.TritonError(text)) for _ in requests]

    def error_is_text(self, requests):
        return [pb_utils.InferenceResponse(error="text") for _ in requests]

    def wrong_name(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("NOBODY", np.array([1], np.int32))]) for _ in requests]

    def extra_output(self, requests):
        return [
            pb_utils.InferenceResponse([
                pb_utils.Tensor("OUT", np.array(["x"], dtype=object)), pb_utils.Tensor("EXTRA", np.array([1], np.int32))
            ])
            for _ in requests
        ]

    def output_twice(self, requests):
        tensors = [pb_utils.Tensor("OUT", np.array([text], dtype=object)) for text in "ab"]
        return [pb_utils.InferenceResponse(tensors) for _ in requests]

    def no_outputs(self, requests):
        return [pb_utils.InferenceResponse([]) for _ in requests]

    def missing_output(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("NUMBER", np.array([1, 2], np.int32))]) for _ in requests]

    def wrong_datatype(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([1], np.int32))]) for _ in requests]

    def wrong_shape(self, requests):
        tensor = pb_utils.Tensor("NUMBER", np.array([1, 2, 3], np.int32))
        return [pb_utils.InferenceResponse([tensor]) for _ in requests]

    def wrong_rank(self, requests):
        tensor = pb_utils.Tensor("NUMBER", np.array([[1, 2]], np.int32))
        return [pb_utils.InferenceResponse([tensor]) for _ in requests]

    def none_tensor(self, requests):
        return [pb_utils.InferenceResponse([None]) for _ in requests]

    def tensors_not_a_list(self, requests):
        return [pb_utils.InferenceResponse(pb_utils.Tensor("OUT", np.array(["x"], dtype=object))) for _ in requests]

    def reschedule(self, requests):
        for request in requests:
            request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
        return [None for _ in requests]

    def reschedule_with_response(self, requests):
        for request in requests:
            request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
        return [said("x") for _ in requests]

    def bad_release_flags(self, requests):
        for request in requests:
            request.set_release_flags(7)
        return [said("x") for _ in requests]

    def no_input(self, requests):
        return [pb_utils.get_input_tensor_by_name(request, "NOBODY").as_numpy() for request in requests]


class TritonPythonModel:
    def execute(self, requests):
        name = pb_utils.get_input_tensor_by_name(requests[0], "CASE").as_numpy()[0].decode()
        if name.startswith("code_"):
            error = pb_utils.TritonError(f"with {name[5:]}", getattr(pb_utils.TritonError, name[5:]))
            return [pb_utils.InferenceResponse(error=error) for _ in requests]
        return getattr(Case(), name)(requests)
