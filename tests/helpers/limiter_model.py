"""The rate limiter's decision in plain Python: what sched/limiter.pyx must do, without threads.

Knows places, amounts and the order of asking; knows neither instances nor models.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(eq=False)
class Seat:
    """``needs``: resource -> amount; ``value``: executions x priority, lifted to where it began to wait."""

    name: str
    needs: dict[str, int]
    priority: int = 1
    value: int = 0
    executions: int = 0
    asked_at: int = -1  # -1: does not wait
    holding: bool = False


@dataclass
class Table:
    totals: dict[str, int]
    seats: list[Seat] = field(default_factory=list)
    clock: int = 0
    served: dict[str, int] = field(default_factory=dict)  # by resource; tied ones share the highest

    def used(self, resource: str) -> int:
        return sum(seat.needs.get(resource, 0) for seat in self.seats if seat.holding)

    def waiting(self) -> list[Seat]:
        """Who waits, in the order in which they are served."""
        return sorted((seat for seat in self.seats if seat.asked_at >= 0), key=lambda seat: (seat.value, seat.asked_at))

    def ask(self, seat: Seat) -> None:
        if seat.asked_at < 0 and not seat.holding:
            self._queue(seat)
            self._serve()

    def release(self, seat: Seat, *, executed: bool = True, again: bool = False) -> None:
        seat.holding = False
        if executed:
            seat.executions += 1
            seat.value += seat.priority
        if again:
            self._queue(seat)
        self._serve()

    def tied(self, seat: Seat) -> set[str]:
        """The resources that seats tie to those of this one."""
        found = set(seat.needs)
        while True:
            more = {name for other in self.seats if found & set(other.needs) for name in other.needs} - found
            if not more:
                return found
            found |= more

    def _queue(self, seat: Seat) -> None:
        self.clock += 1
        seat.asked_at = self.clock
        seat.value = max([seat.value, *(self.served.get(resource, 0) for resource in self.tied(seat))])

    def _serve(self) -> None:
        claimed = dict.fromkeys(self.totals, 0)
        for seat in self.waiting():
            if all(self.used(name) + claimed[name] + count <= self.totals[name] for name, count in seat.needs.items()):
                seat.asked_at, seat.holding = -1, True
                for name in seat.needs:
                    self.served[name] = max(self.served.get(name, 0), seat.value)
            else:
                for name, count in seat.needs.items():
                    claimed[name] += count
