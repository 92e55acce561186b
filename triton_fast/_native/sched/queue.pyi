"""The batching decision, for tests. The queue itself has only a C interface. Source: sched/queue.pyx and policy.pxd."""

from collections.abc import Iterable, Sequence

def decide(
    sizes: Iterable[int],
    oldest_ns: int,
    now: int,
    *,
    max_batch: int,
    delay_ns: int = 0,
    preferred: Sequence[int] = (),
    single: bool = False,
) -> tuple[int, int]:
    """Run the pure policy over the queued requests of one shape.

    Parameters
    ----------
    sizes
        Rows of each request, oldest first.
    oldest_ns, now
        When the oldest was queued, and the time of asking; ns of one clock.
    max_batch
        Rows one batch may have. A first request with more goes alone.
    delay_ns
        How long the oldest may wait for its batch to grow.
    preferred
        Batch sizes in rows, in any order; a met one goes at once, the largest that is met.
    single
        One request per execution; nothing waits.

    Returns
    -------
    (taken, wait_until)
        How many requests go now, from the oldest on, and 0; or 0 and the time in ns at which to ask again.

    Raises
    ------
    ValueError
        More than 64 preferred sizes.
    """
