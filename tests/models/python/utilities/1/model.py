"""The module itself: functions, constants, classes and what they refuse."""

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

    def names(self, request):
        wanted = (
            "InferenceRequest", "InferenceResponse", "Logger", "MetricFamily", "ModelConfig", "PreferredMemory",
            "Tensor", "TritonError", "TritonModelException", "deserialize_bytes_tensor", "serialize_byte_tensor",
            "load_model", "unload_model", "is_model_ready", "get_model_dir",
        )
        return [name for name in wanted if not hasattr(pb_utils, name)]

    def constants(self, request):
        names = ("REQUEST_FLAG_SEQUENCE_START", "REQUEST_FLAG_SEQUENCE_END", "RESPONSE_COMPLETE_FINAL",
                 "REQUEST_RELEASE_ALL", "REQUEST_RELEASE_RESCHEDULE")
        return {name: int(getattr(pb_utils, f"TRITONSERVER_{name}")) for name in names}

    def memory_types(self, request):
        return [str(pb_utils.TRITONSERVER_MEMORY_CPU), str(pb_utils.TRITONSERVER_MEMORY_GPU)]

    def type_names(self, request):
        table = {name: np.dtype(kind).name for name, kind in pb_utils.TRITON_STRING_TO_NUMPY.items()}
        return [table, np.dtype(pb_utils.triton_string_to_numpy("TYPE_FP16")).name,
                failure(pb_utils.triton_string_to_numpy, "TYPE_BF16"), failure(pb_utils.triton_string_to_numpy, "FP32")]

    def type_numbers(self, request):
        return [
            [None if kind is None else np.dtype(kind).name for kind in map(pb_utils.triton_to_numpy_type, range(16))],
            {kind: pb_utils.numpy_to_triton_type(np.dtype(kind).type) for kind in [*"?bBhHiIlLefdOS", "c8", "M8"]},
        ]

    def serialized(self, request):
        arrays = [
            np.array([b"a", b"", b"bcd"], dtype=object), np.array([["h\u00e9", 1]], dtype=object),
            np.array([b"a", b"bc"]), np.array([], dtype=object), np.arange(2),
        ]
        return [[repr(bytes(made)) if isinstance(made, bytes) else repr(made)]
                for made in map(pb_utils.serialize_byte_tensor, arrays)]

    def deserialized(self, request):
        found = pb_utils.deserialize_bytes_tensor(b"\1\0\0\0a\0\0\0\0\2\0\0\0bc")
        return [found.tolist() == [b"a", b"", b"bc"], str(found.dtype), found.shape,
                pb_utils.deserialize_bytes_tensor(b"").tolist()]

    def configs(self, request):
        config = {"input": [{"name": "a"}], "output": [{"name": "b"}], "model_transaction_policy": {"decoupled": True}}
        return [
            pb_utils.get_input_config_by_name(config, "a"), pb_utils.get_input_config_by_name(config, "b"),
            pb_utils.get_output_config_by_name(config, "b"), pb_utils.get_output_config_by_name({}, "b"),
            pb_utils.using_decoupled_model_transaction_policy(config),
            pb_utils.using_decoupled_model_transaction_policy({}),
        ]

    def errors(self, request):
        kinds = ("UNKNOWN", "INTERNAL", "NOT_FOUND", "INVALID_ARG", "UNAVAILABLE", "UNSUPPORTED", "ALREADY_EXISTS",
                 "CANCELLED")
        error = pb_utils.TritonError("text")
        return [
            {kind: int(getattr(pb_utils.TritonError, kind)) for kind in kinds}, int(error.code()), error.message(),
            int(pb_utils.TritonError("x", pb_utils.TritonError.NOT_FOUND).code()),
            isinstance(error, Exception), failure(pb_utils.TritonError), failure(pb_utils.TritonError, 1),
            failure(pb_utils.TritonError, "x", 99), issubclass(pb_utils.TritonModelException, Exception),
        ]

    def responses(self, request):
        tensor = pb_utils.Tensor("OUT", np.array([1, 2], np.int32))
        error = pb_utils.TritonError("e", pb_utils.TritonError.UNSUPPORTED)
        one, other = pb_utils.InferenceResponse([tensor]), pb_utils.InferenceResponse([tensor], error)
        return [
            one.has_error(), one.error() is None, [each.name() for each in one.output_tensors()],
            other.has_error(), other.error().message(), int(other.error().code()), len(other.output_tensors()),
            pb_utils.get_output_tensor_by_name(one, "OUT").as_numpy().tolist(),
            pb_utils.get_output_tensor_by_name(one, "X") is None,
            failure(pb_utils.InferenceResponse, [None]), failure(pb_utils.InferenceResponse, [1]),
            pb_utils.InferenceResponse().has_error(), len(pb_utils.InferenceResponse().output_tensors()),
        ]

    def requests(self, request):
        make = pb_utils.InferenceRequest
        tensor = pb_utils.Tensor("A", np.array([1], np.int32))
        plain = make(inputs=[tensor], requested_output_names=["B"], model_name="m")
        full = make(
            request_id="r", correlation_id=7, inputs=[tensor], requested_output_names=["B", "C"], model_name="m",
            model_version=3, flags=3, timeout=1500,
        )
        named = make(inputs=[tensor], requested_output_names=["B"], model_name="m", correlation_id="text")
        return [
            [one.request_id(), one.correlation_id(), one.flags(), one.timeout(), sorted(one.requested_output_names()),
             [each.name() for each in one.inputs()]]
            for one in (plain, full, named)
        ]

    def request_flags(self, request):
        made = pb_utils.InferenceRequest(inputs=[], requested_output_names=["B"], model_name="m")
        found = [made.flags()]
        made.set_flags(2)
        return [*found, made.flags()]

    def request_parameters(self, request):
        def make(parameters):
            return pb_utils.InferenceRequest(
                inputs=[], requested_output_names=["B"], model_name="m", parameters=parameters
            )

        return [
            make({"b": False, "i": 5, "s": "x"}).parameters(), make({}).parameters(), failure(make, {"f": 1.5}),
            failure(make, {1: "x"}), failure(make, {"l": [1]}), failure(make, {"n": None}),
        ]

    def request_refused(self, request):
        make = pb_utils.InferenceRequest
        return [
            failure(make, inputs=[None], requested_output_names=["B"], model_name="m", request_id="r"),
            failure(make, inputs=[], requested_output_names=[""], model_name="m"),
            failure(make, inputs=[], requested_output_names=["B"], model_name="m", correlation_id=1.5),
            failure(make, inputs=[], requested_output_names=["B"]),
            failure(make, inputs=[], requested_output_names=[], model_name=""),
        ]

    def memory_preferred(self, request):
        made = pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0)
        return [type(made).__name__, type(pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU)).__name__]

    def input_by_name(self, request):
        return [pb_utils.get_input_tensor_by_name(request, "CASE").name(),
                pb_utils.get_input_tensor_by_name(request, "X") is None]

    def model_dir(self, request):
        return pb_utils.get_model_dir()

    def levels(self, request):
        log = pb_utils.Logger
        return [str(level) for level in (log.INFO, log.WARNING, log.ERROR, log.VERBOSE)]

    def logger_refused(self, request):
        return [failure(pb_utils.Logger.log, 1), failure(pb_utils.Logger.log_info)]
