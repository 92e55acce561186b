"""One instance: the function that is called with the arrays of a batch, and calls the model with tensors.

Runs on the instance's thread with the GIL, which torch lets go of while it computes and while it waits for a GPU.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from triton_fast.backends.pytorch import names
from triton_fast.backends.pytorch.device import Gpu
from triton_fast.backends.pytorch.opened import Opened, flatten, tables
from triton_fast.backends.pytorch.settings import Settings
from triton_fast.backends.pytorch.tensors import (
    dtype_of,
    from_device,
    from_tensor,
    from_texts,
    kinds,
    to_device,
    to_tensor,
    to_texts,
)  # fmt: skip
from triton_fast.backends.pytorch.texts import is_of_device, is_out_of_memory, short
from triton_fast.errors import Internal, InvalidArg, ServerError, Unavailable
from triton_fast.observability import log
from triton_fast.types import TYPES, DataType

if TYPE_CHECKING:
    from triton_fast._native.arrays.pyarrays import Input, Output

Named = Sequence[tuple[str, DataType]]


class Call:
    """``function`` of an ArrayInstance.

    Parameters
    ----------
    inputs, outputs
        Names and datatypes in the config's order, with those that the scheduler adds.
    positions
        Of the model's argument for each input.
    states
        Names of outputs that are states of sequences.
    gpu
        Where it runs if that is no CPU; None too for a model that has put itself somewhere.
    on_lost
        Called when the GPU takes no more work from this process.
    """

    def __init__(
        self, torch: Any, opened: Opened, settings: Settings, *, model: str, inputs: Named, outputs: Named,
        positions: Sequence[int], states: Sequence[str] = (), batched: bool = False, gpu: Gpu | None = None,
        on_lost: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        self._torch = torch
        self.opened = opened
        self._settings = settings
        self._model = model
        self._gpu = gpu
        self._on_lost = on_lost
        self._outputs = list(outputs)
        self._scalar = not batched
        self.n_inputs, self.n_outputs = len(inputs), len(outputs)
        self._thread = 0
        self._guard = torch.inference_mode if settings.inference_mode else torch.no_grad
        known = kinds(torch)
        self._places = [
            (name, position, known.get(int(dtype))) for (name, dtype), position in zip(inputs, positions, strict=True)
        ]
        self._count = 1 + max(positions, default=-1)
        wanted = [name for name, _ in outputs]
        self._order: list[int] | None = None
        if opened.outputs is not None:
            self._order = names.by_name(wanted, tables(opened.outputs))
        # Names of the form <name>__<index>, and the order of the config, serve where no result has a key or path.
        self._ordinals = names.outputs(model, wanted, states)
        self._indexed = all(names.index_of(name) is not None for name in wanted)

    def __call__(self, given: list[Input | None], wanted: tuple[bool, ...]) -> list[Output | None]:
        if self._thread != threading.get_native_id():
            self._enter()
        if self._gpu is None:
            with self._guard():
                return self._run(given, wanted)
        if self._gpu.health.lost:
            raise Unavailable(self._lost_text())
        with self._guard(), self._gpu.entered():
            return self._run(given, wanted)

    @property
    def on_gpu(self) -> bool:
        """Whether it takes inputs in a GPU's memory."""
        return self._gpu is not None

    def release(self) -> None:
        """Let go of the model and the stream: who holds this one may do so for longer than they may live."""
        self.opened = Opened((), _closed)
        self._gpu = None

    def _enter(self) -> None:
        """Set what belongs to a thread."""
        self._thread = threading.get_native_id()
        self._torch.set_num_threads(self._settings.intra)
        self._torch._C._set_graph_executor_optimize(self._settings.optimized)

    def _run(self, given: list[Input | None], wanted: tuple[bool, ...]) -> list[Output | None]:
        gpu = self._gpu
        try:
            if gpu is None:
                return self._results(self._result(given), wanted)
            self._switch()
            made = self._results(self._result(given), wanted)
            gpu.wait()
        except ServerError:
            self._settle()
            raise
        except Exception as error:
            # The traceback's frames hold tensors; neither it nor the exception goes any further.
            text = short(error)
            memory = is_out_of_memory(self._torch, error)
            del error
            self._settle()
            raise self._failed(text, memory) from None
        if self._settings.cache_cleaning:
            gpu.clean()
        return made

    def _result(self, given: list[Input | None]) -> Any:
        opened = self.opened
        if opened.is_dict:
            return opened.run({
                name: self._argument(one, kind)
                for (name, _, kind), one in zip(self._places, given, strict=True) if one is not None
            })  # fmt: skip
        arguments: list[Any] = [None] * self._count
        for (_, position, kind), one in zip(self._places, given, strict=True):
            if one is not None:
                arguments[position] = self._argument(one, kind)
        while arguments and arguments[-1] is None:
            arguments.pop()
        return opened.run(*arguments)

    def _argument(self, given: Input, kind: Any) -> Any:
        if kind is None:
            return to_texts(given)
        if self._gpu is None:
            return to_tensor(self._torch, given, kind, own=self.opened.writes_inputs)
        return to_device(self._torch, self._gpu, given, kind, own=self.opened.writes_inputs)

    # ---- on a GPU

    def _switch(self) -> None:
        # The switch is the process's; models that differ in it take turns.
        cudnn = self._torch.backends.cudnn
        if cudnn.enabled != self._settings.cudnn:
            cudnn.enabled = self._settings.cudnn

    def _settle(self) -> None:
        """Wait for what is queued already: it reads memory that the requests take with them."""
        if self._gpu is None:
            return
        try:
            self._gpu.wait()
        except Exception as error:
            self._check_health(short(error))

    def _failed(self, text: str, memory: bool) -> ServerError:
        gpu = self._gpu
        if gpu is not None:
            if memory:
                # What other calls have left may be what this one lacked; the next one shall have it.
                log.warning("out of memory on a GPU: its cache is emptied", model=self._model, device=str(gpu.device))
                gpu.clean()
            elif is_of_device(text):
                self._check_health(text)
        return Internal(f"PyTorch execute failure: {text}")

    def _check_health(self, text: str) -> None:
        gpu = self._gpu
        if gpu is None or gpu.health.lost or gpu.is_alive():
            return
        gpu.health.lost = text
        log.error("a GPU takes no more work from this process", model=self._model, device=str(gpu.device), cause=text)
        if self._on_lost is not None:
            self._on_lost()

    def _lost_text(self) -> str:
        assert self._gpu is not None
        return (
            f"model '{self._model}' can not run: after the error '{self._gpu.health.lost}' the server can not use "
            f"{self._gpu.device} until it is started again"
        )

    # ---- results

    def _results(self, result: Any, wanted: tuple[bool, ...]) -> list[Output | None]:
        leaves, order = self._leaves(result)
        made: list[Output | None] = []
        for (name, dtype), at, want in zip(self._outputs, order, wanted, strict=True):
            if at >= len(leaves):
                raise InvalidArg(
                    f"The output {name} in the model configuration refers to an output index which doesn't exist. "
                    f"This model has {len(leaves)} outputs"
                )
            made.append(self._output(name, dtype, leaves[at]) if want else None)
        return made

    def _leaves(self, result: Any) -> tuple[Sequence[Any], Sequence[int]]:
        if isinstance(result, self._torch.Tensor):
            return (result,), self._order or self._ordinals
        if isinstance(result, (tuple, list)) and all(isinstance(one, self._torch.Tensor) for one in result):
            return result, self._order or self._by_paths([f"RESULT[{at}]" for at in range(len(result))], [])
        found = flatten(result)
        leaves = [leaf for _, _, leaf in found]
        return leaves, self._order or self._by_paths([path for path, _, _ in found], [key for _, key, _ in found])

    def _by_paths(self, paths: list[str], keys: list[str]) -> Sequence[int]:
        wanted = [name for name, _ in self._outputs]
        by_key = {key: at for at, key in enumerate(keys) if key}
        by_path = {path: at for at, path in enumerate(paths)}
        found = names.by_name(wanted, [by_key, by_path])
        if found is None and not self._indexed and by_key:
            missing = next(name for name in wanted if name not in by_key)
            raise InvalidArg(
                f"unexpected inference output '{missing}', the model returned a dict with: {', '.join(sorted(by_key))}"
            )
        return self._ordinals if found is None else found

    def _output(self, name: str, dtype: DataType, leaf: Any) -> Output:
        torch = self._torch
        if isinstance(leaf, torch.Tensor):
            if leaf.is_quantized:
                leaf = leaf.dequantize()
            own = dtype_of(torch, leaf.dtype)
            if own != dtype:
                provided = TYPES[own].config if own in TYPES else str(leaf.dtype).removeprefix("torch.")
                raise InvalidArg(
                    f"configuration expects datatype {TYPES[dtype].config} for output '{name}', model provides "
                    f"{provided}"
                )
            if self._gpu is not None and self._gpu.has(leaf):
                return from_device(torch, self._gpu, leaf, int(dtype), scalar=self._scalar)
            return from_tensor(torch, leaf, int(dtype), lend=self.opened.stateless, scalar=self._scalar)
        if isinstance(leaf, list) and all(isinstance(text, str) for text in leaf):
            if dtype != DataType.STRING:
                raise InvalidArg(
                    f"configuration expects datatype {TYPES[dtype].config} for output '{name}', model provides "
                    "List[str]"
                )
            return from_texts(torch, leaf)
        raise InvalidArg(f"output '{name}' must be of type Tensor or List[str], received {type(leaf).__name__}")


def _closed(*_: Any) -> Any:
    raise Unavailable("the model is unloaded")
