"""What an ensemble is, and its members. All but this is a C interface (ensemble_plan.pxd)."""

from triton_fast._native.sched.model import NativeModel

def wait_unheld(model: NativeModel) -> None:
    """Wait until no request to an ensemble may still come to this model.

    Requests under way hold the models that their steps go to, and an ensemble those of its next request until it is
    renewed or stopped. Returns at once for a model that no ensemble has used.
    """
