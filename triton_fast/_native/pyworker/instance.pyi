"""A Python model instance, given worker processes by a supervisor. Source: ext/.../pyworker/instance.pyx."""

from collections.abc import Callable

from triton_fast._native.pyworker.channel import WorkerChannel
from triton_fast._native.sched.instance import NativeInstance
from triton_fast._native.sched.model import Epoch, NativeModel

class PythonInstance(NativeInstance):
    """One instance of a Python model, whose worker process comes, goes and comes again.

    Parameters
    ----------
    name
        As of ``NativeInstance``.
    resolve
        ``resolve(model name, version)``, -1 for the version policy's choice; raises what it likes. For requests that
        the model makes of other models.
    epoch
        Changes whenever ``resolve`` may answer otherwise. None: it is asked each time.
    spin_ns
        How long to look for the end of an execution before sleeping.
    wait_ns
        How long a response to its model waits for memory that the worker has not given back.
    """

    def __init__(
        self,
        name: str,
        resolve: Callable[[str, int], NativeModel] | None,
        epoch: Epoch | None = None,
        *,
        spin_ns: int = 0,
        wait_ns: int = 30_000_000_000,
    ) -> None: ...
    def attach(self, channel: WorkerChannel) -> None:
        """Hand requests to the worker at the other end of the channel from now on. Raises Internal if it has one."""

    def fail(self, reason: str, code: int = 1) -> None:
        """The worker has gone: everything in flight fails with ``reason``.

        What is asked meanwhile waits for the next worker (``attach``) or the end of hope (``give_up``). Blocks, without
        the GIL, until nothing uses the channel any more but responses on their way to clients.
        """

    def give_up(self, reason: str, code: int = 1) -> None:
        """No worker will come soon: what is pulled fails at once with ``reason``."""

    def finalize(self) -> bool:
        """Ask the worker to end itself. Returns False when there is none, or it takes no messages."""

    def trim(self, keep: int) -> None:
        """Give free shared memory back to the system, but for ``keep`` bytes in each direction."""

    def drain(self, timeout_s: float) -> bool:
        """Wait until the worker has no request. Returns whether it is so."""

    @property
    def in_flight(self) -> int:
        """Requests that the worker has."""

    @property
    def executing(self) -> bool: ...
    @property
    def execution_started_ns(self) -> int:
        """CLOCK_MONOTONIC at which the present execution began; 0 when there is none."""

    @property
    def broken(self) -> bool:
        """Whether the worker wrote what no worker writes; it should be killed."""

    @property
    def key(self) -> int:
        """A number that names this instance in ``calls`` of others."""

    @property
    def model_key(self) -> int:
        """A number that names its model in ``calls``; 0 before its first execution."""

    def calls(self) -> list[tuple[int, int, bool, str, int, int, tuple[tuple[int, str, int], ...]]]:
        """Return the requests its model has made and not had all answers of.

        Each is (call id, target model's key, caller waits, "queued" or "running", runner's key or 0, age in ns,
        waits); waits: of an ensemble, what it waits for, as (model's key, "queued", "running" or "waiting"
        for a place of a step, runner's key or 0).
        """

    def fail_call(self, call_id: int, text: str, code: int = 1) -> bool:
        """Answer a call with an error if no instance has it yet; return whether that was so."""
