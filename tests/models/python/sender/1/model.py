"""Not decoupled: response senders, used once and misused, chosen by the input."""

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


def said(text):
    return pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([text], dtype=object))])


def failure(function, *arguments, **named):
    try:
        function(*arguments, **named)
    except TypeError:
        return "TypeError"  # the words are those of whatever checks the arguments
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


class Case:
    def with_final(self, sender):
        sender.send(said("a"), flags=FINAL)

    def final_later(self, sender):
        sender.send(said("a"))
        sender.send(flags=FINAL)

    def no_final(self, sender):
        sender.send(said("a"))

    def final_first(self, sender):
        text = failure(sender.send, flags=FINAL)
        sender.send(said(text), flags=FINAL)

    def second(self, sender):
        sender.send(said("a"))
        pb_utils.Logger.log_info(f"case: {failure(sender.send, said('b'))}")
        sender.send(flags=FINAL)

    def after_final(self, sender):
        sender.send(said("a"), flags=FINAL)
        pb_utils.Logger.log_info(f"case: {failure(sender.send, said('b'))}")

    def error(self, sender):
        error = pb_utils.TritonError("sent", pb_utils.TritonError.NOT_FOUND)
        sender.send(pb_utils.InferenceResponse(error=error), flags=FINAL)

    def nothing(self, sender):
        pass

    def also_returned(self, sender):
        sender.send(said("sent"), flags=FINAL)
        return said("returned")

    def returned(self, sender):
        return said("returned")

    def raises_after(self, sender):
        sender.send(said("a"), flags=FINAL)
        raise ValueError("after the response")


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        name = pb_utils.get_input_tensor_by_name(request, "CASE").as_numpy()[0].decode()
        return getattr(Case(), name)(request.get_response_sender())
