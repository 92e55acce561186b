"""A served model version: its queue, its counters and its instance threads. Source: sched/model.pyx."""

from collections.abc import Sequence
from typing import Any

from triton_fast._native.core.collector import TraceSwitch
from triton_fast._native.core.model import Io, ModelHandle
from triton_fast._native.sched.instance import NativeInstance
from triton_fast._native.sched.limiter import LimiterPlace
from triton_fast._native.sched.scheduler import NativeScheduler

class Epoch:
    """A number that changes whenever a name may resolve to another model version.

    Front ends compare ``value`` with the one their cached resolution was made at.
    """

    value: int
    def advance(self) -> None:
        """Add one; call it after the change is visible."""

class NativeModel(ModelHandle):
    """A model version that takes requests.

    Parameters
    ----------
    name, version
        As clients name them.
    max_batch : int
        Rows one batch may have; 0 for a model without a batch dimension.
    inputs, outputs : sequence of config.IoSpec
        What requests are checked against. Labels of outputs are copied.
    decoupled : bool
        Whether a request may have other than one response.
    dynamic : bool
        Requests may share a batch; else each is executed alone.
    preferred : sequence of int
        Preferred batch sizes in rows, at most 64, in any order.
    delay_us : int
        How long the oldest request may wait for its batch to fill.
    max_queue_size : int
        Requests that may wait; 0: no limit. One more is refused with ``Exceeds maximum queue size``.
    timeout_us : int
        How long a request may wait in the queue; 0: no limit. Later it is refused with ``Request timeout expired``.
    timeout_override : bool
        Whether a request's own timeout may shorten ``timeout_us``.
    timeout_delay : bool
        Whether requests whose time is over are executed behind all others of their level, instead of being refused.
    levels : sequence of (max_queue_size, timeout_us, timeout_override, timeout_delay)
        The four above for each priority from 1, the highest, on; at most 1024. They count instead of those.
    default_level : int
        The level of requests whose priority is none of these.
    preserve_ordering : bool
        Responses leave in the order in which the requests came. Errors of requests that were not executed do not wait.
    max_held_bytes : int
        Bytes of responses that may wait for earlier ones so; 0: no limit. Over it the request that holds most fails
        with ``full_code``.
    max_volume : int
        Elements that the inputs of one batch may have together; 0: any number. A request with more goes alone.
    max_queue_bytes : int
        Bytes of inputs that may wait; 0: no limit.
    full_code : int
        Code of the error that a request gets for which there is no place: 4 UNAVAILABLE or 8 RESOURCE_EXHAUSTED.
    added_inputs, added_outputs : sequence of config.IoSpec
        What the scheduler adds to requests and takes from responses (controls, states): instances see them behind the
        others, clients never.

    Raises
    ------
    ValueError
        Too many preferred sizes or levels, or a default level that is none of them.
    """

    def __init__(
        self,
        name: str,
        version: int,
        max_batch: int,
        inputs: Sequence[Io],
        outputs: Sequence[Io],
        decoupled: bool = False,
        *,
        dynamic: bool = False,
        preferred: Sequence[int] = (),
        delay_us: int = 0,
        max_queue_size: int = 0,
        timeout_us: int = 0,
        timeout_override: bool = False,
        timeout_delay: bool = False,
        levels: Sequence[tuple[int, int, bool, bool]] = (),
        default_level: int = 1,
        preserve_ordering: bool = False,
        max_volume: int = 0,
        max_queue_bytes: int = 0,
        max_held_bytes: int = 0,
        full_code: int = 4,
        added_inputs: Sequence[Io] = (),
        added_outputs: Sequence[Io] = (),
    ) -> None: ...
    @property
    def pending(self) -> int:
        """Requests waiting in the queue."""

    @property
    def late(self) -> list[tuple[int | None, int]]:
        """How long after their deadline requests were refused: upper bound in ns, None for the last, and how many."""

    @property
    def n_instances(self) -> int:
        """Instances started and not yet stopped."""

    def use(self, source: NativeScheduler) -> None:
        """Have requests go to ``source`` instead of the queue. Before any layer and any instance."""

    def add_layer(self, layer: NativeScheduler) -> None:
        """Put ``layer`` before what takes requests now. Before the first request."""

    def trace_by(self, switch: TraceSwitch) -> None:
        """Have ``switch`` say which requests are traced. Before the first request.

        Raises
        ------
        ValueError
            Another says it already.
        """

    def start_instance(
        self,
        instance: NativeInstance,
        spin_ns: int = 0,
        place: LimiterPlace | None = None,
        all_limited: bool = True,
    ) -> None:
        """Start the thread of one instance, which begins to pull batches at once.

        Parameters
        ----------
        instance
            Kept until ``stop`` has ended its thread.
        spin_ns
            How long its thread looks for work before it sleeps.
        place
            In the rate limiter: the instance executes only while it holds what the place needs, from taking a batch
            until ``execute`` has returned. ``stop`` has it leave.
        all_limited
            Whether each other instance of the model has one too.

        Raises
        ------
        ValueError
            The instance has no execute function.
        Internal
            The system gives no more threads, or the model was stopped.
        """

    def stop(self, *, abort: bool = False) -> None:
        """Take no more requests, execute what is queued, end the threads. Blocks, without the GIL.

        Any number of threads may call it; each returns after the last batch has been delivered. A request that no
        instance will take is answered with the error that later requests get.

        Parameters
        ----------
        abort
            Answer what is queued with an error instead, at once.

        Raises
        ------
        Internal
            Called from one of the model's own instances, which would wait for itself.
        """

    def abort(self) -> None:
        """Take no more requests and answer what is queued with an error, at once; what runs goes on. Does not wait."""

    def measure(self, *, summary_error: float = 0, first_bounds_ms: Sequence[int] | None = None) -> None:
        """Have counted what costs too much to be counted unless somebody asks. Before the first request.

        Parameters
        ----------
        summary_error
            Keep summaries whose quantiles' ranks are wrong by at most this part of all values; 0: keep none.
        first_bounds_ms
            Ascending bounds of the histogram of the time to first responses, at most 512; None: it is not kept.

        Raises
        ------
        ValueError
            Too many bounds.
        """

    def summaries(self, quantiles: Sequence[float]) -> dict[str, tuple[int, int, list[int | None]]]:
        """Return ``{phase: (count, sum in us, [us for each quantile])}``; empty where none are kept.

        Quantiles, at most 64, are those of the last minute, and None when it had none. Keyed by
        ``core.stats.SUMMARIES``. Lets go of the GIL.
        """

    def snapshot(self) -> dict[str, Any]:
        """Return the counters at one moment.

        Returns
        -------
        dict
            last_inference_ms : int
                Wall clock of the last execution, ms since 1970; 0 for never.
            inference_count, execution_count : int
                Rows and batches executed, failed ones included.
            success : int
                Requests answered without an error.
            failures : dict of str to int
                Keyed by ``core.stats.FAILURE_REASONS``. Requests refused because the model stops are not counted.
            fail_ns : int
                Time of failed requests from queueing to their end.
            ns, us : dict of str to int
                Time of successful requests, keyed by ``core.stats.PHASES``; us adds whole microseconds per request.
            histograms : dict of str to (tuple of int, int)
                Per phase: count per bucket, each bucket alone and the last for what is over
                ``core.stats.HISTOGRAM_BOUNDS_US``; and the sum in ns.
            cache : (hits, ns, misses, ns)
                Of the response cache's answers for this model; cache_us : (hits' us, misses' us).
            breaks : dict of str to int
                What ended batches, keyed by ``core.stats.BREAK_REASONS``.
            first_response : (bounds in ms, count of each bucket alone, sum in ms) or None
                Of the time to requests' first responses.
            responses : dict of int to dict of str to (count, ns)
                Of backends that report each response, by its index; keyed by ``core.stats.RESPONSE_FIELDS``.
            batches : list of (size, count, input_ns, infer_ns, output_ns)
                Per batch size in rows, ascending.
            pending : int
                Requests waiting now.
        """
