"""The queue driven by hand and its batching decision alone, for tests. Source: sched/queue_driver.pyx, policy.pxd."""

from collections.abc import Iterable, Sequence

class QueueDriver:
    """A queue without instances and threads, whose requests have a number. Times are ns of the caller's clock.

    Parameters
    ----------
    max_batch, delay_ns, preferred, max_volume, single
        See ``decide``.
    levels, default_level, ordered, max_bytes, max_held
        See ``NativeModel``: levels, default_level, preserve_ordering, max_queue_bytes, max_held_bytes.

    Attributes
    ----------
    delivered
        (number, error text or None, is_final) of each response that came, in order; the caller empties it.
    requests
        Those that have not ended, by number.
    """

    requests: dict[int, int]
    delivered: list[tuple[int, str | None, bool]]
    def __init__(
        self,
        *,
        max_batch: int = 8,
        delay_ns: int = 0,
        preferred: Sequence[int] = (),
        max_volume: int = 0,
        single: bool = False,
        levels: Sequence[tuple[int, int, bool, bool]] = ((0, 0, False, False),),
        default_level: int = 1,
        ordered: bool = False,
        max_bytes: int = 0,
        max_held: int = 0,
    ) -> None: ...
    def submit(
        self,
        number: int,
        now: int,
        *,
        rows: int = 1,
        shape: int = 0,
        priority: int = 0,
        timeout_us: int = 0,
        elements: int = 0,
        nbytes: int = 0,
        max_responses: int = 0,
    ) -> str | None:
        """Queue a request; return None, or the text of the refusal."""

    def take(self, now: int, look: bool = False) -> list[int] | int:
        """Return the numbers of the batch that goes now, or the time at which to ask again (0: nothing is queued)."""

    def expire(self, now: int) -> None:
        """Do what the watcher does when a deadline comes."""

    def cancel(self, number: int) -> bool:
        """Take a request back; False: an instance has it, and is told."""

    def send(self, number: int) -> bool:
        """Give one response that is not the final one; False: nobody wants it."""

    def finish(self, number: int) -> None:
        """Give the final response."""

    def stop(self, abort: bool = False) -> None:
        """Take no more requests; with ``abort`` answer those that wait with an error."""

    def limits(self, number: int) -> tuple[int, int]:
        """Return how many responses of a request may be on their way, and how many are counted so."""

    @property
    def held(self) -> int:
        """Bytes of responses that wait for earlier requests."""

    @property
    def pending(self) -> int: ...
    @property
    def next_deadline(self) -> int:
        """No queued request is due before it; 0: none has a deadline."""

    @property
    def bytes(self) -> int:
        """Of inputs that wait, counted where there is a limit."""

    @property
    def breaks(self) -> dict[str, int]:
        """Batches by what ended them."""

    @property
    def failures(self) -> list[int]:
        """Requests by how they failed: see ``core.stats.FAILURE_REASONS``."""

def decide(
    sizes: Iterable[int],
    oldest_ns: int,
    now: int,
    *,
    max_batch: int,
    delay_ns: int = 0,
    preferred: Sequence[int] = (),
    single: bool = False,
    max_volume: int = 0,
    volumes: Sequence[int] = (),
    others: bool = False,
) -> tuple[int, int, str | None]:
    """Run the pure policy over the queued requests of one shape.

    Parameters
    ----------
    sizes
        Rows of each request, oldest first.
    oldest_ns, now
        When they were queued, and the time of asking; ns of one clock.
    max_batch
        Rows one batch may have. A first request with more goes alone.
    delay_ns
        How long the oldest may wait for its batch to grow. Then all that fits goes.
    preferred
        Batch sizes in rows, in any order; a met one goes at once, the largest that is met.
    single
        One request per execution; nothing waits.
    max_volume, volumes
        Elements that one batch may have (0: any number), and those of each request.
    others
        Whether requests wait that can not join.

    Returns
    -------
    (taken, wait_until, reason)
        How many requests go now, from the oldest on, 0, and what ends their batch (``core.stats.BREAK_REASONS``); or 0,
        the time in ns at which to ask again, and None.

    Raises
    ------
    ValueError
        More than 64 preferred sizes.
    """

def bench(n: int) -> int:
    """Submit and take n requests, eight to a batch; return how many came out (bench/micro only)."""
