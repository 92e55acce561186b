"""A plain loop around a framework, for bench.server.backends: started once, it runs when it is told to.

``python -m bench.server.direct FORM FOLDER THREADS``. Each line of JSON on stdin has ``seconds`` and ``sizes`` (batches
of each size); it runs batches of those sizes, mixed, and answers with a line: rows per second, ms a call, ms of the
processor a row. It knows no server.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SIZE = 1024  # numbers of a row
Prepare = Callable[[np.ndarray], Callable[[], Any]]


def onnxruntime(folder: Path, threads: int) -> Prepare:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # As in the server: idle threads sleep.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])

    def prepare(rows: np.ndarray) -> Callable[[], Any]:
        binding = session.io_binding()
        binding.bind_cpu_input("x", rows)
        binding.bind_output("y", "cpu")
        return lambda: session.run_with_iobinding(binding)

    return prepare


def openvino(folder: Path, threads: int) -> Prepare:
    import openvino as ov

    properties = {"INFERENCE_NUM_THREADS": str(threads), "NUM_STREAMS": "1", "ENABLE_CPU_PINNING": "NO"}
    request = ov.Core().compile_model(str(folder / "model.xml"), "CPU", properties).create_infer_request()

    def prepare(rows: np.ndarray) -> Callable[[], Any]:
        tensor = ov.Tensor(rows, shared_memory=True)

        def call() -> Any:
            # All sizes share the request: what was set last would be run, whatever is counted.
            request.set_input_tensor(0, tensor)
            return request.infer()

        return call

    return prepare


def forest(folder: Path, threads: int) -> Prepare:
    """treelite's C function as its Python package calls it, without the package's checks and copies."""
    from triton_fast._native.fil import instance
    from triton_fast._native.fil.forest import Forest
    from triton_fast.backends.fil import library

    library.open_library()
    model = Forest(str(folder / "checkpoint.tl"), "treelite_checkpoint")

    def prepare(rows: np.ndarray) -> Callable[[], Any]:
        return lambda: instance.predict(model, rows, threads)

    return prepare


def _torch(load: Callable[[Any, Path], Any]) -> Callable[[Path, int], Prepare]:
    def make(folder: Path, threads: int) -> Prepare:
        import torch

        torch.set_num_threads(threads)
        module = load(torch, folder)

        def prepare(rows: np.ndarray) -> Callable[[], Any]:
            x = torch.from_numpy(rows)

            def call() -> Any:
                with torch.inference_mode():
                    return module(x)

            return call

        return prepare

    return make


def _class(torch: Any, folder: Path) -> Any:
    names: dict[str, Any] = {}
    exec((folder / "model.py").read_text(), names)  # noqa: S102
    module = names["Dense"]()
    module.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    return module.eval()


def _functions(folder: Path) -> dict[str, Any]:
    source = (folder / "model.py").read_text().replace("import triton_python_backend_utils as pb_utils\n", "")
    names: dict[str, Any] = {}
    exec(source, names)  # noqa: S102
    return names


def python(folder: Path, threads: int) -> Prepare:
    """What model.py does with the arrays of a batch's requests, in this process: join, compute, cut apart."""
    del threads
    answer = _functions(folder)["answer"]

    def prepare(rows: np.ndarray) -> Callable[[], Any]:
        given = [rows[at : at + 1].copy() for at in range(len(rows))]
        return lambda: answer(given)

    return prepare


def python_bare(folder: Path, threads: int) -> Prepare:
    """Its matrix products alone, of an array that is whole already."""
    del threads
    compute = _functions(folder)["compute"]
    return lambda rows: lambda: compute(rows)


FORMS: dict[str, Callable[[Path, int], Prepare]] = {
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "fil": forest,
    "torchscript": _torch(lambda torch, folder: torch.jit.load(str(folder / "model.pt")).eval()),
    "exported": _torch(lambda torch, folder: torch.export.load(str(folder / "model.pt2")).module()),
    "class": _torch(_class),
    "python": python,
    "python_bare": python_bare,
}


def main(form: str, folder: str, threads: str) -> None:
    warnings.simplefilter("ignore")
    prepare = FORMS[form](Path(folder), int(threads))
    for line in sys.stdin:
        asked = json.loads(line)
        sizes = {int(size): count for size, count in asked["sizes"].items()}
        given = np.random.default_rng(1).standard_normal((max(sizes), SIZE)).astype(np.float32)
        calls = {size: prepare(given[:size].copy()) for size in sizes}
        order = [size for size, count in sizes.items() for _ in range(count)]
        random.Random(1).shuffle(order)
        for call in calls.values():
            call()
            call()
        began, cpu, rows, done = time.perf_counter(), time.process_time(), 0, 0
        for size in itertools.cycle(order):
            calls[size]()
            rows += size
            done += 1
            if time.perf_counter() - began >= asked["seconds"]:
                break
        took = time.perf_counter() - began
        figures = {"rate": rows / took, "ms": took / done * 1e3, "cpu_ms": (time.process_time() - cpu) / rows * 1e3}
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
