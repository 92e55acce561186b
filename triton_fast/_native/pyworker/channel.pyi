"""One worker's region, rings and eventfds. Source: ext/triton_fast/_native/pyworker/channel.pyx."""

class WorkerChannel:
    """What one worker process shares with the server.

    Parameters
    ----------
    in_bytes, out_bytes
        Sizes of the heaps for what goes to the worker and for what comes from it, 64 KiB to 1 TiB. Sparse: memory is
        taken as it is used.

    Raises
    ------
    OSError
        The system gives no such memory, or no more file descriptors.
    """

    def __init__(self, in_bytes: int, out_bytes: int) -> None: ...
    def fds(self) -> tuple[int, int, int, int, int]:
        """Return the descriptors a worker needs: region, then the eventfds of work, answers, done and events.

        They are close-on-exec and stay the channel's.
        """

    @property
    def broken(self) -> bool:
        """Whether the worker wrote what no worker writes; it should be killed."""

    def region_bytes(self) -> int:
        """Return the size of the whole region."""
