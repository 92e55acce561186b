"""OpenVINO models: read, reshaped, compiled. Source: ext/triton_fast/_native/openvino/model.pyx."""

from typing import TypeAlias

from triton_fast._native.openvino.capi import Core

# name ("": none), DataType number (0: none), element type number, dims with -1 where variable (None: any number)
TensorRow: TypeAlias = tuple[str, int, int, tuple[int, ...] | None]

def live() -> int:
    """Return how many compiled models exist: 0 when every model and instance is gone."""

class Compiled:
    """A model that a device runs. Made by ``Model.compile``."""

    def property(self, key: str) -> str:
        """Return a property as OpenVINO prints it, such as ``NUM_STREAMS``."""

class Model:
    """A model as its file says it.

    Every method raises ``Internal`` with the text ``openvino error in <what> : <reason>`` when OpenVINO refuses.

    Parameters
    ----------
    path
        Of any form that the installed OpenVINO reads: IR (.xml, the .bin beside it), ONNX, TensorFlow, ...
    """

    def __init__(self, core: Core, path: str) -> None: ...
    def inputs(self) -> tuple[TensorRow, ...]: ...
    def outputs(self) -> tuple[TensorRow, ...]: ...
    def reshape(self, shapes: list[tuple[int, tuple[int, ...]]]) -> None:
        """Give inputs, by position, new shapes; -1 is any size. Nothing has changed when it raises."""

    def compile(self, device: str, properties: list[tuple[str, str]]) -> Compiled:
        """Return the model as ``device`` runs it."""
