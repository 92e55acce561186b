"""MetricFamily and Metric. The server keeps the values; what can be checked here is, so that updates need no answer."""

from __future__ import annotations

import enum
import itertools
import json
import math
from typing import Any

from .errors import BINDING, TritonModelException, incompatible
from .runtime import Runtime, current

_numbers = itertools.count(1)
_CLEARED = (
    "Invalid metric operation as the corresponding 'MetricFamily' has been deleted. The 'MetricFamily' object should "
    "be deleted AFTER its corresponding 'Metric' objects have been deleted."
)
_NEGATIVE = "TRITONSERVER_METRIC_KIND_COUNTER can only be incremented monotonically by non-negative values."


class MetricKind(enum.IntEnum):
    COUNTER = 0
    GAUGE = 1
    HISTOGRAM = 2

    def __str__(self) -> str:
        return f"MetricKind.{self.name}"


MetricKind.__module__ = BINDING
# Operations by kind, and their names in the texts.
_SUPPORTED = {"increment": (0, 1), "set": (1,), "observe": (2,)}


def failed(runtime: Runtime, text: str) -> str:
    """An error of the server as the binding passes it on; what came from the server is worded so already."""
    worded = f"Failed to process the request for model '{runtime.name}', message: "
    return text if text.startswith(worded) else worded + text


class Metric:
    """Made by MetricFamily.Metric only."""

    __module__ = BINDING
    __slots__ = ("__weakref__", "_cleared", "_kind", "_number", "_runtime")

    def __init__(self, runtime: Runtime, family: int, kind: MetricKind, labels: Any, buckets: Any) -> None:
        self._runtime = runtime
        self._kind = kind
        self._number = next(_numbers)
        self._cleared = False
        fields = {"metric": self._number, "family": family, "labels": labels, "buckets": buckets}
        try:
            runtime.ask("metric", fields)
        except TritonModelException as error:
            raise TritonModelException(f"Error when creating Metric: {failed(runtime, str(error))}") from None

    def increment(self, value: float) -> None:
        self._update("increment", "Failed to increment metric value: ", value)

    def set(self, value: float) -> None:
        self._update("set", "Failed to set metric value: ", value)

    def observe(self, value: float) -> None:
        self._update("observe", "Failed to observe metric value: ", value)

    def value(self) -> float:
        if self._cleared:
            raise TritonModelException(f"Failed to get metric value: {_CLEARED}")
        try:
            return float(self._runtime.ask("metric_value", {"metric": self._number}))
        except TritonModelException as error:
            text = f"Failed to get metric value: {failed(self._runtime, str(error))}"
            raise TritonModelException(text) from None

    def clear(self) -> None:
        """Its family is gone."""
        if not self._cleared:
            self._cleared = True
            self._runtime.tell("metric_drop", {"metric": self._number})

    def _update(self, operation: str, prefix: str, value: Any) -> None:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
            if not isinstance(value, float):
                signature = f"(self: {BINDING}.Metric, arg0: float) -> None"
                raise incompatible(operation, signature, self, value) from None
        if self._cleared:
            raise TritonModelException(prefix + _CLEARED)
        if self._kind not in _SUPPORTED[operation]:
            text = f"TRITONSERVER_METRIC_KIND_{self._kind.name} does not support {operation.capitalize()}"
            raise TritonModelException(prefix + failed(self._runtime, text))
        if self._kind == MetricKind.COUNTER and number < 0:
            raise TritonModelException(prefix + failed(self._runtime, _NEGATIVE))
        # JSON has no NaN and no infinity: they go as text.
        sent = number if math.isfinite(number) else str(number)
        self._runtime.tell("metric_update", {"metric": self._number, "op": operation, "value": sent})


class MetricFamily:
    """Keeps its metrics; they end with it."""

    __module__ = BINDING
    __slots__ = ("__weakref__", "_kind", "_metrics", "_number", "_runtime")

    COUNTER = MetricKind.COUNTER
    GAUGE = MetricKind.GAUGE
    HISTOGRAM = MetricKind.HISTOGRAM

    def __init__(self, name: str, description: str, kind: MetricKind) -> None:
        if not isinstance(name, str) or not isinstance(description, str) or not isinstance(kind, MetricKind):
            signature = f"{BINDING}.MetricFamily(name: str, description: str, kind: {BINDING}.MetricKind)"
            raise incompatible("__init__", signature, name, description, kind)
        runtime = current()
        self._kind = kind
        self._metrics: list[Metric] = []
        number = next(_numbers)
        fields = {"family": number, "name": name, "description": description, "kind": kind.name.lower()}
        try:
            runtime.ask("metric_family", fields)
        except TritonModelException as error:
            raise TritonModelException(f"Error when creating MetricFamily: {failed(runtime, str(error))}") from None
        self._number = number
        self._runtime = runtime

    def Metric(self, labels: dict[str, str] | None = None, buckets: list[float] | None = None) -> Metric:
        if labels is not None and not isinstance(labels, dict):
            raise TritonModelException("Failed to create metric. Labels must be a dictionary.")
        json.dumps(labels)
        if labels and not all(isinstance(value, str) for value in labels.values()):
            text = failed(self._runtime, "attempt to access JSON non-string as string")
            raise TritonModelException(f"Error when creating Metric: {text}")
        if buckets is None:
            if self._kind == MetricKind.HISTOGRAM:
                raise TritonModelException("Failed to create metric. Missing required buckets.")
        else:
            if not isinstance(buckets, list):
                raise TritonModelException("Failed to create metric. Buckets must be a list.")
            if self._kind != MetricKind.HISTOGRAM:
                raise TritonModelException("Failed to create metric. Unexpected buckets found.")
            buckets = [float(bound) for bound in buckets]
        metric = Metric(self._runtime, self._number, self._kind, labels or {}, buckets)
        self._metrics.append(metric)
        return metric

    def __del__(self) -> None:
        runtime = getattr(self, "_runtime", None)
        if runtime is not None:
            for metric in self._metrics:
                metric.clear()
            runtime.tell("metric_family_drop", {"family": self._number})
