"""InferenceResponse and the parameters of requests and responses."""

from __future__ import annotations

from typing import Any

from .cores import ResponseCore
from .errors import BINDING, TritonError, TritonModelException, incompatible
from .pure_cores import parameters_text
from .tensor import Tensor

_SIGNATURE = (
    f"{BINDING}.InferenceResponse(output_tensors: List[{BINDING}.Tensor] = [], error: {BINDING}.TritonError = None, "
    "parameters: object = None)"
)


def checked_parameters(parameters: Any) -> dict[str, Any] | None:
    """A copy of the dictionary, None for none; only bool, int and str may be its values."""
    if parameters is None:
        return None
    if not isinstance(parameters, dict):
        # The binding names its own dictionary type as the compiler does.
        raise TritonModelException(f"Expect N8pybind114dictE, got {type(parameters)}")
    for key, value in parameters.items():
        if not isinstance(key, str):
            raise TritonModelException(f"Expect parameters keys to have type str, found type {type(key)}")
        if not isinstance(value, (bool, int, str)):
            raise TritonModelException(
                f"Expect parameters values to have type bool/int/str, found type {type(value)}"
            )
        if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
            raise TritonModelException(f"Parameter '{key}' is not within 64 bits")
    return dict(parameters)


def tensor_list(given: Any) -> list[Any] | None:
    """The list of a sequence of tensors, None members included; None when it is not one."""
    if isinstance(given, (str, bytes, dict, set)):
        return None
    try:
        tensors = list(given)
    except TypeError:
        return None
    return tensors if all(isinstance(one, Tensor) or one is None for one in tensors) else None


class InferenceResponse(ResponseCore):
    """Outputs, or an error, and parameters."""

    __module__ = BINDING
    # _last: for responses of BLS requests, whether another one follows.
    __slots__ = ("__weakref__", "_last")

    def _construct(self, output_tensors: Any, error: Any, parameters: Any) -> None:
        outputs: list[Any] | None = tensor_list(output_tensors)
        if outputs is None or not (error is None or isinstance(error, TritonError)):
            given = {"error": error} if error is not None else {}
            raise incompatible("__init__", _SIGNATURE, *([output_tensors] if output_tensors != () else []), **given)
        params = None if parameters is None else checked_parameters(parameters)
        if None in outputs:
            raise TritonModelException("Output tensor for inference response should not be empty.")
        self._set(outputs, error, params, parameters_text(params))
        self._last = True

    @staticmethod
    def received(outputs: list[Tensor], error: TritonError | None, parameters: str, last: bool) -> InferenceResponse:
        """A response of a BLS request, for transports in Python; ``parameters`` is JSON text, "" for none."""
        self = InferenceResponse.__new__(InferenceResponse)
        self._set(outputs, error, None, parameters)
        self._parameters = parameters or None
        self._last = last
        return self


class NoResponse:
    """What an execution has for a request instead of a response."""

    __slots__ = ()


# Its sender has answered it or will; it was released to come again.
BY_SENDER, REQUEUED = NoResponse(), NoResponse()
