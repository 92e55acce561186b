"""The settings of ``--metrics-config``, checked.

Knows nothing of the command line or of how metrics are made.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from triton_fast.errors import InvalidArg

_SWITCHES = ("counter_latencies", "histogram_latencies", "summary_latencies")
# What a smaller one would take is not worth it: a summary's memory grows with what it may not be wrong by.
MIN_ERROR = 0.0001
MAX_QUANTILES = 64
_QUANTILES = ((0.5, 0.05), (0.9, 0.01), (0.95, 0.001), (0.99, 0.001), (0.999, 0.001))


@dataclass(frozen=True)
class MetricsConfig:
    """``counter_latencies`` false stops every per-request update, as in Triton; ``notes`` are for the start-up log."""

    counter_latencies: bool = True
    histogram_latencies: bool = False
    summary_latencies: bool = False
    summary_quantiles: tuple[tuple[float, float], ...] = _QUANTILES
    notes: tuple[str, ...] = ()

    @property
    def summary_error(self) -> float:
        """The error that all quantiles keep to; 0 without summaries."""
        if not self.summary_latencies or not self.summary_quantiles:
            return 0.0
        return max(MIN_ERROR, min(error for _, error in self.summary_quantiles))

    @classmethod
    def from_pairs(cls, pairs: Iterable[tuple[str, str]]) -> MetricsConfig:
        """Return the settings of ``(setting, value)`` pairs; the last of a setting counts.

        Raises InvalidArg for a value that a known setting cannot have. Triton ignores unknown settings; they are
        named in ``notes``.
        """
        switches = {"counter_latencies": True, "histogram_latencies": False, "summary_latencies": False}
        quantiles: tuple[tuple[float, float], ...] = _QUANTILES
        notes = []
        for setting, value in pairs:
            if setting in switches:
                if value.lower() not in ("true", "false"):
                    raise InvalidArg(f"invalid value for metrics setting {setting}: {value}. Use true or false")
                switches[setting] = value.lower() == "true"
            elif setting == "summary_quantiles":
                quantiles = _quantiles(value)
            else:
                known = ", ".join((*_SWITCHES, "summary_quantiles"))
                notes.append(f"--metrics-config: unknown setting '{setting}' is ignored; there are {known}")
        if any(error < MIN_ERROR for _, error in quantiles):
            notes.append(f"--metrics-config: an error below {MIN_ERROR} in summary_quantiles counts as {MIN_ERROR}")
        return cls(summary_quantiles=quantiles, notes=tuple(notes), **switches)


def _quantiles(text: str) -> tuple[tuple[float, float], ...]:
    found = []
    for part in text.split(","):
        quantile, _, error = part.partition(":")
        try:
            pair = (float(quantile), float(error))
        except ValueError:
            pair = (-1.0, -1.0)
        if not (0.0 <= pair[0] <= 1.0 and 0.0 <= pair[1] <= 1.0):
            raise InvalidArg(
                f"invalid value for metrics setting summary_quantiles: {part}. "
                "Use <quantile>:<error>,... with numbers from 0 to 1"
            )
        found.append(pair)
    # A quantile that is given twice would be two series of one name.
    unique = tuple(dict(found).items())
    if len(unique) > MAX_QUANTILES:
        raise InvalidArg(f"invalid value for metrics setting summary_quantiles: more than {MAX_QUANTILES} quantiles")
    return unique
