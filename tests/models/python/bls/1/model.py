"""Calls of other models, one after another, and what a wrong call answers."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


def tensor(name, values, kind=np.int32):
    return pb_utils.Tensor(name, np.array(values, kind))


def asked(model, tensors, outputs=("OUT",), **more):
    return pb_utils.InferenceRequest(model_name=model, inputs=tensors, requested_output_names=list(outputs), **more)


def told(response):
    """An inference response as JSON."""
    if response.has_error():
        return {"error": response.error().message()}
    return {one.name(): plain(one.as_numpy().tolist()) for one in response.output_tensors()}


def plain(value):
    if isinstance(value, list):
        return [plain(one) for one in value]
    return value.decode() if isinstance(value, bytes) else value

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

    def sync(self, request):
        call = asked("add_sub_int32", [tensor("INPUT0", [[3, 4]]), tensor("INPUT1", [[1, 9]])], ("OUTPUT0", "OUTPUT1"))
        return told(call.exec())

    def one_output(self, request):
        call = asked("add_sub_int32", [tensor("INPUT0", [[3]]), tensor("INPUT1", [[1]])], ("OUTPUT1",))
        return told(call.exec())

    def no_output(self, request):
        call = asked("add_sub_int32", [tensor("INPUT0", [[3]]), tensor("INPUT1", [[1]])], ())
        return told(call.exec())

    def unknown_output(self, request):
        call = asked("add_sub_int32", [tensor("INPUT0", [[3]]), tensor("INPUT1", [[1]])], ("NOBODY",))
        return told(call.exec())

    def texts(self, request):
        inputs = [tensor("INPUT0", [["1", "20"]], object), tensor("INPUT1", [["2", "h\u00e9"]], object)]
        inputs[1] = tensor("INPUT1", [["2", "5"]], object)
        return told(asked("strings", inputs, ("SUM", "JOINED")).exec())

    def own_input(self, request):
        """The tensor of the request itself is passed on."""
        return told(asked("forward", [pb_utils.get_input_tensor_by_name(request, "CASE")]).exec())

    def unknown_model(self, request):
        return told(asked("nobody", [tensor("IN", [1])]).exec())

    def unknown_version(self, request):
        return told(asked("counter", [tensor("IN", [0], np.int64)], model_version=9).exec())

    def version(self, request):
        return "OUT" in told(asked("counter", [tensor("IN", [0], np.int64)], model_version=1).exec())

    def wrong_input_name(self, request):
        return told(asked("counter", [tensor("X", [0], np.int64)]).exec())

    def wrong_input_type(self, request):
        return told(asked("counter", [tensor("IN", [0], np.int32)]).exec())

    def wrong_input_shape(self, request):
        return told(asked("counter", [tensor("IN", [0, 1], np.int64)]).exec())

    def missing_input(self, request):
        return told(asked("add_sub_int32", [tensor("INPUT0", [[3]])], ("OUTPUT0",)).exec())

    def no_inputs(self, request):
        return told(asked("counter", []).exec())

    def failing_model(self, request):
        return told(asked("errors", [tensor("CASE", ["error_response"], object)]).exec())

    def failing_model_code(self, request):
        return int(asked("errors", [tensor("CASE", ["code_NOT_FOUND"], object)]).exec().error().code())

    def raising_model(self, request):
        return told(asked("errors", [tensor("CASE", ["raises"], object)]).exec())

    def decoupled_without(self, request):
        return failure(asked("square", [tensor("IN", [2])]).exec)

    def decoupled(self, request):
        return [told(one) for one in asked("square", [tensor("IN", [3])]).exec(decoupled=True)]

    def decoupled_empty(self, request):
        return [told(one) for one in asked("square", [tensor("IN", [0])]).exec(decoupled=True)]

    def decoupled_again(self, request):
        responses = asked("square", [tensor("IN", [2])]).exec(decoupled=True)
        return [[told(one) for one in responses] for _ in range(2)]

    def decoupled_of_plain(self, request):
        return [told(one) for one in asked("coroutine", [tensor("IN", [4])]).exec(decoupled=True)]

    def decoupled_error(self, request):
        call = asked("decoupled", [tensor("CASE", ["error_then_more"], object)])
        return [told(one) for one in call.exec(decoupled=True)]

    def decoupled_unknown(self, request):
        return failure(lambda: [told(one) for one in asked("nobody", [tensor("IN", [2])]).exec(decoupled=True)])

    def decoupled_wrong_input(self, request):
        return [told(one) for one in asked("square", [tensor("X", [2])]).exec(decoupled=True)]

    def decoupled_type(self, request):
        responses = asked("square", [tensor("IN", [1])]).exec(decoupled=True)
        found = [type(responses).__name__, hasattr(responses, "__iter__"), hasattr(responses, "__next__")]
        return [*found, [told(one) for one in responses]]

    def echo(self, request):
        call = asked("echo", [tensor("IN", [5])], ("SEEN",), request_id="inner", correlation_id=42, flags=3,
                     timeout=2000000)
        return json.loads(told(call.exec())["SEEN"][0])

    def echo_text_correlation(self, request):
        call = asked("echo", [tensor("IN", [5])], ("SEEN",), correlation_id="sequence")
        return json.loads(told(call.exec())["SEEN"][0])["correlation"]

    def echo_parameters(self, request):
        call = asked("echo", [tensor("IN", [5])], ("SEEN",), parameters={"b": True, "i": 7, "s": "x"})
        return json.loads(told(call.exec())["SEEN"][0])["parameters"]

    def flags_set(self, request):
        call = asked("echo", [tensor("IN", [5])], ("SEEN",))
        call.set_flags(1)
        return json.loads(told(call.exec())["SEEN"][0])["flags"]

    def memory(self, request):
        call = asked("coroutine", [tensor("IN", [4])],
                     preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0))
        response = call.exec()
        return [told(response), response.output_tensors()[0].is_cpu()]

    def trace(self, request):
        return told(asked("coroutine", [tensor("IN", [4])], trace=request.trace()).exec())

    def twice(self, request):
        call = asked("coroutine", [tensor("IN", [4])])
        return [told(call.exec()), told(call.exec())]

    def kept(self, request):
        """The responses of earlier calls stay what they were."""
        made = [asked("coroutine", [tensor("IN", [i])]).exec() for i in range(50)]
        return [pb_utils.get_output_tensor_by_name(one, "OUT").as_numpy().tolist() for one in made] == [
            [i + 1] for i in range(50)
        ]

    def large(self, request):
        values = np.arange(2 * 1024 * 1024, dtype=np.float32)[None, :]
        response = asked("identity", [pb_utils.Tensor("INPUT0", values)], ("OUTPUT0",)).exec()
        return bool(np.array_equal(response.output_tensors()[0].as_numpy(), values))

    def async_without_loop(self, request):
        call = asked("coroutine", [tensor("IN", [4])])
        return failure(lambda: type(call.async_exec()).__name__)
