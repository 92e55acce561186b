"""Time in small pure pieces: how soon a worker is started again, and how much output of it is taken in a while."""

from __future__ import annotations

FIRST_S = 0.1
# With the time that a worker takes to start, one that died while it served is back within 2 s.
LONGEST_S = 1.5
# One that does not get as far as serving only costs time; so its next start may be later.
LONGEST_UNSTARTED_S = 30.0
HEALTHY_S = 60.0


class Backoff:
    """Delays before restarts: none, 0.1 s, 0.2 s, ... 1.5 s; from the start again after 60 s of health.

    Up to 30 s while workers end before ``initialize`` has returned.
    """

    def __init__(self) -> None:
        self._next = 0.0

    def delay(self, healthy_s: float | None = None) -> float:
        """Return how long to wait before the next start; how long the last worker was up, None if it never was."""
        if healthy_s is not None and healthy_s >= HEALTHY_S:
            self._next = 0.0
        longest = LONGEST_UNSTARTED_S if healthy_s is None else LONGEST_S
        now = min(longest, self._next)
        self._next = min(LONGEST_UNSTARTED_S, max(FIRST_S, 2 * now))
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
