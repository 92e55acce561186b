"""A backend in one file: linear models as numpy archives, with the names of their classes where they are classifiers.

model.npz has ``weights`` (features, outputs) and ``bias`` (outputs); a classifier has ``classes`` (outputs) too.
"""

from __future__ import annotations

import zipfile
from typing import Any

import numpy as np

from triton_fast.backends.arrays import ArrayBackend, Batch, Model, Signature, Tensor
from triton_fast.errors import InvalidArg


class LinearBackend(ArrayBackend):
    name = "linear"
    default_filename = "model.npz"
    version = "1.0"

    def describe(self, model: Model) -> Signature:
        weights, _, classes = _read(model)
        features, outputs = weights.shape
        made = [Tensor("scores", "FP32", (-1, outputs))]
        if classes is not None:
            made.append(Tensor("label", "BYTES", (-1, 1)))
        return Signature([Tensor("features", "FP32", (-1, features))], made)

    def open(self, model: Model) -> Linear:
        activation = model.parameters.get("activation", "none")
        if activation not in ("none", "softmax"):
            raise InvalidArg(f"parameter 'activation' must be none or softmax, got '{activation}'")
        return Linear(*_read(model), activation == "softmax")


class Linear:
    """One opened model; all instances call it."""

    def __init__(self, weights: Any, bias: Any, classes: Any, is_softmax: bool) -> None:
        self.weights, self.bias, self.classes, self.is_softmax = weights, bias, classes, is_softmax

    def __call__(self, batch: Batch) -> dict[str, Any]:
        features = batch.inputs["features"]
        for request, rows in enumerate(batch.slices()):
            if not np.isfinite(features[rows]).all():
                # The other requests of the batch are answered.
                batch.fail(request, "features must be finite")
        scores = features @ self.weights + self.bias
        if self.is_softmax:
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
            scores /= scores.sum(axis=1, keepdims=True)
        made = {"scores": scores}
        if "label" in batch.wanted:
            made["label"] = self.classes[scores.argmax(axis=1)][:, None]
        return made


def _read(model: Model) -> tuple[Any, Any, Any]:
    try:
        # Without pickle an archive can hold numbers and texts and nothing that runs.
        with np.load(model.path, allow_pickle=False) as archive:
            weights, bias = (archive[name].astype(np.float32) for name in ("weights", "bias"))
            classes = archive["classes"].astype(str) if "classes" in archive else None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InvalidArg(f"model '{model.name}' is no linear model: {error}") from None
    if weights.ndim != 2 or bias.shape != weights.shape[1:] or (classes is not None and classes.shape != bias.shape):
        raise InvalidArg(f"model '{model.name}' has weights {weights.shape} and bias {bias.shape}, which do not fit")
    return weights, bias, classes
