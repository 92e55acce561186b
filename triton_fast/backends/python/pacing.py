"""Time in small pure pieces: how soon a worker is started again, and how much output of it is taken in a while."""

from __future__ import annotations

FIRST_S = 0.1
LONGEST_S = 30.0
HEALTHY_S = 60.0


class Backoff:
    """Delays before restarts: none, 0.1 s, 0.2 s, ... 30 s; from the start again after 60 s of health."""

    def __init__(self) -> None:
        self._next = 0.0

    def delay(self, healthy_s: float = 0.0) -> float:
        """Return how long to wait before the next start; ``healthy_s``: how long the last worker was up."""
        if healthy_s >= HEALTHY_S:
            self._next = 0.0
        now = self._next
        self._next = min(LONGEST_S, max(FIRST_S, 2 * now))
        return now


class Allowance:
    """A budget that fills by ``rate`` a second up to ``burst``; what is over it has to wait."""

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._left = burst
        self._at = now

    def spend(self, amount: float, now: float) -> float:
        """Take ``amount``, which has been used already; return the seconds to wait before more is used."""
        self._left = min(self._burst, self._left + max(0.0, now - self._at) * self._rate) - amount
        self._at = now
        return 0.0 if self._left >= 0 else -self._left / self._rate
