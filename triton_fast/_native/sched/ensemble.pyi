"""Ensembles as the engine runs them. Source: sched/ensemble.pyx."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from triton_fast._native.sched.model import Epoch, NativeModel
from triton_fast._native.sched.scheduler import NativeScheduler

@dataclass(frozen=True)
class Step:
    """One step of an ensemble.

    Attributes
    ----------
    model, version
        What ``resolve`` is asked for; -1 for the latest version.
    inputs, outputs
        Pairs of a name of the model's and a tensor of the ensemble. Outputs that are not named are not asked for.
    decoupled
        Each of its responses runs what depends on it once.
    """

    model: str
    version: int
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    decoupled: bool = ...

class NativeEnsemble(NativeScheduler):
    """The scheduler of an ensemble.

    Parameters
    ----------
    model : NativeModel
        The ensemble itself, which is to ``use`` this.
    steps : iterable of Step
        Every tensor is an input of the ensemble or made by one step; no circles.
    resolve : callable
        ``resolve(name, version)`` gives the model of a step. Raises ``ServerError``, whose text the request gets.
        Called from any thread.
    epoch : Epoch, optional
        Changes whenever ``resolve`` may answer otherwise. None: it is asked for each request.
    max_inflight : int
        Requests of each step that may be with its model at a time; 0: any number. Others wait in order.

    Raises
    ------
    ValueError
        The steps are no ensemble.
    """

    def __init__(
        self,
        model: NativeModel,
        steps: Iterable[Step],
        resolve: Callable[[str, int], NativeModel],
        *,
        epoch: Epoch | None = None,
        max_inflight: int = 0,
    ) -> None: ...
    def renew(self) -> None:
        """Let go of members that their names do not mean any more; the next request would do it too."""
    def freeze(self) -> None:
        """Look no member up any more: served no more, this ends with the members that it had."""
    def reached(self) -> frozenset[int]:
        """Return the addresses of the models that a request may come to, those of ensembles among them included."""
