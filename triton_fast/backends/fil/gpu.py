"""A forest on a GPU, and the function of an instance there: rows go up, scores come down, classes are made on the CPU.

The library holds the GIL while the GPU runs a forest; copies and waits are the server's own and do without.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from triton_fast._native.arrays.pyarrays import DeviceView, room
from triton_fast._native.cuda import device_pool
from triton_fast._native.cuda.copies import Stream
from triton_fast._native.cuda.device_pool import DeviceMemory
from triton_fast._native.fil.forest import Forest
from triton_fast._native.fil.instance import predict, reduce
from triton_fast.backends.array_values import numpy
from triton_fast.backends.fil import gpu_library
from triton_fast.backends.fil.settings import GpuSettings
from triton_fast.errors import Code, Internal, InvalidArg, ServerError, Unavailable, make
from triton_fast.observability import log
from triton_fast.types import DataType

if TYPE_CHECKING:
    from triton_fast._native.arrays.pyarrays import Input, Output
    from triton_fast._native.core.view import BlockView

    # An array of FP32, and what keeps its memory.
    Scores = tuple[Any, Any]

_ITEM = 4
# What a forest is tried on when it is opened.
_TRIAL_ROWS = 16
_TRIAL_VALUES = 1 << 20


class Rows:
    """Rows in a GPU's memory, as the CUDA array interface tells of them."""

    def __init__(self, address: int, rows: int, features: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (rows, features), "typestr": "<f4", "data": (address, False), "strides": None, "version": 3,
        }  # fmt: skip


class GpuForest:
    """A forest on one device, shared by the instances there. Raises Internal or InvalidArg where it can not be."""

    def __init__(self, model: str, forest: Forest, device: int, settings: GpuSettings) -> None:
        self.device = device
        self.features = forest.features
        self.width = forest.width
        self._library = library = gpu_library.library()
        prefix = f"unable to load model '{model}', {library.name} can not run this forest on GPU {device}"
        try:
            self._opened = library.open(forest.serialize(), device, settings.layout, settings.chunk)
            # Instances work on streams of their own threads, which do not wait for that of this one.
            library.settle(device)
            if self._opened.width != forest.width:
                raise InvalidArg(f"it makes {self._opened.width} values of a row, on the CPU they are {forest.width}")
            self._try(forest)
            return
        except ServerError as error:
            code, text = error.code, error.message
        except Exception as error:  # the library raises what it likes
            code, text = Code.INTERNAL, gpu_library.short(error)
        # Here, where no traceback holds any of it: what the library caches goes back as well.
        self.__dict__.pop("_opened", None)
        library.clean(device)
        raise make(code, f"{prefix}: {text}")

    def _try(self, forest: Forest) -> None:
        """Compare both on a few rows: the library knows fewer kinds of forests, and does not refuse all others.

        Whole numbers from 0, which are categories too, and a row of missing values.
        """
        np = numpy()
        count = min(_TRIAL_ROWS, _TRIAL_VALUES // self.features)
        if not count:
            return
        rows = np.arange(count * self.features, dtype=np.float32).reshape(count, self.features)
        rows = (rows * 7 + rows // self.features) % 31
        rows[-1] = np.nan
        expected = np.frombuffer(predict(forest, rows), np.float32)
        found, _ = self.scores(Stream(self.device), [memoryview(rows).cast("B")], count)
        # The order of summing is each one's own; trees of another class, or another function at the end, are far off.
        largest = float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0))
        if not np.allclose(found, expected, rtol=0, atol=1e-5 + 0.02 * largest, equal_nan=True):
            raise InvalidArg("its results differ from those on the CPU")

    def scores(self, stream: Stream, pieces: Sequence[Any], rows: int) -> Scores:
        """Return the scores of rows that lie on the host or the device. Raises what the library raises."""
        library, size = self._library, rows * self.features * _ITEM
        only = pieces[0] if len(pieces) == 1 else None
        memory = None
        try:
            with library.on(self.device):
                # A client may have laid it anywhere; kernels read whole elements.
                if isinstance(only, DeviceView) and only.device == self.device and only.address % _ITEM == 0:
                    address = only.address
                else:
                    memory = DeviceMemory(self.device, size)
                    address = memory.address
                    self._gather(stream, pieces, address)
                    # It works on a stream of its own.
                    stream.wait()
                made = self._opened.scores(library.cupy.asarray(Rows(address, rows, self.features)))
                return self._take(stream, made, rows)
        except BaseException:
            library.settle(self.device)
            raise

    def _gather(self, stream: Stream, pieces: Sequence[Any], address: int) -> None:
        for piece in pieces:
            if not isinstance(piece, DeviceView):
                stream.copy_in(address, piece)
            elif piece.device == self.device:
                stream.copy_device(address, piece.address, len(piece))
            else:
                stream.copy_peer(address, self.device, piece.address, piece.device, len(piece))
            address += len(piece)

    def _take(self, stream: Stream, made: Any, rows: int) -> Scores:
        np = numpy()
        told = made.__cuda_array_interface__
        kind = np.dtype(told["typestr"])
        shape, strides = tuple(told["shape"]), told.get("strides")
        if math.prod(shape) != rows * self.width or kind.kind != "f" or (strides and not made.flags.c_contiguous):
            raise Internal(f"{self._library.name} gave {list(shape)} of {kind} for {rows} rows")
        view = room(rows * self.width * kind.itemsize)
        stream.copy_out(view, told["data"][0])
        stream.wait()
        found = np.frombuffer(view, kind)
        if kind == np.float32:
            return found, view
        # A forest of 64-bit thresholds, whose scores are FP32 on the CPU too.
        view = room(rows * self.width * _ITEM)
        array = np.frombuffer(view, np.float32)
        with np.errstate(over="ignore"):
            np.copyto(array, found, casting="same_kind")
        return array, view

    def clean(self) -> None:
        """Give memory that is kept for the next call back to the device."""
        self._library.clean(self.device)

    def close(self) -> None:
        """Let go of the forest; no instance may use it any more."""
        with suppress(Exception), self._library.on(self.device):
            del self._opened
        self.clean()

    def ask(self, stream: Stream) -> None:
        """Ask the driver how the device is, after an error: what is lost then shows in ``gpu_library.lost``."""
        try:
            stream.wait()
        except ServerError as error:
            log.verbose(1, f"GPU {self.device}: {error.message}")


