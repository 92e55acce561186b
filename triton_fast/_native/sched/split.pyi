"""Requests with more rows than a batch may have: cut into parts and answered as one."""

from triton_fast._native.sched.model import NativeModel
from triton_fast._native.sched.scheduler import NativeScheduler

class SplitLayer(NativeScheduler):
    """Lets a model take requests of up to ``max_rows`` rows: what is over its largest batch is cut and joined again.

    At most 16384 parts come of one request, whatever ``max_rows`` says. The model must have a batch dimension, one
    response for each request, and no ragged inputs. Tell it to ``NativeModel.add_layer``.
    """

    def __init__(self, model: NativeModel, max_rows: int) -> None: ...
