"""Prometheus text 0.0.4: labels, numbers, and families of prometheus_client's kind as text.

Knows nothing of which metrics there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from prometheus_client import Metric

from triton_fast.observability.families import Family

CONTENT_TYPE = "text/plain; charset=utf-8"
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
_HELP_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n"})
_TYPES = {"unknown": "untyped", "info": "gauge", "stateset": "gauge", "gaugehistogram": "histogram"}


def head(family: Family) -> str:
    """Return the HELP and TYPE lines."""
    return _head(family.name, family.help, family.kind)


def labels_text(labels: Mapping[str, str]) -> str:
    """Return labels, sorted, without the braces."""
    return ",".join(f'{key}="{value.translate(_ESCAPES)}"' for key, value in sorted(labels.items()))


def number(value: float) -> str:
    if isinstance(value, int):
        return str(int(value))
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return "NaN" if math.isnan(value) else repr(float(value))


def plain(value: float) -> str:
    """As ``number``, but a whole one without a point: 100, not 100.0."""
    return str(int(value)) if math.isfinite(value) and float(value).is_integer() else number(value)


def exposition(families: Iterable[Metric]) -> bytes:
    """Return ``families`` as text.

    prometheus_client's own writer appends ``_total`` to the name of every counter family; Triton's have no such
    suffix, so the lines are written here. ``_created`` series of foreign collectors are left out, as that format has
    no place for them.
    """
    lines: list[str] = []
    for family in families:
        name = family.name
        if family.type == "counter" and any(sample.name == f"{name}_total" for sample in family.samples):
            name += "_total"
        lines.append(_head(name, family.documentation, _TYPES.get(family.type, family.type)))
        for sample in family.samples:
            if sample.name != f"{family.name}_created":
                labels = f"{{{labels_text(sample.labels)}}}" if sample.labels else ""
                lines.append(f"{sample.name}{labels} {number(sample.value)}\n")
    return "".join(lines).encode("utf-8", "replace")


def _head(name: str, text: str, kind: str) -> str:
    return f"# HELP {name} {text.translate(_HELP_ESCAPES)}\n# TYPE {name} {kind}\n"
