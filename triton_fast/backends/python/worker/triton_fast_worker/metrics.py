"""Metrics that a model makes; kept by the server, so that all instances add to the same."""

from __future__ import annotations

import itertools
from typing import Any, Optional

from triton_fast_worker import runtime
from triton_fast_worker.errors import TritonModelException

_KINDS = ("counter", "gauge", "histogram")
_numbers = itertools.count(1)


class Metric:
    """One metric of a family; made by ``MetricFamily.Metric``."""

    def __init__(self, family: MetricFamily, number: int, kind: int) -> None:
        self._family: Optional[MetricFamily] = family
        self._number = number
        self._kind = kind
        self._runtime = family._runtime

    def _check(self) -> None:
        if self._family is None or self._family._dropped:
            raise TritonModelException(
                "Invalid metric operation as the corresponding 'MetricFamily' has been deleted. The 'MetricFamily' "
                "object should be deleted AFTER its corresponding 'Metric' objects have been deleted."
            )

    def _update(self, op: str, value: float) -> None:
        self._runtime.tell("metric_update", metric=self._number, op=op, value=float(value))

    def increment(self, value: float) -> None:
        """Add to a counter (not less than 0) or a gauge."""
        self._check()
        if self._kind == MetricFamily.HISTOGRAM:
            raise TritonModelException(
                "Failed to increment metric value: TRITONSERVER_METRIC_KIND_HISTOGRAM does not support Increment"
            )
        if self._kind == MetricFamily.COUNTER and value < 0:
            raise TritonModelException(
                "Failed to increment metric value: TRITONSERVER_METRIC_KIND_COUNTER can only be incremented "
                "monotonically by non-negative values."
            )
        self._update("increment", value)

    def set(self, value: float) -> None:
        """Set a gauge."""
        self._check()
        if self._kind != MetricFamily.GAUGE:
            kind = _KINDS[self._kind].upper()
            raise TritonModelException(
                f"Failed to set metric value: TRITONSERVER_METRIC_KIND_{kind} does not support Set"
            )
        self._update("set", value)

    def observe(self, value: float) -> None:
        """Add an observation to a histogram."""
        self._check()
        if self._kind != MetricFamily.HISTOGRAM:
            kind = _KINDS[self._kind].upper()
            raise TritonModelException(
                f"Failed to observe metric value: TRITONSERVER_METRIC_KIND_{kind} does not support Observe"
            )
        self._update("observe", value)

    def value(self) -> float:
        """Return the value of a counter or a gauge."""
        self._check()
        if self._kind == MetricFamily.HISTOGRAM:
            raise TritonModelException(
                "Failed to get metric value: TRITONSERVER_METRIC_KIND_HISTOGRAM does not support Value"
            )
        try:
            return float(self._runtime.ask("metric_value", metric=self._number))
        except TritonModelException as error:
            raise TritonModelException(f"Failed to get metric value: {error}") from None

    def __del__(self) -> None:
        _forget(self, "metric_drop", "metric")


class MetricFamily:
    """Metrics of one name. The same name and description from several instances are one family."""

    COUNTER, GAUGE, HISTOGRAM = 0, 1, 2

    def __init__(self, name: str, description: str, kind: int) -> None:
        self._dropped = False
        self._runtime = runtime.current()
        self._kind = int(kind)
        if self._kind not in (0, 1, 2):
            raise TritonModelException("Error when creating MetricFamily: unknown kind")
        number = next(_numbers)
        try:
            self._runtime.ask(
                "metric_family", family=number, name=name, description=description, kind=_KINDS[self._kind]
            )
        except TritonModelException as error:
            raise TritonModelException(f"Error when creating MetricFamily: {error}") from None
        self._number = number

    def Metric(  # noqa: N802 - Triton's name
        self, labels: Optional[dict[str, Any]] = None, buckets: Optional[list[float]] = None
    ) -> Metric:
        """Return the metric of these labels."""
        if labels is not None and not isinstance(labels, dict):
            raise TritonModelException("Failed to create metric. Labels must be a dictionary.")
        if buckets is not None and not isinstance(buckets, list):
            raise TritonModelException("Failed to create metric. Buckets must be a list.")
        if self._kind != MetricFamily.HISTOGRAM and buckets is not None:
            raise TritonModelException("Failed to create metric. Unexpected buckets found.")
        if self._kind == MetricFamily.HISTOGRAM and buckets is None:
            raise TritonModelException("Failed to create metric. Missing required buckets.")
        number = next(_numbers)
        texts = {str(key): str(value) for key, value in (labels or {}).items()}
        try:
            self._runtime.ask("metric", metric=number, family=self._number, labels=texts, buckets=buckets)
        except TritonModelException as error:
            raise TritonModelException(f"Error when creating Metric: {error}") from None
        return Metric(self, number, self._kind)

    def __del__(self) -> None:
        self._dropped = True
        _forget(self, "metric_family_drop", "family")


def _forget(thing: Any, kind: str, field: str) -> None:
    number = getattr(thing, "_number", None)
    if number is not None:
        try:
            thing._runtime.tell(kind, **{field: number})
        except Exception:  # noqa: BLE001 - at the end of the process the server may have gone
            return