@dataclass(frozen=True)
class Shape:
    """What becomes of scores: class numbers, of one probability two, or neither; ``dims`` without the batch's.

    ``width``: values of a row.
    """

    classes: bool
    pair: bool
    threshold: float
    dims: Sequence[int]
    width: int
    batched: bool

    def of(self, rows: int) -> tuple[int, ...]:
        """Return the shape of so many rows. Raises InvalidArg where that of the config can not hold them."""
        dims = tuple(rows if dim < 0 else dim for dim in self.dims)
        made = (rows, *dims) if self.batched else dims
        if math.prod(made) != rows * self.width:
            raise InvalidArg(
                f"{rows} rows of {self.width} values do not fit the shape of the output in the model configuration"
            )
        return made


class GpuCall:
    """``function`` of an ArrayInstance: one input, one output.

    Parameters
    ----------
    cpu
        The same forest there, with its threads, for batches of up to ``transfer_threshold`` rows.
    on_lost
        Called when the GPU takes no more work from this process.
    """

    def __init__(
        self, model: str, gpu: GpuForest, shape: Shape, *, cpu: tuple[Forest, int], transfer_threshold: int = 0,
        on_lost: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        self._model = model
        self._gpu: GpuForest | None = gpu
        self._device = gpu.device
        self._shape = shape
        self._cpu = cpu
        self._limit = transfer_threshold
        self._on_lost = on_lost
        self._row = gpu.features * _ITEM
        self._stream: Stream | None = Stream(gpu.device)

    def release(self) -> None:
        """Let go of the forest and the stream: who holds this one may do so for longer than they may live."""
        self._gpu = self._stream = None

    def __call__(self, given: list[Input | None], wanted: tuple[bool, ...]) -> list[Output | None]:
        if not wanted[0]:
            return [None]
        if given[0] is None:
            raise InvalidArg("the model needs its input")
        _, dims, view = given[0]
        pieces = view if isinstance(view, list) else [view]
        size = sum(len(piece) for piece in pieces)
        rows = size // self._row
        if size != rows * self._row or (self._shape.batched and rows != dims[0]):
            raise InvalidArg(f"the input has {size} bytes, expected rows of {self._row // _ITEM} features")
        made = self._shape.of(rows)
        if not rows:
            return [(int(DataType.FP32), made, 0, 0, None)]
        if rows <= self._limit and not isinstance(view, list):
            return [self._output(made, rows, *self._on_cpu(view))]
        return [self._output(made, rows, *self._on_gpu(pieces, rows))]

    def _on_cpu(self, view: BlockView) -> Scores:
        forest, threads = self._cpu
        data = predict(forest, view, threads)
        return numpy().frombuffer(data, "<f4"), data

    def _on_gpu(self, pieces: Sequence[Any], rows: int) -> Scores:
        gpu, stream = self._gpu, self._stream
        if gpu is None or stream is None:
            raise Unavailable("the model is unloaded")
        if why := gpu_library.lost(self._device):
            raise Unavailable(
                f"model '{self._model}' can not run: after the error '{why}' the server can not use GPU "
                f"{self._device} until it is started again"
            )
        try:
            return gpu.scores(stream, pieces, rows)
        except ServerError as error:
            self._failed(gpu, stream, error.message, memory=isinstance(error, Unavailable))
            raise
        except Exception as error:
            # The traceback's frames hold arrays; neither it nor the exception goes any further.
            text, memory = gpu_library.short(error), gpu_library.is_out_of_memory(error)
            del error
        self._failed(gpu, stream, text, memory=memory)
        raise Internal(f"FIL execute failure: {text}")

    def _failed(self, gpu: GpuForest, stream: Stream, text: str, *, memory: bool) -> None:
        gpu.ask(stream)
        if gpu_library.lost(self._device):
            log.error("a GPU takes no more work from this process", model=self._model, gpu=self._device, cause=text)
            if self._on_lost is not None:
                self._on_lost()
        elif memory:
            # What other calls have left may be what this one lacked; the next one shall have it.
            log.warning("out of memory on a GPU: its cache is emptied", model=self._model, gpu=self._device)
            gpu.clean()
            device_pool.trim()

    def _output(self, made: tuple[int, ...], rows: int, scores: Any, owner: Any) -> Output:
        shape = self._shape
        if shape.classes or shape.pair:
            np = numpy()
            owner = room(rows * shape.width * _ITEM)
            values = np.frombuffer(owner, np.float32)
            reduce(scores, values, scores.size // rows, pair=shape.pair, threshold=shape.threshold)
        else:
            values = scores
        return int(DataType.FP32), made, values.__array_interface__["data"][0], values.nbytes, owner
