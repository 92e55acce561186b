"""A stand-in for the package ``nvforest``: forests run by treelite's GTIL, over device memory of the other stand-ins.

Names, arguments, and what is given back are those of the real one, release 26.10 (tests compare them). ``faults`` are
raised by the next calls; other processes have them from FAKE_NVFOREST_FAULTS, ``<call>:<text>`` with ``;`` between.
"""

from __future__ import annotations

import os
from typing import Any

import cupy as cp
import numpy as np
import treelite

__version__ = "26.10.00"
LAYOUTS = ("depth_first", "breadth_first", "layered")
# By the number of the call.
faults: dict[int, BaseException] = {}
for _one in filter(None, os.environ.get("FAKE_NVFOREST_FAULTS", "").split(";")):
    _call, _, _text = _one.partition(":")
    faults[int(_call)] = MemoryError(_text) if "memory" in _text else RuntimeError(_text)
calls: list[tuple[str, tuple[int, ...]]] = []
opened: list[Any] = []
# What results are moved by, as of a library that has it wrong.
error = 0.0


class _Forest:
    def __init__(self, model: Any, device_id: int, layout: str, precision: str | None) -> None:
        header = model.get_header_accessor()
        if header.get_field("num_target")[0] != 1:
            raise RuntimeError("nvForest does not support multi-target model")
        if layout not in LAYOUTS:
            raise RuntimeError(f"Unrecognized tree layout {layout}")
        if precision not in (None, "native", "single", "float32", "double", "float64"):
            raise ValueError(f"Unknown precision value: {precision}")
        assert cp.current() == device_id, "it makes its handle on the current device"
        self.model, self._memory = model, cp.Memory(64)
        wide = model.input_type == "float64" if precision in (None, "native") else precision in ("double", "float64")
        self.dtype = np.dtype(np.float64 if wide else np.float32)
        self.width = int(header.get_field("num_class")[0])

    def predict(self, method: str, x: Any, chunk: int | None) -> Any:
        calls.append((method, tuple(x.shape)))
        fault = faults.pop(len(calls), None)
        if fault is not None:
            try:
                raise fault
            finally:
                del fault
        if len(x.shape) != 2:
            raise ValueError("Expected a 2D array for X")
        if x.shape[1] != self.model.num_feature:
            raise ValueError(f"Expected {self.model.num_feature} features in the input but X has {x.shape[1]} features")
        if chunk is not None and chunk not in (1, 2, 4, 8, 16, 32):
            raise RuntimeError(f"chunk size {chunk}")
        rows = cp.asarray(x, dtype=self.dtype, order="C", blocking=True)
        made = treelite.gtil.predict(self.model, rows.host().copy()).reshape(x.shape[0], self.width)
        result = cp.empty(shape=made.shape, dtype=self.dtype, order="C")
        result.host()[...] = made + error
        return result


class _Gpu:
    def __init__(
        self, *, treelite_model: Any, handle: Any = None, layout: str = "depth_first",
        default_chunk_size: int | None = None, align_bytes: int | None = None, precision: str | None = None,
        device_id: int,
    ) -> None:  # fmt: skip
        self._forest = _Forest(treelite_model, device_id, layout, precision)
        self.layout, self.default_chunk_size, self.device_id = layout, default_chunk_size, device_id
        self.align_bytes, self.precision = align_bytes or 0, precision
        opened.append(self)

    @property
    def num_features(self) -> int:
        return int(self._forest.model.num_feature)

    @property
    def num_outputs(self) -> int:
        return self._forest.width

    @property
    def num_trees(self) -> int:
        return int(self._forest.model.num_tree)


class GPUForestInferenceClassifier(_Gpu):
    is_classifier = True

    def predict(self, X: Any, *, chunk_size: int | None = None, threshold: float | None = None) -> Any:
        raise AssertionError("classes are made by the server, with its own threshold")

    def predict_proba(self, X: Any, *, chunk_size: int | None = None) -> Any:
        return self._forest.predict("predict_proba", X, chunk_size or self.default_chunk_size)


class GPUForestInferenceRegressor(_Gpu):
    is_classifier = False

    def predict(self, X: Any, *, chunk_size: int | None = None) -> Any:
        return self._forest.predict("predict", X, chunk_size or self.default_chunk_size)


def load_from_treelite_model(
    tl_model: Any, *, device: str = "auto", layout: str = "depth_first", default_chunk_size: int | None = None,
    align_bytes: int | None = None, precision: str | None = None, device_id: int | None = None, handle: Any = None,
) -> Any:  # fmt: skip
    assert device == "gpu"
    assert device_id is not None
    # 0: binary classifier, 2: of several classes.
    task = tl_model.get_header_accessor().get_field("task_type")[0]
    kind = GPUForestInferenceClassifier if task in (0, 2) else GPUForestInferenceRegressor
    return kind(
        treelite_model=tl_model, device_id=device_id, handle=handle, layout=layout,
        default_chunk_size=default_chunk_size, align_bytes=align_bytes, precision=precision,
    )  # fmt: skip
