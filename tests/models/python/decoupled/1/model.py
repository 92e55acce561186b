"""Decoupled: each way to use and to misuse a response sender, chosen by the input.

What a misuse raises comes back as the next response, so that the client sees the text.
"""

import threading

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
    def none(self, sender, request):
        sender.send(flags=FINAL)

    def one(self, sender, request):
        sender.send(said("a"))
        sender.send(flags=FINAL)

    def with_final(self, sender, request):
        sender.send(said("a"))
        sender.send(said("b"), flags=FINAL)

    def thread(self, sender, request):
        def late():
            sender.send(said("late"))
            sender.send(flags=FINAL)

        threading.Thread(target=late).start()

    def error_then_more(self, sender, request):
        error = pb_utils.TritonError("one failed", pb_utils.TritonError.NOT_FOUND)
        sender.send(pb_utils.InferenceResponse(error=error))
        sender.send(said("b"), flags=FINAL)

    def final_error(self, sender, request):
        error = pb_utils.TritonError("the last failed", pb_utils.TritonError.UNAVAILABLE)
        sender.send(pb_utils.InferenceResponse(error=error), flags=FINAL)

    def after_final(self, sender, request):
        sender.send(said("a"), flags=FINAL)
        self.log(failure(sender.send, said("b")), failure(sender.send, flags=FINAL))

    def wrong_flags(self, sender, request):
        text = failure(sender.send, said("a"), flags=2)
        sender.send(said(text), flags=FINAL)

    def no_response(self, sender, request):
        text = failure(sender.send)
        sender.send(said(text), flags=FINAL)

    def no_response_flags_0(self, sender, request):
        text = failure(sender.send, None, 0)
        sender.send(said(text), flags=FINAL)

    def wrong_type(self, sender, request):
        text = failure(sender.send, 1)
        sender.send(said(text), flags=FINAL)

    def sender_twice(self, sender, request):
        again = request.get_response_sender()
        again.send(said("from the second"), flags=FINAL)

    def cancelled(self, sender, request):
        sender.send(said(f"{request.is_cancelled()} {sender.is_cancelled()}"), flags=FINAL)

    def raises_before(self, sender, request):
        raise ValueError("before any response")

    def raises_after(self, sender, request):
        sender.send(said("a"))
        raise ValueError("after a response")

    def raises_after_final(self, sender, request):
        sender.send(said("a"), flags=FINAL)
        raise ValueError("after the last response")

    def returns_a_list(self, sender, request):
        sender.send(flags=FINAL)
        return [said("x")]

    def returns_early(self, sender, request):
        return [said("x")]

    def many(self, sender, request):
        for i in range(100):
            sender.send(said(str(i)))
        sender.send(flags=FINAL)

    def wrong_name(self, sender, request):
        made = pb_utils.InferenceResponse([pb_utils.Tensor("NOBODY", np.array([1], np.int32))])
        sender.send(made, flags=FINAL)

    def empty_response(self, sender, request):
        sender.send(pb_utils.InferenceResponse([]))
        sender.send(flags=FINAL)

    def log(self, *texts):
        for text in texts:
            pb_utils.Logger.log_info(f"case: {text}")


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            name = pb_utils.get_input_tensor_by_name(request, "CASE").as_numpy()[0].decode()
            result = getattr(Case(), name)(request.get_response_sender(), request)
            if result is not None:
                return result
        return None
