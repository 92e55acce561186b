"""The rate limiter: resources that instances of all models share. Source: sched/limiter.pyx.

Places wait in the order of their value, executions x priority, then of asking. Each takes all it needs as soon as that
is free beside what the places before it still want.
"""

from collections.abc import Iterable

class Limiter:
    """The resources of a server and the places of the instances that share them.

    Parameters
    ----------
    explicit
        (name, amount, device) as of ``--rate-limit-resource``; device -1: each. Given twice, the smaller holds. Empty:
        of each resource there is as much as the instance needs that needs most.
    """

    def __init__(self, explicit: Iterable[tuple[str, int, int]] = ()) -> None: ...
    def join(self, resources: Iterable[tuple[str, bool, int]], *, device: int = 0, priority: int = 0) -> LimiterPlace:
        """Return a new place for an instance.

        Parameters
        ----------
        resources
            (name, is_global, amount); of a name given twice the last amount holds.
        device
            The instance's: a resource that is not global is this device's.
        priority
            0 counts as 1; 2 executes half as often as 1 where both wait.

        Raises
        ------
        InvalidArg
            There is not as much, or a resource is global here and a device's there.
        """

    def leave(self, place: LimiterPlace) -> None:
        """Forget a place whose instance has ended; idempotent."""

    def places(
        self,
    ) -> tuple[list[tuple[int, int, bool, bool, list[tuple[int, int, int]]]], dict[int, str], dict[int, str]]:
        """Return what each instance needs, those that wait first, in the order in which they are served.

        Returns
        -------
        list of (key of the instance, of its model, waits, holds, [(key of a resource, amount, amount that there is)])
        resources : dict
            Their names by their keys.
        models : dict
            Their names by their keys.
        """

    @property
    def amounts(self) -> dict[tuple[str, int | None], tuple[int, int]]:
        """What there is and what is in use: (name, device or None for a global one) -> (total, used)."""

class LimiterPlace:
    """The place of one instance, made by ``Limiter.join``. Only one thread at a time may ask, wait and release.

    Attributes
    ----------
    waiting, holding : bool
        What it is in now; neither: idle.
    executions : int
        Releases that counted.
    value : int
        Executions x priority, lifted to where its resources were served last.
    """

    waiting: bool
    holding: bool
    executions: int
    value: int
    def ask(self) -> None:
        """Begin to wait, or hold at once what is free. For callers that do not block."""

    def acquire(self) -> bool:
        """Ask and wait, without the GIL. Returns False when ``interrupt`` ended the wait."""

    def release(self, *, executed: bool = True, again: bool = False) -> None:
        """Give all back; ``executed``: it counts; ``again``: ask anew at once."""

    def interrupt(self) -> None:
        """End the present wait, else the next, once. From any thread."""

    def belongs(self, instance: int, model: int, name: str) -> None:
        """Say whose it is: keys for ``Limiter.places``; ``model`` 0: instances without a place execute for that too."""

    def leave(self) -> None:
        """Give all back and take part no more. After the instance's last execution; idempotent."""
