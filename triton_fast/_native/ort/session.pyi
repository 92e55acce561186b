"""ONNX Runtime session options and sessions. Source: ext/triton_fast/_native/ort/session.pyx."""

from typing import TypeAlias

# name, DataType number (0: none), ONNX element type number, dims with -1 where variable, names of variable dims ("")
TensorRow: TypeAlias = tuple[str, int, int, tuple[int, ...], tuple[str, ...]]

# ONNX element type number -> DataType number
TYPE_OF: dict[int, int]

def live() -> int:
    """Return how many ORT sessions exist: 0 when every model, instance and lent output is gone."""

class SessionOptions:
    """Options of one session. Each method raises ``Internal`` with ORT's text when ORT refuses."""

    def log(self, name: str, severity: int) -> None:
        """Name the session's log lines and drop those under ``severity`` (0 verbose ... 4 fatal)."""

    def graph_level(self, level: int) -> None:
        """Set the graph optimisation: 0 none, 1 basic, 2 extended, 99 all."""

    def parallel(self, on: bool) -> None:
        """Run independent operators at the same time."""

    def threads(self, intra: int, inter: int) -> None:
        """Set the threads within and across operators; 0 leaves ORT's default."""

    def use_global_pool(self) -> None:
        """Use the environment's thread pool instead of one of the session's own."""

    def mem_arena(self, on: bool) -> None: ...
    def mem_pattern(self, on: bool) -> None: ...
    def entry(self, key: str, value: str) -> None:
        """Set a session config entry, such as ``session.intra_op.allow_spinning``."""

    def custom_ops(self, path: str) -> None:
        """Load a library of custom operators; it runs code of its own."""

    def provider(self, name: str, options: dict[str, str]) -> None:
        """Append an execution provider: ``CUDA``, ``TensorRT`` or a name that ORT's general call takes."""

class Session:
    """An opened model.

    Parameters
    ----------
    path
        The .onnx file. Files of external data are looked for beside it.
    options
        Copied by ORT.

    Attributes
    ----------
    inputs, outputs, initializers
        Tensors in the model's order; initializers are those that a request may override.
    metadata
        The model's custom metadata.

    Raises
    ------
    Internal
        ORT can not open the file; the text is ``onnx runtime error <code>: <message>``.
    Unsupported
        An input or output is no tensor.
    """

    inputs: tuple[TensorRow, ...]
    outputs: tuple[TensorRow, ...]
    initializers: tuple[TensorRow, ...]
    metadata: dict[str, str]
    def __init__(self, path: str, options: SessionOptions) -> None: ...
