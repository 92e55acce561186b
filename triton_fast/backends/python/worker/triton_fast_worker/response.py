"""``InferenceResponse`` and what sends it."""

from __future__ import annotations

from typing import Any, Optional

from triton_fast_worker import params
from triton_fast_worker.errors import TritonError, TritonModelException
from triton_fast_worker.runtime import Origin
from triton_fast_worker.tensor import Tensor

FINAL = 1


class InferenceResponse:
    """Output tensors, or an error.

    Parameters
    ----------
    output_tensors : list of Tensor
    error : TritonError, optional
        With it the tensors are ignored.
    parameters : dict of str to bool, int or str, optional
    """

    __slots__ = ("_error", "_parameters", "_tensors")

    def __init__(
        self,
        output_tensors: Any = (),
        error: Optional[TritonError] = None,
        parameters: Optional[dict[str, Any]] = None,
    ) -> None:
        tensors = list(output_tensors)
        for tensor in tensors:
            if tensor is None:
                raise TritonModelException("Output tensor for inference response should not be empty.")
            if not isinstance(tensor, Tensor):
                raise TypeError(f"output_tensors must be a list of Tensor objects, found type {type(tensor)}")
        self._tensors = tensors
        self._error = error
        self._parameters: Any = parameters if parameters is None else params.check(parameters)

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> Optional[TritonError]:
        return self._error

    def parameters(self) -> str:
        """Return the parameters as JSON text."""
        return params.as_text(self._parameters)


class InferenceResponseSender:
    """Sends the responses of one request, from any thread."""

    __slots__ = ("_origin",)

    def __init__(self, origin: Origin) -> None:
        self._origin = origin

    def send(self, response: Optional[InferenceResponse] = None, flags: int = 0) -> None:
        """Send a response, with the flag TRITONSERVER_RESPONSE_COMPLETE_FINAL (1) the last one, or only that flag.

        Raises TritonModelException when the flags are unknown or the request has had what it may have.
        """
        origin = self._origin
        if flags not in (0, FINAL):
            raise TritonModelException("Unable to send response. Unsupported flag provided.")
        if response is None and flags == 0:
            raise TritonModelException(
                "Inference Response object must be provided when the response flags is set to zero."
            )
        if origin.closed:
            raise TritonModelException("Unable to send response. Response sender has been closed.")
        if not origin.decoupled:
            if response is not None and origin.answered:
                raise TritonModelException(
                    "Unable to send response. Non-decoupled model cannot send more than one response."
                )
            if response is None and not origin.answered:
                raise TritonModelException(
                    "Unable to send response. Non-decoupled model cannot send complete final before sending a response."
                )
        final = flags == FINAL
        if response is not None:
            origin.answered = True
        if final:
            origin.closed = True
        if response is not None or origin.decoupled:
            origin.send(response, final)

    def is_cancelled(self) -> bool:
        return self._origin.cancelled()
